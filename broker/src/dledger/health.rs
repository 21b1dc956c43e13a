//! Whether a member can do its part: its thread comes round, its log takes what comes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use store::Store;

use super::core::{STALL_TICKS, TICK_MS};

/// A thread that did not come round for so long hangs, and a log that took nothing for so long has no room.
const STALL: Duration = Duration::from_millis(STALL_TICKS * TICK_MS);
/// A flush in the background has so long from when it is due: a disk may need a while for all that a log lets wait.
const FLUSH_STALL: Duration = Duration::from_secs(30);

/// When the group's thread came round last, for those who must know when it hangs.
pub(super) struct Pulse {
    began: Instant,
    last_ms: AtomicU64,
    /// Whether somebody took the role from the broker because the thread hung.
    deposed: Mutex<bool>,
    ended: Mutex<bool>,
    end: Condvar,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            last_ms: AtomicU64::new(0),
            deposed: Mutex::new(false),
            ended: Mutex::new(false),
            end: Condvar::new(),
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
        let last = self.last_ms.load(Ordering::Acquire);
        Duration::from_millis(self.now_ms().saturating_sub(last)) >= STALL
    }

    /// Whether the broker's role was taken from it meanwhile. While this is held nobody takes it.
    pub(super) fn deposed(&self) -> MutexGuard<'_, bool> {
        self.deposed.lock()
    }

    /// The thread comes round no more.
    pub(super) fn end(&self) {
        *self.ended.lock() = true;
        self.end.notify_all();
    }

    /// Waits so long, or until the thread ends: true then.
    pub(super) fn ended_within(&self, time: Duration) -> bool {
        let mut ended = self.ended.lock();
        if !*ended {
            self.end.wait_for(&mut ended, time);
        }
        *ended
    }
}

/// What the log says of itself at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogState {
    /// Not while the disk is full.
    pub(super) writable: bool,
    /// Whether its own bounds let anything in.
    pub(super) has_room: bool,
    pub(super) written: u64,
    pub(super) flushed: u64,
}

impl LogState {
    pub(super) fn of(store: &Store) -> Self {
        Self {
            writable: store.writable().is_ok(),
            has_room: store.has_room(1),
            written: store.written(),
            flushed: store.flushed(),
        }
    }
}

/// How long the log has been as it is.
pub(super) struct Room {
    flush_due_after: Duration,
    full_since: Option<Instant>,
    flushed: u64,
    flushed_at: Instant,
}

impl Room {
    /// `flush_due_after`: what is written is flushed after so long at the latest (`flushCommitLogThoroughInterval`).
    pub(super) fn new(flush_due_after: Duration, now: Instant) -> Self {
        Self {
            flush_due_after,
            full_since: None,
            flushed: 0,
            flushed_at: now,
        }
    }

    /// Whether the log takes anything. One whose disk is full does not; one that is at a bound of its own, because its
    /// disk is slower than its senders, mostly does in a moment; one whose background flushes hang is about to be.
    pub(super) fn look(&mut self, log: LogState, now: Instant) -> bool {
        self.full_since = match log.has_room {
            true => None,
            false => self.full_since.or(Some(now)),
        };
        if log.flushed >= log.written || log.flushed != self.flushed {
            (self.flushed, self.flushed_at) = (log.flushed, now);
        }
        log.writable
            && self.full_since.is_none_or(|since| now - since < STALL)
            && now - self.flushed_at < self.flush_due_after + FLUSH_STALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUE: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    fn log(written: u64, flushed: u64) -> LogState {
        LogState {
            writable: true,
            has_room: true,
            written,
            flushed,
        }
    }

    #[test]
    fn a_full_disk_is_no_room_at_once_and_a_bound_of_the_log_only_after_a_while() {
        let now = Instant::now();
        let mut room = Room::new(DUE, now);
        let full = LogState {
            writable: false,
            ..log(9, 9)
        };
        assert!(!room.look(full, now));
        assert!(room.look(log(9, 9), now));
        let bounded = LogState {
            has_room: false,
            ..log(9, 9)
        };
        assert!(room.look(bounded, now));
        assert!(room.look(bounded, now + STALL - SECOND));
        assert!(room.look(log(9, 9), now + STALL - SECOND));
        assert!(room.look(bounded, now + STALL), "it took something since");
        assert!(!room.look(bounded, now + 2 * STALL));
    }

    #[test]
    fn a_background_flush_that_hangs_is_no_room_in_the_end() {
        let now = Instant::now();
        let mut room = Room::new(DUE, now);
        let late = DUE + FLUSH_STALL;
        assert!(room.look(log(9, 9), now + 5 * late), "nothing to flush");
        let now = now + 5 * late;
        assert!(room.look(log(20, 9), now + late - SECOND));
        assert!(!room.look(log(20, 9), now + late));
        assert!(room.look(log(30, 15), now + late), "slow, but it goes on");
        assert!(room.look(log(30, 15), now + 2 * late - SECOND));
    }

    #[test]
    fn a_thread_that_comes_round_does_not_hang() {
        let pulse = Pulse::new();
        pulse.beat();
        assert!(!pulse.hangs());
        assert!(!pulse.ended_within(Duration::ZERO));
        pulse.end();
        assert!(pulse.ended_within(Duration::MAX));
    }
}
