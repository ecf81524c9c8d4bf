//! The decisions of a ringpair member, without clock, disk, socket or thread.
//!
//! [`Node`] is one worker's core: every rule of protocol.md about epochs, the right to promote, the lease, silence,
//! promotion, start, switch, acknowledgements and the follower's way back. The shell (or the simulator) feeds it
//! inputs, each with the present time, and carries out the [`Effect`]s that [`Node::poll_effect`] hands out, in order.
//!
//! Always: the same inputs give the same effects. What depends on a persisted state is handed out only after that
//! state's [`Completion::Persisted`]. Never: a clock read, a random number, an order taken from a hash table.
#![forbid(unsafe_code)]

pub mod acks;
pub mod config;
pub mod effect;
pub mod election;
pub mod epochs;
pub mod event;
mod follow;
mod grant;
mod heartbeat;
pub mod input;
mod invariants;
mod lead;
pub mod lease;
pub mod node;
pub mod persisted;
mod promotion;
pub mod roles;
mod silence;
pub mod status;
pub mod supervisor;
mod switch;
pub mod time;
mod timer;

pub use config::Config;
pub use effect::Effect;
pub use event::Event;
pub use input::{Command, Completion, Evidence, FrameMeta, Start};
pub use node::Node;
pub use persisted::Persisted;
pub use time::Instant;
