//! The log on disk, in Apache RocketMQ's own format: CommitLog, ConsumeQueue, IndexFile, checkpoint.
//!
//! No sockets and no async runtime. Nothing here blocks for long except where the name says so
//! (`open`, `get_message_cold`, `shutdown`); background threads belong to the [`Store`].

mod clock;
mod config;
mod error;
mod live;
mod put;
mod store;

mod frame;
mod record;
mod ring;
#[cfg(test)]
mod ring_tests;
mod segment;

mod consume_queue;
mod index_file;

mod get;
mod query;

mod checkpoint;
mod flush_mark;
mod kinds;
mod queue_table;
mod recovery;
mod retention;

mod disk;
mod platform;
mod slot_file;

mod handover;
mod signal;
mod sync;
mod waiters;

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;

pub use checkpoint::{boot_id, is_same_boot};
pub use clock::{Clock, SystemClock};
pub use config::{FlushDiskType, FrameConfig, StoreConfig};
pub use consume_queue::ConsumeQueue;
pub use disk::{Disk, RealDisk};
pub use error::{Error, NotWritable, PutError};
pub use frame::{EntryId, FRAME_HEADER, Frame, FrameStamp};
pub use get::{Filter, GetOutcome, GetRequest, GetResult, GetStatus, MessageFilter};
pub use platform::memory_bytes;
pub use put::{Appended, AppendedRecord, Arrival, PutMessage, TagsCode};
pub use slot_file::{SlotFile, replace_file};
pub use store::{
    ArrivalListener, Boundary, Confirm, LastStop, QueryResult, RuntimeFigures, Store,
    WatermarkListener, Watermarks, chain,
};
pub use waiters::Waiters;
