//! The CommitLog's files: equal in length, named by the 20-digit position of their first byte, dense.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::disk::{Disk, read_full_at, write_all_at, zero_from};
use crate::error::Error;

/// The page cache holds, and lets go, pieces of this and of larger powers of two, at multiples of their length.
const PAGE: u64 = 4096;
const LARGEST_PIECE: u64 = 2 << 20;

pub(crate) struct Segment {
    pub(crate) base: u64,
    pub(crate) size: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// The folder's entry for this file is on disk.
    pub(crate) entry_synced: AtomicBool,
}

impl Segment {
    pub(crate) fn end(&self) -> u64 {
        self.base + self.size
    }
}

pub(crate) fn file_name(base: u64) -> String {
    format!("{base:020}")
}

/// Bases of the files in a folder that are named by their position, sorted; other names are ignored.
pub(crate) fn numbered_files(dir: &Path) -> io::Result<Vec<u64>> {
    let mut bases = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(bases),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let name = entry?.file_name();
        if let Some(base) = name
            .to_str()
            .filter(|n| n.len() == 20)
            .and_then(|n| n.parse().ok())
        {
            bases.push(base);
        }
    }
    bases.sort_unstable();
    Ok(bases)
}

pub(crate) struct Segments {
    dir: PathBuf,
    size: u64,
    disk: Arc<dyn Disk>,
    list: RwLock<Vec<Arc<Segment>>>,
    creating: Mutex<()>,
    min: AtomicU64,
}

impl Segments {
    /// Opens what is there. The files decide their size; a last file that was never finished is completed.
    pub(crate) fn open(
        dir: PathBuf,
        configured_size: u64,
        disk: Arc<dyn Disk>,
    ) -> Result<Self, Error> {
        fs::create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
        let mut bases = numbered_files(&dir).map_err(|e| Error::io("list", &dir, e))?;
        let length = |base: u64| {
            let path = dir.join(file_name(base));
            fs::metadata(&path)
                .map(|m| m.len())
                .map_err(|e| Error::io("look at", path, e))
        };
        // An empty file at the end was created but never got its length: it holds nothing.
        while let Some(&last) = bases.last() {
            if length(last)? != 0 {
                break;
            }
            let path = dir.join(file_name(last));
            fs::remove_file(&path).map_err(|e| Error::io("remove", path, e))?;
            bases.pop();
        }
        let size = match bases[..] {
            [] => configured_size,
            // Its length was never set, or it lost its end: no broker makes files of such a length.
            [one] if length(one)? < configured_size && !length(one)?.is_multiple_of(1024) => {
                configured_size
            }
            [one] => length(one)?,
            [first, second, ..] => second - first,
        };
        if size != configured_size {
            tracing::warn!(
                size,
                configured_size,
                "the commit log keeps the file size it was created with"
            );
        }
        let mut list = Vec::with_capacity(bases.len());
        for (i, &base) in bases.iter().enumerate() {
            let path = dir.join(file_name(base));
            if base % size != 0 || base != bases[0] + i as u64 * size {
                return Err(Error::Damaged(format!(
                    "commit log file {} does not follow the one before it",
                    path.display()
                )));
            }
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .map_err(|e| Error::io("open", &path, e))?;
            let length = length(base)?;
            if length != size {
                if i + 1 < bases.len() || length > size {
                    return Err(Error::Damaged(format!(
                        "commit log file {} has {length} bytes instead of {size}",
                        path.display()
                    )));
                }
                file.set_len(size)
                    .map_err(|e| Error::io("extend", &path, e))?;
            }
            list.push(Arc::new(Segment {
                base,
                size,
                path,
                file,
                entry_synced: AtomicBool::new(true),
            }));
        }
        let min = bases.first().copied().unwrap_or(0);
        Ok(Self {
            dir,
            size,
            disk,
            list: RwLock::new(list),
            creating: Mutex::new(()),
            min: AtomicU64::new(min),
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// First position of the log.
    pub(crate) fn min(&self) -> u64 {
        self.min.load(Ordering::Acquire)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Segment>> {
        self.list.read().clone()
    }

    pub(crate) fn last_end(&self) -> u64 {
        self.list.read().last().map_or(0, |s| s.end())
    }

    pub(crate) fn at(&self, position: u64) -> Option<Arc<Segment>> {
        let list = self.list.read();
        let first = list.first()?;
        list.get(usize::try_from(position.checked_sub(first.base)? / self.size).ok()?)
            .cloned()
    }

    /// The segment of `position`, created sparse at its full length if it is the next one.
    pub(crate) fn ensure(&self, position: u64) -> Result<Arc<Segment>, Error> {
        if let Some(segment) = self.at(position) {
            return Ok(segment);
        }
        let _creating = self.creating.lock();
        if let Some(segment) = self.at(position) {
            return Ok(segment);
        }
        let wanted = position - position % self.size;
        // Dense from the end of what there is; an empty log begins where it is told to.
        let mut base = self.list.read().last().map_or(wanted, |last| last.end());
        loop {
            let segment = Arc::new(self.create(base)?);
            let mut list = self.list.write();
            if list.is_empty() {
                self.min.store(base, Ordering::Release);
            }
            list.push(segment.clone());
            if base >= wanted {
                return Ok(segment);
            }
            base += self.size;
        }
    }

    fn create(&self, base: u64) -> Result<Segment, Error> {
        let path = self.dir.join(file_name(base));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .and_then(|file| file.set_len(self.size).map(|()| file))
            .map_err(|e| Error::io("create", &path, e))?;
        Ok(Segment {
            base,
            size: self.size,
            path,
            file,
            entry_synced: AtomicBool::new(false),
        })
    }

    /// Makes the folder's entries durable up to this segment.
    fn sync_entry(&self, segment: &Segment) -> io::Result<()> {
        if segment.entry_synced.load(Ordering::Acquire) {
            return Ok(());
        }
        File::open(&self.dir)?.sync_all()?;
        segment.entry_synced.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes `from..to`, which lies within the segment, once more with what it holds, so that a sync that follows speaks
    /// of it. See [`crate::flush_mark`] for why.
    ///
    /// The page cache lets go of each piece first: ext4 remembers with a page where it lies on disk, also when writing it
    /// there failed and the blocks were never marked as written. Only a page that is made anew goes that whole way again;
    /// one that is only written again is synced with success, and reads as zeros after the next start of the machine
    /// (seen with Linux 6.18). What is dirty is synced before, so that nothing is let go that is nowhere else. Between
    /// letting go and writing, readers may see what the disk holds.
    pub(crate) fn rewrite(&self, segment: &Segment, from: u64, to: u64) -> io::Result<()> {
        self.disk.sync_data(&segment.file)?;
        let end = to - segment.base;
        let mut at = (from - segment.base) / PAGE * PAGE;
        let mut buffer = vec![0; LARGEST_PIECE as usize];
        while at < end {
            let whole = at / LARGEST_PIECE * LARGEST_PIECE;
            let piece = &mut buffer[..(end.min(whole + LARGEST_PIECE) - at) as usize];
            if read_full_at(&segment.file, piece, at)? < piece.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.disk.let_go(&segment.file, whole, LARGEST_PIECE);
            write_all_at(&*self.disk, &segment.file, piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// [`Segments::rewrite`] and a sync, of as many segments as it takes.
    pub(crate) fn rewrite_and_sync(&self, mut from: u64, to: u64) -> Result<(), Error> {
        while let Some(segment) = self.at(from).filter(|_| from < to) {
            let end = to.min(segment.end());
            self.rewrite(&segment, from, end)
                .and_then(|()| self.sync(&segment))
                .map_err(|e| Error::io("write again", &segment.path, e))?;
            from = end;
        }
        Ok(())
    }

    /// Makes what is written of this segment durable, its name too.
    pub(crate) fn sync(&self, segment: &Segment) -> io::Result<()> {
        self.disk.sync_data(&segment.file)?;
        self.sync_entry(segment)
    }

    /// Deletes the oldest segment; never the last. Returns false if there is nothing to delete.
    pub(crate) fn remove_first(&self) -> Result<bool, Error> {
        let first = {
            let mut list = self.list.write();
            if list.len() < 2 {
                return Ok(false);
            }
            let first = list.remove(0);
            self.min.store(list[0].base, Ordering::Release);
            first
        };
        fs::remove_file(&first.path).map_err(|e| Error::io("remove", &first.path, e))?;
        Ok(true)
    }

    /// Removes every segment: the log goes on at `position` of another history.
    pub(crate) fn clear(&self, position: u64) -> Result<(), Error> {
        let _creating = self.creating.lock();
        let old = std::mem::take(&mut *self.list.write());
        for segment in old.iter().rev() {
            fs::remove_file(&segment.path).map_err(|e| Error::io("remove", &segment.path, e))?;
        }
        self.min.store(position, Ordering::Release);
        Ok(())
    }

    /// Everything from `position` on becomes zeros, and later files go: what was there must never be taken for
    /// records again when the next crash makes a scan run past the new end.
    pub(crate) fn cut(&self, position: u64) -> Result<(), Error> {
        // Who makes a segment ahead must not put it behind one that goes.
        let _creating = self.creating.lock();
        loop {
            let last = {
                let mut list = self.list.write();
                match list.last() {
                    Some(last)
                        if last.base >= position && (list.len() > 1 || last.base > position) =>
                    {
                        list.pop()
                    }
                    _ => None,
                }
            };
            let Some(last) = last else { break };
            fs::remove_file(&last.path).map_err(|e| Error::io("remove", &last.path, e))?;
        }
        if let Some(segment) = self.at(position) {
            zero_from(
                &*self.disk,
                &segment.file,
                position - segment.base,
                segment.size,
            )
            .map_err(|e| Error::io("zero the end of", &segment.path, e))?;
        }
        Ok(())
    }

    /// Fills `buffer` from the files, within one segment; returns how much was read.
    pub(crate) fn read(&self, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(segment) = self.at(position) else {
            return Ok(0);
        };
        let len = buffer.len().min((segment.end() - position) as usize);
        read_full_at(&segment.file, &mut buffer[..len], position - segment.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn open(dir: &Path) -> Result<Segments, Error> {
        Segments::open(dir.join("commitlog"), 4096, Arc::new(RealDisk))
    }

    #[test]
    fn files_are_dense_have_their_full_length_and_decide_their_size() {
        let dir = tempfile::tempdir().unwrap();
        let segments = open(dir.path()).unwrap();
        for position in [0, 4096, 8192] {
            segments.ensure(position).unwrap();
        }
        assert!(segments.remove_first().unwrap());
        let again =
            Segments::open(dir.path().join("commitlog"), 1 << 20, Arc::new(RealDisk)).unwrap();
        assert_eq!(
            (again.size(), again.min(), again.last_end()),
            (4096, 4096, 12288)
        );
        assert!(again.at(0).is_none());
        assert_eq!(again.at(8191).unwrap().base, 4096);
    }

    #[test]
    fn unfinished_last_files_are_completed_or_dropped_and_others_refused() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("commitlog");
        let segments = open(dir.path()).unwrap();
        segments.ensure(0).unwrap();
        segments.ensure(4096).unwrap();
        fs::write(log.join(file_name(8192)), b"").unwrap();
        fs::write(log.join(file_name(4096)), [1; 100]).unwrap();
        let segments = open(dir.path()).unwrap();
        assert_eq!(segments.last_end(), 8192);
        assert_eq!(fs::metadata(log.join(file_name(4096))).unwrap().len(), 4096);
        fs::write(log.join(file_name(0)), [1; 100]).unwrap();
        assert!(matches!(open(dir.path()), Err(Error::Damaged(_))));
        // The only file: nothing but the configuration says how long it was to be.
        fs::remove_file(log.join(file_name(4096))).unwrap();
        let segments = open(dir.path()).unwrap();
        assert_eq!((segments.size(), segments.last_end()), (4096, 4096));
    }

    #[test]
    fn a_cut_leaves_only_zeros_behind() {
        let dir = tempfile::tempdir().unwrap();
        let segments = open(dir.path()).unwrap();
        for position in [0, 4096, 8192] {
            let segment = segments.ensure(position).unwrap();
            write_all_at(&RealDisk, &segment.file, &[9; 4096], 0).unwrap();
        }
        segments.cut(5000).unwrap();
        assert_eq!(segments.last_end(), 8192);
        let mut bytes = vec![0; 4096];
        segments.read(4096, &mut bytes).unwrap();
        assert!(bytes[..904].iter().all(|b| *b == 9) && bytes[904..].iter().all(|b| *b == 0));
    }
}
