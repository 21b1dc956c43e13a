//! From where to where each queue went when queues were last synced, and which index files there were: tells a damaged
//! queue or index from a short one.
//!
//! | magic 8 | index files 4, each: number of its name 8 | per queue: topic length 2, topic, queue id 4, first offset on file 8, max offset 8 | CRC 4 |
//!
//! `max` is only a lower bound, and only as good as our own offsets beside it. Removed before anything makes a queue shorter at its end or an
//! index file disappear there.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

const MAGIC: &[u8; 8] = b"RCqtab02";

/// What one queue must at least hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First offset that lies in a file, readable or not.
    pub(crate) first: i64,
    /// Next offset after the last one that was synced.
    pub(crate) max: i64,
}

pub(crate) type Queues = HashMap<(String, i32), Extent>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) queues: Queues,
    /// Names of the index files as numbers, oldest first.
    pub(crate) index_files: Vec<u64>,
}

pub(crate) fn read(path: &Path) -> Expected {
    let bytes = fs::read(path).unwrap_or_default();
    decode(&bytes).unwrap_or_default()
}

pub(crate) fn decode(bytes: &[u8]) -> Option<Expected> {
    let (content, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    if crc32fast::hash(content).to_be_bytes() != crc {
        return None;
    }
    let mut rest = content.strip_prefix(MAGIC)?;
    let mut take = |n: usize| {
        let (taken, left) = rest.split_at_checked(n)?;
        rest = left;
        Some(taken)
    };
    let mut expected = Expected::default();
    let files = u32::from_be_bytes(take(4)?.try_into().ok()?);
    for _ in 0..files {
        let name = u64::from_be_bytes(take(8)?.try_into().ok()?);
        expected.index_files.push(name);
    }
    while let Some(len) = take(2) {
        let topic = take(usize::from(u16::from_be_bytes(len.try_into().ok()?)))?;
        let topic = std::str::from_utf8(topic).ok()?.to_owned();
        let queue_id = i32::from_be_bytes(take(4)?.try_into().ok()?);
        let first = i64::from_be_bytes(take(8)?.try_into().ok()?);
        let max = i64::from_be_bytes(take(8)?.try_into().ok()?);
        let extent = Extent { first, max };
        expected.queues.insert((topic, queue_id), extent);
    }
    Some(expected)
}

pub(crate) fn write(path: &Path, expected: &Expected) -> io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&(expected.index_files.len() as u32).to_be_bytes());
    for name in &expected.index_files {
        bytes.extend_from_slice(&name.to_be_bytes());
    }
    for ((topic, queue_id), extent) in &expected.queues {
        bytes.extend_from_slice(&(topic.len() as u16).to_be_bytes());
        bytes.extend_from_slice(topic.as_bytes());
        bytes.extend_from_slice(&queue_id.to_be_bytes());
        bytes.extend_from_slice(&extent.first.to_be_bytes());
        bytes.extend_from_slice(&extent.max.to_be_bytes());
    }
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    crate::slot_file::replace_file(path, &bytes)
}

pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_back_and_a_damaged_one_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("queues");
        let extent = |first, max| Extent { first, max };
        let queues = Queues::from([
            (("t".to_owned(), 0), extent(0, 5)),
            (("中".to_owned(), 7), extent(300, 1 << 40)),
        ]);
        let index_files = vec![20_261_121_000_000_000];
        let expected = Expected {
            queues,
            index_files,
        };
        write(&path, &expected).unwrap();
        assert_eq!(read(&path), expected);
        let mut bytes = fs::read(&path).unwrap();
        bytes[12] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(read(&path), Expected::default());
    }
}
