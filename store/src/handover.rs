//! Who works: at most one thread at a time, and never nobody while there is work.

use crate::sync::{Mutex, MutexGuard, Ordering, fence};

/// The state of whoever works, and the right to.
pub(crate) struct Handover<T>(Mutex<T>);

impl<T> Handover<T> {
    pub(crate) fn new(state: T) -> Self {
        Self(Mutex::new(state))
    }

    /// Keeps all others from working. Whoever comes meanwhile goes away: call [`Handover::drive`] afterwards.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock()
    }

    /// Works until there is nothing left or somebody else does; false if there was still work after so many rounds. `round` says whether it did any.
    pub(crate) fn drive(
        &self,
        mut rounds: usize,
        has_work: impl Fn() -> bool,
        mut round: impl FnMut(&mut T) -> bool,
    ) -> bool {
        loop {
            // Pairs with the fence below: either our caller's work is seen by who works now, or we get the lock.
            fence(Ordering::SeqCst);
            let Some(mut state) = self.0.try_lock() else {
                return true;
            };
            while rounds > 0 && round(&mut state) {
                rounds -= 1;
            }
            drop(state);
            fence(Ordering::SeqCst);
            if !has_work() {
                return true;
            }
            if rounds == 0 {
                return false;
            }
        }
    }
}
