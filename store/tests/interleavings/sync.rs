//! The module `sync` of the crate, made of loom's primitives.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut, Range};
use std::time::Duration;

pub(crate) use loom::sync::Arc;
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

/// Few bytes, so that a handful fills a chunk.
pub(crate) const CHUNK: usize = 2;

pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

pub(crate) struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(self.0.lock().ok())
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok().map(|guard| MutexGuard(Some(guard)))
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().unwrap()
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().unwrap()
    }
}

pub(crate) struct Condvar(loom::sync::Condvar);

impl Condvar {
    pub(crate) fn new() -> Self {
        Self(loom::sync::Condvar::new())
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Without the time-out: a wake-up that is lost is a deadlock, which loom reports.
    pub(crate) fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _timeout: Duration) {
        let held = guard.0.take().unwrap();
        guard.0 = self.0.wait(held).ok();
    }
}

pub(crate) struct RwLock<T>(loom::sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> loom::sync::RwLockReadGuard<'_, T> {
        self.0.read().unwrap()
    }

    pub(crate) fn write(&self) -> loom::sync::RwLockWriteGuard<'_, T> {
        self.0.write().unwrap()
    }
}

/// Each byte beside a cell through which loom sees who touches it.
pub(crate) struct Cells {
    bytes: Box<[UnsafeCell<u8>]>,
    seen: Box<[loom::cell::UnsafeCell<()>]>,
}

// SAFETY: as in the crate; here loom watches that the rule is kept.
unsafe impl Sync for Cells {}

impl Cells {
    pub(crate) fn zeroed(len: usize) -> Self {
        Self {
            bytes: (0..len).map(|_| UnsafeCell::new(0)).collect(),
            seen: (0..len).map(|_| loom::cell::UnsafeCell::new(())).collect(),
        }
    }

    pub(crate) fn reads(&self, range: Range<usize>) {
        self.seen[range].iter().for_each(|cell| cell.with(|_| ()));
    }

    pub(crate) fn writes(&self, range: Range<usize>) {
        self.seen[range]
            .iter()
            .for_each(|cell| cell.with_mut(|_| ()));
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.bytes.as_ptr().cast::<u8>().cast_mut()
    }
}
