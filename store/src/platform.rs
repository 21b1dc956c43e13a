//! What systems do differently. Linux has all of it; elsewhere the store is slower, never less safe.

use std::fs::File;

/// Bytes of memory of this machine, where the system tells.
#[cfg(target_os = "linux")]
pub fn memory_bytes() -> Option<u64> {
    let info = rustix::system::sysinfo();
    let total = info.totalram.saturating_mul(u64::from(info.mem_unit));
    (total > 0).then_some(total)
}

/// Bytes of memory of this machine, where the system tells.
#[cfg(not(target_os = "linux"))]
pub fn memory_bytes() -> Option<u64> {
    None
}

/// Takes disk space for a part of a file without changing its length; false where that is not possible.
#[cfg(target_os = "linux")]
pub(crate) fn reserve(file: &File, at: u64, len: u64) -> bool {
    rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, at, len).is_ok()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn reserve(_file: &File, _at: u64, _len: u64) -> bool {
    false
}

/// Makes a hole in a file, which reads as zeros; false where that is not possible.
#[cfg(target_os = "linux")]
pub(crate) fn punch_hole(file: &File, at: u64, len: u64) -> bool {
    use rustix::fs::FallocateFlags;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, at, len).is_ok()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn punch_hole(_file: &File, _at: u64, _len: u64) -> bool {
    false
}

/// Whether anything was ever written to a file at or behind this place, as far as the system tells.
#[cfg(target_os = "linux")]
pub(crate) fn has_data_from(file: &File, at: u64) -> bool {
    let next = rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at));
    !matches!(next, Err(rustix::io::Errno::NXIO))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn has_data_from(_file: &File, _at: u64) -> bool {
    true
}

/// Says that a part of a file will not be read again soon.
#[cfg(target_os = "linux")]
pub(crate) fn let_go(file: &File, at: u64, len: u64) {
    let len = std::num::NonZeroU64::new(len);
    if len.is_some() {
        let _ = rustix::fs::fadvise(file, at, len, rustix::fs::Advice::DontNeed);
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn let_go(_file: &File, _at: u64, _len: u64) {}

/// Makes all that was written to the file system of this folder durable, where one call does that; `None` where files must be synced one by one.
#[cfg(target_os = "linux")]
pub(crate) fn sync_file_system(folder: &File) -> Option<std::io::Result<()>> {
    Some(rustix::fs::syncfs(folder).map_err(Into::into))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn sync_file_system(_folder: &File) -> Option<std::io::Result<()>> {
    None
}
