//! Any bytes in any file of a store: it opens, or says why it does not; and if it opens, reading ends and writing goes on.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use store::Store;

use crate::common::*;

const ROUNDS: u64 = 60;

fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), out);
        } else {
            out.push(entry.path());
        }
    }
    out.sort();
}

fn copy(from: &Path, to: &Path) {
    let mut all = Vec::new();
    files(from, &mut all);
    for file in all {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap();
    }
}

fn damage(root: &Path, seed: &mut u64) -> String {
    let mut all = Vec::new();
    files(root, &mut all);
    let file = &all[random(seed) as usize % all.len()];
    let len = fs::metadata(file).unwrap().len();
    let handle = fs::OpenOptions::new().write(true).open(file).unwrap();
    let at = random(seed) % len.max(1);
    let what = random(seed) % 4;
    match what {
        0 => handle.set_len(at).unwrap(),
        1 => handle.write_all_at(&[0; 64], at).unwrap(),
        _ => {
            let bytes: Vec<u8> = (0..1 + random(seed) % 40)
                .map(|_| random(seed) as u8)
                .collect();
            // Not beyond its end.
            let bytes = &bytes[..bytes.len().min((len - at) as usize)];
            handle.write_all_at(bytes, at).unwrap();
        }
    }
    format!("{} {what} at {at} of {len}", file.display())
}

/// Everything that can be asked, to its end.
fn ask(store: &Store) {
    for (topic, queues) in store.queues() {
        for queue_id in queues {
            let (min, max) = (
                store.min_offset(&topic, queue_id),
                store.max_offset(&topic, queue_id),
            );
            assert!(min <= max);
            let mut offset = min;
            for _ in 0..1_000 {
                let (result, ..) = get(store, &request(&topic, queue_id, offset, 32));
                if offset >= max || result.next_begin_offset <= offset {
                    break;
                }
                offset = result.next_begin_offset;
            }
            store.query_consume_queue(&topic, queue_id, min, 100);
            store.offset_by_time(&topic, queue_id, 1, Default::default());
            store.earliest_store_time(&topic, queue_id);
        }
    }
    for key in 0..20 {
        store.query("t", &format!("k{key}"), 64, 0, i64::MAX);
    }
    store.record_at(store.min_phy_offset());
}

#[test]
fn whatever_bytes_the_files_hold_a_store_opens_or_says_why() {
    let made = tempfile::tempdir().unwrap();
    let store = open(small(made.path()));
    for i in 0..120u8 {
        let key = format!("k{}", i % 30);
        let message = Message {
            body: &[i; 300],
            key: &key,
            ..Default::default()
        };
        append(&store, "t", i32::from(i % 2), &[message]).unwrap();
        store.drive();
    }
    store.shutdown();
    drop(store);
    let mut seed = 0x9E37_79B9_7F4A_7C15;
    let mut opened = 0;
    for round in 0..ROUNDS {
        let dir = tempfile::tempdir().unwrap();
        copy(made.path(), dir.path());
        if round % 2 == 1 {
            // As after a kill: more is read again, and more is believed less.
            fs::write(dir.path().join("abort"), b"1").unwrap();
        }
        let mut done = Vec::new();
        for _ in 0..=random(&mut seed) % 3 {
            done.push(damage(dir.path(), &mut seed));
        }
        let store = match Store::open(small(dir.path()), TestClock::at(1_700_000_000_000)) {
            Ok(store) => store,
            Err(error) => {
                assert!(!error.to_string().is_empty(), "{done:?}");
                continue;
            }
        };
        opened += 1;
        ask(&store);
        let end = store.max_offset("t", 0);
        let appended = put(&store, "t", 0, b"goes on");
        assert!(appended.queue_offset >= end, "{done:?}");
        assert_eq!(
            bodies(&store, "t", 0, appended.queue_offset),
            [b"goes on"],
            "{done:?}"
        );
        store.shutdown();
        drop(store);
        let store = open(small(dir.path()));
        ask(&store);
        assert_eq!(
            bodies(&store, "t", 0, appended.queue_offset),
            [b"goes on"],
            "{done:?}"
        );
    }
    assert!(opened > ROUNDS / 2, "only {opened} of {ROUNDS} opened");
}
