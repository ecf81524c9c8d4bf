//! The driver over plain. Not usable yet: making one is an error.

use std::{io, marker::PhantomData, time::Duration};

use super::{BufPool, Completion, DriverOptions, DriverReport, Op, Rejected, RejectedWhy, Token, Turned, Waker};

/// The driver over plain.
#[derive(Debug)]
pub struct PlainDriver {
    pool: BufPool,
    waker: Waker,
    report: DriverReport,
    thread_bound: PhantomData<*const ()>,
}

impl PlainDriver {
    pub(super) fn new(_options: &DriverOptions, _why: &str) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }
    pub(super) fn submit(&mut self, _token: Token, op: Op) -> Result<(), Rejected<Op>> {
        Err(Rejected { op, why: RejectedWhy::Full })
    }
    pub(super) fn cancel(&mut self, _token: Token) -> usize {
        0
    }
    pub(super) fn turn(&mut self, _wait: Option<Duration>, _completions: &mut Vec<Completion>) -> io::Result<Turned> {
        Ok(Turned::default())
    }
    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }
    pub(super) fn pool(&self) -> &BufPool {
        &self.pool
    }
    pub(super) fn in_flight(&self) -> usize {
        0
    }
    pub(super) fn room(&self) -> usize {
        0
    }
    pub(super) fn report(&self) -> &DriverReport {
        &self.report
    }
}
