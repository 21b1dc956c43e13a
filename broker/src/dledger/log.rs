//! The CommitLog as the group's log of entries, and the file of the state beside it.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use store::{EntryId, FRAME_HEADER, Frame, FrameStamp, LastStop, PutError, SlotFile, Store};

use super::entry::{Base, Descriptor, EntryLog, HardState, Kind, StateFile};
use super::gate::{Closed, Gate};

/// What the log holds at the start is on disk by then.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);
/// A disk that is behind gets so long before what comes is refused, and is given no more time for so long after that:
/// heartbeats and votes wait meanwhile.
const ROOM_PATIENCE: Duration = Duration::from_millis(50);
const ROOM_REST: Duration = Duration::from_millis(200);

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

/// The store behind the group. What the send path stamped but the group did not adopt yet lies behind its last entry.
pub struct StoreLog {
    store: Arc<Store>,
    /// Whether an entry counts once it is flushed, or once it is written.
    flushed: bool,
    last: u64,
    /// Index and end of entries that were not persisted when somebody last looked, ascending.
    unpersisted: VecDeque<(u64, u64)>,
    /// While there is no room: when somebody waited for it for the last time.
    refused: Option<Instant>,
}

impl StoreLog {
    /// Over a store that was just opened. What it holds becomes durable first, so that all of it counts.
    pub fn new(store: Arc<Store>, flushed: bool) -> io::Result<Self> {
        let end = store.written();
        if flushed && !store.wait_flushed(end, FLUSH_TIMEOUT) {
            return Err(io::Error::other("what the log holds could not be flushed"));
        }
        Ok(Self {
            last: store.last_entry().index,
            store,
            flushed,
            unpersisted: VecDeque::new(),
            refused: None,
        })
    }

    fn mark(&self) -> u64 {
        if self.flushed {
            self.store.flushed()
        } else {
            self.store.written()
        }
    }

    fn added(&mut self, index: u64, end: u64) {
        let mark = self.mark();
        while self.unpersisted.front().is_some_and(|e| e.1 <= mark) {
            self.unpersisted.pop_front();
        }
        self.last = index;
        self.unpersisted.push_back((index, end));
    }

    fn frame(&self, entry: &Descriptor) -> io::Result<Frame> {
        self.store
            .frame(entry.index)
            .map_err(failed)?
            .filter(|f| f.term == entry.term && f.position == entry.position)
            .ok_or_else(|| io::Error::other(format!("entry {} is not in the log", entry.index)))
    }
}

impl EntryLog for StoreLog {
    fn base(&self) -> Base {
        let EntryId { index, term } = self.store.compacted_entry();
        Base {
            index,
            term,
            position: self.store.min_phy_offset(),
        }
    }

    fn last_index(&self) -> u64 {
        self.last
    }

    fn term(&self, index: u64) -> Option<u64> {
        if index > self.last {
            return None;
        }
        self.store.entry_term(index).ok().flatten()
    }

    fn entry(&self, index: u64) -> Option<Descriptor> {
        if index > self.last {
            return None;
        }
        let frame = self.store.frame(index).ok().flatten()?;
        Some(Descriptor {
            index: frame.index,
            term: frame.term,
            position: frame.position,
            len: frame.len,
            kind: Kind::from_u8(u8::try_from(frame.kind).ok()?)?,
        })
    }

    fn read(&self, entry: &Descriptor, out: &mut Vec<u8>) -> io::Result<()> {
        let frame = self.frame(entry)?;
        self.store.read_frame(&frame, out).map_err(failed)
    }

    fn payload(&self, entry: &Descriptor) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read(entry, &mut bytes)?;
        Ok(bytes.split_off(FRAME_HEADER))
    }

    fn verify(&self, entry: &Descriptor, frame: &[u8]) -> bool {
        Frame::parse(frame).is_some_and(|f| {
            f.index == entry.index
                && f.term == entry.term
                && f.position == entry.position
                && f.len == entry.len
                && f.kind == u32::from(entry.kind as u8)
                && f.vouches_for(frame)
        })
    }

    fn has_room(&mut self, bytes: u64) -> bool {
        if !self.store.has_room(bytes) {
            // What was appended and not yet written is the first to make room.
            self.store.drive();
        }
        let rests = self.refused.is_some_and(|at| at.elapsed() < ROOM_REST);
        if !self.store.has_room(bytes) && !rests {
            self.store.wait_flushed(self.store.written(), ROOM_PATIENCE);
        }
        if self.store.has_room(bytes) {
            self.refused = None;
            return true;
        }
        if self.refused.is_none() {
            tracing::warn!("what the leader sends is refused: the disk is full, or too far behind");
        }
        if !rests {
            self.refused = Some(Instant::now());
        }
        false
    }

    fn append(&mut self, entry: &Descriptor, frame: &[u8]) -> io::Result<()> {
        let header = Frame::parse(frame).ok_or(io::ErrorKind::InvalidData)?;
        if !self.store.follows() {
            self.store.close_gate();
            self.store.follow_log().map_err(failed)?;
        }
        self.store.append_received(&header, frame).map_err(failed)?;
        self.added(entry.index, entry.end());
        Ok(())
    }

    fn append_own(
        &mut self,
        index: u64,
        term: u64,
        kind: Kind,
        payload: &[u8],
    ) -> io::Result<Descriptor> {
        let frame = self
            .store
            .append_entry(term, u32::from(kind as u8), payload)
            .map_err(failed)?;
        if frame.index != index {
            return Err(io::Error::other(format!(
                "entry {index} came to lie as entry {}",
                frame.index
            )));
        }
        self.added(index, frame.end());
        Ok(Descriptor {
            index,
            term,
            position: frame.position,
            len: frame.len,
            kind,
        })
    }

    fn adopt(&mut self, entry: &Descriptor) -> io::Result<()> {
        if entry.index != self.last + 1 {
            return Err(io::Error::other(format!(
                "entry {} does not follow entry {}",
                entry.index, self.last
            )));
        }
        // The one who appends it was counted first and may still be about to copy it.
        self.store.appended_up_to(entry.end());
        self.added(entry.index, entry.end());
        Ok(())
    }

    fn truncate_from(&mut self, index: u64) -> io::Result<()> {
        self.store.close_gate();
        self.store.truncate_from(index).map_err(failed)?;
        self.last = self.last.min(index.saturating_sub(1));
        while self.unpersisted.back().is_some_and(|e| e.0 >= index) {
            self.unpersisted.pop_back();
        }
        Ok(())
    }

    fn reset(&mut self, base: Base) -> io::Result<()> {
        let entry = EntryId {
            index: base.index,
            term: base.term,
        };
        self.store
            .start_after(entry, base.position)
            .map_err(failed)?;
        self.last = base.index;
        self.unpersisted.clear();
        Ok(())
    }

    fn persisted(&self) -> u64 {
        let mark = self.mark();
        let done = self.unpersisted.partition_point(|e| e.1 <= mark);
        match self.unpersisted.get(done) {
            Some((index, _)) => index - 1,
            None => self.last,
        }
    }
}

/// Tells the group of each frame that the send path makes.
pub(super) struct Stamper {
    pub(super) gate: Arc<Gate>,
    pub(super) wake: Box<dyn Fn() + Send + Sync>,
}

impl FrameStamp for Stamper {
    fn stamp(&self, entry: EntryId, kind: u32, position: u64, len: u32) -> Result<(), PutError> {
        let kind = u8::try_from(kind).ok().and_then(Kind::from_u8);
        let kind = kind.ok_or(PutError::NotLeader)?;
        let stamped = self
            .gate
            .stamp_as(entry.term, entry.index, kind, position, len)
            .map_err(|why| match why {
                Closed::NotLeader => PutError::NotLeader,
                Closed::Paused => PutError::Busy("the group changes its members or its leader"),
                Closed::Full => PutError::Busy("too much waits for the others of the group"),
            })?;
        if stamped.wake {
            (self.wake)();
        }
        Ok(())
    }
}

/// What a member's state file says of its last life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// What must not be forgotten.
    pub hard: HardState,
    /// A position up to which the log was committed then.
    pub committed: u64,
    /// In which run of the kernel it lived.
    boot_id: [u8; 16],
    /// Whether it acknowledged what is on disk only.
    flushed: bool,
}

impl Saved {
    /// Whether the log, which was found to end at `end`, may lack something that this member acknowledged: what was in
    /// memory only and may be gone, or what is known to be committed and is not there. The store's own notes alone do not
    /// tell: they are not on disk as early as a vote is, and know no flush mode.
    pub fn may_have_lost(&self, last_stop: LastStop, end: u64) -> bool {
        let memory_lost = match last_stop {
            LastStop::Clean => false,
            LastStop::Killed => !store::is_same_boot(&self.boot_id),
            LastStop::PowerLost => true,
        };
        (memory_lost && !self.flushed) || end < self.committed
    }
}

/// `<folder of the log>/state`: the state that is durable before a message leaves, and a position up to which the log
/// was committed when it was written, so that a restart need not build its queues anew.
///
/// | committed position 8 | run of the kernel 16 | SYNC_FLUSH 1 | the state |
pub struct FileState {
    folder: PathBuf,
    file: SlotFile,
    committed: Arc<AtomicU64>,
    store: Arc<Store>,
    boot_id: [u8; 16],
    flushed: bool,
}

fn state_path(folder: &Path) -> PathBuf {
    folder.join("state")
}

impl FileState {
    /// The file's place. `committed`, a position in `store`, is read at each save; `flushed` is whether this life
    /// acknowledges what is on disk only.
    pub fn new(folder: &Path, committed: Arc<AtomicU64>, store: Arc<Store>, flushed: bool) -> Self {
        Self {
            folder: folder.to_owned(),
            file: SlotFile::new(state_path(folder)),
            committed,
            store,
            boot_id: store::boot_id(),
            flushed,
        }
    }

    /// What the file of this folder says; none where there is none.
    pub fn load(folder: &Path) -> io::Result<Option<Saved>> {
        let path = state_path(folder);
        let damaged = || {
            io::Error::other(format!(
                "{} is damaged: empty the member's volume, and it rejoins",
                path.display()
            ))
        };
        match SlotFile::read(&path) {
            Ok(Some(bytes)) => decode(&bytes).map(Some).ok_or_else(damaged),
            Ok(None) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(damaged()),
            Err(e) => Err(e),
        }
    }
}

fn decode(bytes: &[u8]) -> Option<Saved> {
    let (position, rest) = bytes.split_first_chunk::<8>()?;
    let (boot_id, rest) = rest.split_first_chunk::<16>()?;
    let (flushed, state) = rest.split_first_chunk::<1>()?;
    Some(Saved {
        hard: HardState::decode(state)?,
        committed: u64::from_be_bytes(*position),
        boot_id: *boot_id,
        flushed: flushed == &[1],
    })
}

impl StateFile for FileState {
    fn save(&mut self, state: &HardState) -> io::Result<()> {
        // Others may have committed what this member has in memory only. That it is not there after a power cut must not
        // look as if something that this member promised were lost.
        let kept = match self.flushed {
            true => self.store.flushed(),
            false => self.store.written(),
        };
        let committed = self.committed.load(Ordering::Acquire).min(kept);
        let mut bytes = committed.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.boot_id);
        bytes.push(u8::from(self.flushed));
        bytes.extend_from_slice(&state.encode());
        fs::create_dir_all(&self.folder)?;
        self.file.save(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::{Conf, Standing};
    use super::*;

    /// A log that is written and on disk up to this position.
    fn log_up_to(position: u64, folder: &Path) -> Arc<Store> {
        let mut config = store::StoreConfig::new(folder.join("store"));
        config.segment_size = 4096;
        config.message_index_enable = false;
        let store = Store::open(config, Arc::new(store::SystemClock)).unwrap();
        store.start_at(position).unwrap();
        store
    }

    fn saved(folder: &Path, flushed: bool) -> Saved {
        let hard = HardState {
            term: 3,
            vote: 2,
            commit: 70,
            standing: Standing::Sound,
            session: 9,
            confs: vec![(0, Conf::of_voters([(1, "a:1".to_owned())]))],
        };
        let committed = Arc::new(AtomicU64::new(4096));
        let log = tempfile::tempdir().unwrap();
        let store = log_up_to(8192, log.path());
        let mut file = FileState::new(folder, committed, store, flushed);
        file.save(&hard).unwrap();
        let saved = FileState::load(folder).unwrap().unwrap();
        assert_eq!((&saved.hard, saved.committed), (&hard, 4096));
        saved
    }

    /// Others may have committed more than this member has on disk: to lose that in a power cut is no reason to doubt it.
    #[test]
    fn no_more_is_said_to_be_committed_than_this_member_promised_itself() {
        let dir = tempfile::tempdir().unwrap();
        let hard = saved(dir.path(), true).hard;
        for flushed in [false, true] {
            let log = tempfile::tempdir().unwrap();
            let store = log_up_to(4096, log.path());
            let committed = Arc::new(AtomicU64::new(20_000));
            let mut file = FileState::new(dir.path(), committed, store, flushed);
            file.save(&hard).unwrap();
            let saved = FileState::load(dir.path()).unwrap().unwrap();
            assert_eq!(saved.committed, 4096);
            assert!(!saved.may_have_lost(LastStop::Clean, 4096));
        }
    }

    #[test]
    fn what_was_in_memory_only_is_lost_with_the_machine_whatever_the_flush_mode_is_now() {
        let dir = tempfile::tempdir().unwrap();
        let lost = |saved: &Saved, stop| saved.may_have_lost(stop, 5000);
        let mut asynchronous = saved(dir.path(), false);
        assert!(!lost(&asynchronous, LastStop::Killed));
        assert!(lost(&asynchronous, LastStop::PowerLost), "its disk failed");
        asynchronous.boot_id[0] ^= 1;
        assert!(
            lost(&asynchronous, LastStop::Killed),
            "the store cannot know yet"
        );
        assert!(
            !lost(&asynchronous, LastStop::Clean),
            "before the machine went down"
        );
        let mut synchronous = saved(dir.path(), true);
        synchronous.boot_id[0] ^= 1;
        assert!(
            !lost(&synchronous, LastStop::PowerLost),
            "all of it was on disk"
        );
    }

    #[test]
    fn a_log_that_ends_before_what_was_committed_has_lost_something() {
        let dir = tempfile::tempdir().unwrap();
        for flushed in [false, true] {
            let saved = saved(dir.path(), flushed);
            assert!(saved.may_have_lost(LastStop::Clean, 4095));
            assert!(!saved.may_have_lost(LastStop::Clean, 4096));
        }
    }

    #[test]
    fn a_damaged_state_is_refused_and_none_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(FileState::load(dir.path()).unwrap(), None);
        saved(dir.path(), false);
        let path = state_path(dir.path());
        let bytes = fs::read(&path).unwrap();
        let used = bytes.iter().rposition(|b| *b != 0).unwrap();
        for at in 0..=used {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            assert!(FileState::load(dir.path()).is_err(), "byte {at}");
            fs::write(&path, &bytes[..at]).unwrap();
            assert!(FileState::load(dir.path()).is_err(), "cut at {at}");
        }
    }
}
