//! Frames, records, messages and names that two ringpair members exchange.
//!
//! Pure: bytes in, checked values out, and back. No IO, no clock, no thread, no unsafe. Everything that comes from
//! outside is bounded before it is believed; layouts and numbered rules stand in `SPEC.md`.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod client;
pub mod codec;
pub mod compress;
pub mod control;
pub mod control_codec;
pub mod ds;
pub mod dscp;
pub mod frame;
pub mod frame_builder;
mod frame_header;
pub mod heartbeat;
pub mod hello;
pub mod id;
pub mod lane;
pub mod mirror;
mod mirror_codec;
mod mirror_path;
pub mod probe;
pub mod record;
pub mod resync;
pub mod usual;

#[cfg(test)]
mod testing;
