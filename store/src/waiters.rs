//! What waits until the log has reached a position.
//!
//! Invariant: something is queued under the lock that a release takes after the watermark moved, and the watermark is read again under that lock; so nothing is left
//! behind, and nothing is released twice.

use std::collections::VecDeque;

use crate::sync::Mutex;

/// In the order of the positions waited for.
pub struct Waiters<T>(Mutex<VecDeque<(u64, T)>>);

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }
}

impl<T> Waiters<T> {
    /// Keeps `item` until `end` is reached; gives it back when the watermark, which `reached` reads, is there already.
    pub fn wait(&self, end: u64, item: T, reached: impl Fn() -> u64) -> Option<T> {
        let mut queue = self.0.lock();
        if reached() >= end {
            return Some(item);
        }
        // Nearly always the last.
        let at = queue
            .iter()
            .rposition(|(other, _)| *other <= end)
            .map_or(0, |at| at + 1);
        queue.insert(at, (end, item));
        None
    }

    /// Takes everything whose position is reached.
    pub fn release(&self, reached: u64) -> Vec<T> {
        let mut queue = self.0.lock();
        let count = queue.partition_point(|(end, _)| *end <= reached);
        queue.drain(..count).map(|(_, item)| item).collect()
    }

    /// Takes what is chosen, by its position and itself.
    pub fn take(&self, chosen: impl Fn(u64, &T) -> bool) -> Vec<T> {
        let mut queue = self.0.lock();
        let mut taken = Vec::new();
        if queue.iter().any(|(end, item)| chosen(*end, item)) {
            let mut kept = VecDeque::with_capacity(queue.len());
            for (end, item) in queue.drain(..) {
                if chosen(end, &item) {
                    taken.push(item);
                } else {
                    kept.push_back((end, item));
                }
            }
            *queue = kept;
        }
        taken
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> std::fmt::Debug for Waiters<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiters").finish_non_exhaustive()
    }
}
