//! What ring, hand-over and signals are built of. `tests/interleavings` compiles these files with a module of the same name made of loom's primitives, and goes
//! through the orders in which threads may run.

use std::cell::UnsafeCell;
use std::ops::Range;

pub(crate) use std::sync::Arc;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

/// Bytes of a chunk of the tail ring: small enough to touch memory lazily, large enough that a batch rarely meets a border.
pub(crate) const CHUNK: usize = 1 << 20;

/// Bytes of which one thread writes some while others read others; who may touch which is the owner's rule.
pub(crate) struct Cells(Box<[UnsafeCell<u8>]>);

// SAFETY: the type gives out a raw pointer only; see the rule of whoever uses it.
unsafe impl Sync for Cells {}

impl Cells {
    pub(crate) fn zeroed(len: usize) -> Self {
        let zeroed = Box::into_raw(vec![0u8; len].into_boxed_slice());
        // SAFETY: UnsafeCell<u8> has the layout of u8, and the box was just given up.
        Self(unsafe { Box::from_raw(zeroed as *mut [UnsafeCell<u8>]) })
    }

    /// Called before a range is read; loom finds out whether somebody may write it at the same time.
    pub(crate) fn reads(&self, _range: Range<usize>) {}

    /// The same before a range is written.
    pub(crate) fn writes(&self, _range: Range<usize>) {}

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        // A pointer to all of it: that each byte is an UnsafeCell is what allows writing through it.
        self.0.as_ptr().cast::<u8>().cast_mut()
    }
}
