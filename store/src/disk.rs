//! The few file operations that fault tests must be able to break.

use std::fs::File;
use std::io::{self, IoSlice};

/// Writes and syncs of log, queue and index files go through this seam; everything else uses `std::fs`.
pub trait Disk: Send + Sync + 'static {
    /// May write less than given, like `pwritev`.
    fn write_at(&self, file: &File, buffers: &[IoSlice<'_>], position: u64) -> io::Result<usize>;
    fn sync_data(&self, file: &File) -> io::Result<()>;
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
