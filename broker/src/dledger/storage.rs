//! The log as the library wants to see it: owned entries that weigh what their frames weigh.

use std::collections::BTreeSet;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType};
use raft::{Error, GetEntriesContext, RaftState, StorageError};

use super::core::APPEND_BYTES;
use super::entry::{Conf, Descriptor, EntryLog, HardState, Kind};
use super::message::MAX_ENTRIES;

/// One byte of an entry's data stands for this many of its frame.
const WEIGHT: u32 = 64;
/// Data of entries: never read, only measured by the library's limits.
static WEIGHTS: [u8; 64 * 1024] = [0; 64 * 1024];

/// The library measures an entry by its data; a frame's bytes are not in it, so it gets data of a length that tells.
pub(super) fn weight(len: u32) -> usize {
    ((len / WEIGHT) as usize + 1).min(WEIGHTS.len())
}

/// The entry that the library sees for a frame. Without data of its own: no allocation.
pub(super) fn to_entry(d: &Descriptor) -> Entry {
    Entry {
        entry_type: match d.kind {
            Kind::Change => EntryType::EntryConfChange,
            Kind::Records | Kind::Empty | Kind::Tables => EntryType::EntryNormal,
        },
        index: d.index,
        term: d.term,
        data: Bytes::from_static(&WEIGHTS[..weight(d.len)]),
        ..Entry::default()
    }
}

pub(super) fn to_conf_state(conf: &Conf) -> ConfState {
    (conf.voters.iter().copied(), conf.learners.iter().copied()).into()
}

/// What the library's `Storage` is here.
pub(super) struct Storage<L> {
    pub(super) log: L,
    pub(super) hard: HardState,
    /// Changes of the membership that are in the log and not applied.
    pub(super) changes: BTreeSet<u64>,
    /// Changes of topics and groups that are in the log and of whose commit nobody was told.
    pub(super) tables: BTreeSet<u64>,
}

impl<L: EntryLog> Storage<L> {
    /// Over a log whose entries up to `hard.commit` are applied.
    pub(super) fn new(log: L, hard: HardState) -> Self {
        let (mut changes, mut tables) = (BTreeSet::new(), BTreeSet::new());
        for index in hard.commit + 1..=log.last_index() {
            match log.entry(index).map(|d| d.kind) {
                Some(Kind::Change) => changes.insert(index),
                Some(Kind::Tables) => tables.insert(index),
                _ => false,
            };
        }
        Self {
            log,
            hard,
            changes,
            tables,
        }
    }

    /// An entry that is not sent, of which only index, term and type are asked: known without the sidecar.
    fn outline(&self, index: u64) -> Option<Entry> {
        self.log.entry(index).as_ref().map(to_entry).or_else(|| {
            let kind = match self.changes.contains(&index) {
                true => Kind::Change,
                false => Kind::Records,
            };
            let (term, position, len) = (self.log.term(index)?, 0, 0);
            Some(to_entry(&Descriptor {
                index,
                term,
                position,
                len,
                kind,
            }))
        })
    }
}

impl<L: EntryLog> raft::Storage for Storage<L> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let mut state = RaftState::default();
        state.hard_state.term = self.hard.term;
        state.hard_state.vote = self.hard.vote;
        state.hard_state.commit = self.hard.commit;
        if let Some((_, conf)) = self.hard.conf() {
            state.conf_state = to_conf_state(conf);
        }
        Ok(state)
    }

    /// Up to about [`APPEND_BYTES`] of frames, one at least: what is asked for here goes into one message.
    fn entries(
        &self,
        low: u64,
        high: u64,
        _max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.log.base().index {
            return Err(Error::Store(StorageError::Compacted));
        }
        let unavailable = Error::Store(StorageError::LogTemporarilyUnavailable);
        if !context.can_async() {
            // What the library applies or looks through, without a bound of its own.
            return (low..high)
                .map(|index| self.outline(index))
                .collect::<Option<_>>()
                .ok_or(unavailable);
        }
        let mut entries = Vec::with_capacity((high - low).min(1024) as usize);
        let mut bytes = 0;
        for index in low..high {
            // Where the sidecar cannot be read, what is to be sent can wait.
            let Some(entry) = self.log.entry(index) else {
                return Err(unavailable);
            };
            bytes += u64::from(entry.len);
            if !entries.is_empty() && (bytes > APPEND_BYTES || entries.len() == MAX_ENTRIES) {
                break;
            }
            entries.push(to_entry(&entry));
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.log.base().index {
            return Err(Error::Store(StorageError::Compacted));
        }
        self.log
            .term(index)
            .ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.log.base().index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.log.last_index())
    }

    /// Metadata and the configuration at the log's beginning; what the log retains flows as entries after it.
    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<raft::eraftpb::Snapshot> {
        let base = self.log.base();
        let Some(conf) = self.hard.conf_at(base.index).filter(|_| base.index > 0) else {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let mut snapshot = raft::eraftpb::Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = base.index;
        metadata.term = base.term;
        metadata.set_conf_state(to_conf_state(conf));
        Ok(snapshot)
    }
}
