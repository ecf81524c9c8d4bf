//! rsync to a daemon over loopback, as one would between two hosts, followed by a sync of what it wrote.
//!
//! Always: `-a`, as the mirror keeps what that keeps. Never: left running.

use std::{
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::free_port;
use crate::{
    error::{Doing, Result},
    process::{Server, run, wait_for},
};

const PATIENCE: Duration = Duration::from_secs(20);
/// The longest that a transfer may take.
const TRANSFER: Duration = Duration::from_secs(600);

/// A daemon that receives into one directory.
#[derive(Debug)]
pub struct Rsync {
    _daemon: Server,
    port: u16,
    into: PathBuf,
}

impl Rsync {
    /// Starts a daemon that writes into `dir/rsync`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(dir: &Path) -> Result<Self> {
        let (port, into, config) = (free_port()?, dir.join("rsync"), dir.join("rsyncd.conf"));
        std::fs::create_dir_all(&into).doing("a directory for rsync")?;
        let owner = if nix::unistd::geteuid().is_root() { "uid = 0\ngid = 0\n" } else { "" };
        let text = format!(
            "use chroot = no\naddress = 127.0.0.1\nport = {port}\n{owner}[into]\npath = {}\nread only = no\n",
            into.display()
        );
        std::fs::write(&config, text).doing("rsyncd.conf")?;
        let mut command = Command::new("rsync");
        let daemon = Server::start(command.args(["--daemon", "--no-detach", "--config"]).arg(&config))?;
        wait_for("rsync's daemon listens", PATIENCE, || TcpStream::connect(("127.0.0.1", port)).ok())?;
        Ok(Self { _daemon: daemon, port, into })
    }

    /// Transfers the content of `from` and syncs it; how long that took in all.
    ///
    /// # Errors
    /// When rsync fails or takes too long.
    pub fn transfer(&self, from: &Path) -> Result<Duration> {
        let mut command = Command::new("rsync");
        command.arg("-a").arg(from.join("")).arg(format!("rsync://127.0.0.1:{}/into/", self.port));
        let sent = run(&mut command, TRANSFER)?;
        Ok(sent + run(Command::new("sync").arg("-f").arg(&self.into), TRANSFER)?)
    }

    /// Where the daemon writes.
    #[must_use]
    pub fn into(&self) -> &Path {
        &self.into
    }
}
