//! What the background threads do: flushing, our own offsets, blocks ahead of the writer.

use super::*;

impl Store {
    /// Upstream `FlushRealTimeService`: a few pages are left until the thorough interval is over.
    pub(super) fn flush_round(&self) {
        let wanted = self.flush_wanted.take();
        let waiting = self.written().saturating_sub(self.flushed());
        if !wanted
            && self.config.flush == FlushDiskType::AsyncFlush
            && waiting < u64::from(self.config.flush_least_pages) * 4096
            && self.last_flush.lock().elapsed() < self.config.flush_thorough_interval
        {
            return;
        }
        *self.last_flush.lock() = Instant::now();
        loop {
            let (written, flushed) = (self.written(), self.flushed());
            if written <= flushed || self.poisoned.load(Ordering::Acquire) {
                return;
            }
            self.flush_to_disk();
            // Back to back as long as there is something, but under ASYNC_FLUSH only when much waits.
            let more = self.written().saturating_sub(self.flushed());
            if more == 0
                || (self.config.flush == FlushDiskType::AsyncFlush
                    && more < self.config.write_back_bytes)
            {
                return;
            }
        }
    }

    /// `fdatasync` of all that is written now. On failure the store is poisoned: the kernel may have dropped the pages.
    pub(super) fn flush_to_disk(&self) {
        let flushing = self.flushing.lock();
        let timestamp = self.written_timestamp.load(Ordering::Acquire);
        let target = self.written();
        let mut from = self.flushed();
        while from < target {
            let Some(segment) = self.log.at(from) else {
                // Below the first segment: retention took it.
                from = self.log.min().max(from + 1);
                continue;
            };
            let inherited = self.inherited.load(Ordering::Relaxed).min(segment.end());
            let again = if from < inherited {
                self.log.rewrite(&segment, from, inherited)
            } else {
                Ok(())
            };
            let result = again.and_then(|()| self.log.sync(&segment));
            if let Err(e) = result {
                // Listeners hear of it, and may shut the store down.
                drop(flushing);
                self.poison(format!("fdatasync {}: {e}", segment.path.display()));
                return;
            }
            from = segment.end();
        }
        self.flushed_timestamp.store(timestamp, Ordering::Release);
        self.flushed.fetch_max(target, Ordering::AcqRel);
        self.flush_mark.synced(target);
        self.debug_check();
        drop(flushing);
        {
            let _guard = self.flush_done.0.lock();
            self.flush_done.1.notify_all();
        }
        self.tell_watermarks();
    }

    pub(super) fn dispatch_round(&self) {
        let frames = self.frames.as_ref().map_or(Ok(()), FrameTable::save);
        // They are not needed, and a full disk is told of elsewhere.
        if let Err(error) = frames
            && !error.is_disk_full()
        {
            tracing::warn!(%error, "the table of entries could not be written");
        }
        if let Err(error) = self.save_offsets(false) {
            self.background_failed(error);
        }
    }

    /// Queues and index keep what could not be written in memory, so a full disk is waited out here too; but not what was
    /// written and could not be synced.
    pub(crate) fn background_failed(&self, error: Error) {
        if error.is_disk_full() {
            *self.disk_full.lock() = Some(chain(&error));
            self.is_disk_full.store(true, Ordering::Release);
            return;
        }
        self.poison(chain(&error));
    }

    /// Makes the queues and the index durable as far as they hold records below `position`.
    pub(crate) fn sync_queues_up_to(&self, position: u64) -> Result<(), Error> {
        if self.checkpoint.lock().synced_dispatch >= position {
            return Ok(());
        }
        self.save_offsets(true)
    }

    /// Writes queues and index, and then what is thereby known.
    pub(super) fn save_offsets(&self, last: bool) -> Result<(), Error> {
        let mut state = self.checkpoint.lock();
        let since_sync = self.confirm_offset().saturating_sub(state.synced_dispatch);
        let due = last || state.last_sync.elapsed() >= SYNC_INTERVAL || since_sync >= OFFSETS_BYTES;
        let ends = due.then(|| self.queues.ends());
        let (dispatched, last_phy, timestamp) = {
            let writer = self.writer.lock();
            (
                self.confirm_offset(),
                writer.last_phy,
                self.written_timestamp.load(Ordering::Acquire),
            )
        };
        // Whoever came while the lock was ours left his work to us.
        self.drive();
        self.queues.write_dirty(self.ring.oldest())?;
        if let Some(index) = &self.index {
            index.write()?;
        }
        let changed = dispatched != state.offsets.dispatched
            || state.offsets.queues != self.queues.count_on_disk() as u64;
        let behind = dispatched.saturating_sub(state.synced_dispatch);
        let ends = ends.filter(|_| last || behind > 0);
        let sync = ends.is_some();
        if !changed && !sync {
            return Ok(());
        }
        let mut reached = None;
        if let Some(ends) = ends {
            let index_files = self.index.as_ref().map(IndexService::names);
            reached = Some(queue_table::Expected {
                queues: self.queues.reached(&ends),
                index_files: index_files.unwrap_or_default(),
            });
            self.queues.sync()?;
            if let Some(index) = &self.index {
                index.sync()?;
            }
            state.last_sync = Instant::now();
            state.synced_dispatch = dispatched;
        }
        let flushed = self.flushed();
        let checkpoint = &mut state.offsets.checkpoint;
        let flushed_timestamp = self.flushed_timestamp.load(Ordering::Acquire);
        checkpoint.physic_msg_timestamp = checkpoint.physic_msg_timestamp.max(flushed_timestamp);
        if sync {
            checkpoint.logics_msg_timestamp = checkpoint.logics_msg_timestamp.max(timestamp);
        }
        if let Some(index) = &self.index {
            checkpoint.index_msg_timestamp =
                checkpoint.index_msg_timestamp.max(index.sealed_timestamp());
        }
        checkpoint.confirm_phy_offset = 0;
        state.offsets.dispatched = dispatched;
        state.offsets.synced = state.synced_dispatch.min(flushed);
        state.offsets.last_phy = last_phy;
        state.offsets.queues = self.queues.count_on_disk() as u64;
        state.offsets.index_last_phy = self
            .index
            .as_ref()
            .and_then(IndexService::last_phy)
            .unwrap_or(u64::MAX);
        let path = self.config.root.join("checkpoint");
        state
            .files
            .write(&state.offsets)
            .map_err(|e| Error::io("write", &path, e))?;
        if let Some(reached) = reached {
            let table = self.config.root.join(QUEUE_TABLE);
            queue_table::write(&table, &reached).map_err(|e| Error::io("write", table, e))?;
        }
        if sync {
            state
                .files
                .sync()
                .map_err(|e| Error::io("sync", &path, e))?;
        }
        Ok(())
    }

    /// Keeps blocks ready in front of the writer: zeroed under SYNC_FLUSH (a sync of blocks once written costs half),
    /// else allocated. Only a hint: failures are left to the writer to meet.
    pub(super) fn prepare_round(&self) {
        loop {
            let written = self.written();
            let prepared = self.prepared.load(Ordering::Relaxed);
            let from = match self.config.flush {
                FlushDiskType::SyncFlush => prepared.max(written + PREPARE_MARGIN),
                FlushDiskType::AsyncFlush => prepared.max(written),
            };
            // Blocks are prepared whole, so steps keep to their own borders.
            let from = if from == prepared {
                from
            } else {
                from.next_multiple_of(4096)
            };
            if from >= written + PREPARE_AHEAD
                || self.signals.stop.load(Ordering::Acquire)
                || self.writable().is_err()
            {
                return;
            }
            let size = self.log.size();
            if from >= written - written % size + 2 * size {
                return;
            }
            let Ok(segment) = self.log.ensure(from) else {
                return;
            };
            let to = (from + PREPARE_STEP)
                .min(segment.end())
                .min(written + PREPARE_AHEAD);
            let done = match self.config.flush {
                FlushDiskType::AsyncFlush => {
                    crate::platform::reserve(&segment.file, from - segment.base, to - from)
                }
                FlushDiskType::SyncFlush => self.zero_ahead(&segment, from, to),
            };
            self.prepared.store(to, Ordering::Relaxed);
            if !done {
                return;
            }
        }
    }

    /// Writes zeros over `from..to` unless the writer is there already.
    pub(super) fn zero_ahead(&self, segment: &crate::segment::Segment, from: u64, to: u64) -> bool {
        const PIECE: u64 = 1 << 20;
        let zeros = vec![0; PIECE as usize];
        let mut at = from;
        while at < to {
            let _zeroing = self.zeroing.lock();
            self.zeroing_from.store(at, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let end = to.min(at + PIECE);
            let free = self.write_target.load(Ordering::Relaxed) <= at;
            let result = if free {
                crate::disk::write_all_at(
                    &*self.disk,
                    &segment.file,
                    &zeros[..(end - at) as usize],
                    at - segment.base,
                )
            } else {
                Err(io::ErrorKind::Other.into())
            };
            self.zeroing_from.store(u64::MAX, Ordering::Release);
            if result.is_err() {
                return false;
            }
            at = end;
        }
        // Out to the disk now, in the background, rather than within somebody's group commit. A failure may be one of
        // records, and is told once only to each who opened the file: so not through the flusher's descriptor.
        File::open(&segment.path)
            .and_then(|file| self.disk.sync_data(&file))
            .is_ok()
    }

    pub(super) fn clean_round(&self) {
        if self.stalled.swap(false, Ordering::AcqRel) {
            // Try what failed for want of room; if it fails again it sets both marks again.
            self.drive();
        }
        self.check_disk();
        let due = self
            .last_clean
            .lock()
            .is_none_or(|last| last.elapsed() >= self.config.clean_resource_interval);
        if due || self.delete_now.load(Ordering::Acquire) {
            self.retention_round();
            *self.last_clean.lock() = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::clock::SystemClock;
    use crate::put::{PutMessage, TagsCode};

    use super::*;

    #[test]
    fn what_arrives_while_offsets_are_saved_is_not_said_to_be_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = StoreConfig::new(dir.path());
        config.segment_size = 1 << 20;
        config.consume_queue_file_size = 20 * 100;
        let store = Store::open(config, Arc::new(SystemClock)).unwrap();
        let queue = store.queue("t", 3).unwrap();
        let put = || {
            let message = PutMessage {
                queue: &queue,
                flag: 0,
                sys_flag: 0,
                born_timestamp: 0,
                born_host: "127.0.0.1:1".parse().unwrap(),
                store_host: "127.0.0.1:2".parse().unwrap(),
                reconsume_times: 0,
                prepared_transaction_offset: 0,
                body: b"body",
                properties: b"",
                tags_code: TagsCode::Hash(0),
                unique_key: "",
                keys: "",
            };
            store.append(&[message]).unwrap();
            store.drive();
        };
        put();
        let ends = store.queues.ends();
        put();
        store.queues.write_dirty(u64::MAX).unwrap();
        assert_eq!(queue.max_offset(), 2);
        assert_eq!(store.queues.reached(&ends)[&("t".to_owned(), 3)].max, 1);
        let ends = store.queues.ends();
        assert_eq!(store.queues.reached(&ends)[&("t".to_owned(), 3)].max, 2);
        store.shutdown();
    }
}
