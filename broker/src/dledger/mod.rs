//! A broker group that elects its own master: the Raft log **is** the CommitLog.
//!
//! A Raft entry is one frame of the CommitLog: a 48-byte header and the records behind it. The library (`raft`) only
//! ever sees what [`entry::Descriptor`] tells about a frame (index, term, weight); the bytes stay in the log and travel
//! beside the descriptors.
//!
//! [`core::Member`] decides, and has neither clock, socket, thread nor file of its own; it works on an
//! [`entry::EntryLog`] and an [`entry::StateFile`], over a store or over the simulated disk of the tests.
//! [`gate::Gate`] is all that the send path sees of it. No decoder of the library's ever reads bytes of the network or
//! of the disk: [`message`] and [`entry`] have bounded codecs of their own.

pub mod core;
pub mod entry;
pub mod gate;
mod greeting;
mod health;
pub mod log;
pub mod message;
mod metrics;
mod peers;
pub mod service;
pub mod tables;

mod storage;
pub mod transport;
