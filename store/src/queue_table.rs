//! How far each queue reached when queues were last synced: tells a damaged queue from a short one.
//!
//! | magic 8 | per queue: topic length 2, topic, queue id 4, max offset 8 | CRC 4 |
//!
//! Only a lower bound, and only as good as our own offsets beside it. Removed before anything makes a queue shorter.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

const MAGIC: &[u8; 8] = b"RCqtab01";

pub(crate) type Expected = HashMap<(String, i32), i64>;

pub(crate) fn read(path: &Path) -> Expected {
    let bytes = fs::read(path).unwrap_or_default();
    decode(&bytes).unwrap_or_default()
}

fn decode(bytes: &[u8]) -> Option<Expected> {
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
    let mut expected = Expected::new();
    while let Some(len) = take(2) {
        let topic = take(usize::from(u16::from_be_bytes(len.try_into().ok()?)))?;
        let topic = std::str::from_utf8(topic).ok()?.to_owned();
        let queue_id = i32::from_be_bytes(take(4)?.try_into().ok()?);
        expected.insert(
            (topic, queue_id),
            i64::from_be_bytes(take(8)?.try_into().ok()?),
        );
    }
    Some(expected)
}

pub(crate) fn write(path: &Path, expected: &Expected) -> io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    for ((topic, queue_id), max) in expected {
        bytes.extend_from_slice(&(topic.len() as u16).to_be_bytes());
        bytes.extend_from_slice(topic.as_bytes());
        bytes.extend_from_slice(&queue_id.to_be_bytes());
        bytes.extend_from_slice(&max.to_be_bytes());
    }
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    fs::rename(new, path)
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
        let expected = Expected::from([(("t".to_owned(), 0), 5), (("中".to_owned(), 7), 1 << 40)]);
        write(&path, &expected).unwrap();
        assert_eq!(read(&path), expected);
        let mut bytes = fs::read(&path).unwrap();
        bytes[12] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(read(&path).is_empty());
    }
}
