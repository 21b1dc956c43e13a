//! A Raft log inside the CommitLog: every entry is one frame, a 48-byte header and then the records of one batch.
//!
//! | field | size | | field | size |
//! |---|---|---|---|---|
//! | magic | 4 | | position | 8 |
//! | size, header included | 4 | | kind | 4 |
//! | index | 8 | | CRC of the rest of the header | 4 |
//! | term | 8 | | CRC of the body | 4 |
//! | | | | size of the body | 4 |
//!
//! The layout is that of upstream's DLedger, whose entries hold one record each; the magic is our own, so that neither
//! broker takes the other's log for its own. Indices rise by one, terms never fall, a frame never crosses a segment:
//! each segment begins with one. What [`FrameTable`] holds and the files `<segment>.frames` say can be built from the
//! log again; only `compacted`, index and term of the last entry
//! that retention took, cannot.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, PutError};
use crate::record::{i32_at, i64_at};
use crate::segment::{Segments, file_name};
use crate::slot_file::SlotFile;

/// Bytes in front of an entry's body.
pub const FRAME_HEADER: usize = 48;
/// Negative as a number, so that no record, which begins with its size, looks like it.
const FRAME_MAGIC: i32 = i32::from_be_bytes([0xD1, b'R', b'C', 0x01]);
const HEADER_CRC_AT: usize = 36;
/// The newest frames are kept whole in memory.
const RECENT_FRAMES: usize = 16 << 10;
/// Segments besides the last whose table is kept in memory.
const LOADED_SEGMENTS: usize = 2;
/// One read of a walk over headers.
const WALK_BUFFER: usize = 1 << 20;

/// One entry of the Raft log, without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Rises by one from entry to entry.
    pub index: u64,
    /// Of the leader that made it.
    pub term: u64,
    /// Where its header begins.
    pub position: u64,
    /// Header and body.
    pub len: u32,
    /// [`Frame::RECORDS`] for messages; the others belong to whoever keeps the Raft log.
    pub kind: u32,
    /// CRC-32 of the body.
    pub crc: u32,
}

impl Frame {
    /// The body is a batch of records; every other kind is skipped by queues and index.
    pub const RECORDS: u32 = 0;

    /// Position after its last byte.
    pub fn end(&self) -> u64 {
        self.position + u64::from(self.len)
    }

    /// The header's bytes.
    pub fn header(&self) -> [u8; FRAME_HEADER] {
        let mut out = [0; FRAME_HEADER];
        out[..4].copy_from_slice(&FRAME_MAGIC.to_be_bytes());
        out[4..8].copy_from_slice(&self.len.to_be_bytes());
        out[8..16].copy_from_slice(&self.index.to_be_bytes());
        out[16..24].copy_from_slice(&self.term.to_be_bytes());
        out[24..32].copy_from_slice(&self.position.to_be_bytes());
        out[32..36].copy_from_slice(&self.kind.to_be_bytes());
        out[40..44].copy_from_slice(&self.crc.to_be_bytes());
        out[44..48].copy_from_slice(&(self.len - FRAME_HEADER as u32).to_be_bytes());
        let crc = header_crc(&out);
        out[HEADER_CRC_AT..HEADER_CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// The header at the begin of `bytes`, if a whole and true one stands there.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..FRAME_HEADER)?;
        let u32_at = |at| Some(i32_at(bytes, at)? as u32);
        let u64_at = |at| Some(i64_at(bytes, at)? as u64);
        let frame = Self {
            index: u64_at(8)?,
            term: u64_at(16)?,
            position: u64_at(24)?,
            len: u32_at(4)?,
            kind: u32_at(32)?,
            crc: u32_at(40)?,
        };
        let true_header = begins_frame(bytes)
            && frame.len as usize >= FRAME_HEADER
            && u32_at(44)? == frame.len - FRAME_HEADER as u32
            && u32_at(HEADER_CRC_AT)? == header_crc(bytes);
        true_header.then_some(frame)
    }

    /// Whether these are this frame's header and the body that it vouches for.
    pub fn vouches_for(&self, bytes: &[u8]) -> bool {
        bytes.len() == self.len as usize
            && Self::parse(bytes) == Some(*self)
            && crc32fast::hash(&bytes[FRAME_HEADER..]) == self.crc
    }
}

fn header_crc(header: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[..HEADER_CRC_AT]);
    crc.update(&header[HEADER_CRC_AT + 4..FRAME_HEADER]);
    crc.finalize()
}

/// Whether a frame and not a record begins here.
pub(crate) fn begins_frame(bytes: &[u8]) -> bool {
    i32_at(bytes, 0) == Some(FRAME_MAGIC)
}

/// Index and term of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryId {
    pub index: u64,
    pub term: u64,
}

/// Asked under the append lock before a batch becomes a frame: whoever leads the group counts it, or refuses it.
pub trait FrameStamp: Send + Sync {
    /// The frame of `entry`, of this kind, will lie at `position` and have `len` bytes; nothing can fail after this.
    fn stamp(&self, entry: EntryId, kind: u32, position: u64, len: u32) -> Result<(), PutError>;
}

/// Where each entry is. Everything but `compacted` is a cache of the log.
pub(crate) struct FrameTable {
    log: Arc<Segments>,
    /// Held while files of tables, or `compacted`, are written or removed: what is written must still be true then.
    /// Taken before `inner`.
    files: Mutex<Compacted>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The last entry before the first that is there.
    compacted: EntryId,
    last: EntryId,
    segments: VecDeque<SegmentFrames>,
    recent: VecDeque<Frame>,
}

struct SegmentFrames {
    base: u64,
    first: EntryId,
    /// Where each frame begins, from `base`; of the last segment always, of others while they are asked for.
    offsets: Option<Vec<u32>>,
    /// How many of them the file holds.
    saved: usize,
    count: usize,
}

/// Before recovery: finishes what `compacted` says was begun, and places an empty log.
pub(crate) fn prepare(log: &Segments) -> Result<Compacted, Error> {
    let file = Compacted::open(log.dir())?;
    let (compacted, position) = (file.entry, file.position);
    let bases: Vec<u64> = log.all().iter().map(|s| s.base).collect();
    let mut begins = Vec::new();
    for base in bases {
        begins.extend(frame_at(log, base)?);
    }
    let Some(first) = begins.first() else {
        if position > 0 {
            log.clear(position)?;
        }
        return Ok(file);
    };
    if first.index > compacted.index {
        return Ok(file);
    }
    if !begins.iter().any(|f| f.index == compacted.index + 1) {
        // A log that the leader no longer continued was being given up.
        log.clear(position)?;
        return Ok(file);
    }
    // Retention wrote down what it was about to take.
    for gone in begins.iter().take_while(|f| f.index <= compacted.index) {
        log.remove_first()?;
        remove(&log.dir().join(sidecar_name(gone.position)))?;
    }
    Ok(file)
}

/// Where the last entry of a log that was scanned up to `end` ends. Padding behind it, with no entry in the next file,
/// does not count: where the next entry begins must follow from the last one alone, or members would disagree about it.
pub(crate) fn unpadded_end(log: &Segments, end: u64) -> Result<u64, Error> {
    if !end.is_multiple_of(log.size()) || end <= log.min() {
        return Ok(end);
    }
    let base = end - log.size();
    let Some(first) = frame_at(log, base)? else {
        return Ok(end);
    };
    let (offsets, _) = load(log, base, first.index, Some(end))?;
    let last = base + u64::from(offsets.last().copied().unwrap_or(0));
    Ok(frame_at(log, last)?.map_or(end, |f| f.end()))
}

impl FrameTable {
    /// For a log that ends at `end`, a frame's border.
    pub(crate) fn open(log: Arc<Segments>, file: Compacted, end: u64) -> Result<Self, Error> {
        let compacted = file.entry;
        let mut inner = Inner {
            compacted,
            last: compacted,
            ..Inner::default()
        };
        let bases: Vec<u64> = log
            .all()
            .iter()
            .map(|s| s.base)
            .filter(|base| *base < end)
            .collect();
        for &base in &bases {
            let first = frame_at(&log, base)?.ok_or_else(|| {
                Error::Damaged(format!(
                    "log file {} does not begin with an entry",
                    log.dir().join(file_name(base)).display()
                ))
            })?;
            inner.segments.push_back(SegmentFrames {
                base,
                first: EntryId {
                    index: first.index,
                    term: first.term,
                },
                offsets: None,
                saved: 0,
                count: 0,
            });
        }
        for i in 1..inner.segments.len() {
            let (before, after) = (
                inner.segments[i - 1].first.index,
                inner.segments[i].first.index,
            );
            if after <= before {
                return Err(Error::Damaged(format!(
                    "log file {} begins with entry {after}, the one before it with {before}",
                    file_name(inner.segments[i].base)
                )));
            }
            inner.segments[i - 1].count = (after - before) as usize;
        }
        if let Some(first) = inner.segments.front()
            && first.first.index != compacted.index + 1
        {
            return Err(Error::Damaged(format!(
                "the log begins with entry {}, but those up to {} were given up",
                first.first.index, compacted.index
            )));
        }
        if let Some(segment) = inner.segments.back_mut() {
            let (offsets, saved) = load(&log, segment.base, segment.first.index, Some(end))?;
            let last_at = segment.base + u64::from(offsets.last().copied().unwrap_or(0));
            let last = frame_at(&log, last_at)?
                .filter(|f| f.end() == end || (f.end() < end && end == segment.base + log.size()))
                .ok_or_else(|| Error::Damaged(format!("no entry ends at {end}")))?;
            inner.last = EntryId {
                index: last.index,
                term: last.term,
            };
            segment.count = offsets.len();
            segment.saved = saved;
            segment.offsets = Some(offsets);
        }
        Ok(Self {
            log,
            files: Mutex::new(file),
            inner: Mutex::new(inner),
        })
    }

    /// Index and term of the last entry.
    pub(crate) fn last(&self) -> EntryId {
        self.inner.lock().last
    }

    /// Index and term of the last entry that retention, or a snapshot, stands for.
    pub(crate) fn compacted(&self) -> EntryId {
        self.inner.lock().compacted
    }

    /// Notes a frame that was just appended; under the append lock.
    pub(crate) fn push(&self, frame: Frame) {
        let mut inner = self.inner.lock();
        debug_assert_eq!(frame.index, inner.last.index + 1);
        let id = EntryId {
            index: frame.index,
            term: frame.term,
        };
        let base = frame.position - frame.position % self.log.size();
        if inner.segments.back().is_none_or(|s| s.base != base) {
            inner.segments.push_back(SegmentFrames {
                base,
                first: id,
                offsets: Some(Vec::new()),
                saved: 0,
                count: 0,
            });
        }
        if let Some(segment) = inner.segments.back_mut() {
            segment.count += 1;
            segment
                .offsets
                .get_or_insert_default()
                .push((frame.position - base) as u32);
        }
        inner.last = id;
        if inner.recent.len() == RECENT_FRAMES {
            inner.recent.pop_front();
        }
        inner.recent.push_back(frame);
    }

    /// Forgets the frames that begin at `position` or behind it. `read` gives the header at a position.
    pub(crate) fn truncate_to(
        &self,
        position: u64,
        read: impl Fn(u64) -> Result<Option<Frame>, Error>,
    ) -> Result<(), Error> {
        let _files = self.files.lock();
        let mut inner = self.inner.lock();
        while inner.recent.back().is_some_and(|f| f.position >= position) {
            inner.recent.pop_back();
        }
        while inner.segments.back().is_some_and(|s| s.base >= position) {
            if let Some(gone) = inner.segments.pop_back() {
                remove(&self.sidecar(gone.base))?;
            }
        }
        if let Some(last) = inner.segments.len().checked_sub(1) {
            self.loaded(&mut inner, last, Some(position))?;
            let segment = &mut inner.segments[last];
            let base = segment.base;
            if let Some(offsets) = &mut segment.offsets {
                let keep = offsets.partition_point(|o| base + u64::from(*o) < position);
                offsets.truncate(keep);
                segment.count = keep;
                if segment.saved > keep {
                    segment.saved = 0;
                    remove(&self.sidecar(base))?;
                }
            }
        }
        inner.last = match inner.segments.back() {
            None => inner.compacted,
            Some(segment) => {
                let at = segment
                    .offsets
                    .as_ref()
                    .and_then(|o| o.last())
                    .map_or(segment.base, |o| segment.base + u64::from(*o));
                let frame = match inner.recent.back() {
                    Some(recent) if recent.position == at => *recent,
                    _ => read(at)?.ok_or_else(|| {
                        Error::Damaged(format!("no entry begins at {at} of the log"))
                    })?,
                };
                EntryId {
                    index: frame.index,
                    term: frame.term,
                }
            }
        };
        Ok(())
    }

    /// Writes down that the log is about to be given up for one that goes on behind this entry, at this position.
    pub(crate) fn will_start_after(&self, entry: EntryId, position: u64) -> Result<(), Error> {
        self.files.lock().save(entry, position)
    }

    /// The log begins anew behind this entry.
    pub(crate) fn start_after(&self, entry: EntryId) -> Result<(), Error> {
        let _files = self.files.lock();
        let mut inner = self.inner.lock();
        for segment in std::mem::take(&mut inner.segments) {
            remove(&self.sidecar(segment.base))?;
        }
        inner.recent.clear();
        inner.compacted = entry;
        inner.last = entry;
        Ok(())
    }

    /// Where an entry begins, or the frame itself when it is one of the newest.
    fn locate(&self, index: u64) -> Result<Option<Result<Frame, u64>>, Error> {
        let mut inner = self.inner.lock();
        if index <= inner.compacted.index || index > inner.last.index {
            return Ok(None);
        }
        if let Some(first) = inner.recent.front()
            && index >= first.index
        {
            return Ok(inner
                .recent
                .get((index - first.index) as usize)
                .copied()
                .map(Ok));
        }
        let at = inner.segments.partition_point(|s| s.first.index <= index);
        let Some(at) = at.checked_sub(1) else {
            return Ok(None);
        };
        self.loaded(&mut inner, at, None)?;
        let segment = &inner.segments[at];
        let nth = (index - segment.first.index) as usize;
        Ok(segment
            .offsets
            .as_ref()
            .and_then(|o| o.get(nth))
            .map(|o| Err(segment.base + u64::from(*o))))
    }

    /// The frame of an entry. `read` gives the header at a position.
    pub(crate) fn frame(
        &self,
        index: u64,
        read: impl Fn(u64) -> Result<Option<Frame>, Error>,
    ) -> Result<Option<Frame>, Error> {
        for _ in 0..2 {
            let position = match self.locate(index)? {
                None => return Ok(None),
                Some(Ok(frame)) => return Ok(Some(frame)),
                Some(Err(position)) => position,
            };
            if let Some(frame) = read(position)?.filter(|f| f.index == index) {
                return Ok(Some(frame));
            }
            // The file of this segment's table was damaged: build it from the log.
            self.forget_tables()?;
        }
        Err(Error::Damaged(format!(
            "entry {index} is not where the log should hold it"
        )))
    }

    /// Term of an entry, without reading when its whole segment has one.
    pub(crate) fn term(
        &self,
        index: u64,
        read: impl Fn(u64) -> Result<Option<Frame>, Error>,
    ) -> Result<Option<u64>, Error> {
        {
            let inner = self.inner.lock();
            if index == inner.compacted.index {
                return Ok(Some(inner.compacted.term));
            }
            if index == inner.last.index {
                return Ok(Some(inner.last.term));
            }
            let at = inner.segments.partition_point(|s| s.first.index <= index);
            if let Some(segment) = at.checked_sub(1).and_then(|at| inner.segments.get(at)) {
                let next = inner.segments.get(at).map_or(inner.last, |s| s.first);
                if next.term == segment.first.term && index <= next.index {
                    return Ok(Some(next.term));
                }
            }
        }
        Ok(self.frame(index, read)?.map(|f| f.term))
    }

    /// The last entry that ends at or below `position`.
    pub(crate) fn index_below(
        &self,
        position: u64,
        read: impl Fn(u64) -> Result<Option<Frame>, Error>,
    ) -> Result<u64, Error> {
        let (at, first, next) = {
            let mut inner = self.inner.lock();
            if let Some(last) = inner.recent.back()
                && last.end() <= position
            {
                return Ok(last.index);
            }
            if inner.recent.front().is_some_and(|f| f.end() <= position) {
                let n = inner.recent.partition_point(|f| f.end() <= position);
                return Ok(inner.recent[n - 1].index);
            }
            let at = inner.segments.partition_point(|s| s.base < position);
            let Some(at) = at.checked_sub(1) else {
                return Ok(inner.compacted.index);
            };
            self.loaded(&mut inner, at, None)?;
            let segment = &inner.segments[at];
            let offsets = segment.offsets.as_deref().unwrap_or_default();
            let begun = offsets.partition_point(|o| segment.base + u64::from(*o) < position);
            let next = segment.first.index + begun as u64;
            let last = offsets[..begun]
                .last()
                .map(|o| segment.base + u64::from(*o));
            (last, segment.first.index, next)
        };
        // The last one that begins below may end beyond.
        match at {
            None => Ok(first - 1),
            Some(at) => {
                let ends = read(at)?.is_some_and(|f| f.end() <= position);
                Ok(if ends { next - 1 } else { next - 2 })
            }
        }
    }

    /// Notes that the oldest segment is about to go; false if it must stay, since nothing follows it yet.
    pub(crate) fn compact(
        &self,
        read: impl Fn(u64) -> Result<Option<Frame>, Error>,
    ) -> Result<bool, Error> {
        // Where the second segment begins, and with which entry.
        let second = || {
            let inner = self.inner.lock();
            let first = inner.segments.front()?;
            let next = inner.segments.get(1)?;
            (first.base == self.log.min()).then_some((next.first, next.base))
        };
        let Some((next, base)) = second() else {
            return Ok(false);
        };
        let Some(term) = self.term(next.index - 1, read)? else {
            return Ok(false);
        };
        let entry = EntryId {
            index: next.index - 1,
            term,
        };
        let mut files = self.files.lock();
        if second() != Some((next, base)) {
            // Meanwhile the log was cut, or given up.
            return Ok(false);
        }
        files.save(entry, base)?;
        let mut inner = self.inner.lock();
        inner.compacted = entry;
        if let Some(gone) = inner.segments.pop_front() {
            remove(&self.sidecar(gone.base))?;
        }
        while inner.recent.front().is_some_and(|f| f.index <= entry.index) {
            inner.recent.pop_front();
        }
        Ok(true)
    }

    /// Writes what the files lack. No sync: the log is the truth.
    pub(crate) fn save(&self) -> Result<(), Error> {
        let _files = self.files.lock();
        let mut work = Vec::new();
        {
            let inner = self.inner.lock();
            for segment in &inner.segments {
                if let Some(offsets) = &segment.offsets
                    && offsets.len() > segment.saved
                {
                    let bytes: Vec<u8> = offsets[segment.saved..]
                        .iter()
                        .flat_map(|o| o.to_be_bytes())
                        .collect();
                    work.push((segment.base, segment.saved, offsets.len(), bytes));
                }
            }
        }
        for (base, from, to, bytes) in work {
            let path = self.sidecar(base);
            let write = || {
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(from == 0)
                    .open(&path)?;
                file.write_all_at(&bytes, 4 * from as u64)
            };
            write().map_err(|e| Error::io("write", &path, e))?;
            let mut inner = self.inner.lock();
            if let Some(segment) = inner.segments.iter_mut().find(|s| s.base == base) {
                segment.saved = to;
            }
        }
        let mut inner = self.inner.lock();
        let last = inner.segments.len().saturating_sub(1);
        let mut loaded = inner
            .segments
            .iter()
            .filter(|s| s.offsets.is_some())
            .count();
        for segment in inner.segments.range_mut(..last) {
            if loaded <= LOADED_SEGMENTS + 1 {
                break;
            }
            let saved = segment
                .offsets
                .as_ref()
                .is_some_and(|o| o.len() == segment.saved);
            if saved {
                segment.offsets = None;
                loaded -= 1;
            }
        }
        Ok(())
    }

    fn loaded(&self, inner: &mut Inner, at: usize, end: Option<u64>) -> Result<(), Error> {
        let segment = &mut inner.segments[at];
        if segment.offsets.is_none() {
            let (offsets, saved) = load(&self.log, segment.base, segment.first.index, end)?;
            segment.saved = saved;
            segment.count = offsets.len();
            segment.offsets = Some(offsets);
        }
        Ok(())
    }

    fn forget_tables(&self) -> Result<(), Error> {
        let _files = self.files.lock();
        let mut inner = self.inner.lock();
        let last = inner.segments.len().saturating_sub(1);
        for segment in inner.segments.range_mut(..last) {
            segment.offsets = None;
            segment.saved = 0;
            remove(&self.log.dir().join(sidecar_name(segment.base)))?;
        }
        Ok(())
    }

    fn sidecar(&self, base: u64) -> PathBuf {
        self.log.dir().join(sidecar_name(base))
    }
}

fn sidecar_name(base: u64) -> String {
    format!("{}.frames", file_name(base))
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// The header of the frame that begins at `position`.
pub(crate) fn frame_at(log: &Segments, position: u64) -> Result<Option<Frame>, Error> {
    let mut header = [0; FRAME_HEADER];
    let n = log
        .read(position, &mut header)
        .map_err(|e| Error::io("read", log.dir(), e))?;
    Ok(Frame::parse(&header[..n]).filter(|f| f.position == position))
}

/// The table of one segment: from its file as far as that is true, then from the log itself. Also how many came from
/// the file.
fn load(
    log: &Segments,
    base: u64,
    first_index: u64,
    end: Option<u64>,
) -> Result<(Vec<u32>, usize), Error> {
    let limit = end.unwrap_or(u64::MAX).min(base + log.size());
    let bytes = fs::read(log.dir().join(sidecar_name(base))).unwrap_or_default();
    let mut offsets: Vec<u32> = bytes
        .chunks_exact(4)
        .map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let rising = offsets.first().is_none_or(|o| *o == 0) && offsets.windows(2).all(|w| w[0] < w[1]);
    if !rising {
        offsets.clear();
    }
    offsets.truncate(offsets.partition_point(|o| base + u64::from(*o) < limit));
    let mut at = base;
    if let Some(last) = offsets.last() {
        let frame = frame_at(log, base + u64::from(*last))?
            .filter(|f| f.index == first_index + offsets.len() as u64 - 1 && f.end() <= limit);
        match frame {
            Some(frame) => at = frame.end(),
            None => offsets.clear(),
        }
    }
    let saved = offsets.len();
    let mut buffer = Vec::new();
    let mut held = 0..0u64;
    while at + FRAME_HEADER as u64 <= limit {
        if at < held.start || at + FRAME_HEADER as u64 > held.end {
            buffer.resize(WALK_BUFFER, 0);
            let n = log
                .read(at, &mut buffer)
                .map_err(|e| Error::io("read", log.dir(), e))?;
            held = at..at + n as u64;
        }
        let begin = (at - held.start) as usize;
        let end = begin + FRAME_HEADER;
        let Some(bytes) = buffer
            .get(begin..end)
            .filter(|_| at + FRAME_HEADER as u64 <= held.end)
        else {
            break;
        };
        let expected = first_index + offsets.len() as u64;
        match Frame::parse(bytes) {
            Some(f) if f.position == at && f.index == expected && f.end() <= limit => {
                offsets.push((at - base) as u32);
                at = f.end();
            }
            _ => break,
        }
    }
    Ok((offsets, saved))
}

/// Bytes of the file `compacted`: index, term, position.
const COMPACTED: usize = 24;

/// Which entries were given up: a small file that must be written to make room on a full disk, too.
pub(crate) struct Compacted {
    path: PathBuf,
    file: SlotFile,
    /// The last entry given up.
    entry: EntryId,
    /// Where the one behind it begins.
    position: u64,
}

impl Compacted {
    fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("compacted");
        let (entry, position) = match SlotFile::read(&path) {
            Ok(Some(bytes)) => Self::decode(&bytes),
            Ok(None) => Some(Default::default()),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => None,
            Err(e) => return Err(Error::io("read", path, e)),
        }
        .ok_or_else(|| Error::Damaged(format!("{} is damaged", path.display())))?;
        let mut compacted = Self {
            file: SlotFile::new(path.clone()),
            path,
            entry,
            position,
        };
        // What follows rests on it, and the life before may have failed to sync it.
        compacted.save(entry, position)?;
        Ok(compacted)
    }

    fn decode(bytes: &[u8]) -> Option<(EntryId, u64)> {
        let field = |at| Some(i64_at(bytes, at)? as u64);
        let entry = EntryId {
            index: field(0)?,
            term: field(8)?,
        };
        let position = field(16)?;
        (bytes.len() == COMPACTED).then_some((entry, position))
    }

    fn save(&mut self, entry: EntryId, position: u64) -> Result<(), Error> {
        let mut bytes = Vec::with_capacity(COMPACTED);
        for field in [entry.index, entry.term, position] {
            bytes.extend_from_slice(&field.to_be_bytes());
        }
        self.file
            .save(&bytes)
            .map_err(|e| Error::io("write", &self.path, e))?;
        (self.entry, self.position) = (entry, position);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        Frame {
            index: 7,
            term: 3,
            position: 4096,
            len: 53,
            kind: Frame::RECORDS,
            crc: crc32fast::hash(b"hello"),
        }
    }

    #[test]
    fn a_header_reads_back_and_vouches_for_its_body_alone() {
        let mut bytes = frame().header().to_vec();
        bytes.extend_from_slice(b"hello");
        assert_eq!(Frame::parse(&bytes), Some(frame()));
        assert!(frame().vouches_for(&bytes));
        for i in 0..bytes.len() {
            let mut other = bytes.clone();
            other[i] ^= 0x10;
            assert!(!frame().vouches_for(&other), "byte {i}");
            assert!(!frame().vouches_for(&bytes[..i]));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..100), marked: bool) {
            let mut bytes = bytes;
            if marked && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&FRAME_MAGIC.to_be_bytes());
            }
            let _ = Frame::parse(&bytes);
        }
    }
}
