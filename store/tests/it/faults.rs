//! Disks that write short, fail, fill up and stall.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use store::{Disk, FlushDiskType, NotWritable, PutError, RealDisk, Store};

use crate::common::*;

#[derive(Default)]
struct FaultyDisk {
    /// 0: none; 1: short writes; 2: EIO on write; 3: ENOSPC on write.
    write: AtomicU64,
    /// 0: none; 1: EIO; more: that many milliseconds.
    sync: AtomicU64,
}

impl Disk for FaultyDisk {
    fn write_at(&self, file: &File, buffers: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        match self.write.load(Ordering::SeqCst) {
            1 => {
                let first = buffers.iter().find(|b| !b.is_empty()).unwrap();
                RealDisk.write_at(
                    file,
                    &[IoSlice::new(&first[..first.len().div_ceil(2)])],
                    position,
                )
            }
            2 => Err(io::Error::from_raw_os_error(5)),
            3 => Err(io::Error::from_raw_os_error(28)),
            _ => RealDisk.write_at(file, buffers, position),
        }
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        match self.sync.load(Ordering::SeqCst) {
            0 => RealDisk.sync_data(file),
            1 => Err(io::Error::from_raw_os_error(5)),
            ms => {
                std::thread::sleep(Duration::from_millis(ms));
                RealDisk.sync_data(file)
            }
        }
    }
}

fn faulty(root: &std::path::Path, flush: FlushDiskType) -> (Arc<FaultyDisk>, Arc<Store>) {
    let disk = Arc::new(FaultyDisk::default());
    let mut config = small(root);
    config.flush = flush;
    let store =
        Store::open_with_disk(config, TestClock::at(1_700_000_000_000), disk.clone()).unwrap();
    (disk, store)
}

#[test]
fn short_writes_are_completed() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = faulty(dir.path(), FlushDiskType::AsyncFlush);
    disk.write.store(1, Ordering::SeqCst);
    let wanted: Vec<Vec<u8>> = (0..60).map(|i| vec![i; 700]).collect();
    for body in &wanted {
        put(&store, "t", 0, body);
    }
    store.shutdown();
    drop(store);
    assert_eq!(bodies(&open(small(dir.path())), "t", 0, 0), wanted);
}

#[test]
fn a_failed_write_poisons_the_store_and_a_restart_heals_it() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = faulty(dir.path(), FlushDiskType::AsyncFlush);
    put(&store, "t", 0, b"good");
    let written = store.written();
    disk.write.store(2, Ordering::SeqCst);
    let lost = put(&store, "t", 0, b"lost");
    assert_eq!((store.written(), store.max_offset("t", 0)), (written, 1));
    assert!(store.watermarks().poisoned && !store.wait_flushed(lost.end, Duration::from_secs(20)));
    assert!(store.poisoned().unwrap().contains("os error 5"));
    let refused = append(&store, "t", 0, &[Message::default()]);
    assert!(matches!(
        refused,
        Err(PutError::NotWritable(NotWritable::Poisoned(_)))
    ));
    assert_eq!(bodies(&store, "t", 0, 0), [b"good"]);
    disk.write.store(0, Ordering::SeqCst);
    store.shutdown();
    assert!(dir.path().join("abort").exists());
    drop(store);
    let store = open(small(dir.path()));
    assert_eq!(put(&store, "t", 0, b"next").queue_offset, 1);
    assert_eq!(bodies(&store, "t", 0, 0), [b"good", b"next"]);
}

#[test]
fn a_failed_fdatasync_poisons_the_store_and_fails_its_waiters() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = faulty(dir.path(), FlushDiskType::SyncFlush);
    let good = put(&store, "t", 0, b"good");
    assert!(store.wait_flushed(good.end, Duration::from_secs(20)));
    disk.sync.store(1, Ordering::SeqCst);
    let told = Arc::new(AtomicU64::new(0));
    let to = told.clone();
    store.on_watermark(Box::new(move |w| {
        if w.poisoned {
            to.store(w.flushed, Ordering::SeqCst);
        }
    }));
    let waiting = put(&store, "t", 0, b"waiting");
    assert!(!store.wait_flushed(waiting.end, Duration::from_secs(20)));
    wait(|| told.load(Ordering::SeqCst) == good.end);
    assert_eq!(store.flushed(), good.end);
    assert!(append(&store, "t", 0, &[Message::default()]).is_err());
    assert_eq!(bodies(&store, "t", 0, 0).len(), 2);
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = faulty(dir.path(), FlushDiskType::AsyncFlush);
    put(&store, "t", 0, b"before");
    disk.write.store(3, Ordering::SeqCst);
    put(&store, "t", 0, b"during");
    assert!(matches!(store.writable(), Err(NotWritable::DiskFull(_))));
    assert!(matches!(
        append(&store, "t", 0, &[Message::default()]),
        Err(PutError::NotWritable(_))
    ));
    assert_eq!(store.poisoned(), None);
    assert_eq!(bodies(&store, "t", 0, 0), [b"before"]);
    disk.write.store(0, Ordering::SeqCst);
    wait(|| store.writable().is_ok());
    put(&store, "t", 0, b"after");
    let wanted: [&[u8]; 3] = [b"before", b"during", b"after"];
    assert_eq!(bodies(&store, "t", 0, 0), wanted);
    crash(store);
    assert_eq!(bodies(&open(small(dir.path())), "t", 0, 0), wanted);
}

/// The writer's lock and the appenders never wait for a sync.
#[test]
fn appends_go_on_while_a_sync_stalls() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = faulty(dir.path(), FlushDiskType::SyncFlush);
    disk.sync.store(2_000, Ordering::SeqCst);
    let first = put(&store, "t", 0, b"x");
    let begin = Instant::now();
    while store.flushed() < first.end && begin.elapsed() < Duration::from_millis(500) {
        put(&store, "t", 0, b"y");
    }
    assert!(store.flushed() < first.end);
    // Far more than one: nobody waited. How many depends on who else uses the machine.
    assert!(store.max_offset("t", 0) > 50);
    disk.sync.store(0, Ordering::SeqCst);
    assert!(store.wait_flushed(store.written(), Duration::from_secs(20)));
}

#[test]
fn too_much_unflushed_is_answered_busy() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FaultyDisk::default());
    let mut config = small(dir.path());
    config.max_unflushed_bytes = 64 << 10;
    config.write_back_bytes = 32 << 10;
    let store = Store::open_with_disk(config, TestClock::at(0), disk.clone()).unwrap();
    disk.sync.store(100, Ordering::SeqCst);
    let mut busy = None;
    for _ in 0..1_000 {
        match append(
            &store,
            "t",
            0,
            &[Message {
                body: &[1; 4000],
                ..Default::default()
            }],
        ) {
            Ok(_) => store.drive(),
            Err(error) => {
                busy = Some(error);
                break;
            }
        }
    }
    assert!(matches!(busy, Some(PutError::Busy(_))), "{busy:?}");
    disk.sync.store(0, Ordering::SeqCst);
    wait(|| append(&store, "t", 0, &[Message::default()]).is_ok());
}

/// A member of a group whose disk is full takes nothing from its leader, stays alive, and forgets again what it could
/// not write.
#[test]
fn a_log_of_frames_on_a_full_disk_has_no_room_but_for_entries_of_its_own_and_can_be_cut() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FaultyDisk::default());
    let mut config = small(dir.path());
    config.commit_log_path = Some(dir.path().join("dledger-n0"));
    config.frames = Some(store::FrameConfig::default());
    let clock = TestClock::at(1_700_000_000_000);
    let store = Store::open_with_disk(config.clone(), clock, disk.clone()).unwrap();
    let first = store.append_entry(1, 1, b"").unwrap();
    store.drive();
    store.advance_confirm(first.end());
    store.open_gate(1).unwrap();
    let kept = put(&store, "t", 0, b"kept");
    store.advance_confirm(kept.end);
    assert!(store.has_room(100_000));
    disk.write.store(3, Ordering::SeqCst);
    put(&store, "t", 0, b"not written");
    assert!(!store.has_room(1));
    assert_eq!(store.written(), kept.end);
    store.close_gate();
    store.follow_log().unwrap();
    for _ in 0..1_000 {
        let own = store.append_entry(2, 1, b"").unwrap();
        assert_eq!(own.term, 2);
    }
    // The new leader has other entries in their place: without waiting for the disk.
    let begin = Instant::now();
    store.truncate_from(3).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!((store.appended(), store.last_entry().index), (kept.end, 2));
    disk.write.store(0, Ordering::SeqCst);
    wait(|| store.has_room(1) && store.writable().is_ok());
    store.append_entry(3, 1, b"").unwrap();
    store.drive();
    store.open_gate(3).unwrap_err();
    store.advance_confirm(store.written());
    store.open_gate(3).unwrap();
    assert_eq!(put(&store, "t", 0, b"next").queue_offset, 1);
    store.advance_confirm(store.written());
    assert_eq!(bodies(&store, "t", 0, 0), [b"kept", b"next"]);
    crash(store);
    let store = open(config);
    assert_eq!((store.last_entry().index, store.last_entry().term), (4, 3));
}

/// What the log takes is what makes room: giving it up needs none.
#[test]
fn a_log_is_given_up_on_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FaultyDisk::default());
    let mut config = small(dir.path());
    config.commit_log_path = Some(dir.path().join("dledger-n0"));
    config.frames = Some(store::FrameConfig::default());
    let clock = TestClock::at(1_700_000_000_000);
    let store = Store::open_with_disk(config.clone(), clock, disk.clone()).unwrap();
    let first = store.append_entry(1, 1, b"").unwrap();
    store.drive();
    store.advance_confirm(first.end());
    store.open_gate(1).unwrap();
    let keyed = Message {
        body: b"body",
        key: "k",
        ..Message::default()
    };
    for _ in 0..20 {
        append(&store, "t", 0, &[keyed]).unwrap();
    }
    store.drive();
    store.advance_confirm(store.written());
    disk.write.store(3, Ordering::SeqCst);
    put(&store, "t", 0, b"not written");
    let entry = store::EntryId { index: 99, term: 2 };
    store.start_after(entry, 32 << 10).unwrap();
    assert_eq!((store.last_entry(), store.appended()), (entry, 32 << 10));
    assert_eq!(store.max_offset("t", 0), 0);
    assert!(store.query("t", "k", 9, 0, i64::MAX).records.is_empty());
    disk.write.store(0, Ordering::SeqCst);
    wait(|| store.writable().is_ok());
    crash(store);
    assert_eq!(open(config).last_entry(), entry);
}
