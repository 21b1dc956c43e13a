//! The end of the log in memory: what is not yet written, and what readers at the head want.
//!
//! Chunks cover aligned ranges of log positions. One writer (who holds the append lock) copies bytes behind a
//! chunk's published length and then raises it; readers look only below it, so no byte is ever read and written
//! at once. A chunk leaves the ring only when it is wholly written to disk; readers keep theirs alive by `Arc`.

use std::collections::VecDeque;

pub(crate) use crate::sync::CHUNK;
use crate::sync::{Arc, AtomicU64, AtomicUsize, Cells, Ordering, RwLock};

pub(crate) struct Chunk {
    base: u64,
    /// First position held: after a start or a truncation the log begins within a chunk.
    start: u64,
    /// Bytes below `published` are never written again, those above it only by the one that holds the append lock; `published` is raised with
    /// Release after the copy and read with Acquire.
    bytes: Cells,
    /// Bytes from `base` that may be read.
    published: AtomicUsize,
}

impl Chunk {
    fn new(base: u64, start: u64, bytes: Option<Cells>) -> Self {
        let bytes = bytes.unwrap_or_else(|| Cells::zeroed(CHUNK));
        Self {
            base,
            start,
            bytes,
            published: AtomicUsize::new((start - base) as usize),
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.base + CHUNK as u64
    }

    /// The published bytes of `from..to`, which may be less than asked for.
    pub(crate) fn slice(&self, from: u64, to: u64) -> &[u8] {
        let published = self.published.load(Ordering::Acquire);
        let to = to.min(self.base + published as u64);
        if from < self.start || from >= to {
            return &[];
        }
        let (at, len) = ((from - self.base) as usize, (to - from) as usize);
        self.bytes.reads(at..at + len);
        // SAFETY: at + len <= published <= CHUNK; published bytes do not change any more.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().add(at), len) }
    }

    /// Only under the append lock. Returns how many bytes found room.
    fn push(&self, bytes: &[u8]) -> usize {
        let at = self.published.load(Ordering::Relaxed);
        let len = bytes.len().min(CHUNK - at);
        self.bytes.writes(at..at + len);
        // SAFETY: the range lies within the chunk and above `published`, where the append lock's holder, we, has
        // exclusive access.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.bytes.as_ptr().add(at), len) };
        self.published.store(at + len, Ordering::Release);
        len
    }
}

pub(crate) struct Ring {
    chunks: RwLock<VecDeque<Arc<Chunk>>>,
    max_chunks: usize,
    oldest: AtomicU64,
}

/// The writer's end of the ring; lives inside the append lock.
pub(crate) struct RingTail {
    chunk: Arc<Chunk>,
    pub(crate) position: u64,
}

impl Ring {
    pub(crate) fn new(bytes: usize, position: u64) -> (Self, RingTail) {
        let max_chunks = bytes.div_ceil(CHUNK).max(2);
        let ring = Self {
            chunks: RwLock::new(VecDeque::with_capacity(max_chunks)),
            max_chunks,
            oldest: AtomicU64::new(position),
        };
        let tail = ring.reset(position);
        (ring, tail)
    }

    /// Forgets everything; the log goes on at `position`.
    pub(crate) fn reset(&self, position: u64) -> RingTail {
        let base = position - position % CHUNK as u64;
        let chunk = Arc::new(Chunk::new(base, position, None));
        let mut chunks = self.chunks.write();
        chunks.clear();
        chunks.push_back(chunk.clone());
        self.oldest.store(position, Ordering::Release);
        RingTail { chunk, position }
    }

    /// Forgets what lies at `position` and behind it; the log goes on there. What readers hold stays as it is.
    pub(crate) fn cut(&self, position: u64) -> RingTail {
        let mut chunks = self.chunks.write();
        while chunks.back().is_some_and(|chunk| chunk.base >= position) {
            chunks.pop_back();
        }
        match chunks.pop_back().filter(|chunk| chunk.start < position) {
            Some(last) => {
                let chunk = if position < last.end() {
                    let shorter = Chunk::new(last.base, last.start, None);
                    shorter.push(last.slice(last.start, position));
                    Arc::new(shorter)
                } else {
                    last
                };
                chunks.push_back(chunk.clone());
                RingTail { chunk, position }
            }
            None => {
                drop(chunks);
                self.reset(position)
            }
        }
    }

    /// Bytes that may lie between `written` and the end: the chunk at either end may be held only in part.
    pub(crate) fn capacity(&self) -> u64 {
        ((self.max_chunks - 1) * CHUNK) as u64
    }

    pub(crate) fn bytes(&self) -> usize {
        self.chunks.read().len() * CHUNK
    }

    /// First position still held.
    pub(crate) fn oldest(&self) -> u64 {
        self.oldest.load(Ordering::Acquire)
    }

    /// Only under the append lock, and only within `capacity` above what is written.
    pub(crate) fn push(&self, tail: &mut RingTail, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if tail.position == tail.chunk.end() {
                tail.chunk = self.grow(tail.position);
            }
            let n = tail.chunk.push(bytes);
            tail.position += n as u64;
            bytes = &bytes[n..];
        }
    }

    fn grow(&self, base: u64) -> Arc<Chunk> {
        let mut chunks = self.chunks.write();
        let recycled = if chunks.len() >= self.max_chunks {
            chunks
                .pop_front()
                .and_then(|chunk| Arc::try_unwrap(chunk).ok())
                .map(|chunk| chunk.bytes)
        } else {
            None
        };
        let chunk = Arc::new(Chunk::new(base, base, recycled));
        chunks.push_back(chunk.clone());
        if let Some(first) = chunks.front() {
            self.oldest.store(first.start, Ordering::Release);
        }
        chunk
    }

    pub(crate) fn chunk_at(&self, position: u64) -> Option<Arc<Chunk>> {
        let chunks = self.chunks.read();
        let first = chunks.front()?;
        if position < first.start {
            return None;
        }
        chunks
            .get(((position - first.base) / CHUNK as u64) as usize)
            .cloned()
    }

    pub(crate) fn cursor(&self) -> Cursor<'_> {
        Cursor {
            ring: self,
            chunk: None,
        }
    }
}

/// Reads from the ring; keeps the chunk at hand for the next read.
pub(crate) struct Cursor<'a> {
    ring: &'a Ring,
    chunk: Option<Arc<Chunk>>,
}

impl Cursor<'_> {
    /// Hands out `from..to` piece by piece; false if it is not (or not any more) all in memory, in which case some
    /// pieces may have been handed out.
    pub(crate) fn read(&mut self, mut from: u64, to: u64, mut take: impl FnMut(&[u8])) -> bool {
        while from < to {
            if !self
                .chunk
                .as_ref()
                .is_some_and(|c| c.base <= from && from < c.end())
            {
                self.chunk = self.ring.chunk_at(from);
            }
            let Some(chunk) = &self.chunk else {
                return false;
            };
            let piece = chunk.slice(from, to);
            if piece.is_empty() {
                return false;
            }
            take(piece);
            from += piece.len() as u64;
        }
        true
    }

    /// Chunks that hold `from..to`, for one vectored write.
    pub(crate) fn chunks(&self, from: u64, to: u64) -> Vec<Arc<Chunk>> {
        let chunks = self.ring.chunks.read();
        chunks
            .iter()
            .filter(|c| c.base < to && from < c.end())
            .cloned()
            .collect()
    }
}
