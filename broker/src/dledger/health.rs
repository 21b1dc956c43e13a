//! Whether a member can do its part: its thread runs, its log takes what comes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use store::Store;

use super::core::{STALL_TICKS, TICK_MS};

/// A thread that did not come round for so long hangs, and a log that took nothing for so long has no room.
const STALL: Duration = Duration::from_millis(STALL_TICKS * TICK_MS);

/// When the group's thread came round last, for those who must know when it hangs.
pub(super) struct Pulse {
    began: Instant,
    last_ms: AtomicU64,
    /// Whether somebody took the role from the broker because the thread hung.
    deposed: Mutex<bool>,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            last_ms: AtomicU64::new(0),
            deposed: Mutex::new(false),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The thread came round.
    pub(super) fn beat(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Release);
    }

    /// Whether the thread hangs.
    pub(super) fn hangs(&self) -> bool {
        let silent = self.now_ms() - self.last_ms.load(Ordering::Acquire).min(self.now_ms());
        Duration::from_millis(silent) >= STALL
    }

    /// Whether the broker's role was taken from it meanwhile. While this is held nobody takes it.
    pub(super) fn deposed(&self) -> MutexGuard<'_, bool> {
        self.deposed.lock()
    }
}

/// Since when the log takes nothing.
#[derive(Default)]
pub(super) struct Room {
    refused_since: Option<Instant>,
}

impl Room {
    /// Whether the log takes anything. One whose disk is full does not; one that is at a bound of its own, because the
    /// disk is slower than the senders, mostly does in a moment.
    pub(super) fn look(&mut self, store: &Store, now: Instant) -> bool {
        self.refused_since = match store.has_room(1) {
            true => None,
            false => self.refused_since.or(Some(now)),
        };
        let since = self.refused_since;
        store.writable().is_ok() && since.is_none_or(|since| now - since < STALL)
    }
}
