//! How threads are woken: no wake-up is lost, and many requests cost one.

use std::time::Duration;

use crate::sync::{AtomicBool, Condvar, Mutex, Ordering, fence};

/// A condition with a memory: a wake-up given while nobody sleeps is not lost.
pub(crate) struct Signal {
    raised: Mutex<bool>,
    condition: Condvar,
}

impl Default for Signal {
    fn default() -> Self {
        Self {
            raised: Mutex::new(false),
            condition: Condvar::new(),
        }
    }
}

impl Signal {
    pub(crate) fn raise(&self) {
        let mut raised = self.raised.lock();
        if !*raised {
            *raised = true;
            self.condition.notify_one();
        }
    }

    pub(crate) fn wait(&self, timeout: Duration) {
        let mut raised = self.raised.lock();
        if !*raised {
            self.condition.wait_for(&mut raised, timeout);
        }
        *raised = false;
    }
}

/// Something that is wanted of another thread, often before it gets to it: only the first request rings, and who takes it sees what was done before any.
pub(crate) struct Wanted(AtomicBool);

impl Wanted {
    pub(crate) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    pub(crate) fn ask(&self, signal: &Signal) {
        if !self.0.swap(true, Ordering::AcqRel) {
            signal.raise();
        }
    }

    /// Whether anybody asked since the last time.
    pub(crate) fn take(&self) -> bool {
        let wanted = self.0.swap(false, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        wanted
    }
}
