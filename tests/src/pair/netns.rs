//! Two hosts made of network namespaces and two cables between them, which can be cut one way or both.
//!
//! Names are unique to this process; everything is removed on drop. Neighbours are fixed by hand, so that a direction is
//! cut by sending it to nobody (a wrong link address): nothing answers, nothing is refused, as with a dead switch.
//! Needs root; [`Network::new`] says why it cannot be made.

use std::{
    net::IpAddr,
    ops::Range,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{Member, Place};

/// A link address that no interface has.
const NOBODY: &str = "02:00:00:00:00:ff";
/// The port of every address.
const PORT: u16 = 3633;

/// Which way a cable no longer carries anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// What A sends is lost.
    FromA,
    /// What B sends is lost.
    FromB,
    /// Both.
    Both,
}

/// Which addresses the hosts have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Two namespaces, a main and an aux cable.
#[derive(Debug)]
pub struct Network {
    family: Family,
    /// The namespaces of A and B.
    names: [String; 2],
    /// The namespace of the router between them, where there is one.
    router: Option<String>,
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("ip cannot be run: {error}")),
    }
}

fn mac(host: usize, cable: usize) -> String {
    format!("02:00:00:00:{cable:02x}:{:02x}", host + 1)
}

impl Network {
    /// Makes namespaces, cables and addresses.
    ///
    /// # Errors
    /// Why it is not possible here: no root, no `ip`, no namespaces.
    pub fn new(family: Family) -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let tag = format!("rp{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let network = Self { family, names: [format!("{tag}a"), format!("{tag}b")], router: None };
        for name in &network.names {
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        let [a, b] = &network.names;
        for cable in 0..2 {
            ip(&format!(
                "link add c{cable} netns {a} address {} type veth peer name c{cable} netns {b} address {}",
                mac(0, cable),
                mac(1, cable)
            ))?;
            for (host, name) in network.names.iter().enumerate() {
                let (address, bits) =
                    (network.address(host, cable), if family == Family::V4 { "24" } else { "64 nodad" });
                ip(&format!("-n {name} addr add {address}/{bits} dev c{cable}"))?;
                ip(&format!("-n {name} link set c{cable} up"))?;
            }
        }
        network.heal();
        Ok(network)
    }

    /// As [`Self::new`] for IPv4, with a router in the middle of the main cable, which passes on `rate` (as `tc` writes it)
    /// each way and queues up to `queue_bytes`.
    ///
    /// # Errors
    /// As [`Self::new`]; or this kernel has no token bucket filter.
    pub fn narrow(rate: &str, queue_bytes: u32) -> Result<Self, String> {
        Self::routed(&[format!("qdisc add dev DEV root tbf rate {rate} burst 10kb limit {queue_bytes}")])
    }

    /// As [`Self::new`] for IPv4, with a router in the middle of the main cable, whose two interfaces `shape` sets up: what
    /// `tc` is told, with DEV for the interface.
    ///
    /// # Errors
    /// As [`Self::new`]; or what `tc` refused.
    pub fn routed(shape: &[String]) -> Result<Self, String> {
        let mut network = Self::new(Family::V4)?;
        let router = format!("{}r", network.names[0].trim_end_matches('a'));
        ip(&format!("netns add {router}"))?;
        network.router = Some(router.clone());
        ip(&format!("-n {} link del c0", network.names[0]))?;
        for (host, name) in network.names.iter().enumerate() {
            // The router answers for the other host.
            let (near, far) = (mac(host, 0), mac(1 - host, 0));
            ip(&format!(
                "link add c0 netns {name} address {near} type veth peer name c{host} netns {router} address {far}"
            ))?;
            let address = network.address(host, 0);
            ip(&format!("-n {name} addr add {address}/24 dev c0"))?;
            ip(&format!("-n {name} link set c0 up"))?;
            ip(&format!("-n {router} link set c{host} up"))?;
            ip(&format!("-n {router} route add {address} dev c{host}"))?;
            ip(&format!("-n {router} neigh replace {address} lladdr {near} dev c{host} nud permanent"))?;
            ip(&format!("netns exec {router} sysctl -qw net.ipv4.ip_forward=1"))?;
            for line in shape {
                ip(&format!("netns exec {router} tc {}", line.replace("DEV", &format!("c{host}"))))?;
            }
        }
        network.heal();
        Ok(network)
    }

    /// The namespace of the router, where there is one; its interfaces are c0, towards A, and c1, towards B.
    #[must_use]
    pub fn router(&self) -> Option<&str> {
        self.router.as_deref()
    }

    /// Where the members of a pair are to run so that aux, too, goes over the main cable.
    #[must_use]
    pub fn places_on_main(&self) -> [Place; 2] {
        self.places().map(|place| Place { aux: place.main, ..place })
    }

    /// The address of host 0 (A) or 1 (B) on cable 0 (main) or 1 (aux).
    #[must_use]
    pub fn address(&self, host: usize, cable: usize) -> IpAddr {
        let (host, cable) = (u8::try_from(host + 1).unwrap_or(1), u8::try_from(cable).unwrap_or(0));
        match self.family {
            Family::V4 => IpAddr::from([10, 60, cable, host]),
            Family::V6 => IpAddr::from([0xfd00, u16::from(cable), 0, 0, 0, 0, 0, u16::from(host)]),
        }
    }

    /// Where the members of a pair are to run.
    #[must_use]
    pub fn places(&self) -> [Place; 2] {
        [0, 1].map(|host| Place {
            namespace: self.names[host].clone(),
            main: (self.address(host, 0), PORT).into(),
            aux: (self.address(host, 1), PORT).into(),
        })
    }

    /// The namespace that `member` runs in.
    #[must_use]
    pub fn namespace(&self, member: &Member) -> &str {
        &self.names[usize::from(member.name() == 'B')]
    }

    fn neighbours(&self, host: usize, cables: Range<usize>, found: bool) {
        for cable in cables {
            let (peer, name) = (self.address(1 - host, cable), &self.names[host]);
            let address = if found { mac(1 - host, cable) } else { NOBODY.into() };
            let done = ip(&format!("-n {name} neigh replace {peer} lladdr {address} dev c{cable} nud permanent"));
            assert_eq!(done, Ok(()), "the cable obeys");
        }
    }

    /// Runs `nft` with `rules` on `host` 0 (A) or 1 (B).
    ///
    /// # Errors
    /// What it refused, or that it is not there.
    pub fn nft(&self, host: usize, rules: &str) -> Result<(), String> {
        let name = &self.names[host];
        let output = Command::new("ip").args(["netns", "exec", name, "nft", rules]).output();
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(format!("nft {rules}: {}", String::from_utf8_lossy(&output.stderr).trim())),
            Err(error) => Err(format!("ip cannot be run: {error}")),
        }
    }

    /// Loses everything at `host` that bears the mark `dscp` (as nft names it), both ways and silently, until
    /// [`Self::keep_all`].
    ///
    /// # Errors
    /// As [`Self::nft`].
    pub fn lose(&self, host: usize, dscp: &str) -> Result<(), String> {
        let chain =
            |name: &str| format!("chain {name} {{ type filter hook {name} priority 0\n ip dscp {dscp} drop\n }}\n");
        self.nft(host, &format!("table inet lost {{\n {} {} }}", chain("input"), chain("output")))
    }

    /// Ends [`Self::lose`].
    ///
    /// # Errors
    /// As [`Self::nft`].
    pub fn keep_all(&self, host: usize) -> Result<(), String> {
        self.nft(host, "delete table inet lost")
    }

    /// Cuts both cables. Silently: whoever sends is told nothing.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn cut(&self, cut: Cut) {
        if cut != Cut::FromB {
            self.neighbours(0, 0..2, false);
        }
        if cut != Cut::FromA {
            self.neighbours(1, 0..2, false);
        }
    }

    /// Cuts the main cable alone, both ways and silently.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn cut_main(&self) {
        [0, 1].into_iter().for_each(|host| self.neighbours(host, 0..1, false));
    }

    /// Pulls both cables out of `host` 0 (A) or 1 (B): both ends notice.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn unplug(&self, host: usize) {
        for cable in 0..2 {
            assert_eq!(ip(&format!("-n {} link set c{cable} down", self.names[host])), Ok(()), "the cable obeys");
        }
    }

    /// Makes everything whole again.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn heal(&self) {
        for host in [0, 1] {
            for cable in 0..2 {
                assert_eq!(ip(&format!("-n {} link set c{cable} up", self.names[host])), Ok(()), "the cable obeys");
            }
            self.neighbours(host, 0..2, true);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.names.iter().chain(&self.router) {
            if let Err(error) = ip(&format!("netns del {name}")) {
                eprintln!("{error}");
            }
        }
    }
}
