//! The listening sockets: bound once by the supervisor, lent to each worker over the link, kept while a worker is dead.
//!
//! Always: one TCP and one UDP socket of the same address and port for each path; an error names the address. Never:
//! an accepted connection or a datagram read here.
#![forbid(unsafe_code)]

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};
use thiserror::Error;

use super::link::{Link, LinkError, MAX_DESCRIPTORS, Received, ToWorker};

/// Connections that may wait to be accepted: more than a flood of half-open ones fills before the kernel answers with
/// cookies.
const BACKLOG: i32 = 1024;
/// How long a new worker waits for the sockets.
const INHERIT_WAIT: Duration = Duration::from_secs(10);

/// Why there are no sockets.
#[derive(Debug, Error)]
pub enum SocketError {
    /// An address cannot be bound.
    #[error(
        "{key} = \"{address}\" cannot be bound ({protocol}): {source}. Try: is the address this host's, is another process there (ss -lpn)?"
    )]
    Bind {
        /// The key of the configuration file.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The link did not bring them.
    #[error("the worker got no sockets from its supervisor: {0}. Try: ringpair run, which starts the worker itself")]
    NotInherited(&'static str),
    /// The link failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A received descriptor cannot be used.
    #[error("a socket from the supervisor cannot be used: {0}")]
    Io(#[from] io::Error),
}

/// The two sockets of one address.
#[derive(Debug)]
pub struct AddressSockets {
    /// Listens for lanes; never blocks.
    pub tcp: TcpListener,
    /// Heartbeat datagrams; never blocks.
    pub udp: UdpSocket,
}

impl AddressSockets {
    /// Binds both sockets of `address`; `key` names it in errors.
    ///
    /// # Errors
    /// If one of them cannot be bound.
    pub fn bind(key: &'static str, address: SocketAddr) -> Result<Self, SocketError> {
        let failed =
            |protocol| move |errno: nix::Error| SocketError::Bind { key, address, protocol, source: errno.into() };
        let tcp = bind_one(address, SockType::Stream).map_err(failed("TCP"))?;
        listen(&tcp, Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN)).map_err(failed("TCP"))?;
        let udp = bind_one(address, SockType::Datagram).map_err(failed("UDP"))?;
        Ok(Self { tcp: tcp.into(), udp: udp.into() })
    }

    /// The address that both are bound to.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    fn take(descriptors: &mut impl Iterator<Item = OwnedFd>) -> Option<Self> {
        Some(Self { tcp: descriptors.next()?.into(), udp: descriptors.next()?.into() })
    }
}

fn bind_one(address: SocketAddr, kind: SockType) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, kind, flags, None::<SockProtocol>)?;
    if kind == SockType::Stream {
        // A restarted member takes its port back while old connections linger.
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(address))?;
    Ok(fd)
}

/// All listening sockets of a member.
#[derive(Debug)]
pub struct Sockets {
    /// Of `members.X.address`.
    pub main: AddressSockets,
    /// Of `members.X.aux`, where it is an address of its own.
    pub aux: Option<AddressSockets>,
}

impl Sockets {
    /// Binds the main and, where there is one, the auxiliary address.
    ///
    /// # Errors
    /// If an address cannot be bound.
    pub fn bind(main: SocketAddr, aux: Option<SocketAddr>) -> Result<Self, SocketError> {
        let main = AddressSockets::bind("address", main)?;
        let aux = aux.map(|address| AddressSockets::bind("aux", address)).transpose()?;
        Ok(Self { main, aux })
    }

    /// Sends them, and the lock of the storage directory, to a new worker.
    ///
    /// # Errors
    /// If the link fails.
    pub fn lend(&self, link: &Link, lock: BorrowedFd<'_>) -> Result<(), SocketError> {
        let mut descriptors = vec![lock];
        for address in std::iter::once(&self.main).chain(&self.aux) {
            descriptors.extend([address.tcp.as_fd(), address.udp.as_fd()]);
        }
        debug_assert!(descriptors.len() <= MAX_DESCRIPTORS);
        let addresses = 1 + u8::from(self.aux.is_some());
        if link.send_with(&ToWorker::Start(addresses), &descriptors)? {
            Ok(())
        } else {
            Err(SocketError::NotInherited("the link is full"))
        }
    }
}

/// What a worker gets from its supervisor.
#[derive(Debug)]
pub struct Inherited {
    /// The worker's end of the link. Its end of file means that the supervisor is dead: refuse writes, discontinue,
    /// release and end (protocol §7).
    pub link: Link,
    /// The listening sockets.
    pub sockets: Sockets,
    /// The lock of the storage directory; held open so that no other process takes it while this worker lives.
    pub lock: OwnedFd,
}

impl Inherited {
    /// Takes over what the supervisor lends: the link from standard input (which becomes `/dev/null`), everything else
    /// with the link's first message. Call it once, first thing in the worker.
    ///
    /// # Errors
    /// If this process was not started by a supervisor.
    pub fn take() -> Result<Self, SocketError> {
        let link = Link::adopt(io::stdin().as_fd().try_clone_to_owned()?);
        let null = std::fs::File::open("/dev/null")?;
        nix::unistd::dup2_stdin(null).map_err(io::Error::from)?;
        Self::receive(link, Instant::now() + INHERIT_WAIT)
    }

    fn receive(link: Link, deadline: Instant) -> Result<Self, SocketError> {
        let (addresses, descriptors) = loop {
            match link.receive_with::<ToWorker>()? {
                (Received::Message(ToWorker::Start(addresses)), descriptors) => break (addresses, descriptors),
                (Received::Message(_), _) => return Err(SocketError::NotInherited("another message came first")),
                (Received::Eof, _) => return Err(SocketError::NotInherited("the supervisor is gone")),
                (Received::Empty, _) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(SocketError::NotInherited("none came in time"));
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(link.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        };
        let missing = || SocketError::NotInherited("some are missing");
        let mut descriptors = descriptors.into_iter();
        let lock = descriptors.next().ok_or_else(missing)?;
        let main = AddressSockets::take(&mut descriptors).ok_or_else(missing)?;
        let aux = match addresses {
            2 => Some(AddressSockets::take(&mut descriptors).ok_or_else(missing)?),
            _ => None,
        };
        Ok(Self { link, sockets: Sockets { main, aux }, lock })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn any_port(ip: &str) -> AddressSockets {
        // The UDP half may meet a taken port: the TCP half chose it alone.
        (0..50)
            .find_map(|_| {
                let port = TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().port();
                AddressSockets::bind("address", SocketAddr::new(ip.parse().unwrap(), port)).ok()
            })
            .unwrap()
    }

    #[test]
    fn both_families_are_lent_and_taken() {
        let sockets = Sockets { main: any_port("127.0.0.1"), aux: Some(any_port("::1")) };
        let (ours, theirs) = Link::pair().unwrap();
        let lock = File::open("/dev/null").unwrap();
        sockets.lend(&ours, lock.as_fd()).unwrap();
        let taken = Inherited::receive(theirs, Instant::now() + INHERIT_WAIT).unwrap();
        assert_eq!(taken.sockets.main.local_addr().unwrap(), sockets.main.local_addr().unwrap());
        let (ours, theirs) = (sockets.aux.as_ref().unwrap(), taken.sockets.aux.as_ref().unwrap());
        assert_eq!(theirs.udp.local_addr().unwrap(), ours.tcp.local_addr().unwrap());
        assert!(theirs.tcp.accept().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
    }

    #[test]
    fn a_taken_address_is_named() {
        let taken = any_port("127.0.0.1");
        let address = taken.local_addr().unwrap();
        let error = Sockets::bind(address, None).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("Try: "), "{error}");
    }

    #[test]
    fn a_worker_without_supervisor_says_so() {
        let (ours, theirs) = Link::pair().unwrap();
        drop(ours);
        let error = Inherited::receive(theirs, Instant::now() + INHERIT_WAIT).unwrap_err().to_string();
        assert!(error.contains("ringpair run"), "{error}");
        let (ours, theirs) = Link::pair().unwrap();
        ours.send(&ToWorker::Stop).unwrap();
        assert!(Inherited::receive(theirs, Instant::now() + INHERIT_WAIT).is_err());
        let (ours, theirs) = Link::pair().unwrap();
        ours.send(&ToWorker::Start(1)).unwrap();
        assert!(Inherited::receive(theirs, Instant::now() + INHERIT_WAIT).is_err(), "no descriptors came");
        drop(ours);
    }
}
