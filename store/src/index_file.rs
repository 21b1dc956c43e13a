//! IndexFile: from the hash of `topic#key` to positions in the CommitLog.
//!
//! | header 40 | slots × 4 | entries × 20 |
//!
//! Header: beginTimestamp 8, endTimestamp 8, beginPhyOffset 8, endPhyOffset 8, hashSlotCount 4, indexCount 4 (one more
//! than there are entries). A slot holds the number of its newest entry. An entry: keyHash 4, phyOffset 8, seconds
//! since beginTimestamp 4, number of the previous entry of the slot 4.
//!
//! Slots are random access, so the pages of the file being filled are kept in memory and written once a second:
//! entries first, then slots, the header last. A crash in between leaves slots that point beyond the header's count;
//! they are put right when the file is opened. Queries take in what still waits, so they see every visible record.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::disk::{Disk, read_full_at, write_all_at};
use crate::error::Error;
use crate::record::{i32_at, i64_at};

const HEADER: u64 = 40;
const ENTRY: usize = 20;
const PAGE: usize = 4096;
const SLOTS_PER_PAGE: u32 = (PAGE / 4) as u32;
/// Entries are held back up to this many bytes before they are written.
const ENTRY_BUFFER: usize = 1 << 20;
/// Slot pages are let go after so many writes without a new entry.
const IDLE_WRITES: u32 = 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) begin_timestamp: i64,
    pub(crate) end_timestamp: i64,
    pub(crate) begin_phy_offset: i64,
    pub(crate) end_phy_offset: i64,
    pub(crate) hash_slot_count: i32,
    pub(crate) index_count: i32,
}

impl Header {
    fn encode(&self) -> [u8; HEADER as usize] {
        let mut bytes = [0; HEADER as usize];
        bytes[..8].copy_from_slice(&self.begin_timestamp.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.end_timestamp.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.begin_phy_offset.to_be_bytes());
        bytes[24..32].copy_from_slice(&self.end_phy_offset.to_be_bytes());
        bytes[32..36].copy_from_slice(&self.hash_slot_count.to_be_bytes());
        bytes[36..].copy_from_slice(&self.index_count.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER as usize]) -> Self {
        let long = |at| i64_at(bytes, at).unwrap_or(0);
        let int = |at| i32_at(bytes, at).unwrap_or(0);
        Self {
            begin_timestamp: long(0),
            end_timestamp: long(8),
            begin_phy_offset: long(16),
            end_phy_offset: long(24),
            hash_slot_count: int(32),
            index_count: int(36).max(1),
        }
    }

    /// Upstream `IndexFile.isTimeMatched`.
    fn overlaps(&self, begin: i64, end: i64) -> bool {
        begin <= self.end_timestamp && end >= self.begin_timestamp
    }
}

struct Entry {
    hash: i32,
    phy_offset: i64,
    seconds: i32,
    previous: i32,
}

impl Entry {
    fn encode(&self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..4].copy_from_slice(&self.hash.to_be_bytes());
        bytes[4..12].copy_from_slice(&self.phy_offset.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.seconds.to_be_bytes());
        bytes[16..].copy_from_slice(&self.previous.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            hash: i32_at(bytes, 0)?,
            phy_offset: i64_at(bytes, 4)?,
            seconds: i32_at(bytes, 12)?,
            previous: i32_at(bytes, 16)?,
        })
    }
}

#[derive(Clone, Copy)]
struct Shape {
    slots: u32,
    max_index: u32,
}

impl Shape {
    fn len(self) -> u64 {
        HEADER + u64::from(self.slots) * 4 + u64::from(self.max_index) * ENTRY as u64
    }

    fn entry_at(self, number: i32) -> u64 {
        HEADER + u64::from(self.slots) * 4 + number as u64 * ENTRY as u64
    }
}

struct Page {
    bytes: Box<[u8; PAGE]>,
    dirty: bool,
}

struct IndexFile {
    path: PathBuf,
    file: File,
    shape: Shape,
    header: Header,
    pages: Vec<Option<Page>>,
    /// Encoded entries from number `written` on.
    buffer: Vec<u8>,
    written: i32,
    changed: bool,
    unsynced: bool,
    idle: u32,
}

impl IndexFile {
    fn create(path: PathBuf, shape: Shape) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .and_then(|f| f.set_len(shape.len()).map(|()| f))
            .map_err(|e| Error::io("create", &path, e))?;
        Ok(Self::new(
            path,
            file,
            shape,
            Header {
                index_count: 1,
                ..Header::default()
            },
        ))
    }

    fn new(path: PathBuf, file: File, shape: Shape, header: Header) -> Self {
        let written = header.index_count;
        Self {
            path,
            file,
            shape,
            header,
            pages: Vec::new(),
            buffer: Vec::new(),
            written,
            changed: false,
            unsynced: false,
            idle: 0,
        }
    }

    fn open(path: PathBuf, shape: Shape) -> Result<Option<Self>, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e))?;
        let length = file
            .metadata()
            .map_err(|e| Error::io("look at", &path, e))?
            .len();
        if length != shape.len() {
            tracing::warn!(path = %path.display(), length, expected = shape.len(), "an index file of another shape is left alone");
            return Ok(None);
        }
        let mut bytes = [0; HEADER as usize];
        read_full_at(&file, &mut bytes, 0).map_err(|e| Error::io("read", &path, e))?;
        let header = Header::decode(&bytes);
        if header.index_count as u32 > shape.max_index
            || header.begin_phy_offset < 0
            || header.begin_phy_offset > header.end_phy_offset
        {
            return Err(Error::Damaged(format!(
                "index file {} has an impossible header",
                path.display()
            )));
        }
        Ok(Some(Self::new(path, file, shape, header)))
    }

    /// Its name.
    fn number(&self) -> Option<u64> {
        self.path.file_name()?.to_str()?.parse().ok()
    }

    fn is_full(&self) -> bool {
        self.header.index_count as u32 >= self.shape.max_index
    }

    fn page(&mut self, slot: u32) -> io::Result<&mut Page> {
        let number = (slot / SLOTS_PER_PAGE) as usize;
        if self.pages.is_empty() {
            self.pages
                .resize_with((self.shape.slots as usize * 4).div_ceil(PAGE), || None);
        }
        let len = PAGE.min(self.shape.slots as usize * 4 - number * PAGE);
        let place = &mut self.pages[number];
        if place.is_none() {
            let mut bytes = Box::new([0; PAGE]);
            read_full_at(
                &self.file,
                &mut bytes[..len],
                HEADER + (number * PAGE) as u64,
            )?;
            *place = Some(Page {
                bytes,
                dirty: false,
            });
        }
        place.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn valid(&self, number: i32) -> i32 {
        if number > 0 && number < self.header.index_count {
            number
        } else {
            0
        }
    }

    fn slot(&mut self, slot: u32) -> io::Result<i32> {
        let at = (slot % SLOTS_PER_PAGE) as usize * 4;
        let number = i32_at(&self.page(slot)?.bytes[..], at).unwrap_or(0);
        Ok(self.valid(number))
    }

    fn set_slot(&mut self, slot: u32, number: i32) -> io::Result<()> {
        let at = (slot % SLOTS_PER_PAGE) as usize * 4;
        let page = self.page(slot)?;
        page.bytes[at..at + 4].copy_from_slice(&number.to_be_bytes());
        page.dirty = true;
        Ok(())
    }

    /// Upstream `IndexFile.putKey`.
    fn put(
        &mut self,
        hash: i32,
        phy_offset: i64,
        store_timestamp: i64,
        disk: &dyn Disk,
    ) -> io::Result<()> {
        let slot = hash as u32 % self.shape.slots;
        let previous = self.slot(slot)?;
        let number = self.header.index_count;
        if number <= 1 {
            self.header.begin_phy_offset = phy_offset;
            self.header.begin_timestamp = store_timestamp;
        }
        let seconds = (store_timestamp.saturating_sub(self.header.begin_timestamp) / 1000)
            .clamp(0, i64::from(i32::MAX)) as i32;
        self.buffer.extend_from_slice(
            &Entry {
                hash,
                phy_offset,
                seconds,
                previous,
            }
            .encode(),
        );
        self.set_slot(slot, number)?;
        if previous == 0 {
            self.header.hash_slot_count = self.header.hash_slot_count.saturating_add(1);
        }
        self.header.index_count += 1;
        self.header.end_phy_offset = phy_offset;
        self.header.end_timestamp = store_timestamp;
        self.changed = true;
        if self.buffer.len() >= ENTRY_BUFFER {
            self.write_entries(disk)?;
        }
        Ok(())
    }

    fn write_entries(&mut self, disk: &dyn Disk) -> io::Result<()> {
        if !self.buffer.is_empty() {
            write_all_at(
                disk,
                &self.file,
                &self.buffer,
                self.shape.entry_at(self.written),
            )?;
            self.buffer.clear();
            self.written = self.header.index_count;
        }
        Ok(())
    }

    /// Entries, then slots, then the header, into the page cache.
    fn write(&mut self, disk: &dyn Disk) -> io::Result<()> {
        if !self.changed {
            self.idle += 1;
            if self.idle >= IDLE_WRITES {
                self.pages = Vec::new();
                self.buffer = Vec::new();
            }
            return Ok(());
        }
        self.idle = 0;
        self.write_entries(disk)?;
        let slots = self.shape.slots as usize * 4;
        for (number, page) in self.pages.iter_mut().enumerate() {
            if let Some(page) = page.as_mut().filter(|page| page.dirty) {
                let len = PAGE.min(slots - number * PAGE);
                write_all_at(
                    disk,
                    &self.file,
                    &page.bytes[..len],
                    HEADER + (number * PAGE) as u64,
                )?;
                page.dirty = false;
            }
        }
        write_all_at(disk, &self.file, &self.header.encode(), 0)?;
        self.changed = false;
        self.unsynced = true;
        Ok(())
    }

    fn sync(&mut self, disk: &dyn Disk) -> io::Result<()> {
        if self.unsynced {
            disk.sync_data(&self.file)?;
            self.unsynced = false;
        }
        Ok(())
    }

    fn entry(&self, number: i32) -> io::Result<Option<Entry>> {
        if number >= self.written {
            let at = (number - self.written) as usize * ENTRY;
            return Ok(self.buffer.get(at..at + ENTRY).and_then(Entry::decode));
        }
        let mut bytes = [0; ENTRY];
        let n = read_full_at(&self.file, &mut bytes, self.shape.entry_at(number))?;
        Ok(if n == ENTRY {
            Entry::decode(&bytes)
        } else {
            None
        })
    }

    /// A read that leaves no page behind, for files that are no longer written.
    fn peek_slot(&self, slot: u32) -> io::Result<i32> {
        if let Some(Some(page)) = self.pages.get((slot / SLOTS_PER_PAGE) as usize) {
            return Ok(self.valid(
                i32_at(&page.bytes[..], (slot % SLOTS_PER_PAGE) as usize * 4).unwrap_or(0),
            ));
        }
        let mut bytes = [0; 4];
        read_full_at(&self.file, &mut bytes, HEADER + u64::from(slot) * 4)?;
        Ok(self.valid(i32::from_be_bytes(bytes)))
    }

    fn query(
        &self,
        hash: i32,
        max: usize,
        begin: i64,
        end: i64,
        out: &mut Vec<u64>,
    ) -> io::Result<()> {
        let mut number = self.peek_slot(hash as u32 % self.shape.slots)?;
        // Every step goes to a lower number, so a damaged chain ends too.
        while number > 0 && out.len() < max {
            let Some(entry) = self.entry(number)? else {
                break;
            };
            // Seconds are all that is stored: the true time lies within the second that begins here.
            let seconds = i64::from(entry.seconds) * 1000;
            let time = self.header.begin_timestamp.saturating_add(seconds);
            let second = time..=time.saturating_add(999);
            if entry.hash == hash
                && entry.phy_offset >= 0
                && *second.end() >= begin
                && *second.start() <= end
            {
                let phy_offset = entry.phy_offset as u64;
                if !out.contains(&phy_offset) {
                    out.push(phy_offset);
                }
            }
            if entry.previous >= number {
                break;
            }
            number = self.valid(entry.previous);
        }
        Ok(())
    }

    /// After an unclean stop: chains are rebuilt from the entries if a slot points beyond the header's count, or if
    /// the machine went down and only entries of records below `trusted` are known to be on disk.
    fn repair(&mut self, trusted: Option<u64>, disk: &dyn Disk) -> io::Result<()> {
        // What the life that ended wrote may not be on disk yet.
        self.unsynced = true;
        let mut slots = vec![0; self.shape.slots as usize * 4];
        read_full_at(&self.file, &mut slots, HEADER)?;
        let count = self.header.index_count;
        let beyond = |slot: &[u8]| i32_at(slot, 0).is_none_or(|n| !(0..count).contains(&n));
        if trusted.is_none() && !slots.chunks_exact(4).any(beyond) {
            return Ok(());
        }
        tracing::warn!(path = %self.path.display(), entries = count - 1, "an index file was cut: its chains are rebuilt");
        slots.fill(0);
        self.header.hash_slot_count = 0;
        let mut bytes = vec![0; ENTRY * 4096];
        let (mut number, mut last_phy, mut seconds) = (1, self.header.begin_phy_offset, 0);
        'entries: while number < count {
            let n = ((count - number) as usize).min(4096) * ENTRY;
            let n = read_full_at(&self.file, &mut bytes[..n], self.shape.entry_at(number))? / ENTRY
                * ENTRY;
            let mut kept = 0;
            for bytes in bytes[..n].chunks_exact_mut(ENTRY) {
                let Some(entry) = Entry::decode(bytes) else {
                    break;
                };
                // Positions never fall; a page that was lost says 0.
                let lost = entry.phy_offset < last_phy;
                if lost || trusted.is_some_and(|to| entry.phy_offset >= to as i64) {
                    break;
                }
                (last_phy, seconds) = (entry.phy_offset, entry.seconds);
                let slot = (entry.hash as u32 % self.shape.slots) as usize * 4;
                if slots[slot..slot + 4] == [0; 4] {
                    self.header.hash_slot_count = self.header.hash_slot_count.saturating_add(1);
                }
                bytes[16..].copy_from_slice(&slots[slot..slot + 4]);
                slots[slot..slot + 4].copy_from_slice(&(number + kept).to_be_bytes());
                kept += 1;
            }
            write_all_at(
                disk,
                &self.file,
                &bytes[..kept as usize * ENTRY],
                self.shape.entry_at(number),
            )?;
            number += kept;
            if kept as usize * ENTRY < n || n == 0 {
                break 'entries;
            }
        }
        if number < count {
            self.header.index_count = number;
            self.header.end_phy_offset = last_phy;
            let seconds = i64::from(seconds) * 1000;
            self.header.end_timestamp = self.header.begin_timestamp.saturating_add(seconds);
        }
        self.written = self.header.index_count;
        write_all_at(disk, &self.file, &slots, HEADER)?;
        write_all_at(disk, &self.file, &self.header.encode(), 0)?;
        self.unsynced = true;
        Ok(())
    }
}

#[derive(Clone, Copy)]
pub(crate) struct IndexRequest {
    pub(crate) hash: i32,
    pub(crate) phy_offset: u64,
    pub(crate) store_timestamp: i64,
}

/// How the last run ended, as far as the newest index file cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Clean,
    /// What was written is there.
    Killed,
    /// The machine went down: only records below this are surely in the files.
    PowerLost(u64),
}

impl Stop {
    fn repair(self) -> Option<Option<u64>> {
        match self {
            Stop::Clean => None,
            Stop::Killed => Some(None),
            Stop::PowerLost(synced) => Some(Some(synced)),
        }
    }
}

/// The files of an index, oldest first.
#[derive(Default)]
struct Files {
    /// Full and no longer written. A query holds those it reads by `Arc`, so it neither waits for the one being filled nor minds a deletion.
    sealed: Vec<Arc<IndexFile>>,
    /// The newest.
    active: Option<IndexFile>,
}

impl Files {
    /// Reads from the newest to the oldest.
    fn newest_first(&self) -> impl Iterator<Item = &IndexFile> {
        self.active
            .iter()
            .chain(self.sealed.iter().rev().map(|file| &**file))
    }

    /// The active one is gone: the newest of the others takes its place.
    fn reopen(&mut self, shape: Shape) -> Result<(), Error> {
        if self.active.is_none()
            && let Some(last) = self.sealed.pop()
        {
            self.active = match Arc::try_unwrap(last) {
                Ok(file) => Some(file),
                // Somebody reads it; its file is the same.
                Err(shared) => IndexFile::open(shared.path.clone(), shape)?,
            };
        }
        Ok(())
    }
}

/// Builds and queries the index files of a store.
pub(crate) struct IndexService {
    dir: PathBuf,
    shape: Shape,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    pending: Mutex<Vec<IndexRequest>>,
    pending_len: AtomicUsize,
    files: Mutex<Files>,
    last_phy: AtomicU64,
    last_timestamp: AtomicI64,
    /// End time of the newest file that is full and synced: the checkpoint's index timestamp.
    sealed_timestamp: AtomicI64,
}

impl IndexService {
    pub(crate) fn open(
        dir: PathBuf,
        slots: u32,
        max_index: u32,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        stop: Stop,
    ) -> Result<Self, Error> {
        let shape = Shape {
            slots: slots.max(1),
            max_index: max_index.max(2),
        };
        fs::create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).map_err(|e| Error::io("list", &dir, e))? {
            let name = entry.map_err(|e| Error::io("list", &dir, e))?.file_name();
            if let Some(name) = name
                .to_str()
                .filter(|n| n.len() == 17 && n.bytes().all(|b| b.is_ascii_digit()))
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        let mut files = Vec::new();
        for name in names {
            let path = dir.join(name);
            match IndexFile::open(path.clone(), shape) {
                Ok(file) => files.extend(file),
                // The index is derived: what cannot be read is rebuilt from the log from that point on.
                Err(Error::Damaged(text)) => {
                    tracing::warn!(text, "the file is removed");
                    fs::remove_file(&path).map_err(|e| Error::io("remove", path, e))?;
                }
                Err(e) => return Err(e),
            }
        }
        let mut active = files.pop();
        if let (Some(trusted), Some(last)) = (stop.repair(), &mut active) {
            last.repair(trusted, &*disk)
                .map_err(|e| Error::io("repair", &last.path, e))?;
        }
        let files = Files {
            sealed: files.into_iter().map(Arc::new).collect(),
            active,
        };
        let service = Self {
            dir,
            shape,
            disk,
            clock,
            pending: Mutex::new(Vec::new()),
            pending_len: AtomicUsize::new(0),
            files: Mutex::new(files),
            last_phy: AtomicU64::new(u64::MAX),
            last_timestamp: AtomicI64::new(0),
            sealed_timestamp: AtomicI64::new(0),
        };
        if let Some(last) = service
            .files
            .lock()
            .newest_first()
            .find(|f| f.header.index_count > 1)
        {
            service
                .last_phy
                .store(last.header.end_phy_offset.max(0) as u64, Ordering::Release);
            service
                .last_timestamp
                .store(last.header.end_timestamp, Ordering::Release);
        }
        Ok(service)
    }

    /// Begin of the last record that is indexed in a file.
    pub(crate) fn last_phy(&self) -> Option<u64> {
        Some(self.last_phy.load(Ordering::Acquire)).filter(|p| *p != u64::MAX)
    }

    pub(crate) fn last_timestamp(&self) -> i64 {
        self.last_timestamp.load(Ordering::Acquire)
    }

    pub(crate) fn sealed_timestamp(&self) -> i64 {
        self.sealed_timestamp.load(Ordering::Acquire)
    }

    pub(crate) fn pending(&self) -> usize {
        self.pending_len.load(Ordering::Relaxed)
    }

    /// Takes a batch in; returns how many wait now.
    pub(crate) fn submit(&self, batch: impl Iterator<Item = IndexRequest>) -> usize {
        let mut pending = self.pending.lock();
        pending.extend(batch);
        self.pending_len.store(pending.len(), Ordering::Relaxed);
        pending.len()
    }

    /// Puts what waits into the files' memory.
    pub(crate) fn catch_up(&self) -> Result<(), Error> {
        let mut files = self.files.lock();
        self.catch_up_locked(&mut files)
    }

    fn catch_up_locked(&self, files: &mut Files) -> Result<(), Error> {
        loop {
            let batch = std::mem::take(&mut *self.pending.lock());
            if batch.is_empty() {
                self.pending_len.store(0, Ordering::Relaxed);
                return Ok(());
            }
            for (i, request) in batch.iter().enumerate() {
                if let Err(e) = self.put(files, request) {
                    // Nothing is lost: what could not be put waits for the next attempt, in order.
                    let mut pending = self.pending.lock();
                    let newer = std::mem::take(&mut *pending);
                    pending.extend_from_slice(&batch[i..]);
                    pending.extend(newer);
                    return Err(e);
                }
            }
        }
    }

    fn put(&self, files: &mut Files, request: &IndexRequest) -> Result<(), Error> {
        if let Some(full) = files.active.as_mut().filter(|file| file.is_full()) {
            full.write(&*self.disk)
                .map_err(|e| Error::io("write", &full.path, e))?;
            full.sync(&*self.disk)
                .map_err(|e| Error::io("sync", &full.path, e))?;
            full.pages = Vec::new();
            full.buffer = Vec::new();
            self.sealed_timestamp
                .store(full.header.end_timestamp, Ordering::Release);
            files.sealed.extend(files.active.take().map(Arc::new));
        }
        let active = match &mut files.active {
            Some(active) => active,
            none => {
                let path = self.new_path(files.sealed.last());
                none.insert(IndexFile::create(path, self.shape)?)
            }
        };
        active
            .put(
                request.hash,
                request.phy_offset as i64,
                request.store_timestamp,
                &*self.disk,
            )
            .map_err(|e| Error::io("write", &active.path, e))?;
        self.last_phy.store(request.phy_offset, Ordering::Release);
        self.last_timestamp
            .store(request.store_timestamp, Ordering::Release);
        Ok(())
    }

    /// Named by the local time, `yyyyMMddHHmmssSSS`, and always after the newest there is.
    fn new_path(&self, newest: Option<&Arc<IndexFile>>) -> PathBuf {
        let now = jiff::Timestamp::from_millisecond(self.clock.now_ms()).unwrap_or_default();
        let local = now.to_zoned(jiff::tz::TimeZone::system());
        let mut number: u64 = local
            .strftime("%Y%m%d%H%M%S%3f")
            .to_string()
            .parse()
            .unwrap_or(0);
        let last = newest.and_then(|f| f.number());
        if let Some(last) = last {
            number = number.max(last + 1);
        }
        self.path_of(number)
    }

    /// Takes in what waits and writes it into the page cache.
    pub(crate) fn write(&self) -> Result<(), Error> {
        let mut files = self.files.lock();
        self.catch_up_locked(&mut files)?;
        match &mut files.active {
            Some(active) => active
                .write(&*self.disk)
                .map_err(|e| Error::io("write", &active.path, e)),
            None => Ok(()),
        }
    }

    pub(crate) fn sync(&self) -> Result<(), Error> {
        let file = {
            let mut files = self.files.lock();
            let Some(active) = files.active.as_mut().filter(|f| f.unsynced) else {
                return Ok(());
            };
            active.unsynced = false;
            active
                .file
                .try_clone()
                .map_err(|e| Error::io("open", &active.path, e))?
        };
        self.disk
            .sync_data(&file)
            .map_err(|e| Error::io("sync", &self.dir, e))
    }

    /// Positions of records whose key hashes to `hash`, newest first. The full files are read without a lock.
    pub(crate) fn query(
        &self,
        hash: i32,
        max: usize,
        begin: i64,
        end: i64,
    ) -> Result<Vec<u64>, Error> {
        let wanted = |f: &IndexFile| f.header.index_count > 1 && f.header.overlaps(begin, end);
        let mut found = Vec::new();
        let mut read = |file: &IndexFile| {
            file.query(hash, max, begin, end, &mut found)
                .map_err(|e| Error::io("read", &file.path, e))?;
            Ok::<bool, Error>(found.len() < max)
        };
        let sealed: Vec<Arc<IndexFile>> = {
            let mut files = self.files.lock();
            self.catch_up_locked(&mut files)?;
            if let Some(active) = files.active.as_ref().filter(|f| wanted(f))
                && !read(active)?
            {
                return Ok(found);
            }
            let sealed = files.sealed.iter().rev();
            sealed.filter(|f| wanted(f)).cloned().collect()
        };
        for file in &sealed {
            if !read(file)? {
                break;
            }
        }
        Ok(found)
    }

    /// Records from `position` on are gone, and others will be indexed in their place.
    pub(crate) fn truncate_to(&self, position: u64) -> Result<(), Error> {
        let mut files = self.files.lock();
        self.pending.lock().retain(|r| r.phy_offset < position);
        let begins_beyond = |f: &mut IndexFile| {
            f.header.index_count <= 1 || f.header.begin_phy_offset >= position as i64
        };
        while let Some(gone) = files.active.take_if(begins_beyond) {
            fs::remove_file(&gone.path).map_err(|e| Error::io("remove", &gone.path, e))?;
            files.reopen(self.shape)?;
        }
        if let Some(last) = &mut files.active
            && last.header.end_phy_offset >= position as i64
        {
            let io = |e| Error::io("cut", &self.dir, e);
            last.changed = true;
            last.write(&*self.disk).map_err(io)?;
            last.pages = Vec::new();
            last.repair(Some(position), &*self.disk).map_err(io)?;
        }
        let last = files
            .active
            .as_ref()
            .map_or(u64::MAX, |f| f.header.end_phy_offset as u64);
        self.last_phy.store(last, Ordering::Release);
        Ok(())
    }

    /// Deletes the files whose records are all gone, except the newest.
    pub(crate) fn expire(&self, log_min: u64) -> Result<(), Error> {
        let mut files = self.files.lock();
        while files
            .sealed
            .first()
            .is_some_and(|f| f.header.end_phy_offset < log_min as i64)
        {
            let old = files.sealed.remove(0);
            fs::remove_file(&old.path).map_err(|e| Error::io("remove", &old.path, e))?;
        }
        Ok(())
    }

    /// Names of the files, oldest first, for the table of what must be there.
    pub(crate) fn names(&self) -> Vec<u64> {
        let mut names: Vec<u64> = self
            .files
            .lock()
            .newest_first()
            .filter_map(IndexFile::number)
            .collect();
        names.reverse();
        names
    }

    /// Whether files are missing that newer ones do not make up for: in front of the oldest though the log reaches back further, or in between.
    pub(crate) fn lost_files(&self, expected: &[u64], log_min: u64) -> bool {
        let names = self.names();
        let (Some(oldest), Some(newest)) = (names.first(), names.last()) else {
            return false;
        };
        let begin = {
            let files = self.files.lock();
            let oldest = files.newest_first().last();
            oldest.map_or(0, |oldest| oldest.header.begin_phy_offset as u64)
        };
        let mut missing = expected
            .iter()
            .filter(|name| *name < newest && !names.contains(name));
        missing.any(|name| name > oldest || begin > log_min)
    }

    /// Throws every file away, also those that `expected` names and nobody can read: they are about to be rebuilt from the log.
    pub(crate) fn clear(&self, expected: &[u64]) -> Result<(), Error> {
        let mut files = self.files.lock();
        self.pending.lock().clear();
        let Files { sealed, active } = std::mem::take(&mut *files);
        let held = sealed.iter().map(|file| &**file).chain(&active);
        let held = held.map(|file| file.path.clone());
        for path in held.chain(expected.iter().map(|name| self.path_of(*name))) {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path, e));
                }
                _ => {}
            }
        }
        self.last_phy.store(u64::MAX, Ordering::Release);
        Ok(())
    }

    fn path_of(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:017}"))
    }

    #[cfg(test)]
    pub(crate) fn headers(&self) -> Vec<Header> {
        let mut headers: Vec<_> = self.files.lock().newest_first().map(|f| f.header).collect();
        headers.reverse();
        headers
    }
}

pub(crate) fn index_dir(root: &Path) -> PathBuf {
    root.join("index")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::disk::RealDisk;
    use crate::record::{index_hash, java_hash};

    fn open(dir: &Path, stop: Stop) -> IndexService {
        IndexService::open(
            dir.to_owned(),
            10,
            50,
            Arc::new(RealDisk),
            Arc::new(SystemClock),
            stop,
        )
        .unwrap()
    }

    fn put(index: &IndexService, key: &str, phy_offset: u64, store_timestamp: i64) {
        let hash = index_hash(java_hash(0, "t#"), key);
        index.submit(
            [IndexRequest {
                hash,
                phy_offset,
                store_timestamp,
            }]
            .into_iter(),
        );
    }

    fn find(index: &IndexService, key: &str, begin: i64, end: i64) -> Vec<u64> {
        index
            .query(index_hash(java_hash(0, "t#"), key), 64, begin, end)
            .unwrap()
    }

    #[test]
    fn keys_are_found_at_once_across_files_and_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let index = open(dir.path(), Stop::Clean);
        for i in 0..120u64 {
            put(&index, &format!("k{}", i % 60), i * 100, 1_000 * i as i64);
        }
        assert_eq!(find(&index, "k7", 0, i64::MAX), [6700, 700]);
        assert_eq!(find(&index, "k7", 60_000, i64::MAX), [6700]);
        assert_eq!(find(&index, "k7", 0, 60_000), [700]);
        assert_eq!(
            index
                .headers()
                .iter()
                .map(|h| h.index_count)
                .collect::<Vec<_>>(),
            [50, 50, 23]
        );
        index.write().unwrap();
        assert_eq!(
            find(&open(dir.path(), Stop::Clean), "k59", 0, i64::MAX),
            [11900, 5900]
        );
        index.expire(5_000).unwrap();
        assert_eq!(find(&index, "k7", 0, i64::MAX), [6700]);
    }

    #[test]
    fn slots_beyond_the_header_s_count_are_put_right() {
        let dir = tempfile::tempdir().unwrap();
        let index = open(dir.path(), Stop::Clean);
        for i in 0..20u64 {
            put(&index, &format!("k{i}"), i, 0);
        }
        index.write().unwrap();
        let old = index.headers()[0];
        for i in 20..40u64 {
            put(&index, &format!("k{i}"), i, 0);
        }
        index.write().unwrap();
        let files = index.files.lock();
        write_all_at(
            &RealDisk,
            &files.active.as_ref().unwrap().file,
            &old.encode(),
            0,
        )
        .unwrap();
        drop(files);
        let index = open(dir.path(), Stop::Killed);
        for i in 0..20u64 {
            assert_eq!(find(&index, &format!("k{i}"), 0, i64::MAX), [i]);
        }
        assert_eq!(index.last_phy(), Some(19));
    }
}
