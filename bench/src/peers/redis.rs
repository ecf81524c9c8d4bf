//! Redis with one replica: each request is a number of SETs and one `WAIT 1`, so that the replica has them when it is
//! answered. With `fsync`, both append to files with `appendfsync always`; without, neither writes anything.
//!
//! Always: asked over a Unix socket, by the same load as the member. Never: left running.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use super::free_port;
use crate::{
    error::{Doing, Error, Result},
    load::{Answer, Talk, Values},
    process::{Server, wait_for},
};

const PATIENCE: Duration = Duration::from_secs(20);
/// Over how many keys the changes go.
const KEYS: u64 = 16_384;

/// Master and replica.
#[derive(Debug)]
pub struct Redis {
    _replica: Server,
    _master: Server,
    socket: PathBuf,
    replica_socket: PathBuf,
    port: u16,
}

impl Redis {
    /// Starts both below `dir` and waits until the replica follows.
    ///
    /// # Errors
    /// When they do not start or do not find each other.
    pub fn start(dir: &Path, fsync: bool) -> Result<Self> {
        let port = free_port()?;
        let start = |name: &str, port: u16, more: &[&str]| -> Result<(Server, PathBuf)> {
            let dir = dir.join(name);
            std::fs::create_dir_all(&dir).doing("a directory for redis")?;
            let socket = dir.join("socket");
            let mut command = Command::new("redis-server");
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"]);
            command.arg("--dir").arg(&dir).arg("--unixsocket").arg(&socket);
            command.args(["--appendonly", if fsync { "yes" } else { "no" }, "--appendfsync", "always"]);
            // A full synchronization begins at once, and objects can be made by the server itself.
            command.args(["--repl-diskless-sync-delay", "0", "--enable-debug-command", "yes"]);
            Ok((Server::start(command.args(more))?, socket))
        };
        let kind = if fsync { "fsync" } else { "plain" };
        let (master, socket) = start(&format!("master-{kind}"), port, &[])?;
        let of = port.to_string();
        let (replica, replica_socket) =
            start(&format!("replica-{kind}"), free_port()?, &["--replicaof", "127.0.0.1", &of])?;
        wait_for("redis' replica follows", PATIENCE, || {
            info(&socket, "replication").ok().filter(|text| text.contains("state=online"))
        })?;
        Ok(Self { _replica: replica, _master: master, socket, replica_socket, port })
    }

    /// Makes `keys` keys with values of `bytes` bytes, and waits until the replica has them.
    ///
    /// # Errors
    /// When redis does not answer as expected.
    pub fn populate(&self, keys: u64, bytes: usize) -> Result<()> {
        command(&self.socket, &format!("DEBUG POPULATE {keys} key {bytes}"), "+OK")?;
        // It is not replicated by itself.
        self.synchronize_wholly().map(drop)
    }

    /// Makes the replica one of another history, which follows again: how long its full synchronization takes.
    ///
    /// # Errors
    /// When redis does not answer as expected, or synchronizes in part.
    pub fn synchronize_wholly(&self) -> Result<Duration> {
        let wholly = || number_of(&self.socket, "stats", "sync_full:");
        let before = wholly()?;
        command(&self.replica_socket, "REPLICAOF NO ONE", "+OK")?;
        command(&self.replica_socket, "SET apart 1", "+OK")?;
        let start = Instant::now();
        command(&self.replica_socket, &format!("REPLICAOF 127.0.0.1 {}", self.port), "+OK")?;
        wait_for("redis' replica is whole", PATIENCE, || {
            let text = info(&self.replica_socket, "replication").ok()?;
            (text.contains("master_link_status:up") && text.contains("master_sync_in_progress:0")).then_some(())
        })?;
        let took = start.elapsed();
        if wholly()? != before + 1 {
            return Err(Error::Failed("redis did not synchronize wholly".into()));
        }
        Ok(took)
    }

    /// Kills the connection to the replica, which dials again.
    ///
    /// # Errors
    /// When redis does not answer as expected.
    pub fn kill_replicas(&self) -> Result<()> {
        command(&self.socket, "CLIENT KILL TYPE replica", ":1")
    }

    /// Where the master is asked.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where the replica is asked.
    #[must_use]
    pub fn replica_socket(&self) -> &Path {
        &self.replica_socket
    }
}

/// Asks one thing; the answer, as far as it comes at once.
fn ask(socket: &Path, what: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket).doing("connecting to redis")?;
    stream.set_read_timeout(Some(PATIENCE)).doing("a socket")?;
    stream.write_all(format!("{what}\r\n").as_bytes()).doing("asking redis")?;
    let mut answer = vec![0; 16 << 10];
    let bytes = stream.read(&mut answer).doing("hearing redis")?;
    Ok(String::from_utf8_lossy(&answer[..bytes]).into_owned())
}

fn info(socket: &Path, section: &str) -> Result<String> {
    ask(socket, &format!("INFO {section}"))
}

fn command(socket: &Path, what: &str, expected: &str) -> Result<()> {
    match ask(socket, what)? {
        answer if answer.trim_end() == expected => Ok(()),
        answer => Err(Error::Failed(format!("redis answered {answer:?} to {what:?}"))),
    }
}

fn number_of(socket: &Path, section: &str, name: &str) -> Result<u64> {
    let text = info(socket, section)?;
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    found.ok_or_else(|| Error::Failed(format!("redis says no {name}")))
}

/// SETs, and one WAIT where the replica must have them.
#[derive(Clone, Debug)]
pub struct Sets {
    /// How many in one request.
    pub changes: u64,
    /// Whether the replica must have them.
    pub replicated: bool,
    /// What is set.
    pub values: Values,
}

impl Talk for Sets {
    fn ask(&mut self, number: u64, out: &mut Vec<u8>) {
        let mut value = Vec::new();
        for change in number * self.changes..(number + 1) * self.changes {
            value.clear();
            self.values.push(change, &mut value);
            let key = format!("BENCH/o{:06}", change % KEYS);
            let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len());
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(&value);
            out.extend_from_slice(b"\r\n");
        }
        if self.replicated {
            out.extend_from_slice(b"*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$5\r\n10000\r\n");
        }
    }

    fn answer(&self, bytes: &[u8]) -> Result<Option<Answer>> {
        let sets = usize::try_from(self.changes).unwrap_or(usize::MAX);
        let lines = bytes.iter().filter(|&&byte| byte == b'\n').count();
        if lines < sets + usize::from(self.replicated) {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(bytes);
        let ok = text.lines().take(sets).all(|line| line == "+OK");
        let waited = !self.replicated || text.lines().nth(sets) == Some(":1");
        if ok && waited {
            return Ok(Some(Answer::Done));
        }
        Err(Error::Failed(format!("redis answered {:?}", text.lines().find(|line| *line != "+OK"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Stuff;

    #[test]
    fn an_answer_is_whole_when_the_replica_has_spoken() {
        let mut sets = Sets { changes: 2, replicated: true, values: Values::new(Stuff::Letters, 20) };
        let mut out = Vec::new();
        sets.ask(1, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("BENCH/o000002") && text.contains("BENCH/o000003") && text.contains("WAIT"), "{text}");
        assert_eq!(sets.answer(b"+OK\r\n+OK\r\n").unwrap(), None);
        assert_eq!(sets.answer(b"+OK\r\n+OK\r\n:1\r\n").unwrap(), Some(Answer::Done));
        assert!(sets.answer(b"+OK\r\n+OK\r\n:0\r\n").is_err(), "the replica did not have it in time");
    }
}
