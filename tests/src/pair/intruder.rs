//! Strangers at a member's port: noise, silence, TLS without the right certificate, a peer that says nonsense; and what
//! they may not do to the pair.
//!
//! Always: bounded by what [`Attack`] says. Meanwhile changes are acknowledged by both members, no role changes, nobody
//! crashes or grows.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ringpair_wire::{
    hello::{Hello, Speaker, VERSIONS},
    id::MemberId,
    lane::{LaneKind, PathKind},
};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

use super::{Dice, Load, Member, Options, Pair, check_served, executable, wait_until};

/// How much more memory a member may hold, in KiB, however much is thrown at it.
const GROWTH_MAX_KIB: u64 = 8 << 10;
/// How long finding one another again may take meanwhile.
const RECONNECTED_WITHIN: Duration = Duration::from_secs(1);
/// The names that lanes have in the handshake.
const LANES: [&[u8]; 3] = [b"ringpair/ping", b"ringpair/ds", b"ringpair/bulk"];

/// How hard the port is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attack {
    /// Bytes of noise in all.
    pub noise_bytes: u64,
    /// Connections that are opened and left open.
    pub half_open: usize,
}

/// Believes any server: an intruder does not care.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A TLS connection to `port` on `lane`, with the certificate in `keys` if there is one.
fn dial_tls(
    address: SocketAddr,
    lane: &[u8],
    keys: Option<&Path>,
) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the default versions")
        .with_root_certificates(RootCertStore::empty());
    let mut config = match keys {
        None => builder.with_no_client_auth(),
        Some(keys) => {
            let chain = CertificateDer::pem_file_iter(keys.join("cert.pem")).expect("a certificate");
            let chain = chain.collect::<Result<_, _>>().expect("a certificate");
            let key = PrivateKeyDer::from_pem_file(keys.join("key.pem")).expect("a key");
            builder.with_client_auth_cert(chain, key).expect("a key that fits its certificate")
        }
    };
    config.dangerous().set_certificate_verifier(Arc::new(Credulous));
    config.alpn_protocols = vec![lane.to_vec()];
    let name = ServerName::try_from("ringpair").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.set_write_timeout(Some(Duration::from_secs(5)))?;
    Ok(StreamOwned::new(connection, socket))
}

/// Says `bytes` and reads what is answered until the other side closes.
///
/// # Panics
/// When it does not close within five seconds.
fn converse(mut stream: StreamOwned<ClientConnection, TcpStream>, bytes: &[u8]) -> Vec<u8> {
    // The other side may close before everything is written.
    let _ = stream.write_all(bytes).and_then(|()| stream.flush());
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return answer,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                panic!("a stranger is kept waiting for more than five seconds: {error}")
            }
            Err(_) => return answer,
        }
    }
}

/// Noise on one connection after another, until `budget` bytes were written in all or `stop` is set.
fn noise(address: SocketAddr, seed: u64, budget: &AtomicU64, stop: &AtomicBool) {
    let mut dice = Dice(seed);
    let mut bytes = vec![0_u8; 1 << 16];
    while !stop.load(Ordering::Relaxed) && budget.load(Ordering::Relaxed) > 0 {
        let Ok(mut stream) = TcpStream::connect(address) else { continue };
        let limited = stream.set_write_timeout(Some(Duration::from_secs(5)));
        limited.expect("a timeout can be set");
        bytes.chunks_mut(8).for_each(|chunk| {
            let word = dice.below(u64::MAX).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        });
        if dice.below(2) == 0 {
            // Passes for the beginning of a handshake of TLS.
            bytes[..3].copy_from_slice(&[0x16, 0x03, 0x01]);
        }
        while let Ok(count) = stream.write(&bytes) {
            let count = count as u64;
            let left =
                budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(count)));
            if left.is_ok_and(|left| left <= count) {
                return;
            }
        }
        // Refused: what was written to a closed connection counts as thrown.
        let _ = budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(4096)));
    }
}

/// The noise makers, until they have thrown everything.
struct Noise {
    stop: Arc<AtomicBool>,
    budget: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Noise {
    fn begin(addresses: &[SocketAddr], bytes: u64) -> Self {
        let (stop, budget) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(bytes)));
        let threads = (1..).zip(addresses).map(|(seed, address)| {
            let (stop, budget, address) = (Arc::clone(&stop), Arc::clone(&budget), *address);
            std::thread::spawn(move || noise(address, seed, &budget, &stop))
        });
        Self { threads: threads.collect(), stop, budget }
    }

    fn left(&self) -> u64 {
        self.budget.load(Ordering::Relaxed)
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            assert!(thread.join().is_ok() || std::thread::panicking(), "a noise maker panicked");
        }
    }
}

/// The memory that a process holds, in KiB; from here on its peak counts anew.
fn resident_kib(pid: Option<i32>) -> u64 {
    // Needs root; without it the peak holds what the start took too.
    let _ = pid.map(|pid| fs::write(format!("/proc/{pid}/clear_refs"), "5"));
    memory_kib(pid, "VmRSS:")
}

/// The most memory that a process has held since [`resident_kib`], in KiB.
fn peak_kib(pid: Option<i32>) -> u64 {
    memory_kib(pid, "VmHWM:")
}

fn memory_kib(pid: Option<i32>, key: &str) -> u64 {
    let status = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok()).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

fn processes(pair: &Pair) -> [Option<i32>; 4] {
    [pair.a.supervisor_pid(), pair.a.worker_pid(), pair.b.supervisor_pid(), pair.b.worker_pid()]
}

/// A member's main and aux address, from its configuration file.
pub(super) fn addresses(member: &Member, name: char) -> Vec<SocketAddr> {
    let config = fs::read_to_string(member.config()).expect("a configuration");
    let section = config.split(&format!("[members.{name}]")).nth(1).expect("the member's section");
    let section = section.split("\n[").next().unwrap_or_default();
    section.split('"').filter_map(|word| word.parse().ok()).collect()
}

/// Kills every connection between the members; how many there were.
fn cut_connections(ports: &[SocketAddr]) -> usize {
    let cut = |port: &SocketAddr| {
        let filter = format!("( sport = :{0} or dport = :{0} )", port.port());
        let killed = Command::new("ss").args(["-K", "-Htn", "state", "established", &filter]).output();
        killed.map_or(0, |output| String::from_utf8_lossy(&output.stdout).lines().count())
    };
    ports.iter().map(cut).sum()
}

/// Changes are acknowledged by both members, and both paths are up.
fn together(pair: &Pair) -> bool {
    let put = pair.a.ask("PUT", "/v1/ds/TOGETHER?ack=durable", br#"{"attributes":{"A":["1"]}}"#);
    put.is_ok_and(|answer| answer.status == 200 && answer.json()["level"] == "durable")
        && pair.members().iter().all(|member| {
            let status = member.status().unwrap_or_default();
            ["main", "aux"].iter().all(|path| status["connections"][path]["up"] == true)
        })
}

/// The hello that the owner of `keys` says: a stranger who has seen one can say it too.
fn real_hello(lane: &[u8], keys: &Path) -> Vec<u8> {
    let member = if keys.ends_with("A") { MemberId::A } else { MemberId::B };
    let hello = Hello {
        versions: VERSIONS,
        pair: super::member::PAIR.into(),
        member,
        instance: 1,
        lane: LaneKind::ALL.into_iter().find(|kind| kind.alpn() == lane).expect("a lane"),
        path: PathKind::Main,
        speaker: Speaker::Worker,
    };
    hello.to_bytes()
}

/// Whoever says nothing is not kept for long.
fn say_nothing(address: SocketAddr) {
    let Ok(mut stream) = TcpStream::connect(address) else { return };
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout can be set");
    let closed = stream.read(&mut [0]);
    let kept = closed.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!kept, "a stranger is kept waiting for more than five seconds: {closed:?}");
}

/// Everything that a stranger may try at `address`, beside noise. `right`: the keys of the member's real peer.
fn knock(address: SocketAddr, strange: &Path, right: &Path) {
    say_nothing(address);
    let hello = [b"RPHI".as_slice(), &[0xff; 60_000]].concat();
    for lane in LANES {
        for keys in [None, Some(strange)] {
            for said in [&hello, &real_hello(lane, right)] {
                let answer = dial_tls(address, lane, keys).map(|stream| converse(stream, said)).unwrap_or_default();
                assert!(answer.is_empty(), "a stranger was told {} bytes", answer.len());
            }
        }
        // Whoever has the right certificate and says nonsense hears no more than a hello.
        for nonsense in [hello.clone(), vec![0; 60_000], b"RPHI".to_vec()] {
            let stream = dial_tls(address, lane, Some(right));
            let Ok(stream) = stream else { continue };
            let answer = if nonsense.len() > 4 { converse(stream, &nonsense) } else { Vec::new() };
            assert!(answer.len() <= 1024, "{} bytes in answer to nonsense", answer.len());
        }
    }
    let answer = dial_tls(address, b"h2", Some(right)).map(|stream| converse(stream, b"PRI * HTTP/2.0"));
    assert!(answer.is_ok_and(|answer| answer.is_empty()), "no lane has this name");
}

/// Connections that are opened and say nothing, or the beginning of something; kept open.
fn half_open(addresses: &[SocketAddr], count: usize) -> Vec<TcpStream> {
    let wanted = count as u64 + 256;
    let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let (soft, hard) = nix::sys::resource::getrlimit(limit).expect("the limit of open files");
    if soft < wanted {
        nix::sys::resource::setrlimit(limit, wanted, hard.max(wanted)).expect("enough open files (root)");
    }
    let connect = |number: usize| {
        let mut stream = TcpStream::connect(addresses[number % addresses.len()]).ok()?;
        // Half of them begin a handshake that never ends.
        if number.is_multiple_of(2) {
            let _ = stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]);
        }
        Some(stream)
    };
    (0..count).filter_map(connect).collect()
}

/// Attacks both members of a pair under load; `report` gets a line for each thing that was held.
///
/// # Panics
/// When anybody crashes, grows, changes its role, loses anything or is kept from its peer.
pub fn intrude(attack: Attack, mut report: impl FnMut(&str)) {
    let pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    let strange = pair.dir().join("strange");
    let made = Command::new(executable())
        .args(["keys", "init", "--dir"])
        .arg(&strange)
        .args(["--member", "A=127.0.0.1", "--member", "B=127.0.0.1"])
        .output();
    assert!(made.is_ok_and(|output| output.status.success()), "a stranger makes keys of the same names");
    let load = Load::start_steady([pair.a.socket(), pair.b.socket()], 2, 20);
    wait_until("the load runs", || load.progress() > 500);
    let (addresses_a, addresses_b) = (addresses(&pair.a, 'A'), addresses(&pair.b, 'B'));
    let ports = [addresses_a.clone(), addresses_b.clone()].concat();
    let epoch = |pair: &Pair| pair.a.status().unwrap_or_default()["epoch"].clone();
    // What reconnecting and the load take by themselves is taken before anybody intrudes.
    for _ in 0..3 {
        cut_connections(&ports);
        wait_until("the members have found one another again", || together(&pair));
    }
    pair.wait_in_sync();
    let (before, memory, begun) = (processes(&pair), processes(&pair).map(resident_kib), epoch(&pair));

    let noise = Noise::begin(&[addresses_a[0], addresses_b[0]], attack.noise_bytes);
    let held = half_open(&ports, attack.half_open);
    assert!(held.len() >= attack.half_open * 9 / 10, "{} connections could be opened", held.len());
    knock(addresses_a[0], &strange.join("B"), &pair.dir().join("keys/B"));
    knock(addresses_b[0], &strange.join("A"), &pair.dir().join("keys/A"));
    report(&format!("{} half-open connections held, every kind of stranger refused", held.len()));
    let steady = Noise::begin(&[addresses_a[0], addresses_b[0]], u64::MAX);
    for round in 1..=5 {
        let start = Instant::now();
        if cut_connections(&ports) == 0 {
            report("skipped: connections cannot be killed here (ss -K)");
            break;
        }
        wait_until("the members have found one another again", || together(&pair));
        let took = start.elapsed();
        report(&format!("round {round}: together again {took:?} after all connections were killed"));
        assert!(took < RECONNECTED_WITHIN, "{took:?} until the members had found one another");
    }
    drop(steady);
    let progress = load.progress();
    wait_until("changes are acknowledged meanwhile", || load.progress() > progress + 100);
    let patience = Duration::from_secs(60 + attack.noise_bytes / (4 << 20));
    let start = Instant::now();
    while noise.left() > 0 {
        assert!(start.elapsed() < patience, "{} bytes of noise are left after {patience:?}", noise.left());
        std::thread::park_timeout(Duration::from_millis(10));
    }
    drop(noise);
    drop(held);
    let peaks = processes(&pair).map(peak_kib);
    assert_eq!(processes(&pair), before, "somebody crashed");
    assert_eq!(epoch(&pair), begun, "the role changed");
    assert!(pair.a.is_active() && !pair.b.is_active(), "the role changed");
    pair.wait_in_sync();
    report(&check_served(&pair, &load.stop()));
    for ((peak, before), what) in peaks.into_iter().zip(memory).zip(["A", "A's worker", "B", "B's worker"]) {
        report(&format!("{what}: {before} KiB before, {peak} at most since"));
        assert!(peak <= before + GROWTH_MAX_KIB, "{what} grew from {before} to {peak} KiB");
    }
}
