//! Offsets, encoding and the copy into the tail ring, under one short lock.

use super::*;

/// In a log of frames so much of the ring is not for messages: entries of the group's own find room whatever the disk does.
const KEPT_FOR_ENTRIES: u64 = 128 << 10;
/// What a frame is put together in keeps this much.
const KEPT_FRAME_BYTES: usize = 1 << 20;

impl Store {
    /// Encodes and appends consecutive records to the tail ring under one short lock; assigns physical and queue
    /// offsets and the store timestamp. All or nothing. No I/O: call [`Store::drive`] after it.
    ///
    /// In a log of frames all of them are the body of one entry; only the leader appends.
    pub fn append(&self, messages: &[PutMessage<'_>]) -> Result<Appended, PutError> {
        let result = self
            .encode(messages)
            .and_then(|encoded| self.append_encoded(messages, encoded));
        match &result {
            Ok(appended) => {
                self.counters
                    .put_times
                    .fetch_add(messages.len() as u64, Ordering::Relaxed);
                self.counters
                    .put_bytes
                    .fetch_add(appended.end - appended.phy_offset, Ordering::Relaxed);
            }
            Err(_) => {
                self.counters
                    .put_failed
                    .fetch_add(messages.len() as u64, Ordering::Relaxed);
            }
        }
        result
    }

    pub(super) fn encode<'a>(
        &self,
        messages: &[PutMessage<'a>],
    ) -> Result<SmallVec<[Encoded<'a>; 1]>, PutError> {
        self.writable()?;
        let limit = self.config.max_message_size + record::RECORD_OVERHEAD;
        let mut encoded = SmallVec::with_capacity(messages.len());
        for message in messages {
            let topic = message.queue.topic();
            if topic.len() > record::MAX_TOPIC {
                return Err(PutError::TopicTooLong(topic.len()));
            }
            if message.properties.len() > record::MAX_PROPERTIES {
                return Err(PutError::PropertiesTooLong(message.properties.len()));
            }
            let body_limit = self.config.max_message_size;
            if message.body.len() > body_limit {
                return Err(PutError::MessageTooLarge {
                    size: message.body.len(),
                    limit: body_limit,
                });
            }
            let fields = Fields {
                topic,
                queue_id: message.queue.queue_id(),
                flag: message.flag,
                sys_flag: message.sys_flag,
                born_timestamp: message.born_timestamp,
                born_host: message.born_host,
                store_host: message.store_host,
                reconsume_times: message.reconsume_times,
                prepared_transaction_offset: message.prepared_transaction_offset,
                body: message.body,
                properties: message.properties,
            };
            let record = Encoded::new(&fields);
            let limit = limit.min((self.log.size() - END_FILE_MIN_BLANK) as usize);
            if record.size > limit {
                return Err(PutError::MessageTooLarge {
                    size: record.size,
                    limit,
                });
            }
            encoded.push(record);
        }
        Ok(encoded)
    }

    /// Flow control, before anything is changed: does `total` more fit?
    pub(super) fn room(&self, appended: u64, total: u64) -> Result<(), PutError> {
        self.log_room(appended, total)?;
        let undispatched =
            self.queues.unwritten() + self.index.as_ref().map_or(0, IndexService::pending);
        if undispatched > MAX_UNDISPATCHED {
            return Err(PutError::Busy("queues and index fall behind"));
        }
        Ok(())
    }

    /// The bounds of the log itself, for what may wait or come again.
    pub(super) fn log_room(&self, appended: u64, total: u64) -> Result<(), PutError> {
        let kept = if self.frames.is_some() {
            KEPT_FOR_ENTRIES
        } else {
            0
        };
        self.ring_room(appended, total + kept)?;
        let written = self.written.load(Ordering::Acquire);
        let unflushed = written.saturating_sub(self.flushed.load(Ordering::Relaxed));
        if unflushed > self.config.max_unflushed_bytes {
            return Err(PutError::Busy("too much waits to be flushed"));
        }
        Ok(())
    }

    pub(super) fn ring_room(&self, appended: u64, total: u64) -> Result<(), PutError> {
        if appended + total - self.written.load(Ordering::Acquire) > self.ring.capacity() {
            return Err(PutError::Busy("the tail ring is full"));
        }
        Ok(())
    }

    pub(super) fn append_encoded(
        &self,
        messages: &[PutMessage<'_>],
        mut encoded: SmallVec<[Encoded<'_>; 1]>,
    ) -> Result<Appended, PutError> {
        let prefix_len = match self.frames {
            Some(_) => FRAME_HEADER,
            None => 0,
        };
        let total: u64 = prefix_len as u64 + encoded.iter().map(|e| e.size as u64).sum::<u64>();
        if prefix_len > 0 && total + END_FILE_MIN_BLANK > self.log.size() {
            let limit = (self.log.size() - END_FILE_MIN_BLANK) as usize;
            return Err(PutError::MessageTooLarge {
                size: total as usize,
                limit,
            });
        }
        let largest = encoded
            .iter()
            .map(|e| e.size as u64)
            .max()
            .unwrap_or(0)
            .max(if prefix_len > 0 { total } else { 0 });
        let index = self.index.is_some();
        let mut records = SmallVec::with_capacity(messages.len());

        let mut guard = self.append.lock();
        let state = &mut *guard;
        if self.frames.is_some() && state.gate.is_none() {
            return Err(PutError::NotLeader);
        }
        if messages.iter().any(|m| m.queue.is_refused()) {
            return Err(PutError::Busy("the topic is being deleted"));
        }
        if self.scan_from.load(Ordering::Acquire) != u64::MAX {
            // A slave became master, a follower leader: once all it received is dispatched, queue offsets are assigned here.
            if self.confirm_offset() < state.tail.position {
                return Err(PutError::Busy("replicated records are not dispatched yet"));
            }
            self.scan_from.store(u64::MAX, Ordering::Release);
        }
        // A blank at most as long as the largest record may come in between (several segments cannot: see `open`).
        self.room(state.tail.position, total + largest + END_FILE_MIN_BLANK)?;
        if let (Some(frames), Some(term)) = (&self.frames, state.gate) {
            self.stamp_frame(frames, state, term, Frame::RECORDS, total)?;
        }
        // Not behind an earlier record, as searches by time rely on it; but a clock that was far ahead is let go,
        // or delayed messages would wait for the time it showed.
        let now = self.clock.now_ms();
        let step_back = state.last_timestamp.saturating_sub(now);
        let store_timestamp = if (0..=MAX_CLOCK_STEP_BACK_MS).contains(&step_back) {
            state.last_timestamp
        } else {
            now
        };
        state.last_timestamp = store_timestamp;
        let mut body = std::mem::take(&mut state.frame);
        if prefix_len > 0 {
            self.roll(state, total);
            body.clear();
        }
        let mut first = None;
        for (message, record) in messages.iter().zip(&mut encoded) {
            if prefix_len == 0 {
                self.roll(state, record.size as u64);
            }
            let phy_offset = state.tail.position + (prefix_len + body.len()) as u64;
            let queue_offset = if record.in_queue {
                message.queue.take_offset()
            } else {
                0
            };
            if prefix_len == 0 {
                record.write(queue_offset, phy_offset, store_timestamp, |piece| {
                    self.ring.push(&mut state.tail, piece)
                });
            } else {
                record.write(queue_offset, phy_offset, store_timestamp, |piece| {
                    body.extend_from_slice(piece)
                });
            }
            let size = record.size as u32;
            let mut key_hashes = SmallVec::new();
            if index && record.indexed {
                let prefix = message.queue.key_prefix();
                if !message.unique_key.is_empty() {
                    key_hashes.push(record::index_hash(prefix, message.unique_key));
                }
                if !message.keys.is_empty() {
                    let words = message.keys.split(' ').filter(|k| !k.is_empty());
                    key_hashes.extend(words.map(|k| record::index_hash(prefix, k)));
                }
            }
            state.pending.push(Arrival {
                queue: message.queue.clone(),
                queue_offset,
                phy_offset,
                size,
                tags_code: match message.tags_code {
                    TagsCode::Hash(hash) => hash,
                    TagsCode::DelayMs(delay) => store_timestamp + delay,
                },
                store_timestamp,
                in_queue: record.in_queue,
                key_hashes,
            });
            records.push(AppendedRecord {
                phy_offset,
                queue_offset,
                size,
            });
            first.get_or_insert((phy_offset, queue_offset));
        }
        if let (Some(frames), Some(term)) = (&self.frames, state.gate) {
            self.push_frame(frames, state, term, Frame::RECORDS, &body);
        }
        body.clear();
        body.shrink_to(KEPT_FRAME_BYTES);
        state.frame = body;
        let end = state.tail.position;
        self.appended.store(end, Ordering::Release);
        self.debug_check();
        drop(guard);
        let (phy_offset, queue_offset) = first.unwrap_or((end, 0));
        Ok(Appended {
            phy_offset,
            queue_offset,
            store_timestamp,
            end,
            records,
        })
    }

    /// Makes sure that `size` bytes and a blank record fit the segment; else fills it up and goes to the next.
    pub(super) fn roll(&self, state: &mut AppendState, size: u64) {
        let rest = state.segment_end - state.tail.position;
        if size + END_FILE_MIN_BLANK <= rest {
            return;
        }
        let mut blank = [0; END_FILE_MIN_BLANK as usize];
        blank[..4].copy_from_slice(&(rest as i32).to_be_bytes());
        blank[4..].copy_from_slice(&BLANK_MAGIC.to_be_bytes());
        self.ring.push(&mut state.tail, &blank);
        const ZEROS: [u8; 4096] = [0; 4096];
        while state.tail.position < state.segment_end {
            let n = (state.segment_end - state.tail.position).min(ZEROS.len() as u64) as usize;
            self.ring.push(&mut state.tail, &ZEROS[..n]);
        }
        state.segment_end += self.log.size();
    }

    /// Bytes of another log at their own position, cut anywhere (HA stream). An empty store may begin anywhere that is
    /// the begin of a segment. Returns the new end. From then on queues and index follow the bytes themselves.
    pub fn append_raw(&self, position: u64, bytes: &[u8]) -> Result<u64, PutError> {
        self.writable()?;
        let mut state = self.append.lock();
        let end = state.tail.position;
        if position != end {
            return Err(PutError::WrongPosition { position, end });
        }
        self.room(end, bytes.len() as u64)?;
        if self.scan_from.load(Ordering::Acquire) == u64::MAX {
            if self.confirm_offset() < end {
                return Err(PutError::Busy("local appends are not dispatched yet"));
            }
            self.scan_from.store(end, Ordering::Release);
        }
        self.ring.push(&mut state.tail, bytes);
        let end = state.tail.position;
        state.segment_end = end - end % self.log.size() + self.log.size();
        self.appended.store(end, Ordering::Release);
        self.debug_check();
        Ok(end)
    }
}
