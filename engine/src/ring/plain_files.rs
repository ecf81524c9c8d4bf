//! The plain driver's helper thread: carries out file operations one after the other, so that the loop never waits for
//! the disk.
//!
//! Each operation moves to the thread whole, buffers and descriptor included, and comes back with its result. The
//! queues hold as many as the driver may have in flight, so handing over never blocks.

use std::{
    io::{self, IoSlice},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use nix::{
    errno::Errno,
    sys::uio::{pread, pwritev},
    unistd::{fdatasync, fsync},
};

use super::{Op, Shared, Waker};

/// How long a dropped driver waits for the operation that the thread has begun.
const DROP_WAIT: Duration = Duration::from_secs(2);

/// What the thread says about the operation in slot `index`.
pub(super) struct Done {
    pub index: u32,
    pub result: io::Result<usize>,
    /// The operation given back; `None`: more is to come.
    pub op: Option<Op>,
}

/// The thread and the queues to and from it.
pub(super) struct FileThread {
    jobs: Option<Sender<(u32, Op)>>,
    done: Receiver<Done>,
    stop: Arc<AtomicBool>,
}

impl FileThread {
    /// Starts the thread, for at most `in_flight` operations at a time.
    pub(super) fn start(in_flight: usize, waker: Waker) -> io::Result<Self> {
        let (jobs, to_do) = bounded::<(u32, Op)>(in_flight);
        // A WriteSynced speaks twice.
        let (say, done) = bounded(in_flight * 2);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        thread::Builder::new().name("files".into()).spawn(move || {
            for (index, mut op) in to_do {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let result = carry_out(&mut op, |written| {
                    let _ = say.send(Done { index, result: Ok(written), op: None });
                    waker.wake();
                });
                if say.send(Done { index, result, op: Some(op) }).is_err() {
                    break;
                }
                waker.wake();
            }
        })?;
        Ok(Self { jobs: Some(jobs), done, stop })
    }

    /// Hands an operation over; gives it back if the thread is gone (it never is while the driver lives).
    pub(super) fn hand_over(&self, index: u32, op: Op) -> Result<(), Op> {
        match &self.jobs {
            Some(jobs) => jobs.try_send((index, op)).map_err(|refused| refused.into_inner().1),
            None => Err(op),
        }
    }

    /// The next finished operation, if there is one.
    pub(super) fn next_done(&self) -> Option<Done> {
        self.done.try_recv().ok()
    }

    /// Whether something has finished.
    pub(super) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }
}

impl Drop for FileThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        let until = Instant::now() + DROP_WAIT;
        // The thread owns what it works on: if the disk hangs, it is left to itself.
        while !matches!(self.done.recv_deadline(until), Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected))
        {
        }
    }
}

/// Carries out a file operation to its end.
fn carry_out(op: &mut Op, mut written: impl FnMut(usize)) -> io::Result<usize> {
    match op {
        Op::ReadAt { fd, buf, offset, len } => {
            let mut count = 0;
            while count < *len && buf.spare() > 0 {
                let most = buf.spare().min(*len - count);
                let got = retry(|| pread(&*fd, &mut buf.spare_mut()[..most], (*offset + count as u64) as i64))?;
                if got == 0 {
                    break;
                }
                buf.set_len(buf.len() + got);
                count += got;
            }
            Ok(count)
        }
        Op::WriteAt { fd, slices, offset } => write_all(fd, slices, *offset),
        Op::WriteSynced { fd, slices, offset } => {
            let count = write_all(fd, slices, *offset)?;
            written(count);
            fdatasync(&*fd)?;
            Ok(count)
        }
        Op::Fdatasync { fd } => Ok(fdatasync(&*fd).map(|()| 0)?),
        Op::Fsync { fd } => Ok(fsync(&*fd).map(|()| 0)?),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Repeats what a signal interrupted.
fn retry(mut call: impl FnMut() -> nix::Result<usize>) -> nix::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

fn write_all(fd: &impl AsFd, slices: &[Shared], offset: u64) -> io::Result<usize> {
    let mut parts: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
    let mut left = &mut parts[..];
    let mut count = 0;
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        let wrote = retry(|| pwritev(fd, left, (offset + count as u64) as i64))?;
        if wrote == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        count += wrote;
        IoSlice::advance_slices(&mut left, wrote);
    }
    Ok(count)
}
