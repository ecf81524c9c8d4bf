//! Making and marking sockets: DSCP, priority, congestion control, time-outs; and reading them back (REP-304).
//!
//! Always: the mark is set before SO_PRIORITY, because setting IP_TOS overwrites the priority. IPv6 sockets are marked
//! for both families, since their peer may be an IPv4-mapped one. Never: a failure to tune (an unknown congestion
//! control, say) ends a connection; the read-back shows what holds.
#![forbid(unsafe_code)]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    getsockopt_impl, setsockopt_impl, sockopt_impl,
    sys::socket::{
        AddressFamily, Backlog, ControlMessage, ControlMessageOwned, GetSockOpt as _, MsgFlags, SetSockOpt as _,
        SockFlag, SockType, SockaddrLike, SockaddrStorage, bind, getpeername, getsockname, getsockopt, listen, recvmsg,
        sendmsg, setsockopt, socket, sockopt,
    },
};
use ringpair_wire::{dscp::Dscp, lane::PathKind};

use super::types::{LaneOptions, PathAddress, TcpState};

sockopt_impl!(
    /// How many unsent bytes a TCP socket takes before it says that it is full.
    TcpNotsentLowat,
    Both,
    libc::IPPROTO_TCP,
    libc::TCP_NOTSENT_LOWAT,
    u32
);

sockopt_impl!(
    /// How fast a socket sends at most, in bytes a second; TCP paces itself where the queueing discipline does not.
    MaxPacingRate,
    Both,
    libc::SOL_SOCKET,
    libc::SO_MAX_PACING_RATE,
    u64
);

sockopt_impl!(
    /// How many bytes TCP offers to receive at most, beyond those that were received.
    TcpWindowClamp,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_WINDOW_CLAMP,
    libc::c_int
);

/// The least window, in segments of the greatest size.
const LEAST_SEGMENTS: u32 = 4;
/// More than any window that TCP offers by itself.
const ANY_WINDOW_BYTES: u32 = 1 << 30;

/// The head of the kernel's `tcp_info`, which only grows at its end.
const TCP_INFO_BYTES: usize = 168;

sockopt_impl!(
    /// What TCP measured, as the kernel lays it out.
    TcpInfo,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    [u8; TCP_INFO_BYTES]
);

/// How many connections may wait for `accept`; the host's own bound (`net.core.somaxconn`) applies below it.
const BACKLOG: i32 = 4096;

/// What a socket says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    /// The mark.
    pub dscp: Option<Dscp>,
    /// SO_PRIORITY.
    pub priority: Option<u8>,
    /// TCP_CONGESTION.
    pub congestion: Option<String>,
    /// TCP_USER_TIMEOUT in milliseconds.
    pub user_timeout_ms: Option<u32>,
    /// TCP_NOTSENT_LOWAT in bytes, where one was set.
    pub notsent_lowat_bytes: Option<u32>,
    /// SO_MAX_PACING_RATE in bytes a second, where one was set.
    pub pacing_bytes_per_s: Option<u64>,
}

/// Makes a socket to dial with: marked and tuned before the first packet.
pub(super) fn dialing(address: &PathAddress, options: &LaneOptions) -> io::Result<OwnedFd> {
    let family = if address.peer.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    mark(&fd, options.dscp(address.path), options.priority)?;
    tune(&fd, options);
    if let Some(local) =
        address.local.filter(|local| local.is_ipv4() == address.peer.is_ipv4() && !local.is_unspecified())
    {
        // The port is chosen when connecting: binding does not use one up.
        let _ = setsockopt(&fd, sockopt::IpBindAddressNoPort, &true);
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(SocketAddr::new(local, 0)))?;
    }
    Ok(fd)
}

/// Sets the mark, then the priority.
pub(super) fn mark(fd: &impl AsFd, dscp: Dscp, priority: u8) -> io::Result<()> {
    let tos = i32::from(dscp.tos_byte());
    if is_ipv6(fd) {
        setsockopt(fd, sockopt::Ipv6TClass, &tos)?;
        // For IPv4-mapped peers; an IPv6-only socket may refuse it.
        let _ = setsockopt(fd, sockopt::Ipv4Tos, &tos);
    } else {
        setsockopt(fd, sockopt::Ipv4Tos, &tos)?;
    }
    setsockopt(fd, sockopt::Priority, &i32::from(priority))?;
    Ok(())
}

/// Sets what concerns TCP itself; what the kernel refuses stays as it was.
pub(super) fn tune(fd: &impl AsFd, options: &LaneOptions) {
    let mut failed: Vec<(&str, Errno)> = Vec::new();
    let mut note = |what, result: nix::Result<()>| {
        if let Err(error) = result {
            failed.push((what, error));
        }
    };
    note("TCP_NODELAY", setsockopt(fd, sockopt::TcpNoDelay, &true));
    let timeout = u32::try_from(options.user_timeout.as_millis()).unwrap_or(u32::MAX);
    note("TCP_USER_TIMEOUT", setsockopt(fd, sockopt::TcpUserTimeout, &timeout));
    // Who only receives has nothing unacknowledged, and would keep a connection for ever that the path has forgotten. The
    // kernel asks by itself, and its patience is the same.
    let half = u32::try_from(options.user_timeout.as_secs() / 2).unwrap_or(u32::MAX).max(1);
    note("TCP_KEEPIDLE", setsockopt(fd, sockopt::TcpKeepIdle, &half));
    note("TCP_KEEPINTVL", setsockopt(fd, sockopt::TcpKeepInterval, &half));
    note("SO_KEEPALIVE", setsockopt(fd, sockopt::KeepAlive, &options.keepalive));
    if let Some(lowat) = options.notsent_lowat_bytes {
        note("TCP_NOTSENT_LOWAT", TcpNotsentLowat.set(fd, &lowat));
    }
    if let Some(rate) = options.pacing_bytes_per_s {
        note("SO_MAX_PACING_RATE", MaxPacingRate.set(fd, &rate));
    }
    if let Some(name) = &options.congestion {
        let name = std::ffi::OsString::from(name);
        note("TCP_CONGESTION", setsockopt(fd, sockopt::TcpCongestion, &name));
    }
    for (what, error) in failed {
        tracing::debug!(option = what, %error, "the kernel refused a socket option");
    }
}

/// Reads back what was set.
pub(super) fn read_back(fd: &impl AsFd) -> Marks {
    let tos = if is_ipv6(fd) && !has_mapped_peer(fd) {
        getsockopt(fd, sockopt::Ipv6TClass)
    } else {
        getsockopt(fd, sockopt::Ipv4Tos)
    };
    let dscp = tos.ok().and_then(|tos| u8::try_from(tos).ok()).map(Dscp::from_tos_byte);
    let priority = getsockopt(fd, sockopt::Priority).ok().and_then(|priority| u8::try_from(priority).ok());
    let congestion = getsockopt(fd, sockopt::TcpCongestion)
        .ok()
        .map(|name| name.to_string_lossy().trim_end_matches('\0').to_owned());
    let user_timeout_ms = getsockopt(fd, sockopt::TcpUserTimeout).ok();
    let notsent_lowat_bytes = TcpNotsentLowat.get(fd).ok().filter(|bytes| *bytes > 0 && *bytes < u32::MAX);
    let pacing_bytes_per_s = MaxPacingRate.get(fd).ok().filter(|rate| *rate > 0 && *rate < u64::MAX);
    Marks { dscp, priority, congestion, user_timeout_ms, notsent_lowat_bytes, pacing_bytes_per_s }
}

/// Bounds the window that is offered to the peer; what was offered already stands. Never to less than a few of the
/// largest segments, which are 64 KiB on loopback: a sender that waits for room for a whole one waits for a timer.
pub(super) fn set_window(fd: &impl AsFd, bytes: Option<u32>) {
    let segment = TcpInfo.get(fd).ok().and_then(|info| info.get(84..)?.first_chunk().copied()).map(u32::from_ne_bytes);
    let bytes = match (bytes, segment) {
        (Some(bytes), Some(segment)) => bytes.max(segment.saturating_mul(LEAST_SEGMENTS)),
        _ => ANY_WINDOW_BYTES,
    };
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    if let Err(error) = TcpWindowClamp.set(fd, &bytes) {
        tracing::debug!(%error, "the kernel refused TCP_WINDOW_CLAMP");
    }
}

/// What TCP measured; `None` where the kernel does not say.
pub(super) fn tcp_state(fd: &impl AsFd) -> Option<TcpState> {
    let info = TcpInfo.get(fd).ok()?;
    let u32_at = |offset: usize| info.get(offset..)?.first_chunk().map(|bytes| u64::from(u32::from_ne_bytes(*bytes)));
    let u64_at = |offset: usize| info.get(offset..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
    // By offset in `struct tcp_info`: tcpi_last_ack_recv, tcpi_rtt, tcpi_min_rtt, tcpi_delivery_rate.
    Some(TcpState {
        last_ack: Duration::from_millis(u32_at(56)?),
        rtt: Duration::from_micros(u32_at(68)?),
        min_rtt: Duration::from_micros(u32_at(148)?),
        delivery_bytes_per_s: u64_at(160)?,
    })
}

/// Lets as many connections wait for `accept` as the host allows: where the backlog overflows, the peer's SYN is lost
/// among the strangers' and comes again only after a second.
pub(super) fn deepen_backlog(listener: &TcpListener) {
    // Listening again on a listening socket only changes its backlog.
    if let Err(error) = Backlog::new(BACKLOG).and_then(|backlog| listen(listener, backlog)) {
        tracing::debug!(%error, "the backlog stays as it was");
    }
}

/// Whether the socket is of the IPv6 family.
fn is_ipv6(fd: &impl AsFd) -> bool {
    let name: nix::Result<SockaddrStorage> = getsockname(std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()));
    name.is_ok_and(|name| name.family() == Some(AddressFamily::Inet6))
}

/// Whether the peer of an IPv6 socket is an IPv4 host.
fn has_mapped_peer(fd: &impl AsFd) -> bool {
    let name: nix::Result<SockaddrStorage> = getpeername(std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()));
    name.is_ok_and(|name| name.as_sockaddr_in6().is_some_and(|name| name.ip().to_ipv4_mapped().is_some()))
}

/// A socket address as std knows it.
fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::new(IpAddr::from(v4.ip()), v4.port()));
    }
    address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into()))
}

/// The local address of a socket.
pub(super) fn local_address(fd: &impl AsFd) -> Option<SocketAddr> {
    let name: nix::Result<SockaddrStorage> = getsockname(std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()));
    name.ok().and_then(|name| to_std(&name))
}

/// A socket for heartbeats, on the address of `listener`, marked as pings are.
pub(super) fn heartbeats(listener: &TcpListener, dscp: Dscp, priority: u8) -> io::Result<UdpSocket> {
    let address = listener.local_addr()?;
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    if address.is_ipv6() {
        // As the listener: dual or not.
        let only = getsockopt(listener, sockopt::Ipv6V6Only).unwrap_or(false);
        setsockopt(&fd, sockopt::Ipv6V6Only, &only)?;
    }
    mark(&fd, dscp, priority)?;
    // What mark a datagram arrives with; where the kernel refuses, nothing is known of it. A dual socket needs both.
    let _ = setsockopt(&fd, sockopt::IpRecvTos, &true);
    if address.is_ipv6() {
        let _ = setsockopt(&fd, sockopt::Ipv6RecvTClass, &true);
    }
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(address))?;
    Ok(UdpSocket::from(fd))
}

/// A datagram that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    /// How long it is.
    pub len: usize,
    /// Who sent it.
    pub peer: SocketAddr,
    /// The mark that it arrived with (OPS-197).
    pub mark: Option<Dscp>,
}

/// A datagram that is there already, without waiting for one.
pub(super) fn receive_now(fd: &impl AsFd, buffer: &mut [u8]) -> Option<Datagram> {
    let raw = std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd());
    let mut space = nix::cmsg_space!(libc::c_int, libc::c_int);
    let mut slices = [io::IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(raw, &mut slices, Some(&mut space), MsgFlags::MSG_DONTWAIT).ok()?;
    let tos = message.cmsgs().ok().into_iter().flatten().find_map(|told| match told {
        ControlMessageOwned::Ipv4Tos(tos) => Some(tos),
        ControlMessageOwned::Ipv6TClass(class) => u8::try_from(class).ok(),
        _ => None,
    });
    let peer = message.address.as_ref().and_then(to_std)?;
    let len = message.bytes;
    Some(Datagram { len, peer, mark: tos.map(Dscp::from_tos_byte) })
}

/// Sends a datagram with another mark than the socket's, without waiting.
pub(super) fn send_marked(fd: &impl AsFd, datagram: &[u8], target: SocketAddr, dscp: Dscp) -> io::Result<()> {
    let raw = std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd());
    let (tos, class) = (dscp.tos_byte(), i32::from(dscp.tos_byte()));
    // To an IPv4-mapped address the kernel sends as IPv4, and looks at that family's mark.
    let is_v4 = target.is_ipv4() || matches!(target.ip(), IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let mark = if is_v4 { ControlMessage::Ipv4Tos(&tos) } else { ControlMessage::Ipv6TClass(&class) };
    let slices = [io::IoSlice::new(datagram)];
    let target = SockaddrStorage::from(target);
    sendmsg(raw, &slices, &[mark], MsgFlags::MSG_DONTWAIT, Some(&target))?;
    Ok(())
}

/// Tells apart which of `locals` heartbeats of a path leave from.
pub(super) fn pick_local(locals: &[SocketAddr], path: &PathAddress) -> Option<usize> {
    let same_family = |address: &SocketAddr| match path.peer.ip() {
        IpAddr::V4(_) => address.is_ipv4() || address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        IpAddr::V6(_) => address.is_ipv6(),
    };
    let exact = locals.iter().position(|address| Some(address.ip()) == path.local && same_family(address));
    let second = usize::from(path.path == PathKind::Aux);
    let fitting: Vec<usize> = (0..locals.len()).filter(|index| same_family(&locals[*index])).collect();
    exact.or_else(|| fitting.get(second).or(fitting.first()).copied())
}

/// An address as it must be given to a socket bound to `local`: IPv4 as mapped for an IPv6 socket.
pub(super) fn fit_family(peer: SocketAddr, local: SocketAddr) -> SocketAddr {
    match (peer.ip(), local.is_ipv6()) {
        (IpAddr::V4(v4), true) => SocketAddr::new(IpAddr::V6(v4.to_ipv6_mapped()), peer.port()),
        _ => peer,
    }
}

/// An address without its IPv4-mapped form, for comparison.
pub(super) fn plain_ip(address: SocketAddr) -> IpAddr {
    match address.ip() {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), |v4: Ipv4Addr| IpAddr::V4(v4)),
        v4 => v4,
    }
}
