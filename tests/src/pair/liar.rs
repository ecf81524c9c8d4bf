//! A peer that lies: what member A says to B passes through a relay that alters one message when it is told to.
//!
//! The pair's protection must be off, so that the relay passes for the peer itself. Always: everything else passes as it
//! came, datagrams too; A and B name the relay as each other's main address. Every connection ends with either end.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use ringpair_wire::lane::{LaneKind, MESSAGE_HEADER_BYTES};

use super::{Pair, intruder::addresses};

/// Gives another body (and type) for a message of this lane, type and body; `None`: it is not this one.
type Alter = Box<dyn FnMut(LaneKind, u8, &[u8]) -> Option<(u8, Vec<u8>)> + Send>;

/// The relay; lives as long as the process, for its threads end with their connections.
#[derive(Clone)]
pub struct Liar {
    alter: Arc<Mutex<Option<Alter>>>,
}

impl std::fmt::Debug for Liar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Liar").finish_non_exhaustive()
    }
}

/// A port of the relay: stands for one member towards the other.
struct Port {
    tcp: TcpListener,
    udp: UdpSocket,
    address: SocketAddr,
}

fn port() -> Port {
    loop {
        let udp = UdpSocket::bind(("127.0.0.1", 0)).expect("a port");
        let address = udp.local_addr().expect("its address");
        if let Ok(tcp) = TcpListener::bind(address) {
            return Port { tcp, udp, address };
        }
    }
}

impl Liar {
    /// Puts the relay between the members of a pair that is prepared and not started.
    ///
    /// # Panics
    /// When it cannot listen, or the configurations cannot be written.
    #[must_use]
    pub fn between(pair: &Pair) -> Self {
        let liar = Self { alter: Arc::new(Mutex::new(None)) };
        let (a, b) = (addresses(&pair.a, 'A')[0], addresses(&pair.b, 'B')[0]);
        let (as_a, as_b) = (port(), port());
        for (member, real, relay) in [(&pair.a, b, as_b.address), (&pair.b, a, as_a.address)] {
            let config = fs::read_to_string(member.config()).expect("a configuration");
            let config = config.replacen(&format!("address = \"{real}\""), &format!("address = \"{relay}\""), 1);
            fs::write(member.config(), config).expect("a configuration");
        }
        // What comes for one of them leaves from where the other stands.
        let (for_a, for_b) = (as_a.udp.try_clone().expect("a socket"), as_b.udp.try_clone().expect("a socket"));
        let (from_a, from_b) = (as_a.udp.try_clone().expect("a socket"), as_b.udp.try_clone().expect("a socket"));
        thread::spawn(move || pass_datagrams(&for_b, &from_a, b));
        thread::spawn(move || pass_datagrams(&for_a, &from_b, a));
        for (tcp, to, dialed_by_a) in [(as_b.tcp, b, true), (as_a.tcp, a, false)] {
            let liar = liar.clone();
            thread::spawn(move || {
                for dialer in tcp.incoming().flatten() {
                    let liar = liar.clone();
                    thread::spawn(move || liar.relay(dialer, to, dialed_by_a));
                }
            });
        }
        liar
    }

    /// Alters the next message of A for which `alter` gives another.
    pub fn lie(&self, alter: impl FnMut(LaneKind, u8, &[u8]) -> Option<(u8, Vec<u8>)> + Send + 'static) {
        *self.alter.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(alter));
    }

    /// Whether the lie was told.
    #[must_use]
    pub fn has_lied(&self) -> bool {
        self.alter.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn relay(&self, mut dialer: TcpStream, to: SocketAddr, dialed_by_a: bool) {
        let Ok(mut target) = TcpStream::connect(to) else { return };
        let _ = (dialer.set_nodelay(true), target.set_nodelay(true));
        let (Ok(mut back_from), Ok(mut back_to)) = (target.try_clone(), dialer.try_clone()) else { return };
        let liar = self.clone();
        let back = thread::spawn(move || {
            let _ =
                if dialed_by_a { pass(&mut back_from, &mut back_to) } else { liar.speak(&mut back_from, &mut back_to) };
            let _ = (back_from.shutdown(Shutdown::Both), back_to.shutdown(Shutdown::Both));
        });
        let _ = if dialed_by_a { self.speak(&mut dialer, &mut target) } else { pass(&mut dialer, &mut target) };
        let _ = (dialer.shutdown(Shutdown::Both), target.shutdown(Shutdown::Both));
        let _ = back.join();
    }

    /// Passes what A says, message by message.
    fn speak(&self, from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
        let mut hello = vec![0; 6];
        from.read_exact(&mut hello)?;
        hello.resize(6 + usize::from(u16::from_le_bytes([hello[4], hello[5]])), 0);
        from.read_exact(&mut hello[6..])?;
        to.write_all(&hello)?;
        let lane = LaneKind::ALL.get(usize::from(hello[11])).copied().ok_or(io::ErrorKind::InvalidData)?;
        loop {
            let mut message = vec![0; MESSAGE_HEADER_BYTES];
            from.read_exact(&mut message)?;
            let length = u32::from_le_bytes([message[0], message[1], message[2], message[3]]) as usize;
            message.resize(MESSAGE_HEADER_BYTES + length, 0);
            from.read_exact(&mut message[MESSAGE_HEADER_BYTES..])?;
            if let Some((kind, body)) = self.altered(lane, message[4], &message[MESSAGE_HEADER_BYTES..]) {
                let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
                message = [&length.to_le_bytes()[..], &[kind], &body].concat();
            }
            to.write_all(&message)?;
        }
    }

    fn altered(&self, lane: LaneKind, kind: u8, body: &[u8]) -> Option<(u8, Vec<u8>)> {
        let mut alter = self.alter.lock().unwrap_or_else(PoisonError::into_inner);
        let altered = alter.as_mut()?(lane, kind, body)?;
        *alter = None;
        Some(altered)
    }
}

fn pass(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
    io::copy(from, to).map(|_| ())
}

fn pass_datagrams(from: &UdpSocket, through: &UdpSocket, to: SocketAddr) {
    let mut buffer = [0; 2048];
    while let Ok(count) = from.recv(&mut buffer) {
        let _ = through.send_to(&buffer[..count], to);
    }
}
