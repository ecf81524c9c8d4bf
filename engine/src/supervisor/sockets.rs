//! The listening sockets: bound once by the supervisor, lent to each worker over the link, kept while a worker is dead.
//!
//! Always: one TCP socket an address; an error names the address. Never: a connection accepted here, or a datagram
//! socket: heartbeats need a worker, which binds theirs beside each listener.
#![forbid(unsafe_code)]

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
        sockopt,
    },
};
use thiserror::Error;

use super::{
    host::restore_oom_score,
    link::{Link, LinkError, MAX_DESCRIPTORS, Received, ToWorker},
};

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
        "{key} = \"{address}\" cannot be bound: {source}. Try: is the address this host's, is another process there (ss -ltnp)?"
    )]
    Bind {
        /// The key of the configuration file.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The link did not bring them.
    #[error("the worker got no sockets from its supervisor: {0}. Try: ringpair run, which starts the worker itself")]
    NotInherited(&'static str),
    /// The link failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A system call failed.
    #[error("a worker cannot be connected to its supervisor: {0}")]
    Io(#[from] io::Error),
}

/// How long a killed worker's sockets may outlive it: the kernel takes a ring apart after its process has ended.
const RELEASED_WITHIN: Duration = Duration::from_secs(2);
/// How often a taken address is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Binds and listens on `address`; `key` names it in errors. Never blocks, closes on exec.
fn listen_on(key: &'static str, address: SocketAddr) -> Result<TcpListener, SocketError> {
    let bound = || -> nix::Result<OwnedFd> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(family, SockType::Stream, flags, None::<SockProtocol>)?;
        // A restarted member takes its port back while old connections linger.
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        if address.is_ipv6() {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
        }
        bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        listen(&fd, Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN))?;
        Ok(fd)
    };
    let deadline = Instant::now() + RELEASED_WITHIN;
    loop {
        match bound() {
            Ok(fd) => return Ok(TcpListener::from(fd)),
            Err(nix::Error::EADDRINUSE) if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
            Err(errno) => return Err(SocketError::Bind { key, address, source: errno.into() }),
        }
    }
}

/// All listening sockets of a member.
#[derive(Debug)]
pub struct Sockets {
    /// On `members.X.address`.
    pub main: TcpListener,
    /// On `members.X.aux`, where it is an address of its own.
    pub aux: Option<TcpListener>,
}

impl Sockets {
    /// Listens on the main and, where there is one, the auxiliary address.
    ///
    /// # Errors
    /// If an address cannot be bound.
    pub fn bind(main: SocketAddr, aux: Option<SocketAddr>) -> Result<Self, SocketError> {
        let main = listen_on("address", main)?;
        let aux = aux.map(|address| listen_on("aux", address)).transpose()?;
        Ok(Self { main, aux })
    }

    /// Both, main first.
    pub fn iter(&self) -> impl Iterator<Item = &TcpListener> {
        std::iter::once(&self.main).chain(&self.aux)
    }

    /// Sends them, and the lock of the storage directory, to a new worker.
    ///
    /// # Errors
    /// If the link fails.
    pub fn lend(&self, link: &Link, lock: BorrowedFd<'_>) -> Result<(), SocketError> {
        let descriptors: Vec<BorrowedFd<'_>> = std::iter::once(lock).chain(self.iter().map(AsFd::as_fd)).collect();
        assert!(descriptors.len() <= MAX_DESCRIPTORS, "a lock and two listeners");
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
        let inherited = Self::receive(link, Instant::now() + INHERIT_WAIT)?;
        restore_oom_score();
        Ok(inherited)
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
        let main = descriptors.next().ok_or_else(missing)?.into();
        let aux = match addresses {
            2 => Some(descriptors.next().ok_or_else(missing)?.into()),
            _ => None,
        };
        Ok(Self { link, sockets: Sockets { main, aux }, lock })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn any_port(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), 0)
    }

    #[test]
    fn both_families_are_lent_and_taken() {
        let sockets = Sockets::bind(any_port("127.0.0.1"), Some(any_port("::1"))).unwrap();
        let (ours, theirs) = Link::pair().unwrap();
        let lock = File::open("/dev/null").unwrap();
        sockets.lend(&ours, lock.as_fd()).unwrap();
        let taken = Inherited::receive(theirs, Instant::now() + INHERIT_WAIT).unwrap();
        assert_eq!(taken.sockets.main.local_addr().unwrap(), sockets.main.local_addr().unwrap());
        let (ours, theirs) = (sockets.aux.as_ref().unwrap(), taken.sockets.aux.as_ref().unwrap());
        assert_eq!(theirs.local_addr().unwrap(), ours.local_addr().unwrap());
        assert!(theirs.accept().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
    }

    #[test]
    fn a_taken_address_is_named() {
        let taken = Sockets::bind(any_port("127.0.0.1"), None).unwrap();
        let address = taken.main.local_addr().unwrap();
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
