//! What replication and Raft build on: raw bytes, ranges, truncation, frames; and what retention takes away.

use std::fs;
use std::time::Duration;

use store::{GetStatus, PutError, Store};

use crate::common::*;

fn copy(from: &Store, to: &Store, chunk: usize) {
    while to.appended() < from.written() {
        let mut bytes = Vec::new();
        let position = to.appended();
        let n = from.read_range(position, chunk, &mut bytes).unwrap();
        assert_eq!(n, bytes.len());
        to.append_raw(position, &bytes).unwrap();
        to.drive();
        to.check_invariants();
    }
}

#[test]
fn a_copy_in_chunks_of_any_size_is_byte_for_byte_the_same_and_can_take_over() {
    for chunk in [1, 7, 1_000, 32 << 10] {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let master = open(small(dirs[0].path()));
        let slave = open(small(dirs[1].path()));
        let n = if chunk == 1 { 8 } else { 60 };
        for i in 0..n {
            let body = vec![i as u8 + 1; 50 + 31 * i];
            append(
                &master,
                "t",
                i as i32 % 2,
                &[Message {
                    body: &body,
                    key: &format!("k{i}"),
                    ..Default::default()
                }],
            )
            .unwrap();
            master.drive();
        }
        copy(&master, &slave, chunk);
        assert_eq!(slave.confirm_offset(), master.written());
        for queue_id in 0..2 {
            assert_eq!(
                bodies(&slave, "t", queue_id, 0),
                bodies(&master, "t", queue_id, 0)
            );
        }
        assert_eq!(
            slave.query("t", "k3", 9, 0, i64::MAX).records,
            master.query("t", "k3", 9, 0, i64::MAX).records
        );
        // The segment after the last one is made ahead in the background, by each store in its own time.
        for start in (0..master.written()).step_by(16 << 10) {
            let read = |dir: &tempfile::TempDir| {
                fs::read(dir.path().join(format!("commitlog/{start:020}"))).unwrap()
            };
            assert_eq!(read(&dirs[1]), read(&dirs[0]));
        }
        assert!(matches!(
            slave.append_raw(0, b"x"),
            Err(PutError::WrongPosition { .. })
        ));
        assert_eq!(put(&slave, "t", 1, b"own").queue_offset, n as i64 / 2);
        crash(slave);
        let slave = open(small(dirs[1].path()));
        assert_eq!(bodies(&slave, "t", 1, n as i64 / 2), [b"own"]);
    }
}

#[test]
fn a_half_received_record_is_not_visible_and_can_be_cut() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let master = open(small(dirs[0].path()));
    let slave = open(small(dirs[1].path()));
    put(&master, "t", 0, b"whole");
    let half = put(&master, "t", 0, b"half");
    let mut bytes = Vec::new();
    master
        .read_range(0, half.end as usize - 3, &mut bytes)
        .unwrap();
    slave.append_raw(0, &bytes).unwrap();
    slave.drive();
    assert_eq!(
        (slave.written(), slave.confirm_offset()),
        (half.end - 3, half.phy_offset)
    );
    assert_eq!(slave.max_offset("t", 0), 1);
    slave.truncate_to(half.phy_offset).unwrap();
    assert_eq!(put(&slave, "t", 0, b"mine").queue_offset, 1);
    assert_eq!(bodies(&slave, "t", 0, 0), [&b"whole"[..], b"mine"]);
}

#[test]
fn an_empty_store_can_begin_at_any_segment() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let master = open(small(dirs[0].path()));
    for i in 0..40u8 {
        put(&master, "t", 0, &[i; 1000]);
    }
    let slave = open(small(dirs[1].path()));
    slave.start_at(16 << 10).unwrap();
    copy(&master, &slave, 5_000);
    let first = slave.min_offset("t", 0);
    assert!(first > 0);
    assert_eq!(
        bodies(&slave, "t", 0, first),
        bodies(&master, "t", 0, first)
    );
    assert_eq!(
        get(&slave, &request("t", 0, 0, 1)).0.status,
        GetStatus::OffsetTooSmall
    );
    crash(slave);
    let slave = open(small(dirs[1].path()));
    assert_eq!(
        (slave.min_phy_offset(), slave.min_offset("t", 0)),
        (16 << 10, first)
    );
    assert_eq!(
        bodies(&slave, "t", 0, first),
        bodies(&master, "t", 0, first)
    );
}

#[test]
fn a_copy_that_was_emptied_can_begin_elsewhere_without_being_opened_again() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let master = open(small(dirs[0].path()));
    for i in 0..40u8 {
        put(&master, "t", 0, &[i; 1000]);
    }
    let slave = open(small(dirs[1].path()));
    copy(&master, &slave, 5_000);
    slave.truncate_to(0).unwrap();
    slave.start_at(16 << 10).unwrap();
    copy(&master, &slave, 5_000);
    assert_eq!(slave.poisoned(), None);
    assert_eq!(slave.confirm_offset(), master.confirm_offset());
    let first = slave.min_offset("t", 0);
    assert_eq!(
        bodies(&slave, "t", 0, first),
        bodies(&master, "t", 0, first)
    );
}

#[test]
fn expired_segments_go_and_minimum_offsets_rise() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(1_700_000_000_000);
    let mut config = small(dir.path());
    config.file_reserved_hours = 1;
    let store = open_at(config.clone(), clock.clone());
    for i in 0..200u8 {
        append(
            &store,
            "t",
            0,
            &[Message {
                body: &[i; 1000],
                key: &format!("k{i}"),
                ..Default::default()
            }],
        )
        .unwrap();
        store.drive();
    }
    put(&store, "idle", 0, b"last");
    assert!(store.wait_flushed(store.written(), Duration::from_secs(20)));
    let last = store.written();
    clock.set(i64::MAX / 2);
    wait(|| {
        store.delete_expired_now();
        store.min_phy_offset() >= last - last % (16 << 10)
    });
    wait(|| store.min_offset("t", 0) > 180);
    let min = store.min_offset("t", 0);
    assert_eq!(bodies(&store, "t", 0, min)[0][0], min as u8);
    let (result, ..) = get(&store, &request("t", 0, 0, 1));
    assert_eq!(
        (result.status, result.next_begin_offset),
        (GetStatus::OffsetTooSmall, min)
    );
    assert!(store.query("t", "k3", 9, 0, i64::MAX).records.is_empty());
    assert!(store.record_at(0).is_none());
    wait(|| {
        fs::read_dir(dir.path().join("consumequeue/t/0"))
            .unwrap()
            .count()
            <= 2
    });
    assert_eq!(put(&store, "t", 0, b"next").queue_offset, 200);
    crash(store);
    let store = open_at(config, clock);
    assert_eq!(
        (store.min_offset("t", 0), store.max_offset("t", 0)),
        (min, 201)
    );
    assert_eq!(store.max_offset("idle", 0), 1);
}

#[test]
fn a_deleted_topic_begins_anew_at_zero() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(small(dir.path()));
    for _ in 0..70 {
        put(&store, "t", 0, b"old");
    }
    put(&store, "other", 0, b"stays");
    store.delete_topic("t").unwrap();
    assert_eq!(store.max_offset("t", 0), 0);
    assert!(store.queues().keys().eq(["other"]));
    assert_eq!(put(&store, "t", 0, b"new").queue_offset, 0);
    store.shutdown();
    drop(store);
    let store = open(small(dir.path()));
    assert_eq!(bodies(&store, "t", 0, 0), [b"new"]);
    crash(store);
    // Even when everything is rebuilt from a log that still holds the old records.
    fs::remove_dir_all(dir.path().join("consumequeue")).unwrap();
    let store = open(small(dir.path()));
    assert_eq!(bodies(&store, "t", 0, 0), [b"new"]);
    assert_eq!(store.clean_unused_topics(&|topic| topic == "other"), ["t"]);
}

#[test]
fn many_queues_open_at_once_and_lazily() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = small(dir.path());
    config.segment_size = 8 << 20;
    let store = open(config.clone());
    for queue_id in 0..2_000 {
        append(
            &store,
            &format!("t{}", queue_id / 100),
            queue_id % 100,
            &[Message {
                body: b"x",
                ..Default::default()
            }],
        )
        .unwrap();
    }
    store.drive();
    store.shutdown();
    drop(store);
    let store = open(config);
    assert_eq!(store.runtime_figures().queues, 2_000);
    for queue_id in 0..2_000 {
        assert_eq!(
            store.max_offset(&format!("t{}", queue_id / 100), queue_id % 100),
            1
        );
    }
}

#[test]
fn a_damaged_queue_comes_back_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(small(dir.path()));
    for i in 0..130u8 {
        put(&store, "t", i32::from(i % 2), &[i; 200]);
    }
    let wanted = [bodies(&store, "t", 0, 0), bodies(&store, "t", 1, 0)];
    store.shutdown();
    drop(store);
    let files = dir.path().join("consumequeue/t");
    let damages: [&dyn Fn(); 8] = [
        // Shorter, though still a whole number of units: it does not decide how long files are.
        &|| {
            for queue in ["0", "1"] {
                let file = fs::OpenOptions::new()
                    .write(true)
                    .open(files.join(queue).join("00000000000000000000"))
                    .unwrap();
                file.set_len(40).unwrap();
            }
        },
        // The first of two: the other one looks like a queue that begins there.
        &|| fs::remove_file(files.join("0/00000000000000000000")).unwrap(),
        &|| {
            fs::remove_file(files.join("0/00000000000000000000")).unwrap();
            fs::write(files.join("0/00000000000000001000"), [0; 1000]).unwrap();
        },
        &|| fs::write(files.join("1/00000000000000000000"), b"").unwrap(),
        &|| fs::remove_file(files.join("0/00000000000000001000")).unwrap(),
        &|| fs::remove_dir_all(files.join("1")).unwrap(),
        &|| fs::write(files.join("0/00000000000000001000"), [0x11; 1000]).unwrap(),
        &|| fs::write(files.join("0/00000000000000001000"), [0; 30]).unwrap(),
    ];
    for damage in damages {
        damage();
        let store = open(small(dir.path()));
        for queue_id in 0..2 {
            let first = store.min_offset("t", queue_id);
            assert_eq!((first, store.max_offset("t", queue_id)), (0, 65));
            assert!(bodies(&store, "t", queue_id, 0) == wanted[queue_id as usize]);
        }
        store.shutdown();
        drop(store);
    }
}

/// Without a table of what was there, too: a Java broker's store says nothing of how its queues began.
#[test]
fn the_lost_first_files_of_a_long_queue_come_back_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(small(dir.path()));
    for i in 0..230u8 {
        put(&store, "t", 0, &[i; 100]);
        put(&store, "short", 0, b"x");
    }
    let wanted = bodies(&store, "t", 0, 0);
    store.shutdown();
    drop(store);
    let file = |base: u32| dir.path().join(format!("consumequeue/t/0/{base:020}"));
    for (lost, with_table) in [
        (&[0, 1_000][..], true),
        (&[0], false),
        (&[1_000], true),
        (&[0, 2_000], false),
    ] {
        for base in lost {
            fs::remove_file(file(*base)).unwrap();
        }
        if !with_table {
            fs::remove_file(dir.path().join("queues")).unwrap();
            fs::remove_file(dir.path().join("offsets")).unwrap();
        }
        for _ in 0..2 {
            let store = open(small(dir.path()));
            assert_eq!(
                (store.min_offset("t", 0), store.max_offset("t", 0)),
                (0, 230)
            );
            assert!(bodies(&store, "t", 0, 0) == wanted);
            store.shutdown();
            drop(store);
        }
    }
}

#[test]
fn lost_and_damaged_index_files_are_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(small(dir.path()));
    for i in 0..700 {
        let key = format!("k{i}");
        let message = Message {
            body: b"x",
            key: &key,
            ..Default::default()
        };
        append(&store, "t", 0, &[message]).unwrap();
    }
    store.drive();
    store.shutdown();
    drop(store);
    let index = dir.path().join("index");
    let nth = |n: usize| {
        let mut files: Vec<_> = fs::read_dir(&index)
            .unwrap()
            .map(|f| f.unwrap().path())
            .collect();
        files.sort();
        files.swap_remove(n)
    };
    let damages: [&dyn Fn(); 6] = [
        &|| fs::remove_file(nth(0)).unwrap(),
        &|| fs::remove_file(nth(2)).unwrap(),
        &|| fs::remove_file(nth(3)).unwrap(),
        &|| fs::write(nth(1), b"short").unwrap(),
        &|| {
            let length = fs::metadata(nth(1)).unwrap().len();
            fs::write(nth(1), vec![0xff; length as usize]).unwrap();
        },
        &|| fs::remove_dir_all(&index).unwrap(),
    ];
    for (n, damage) in damages.iter().enumerate() {
        damage();
        for _ in 0..2 {
            let store = open(small(dir.path()));
            for i in 0..700 {
                let found = store.query("t", &format!("k{i}"), 9, 0, i64::MAX).records;
                assert_eq!(found.len(), 1, "k{i} after damage {n}");
            }
            store.shutdown();
            drop(store);
        }
        assert_eq!(fs::read_dir(&index).unwrap().count(), 4, "damage {n}");
    }
}

/// A query holds what it reads: neither the file being filled nor a deletion waits for it, or it for them.
#[test]
fn index_files_are_deleted_while_queries_read_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = small(dir.path());
    config.file_reserved_hours = 0;
    // Long after the files are written.
    let store = open_at(config, TestClock::at(4_000_000_000_000));
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let found = store.query("t", "all", 64, 0, i64::MAX).records;
                    assert!(found.len() <= 64);
                }
            });
        }
        for i in 0..3_000u32 {
            let key = format!("k{i} all");
            let message = Message {
                body: &[1; 100],
                key: &key,
                ..Default::default()
            };
            while append(&store, "t", 0, &[message]).is_err() {
                std::thread::yield_now();
            }
            store.drive();
            if i % 500 == 499 {
                assert!(store.wait_flushed(store.written(), Duration::from_secs(20)));
                let before = store.min_phy_offset();
                store.delete_expired_now();
                wait(|| store.min_phy_offset() > before);
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    wait(|| store.query("t", "all", 64, 0, i64::MAX).records.len() == 64);
    assert!(store.query("t", "k0", 9, 0, i64::MAX).records.is_empty());
    assert_eq!(store.query("t", "k2999", 9, 0, i64::MAX).records.len(), 1);
    wait(|| fs::read_dir(dir.path().join("index")).unwrap().count() < 20);
}

/// Under SYNC_FLUSH a background thread writes zeros ahead of the writer: never over what was written.
#[test]
fn zeroing_ahead_never_meets_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = small(dir.path());
    config.flush = store::FlushDiskType::SyncFlush;
    config.segment_size = 8 << 20;
    config.tail_ring_bytes = 4 << 20;
    config.max_index_num = 100_000;
    let store = open(config.clone());
    std::thread::scope(|scope| {
        for queue_id in 0..2 {
            let store = &store;
            scope.spawn(move || {
                let body = vec![queue_id as u8 + 1; 7_000];
                let messages = [Message {
                    body: &body,
                    ..Default::default()
                }; 8];
                for _ in 0..250 {
                    while append(store, "t", queue_id, &messages).is_err() {
                        std::thread::yield_now();
                    }
                    store.drive();
                }
            });
        }
    });
    assert!(store.wait_flushed(store.appended(), Duration::from_secs(20)));
    crash(store);
    // Everything is read and checked again.
    fs::remove_dir_all(dir.path().join("consumequeue")).unwrap();
    let store = open(config);
    assert_eq!(store.runtime_figures().recovered_records, 4_000);
    for queue_id in 0..2 {
        assert_eq!(store.max_offset("t", queue_id), 2_000);
    }
}
