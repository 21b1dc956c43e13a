//! The few file operations that fault tests must be able to break.

use std::fs::File;
use std::io::{self, IoSlice};

/// Writes and syncs of log, queue and index files go through this seam, and what makes the page cache forget them;
/// everything else uses `std::fs`.
pub trait Disk: Send + Sync + 'static {
    /// May write less than given, like `pwritev`.
    fn write_at(&self, file: &File, buffers: &[IoSlice<'_>], position: u64) -> io::Result<usize>;
    fn sync_data(&self, file: &File) -> io::Result<()>;
    /// The page cache lets go of a part of a file, but for what is not written to the disk yet.
    fn let_go(&self, file: &File, at: u64, len: u64) {
        crate::platform::let_go(file, at, len);
    }
    /// Everything that was written to the file system of this folder, where one call does that; `None` where files must
    /// be synced one by one.
    fn sync_everything(&self, folder: &File) -> Option<io::Result<()>> {
        crate::platform::sync_file_system(folder)
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn write_at(&self, file: &File, buffers: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        if let [one] = buffers {
            return std::os::unix::fs::FileExt::write_at(file, one, position);
        }
        Ok(rustix::io::pwritev(file, buffers, position)?)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

/// Writes all of it, going on after short writes and signals.
pub(crate) fn write_all_at(
    disk: &dyn Disk,
    file: &File,
    mut bytes: &[u8],
    mut position: u64,
) -> io::Result<()> {
    while !bytes.is_empty() {
        match disk.write_at(file, &[IoSlice::new(bytes)], position) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                position += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Makes zeros of a file from a place on, without changing its length.
pub(crate) fn zero_from(disk: &dyn Disk, file: &File, mut at: u64, end: u64) -> io::Result<()> {
    if at >= end || crate::platform::punch_hole(file, at, end - at) {
        return Ok(());
    }
    // A file system without holes: only what is not zero is written over.
    const STEP: u64 = 1 << 20;
    let mut buffer = vec![0u8; STEP as usize];
    let zeros = vec![0u8; STEP as usize];
    while at < end {
        let wanted = (end - at).min(STEP) as usize;
        let n = read_full_at(file, &mut buffer[..wanted], at)?;
        if n == 0 {
            break;
        }
        if buffer[..n].iter().any(|b| *b != 0) {
            write_all_at(disk, file, &zeros[..n], at)?;
        }
        at += n as u64;
    }
    Ok(())
}

/// Reads until the buffer is full or the file ends; returns how much.
pub(crate) fn read_full_at(file: &File, buffer: &mut [u8], position: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match std::os::unix::fs::FileExt::read_at(file, &mut buffer[done..], position + done as u64)
        {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
