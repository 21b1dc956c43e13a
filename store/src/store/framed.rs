//! A log of frames: what the Raft log of a group needs.
//!
//! Two ways in. The leader's `append` makes a frame of each batch while its gate is open, and remembers what to
//! dispatch. Everything else comes as whole frames, [`Store::append_entry`] and [`Store::append_received`], and is
//! dispatched from the log itself once it is committed, as a slave does.

use super::*;

impl Store {
    fn table(&self) -> Result<&FrameTable, Error> {
        self.frames
            .as_ref()
            .ok_or_else(|| Error::Invalid("this log has no frames".to_owned()))
    }

    pub(crate) fn header_at(&self, position: u64) -> Result<Option<Frame>, Error> {
        let mut header = Vec::with_capacity(FRAME_HEADER);
        self.read_log(position, FRAME_HEADER, &mut header)?;
        Ok(Frame::parse(&header).filter(|f| f.position == position))
    }

    /// Index and term of the last entry.
    pub fn last_entry(&self) -> EntryId {
        self.frames
            .as_ref()
            .map_or(EntryId::default(), FrameTable::last)
    }

    /// Index and term of the entry before the first that is there.
    pub fn compacted_entry(&self) -> EntryId {
        self.frames
            .as_ref()
            .map_or(EntryId::default(), FrameTable::compacted)
    }

    /// The frame of an entry, if it is there.
    pub fn frame(&self, index: u64) -> Result<Option<Frame>, Error> {
        self.table()?.frame(index, |at| self.header_at(at))
    }

    /// Term of an entry that is there, or of the one before the first.
    pub fn entry_term(&self, index: u64) -> Result<Option<u64>, Error> {
        self.table()?.term(index, |at| self.header_at(at))
    }

    /// The last entry that lies wholly below `position`.
    pub fn entry_below(&self, position: u64) -> Result<u64, Error> {
        self.table()?.index_below(position, |at| self.header_at(at))
    }

    /// Where an entry ends; the begin of the log for the one before the first.
    pub fn entry_end(&self, index: u64) -> Result<Option<u64>, Error> {
        if index == self.compacted_entry().index {
            return Ok(Some(self.log.min()));
        }
        Ok(self.frame(index)?.map(|f| f.end()))
    }

    /// Header and body of a frame.
    pub fn read_frame(&self, frame: &Frame, out: &mut Vec<u8>) -> Result<(), Error> {
        if frame.end() > self.appended() {
            return Err(Error::Invalid(format!(
                "entry {} lies beyond the log",
                frame.index
            )));
        }
        let start = out.len();
        self.read_log(frame.position, frame.len as usize, out)?;
        if Frame::parse(&out[start..]) != Some(*frame) {
            out.truncate(start);
            return Err(Error::Damaged(format!(
                "entry {} is not where the log should hold it",
                frame.index
            )));
        }
        Ok(())
    }

    /// From now on `append` makes entries of this term. All that is there must be committed and dispatched, since queue
    /// offsets go on from there.
    pub fn open_gate(&self, term: u64) -> Result<(), PutError> {
        self.writable()?;
        let table = self.table().map_err(|_| PutError::NotLeader)?;
        let mut state = self.append.lock();
        if term < table.last().term {
            return Err(PutError::NotLeader);
        }
        if self.confirm_offset() < state.tail.position {
            return Err(PutError::Busy(
                "entries of former leaders are not dispatched yet",
            ));
        }
        self.scan_from.store(u64::MAX, Ordering::Release);
        state.gate = Some(term);
        Ok(())
    }

    /// `append` is refused from now on. Returns the last entry: nothing comes behind it but what the caller appends.
    pub fn close_gate(&self) -> EntryId {
        let mut state = self.append.lock();
        state.gate = None;
        self.last_entry()
    }

    /// Waits for whoever is appending a frame that was stamped and ends here.
    pub fn appended_up_to(&self, end: u64) {
        if self.appended() < end {
            drop(self.append.lock());
        }
    }

    /// Whether `append` makes entries now.
    pub fn gate_is_open(&self) -> bool {
        self.append.lock().gate.is_some()
    }

    /// Whether the gate is closed, and what comes is dispatched from the log: after [`Store::follow_log`].
    pub fn follows(&self) -> bool {
        self.append.lock().gate.is_none() && self.scan_from.load(Ordering::Acquire) != u64::MAX
    }

    /// What this store appended itself is dispatched from the log from now on, like what it will receive. With the gate
    /// closed; positions and queue offsets that are not committed may be given again.
    pub fn follow_log(&self) -> Result<(), Error> {
        self.drive();
        let mut writer = self.writer.lock();
        let mut state = self.append.lock();
        if state.gate.is_some() {
            return Err(Error::Invalid("the gate is open".to_owned()));
        }
        if self.scan_from.load(Ordering::Acquire) != u64::MAX {
            return Ok(());
        }
        let WriterState {
            batch, unconfirmed, ..
        } = &mut *writer;
        let given_up = state
            .pending
            .drain(..)
            .chain(batch.drain(..))
            .chain(unconfirmed.drain(..));
        for arrival in given_up {
            self.queues.follow(&arrival.queue);
        }
        self.scan_from
            .store(self.confirm_offset(), Ordering::Release);
        Ok(())
    }

    /// Who counts the entries that `append` makes; once, before the gate opens for the first time.
    pub fn set_frame_stamp(&self, stamp: Arc<dyn FrameStamp>) {
        let _ = self.frame_stamp.set(stamp);
    }

    /// Tells of the frame that comes next; after this nothing can fail.
    pub(super) fn stamp_frame(
        &self,
        table: &FrameTable,
        state: &AppendState,
        term: u64,
        kind: u32,
        total: u64,
    ) -> Result<(), PutError> {
        let Some(stamp) = self.frame_stamp.get() else {
            return Ok(());
        };
        let entry = EntryId {
            index: table.last().index + 1,
            term,
        };
        let end = state.tail.position;
        let fits = total + END_FILE_MIN_BLANK <= state.segment_end - end;
        stamp.stamp(
            entry,
            kind,
            if fits { end } else { state.segment_end },
            total as u32,
        )
    }

    /// Under the append lock, after [`Store::roll`] made room.
    pub(super) fn push_frame(
        &self,
        table: &FrameTable,
        state: &mut AppendState,
        term: u64,
        kind: u32,
        body: &[u8],
    ) -> Frame {
        let frame = Frame {
            index: table.last().index + 1,
            term,
            position: state.tail.position,
            len: (FRAME_HEADER + body.len()) as u32,
            kind,
            crc: crc32fast::hash(body),
        };
        self.ring.push(&mut state.tail, &frame.header());
        self.ring.push(&mut state.tail, body);
        table.push(frame);
        frame
    }

    /// An entry of the group itself behind the last one: no records, whatever the gate. The caller drives.
    pub fn append_entry(&self, term: u64, kind: u32, body: &[u8]) -> Result<Frame, PutError> {
        self.unpoisoned()?;
        let table = self.table().map_err(|_| PutError::NotLeader)?;
        let total = self.fits(FRAME_HEADER + body.len())?;
        let mut state = self.append.lock();
        self.ring_room(state.tail.position, 2 * total + END_FILE_MIN_BLANK)?;
        self.roll(&mut state, total);
        let frame = self.push_frame(table, &mut state, term, kind, body);
        self.appended.store(state.tail.position, Ordering::Release);
        Ok(frame)
    }

    /// Retention may take the segments in front of the one in which this entry's end lies. The entry will not be cut and
    /// made anew elsewhere: the log that is left begins with a segment of which that holds for the first entry. Until this
    /// is told, nothing goes.
    pub fn allow_deletion_before(&self, index: u64) -> Result<(), Error> {
        if let Some(end) = self.entry_end(index)? {
            self.deletable.fetch_max(end, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Whether frames of so many bytes can be received now: not while the disk is full, nor while too much waits for it.
    pub fn has_room(&self, bytes: u64) -> bool {
        // Each may be the first of a file, behind padding that is no longer than it.
        !self.stalled.load(Ordering::Acquire)
            && self
                .log_room(self.appended(), 2 * bytes + END_FILE_MIN_BLANK)
                .is_ok()
    }

    /// An entry of the leader's broker that holds no records: it is counted among those of `append`, while the gate is open.
    /// The caller drives.
    pub fn append_counted(&self, kind: u32, body: &[u8]) -> Result<Frame, PutError> {
        self.writable()?;
        let table = self.table().map_err(|_| PutError::NotLeader)?;
        let total = self.fits(FRAME_HEADER + body.len())?;
        let mut state = self.append.lock();
        let term = state.gate.ok_or(PutError::NotLeader)?;
        self.room(state.tail.position, 2 * total + END_FILE_MIN_BLANK)?;
        self.stamp_frame(table, &state, term, kind, total)?;
        self.roll(&mut state, total);
        let frame = self.push_frame(table, &mut state, term, kind, body);
        self.appended.store(state.tail.position, Ordering::Release);
        Ok(frame)
    }

    /// An entry of the leader, header included, at the place that the leader gave it. The caller drives.
    pub fn append_received(&self, frame: &Frame, bytes: &[u8]) -> Result<(), PutError> {
        self.unpoisoned()?;
        let table = self.table().map_err(|_| PutError::NotLeader)?;
        let total = self.fits(bytes.len())?;
        let mut state = self.append.lock();
        let end = state.tail.position;
        let wrong = PutError::WrongPosition {
            position: frame.position,
            end,
        };
        let last = table.last();
        if !frame.vouches_for(bytes)
            || frame.index != last.index + 1
            || frame.term < last.term
            || state.gate.is_some()
            || self.scan_from.load(Ordering::Acquire) == u64::MAX
        {
            return Err(wrong);
        }
        // The leader began a new file exactly where we would.
        let rest = state.segment_end - end;
        let fits = total + END_FILE_MIN_BLANK <= rest;
        let place = if fits { end } else { state.segment_end };
        if frame.position != place {
            return Err(wrong);
        }
        self.ring_room(end, 2 * total + END_FILE_MIN_BLANK)?;
        self.roll(&mut state, total);
        self.ring.push(&mut state.tail, bytes);
        table.push(*frame);
        self.appended.store(state.tail.position, Ordering::Release);
        Ok(())
    }

    /// A full disk does not stop what the group already agreed on from being tried; the writer waits it out.
    fn unpoisoned(&self) -> Result<(), PutError> {
        match self.writable() {
            Err(NotWritable::DiskFull(_)) | Ok(()) => Ok(()),
            Err(other) => Err(other.into()),
        }
    }

    fn fits(&self, len: usize) -> Result<u64, PutError> {
        let limit = (self.log.size() - END_FILE_MIN_BLANK) as usize;
        if len > limit {
            return Err(PutError::MessageTooLarge { size: len, limit });
        }
        Ok(len as u64)
    }

    /// Drops this entry, which is not committed, and all behind it. The gate must be closed. Durable when it returns.
    pub fn truncate_from(&self, index: u64) -> Result<(), Error> {
        let Some(frame) = self.frame(index)? else {
            return if index > self.last_entry().index {
                Ok(())
            } else {
                Err(Error::Invalid(format!("entry {index} is not in the log")))
            };
        };
        if frame.position < self.confirm_offset() {
            return Err(Error::Invalid(format!("entry {index} is committed")));
        }
        self.follow_log()?;
        // Padding behind the entry before goes too: where the next frame begins must follow from that entry alone, or the
        // members would disagree about it.
        let cut = match self.entry_end(index - 1)? {
            Some(end) if end >= self.confirm_offset() => end,
            _ => frame.position,
        };
        if !self.cut_unconfirmed(cut)? {
            return Ok(());
        }
        // What was cut must not come back after a power cut, among entries that took its place.
        let synced = match self.log.at(cut) {
            Some(segment) => self.log.sync(&segment),
            None => Ok(()),
        };
        let dir = self.log.dir();
        synced
            .and_then(|()| fs::File::open(dir)?.sync_all())
            .map_err(|e| {
                // Whoever syncs next is not told of it again.
                self.poison(format!("sync {}: {e}", dir.display()));
                Error::io("sync", dir, e)
            })
    }

    /// Takes the log back to `position`, above which no queue shows anything: neither queues nor what is known of them
    /// are touched. What is not yet written needs no disk to go. Whether files were cut.
    fn cut_unconfirmed(&self, position: u64) -> Result<bool, Error> {
        let _flushing = self.flushing.lock();
        let _writer = self.writer.lock();
        let mut state = self.append.lock();
        if let Some(reason) = self.poisoned() {
            return Err(NotWritable::Poisoned(reason).into());
        }
        let on_file = position < self.written();
        if on_file {
            self.flush_mark.cut(position)?;
            self.inherited.fetch_min(position, Ordering::AcqRel);
            self.prepared.fetch_min(position, Ordering::Relaxed);
        }
        self.table()?
            .truncate_to(position, |at| self.header_at(at))?;
        for mark in [
            &self.confirm_limit,
            &self.flushed,
            &self.written,
            &self.appended,
            &self.write_target,
        ] {
            mark.fetch_min(position, Ordering::AcqRel);
        }
        self.debug_check();
        state.tail = self.ring.cut(position);
        state.segment_end = position - position % self.log.size() + self.log.size();
        if on_file {
            self.log.cut(position)?;
        }
        Ok(on_file)
    }

    /// Gives up the whole log, which the leader no longer continues: it goes on behind this entry at `position`, the
    /// begin of a log file. Queues and index are emptied.
    pub fn start_after(&self, entry: EntryId, position: u64) -> Result<(), Error> {
        let table = self.table()?;
        self.close_gate();
        self.follow_log()?;
        self.drive();
        table.will_start_after(entry, position)?;
        self.truncate_to(self.log.min())?;
        self.start_at(position)?;
        self.scan_from.store(position, Ordering::Release);
        table.start_after(entry)
    }
}
