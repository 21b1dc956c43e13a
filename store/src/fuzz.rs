//! What the readers of files do with any bytes: they come to an end, they do not panic, and they claim nothing that cannot be. `fuzz/` feeds them without end,
//! the tests below a bounded number.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::checkpoint::CheckpointFiles;
use crate::clock::SystemClock;
use crate::consume_queue::{ConsumeQueues, CqUnit, UNIT};
use crate::disk::RealDisk;
use crate::index_file::{IndexRequest, IndexService, Stop};
use crate::queue_table;
use crate::record::{self, Peek, Record};
use crate::segment::{Segments, file_name};

const SEGMENT: u64 = 4096;
const QUEUE_FILE: u64 = 10 * UNIT as u64;
const SLOTS: u32 = 7;
const MAX_INDEX: u32 = 40;

/// One record, or what pretends to be one.
pub fn record(bytes: &[u8]) {
    let _ = record::store_timestamp(bytes);
    let (checked, unchecked) = (Record::parse(bytes, true), Record::parse(bytes, false));
    let Some(record) = unchecked else {
        assert!(checked.is_none(), "a check refuses, it does not admit");
        return;
    };
    assert!(record.size <= bytes.len());
    assert_eq!(record::peek(bytes), Peek::Record { size: record.size });
    let whole = &bytes[..record.size];
    assert!(Record::parse(&whole[..record.size - 1], false).is_none());
    assert_eq!(
        record::store_timestamp(whole),
        Some(record.store_timestamp),
        "both readers see the same time"
    );
    let _ = (record.property("KEYS"), record.tags_code(&[1_000, 5_000]));
}

/// Records of a log, 100 bytes each, and the units that point at them.
fn small_log(dir: &Path) -> (Arc<Segments>, Vec<CqUnit>) {
    let log = Segments::open(dir.join("commitlog"), SEGMENT, Arc::new(RealDisk));
    let log = Arc::new(log.unwrap_or_else(|e| panic!("{e}")));
    let segment = log.ensure(0).unwrap_or_else(|e| panic!("{e}"));
    let mut units = Vec::new();
    for offset in 0..20i64 {
        let mut bytes = Vec::new();
        let host = ([127, 0, 0, 1], 10911).into();
        let fields = record::Fields {
            topic: "t",
            queue_id: 0,
            flag: 0,
            sys_flag: 0,
            born_timestamp: 1,
            born_host: host,
            store_host: host,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body: b"body",
            properties: b"",
        };
        let mut encoded = record::Encoded::new(&fields);
        let position = offset as u64 * encoded.size as u64;
        encoded.write(offset, position, 1_000, |piece| {
            bytes.extend_from_slice(piece)
        });
        let written = segment.file.write_all_at(&bytes, position);
        written.unwrap_or_else(|e| panic!("{e}"));
        units.push(CqUnit {
            phy_offset: position as i64,
            size: bytes.len() as i32,
            tags_code: 0,
        });
    }
    (log, units)
}

/// The files of one queue: the first byte says how many there are and where they begin, the rest is their content.
pub fn queue(bytes: &[u8]) {
    let Some((&shape, content)) = bytes.split_first() else {
        return;
    };
    let dir = folder();
    let (log, units) = small_log(dir.path());
    let queue_dir = dir.path().join("consumequeue/t/0");
    let base = u64::from(shape % 3) * QUEUE_FILE;
    let made = fs::create_dir_all(&queue_dir).and_then(|()| {
        for (n, part) in content.chunks(QUEUE_FILE as usize).take(3).enumerate() {
            let mut part = part.to_vec();
            if shape & 0x80 != 0 {
                // Close to the truth, so that what is wrong is found late.
                for (unit, bytes) in units.iter().zip(part.chunks_exact_mut(UNIT)) {
                    if bytes[0] & 3 != 0 {
                        bytes.copy_from_slice(&unit.encode());
                    }
                }
            }
            if shape & 0x40 != 0 {
                part.resize(QUEUE_FILE as usize, 0);
            }
            fs::write(
                queue_dir.join(file_name(base + n as u64 * QUEUE_FILE)),
                part,
            )?;
        }
        Ok(())
    });
    made.unwrap_or_else(|e| panic!("{e}"));
    let root = dir.path().join("consumequeue");
    let disk = Arc::new(RealDisk);
    let queues = ConsumeQueues::open(root, QUEUE_FILE, disk, log.clone(), 16, vec![1_000]);
    let Ok(queues) = queues else { return };
    let log_end = 20 * units[0].size as u64;
    queues.set_log_end(log_end);
    let Ok(Some(queue)) = queues.find("t", 0) else {
        return;
    };
    let (min, max) = (queue.min_offset(), queue.max_offset());
    assert!(0 <= min && min <= max, "{min}..{max}");
    for offset in min - 2..(max + 2).min(min + 100) {
        let mut read = Vec::new();
        let _ = queues.units(&queue, offset, 7, &mut read);
        assert!(read.len() <= 7);
    }
    let found = crate::recovery::scan(&log, 0, log_end, |_, _, _| Ok(()));
    assert_eq!(
        found.ok(),
        Some(log_end),
        "a queue's damage is not the log's"
    );
    let _ = queues.push(&queue, max, units[0]);
    assert_eq!(queue.max_offset(), max + 1);
    let _ = queues.write_dirty(u64::MAX);
    let _ = queues.expire(SEGMENT);
}

/// An index file: the first byte says how the last run ended, the rest is its content.
pub fn index(bytes: &[u8]) {
    let Some((&shape, content)) = bytes.split_first() else {
        return;
    };
    let dir = folder();
    let len = 40 + SLOTS as usize * 4 + MAX_INDEX as usize * 20;
    let mut content = content.to_vec();
    content.resize(len, 0);
    if shape & 0x80 != 0 {
        // A header that can be.
        content[16..32].fill(0);
        content[31] = 200;
        content[36..40].copy_from_slice(&(i32::from(shape & 31) + 1).to_be_bytes());
    }
    let written = fs::write(dir.path().join("20261121000000000"), &content);
    written.unwrap_or_else(|e| panic!("{e}"));
    let stop = match shape % 3 {
        0 => Stop::Clean,
        1 => Stop::Killed,
        _ => Stop::PowerLost(u64::from(shape)),
    };
    let open = |stop| {
        let (disk, clock) = (Arc::new(RealDisk), Arc::new(SystemClock));
        IndexService::open(dir.path().to_owned(), SLOTS, MAX_INDEX, disk, clock, stop)
    };
    let Ok(service) = open(stop) else { return };
    for hash in 0..10 {
        let found = service
            .query(hash, 64, i64::MIN, i64::MAX)
            .unwrap_or_default();
        assert!(found.len() <= 64);
    }
    let last = service.last_phy().unwrap_or(0);
    let requests = (0..50u64).map(|n| IndexRequest {
        hash: 3,
        phy_offset: last.saturating_add(n),
        store_timestamp: 5_000,
    });
    service.submit(requests);
    let newest = last.saturating_add(49);
    let found = service.query(3, 64, 5_000, 5_999).unwrap_or_default();
    assert_eq!(found.first(), Some(&newest), "what is put in now is found");
    let _ = (service.write(), service.sync());
    drop(service);
    if let Ok(again) = open(Stop::Clean) {
        let found = again.query(3, 64, 5_000, 5_999).unwrap_or_default();
        assert_eq!(found.first(), Some(&newest), "and after a restart");
        let _ = again.truncate_to(last);
        let _ = again.expire(u64::MAX);
    }
}

/// `checkpoint`, our `offsets` beside it, and the table of queues; each gets a share of the bytes.
pub fn checkpoint(bytes: &[u8]) {
    if let Some(table) = queue_table::decode(bytes) {
        assert!(table.queues.len() <= bytes.len() / 22);
    }
    let dir = folder();
    let (first, second) = bytes.split_at(bytes.len().min(40));
    let written = fs::write(dir.path().join("checkpoint"), first)
        .and_then(|()| fs::write(dir.path().join("offsets"), second));
    written.unwrap_or_else(|e| panic!("{e}"));
    let Ok((files, checkpoint, own)) = CheckpointFiles::open(dir.path()) else {
        return;
    };
    assert!(checkpoint.safe_timestamp() >= 0);
    let mut offsets = own.unwrap_or_default();
    offsets.checkpoint = checkpoint;
    let written = files.write(&offsets);
    written.unwrap_or_else(|e| panic!("{e}"));
    let again = CheckpointFiles::open(dir.path());
    let (_, read, own) = again.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((read, own), (checkpoint, Some(offsets)));
}

/// In memory where there is such a place: a fuzzer makes thousands a second.
fn folder() -> tempfile::TempDir {
    let shared = Path::new("/dev/shm");
    let made = if shared.is_dir() {
        tempfile::tempdir_in(shared)
    } else {
        tempfile::tempdir()
    };
    made.unwrap_or_else(|e| panic!("{e}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Bytes of which many are zero, as in sparse files.
    fn bytes(len: usize) -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![2 => any::<u8>(), 3 => Just(0u8)];
        prop::collection::vec(byte, 0..len)
    }

    fn record_like(mut bytes: Vec<u8>, v2: bool, flags: u8) -> Vec<u8> {
        let len = bytes.len();
        if len >= 100 {
            bytes[..4].copy_from_slice(&(len as i32).to_be_bytes());
            let magic = if v2 {
                super::record::MAGIC_V2
            } else {
                super::record::MAGIC_V1
            };
            bytes[4..8].copy_from_slice(&magic.to_be_bytes());
            bytes[36..40].copy_from_slice(&i32::from(flags & 0x3c).to_be_bytes());
        }
        bytes
    }

    /// Within the budget of the test command; `PROPTEST_CASES` for more.
    fn cases() -> u32 {
        let set = std::env::var("PROPTEST_CASES").ok();
        set.and_then(|n| n.parse().ok()).unwrap_or(100)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_record(bytes in bytes(400), v2: bool, flags: u8) {
            super::record(&bytes);
            super::record(&record_like(bytes, v2, flags));
        }

        #[test]
        fn any_queue(bytes in bytes(700)) {
            super::queue(&bytes);
        }

        #[test]
        fn any_index(bytes in bytes(900)) {
            super::index(&bytes);
        }

        #[test]
        fn any_checkpoint(bytes in bytes(200)) {
            super::checkpoint(&bytes);
        }
    }
}
