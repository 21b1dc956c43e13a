//! Small files that are replaced as a whole, durably.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Puts `bytes` in the place of a file, or of none: after a crash at any point one of the two is there, whole. Durable when
/// it returns. The new file is made beside the old one, with `.tmp` behind its name.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".tmp");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().inspect_err(|_| {
        // Mostly for want of room: it does not take what is left.
        let _ = fs::remove_file(&new);
    })?;
    sync_folder_of(path)
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// | magic 8 | number 8 | length of the content 4 | CRC of all of this and the content 4 | content |
const HEAD: usize = 24;
const MAGIC: &[u8; 8] = b"RCslot01";
/// A slot is so long, or as many times as its content asks for: no two share a block of the disk.
const SLOT: usize = 4096;

/// A file that finds room on a full disk: two slots, written in turn and in place, of which the one with the higher number
/// holds. A crash while one is written leaves the other.
pub struct SlotFile {
    path: PathBuf,
    open: Option<Slots>,
}

struct Slots {
    file: File,
    /// Bytes of each.
    len: usize,
    /// Which holds, and its number.
    newest: usize,
    number: u64,
}

fn encode(number: u64, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD + content.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&number.to_be_bytes());
    out.extend_from_slice(&(content.len() as u32).to_be_bytes());
    let crc = crc(&out, content);
    out.extend_from_slice(&crc.to_be_bytes());
    out.extend_from_slice(content);
    out
}

fn crc(head: &[u8], content: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(content);
    crc.finalize()
}

fn decode(slot: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = slot.split_at_checked(HEAD)?;
    let (head, sum) = head.split_last_chunk::<4>()?;
    let (head_before, len) = head.split_last_chunk::<4>()?;
    let (magic, number) = head_before.split_last_chunk::<8>()?;
    let content = rest.get(..u32::from_be_bytes(*len) as usize)?;
    let holds = magic == MAGIC && crc(head, content).to_be_bytes() == *sum;
    holds.then_some((u64::from_be_bytes(*number), content))
}

/// Which slot of a whole file holds, its number and its content.
fn newest(bytes: &[u8]) -> Option<(usize, u64, &[u8])> {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let slots = [first, second].into_iter().enumerate();
    slots
        .filter_map(|(at, slot)| decode(slot).map(|(number, content)| (at, number, content)))
        .max_by_key(|(_, number, _)| *number)
}

impl SlotFile {
    /// The file at this place, if there will be one.
    pub fn new(path: PathBuf) -> Self {
        Self { path, open: None }
    }

    /// What the file at this place holds; nothing where there is none, an error of kind `InvalidData` where neither slot
    /// is whole.
    pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        match newest(&bytes) {
            Some((_, _, content)) => Ok(Some(content.to_vec())),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The file as the disk holds it, not as the page cache does: a save that failed may be there alone.
    fn open(path: &Path) -> io::Result<Option<Slots>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        file.sync_data()?;
        crate::platform::let_go(&file, 0, file.metadata()?.len());
        let bytes = fs::read(path)?;
        Ok(newest(&bytes).map(|(newest, number, _)| Slots {
            file,
            len: bytes.len() / 2,
            newest,
            number,
        }))
    }

    /// Replaces the content. Durable when it returns; when it fails, a later life may find either.
    ///
    /// The first save of a life makes a new file: what was read may have been in memory only, and the slot that would be
    /// written over the only one on disk. So does one that has outgrown its slot. On a full disk the first one goes into
    /// the file that is there.
    pub fn save(&mut self, content: &[u8]) -> io::Result<()> {
        if self
            .open
            .as_ref()
            .is_some_and(|slots| HEAD + content.len() <= slots.len)
        {
            return self.save_in_place(content);
        }
        // Written, not left out, so that what is saved later takes no new block.
        let mut bytes = encode(1, content);
        bytes.resize(2 * bytes.len().next_multiple_of(SLOT), 0);
        let replaced = replace_file(&self.path, &bytes);
        match replaced {
            Err(e) if e.kind() == io::ErrorKind::StorageFull && self.open.is_none() => {
                self.open = Self::open(&self.path)?;
                let fits = |slots: &Slots| HEAD + content.len() <= slots.len;
                match self.open.as_ref().is_some_and(fits) {
                    true => self.save_in_place(content),
                    false => Err(e),
                }
            }
            Err(e) => Err(e),
            Ok(()) => {
                self.open = Self::open(&self.path)?;
                Ok(())
            }
        }
    }

    fn save_in_place(&mut self, content: &[u8]) -> io::Result<()> {
        let Some(slots) = &mut self.open else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let (at, number) = (1 - slots.newest, slots.number + 1);
        let place = (at * slots.len) as u64;
        slots.file.write_all_at(&encode(number, content), place)?;
        slots.file.sync_data()?;
        slots.newest = at;
        slots.number = number;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_content_is_read_back_and_the_file_grows_only_when_it_must() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        assert_eq!(SlotFile::read(&path).unwrap(), None);
        let mut file = SlotFile::new(path.clone());
        let length = || fs::metadata(&path).unwrap().len();
        for round in 0..10u8 {
            file.save(&vec![round; 100 + usize::from(round)]).unwrap();
            let read = SlotFile::read(&path).unwrap().unwrap();
            assert_eq!(read, vec![round; 100 + usize::from(round)]);
            assert_eq!(length(), 2 * SLOT as u64);
            if round % 3 == 0 {
                file = SlotFile::new(path.clone());
            }
        }
        file.save(&[7; SLOT]).unwrap();
        assert_eq!(SlotFile::read(&path).unwrap().unwrap(), [7; SLOT]);
        assert_eq!(length(), 4 * SLOT as u64);
        file.save(b"").unwrap();
        assert_eq!(SlotFile::read(&path).unwrap().unwrap(), b"");
    }

    #[test]
    fn a_crash_anywhere_in_a_save_leaves_the_content_before_it_or_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let mut file = SlotFile::new(path.clone());
        file.save(b"first").unwrap();
        file.save(b"second").unwrap();
        let before = fs::read(&path).unwrap();
        file.save(b"third").unwrap();
        let after = fs::read(&path).unwrap();
        let changed = (0..SLOT).filter(|at| before[*at] != after[*at]);
        let (mut old, mut new) = (0, 0);
        for cut in changed.chain([SLOT]) {
            // What was written up to here, over what was there.
            let torn = [&after[..cut], &before[cut..]].concat();
            fs::write(&path, torn).unwrap();
            match SlotFile::read(&path).unwrap().unwrap().as_slice() {
                b"second" => old += 1,
                b"third" => new += 1,
                other => panic!("{other:?}"),
            }
            SlotFile::new(path.clone()).save(b"next").unwrap();
            assert_eq!(SlotFile::read(&path).unwrap().unwrap(), b"next");
        }
        assert!(old > 5 && new == 1);
    }

    /// What a life before reads back may be in memory only, its save having failed: then the other slot is the only one on
    /// disk.
    #[test]
    fn the_first_save_of_a_life_overwrites_neither_slot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let mut file = SlotFile::new(path.clone());
        file.save(b"first").unwrap();
        file.save(b"second").unwrap();
        let before = File::open(&path).unwrap();
        let length = before.metadata().unwrap().len() as usize;
        let read = || {
            let mut bytes = vec![0; length];
            before.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        let kept = read();
        let mut file = SlotFile::new(path.clone());
        file.save(b"third").unwrap();
        assert_eq!(read(), kept);
        assert_eq!(SlotFile::read(&path).unwrap().unwrap(), b"third");
        // From then on in place.
        let now = File::open(&path).unwrap();
        file.save(b"fourth").unwrap();
        let mut bytes = vec![0; length];
        now.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(newest(&bytes).unwrap().2, b"fourth");
    }

    #[test]
    fn a_file_without_a_whole_slot_is_damaged_and_can_be_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        for bytes in [
            &b""[..],
            b"x",
            &[0; 3 * SLOT],
            &encode(1, b"torn")[..HEAD + 3],
        ] {
            fs::write(&path, bytes).unwrap();
            let error = SlotFile::read(&path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        SlotFile::new(path.clone()).save(b"new").unwrap();
        assert_eq!(SlotFile::read(&path).unwrap().unwrap(), b"new");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..100), marked: bool) {
            let mut bytes = bytes;
            if marked && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(MAGIC);
            }
            let _ = newest(&bytes);
        }
    }
}
