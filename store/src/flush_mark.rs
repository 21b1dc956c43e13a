//! How far the log was synced, for the next life of this broker in the same run of the kernel.
//!
//! Linux calls pages clean whose write-back failed: they are read as if nothing had happened, a later fdatasync succeeds
//! without them, and a power cut takes them. So after a process died, what lies behind the last sync that succeeded must
//! not count because a sync succeeds now: it is written once more first ([`Segments::rewrite`]). Queues and index are not
//! worth that: after a failure the page cache forgets them, and what the disk lacks comes from the log. After another start
//! of the machine everything that is read came from the disk, and this file says nothing.
//!
//! | magic 8 | run of the kernel 16 | position 8 | a sync failed 1 | CRC 4 |
//!
//! Never synced itself: it is only ever read from the page cache that it speaks of.
//!
//! [`Segments::rewrite`]: crate::segment::Segments::rewrite

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::checkpoint::boot_id;
use crate::disk::{Disk, read_full_at};
use crate::error::Error;

const MAGIC: &[u8; 8] = b"RCflsh01";
const LEN: usize = 8 + 16 + 8 + 1 + 4;

/// What the last life noted, if the machine was not started since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    /// The log below this was synced.
    pub(crate) flushed: u64,
    /// A write or a sync failed: of what was not synced anything may be gone once the page cache lets go of it.
    pub(crate) failed: bool,
}

impl Noted {
    fn encode(self, boot: [u8; 16]) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..8].copy_from_slice(MAGIC);
        out[8..24].copy_from_slice(&boot);
        out[24..32].copy_from_slice(&self.flushed.to_be_bytes());
        out[32] = u8::from(self.failed);
        let crc = crc32fast::hash(&out[..LEN - 4]);
        out[LEN - 4..].copy_from_slice(&crc.to_be_bytes());
        out
    }

    fn decode(bytes: &[u8; LEN], boot: [u8; 16]) -> Option<Self> {
        let (content, crc) = bytes.split_at(LEN - 4);
        // Where the system does not tell its runs apart, it may always be the same.
        let holds = content.starts_with(MAGIC)
            && content[8..24] == boot
            && crc32fast::hash(content).to_be_bytes() == crc;
        holds.then_some(Self {
            flushed: crate::record::i64_at(content, 24)? as u64,
            failed: content[32] != 0,
        })
    }
}

pub(crate) struct FlushMark {
    path: PathBuf,
    file: File,
    boot: [u8; 16],
    noted: Mutex<Noted>,
}

impl FlushMark {
    /// The mark of this folder, and what it said. [`FlushMark::begin`] must follow before the log is written.
    pub(crate) fn open(root: &Path) -> Result<(Self, Option<Noted>), Error> {
        let path = root.join("flushed");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e))?;
        let mut bytes = [0; LEN];
        read_full_at(&file, &mut bytes, 0).map_err(|e| Error::io("read", &path, e))?;
        let boot = boot_id();
        let noted = Noted::decode(&bytes, boot);
        let mark = Self {
            path,
            file,
            boot,
            noted: Mutex::new(noted.unwrap_or(Noted {
                flushed: 0,
                failed: false,
            })),
        };
        Ok((mark, noted))
    }

    fn change(&self, change: impl FnOnce(&mut Noted)) -> Result<(), Error> {
        let mut noted = self.noted.lock();
        change(&mut noted);
        self.write(*noted)
            .map_err(|e| Error::io("write", &self.path, e))
    }

    fn write(&self, noted: Noted) -> io::Result<()> {
        self.file.write_all_at(&noted.encode(self.boot), 0)
    }

    /// Another life begins, with so much on disk. A failure of the one before stays known until a sync succeeds.
    pub(crate) fn begin(&self, flushed: u64) -> Result<(), Error> {
        self.change(|noted| noted.flushed = flushed)
    }

    /// A sync succeeded. That this is not noted when the disk is full does no harm: the last one is.
    pub(crate) fn synced(&self, flushed: u64) {
        let noted = self.change(|noted| {
            *noted = Noted {
                flushed,
                failed: false,
            }
        });
        if let Err(error) = noted {
            tracing::warn!(%error, "how far the log is on disk could not be noted");
        }
    }

    /// Other bytes are about to be written from this position on.
    pub(crate) fn cut(&self, position: u64) -> Result<(), Error> {
        self.change(|noted| noted.flushed = noted.flushed.min(position))
    }

    /// A write or a sync failed.
    pub(crate) fn failed(&self) {
        if let Err(error) = self.change(|noted| noted.failed = true) {
            tracing::warn!(%error, "that the disk failed could not be noted");
        }
    }
}

/// What is read of the files below this folder comes from the disk from now on.
pub(crate) fn forget_cached(folder: &Path, disk: &dyn Disk) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            forget_cached(&entry.path(), disk)?;
            continue;
        }
        let file = File::open(entry.path())?;
        // What is dirty stays. What fails now is clean, and goes.
        if let Err(error) = disk.sync_data(&file) {
            tracing::warn!(%error, path = %entry.path().display(), "a file could not be synced");
        }
        disk.let_go(&file, 0, file.metadata()?.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_speaks_of_this_run_of_the_kernel_only_and_not_when_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let (mark, none) = FlushMark::open(dir.path()).unwrap();
        assert_eq!(none, None);
        mark.begin(5).unwrap();
        mark.synced(9);
        mark.failed();
        let noted = Noted {
            flushed: 9,
            failed: true,
        };
        let (mark, read) = FlushMark::open(dir.path()).unwrap();
        assert_eq!(read, Some(noted));
        mark.begin(7).unwrap();
        mark.cut(8).unwrap();
        assert!(FlushMark::open(dir.path()).unwrap().1.unwrap().failed);
        mark.synced(7);
        mark.cut(6).unwrap();
        let (_, read) = FlushMark::open(dir.path()).unwrap();
        assert_eq!(read.map(|n| (n.flushed, n.failed)), Some((6, false)));
        let bytes = noted.encode([7; 16]);
        assert_eq!(Noted::decode(&bytes, [7; 16]), Some(noted));
        assert_eq!(Noted::decode(&bytes, [8; 16]), None);
        for at in 0..LEN {
            let mut bad = bytes;
            bad[at] ^= 1;
            assert_eq!(Noted::decode(&bad, [7; 16]), None, "byte {at}");
        }
    }
}
