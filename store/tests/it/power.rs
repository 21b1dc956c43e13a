//! What a disk that failed, or lost power, leaves behind.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use store::{Disk, FlushDiskType, LastStop, RealDisk, Store, StoreConfig};

use crate::common::*;

const PAGE: u64 = 4096;
const LIMIT: Duration = Duration::from_secs(20);

/// Keeps what the disk holds of each page that differs in the page cache. As Linux does, it calls pages clean whose
/// write-back failed; as ext4 does, it never gets them right again, unless the page cache has let go of them.
#[derive(Default)]
pub(crate) struct TornDisk {
    pub(crate) fails: AtomicBool,
    /// Files and folders that were synced by name of their own.
    synced: Mutex<HashSet<u64>>,
    files: Mutex<HashMap<u64, Cached>>,
}

struct Cached {
    file: File,
    pages: BTreeMap<u64, Page>,
}

struct Page {
    on_disk: Vec<u8>,
    dirty: bool,
    spoiled: bool,
}

impl Cached {
    fn sync(&mut self, fails: bool) {
        for page in self.pages.values_mut().filter(|page| page.dirty) {
            page.spoiled |= fails;
            page.dirty = false;
        }
        self.pages.retain(|_, page| page.spoiled);
    }
}

impl TornDisk {
    fn done(&self) -> io::Result<()> {
        match self.fails.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => Ok(()),
        }
    }

    /// Pages that a power cut would take.
    fn at_risk(&self) -> usize {
        self.files.lock().values().map(|f| f.pages.len()).sum()
    }

    pub(crate) fn power_cut(&self) {
        for (_, cached) in self.files.lock().drain() {
            for (at, page) in cached.pages {
                cached.file.write_all_at(&page.on_disk, at * PAGE).unwrap();
            }
        }
    }
}

impl Disk for TornDisk {
    fn write_at(&self, file: &File, buffers: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        let mut files = self.files.lock();
        let cached = files
            .entry(file.metadata()?.ino())
            .or_insert_with(|| Cached {
                file: file.try_clone().unwrap(),
                pages: BTreeMap::new(),
            });
        let len: usize = buffers.iter().map(|b| b.len()).sum();
        let end = (position + len as u64).next_multiple_of(PAGE);
        for page in position / PAGE..end / PAGE {
            let known = cached.pages.entry(page).or_insert_with(|| {
                let mut bytes = vec![0; PAGE as usize];
                let left = file.metadata().unwrap().len().saturating_sub(page * PAGE);
                bytes.truncate(left as usize);
                file.read_exact_at(&mut bytes, page * PAGE).unwrap();
                Page {
                    on_disk: bytes,
                    dirty: true,
                    spoiled: false,
                }
            });
            known.dirty = true;
        }
        RealDisk.write_at(file, buffers, position)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        self.synced.lock().insert(file.metadata()?.ino());
        let mut files = self.files.lock();
        if let Some(cached) = files.get_mut(&file.metadata()?.ino()) {
            cached.sync(self.done().is_err());
        }
        self.done()
    }

    fn let_go(&self, file: &File, at: u64, len: u64) {
        let mut files = self.files.lock();
        let Some(cached) = files.get_mut(&file.metadata().unwrap().ino()) else {
            return;
        };
        let Cached { file, pages } = cached;
        pages.retain(|page, known| {
            let goes = !known.dirty && (at..at + len).contains(&(page * PAGE));
            if goes {
                file.write_all_at(&known.on_disk, page * PAGE).unwrap();
            }
            !goes
        });
    }

    fn sync_everything(&self, _folder: &File) -> Option<io::Result<()>> {
        let mut files = self.files.lock();
        let fails = self.done().is_err();
        files.values_mut().for_each(|cached| cached.sync(fails));
        Some(self.done())
    }
}

fn open_on(disk: &Arc<TornDisk>, config: StoreConfig) -> Arc<Store> {
    try_open(config, TestClock::at(1_700_000_000_000), disk.clone()).unwrap()
}

fn config(root: &Path) -> StoreConfig {
    let mut config = small(root);
    config.flush = FlushDiskType::SyncFlush;
    config
}

/// As after another start of the machine, as far as files tell.
pub(crate) fn another_boot(root: &Path) {
    let _ = fs::remove_file(root.join("flushed"));
    fs::write(root.join("abort"), b"1").unwrap();
    let offsets = root.join("offsets");
    let mut bytes = fs::read(&offsets).unwrap();
    if bytes.len() == 108 {
        bytes[48] ^= 1;
        let crc = crc32fast::hash(&bytes[..104]);
        bytes[104..].copy_from_slice(&crc.to_be_bytes());
        fs::write(&offsets, bytes).unwrap();
    }
}

#[test]
fn what_a_failed_sync_left_in_memory_alone_does_not_count_as_flushed_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(TornDisk::default());
    let store = open_on(&disk, config(dir.path()));
    let good = put(&store, "t", 0, b"good");
    assert!(store.wait_flushed(good.end, LIMIT));
    disk.fails.store(true, Ordering::SeqCst);
    let torn = put(&store, "t", 0, &[7; 6000]);
    assert!(!store.wait_flushed(torn.end, LIMIT) && store.poisoned().is_some());
    // Queues and index, too.
    store.shutdown();
    drop(store);
    disk.fails.store(false, Ordering::SeqCst);
    let store = open_on(&disk, config(dir.path()));
    // Under ASYNC_FLUSH it may have been acknowledged, and memory may have lost it.
    assert_eq!(store.last_stop(), LastStop::PowerLost);
    assert_eq!(bodies(&store, "t", 0, 0).len(), 2);
    assert!(store.wait_flushed(torn.end, LIMIT));
    crash(store);
    disk.power_cut();
    another_boot(dir.path());
    let store = open_on(&disk, config(dir.path()));
    assert_eq!(bodies(&store, "t", 0, 0), [&b"good"[..], &[7; 6000]]);
}

/// The process died before it heard of the failure.
#[test]
fn what_the_last_life_did_not_see_synced_is_written_once_more() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(TornDisk::default());
    let mut slow = config(dir.path());
    slow.flush = FlushDiskType::AsyncFlush;
    slow.flush_interval = Duration::from_secs(3600);
    let store = open_on(&disk, slow.clone());
    let good = put(&store, "t", 0, b"good");
    assert!(store.wait_flushed(good.end, LIMIT));
    let torn = put(&store, "t", 0, &[7; 6000]);
    crash(store);
    disk.fails.store(true, Ordering::SeqCst);
    assert!(
        disk.sync_everything(&File::open(dir.path()).unwrap())
            .is_some()
    );
    disk.fails.store(false, Ordering::SeqCst);
    let store = open_on(&disk, slow);
    assert_eq!(store.last_stop(), LastStop::Killed);
    assert!(store.wait_flushed(torn.end, LIMIT));
    crash(store);
    disk.power_cut();
    another_boot(dir.path());
    let store = open_on(&disk, config(dir.path()));
    assert_eq!(bodies(&store, "t", 0, 0), [&b"good"[..], &[7; 6000]]);
}

#[test]
fn a_failed_sync_is_forgotten_once_a_restart_has_settled_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(TornDisk::default());
    let store = open_on(&disk, config(dir.path()));
    disk.fails.store(true, Ordering::SeqCst);
    let torn = put(&store, "t", 0, b"torn");
    assert!(!store.wait_flushed(torn.end, LIMIT));
    crash(store);
    // The disk still fails: nothing is opened that could not be kept.
    let clock = TestClock::at(1_700_000_000_000);
    assert!(try_open(config(dir.path()), clock, disk.clone()).is_err());
    disk.fails.store(false, Ordering::SeqCst);
    let store = open_on(&disk, config(dir.path()));
    assert!(store.wait_flushed(torn.end, LIMIT));
    store.shutdown();
    drop(store);
    let store = open_on(&disk, config(dir.path()));
    assert_eq!(store.last_stop(), LastStop::Clean);
    crash(store);
    assert_eq!(
        open_on(&disk, config(dir.path())).last_stop(),
        LastStop::Killed
    );
}

#[test]
fn queues_that_a_killed_broker_did_not_sync_are_synced_by_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(TornDisk::default());
    let store = open_on(&disk, config(dir.path()));
    for i in 0..20 {
        put(&store, "t", i % 4, b"body");
    }
    let units = dir.path().join("consumequeue/t/3");
    wait(|| fs::read_dir(&units).is_ok_and(|mut files| files.next().is_some()));
    assert!(store.wait_flushed(store.written(), LIMIT));
    crash(store);
    assert!(disk.at_risk() > 0, "queues are synced now and then only");
    let store = open_on(&disk, config(dir.path()));
    store.shutdown();
    assert_eq!(disk.at_risk(), 0);
}

/// Else a power cut soon after an orderly stop would be taken for that stop.
#[test]
fn that_a_store_is_open_is_on_disk_before_anything_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(TornDisk::default());
    for _ in 0..2 {
        disk.synced.lock().clear();
        let store = open_on(&disk, config(dir.path()));
        for path in [dir.path().join("abort"), dir.path().to_owned()] {
            let known = disk
                .synced
                .lock()
                .contains(&fs::metadata(&path).unwrap().ino());
            assert!(known, "{} is not synced", path.display());
        }
        store.shutdown();
    }
}

/// A power cut takes pages of a queue and leaves later ones. Those counted again once the queue had grown up to them and
/// retention had taken the records that could have told.
#[test]
fn units_behind_a_gap_never_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let config = {
        let mut config = small(dir.path());
        config.file_reserved_hours = 0;
        config.clean_resource_interval = Duration::from_millis(1);
        config
    };
    let root = dir.path();
    let store = open(config.clone());
    let put_one = |store: &Store| put(store, "q", 3, &[1; 100]).phy_offset;
    put_one(&store);
    put_one(&store);
    store.shutdown();
    drop(store);
    let store = open(config.clone());
    let places = [(); 3].map(|()| put_one(&store));
    let units = root.join("consumequeue/q/3/00000000000000000000");
    wait(|| fs::read(&units).unwrap()[80..100] != [0; 20]);
    crash(store);
    let edit = |path: &Path, bytes: &[u8], at: u64| {
        let file = fs::OpenOptions::new().write(true).open(path);
        file.unwrap().write_all_at(bytes, at).unwrap();
    };
    edit(&units, &[0; 20], 60);
    let log = root.join("commitlog/00000000000000000000");
    edit(&log, &[0; 4096], places[1]);
    another_boot(root);
    // Long after every file's time.
    let open = || open_at(config.clone(), TestClock::at(4_000_000_000_000));
    let store = open();
    assert_eq!(store.max_offset("q", 3), 3);
    put_one(&store);
    for _ in 0..40 {
        put(&store, "q", 0, &[2; 1000]);
    }
    assert!(store.wait_flushed(store.written(), LIMIT));
    store.delete_expired_now();
    wait(|| store.min_phy_offset() > places[2]);
    wait(|| store.min_offset("q", 3) == 4);
    store.shutdown();
    drop(store);
    let store = open();
    assert_eq!((store.min_offset("q", 3), store.max_offset("q", 3)), (4, 4));
}
