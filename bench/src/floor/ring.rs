//! What the product's own ring does at best: sends out of registered memory, copied by the kernel and not.
//!
//! Always: one send in flight, so that bytes stay in order. Never: a wait for longer than `PATIENCE`.

use std::{
    fs::File,
    io,
    net::TcpStream,
    time::{Duration, Instant},
};

use ringpair::ring::{Buf, Carried, Completion, Driver, DriverOptions, Fd, Op, Token};

use super::net::PATIENCE;

const BUF_COUNT: usize = 8;
const READ: Token = Token::new(0, 1, 0);
const SEND: Token = Token::new(0, 2, 0);

fn driver(buf_bytes: usize) -> io::Result<Driver> {
    Driver::new(&DriverOptions { in_flight: 32, buf_count: BUF_COUNT, buf_bytes, ..DriverOptions::default() })
}

/// Turns until a wanted completion has come. The second one of a zero-copy send has given its buffer back already.
fn until(driver: &mut Driver, wanted: impl Fn(&Completion) -> bool) -> io::Result<Completion> {
    let deadline = Instant::now() + PATIENCE;
    let mut completions = Vec::new();
    loop {
        driver.turn(Some(PATIENCE), &mut completions)?;
        for completion in completions.drain(..) {
            if wanted(&completion) {
                return Ok(completion);
            }
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// A buffer of the pool, as soon as the kernel has given one back.
fn buffer(driver: &mut Driver) -> io::Result<Buf> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(buf) = driver.pool().take() {
            return Ok(buf);
        }
        driver.turn(Some(PATIENCE), &mut Vec::new())?;
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// Sends a whole file from registered memory, zero-copy where the kernel has that.
pub fn send_file(file: File, end: TcpStream) -> io::Result<()> {
    let mut driver = driver(256 << 10)?;
    let (file, fd) = (Fd::new(file), Fd::new(end));
    let mut offset = 0;
    loop {
        let buf = buffer(&mut driver)?;
        let len = buf.capacity();
        driver.submit(READ, Op::ReadAt { fd: file.clone(), buf, offset, len }).map_err(io::Error::other)?;
        let read = until(&mut driver, |done| done.token == READ)?;
        let (count, Carried::Buf(buf)) = (read.result?, read.carried) else { return Ok(()) };
        if count == 0 {
            return Ok(());
        }
        offset += count as u64;
        let slices = vec![buf.freeze()];
        driver.submit(SEND, Op::SendZeroCopy { fd: fd.clone(), slices }).map_err(io::Error::other)?;
        until(&mut driver, |done| done.more || done.result.is_err())?.result?;
    }
}

/// Sends pieces of 64 KiB out of registered memory for `span`.
pub fn send_pieces(end: TcpStream, span: Duration, zero_copy: bool) -> io::Result<()> {
    let mut driver = driver(64 << 10)?;
    let fd = Fd::new(end);
    let start = Instant::now();
    while start.elapsed() < span {
        let mut buf = buffer(&mut driver)?;
        let len = buf.capacity();
        buf.set_len(len);
        let slices = vec![buf.freeze()];
        let fd = fd.clone();
        let op = if zero_copy { Op::SendZeroCopy { fd, slices } } else { Op::Send { fd, slices } };
        driver.submit(SEND, op).map_err(io::Error::other)?;
        until(&mut driver, |done| done.more == zero_copy || done.result.is_err())?.result?;
    }
    Ok(())
}
