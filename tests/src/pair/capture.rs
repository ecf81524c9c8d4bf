//! What goes over a cable, captured in a namespace by a packet socket: whose packet, its mark, its payload.
//!
//! Reads IPv4 and IPv6, TCP and UDP, without options or extension headers of the network layer; all else is passed over.

use std::{
    fs::File,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{
        socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt},
        time::TimeVal,
    },
};

/// A host and port.
pub type Endpoint = (IpAddr, u16);

/// One packet that carries something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who sent it.
    pub from: Endpoint,
    /// Whom to.
    pub to: Endpoint,
    /// Its mark (DSCP, 0 to 63).
    pub dscp: u8,
    /// Whether it is TCP's; else it is UDP's.
    pub tcp: bool,
    /// What it carries; never empty.
    pub payload: Vec<u8>,
}

/// A capture that runs until it is finished.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    packets: Arc<Mutex<Vec<Packet>>>,
    thread: Option<JoinHandle<()>>,
}

fn open(namespace: &str) -> nix::Result<OwnedFd> {
    let file = File::open(format!("/run/netns/{namespace}")).map_err(|_| nix::Error::ENOENT)?;
    setns(file, CloneFlags::CLONE_NEWNET)?;
    let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000))?;
    setsockopt(&fd, sockopt::RcvBufForce, &(64 << 20))?;
    Ok(fd)
}

impl Capture {
    /// Begins to capture what any interface of `namespace` sends and receives.
    ///
    /// # Errors
    /// Why it is not possible: no packet sockets, no root.
    pub fn start(namespace: &str) -> Result<Self, String> {
        let (stop, packets) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, record, name) = (Arc::clone(&stop), Arc::clone(&packets), namespace.to_owned());
        let (say, hear) = std::sync::mpsc::channel();
        // A thread is in a namespace by itself.
        let thread = std::thread::spawn(move || {
            let opened = open(&name);
            let said = say.send(opened.as_ref().map(|_| ()).map_err(|error| format!("packet socket: {error}")));
            let (Ok(fd), Ok(())) = (opened, said) else { return };
            let mut bytes = vec![0; 1 << 17];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(length) = recv(fd.as_raw_fd(), &mut bytes, MsgFlags::empty())
                    && let Some(packet) = parse(&bytes[..length])
                {
                    record.lock().expect("no capture panics").push(packet);
                }
            }
        });
        let capture = Self { stop, packets, thread: Some(thread) };
        hear.recv().map_err(|error| error.to_string())??;
        Ok(capture)
    }

    /// What was captured so far.
    ///
    /// # Panics
    /// When the capture panicked.
    #[must_use]
    pub fn packets(&self) -> Vec<Packet> {
        self.packets.lock().expect("no capture panics").clone()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || std::thread::panicking(), "a capture panicked");
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// A frame of Ethernet; `None` if it carries nothing or something else.
fn parse(frame: &[u8]) -> Option<Packet> {
    let kind = number(frame, 12)?;
    let packet = frame.get(14..)?;
    let (class, protocol, from, to, rest) = match kind {
        0x0800 => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(number(packet, 2)?);
            let address =
                |at: usize| -> Option<IpAddr> { Some(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into()) };
            // With segmentation left to the card, the length of a large packet may be 0.
            let end = if total == 0 { packet.len() } else { total };
            (packet[1], *packet.get(9)?, address(12)?, address(16)?, packet.get(header..end)?)
        }
        0x86dd => {
            let address =
                |at: usize| -> Option<IpAddr> { Some(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?.into()) };
            let length = usize::from(number(packet, 4)?);
            let end = if length == 0 { packet.len() } else { 40 + length };
            let class = (packet.first()? << 4) | (packet.get(1)? >> 4);
            (class, *packet.get(6)?, address(8)?, address(24)?, packet.get(40..end)?)
        }
        _ => return None,
    };
    let header = match protocol {
        6 => usize::from(rest.get(12)? >> 4) * 4,
        17 => 8,
        _ => return None,
    };
    let payload = rest.get(header..)?.to_vec();
    let ends = ((from, number(rest, 0)?), (to, number(rest, 2)?));
    let dscp = class >> 2;
    (!payload.is_empty()).then_some(Packet { from: ends.0, to: ends.1, dscp, tcp: protocol == 6, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_payloads_are_read() {
        let mut udp = vec![0; 12];
        udp.extend([8, 0, 0x45, 0x88, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        udp.extend([0, 1, 0, 2, 0, 10, 0, 0, b'h', b'i', 0, 0]);
        let packet = parse(&udp).unwrap();
        assert_eq!((packet.dscp, packet.tcp, packet.payload.as_slice()), (34, false, b"hi".as_slice()));
        assert_eq!((packet.from.1, packet.to), (1, ([10, 0, 0, 2].into(), 2)));
        for length in 0..udp.len() - 2 {
            assert_eq!(parse(&udp[..length]), None, "{length} bytes are no whole packet");
        }
        let mut tcp = vec![0; 12];
        tcp.extend([0x86, 0xdd, 0x66, 0x80, 0, 0, 0, 21, 6, 64]);
        tcp.extend([0; 32]);
        tcp.extend([0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0, b'x']);
        let packet = parse(&tcp).unwrap();
        assert_eq!((packet.dscp, packet.tcp, packet.payload.as_slice()), (26, true, b"x".as_slice()));
    }
}
