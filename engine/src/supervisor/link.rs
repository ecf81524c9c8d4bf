//! The link between supervisor and worker: one message a packet of a SOCK_SEQPACKET pair.
//!
//! Always: a message has one encoding, of fixed length, and anything else is an error; both ends never block.
//! The end of the link (the other process died) is an event, not an error. Never: a message longer than
//! [`MAX_BYTES`], or a descriptor accepted outside the first message.
#![forbid(unsafe_code)]

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use ringpair_core::supervisor::WorkerStatus;
use ringpair_wire::control::{GrantId, Role};
use ringpair_wire::id::{ChainHash, Epoch, Position, Seq};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};
use thiserror::Error;

/// The greatest length of a message.
pub const MAX_BYTES: usize = 80;
/// The most descriptors that travel with [`ToWorker::Start`].
pub const MAX_DESCRIPTORS: usize = 4;
/// Both ends are of one executable; a worker of another one refuses to start.
const LINK_VERSION: u8 = 1;

/// What a worker says to its supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromWorker {
    /// The loop turned; sent at least every H, so that silence means that the worker hangs.
    Turn,
    /// What the worker is now; sent whenever it changes.
    Status(WorkerStatus),
    /// The worker serves: systemd may be told.
    Ready,
    /// A hook runs and may take this long (whole milliseconds).
    HookRunning(Duration),
}

/// What a supervisor says to its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToWorker {
    /// The first message; the lock of the storage directory and the listening sockets travel with it, main first. The
    /// number is how many sockets there are (1 or 2).
    Start(u8),
    /// End in a controlled way: discontinue, release.
    Stop,
    /// Read configuration and keys again.
    Reload,
}

/// Why a packet of the link was refused.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The system call failed.
    #[error("the link between supervisor and worker failed: {0}")]
    Io(#[from] io::Error),
    /// The packet is not a message.
    #[error(
        "the link carried a packet of {bytes} bytes that is no message: {what}. Try: start both from one executable"
    )]
    Malformed {
        /// The length of the packet.
        bytes: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl From<Errno> for LinkError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// What a receive found.
#[derive(Debug)]
pub enum Received<M> {
    /// A message.
    Message(M),
    /// Nothing waits now.
    Empty,
    /// The other end is gone.
    Eof,
}

/// A message that travels over the link.
pub trait Message: Sized {
    /// Writes the message and returns its length.
    fn encode(&self, out: &mut [u8; MAX_BYTES]) -> usize;
    /// Reads a whole packet.
    ///
    /// # Errors
    /// What is wrong with it, if it is not exactly one message.
    fn decode(packet: &[u8]) -> Result<Self, &'static str>;
}

/// One end of the link.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
}

impl Link {
    /// A connected pair: the supervisor's end and the worker's. Both close on exec and never block.
    ///
    /// # Errors
    /// If the sockets cannot be made.
    pub fn pair() -> Result<(Self, Self), LinkError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self { socket: ours }, Self { socket: theirs }))
    }

    /// The end that this descriptor is; a worker's is its standard input.
    #[must_use]
    pub fn adopt(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// The socket, for handing it to a child.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.socket
    }

    /// Sends a message; `false`: the other end does not read and the message was not sent.
    ///
    /// # Errors
    /// If the other end is gone or the socket fails.
    pub fn send<M: Message>(&self, message: &M) -> Result<bool, LinkError> {
        let mut packet = [0; MAX_BYTES];
        let length = message.encode(&mut packet);
        sent(send(&self.socket, &packet[..length], SendFlags::NOSIGNAL | SendFlags::DONTWAIT))
    }

    /// Sends a message together with descriptors, at most [`MAX_DESCRIPTORS`].
    ///
    /// # Errors
    /// If the other end is gone or the socket fails.
    pub fn send_with<M: Message>(&self, message: &M, descriptors: &[BorrowedFd<'_>]) -> Result<bool, LinkError> {
        let mut packet = [0; MAX_BYTES];
        let length = message.encode(&mut packet);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sent(sendmsg(&self.socket, &[IoSlice::new(&packet[..length])], &mut control, flags))
    }

    /// Takes the next message, if there is one.
    ///
    /// # Errors
    /// If the packet is not a message (it is consumed), or the socket fails.
    pub fn receive<M: Message>(&self) -> Result<Received<M>, LinkError> {
        self.receive_with().map(|(received, _)| received)
    }

    /// Takes the next message and the descriptors that came with it.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn receive_with<M: Message>(&self) -> Result<(Received<M>, Vec<OwnedFd>), LinkError> {
        let mut packet = [0; MAX_BYTES + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = loop {
            match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut packet)], &mut control, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok((Received::Empty, Vec::new())),
                Err(Errno::CONNRESET) => return Ok((Received::Eof, Vec::new())),
                other => break other?,
            }
        };
        let descriptors: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(received) => Some(received),
                _ => None,
            })
            .flatten()
            .collect();
        if got.bytes == 0 {
            return Ok((Received::Eof, descriptors));
        }
        let malformed = |what| LinkError::Malformed { bytes: got.bytes, what };
        if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) || got.bytes > MAX_BYTES {
            return Err(malformed("it is too long"));
        }
        let message = M::decode(&packet[..got.bytes]).map_err(malformed)?;
        Ok((Received::Message(message), descriptors))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn sent(result: rustix::io::Result<usize>) -> Result<bool, LinkError> {
    match result {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN | Errno::NOBUFS) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads the fields of a packet in order; the packet must end with the last one.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or("it is too short")?;
        self.0 = rest;
        Ok(*field)
    }

    fn u8(&mut self) -> Result<u8, &'static str> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, &'static str> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, &'static str> {
        self.take().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Result<bool, &'static str> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a flag is neither 0 nor 1"),
        }
    }

    fn end<T>(&self, value: T) -> Result<T, &'static str> {
        if self.0.is_empty() { Ok(value) } else { Err("it goes on after its last field") }
    }
}

/// Writes the fields of a packet in order.
struct Packet<'a> {
    bytes: &'a mut [u8; MAX_BYTES],
    length: usize,
}

impl<'a> Packet<'a> {
    fn new(bytes: &'a mut [u8; MAX_BYTES], tag: u8) -> Self {
        bytes[0] = LINK_VERSION;
        bytes[1] = tag;
        Self { bytes, length: 2 }
    }

    fn put(mut self, field: &[u8]) -> Self {
        self.bytes[self.length..self.length + field.len()].copy_from_slice(field);
        self.length += field.len();
        self
    }
}

fn open(packet: &[u8]) -> Result<(u8, Fields<'_>), &'static str> {
    let mut fields = Fields(packet);
    if fields.u8()? != LINK_VERSION {
        return Err("it is of another version");
    }
    let tag = fields.u8()?;
    Ok((tag, fields))
}

fn whole_ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn put_status(packet: Packet<'_>, status: &WorkerStatus) -> usize {
    let role = match status.role {
        Role::None => 0,
        Role::Active => 1,
        Role::Backup => 2,
    };
    let right = status.right.unwrap_or_default();
    packet
        .put(&[role, u8::from(status.alone), u8::from(status.right.is_some())])
        .put(&status.epoch.0.to_le_bytes())
        .put(&right.epoch.0.to_le_bytes())
        .put(&right.number.to_le_bytes())
        .put(&status.position.epoch.0.to_le_bytes())
        .put(&status.position.seq.0.to_le_bytes())
        .put(&status.position.chain.0.to_le_bytes())
        .put(&status.lease_ms.to_le_bytes())
        .length
}

fn take_status(mut fields: Fields<'_>) -> Result<WorkerStatus, &'static str> {
    let role = match fields.u8()? {
        0 => Role::None,
        1 => Role::Active,
        2 => Role::Backup,
        _ => return Err("its role is unknown"),
    };
    let (alone, has_right) = (fields.flag()?, fields.flag()?);
    let epoch = Epoch(fields.u64()?);
    let grant = GrantId { epoch: Epoch(fields.u64()?), number: fields.u64()? };
    let right = match (has_right, grant) {
        (true, grant) => Some(grant),
        (false, grant) if grant == GrantId::default() => None,
        _ => return Err("it names a grant that is not there"),
    };
    let position = Position {
        epoch: Epoch(fields.u64()?),
        seq: Seq(fields.u64()?),
        chain: ChainHash(u128::from_le_bytes(fields.take()?)),
    };
    let lease_ms = fields.u32()?;
    fields.end(WorkerStatus { role, epoch, right, alone, position, lease_ms })
}

impl Message for FromWorker {
    fn encode(&self, out: &mut [u8; MAX_BYTES]) -> usize {
        match self {
            Self::Turn => Packet::new(out, 1).length,
            Self::Status(status) => put_status(Packet::new(out, 2), status),
            Self::Ready => Packet::new(out, 3).length,
            Self::HookRunning(limit) => Packet::new(out, 4).put(&whole_ms(*limit).to_le_bytes()).length,
        }
    }

    fn decode(packet: &[u8]) -> Result<Self, &'static str> {
        let (tag, mut fields) = open(packet)?;
        match tag {
            1 => fields.end(Self::Turn),
            2 => take_status(fields).map(Self::Status),
            3 => fields.end(Self::Ready),
            4 => {
                let limit = Duration::from_millis(u64::from(fields.u32()?));
                fields.end(Self::HookRunning(limit))
            }
            _ => Err("its kind is unknown"),
        }
    }
}

impl Message for ToWorker {
    fn encode(&self, out: &mut [u8; MAX_BYTES]) -> usize {
        match self {
            Self::Start(addresses) => Packet::new(out, 65).put(&[*addresses]).length,
            Self::Stop => Packet::new(out, 66).length,
            Self::Reload => Packet::new(out, 67).length,
        }
    }

    fn decode(packet: &[u8]) -> Result<Self, &'static str> {
        let (tag, mut fields) = open(packet)?;
        match tag {
            65 => match fields.u8()? {
                addresses @ 1..=2 => fields.end(Self::Start(addresses)),
                _ => Err("it names neither one nor two addresses"),
            },
            66 => fields.end(Self::Stop),
            67 => fields.end(Self::Reload),
            _ => Err("its kind is unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> WorkerStatus {
        WorkerStatus {
            role: Role::Active,
            epoch: Epoch(65_537),
            right: Some(GrantId { epoch: Epoch(65_537), number: 7 }),
            alone: false,
            position: Position { epoch: Epoch(65_537), seq: Seq(1042), chain: ChainHash(1 << 100 | 5) },
            lease_ms: 400,
        }
    }

    fn from_worker() -> Vec<FromWorker> {
        vec![
            FromWorker::Turn,
            FromWorker::Status(status()),
            FromWorker::Status(WorkerStatus { role: Role::Backup, right: None, alone: true, ..status() }),
            FromWorker::Ready,
            FromWorker::HookRunning(Duration::from_millis(10_000)),
        ]
    }

    #[test]
    fn every_message_comes_back_over_a_real_socket() {
        let (ours, theirs) = Link::pair().unwrap();
        for message in from_worker() {
            assert!(theirs.send(&message).unwrap());
            assert!(matches!(ours.receive::<FromWorker>().unwrap(), Received::Message(got) if got == message));
        }
        for message in [ToWorker::Start(2), ToWorker::Stop, ToWorker::Reload] {
            assert!(ours.send(&message).unwrap());
            assert!(matches!(theirs.receive::<ToWorker>().unwrap(), Received::Message(got) if got == message));
        }
        assert!(matches!(ours.receive::<FromWorker>().unwrap(), Received::Empty));
    }

    #[test]
    fn every_other_length_is_refused() {
        for message in from_worker() {
            let mut packet = [0; MAX_BYTES];
            let length = message.encode(&mut packet);
            for cut in (0..MAX_BYTES).filter(|&cut| cut != length) {
                assert!(FromWorker::decode(&packet[..cut]).is_err(), "{message:?} cut to {cut} of {length}");
            }
        }
    }

    #[test]
    fn a_single_wrong_byte_is_refused_or_another_message() {
        let mut packet = [0; MAX_BYTES];
        let length = FromWorker::Status(status()).encode(&mut packet);
        for index in 0..length {
            let mut broken = packet;
            broken[index] ^= 0x80;
            let decoded = FromWorker::decode(&broken[..length]);
            // Version, kind, role and the two flags have few values; the rest are plain numbers.
            assert_eq!(decoded.is_err(), index < 5, "byte {index}");
            assert_ne!(decoded.ok(), Some(FromWorker::Status(status())), "byte {index}");
        }
    }

    #[test]
    fn a_packet_of_another_executable_names_the_remedy() {
        let (ours, theirs) = Link::pair().unwrap();
        send(&theirs, &[LINK_VERSION + 1, 3], SendFlags::empty()).unwrap();
        let error = ours.receive::<FromWorker>().unwrap_err().to_string();
        assert!(error.contains("another version") && error.contains("Try: "), "{error}");
        send(&theirs, &[0; MAX_BYTES + 1], SendFlags::empty()).unwrap();
        assert!(ours.receive::<FromWorker>().is_err());
        assert!(matches!(ours.receive::<FromWorker>().unwrap(), Received::Empty), "a refused packet is consumed");
    }

    #[test]
    fn the_end_of_the_other_process_is_an_event() {
        let (ours, theirs) = Link::pair().unwrap();
        theirs.send(&FromWorker::Ready).unwrap();
        drop(theirs);
        assert!(matches!(ours.receive::<FromWorker>().unwrap(), Received::Message(FromWorker::Ready)));
        assert!(matches!(ours.receive::<FromWorker>().unwrap(), Received::Eof));
        assert!(ours.send(&ToWorker::Stop).is_err());
    }

    #[test]
    fn a_peer_that_does_not_read_never_blocks_the_sender() {
        let (ours, _theirs) = Link::pair().unwrap();
        let sent = (0..1_000_000).take_while(|_| ours.send(&ToWorker::Reload).unwrap()).count();
        assert!((1..1_000_000).contains(&sent), "{sent}");
    }

    #[test]
    fn descriptors_travel_with_their_message() {
        let (ours, theirs) = Link::pair().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        assert!(ours.send_with(&ToWorker::Start(1), &[reader.as_fd(), writer.as_fd()]).unwrap());
        let (received, descriptors) = theirs.receive_with::<ToWorker>().unwrap();
        assert!(matches!(received, Received::Message(ToWorker::Start(1))));
        assert_eq!(descriptors.len(), 2);
        rustix::io::write(&descriptors[1], b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&reader, &mut byte).unwrap(), 1);
    }
}
