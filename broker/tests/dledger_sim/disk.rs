//! A disk that loses what was not synced, as the log of one member.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use crate::tables::OnDisk;
use broker::dledger::entry::{Base, Descriptor, EntryLog, HardState, Kind, StateFile};

/// Of the simulated log: small, so that frames roll over and compaction has something to drop.
pub(crate) const SEGMENT: u64 = 2048;
const HEADER: usize = 25;

/// What lies on a machine's disk and in its page cache.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) base: Base,
    /// From `base.index + 1` on, adopted or not.
    pub(crate) frames: Vec<(Descriptor, Vec<u8>)>,
    /// Last index that the group knows of.
    pub(crate) adopted: u64,
    /// Up to where the log was compared with those of the others.
    pub(crate) compared: u64,
    /// Indices that a crash of the process, of the machine, leaves.
    pub(crate) written: u64,
    pub(crate) flushed: u64,
    pub(crate) state: Option<Vec<u8>>,
    /// The tables, as they were saved last.
    pub(crate) tables: Option<OnDisk>,
    /// Under SYNC_FLUSH only what is flushed counts.
    pub(crate) sync: bool,
    /// Nothing is taken and nothing written: the disk is full.
    pub(crate) full: bool,
    /// Every operation fails from now on.
    pub(crate) broken: bool,
    /// Calls since the last look, to find what is asked too often.
    pub(crate) looked: std::cell::Cell<u64>,
    /// What is behind `base`, for the comparison of whole logs: hash of everything up to an index.
    pub(crate) chains: BTreeMap<u64, u64>,
}

impl Disk {
    pub(crate) fn appended(&self) -> u64 {
        self.base.index + self.frames.len() as u64
    }

    /// Where a frame of this length would come to lie.
    pub(crate) fn place(&self, len: u64) -> u64 {
        let end = self
            .frames
            .last()
            .map_or(self.base.position, |(d, _)| d.end());
        let rest = SEGMENT - end % SEGMENT;
        if len + 8 <= rest { end } else { end + rest }
    }

    pub(crate) fn push(&mut self, d: Descriptor, frame: Vec<u8>) {
        assert_eq!(d.index, self.appended() + 1, "a hole in the log");
        assert_eq!(
            d.position,
            self.place(d.len.into()),
            "a frame lies where it does not belong"
        );
        let before = self.chain(d.index - 1);
        let mut hasher = crc32fast::Hasher::new_with_initial(before as u32);
        hasher.update(&frame);
        self.chains.insert(d.index, u64::from(hasher.finalize()));
        self.frames.push((d, frame));
    }

    /// A number that tells of everything up to this index.
    pub(crate) fn chain(&self, index: u64) -> u64 {
        self.chains.get(&index).copied().unwrap_or(0)
    }

    pub(crate) fn cut(&mut self, index: u64) {
        self.frames.truncate((index - self.base.index - 1) as usize);
        self.chains.split_off(&index);
        self.adopted = self.adopted.min(index - 1);
        self.compared = self.compared.min(index - 1);
        self.written = self.written.min(index - 1);
        self.flushed = self.flushed.min(index - 1);
    }

    /// The process or the machine died: only this much is left.
    pub(crate) fn crash(&mut self, keep: u64) {
        let keep = keep.clamp(self.base.index, self.appended());
        self.cut(keep + 1);
        self.adopted = keep;
        self.written = keep;
        self.flushed = self.flushed.clamp(self.base.index, keep);
        self.broken = false;
    }

    /// A process starts on it: under SYNC_FLUSH all that it finds becomes durable first.
    pub(crate) fn start(&mut self, sync: bool) {
        self.sync = sync;
        if sync {
            self.flushed = self.written;
        }
    }

    pub(crate) fn frame(&self, index: u64) -> Option<&(Descriptor, Vec<u8>)> {
        let at = index.checked_sub(self.base.index + 1)?;
        self.frames.get(at as usize)
    }

    /// Drops whole segments behind which an entry up to `limit` lies.
    pub(crate) fn compact(&mut self, limit: u64) {
        let Some(first) = self
            .frames
            .iter()
            .rev()
            .find(|(d, _)| d.position % SEGMENT == 0 && d.index <= limit && d.index <= self.adopted)
            .map(|(d, _)| *d)
        else {
            return;
        };
        if first.index <= self.base.index + 1 {
            return;
        }
        let drop = (first.index - 1 - self.base.index) as usize;
        let term = self.frames[drop - 1].0.term;
        self.frames.drain(..drop);
        self.base = Base {
            index: first.index - 1,
            term,
            position: first.position,
        };
        self.chains = self.chains.split_off(&self.base.index);
    }
}

pub(crate) fn frame(index: u64, term: u64, position: u64, kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + payload.len());
    out.extend_from_slice(&index.to_be_bytes());
    out.extend_from_slice(&term.to_be_bytes());
    out.extend_from_slice(&position.to_be_bytes());
    out.push(kind as u8);
    out.extend_from_slice(payload);
    out
}

pub(crate) fn frame_len(payload: &[u8]) -> u32 {
    (HEADER + payload.len()) as u32
}

pub(crate) fn payload(frame: &[u8]) -> &[u8] {
    &frame[HEADER..]
}

/// Which try to send a frame of records is.
pub(crate) fn record(frame: &[u8]) -> u64 {
    let id = payload(frame).first_chunk().expect("a record of a sender");
    u64::from_be_bytes(*id)
}

#[derive(Clone)]
pub(crate) struct SimLog(pub(crate) Rc<RefCell<Disk>>);

impl SimLog {
    fn working(&self) -> io::Result<()> {
        match self.0.borrow().broken {
            true => Err(io::Error::other("the simulated disk is broken")),
            false => Ok(()),
        }
    }
}

impl EntryLog for SimLog {
    fn base(&self) -> Base {
        self.0.borrow().base
    }

    fn last_index(&self) -> u64 {
        self.0.borrow().adopted
    }

    fn term(&self, index: u64) -> Option<u64> {
        let disk = self.0.borrow();
        if index == disk.base.index {
            return Some(disk.base.term);
        }
        disk.frame(index)
            .filter(|_| index <= disk.adopted)
            .map(|(d, _)| d.term)
    }

    fn entry(&self, index: u64) -> Option<Descriptor> {
        let disk = self.0.borrow();
        disk.looked.set(disk.looked.get() + 1);
        disk.frame(index)
            .filter(|_| index <= disk.adopted)
            .map(|(d, _)| *d)
    }

    fn read(&self, entry: &Descriptor, out: &mut Vec<u8>) -> io::Result<()> {
        let disk = self.0.borrow();
        let (d, frame) = disk.frame(entry.index).ok_or(io::ErrorKind::NotFound)?;
        assert_eq!(d, entry);
        out.extend_from_slice(frame);
        Ok(())
    }

    fn payload(&self, entry: &Descriptor) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        self.read(entry, &mut out)?;
        Ok(payload(&out).to_vec())
    }

    fn verify(&self, e: &Descriptor, bytes: &[u8]) -> bool {
        bytes.len() == e.len as usize
            && bytes.len() >= HEADER
            && bytes == frame(e.index, e.term, e.position, e.kind, payload(bytes))
    }

    fn has_room(&mut self, _bytes: u64) -> bool {
        !self.0.borrow().full
    }

    fn append(&mut self, entry: &Descriptor, frame: &[u8]) -> io::Result<()> {
        self.working()?;
        let mut disk = self.0.borrow_mut();
        assert_eq!(
            disk.appended(),
            disk.adopted,
            "frames of a leader are in the way"
        );
        assert!(!disk.full, "what finds no room is refused before");
        disk.push(*entry, frame.to_vec());
        disk.adopted = entry.index;
        Ok(())
    }

    fn append_own(
        &mut self,
        index: u64,
        term: u64,
        kind: Kind,
        payload: &[u8],
    ) -> io::Result<Descriptor> {
        self.working()?;
        let mut disk = self.0.borrow_mut();
        assert_eq!(
            disk.appended(),
            disk.adopted,
            "frames of senders are in the way"
        );
        let len = frame_len(payload);
        let position = disk.place(len.into());
        let d = Descriptor {
            index,
            term,
            position,
            len,
            kind,
        };
        disk.push(d, frame(index, term, position, kind, payload));
        disk.adopted = index;
        Ok(d)
    }

    fn adopt(&mut self, entry: &Descriptor) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        assert_eq!(entry.index, disk.adopted + 1);
        assert_eq!(disk.frame(entry.index).map(|(d, _)| d), Some(entry));
        disk.adopted = entry.index;
        Ok(())
    }

    fn truncate_from(&mut self, index: u64) -> io::Result<()> {
        self.working()?;
        let mut disk = self.0.borrow_mut();
        assert!(index > disk.base.index);
        disk.cut(index);
        Ok(())
    }

    fn reset(&mut self, base: Base) -> io::Result<()> {
        self.working()?;
        let mut disk = self.0.borrow_mut();
        disk.frames.clear();
        disk.chains.clear();
        disk.base = base;
        disk.adopted = base.index;
        disk.compared = base.index;
        disk.written = base.index;
        disk.flushed = base.index;
        Ok(())
    }

    fn persisted(&self) -> u64 {
        let disk = self.0.borrow();
        let promised = if disk.sync {
            disk.flushed
        } else {
            disk.written
        };
        promised.min(disk.adopted)
    }
}

pub(crate) struct SimFile(pub(crate) Rc<RefCell<Disk>>);

impl StateFile for SimFile {
    fn save(&mut self, state: &HardState) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        if disk.broken {
            return Err(io::Error::other("the simulated disk is broken"));
        }
        disk.state = Some(state.encode());
        Ok(())
    }
}
