//! The driver over io_uring: one `io_uring_enter` a turn submits what is queued and waits.
//!
//! Flags and opcodes are probed by trying, never by kernel version. Every operation owns its memory in a [`Slot`] until
//! the kernel owes no result for it; a driver dropped with operations that do not end in time leaks their slots, and so
//! never frees memory under the kernel. The ring never overflows: it is made for all that may be in flight.

use std::{
    collections::VecDeque,
    fmt, io,
    marker::PhantomData,
    mem,
    ops::Range,
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use io_uring::{Builder, IoUring, Probe, cqueue, opcode, types};

use super::{
    BufPool, Carried, Completion, DriverOptions, DriverReport, Fd, Feature, Op, Rejected, RejectedWhy, Token, Turned,
    Waker,
    registry::Slots,
    slot::{Next, Outcome, Registered, Slot},
};

/// How long a dropped driver waits for its operations to end, before it leaks what they own.
const DROP_WAIT: Duration = Duration::from_secs(2);
/// What an entry's user data says it is, in the top four bits; below: generation (28) and slot index (32).
const MAIN: u64 = 0;
const SYNC: u64 = 1 << 60;
const CANCEL: u64 = 2 << 60;
const WAKE: u64 = 3 << 60;
const KIND_MASK: u64 = 0xf << 60;

/// Something to submit.
#[derive(Clone, Copy)]
enum Queued {
    /// The operation in this slot.
    Slot(u32),
    /// The cancellation of the operation with this user data.
    Cancel(u64),
}

/// The driver over io_uring. Stays in the thread that made it.
pub struct RingDriver {
    ring: IoUring,
    slots: Box<[Slot]>,
    free: Vec<u32>,
    queue: VecDeque<Queued>,
    results: Vec<(u64, Outcome)>,
    pool: BufPool,
    region: Option<Range<usize>>,
    files: Option<Arc<Slots>>,
    waker: Waker,
    /// Where the kernel puts the eventfd's counter: made by `Box::into_raw`, freed when no read is in flight.
    wake_count: *mut u64,
    wake_armed: bool,
    zero_copy: bool,
    report: DriverReport,
    thread_bound: PhantomData<*const ()>,
}

impl fmt::Debug for RingDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RingDriver({} in flight, {:?})", self.in_flight(), self.report)
    }
}

/// The first set of flags that the kernel takes, with its name.
fn build_ring(in_flight: u32, defer: bool) -> io::Result<(IoUring, &'static str)> {
    type Flags = fn(&mut Builder) -> &mut Builder;
    let attempts: [(&str, Flags); 3] = [
        ("defer_taskrun", |b| b.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun().setup_submit_all()),
        ("coop_taskrun", |b| b.setup_coop_taskrun().setup_submit_all()),
        ("no task-run flags", |b| b),
    ];
    let entries = in_flight.next_power_of_two().clamp(8, 256);
    // Two results for each WriteSynced and zero-copy send, one more for each cancellation, and the waker's.
    let results = (in_flight * 3 + 8).next_power_of_two();
    let mut last = None;
    for (name, flags) in attempts.into_iter().skip(usize::from(!defer)) {
        let mut builder = IoUring::builder();
        match flags(&mut builder).setup_clamp().setup_cqsize(results).dontfork().build(entries) {
            Ok(ring) => return Ok((ring, name)),
            Err(error) => last = Some(error),
        }
    }
    let last = last.unwrap_or_else(|| io::ErrorKind::Unsupported.into());
    Err(io::Error::new(last.kind(), format!("io_uring is not to be had: {last}")))
}

/// Fails when an opcode that the driver needs is missing.
/// Otherwise, whether sends can be zero-copy.
fn check_opcodes(ring: &IoUring) -> io::Result<bool> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        ("accept", opcode::Accept::CODE),
        ("async_cancel", opcode::AsyncCancel::CODE),
        ("connect", opcode::Connect::CODE),
        ("fsync", opcode::Fsync::CODE),
        ("poll_add", opcode::PollAdd::CODE),
        ("read", opcode::Read::CODE),
        ("read_fixed", opcode::ReadFixed::CODE),
        ("recv", opcode::Recv::CODE),
        ("recvmsg", opcode::RecvMsg::CODE),
        ("send", opcode::Send::CODE),
        ("sendmsg", opcode::SendMsg::CODE),
        ("write", opcode::Write::CODE),
        ("write_fixed", opcode::WriteFixed::CODE),
        ("writev", opcode::Writev::CODE),
    ];
    match needed.iter().find(|(_, code)| !probe.is_supported(*code)) {
        Some((name, _)) => {
            Err(io::Error::new(io::ErrorKind::Unsupported, format!("io_uring lacks the operation {name}")))
        }
        None if !ring.params().is_feature_ext_arg() => {
            Err(io::Error::new(io::ErrorKind::Unsupported, "io_uring lacks waits with a time limit"))
        }
        None => Ok([opcode::SendZc::CODE, opcode::SendMsgZc::CODE].iter().all(|code| probe.is_supported(*code))),
    }
}

/// Registers the pool's memory as buffer 0; else why not.
fn register_buffers(ring: &IoUring, pool: &BufPool, masked: bool) -> Result<Range<usize>, String> {
    if masked {
        return Err("buffers are not registered (io.without)".into());
    }
    let region = pool.region();
    let iovec = libc::iovec { iov_base: region.start as *mut libc::c_void, iov_len: region.len() };
    // SAFETY: the region is mapped as long as the pool or a buffer of it lives, and the kernel pins its pages.
    match unsafe { ring.submitter().register_buffers(&[iovec]) } {
        Ok(()) => Ok(region),
        Err(error) => Err(format!("buffers are not registered ({error}; RLIMIT_MEMLOCK counts them)")),
    }
}

/// A table of `count` registered files; else why not.
fn register_files(ring: &IoUring, count: u32, waker: &Waker, masked: bool) -> Result<Arc<Slots>, String> {
    if masked {
        return Err("files are not registered (io.without)".into());
    }
    match ring.submitter().register_files_sparse(count) {
        Ok(()) => Ok(Arc::new(Slots::new(count, waker.clone()))),
        Err(error) => Err(format!("files are not registered ({error})")),
    }
}

impl RingDriver {
    pub(super) fn new(options: &DriverOptions) -> io::Result<Self> {
        if !(1..=32_768).contains(&options.in_flight) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "in_flight is not 1 to 32768"));
        }
        let masked = |feature| options.without.contains(&feature);
        let (ring, flags) = build_ring(options.in_flight, !masked(Feature::DeferTaskrun))?;
        let can_zero_copy = check_opcodes(&ring)?;
        let waker = Waker::new()?;
        let pool = BufPool::new(options.buf_count, options.buf_bytes)?;
        let (mut features, mut lacks) = (vec![flags.to_owned()], Vec::new());
        let mut note = |feature: &str, lack: Option<String>| match lack {
            None => features.push(feature.into()),
            Some(lack) => lacks.push(lack),
        };
        let region = register_buffers(&ring, &pool, masked(Feature::RegisteredBuffers));
        note("registered_buffers", region.as_ref().err().cloned());
        let zero_copy = match (can_zero_copy, masked(Feature::ZeroCopy)) {
            (true, false) => Ok(()),
            (false, _) => Err("sends are copied (the kernel lacks the operation)".to_owned()),
            (true, true) => Err("sends are copied (io.without)".to_owned()),
        };
        note("zero_copy_sends", zero_copy.clone().err());
        if masked(Feature::DeferTaskrun) {
            note("", Some("results are not deferred to the turn (io.without)".into()));
        }
        let files = match options.registered_files {
            0 => None,
            count => {
                let slots = register_files(&ring, count, &waker, masked(Feature::RegisteredFiles));
                note("registered_files", slots.as_ref().err().cloned());
                slots.ok()
            }
        };
        let why = std::iter::once("the kernel offers it".to_owned()).chain(lacks).collect::<Vec<_>>().join("; ");
        Ok(Self {
            ring,
            slots: (0..options.in_flight).map(|_| Slot::default()).collect(),
            free: (0..options.in_flight).rev().collect(),
            queue: VecDeque::new(),
            results: Vec::new(),
            pool,
            region: region.ok(),
            files,
            waker,
            wake_count: Box::into_raw(Box::new(0)),
            wake_armed: false,
            zero_copy: zero_copy.is_ok(),
            report: DriverReport { driver: "io_uring", features, why },
            thread_bound: PhantomData,
        })
    }

    pub(super) fn submit(&mut self, token: Token, op: Op) -> Result<(), Rejected<Op>> {
        if !op.is_sound() {
            return Err(Rejected { op, why: RejectedWhy::Unsound });
        }
        let Some(index) = self.free.pop() else { return Err(Rejected { op, why: RejectedWhy::Full }) };
        self.slots[index as usize].occupy(token, op);
        self.queue.push_back(Queued::Slot(index));
        Ok(())
    }

    pub(super) fn cancel(&mut self, token: Token) -> usize {
        let mut found = 0;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.token == token && slot.is_cancellable() {
                found += 1;
                if !slot.cancelled {
                    slot.cancelled = true;
                    self.queue.push_back(Queued::Cancel(user_data(index as u32, slot.generation)));
                }
            }
        }
        found
    }

    pub(super) fn turn(&mut self, wait: Option<Duration>, completions: &mut Vec<Completion>) -> io::Result<Turned> {
        let before = completions.len();
        self.empty_released_files();
        self.arm_wake();
        self.push_queue(completions);
        let wait = match completions.len() > before || !self.queue.is_empty() {
            true => Some(Duration::ZERO),
            false => wait,
        };
        self.enter(wait)?;
        let woken = self.reap(completions);
        Ok(Turned { completions: completions.len() - before, woken })
    }

    /// Keeps one read of the waker's eventfd in flight.
    fn arm_wake(&mut self) {
        if self.wake_armed {
            return;
        }
        let fd = types::Fd(self.waker.as_raw_fd());
        let entry = opcode::Read::new(fd, self.wake_count.cast(), 8).build().user_data(WAKE);
        // SAFETY: `wake_count` stays allocated until the read has ended or for ever; the driver keeps the eventfd open.
        self.wake_armed = unsafe { self.ring.submission().push(&entry) }.is_ok();
    }

    /// Moves what is queued into the submission ring, as far as there is room.
    fn push_queue(&mut self, completions: &mut Vec<Completion>) {
        let registered = Registered { region: self.region.as_ref(), files: self.files.as_ref() };
        let mut ring = self.ring.submission();
        while let Some(next) = self.queue.front().copied() {
            let slot = match next {
                Queued::Slot(index) => Some((index, &mut self.slots[index as usize])),
                Queued::Cancel(_) => None,
            };
            let needed = slot.as_ref().map_or(1, |(_, slot)| slot.entry_count());
            if ring.capacity() - ring.len() < needed {
                return;
            }
            self.queue.pop_front();
            let pushed = match (next, slot) {
                (_, Some((index, slot))) if slot.cancelled => {
                    // Asked to end before it was submitted (again): there is nothing that the kernel could end.
                    let token = slot.token;
                    if let Next::Done(result, carried) = slot.cancel() {
                        completions.push(Completion { token, result, carried, more: false });
                        self.free.push(index);
                    }
                    Ok(())
                }
                (_, Some((index, slot))) => {
                    let main = user_data(index, slot.generation);
                    let (entry, linked) = slot.entries(&registered, main | MAIN, main | SYNC);
                    // SAFETY: everything that the entries point to is owned by the slot, which neither moves nor
                    // drops it before the results that it now expects have come.
                    unsafe {
                        match linked {
                            Some(linked) => ring.push_multiple(&[entry, linked]),
                            None => ring.push(&entry),
                        }
                    }
                }
                (Queued::Cancel(target), _) => {
                    let entry = opcode::AsyncCancel::new(target).build().user_data(CANCEL);
                    // SAFETY: a cancellation points to nothing.
                    unsafe { ring.push(&entry) }
                }
                (Queued::Slot(_), None) => Ok(()),
            };
            assert!(pushed.is_ok(), "the submission ring has the room that it said");
        }
    }

    /// The one system call of a turn.
    fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        const GETEVENTS: u32 = 1;
        const EXT_ARG: u32 = 8;
        let (submitter, mut submission, completion) = self.ring.split();
        submission.sync();
        let to_submit = submission.len() as u32;
        let want = u32::from(wait != Some(Duration::ZERO) && completion.is_empty());
        let limit = wait.map(types::Timespec::from);
        let args = match &limit {
            Some(limit) => types::SubmitArgs::new().timespec(limit),
            None => types::SubmitArgs::new(),
        };
        // SAFETY: `args` is what EXT_ARG demands (`SubmitArgs` is transparent over it) and lives through the call; the
        // entries were pushed with their own proofs.
        match unsafe { submitter.enter(to_submit, want, GETEVENTS | EXT_ARG, Some(&args)) } {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Out of time, a signal, or results to be reaped first: what was not submitted is still queued.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Takes the results out of the ring; whether a wake was among them.
    fn reap(&mut self, completions: &mut Vec<Completion>) -> bool {
        let mut results = mem::take(&mut self.results);
        results.extend(self.ring.completion().map(|entry: cqueue::Entry| {
            let is_notification = cqueue::notif(entry.flags());
            let notified_later = cqueue::more(entry.flags()) && !is_notification;
            (entry.user_data(), Outcome { result: entry.result(), notified_later, is_notification })
        }));
        let mut woken = false;
        for (user_data, result) in results.drain(..) {
            match user_data & KIND_MASK {
                WAKE => {
                    self.wake_armed = false;
                    self.waker.heard();
                    woken = true;
                }
                CANCEL => {}
                kind => self.take_result(user_data & !KIND_MASK, result, kind == SYNC, completions),
            }
        }
        self.results = results;
        woken
    }

    fn take_result(&mut self, target: u64, result: Outcome, is_sync: bool, completions: &mut Vec<Completion>) {
        let index = target as u32;
        let slot = &mut self.slots[index as usize];
        assert_eq!(u64::from(slot.generation), target >> 32, "a slot is not reused while the kernel owes it a result");
        let token = slot.token;
        let mut next = slot.take_result(result, is_sync);
        if let Next::Written(count) = next {
            completions.push(Completion { token, result: Ok(count), carried: Carried::Nothing, more: true });
            // A zero-copy send that no notification follows ends at once.
            next = slot.take_end();
        }
        match next {
            Next::Wait | Next::Written(_) => {}
            Next::Again => self.queue.push_back(Queued::Slot(index)),
            Next::Done(result, carried) => {
                self.free.push(index);
                completions.push(Completion { token, result, carried, more: false });
            }
        }
    }

    /// Empties the registered-file slots whose descriptors are gone: only then does the kernel let go of the files.
    fn empty_released_files(&mut self) {
        let Some(files) = &self.files else { return };
        for slot in files.released() {
            if self.ring.submitter().register_files_update(slot, &[-1]).is_ok() {
                files.put_back(slot);
            }
        }
    }

    pub(super) fn register(&mut self, fd: &Fd) -> bool {
        let Some(files) = &self.files else { return false };
        if fd.slot_in(files).is_some() {
            return true;
        }
        let Some(slot) = files.take() else { return false };
        let done =
            self.ring.submitter().register_files_update(slot, &[fd.as_raw_fd()]).is_ok() && fd.set_slot(files, slot);
        if !done {
            files.release(slot);
        }
        done
    }

    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub(super) fn pool(&self) -> &BufPool {
        &self.pool
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn room(&self) -> usize {
        self.free.len()
    }

    pub(super) fn can_zero_copy(&self) -> bool {
        self.zero_copy
    }

    pub(super) fn report(&self) -> &DriverReport {
        &self.report
    }

    /// Whether the kernel may still touch memory of this driver.
    fn is_owed(&self) -> bool {
        self.wake_armed || self.slots.iter().any(Slot::is_owed)
    }
}

impl Drop for RingDriver {
    fn drop(&mut self) {
        let until = Instant::now() + DROP_WAIT;
        // What was never submitted is simply dropped; what was is asked to end.
        self.queue.clear();
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if slot.expecting > 0 {
                slot.cancelled = true;
                if slot.is_cancellable() {
                    self.queue.push_back(Queued::Cancel(user_data(index as u32, slot.generation)));
                }
            }
        }
        if self.wake_armed {
            self.queue.push_back(Queued::Cancel(WAKE));
        }
        let mut ended = Vec::new();
        while self.is_owed() {
            let left = until.saturating_duration_since(Instant::now());
            self.push_queue(&mut ended);
            let wait = if self.queue.is_empty() { left } else { Duration::ZERO };
            if left.is_zero() || self.enter(Some(wait)).is_err() {
                break;
            }
            self.reap(&mut ended);
            ended.clear();
        }
        if self.is_owed() {
            mem::forget(mem::take(&mut self.slots));
        } else {
            // SAFETY: made by `Box::into_raw`, and no read of the eventfd is in flight.
            drop(unsafe { Box::from_raw(self.wake_count) });
        }
    }
}

/// An operation's user data without its kind.
fn user_data(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}
