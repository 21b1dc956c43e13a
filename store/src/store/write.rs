//! The one writer: from the ring into the files, then into queues and index, then the listeners.

use super::*;

/// Records of a log of frames that are read back and dispatched in one round, give or take one batch.
const MAX_ARRIVALS_A_ROUND: usize = 16 << 10;

impl Store {
    /// If nobody writes: writes all that is pending, dispatches it and calls the listeners. Else returns at once.
    ///
    /// A caller that finds new work again and again, because others keep appending, hands the role over to a thread of
    /// the store: its own connections wait meanwhile.
    pub fn drive(&self) {
        if !self.drive_rounds(MAX_ROUNDS) {
            self.signals.write.raise();
        }
    }

    /// False if there was still work after so many rounds.
    pub(super) fn drive_rounds(&self, rounds: usize) -> bool {
        let has_work = || self.has_work();
        let round = |writer: &mut WriterState| self.write_round(writer);
        self.writer.drive(rounds, has_work, round)
    }

    pub(super) fn has_work(&self) -> bool {
        if self.poisoned.load(Ordering::Acquire) || self.stalled.load(Ordering::Acquire) {
            return false;
        }
        let written = self.written.load(Ordering::Acquire);
        self.appended.load(Ordering::Acquire) > written
            || (self.external_confirm.load(Ordering::Acquire)
                && self.confirm_limit.load(Ordering::Acquire).min(written)
                    > self.confirm.load(Ordering::Acquire))
    }

    /// One round of the writer; false if there was nothing to do.
    pub(super) fn write_round(&self, writer: &mut WriterState) -> bool {
        if !self.has_work() {
            return false;
        }
        let written = self.written.load(Ordering::Acquire);
        let (end, timestamp) = {
            let mut state = self.append.lock();
            // After ENOSPC the batch of the failed round is still there: what follows is added behind it.
            if writer.batch.is_empty() {
                std::mem::swap(&mut writer.batch, &mut state.pending);
            } else {
                writer.batch.append(&mut state.pending);
            }
            (state.tail.position, state.last_timestamp)
        };
        if end > written {
            if let Err(error) = self.write(written, end) {
                self.write_failed(error);
                return false;
            }
            self.written_timestamp.store(timestamp, Ordering::Release);
            self.written.store(end, Ordering::Release);
        }
        if let Err(error) = self.dispatch(writer) {
            self.poison(format!("dispatch: {}", chain(&error)));
            return false;
        }
        self.debug_check();
        self.wake_background(end);
        self.tell_watermarks();
        true
    }

    /// `pwritev` of `from..to` out of the ring, segment by segment.
    pub(super) fn write(&self, mut from: u64, to: u64) -> Result<(), Error> {
        while from < to {
            let segment = self.log.ensure(from)?;
            let end = to.min(segment.end());
            self.write_target.store(end, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let _zeroing =
                (self.zeroing_from.load(Ordering::Relaxed) < end).then(|| self.zeroing.lock());
            let chunks = self.ring.cursor().chunks(from, end);
            while from < end {
                let mut slices: SmallVec<[IoSlice<'_>; 8]> = SmallVec::new();
                let mut at = from;
                for chunk in chunks.iter().filter(|c| c.end() > from).take(MAX_SLICES) {
                    let piece = chunk.slice(at, end);
                    at += piece.len() as u64;
                    slices.push(IoSlice::new(piece));
                }
                match self
                    .disk
                    .write_at(&segment.file, &slices, from - segment.base)
                {
                    Ok(0) => {
                        return Err(Error::io(
                            "write",
                            &segment.path,
                            io::ErrorKind::WriteZero.into(),
                        ));
                    }
                    Ok(n) => from += n as u64,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(Error::io("write", &segment.path, e)),
                }
            }
        }
        Ok(())
    }

    /// A full disk is waited out, with the bytes kept in the ring; anything else poisons.
    pub(super) fn write_failed(&self, error: Error) {
        if error.is_disk_full() {
            *self.disk_full.lock() = Some(chain(&error));
            self.is_disk_full.store(true, Ordering::Release);
            if !self.stalled.swap(true, Ordering::AcqRel) {
                tracing::error!(
                    error = chain(&error),
                    "the disk is full: writes are refused until there is room"
                );
            }
            self.tell_watermarks();
            return;
        }
        self.poison(chain(&error));
    }

    pub(super) fn dispatch(&self, writer: &mut WriterState) -> Result<(), Error> {
        let written = self.written.load(Ordering::Acquire);
        let external = self.external_confirm.load(Ordering::Acquire);
        let limit = if external {
            self.confirm_limit.load(Ordering::Acquire).min(written)
        } else {
            written
        };
        let limit = limit.max(self.confirm.load(Ordering::Acquire));
        let mut confirm = limit;
        let scan_from = self.scan_from.load(Ordering::Acquire);
        let from_log = scan_from != u64::MAX;
        if from_log {
            confirm = self.arrivals_from_log(scan_from, limit, &mut writer.batch)?;
            self.scan_from.store(confirm, Ordering::Release);
        } else if external || !writer.unconfirmed.is_empty() {
            writer.unconfirmed.extend(writer.batch.drain(..));
            while let Some(next) = writer
                .unconfirmed
                .front()
                .filter(|a| a.phy_offset + u64::from(a.size) <= limit)
            {
                writer.batch.push(next.clone());
                writer.unconfirmed.pop_front();
            }
        }
        let mut hidden = false;
        for arrival in &writer.batch {
            hidden |= !arrival.in_queue;
            if arrival.in_queue {
                self.queues.push(
                    &arrival.queue,
                    arrival.queue_offset,
                    recovery::unit(arrival),
                )?;
                if from_log {
                    self.queues.follow(&arrival.queue);
                }
            }
        }
        if let Some(last) = writer.batch.last().filter(|_| from_log) {
            let mut state = self.append.lock();
            state.last_timestamp = state.last_timestamp.max(last.store_timestamp);
        }
        if let Some(last) = writer.batch.last() {
            writer.last_phy = last.phy_offset;
        }
        if let Some(index) = &self.index
            && writer.batch.iter().any(|a| !a.key_hashes.is_empty())
        {
            let pending = index.submit(writer.batch.iter().flat_map(recovery::requests));
            if pending >= INDEX_WAKE {
                self.signals.dispatch.raise();
            }
        }
        self.confirm.store(confirm, Ordering::Release);
        if hidden {
            writer.batch.retain(|a| a.in_queue);
        }
        if !writer.batch.is_empty() {
            for listener in self.arrival_listeners.read().iter() {
                listener(&writer.batch);
            }
            writer.batch.clear();
        }
        Ok(())
    }

    /// Whole records of `from..limit`, read back; returns where the last one ends.
    pub(super) fn arrivals_from_log(
        &self,
        from: u64,
        limit: u64,
        out: &mut Vec<Arrival>,
    ) -> Result<u64, Error> {
        let mut position = from;
        let mut bytes = Vec::new();
        while position + END_FILE_MIN_BLANK <= limit {
            bytes.clear();
            self.read_log(position, 8, &mut bytes)?;
            let rest = self.log.size() - position % self.log.size();
            if begins_frame(&bytes) && position + FRAME_HEADER as u64 <= limit {
                bytes.clear();
                self.read_log(position, FRAME_HEADER, &mut bytes)?;
                let frame = Frame::parse(&bytes)
                    .filter(|f| f.position == position && u64::from(f.len) <= rest)
                    .ok_or_else(|| Error::Damaged(format!("no entry begins at {position}")))?;
                if frame.end() > limit || out.len() >= MAX_ARRIVALS_A_ROUND {
                    break;
                }
                position = match frame.kind {
                    Frame::RECORDS => position + FRAME_HEADER as u64,
                    _ => frame.end(),
                };
                continue;
            }
            match record::peek(&bytes) {
                Peek::Blank { size } if size as u64 == rest => {
                    // The padding may still be on its way.
                    if position + rest > limit {
                        break;
                    }
                    position += rest;
                }
                Peek::Record { size } if size as u64 <= rest => {
                    if position + size as u64 > limit {
                        break;
                    }
                    bytes.clear();
                    self.read_log(position, size, &mut bytes)?;
                    let Some(record) =
                        Record::parse(&bytes, true).filter(|r| r.phy_offset == position)
                    else {
                        return Err(Error::Damaged(format!(
                            "the bytes received at {position} are no record"
                        )));
                    };
                    out.extend(recovery::arrival(&self.queues, &record, &self.config)?);
                    position += size as u64;
                }
                _ => {
                    return Err(Error::Damaged(format!(
                        "the bytes received at {position} are no record"
                    )));
                }
            }
        }
        Ok(position)
    }

    pub(super) fn wake_background(&self, end: u64) {
        let flushed = self.flushed.load(Ordering::Relaxed);
        let wanted = match self.config.flush {
            FlushDiskType::SyncFlush => end > flushed,
            FlushDiskType::AsyncFlush => {
                end.saturating_sub(flushed) >= self.config.write_back_bytes
            }
        };
        if wanted {
            self.flush_wanted.ask(&self.signals.flush);
        }
        if self.queues.unwritten() >= UNITS_WAKE {
            self.signals.dispatch.raise();
        }
        if end + PREPARE_AHEAD / 2 > self.prepared.load(Ordering::Relaxed) {
            self.signals.prepare.raise();
        }
    }
}
