//! What replication and Raft need beside appending: cutting, beginning elsewhere, raw ranges.

use super::*;
use crate::recovery::unless_full;

/// A truncation waits this long for the bytes in front of it to be written.
const TRUNCATION_PATIENCE: Duration = Duration::from_secs(10);

impl Store {
    /// Drops everything from `position`, a record border, on: log, queues, what is pending.
    pub fn truncate_to(&self, position: u64) -> Result<(), Error> {
        // What stays must be in the file: the ring forgets it.
        let until = Instant::now() + TRUNCATION_PATIENCE;
        while self.written() < position.min(self.appended()) && self.poisoned().is_none() {
            self.drive();
            if Instant::now() >= until {
                return Err(Error::Invalid(format!(
                    "cannot truncate to {position}: the log is written up to {} only",
                    self.written()
                )));
            }
            std::thread::yield_now();
        }
        self.flush_all_written();
        let _flushing = self.flushing.lock();
        let mut checkpoint = self.checkpoint.lock();
        let mut writer = self.writer.lock();
        let mut state = self.append.lock();
        let end = state.tail.position;
        if position > end || position < self.log.min() {
            return Err(Error::Invalid(format!(
                "cannot truncate to {position}: the log holds {}..{end}",
                self.log.min()
            )));
        }
        if let Some(reason) = self.poisoned() {
            return Err(NotWritable::Poisoned(reason).into());
        }
        // What finds no room goes on in memory, as far as it stays.
        unless_full(self.queues.write_dirty(self.ring.oldest()))?;
        if let Some(index) = &self.index {
            unless_full(index.write())?;
        }
        state.pending.clear();
        writer.batch.clear();
        writer.unconfirmed.retain(|a| a.phy_offset < position);
        // Queues first: a crash in between leaves a log that is longer than they are, which recovery mends.
        forget_table(&self.config)?;
        let last_phy = self.queues.truncate_to(position)?.unwrap_or(u64::MAX);
        if let Some(index) = &self.index {
            index.truncate_to(position)?;
        }
        self.flush_mark.cut(position)?;
        self.inherited.fetch_min(position, Ordering::AcqRel);
        for mark in [
            &self.confirm,
            &self.confirm_limit,
            &self.flushed,
            &self.written,
            &self.appended,
        ] {
            mark.fetch_min(position, Ordering::AcqRel);
        }
        self.debug_check();
        if self.scan_from.load(Ordering::Acquire) != u64::MAX {
            self.scan_from.fetch_min(position, Ordering::AcqRel);
        }
        writer.last_phy = last_phy;
        if let Some(frames) = &self.frames {
            frames.truncate_to(position, |at| {
                let mut header = Vec::new();
                self.read_log(at, FRAME_HEADER, &mut header)?;
                Ok(Frame::parse(&header))
            })?;
        }
        state.tail = self.ring.reset(position);
        state.segment_end = position - position % self.log.size() + self.log.size();
        self.prepared.store(position, Ordering::Relaxed);
        self.write_target.store(position, Ordering::Relaxed);
        self.log.cut(position)?;
        // What was known about the log beyond `position` no longer holds.
        checkpoint.offsets.dispatched = self.confirm_offset();
        checkpoint.offsets.synced = 0;
        checkpoint.synced_dispatch = 0;
        checkpoint.offsets.last_phy = last_phy;
        checkpoint.offsets.queues = self.queues.count_on_disk() as u64;
        checkpoint.offsets.index_last_phy = self
            .index
            .as_ref()
            .and_then(IndexService::last_phy)
            .unwrap_or(u64::MAX);
        let path = self.config.root.join("checkpoint");
        checkpoint.offsets.checkpoint.logics_msg_timestamp = 0;
        checkpoint
            .files
            .write(&checkpoint.offsets)
            .map_err(|e| Error::io("write", path, e))
    }

    /// An empty store begins its log at `position`, the begin of a segment (a slave that copies from the middle).
    pub fn start_at(&self, position: u64) -> Result<(), Error> {
        let _writer = self.writer.lock();
        let mut state = self.append.lock();
        if self.log.last_end() > self.log.min() && state.tail.position != self.log.min() {
            return Err(Error::Invalid(format!(
                "the log holds {}..{}",
                self.log.min(),
                state.tail.position
            )));
        }
        if !position.is_multiple_of(self.log.size()) {
            return Err(Error::Invalid(format!(
                "{position} is not the begin of a segment of {} bytes",
                self.log.size()
            )));
        }
        self.flush_mark.begin(position)?;
        self.inherited.store(0, Ordering::Release);
        self.log.clear(position)?;
        for mark in [
            &self.confirm,
            &self.confirm_limit,
            &self.flushed,
            &self.written,
            &self.appended,
            &self.prepared,
            &self.write_target,
        ] {
            mark.store(position, Ordering::Release);
        }
        // Of a log that was received and cut away before.
        if self.scan_from.load(Ordering::Acquire) != u64::MAX {
            self.scan_from.store(position, Ordering::Release);
        }
        self.debug_check();
        self.queues.set_log_end(position);
        state.tail = self.ring.reset(position);
        state.segment_end = position + self.log.size();
        state.pending.clear();
        Ok(())
    }

    /// Raw log bytes from `position` up to `written`, never across a segment, padding as zeros; returns how many were
    /// appended to `out`.
    pub fn read_range(&self, position: u64, max: usize, out: &mut Vec<u8>) -> Result<usize, Error> {
        let written = self.written();
        if position < self.log.min() || position > written {
            return Err(Error::Invalid(format!(
                "{position} is not within {}..{written}",
                self.log.min()
            )));
        }
        let segment_end = position - position % self.log.size() + self.log.size();
        let len = (written.min(segment_end) - position).min(max as u64) as usize;
        self.read_log(position, len, out)?;
        Ok(len)
    }

    /// Exactly `len` bytes below `appended` from ring or file.
    pub(crate) fn read_log(
        &self,
        position: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let start = out.len();
        if self
            .ring
            .cursor()
            .read(position, position + len as u64, |piece| {
                out.extend_from_slice(piece)
            })
        {
            return Ok(());
        }
        out.truncate(start);
        out.resize(start + len, 0);
        let n = self
            .log
            .read(position, &mut out[start..])
            .map_err(|e| Error::io("read", self.log.dir(), e))?;
        if n < len {
            out.truncate(start);
            return Err(Error::Invalid(format!(
                "{len} bytes at {position} are not in the log"
            )));
        }
        Ok(())
    }

    /// How the broker that had this store before ended.
    pub fn last_stop(&self) -> LastStop {
        self.last_stop
    }

    /// Bytes of a log file: the files that exist decide it.
    pub fn segment_size(&self) -> u64 {
        self.log.size()
    }

    /// First position of the log that need not be read from disk.
    pub fn oldest_in_memory(&self) -> u64 {
        self.ring.oldest()
    }

    /// Asks for an `fdatasync` of what is written now, whatever `flushDiskType`; does not wait. One covers all who asked.
    pub fn request_flush(&self) {
        if self.flushed() < self.written() {
            self.flush_wanted.ask(&self.signals.flush);
        }
    }

    /// Where the records of `from..to` begin and end, `from` being where one begins. A blank record counts with its
    /// eight bytes, and the next record is the first of the next segment. Reads the log: call it from a thread that may.
    pub fn record_places(&self, from: u64, to: u64) -> Result<Vec<(u64, u64)>, Error> {
        const BLOCK: usize = 1 << 20;
        let to = to.min(self.written());
        let size = self.log.size();
        let mut places = Vec::new();
        let mut at = from;
        let (mut block, mut block_at) = (Vec::new(), from);
        while at + END_FILE_MIN_BLANK <= to {
            if at < block_at || at + END_FILE_MIN_BLANK > block_at + block.len() as u64 {
                block.clear();
                block_at = at;
                let segment_end = at - at % size + size;
                let len = (to.min(segment_end) - at).min(BLOCK as u64) as usize;
                self.read_log(at, len, &mut block)?;
            }
            let rest = size - at % size;
            match record::peek(&block[(at - block_at) as usize..]) {
                Peek::Blank { size } if size as u64 == rest => {
                    places.push((at, at + END_FILE_MIN_BLANK));
                    at += rest;
                }
                Peek::Record { size } if size as u64 <= rest => {
                    if at + size as u64 > to {
                        break;
                    }
                    places.push((at, at + size as u64));
                    at += size as u64;
                }
                _ => break,
            }
        }
        Ok(places)
    }
}
