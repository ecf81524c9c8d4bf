//! Answering the peer for a dead worker: one short-lived thread a connection, told by the loop what to say.
//!
//! Always: the peer counts as having dialled only once its connection is authenticated; strangers are bounded in number
//! and time, and the oldest gives way (OPS-095). Never: a decision, or a word that the loop did not order.
#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use ringpair_core::supervisor::PeerLink;
use ringpair_wire::control::Control;
use ringpair_wire::id::Position;
use tracing::{debug, info, warn};

/// Connections answered at one time.
pub const MAX_CONNECTIONS: usize = 32;
/// How long a stranger may take until it is authenticated.
pub const STRANGER_TIME: Duration = Duration::from_secs(2);
/// How long a silent peer may take to close its end after the last word, and how often it may talk meanwhile.
const LEAVE_TIME: Duration = Duration::from_millis(500);
const LEAVE_READS: usize = 16;
/// The stack of an answering thread: resident, since the supervisor's memory is locked.
const STACK_BYTES: usize = 512 * 1024;

/// An authenticated lane of the peer: ping, or ds, which alone carries frames.
pub trait Session: AsFd + Send {
    /// Whether it is a ds lane.
    fn carries_frames(&self) -> bool;
    /// Sends a control message.
    ///
    /// # Errors
    /// If the connection fails or does not take it in time.
    fn send(&mut self, message: &Control) -> io::Result<()>;
    /// Sends a frame of the journal, as it lies there.
    ///
    /// # Errors
    /// As [`Self::send`].
    fn send_frame(&mut self, frame: &[u8]) -> io::Result<()>;
    /// The next control message that has arrived whole; `None`: there is none yet. Does not wait.
    ///
    /// # Errors
    /// If the connection ended, failed, or carried something else.
    fn receive(&mut self) -> io::Result<Option<Control>>;
    /// Says goodbye, after everything that was sent.
    fn finish(&mut self);
}

/// What makes a session of an accepted connection.
pub trait Door: Send + Sync {
    /// Authenticates the connection within `time`; only a ping or ds lane of the peer becomes a session.
    ///
    /// # Errors
    /// If it is anything else.
    fn open(&self, stream: TcpStream, time: Duration) -> io::Result<Box<dyn Session>>;
}

/// The dead worker's journal, for its tail.
pub trait Tail: Send + Sync {
    /// Sends every frame after this position to `send`; returns the end, or `None` where the position is unknown or gone.
    ///
    /// # Errors
    /// If the journal cannot be read or the frames not be sent.
    fn serve(&self, after: &Position, send: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<Option<Position>>;
}

/// What happened on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerEvent {
    /// The peer is there, authenticated.
    Dialed(PeerLink),
    /// It left.
    Left(PeerLink),
    /// It has the tail.
    TailServed(PeerLink),
}

impl AnswerEvent {
    /// Where it happened.
    #[must_use]
    pub const fn link(self) -> PeerLink {
        match self {
            Self::Dialed(link) | Self::Left(link) | Self::TailServed(link) => link,
        }
    }
}

#[derive(Debug)]
enum Report {
    Event(AnswerEvent),
    /// It is the peer's ds lane.
    Frames(PeerLink),
    Gone(PeerLink),
}

/// What a thread is told.
#[derive(Clone, Debug)]
enum Order {
    Say(Control),
    /// The release is persisted: the tail may be served.
    Released,
}

/// What a connection is known to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Stranger,
    Ping,
    Ds,
}

#[derive(Debug)]
struct Conn {
    link: PeerLink,
    stream: TcpStream,
    lane: Lane,
    told: bool,
    orders: Sender<Order>,
    bell: Arc<EventFd>,
}

impl Conn {
    fn order(&self, order: Order) {
        // A thread that has ended takes no more orders: its `Gone` is on its way.
        let _ = self.orders.send(order);
        let _ = self.bell.write(1);
    }
}

/// The connections that are being answered.
pub struct Answers {
    door: Arc<dyn Door>,
    tail: Arc<dyn Tail>,
    conns: Vec<Conn>,
    released: Option<Control>,
    next_link: u64,
    reports: Receiver<Report>,
    reporter: Sender<Report>,
    bell: Arc<EventFd>,
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").field("conns", &self.conns).finish_non_exhaustive()
    }
}

impl Answers {
    /// Answers through `door`, with the tail of `tail`.
    ///
    /// # Errors
    /// If the system has no event descriptor left.
    pub fn new(door: Arc<dyn Door>, tail: Arc<dyn Tail>) -> io::Result<Self> {
        let (reporter, reports) = channel();
        Ok(Self { door, tail, conns: Vec::new(), released: None, next_link: 0, reports, reporter, bell: bell()? })
    }

    /// Whether another connection can be taken: strangers give way, the peer does not.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.conns.len() < MAX_CONNECTIONS
    }

    /// Takes an accepted connection. The last free place is won by the newest: the oldest stranger gives way.
    pub fn answer(&mut self, stream: TcpStream) {
        if let Err(error) = self.try_answer(stream) {
            warn!(%error, "a connection cannot be answered");
        }
        if !self.has_room()
            && let Some(oldest) = self.conns.iter().find(|conn| conn.lane == Lane::Stranger)
        {
            // Its thread fails on the closed connection and reports itself gone.
            let _ = oldest.stream.shutdown(Shutdown::Both);
        }
    }

    fn try_answer(&mut self, stream: TcpStream) -> io::Result<()> {
        let link = PeerLink(self.next_link);
        self.next_link += 1;
        let (orders, ordered) = channel();
        let thread_bell = bell()?;
        let conn = Conn {
            link,
            stream: stream.try_clone()?,
            lane: Lane::Stranger,
            told: false,
            orders,
            bell: thread_bell.clone(),
        };
        let thread = Thread {
            link,
            door: Arc::clone(&self.door),
            tail: Arc::clone(&self.tail),
            ordered,
            bell: thread_bell,
            reporter: self.reporter.clone(),
            main_bell: Arc::clone(&self.bell),
        };
        thread::Builder::new().name("answer".into()).stack_size(STACK_BYTES).spawn(move || thread.run(stream))?;
        self.conns.push(conn);
        Ok(())
    }

    /// The next thing that happened, if any.
    pub fn next_event(&mut self) -> Option<AnswerEvent> {
        let _ = self.bell.read();
        loop {
            match self.reports.try_recv() {
                // A late report of a closed connection names a link that nobody has any more.
                Ok(Report::Event(event)) => {
                    if let Some(conn) = self.conns.iter_mut().find(|conn| conn.link == event.link()) {
                        if conn.lane == Lane::Stranger {
                            conn.lane = Lane::Ping;
                        }
                        return Some(event);
                    }
                }
                Ok(Report::Frames(link)) => {
                    if let Some(conn) = self.conns.iter_mut().find(|conn| conn.link == link) {
                        conn.lane = Lane::Ds;
                    }
                    self.tell_released();
                }
                Ok(Report::Gone(link)) => self.conns.retain(|conn| conn.link != link),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return None,
            }
        }
    }

    /// Says this on one connection.
    pub fn say(&self, link: PeerLink, message: Control) {
        if let Some(conn) = self.conns.iter().find(|conn| conn.link == link) {
            conn.order(Order::Say(message));
        }
    }

    /// Says the release on every authenticated connection that has not heard it, those to come included.
    pub fn release(&mut self, message: Control) {
        self.released = Some(message);
        self.tell_released();
    }

    fn tell_released(&mut self) {
        let Some(message) = &self.released else { return };
        for conn in self.conns.iter_mut().filter(|conn| conn.lane != Lane::Stranger && !conn.told) {
            conn.told = true;
            // First, so that the thread knows what the peer's answer means, however fast it comes.
            conn.order(Order::Released);
            if conn.lane == Lane::Ping {
                conn.order(Order::Say(message.clone()));
            }
        }
    }

    /// Connections to come are authenticated by this.
    pub fn set_door(&mut self, door: Arc<dyn Door>) {
        self.door = door;
    }

    /// Ends every connection; what was ordered before is still said.
    pub fn close(&mut self) {
        self.released = None;
        for conn in self.conns.drain(..) {
            drop(conn.orders);
            let _ = conn.bell.write(1);
            if conn.lane == Lane::Stranger {
                let _ = conn.stream.shutdown(Shutdown::Both);
            }
        }
    }
}

impl AsFd for Answers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Lets the peer read the last words: closing with its own words unread would reset the connection under them.
fn take_leave(mut stream: &TcpStream) {
    let mut unread = [0; 4096];
    let ready = stream
        .shutdown(Shutdown::Write)
        .and_then(|()| stream.set_nonblocking(false))
        .and_then(|()| stream.set_read_timeout(Some(LEAVE_TIME)));
    if ready.is_ok() {
        // A peer that goes on talking is cut off: it has had its time.
        (0..LEAVE_READS).take_while(|_| matches!(stream.read(&mut unread), Ok(length) if length > 0)).for_each(drop);
    }
}

fn bell() -> io::Result<Arc<EventFd>> {
    Ok(Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
}

/// One answering thread.
struct Thread {
    link: PeerLink,
    door: Arc<dyn Door>,
    tail: Arc<dyn Tail>,
    ordered: Receiver<Order>,
    bell: Arc<EventFd>,
    reporter: Sender<Report>,
    main_bell: Arc<EventFd>,
}

impl Thread {
    fn run(self, stream: TcpStream) {
        let opened = stream.try_clone().and_then(|ours| Ok((self.door.open(stream, STRANGER_TIME)?, ours)));
        match opened {
            Ok((mut session, ours)) => {
                let frames = session.carries_frames();
                self.report(if frames {
                    Report::Frames(self.link)
                } else {
                    Report::Event(AnswerEvent::Dialed(self.link))
                });
                if let Err(error) = self.converse(session.as_mut()) {
                    info!(%error, "the peer left the dead worker's supervisor");
                }
                if !frames {
                    self.report(Report::Event(AnswerEvent::Left(self.link)));
                }
                session.finish();
                take_leave(&ours);
            }
            Err(error) => debug!(%error, "a stranger dialled the dead worker's supervisor"),
        }
        self.report(Report::Gone(self.link));
    }

    fn report(&self, report: Report) {
        // Nobody listens once the supervisor ends.
        let _ = self.reporter.send(report);
        let _ = self.main_bell.write(1);
    }

    /// Says what is ordered and serves the tail, until the loop ends the connection or the peer does.
    fn converse(&self, session: &mut dyn Session) -> io::Result<()> {
        let (mut wanted, mut released) = (None, false);
        loop {
            let _ = self.bell.read();
            loop {
                match self.ordered.try_recv() {
                    Ok(Order::Say(message)) => session.send(&message)?,
                    Ok(Order::Released) => released = true,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
            while let Some(message) = session.receive()? {
                match message {
                    Control::FetchTail { after } => wanted = Some(after),
                    // The peer has promoted itself: it has, or does without, what it lacked.
                    Control::Announce { .. } if released => {
                        self.report(Report::Event(AnswerEvent::TailServed(self.link)))
                    }
                    _ => {}
                }
            }
            if let Some(after) = wanted.take_if(|_| released) {
                self.serve_tail(session, &after)?;
            }
            let mut fds =
                [PollFd::new(session.as_fd(), PollFlags::POLLIN), PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn serve_tail(&self, session: &mut dyn Session, after: &Position) -> io::Result<()> {
        // A ping lane carries no frames (W-51): it answers that the tail is to be had on the ds lane.
        let served = if session.carries_frames() {
            self.tail.serve(after, &mut |frame| session.send_frame(frame))?
        } else {
            None
        };
        let end = Control::TailEnd { end: served.unwrap_or(*after), served: served.is_some() };
        session.send(&end)?;
        if served.is_some() {
            self.report(Report::Event(AnswerEvent::TailServed(self.link)));
        }
        Ok(())
    }
}
