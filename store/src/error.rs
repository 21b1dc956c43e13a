use std::io;
use std::path::PathBuf;

/// Why a store did not open, or an operation on its files failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the store {0} is in use by another process")]
    Locked(PathBuf),
    /// A store of a kind that this broker does not serve; the text says which and what to do.
    #[error("{0}")]
    Unsupported(String),
    /// Files that contradict each other in a way recovery must not guess about.
    #[error("{0}")]
    Damaged(String),
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    NotWritable(#[from] NotWritable),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }

    /// A write found no room: it may be tried again. Not a sync, after which what it was to write is gone.
    pub(crate) fn is_disk_full(&self) -> bool {
        let Self::Io { action, source, .. } = self else {
            return false;
        };
        let full = matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        );
        full && *action != "sync"
    }
}

/// Why the store takes no writes at the moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotWritable {
    /// Over `diskSpaceWarningLevelRatio`, or the file system said so; clears by itself.
    #[error("the disk is full: {0}")]
    DiskFull(String),
    /// A write or fdatasync failed. Only a restart, which recovers from disk, leads out.
    #[error("the store is poisoned: {0}")]
    Poisoned(String),
    #[error("the store is shut down")]
    Shutdown,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    #[error(transparent)]
    NotWritable(#[from] NotWritable),
    /// Flow control: the tail ring, or what waits for write-back, is at its bound.
    #[error("the store is busy: {0}")]
    Busy(&'static str),
    /// The log of a group is written by its leader alone, and this is not it, or not now.
    #[error("this member does not lead its group")]
    NotLeader,
    #[error("record of {size} bytes exceeds {limit}")]
    MessageTooLarge { size: usize, limit: usize },
    #[error("topic of {0} bytes exceeds 255")]
    TopicTooLong(usize),
    #[error("properties of {0} bytes exceed 32767")]
    PropertiesTooLong(usize),
    /// `append_raw` at a position that is not the end of the log.
    #[error("append at {position}, but the log ends at {end}")]
    WrongPosition { position: u64, end: u64 },
}
