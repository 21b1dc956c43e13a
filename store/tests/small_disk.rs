//! A file system that really fills up. Needs to mount one, so it runs in a mount namespace of its own:
//!
//!     unshare --mount cargo test -p store --test small_disk -- --ignored
//!
//! as root, or `unshare --map-root-user --mount` where users may have namespaces. `test.sh` does, or says that it cannot.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[allow(dead_code)]
#[path = "it/common.rs"]
mod common;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use store::{FlushDiskType, NotWritable, PutError, Store, StoreConfig};

use common::*;

const DISK: u64 = 12 << 20;
const BODY: usize = 4_000;

struct SmallDisk(tempfile::TempDir);

fn run(command: &str, arguments: &[&std::ffi::OsStr]) -> bool {
    let status = Command::new(command).args(arguments).status();
    status.is_ok_and(|status| status.success())
}

impl SmallDisk {
    fn mount() -> Self {
        Self::of(DISK)
    }

    fn of(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let arguments = ["-t", "tmpfs", "-o", &size, "small-disk"].map(AsRef::as_ref);
        let arguments = [&arguments[..], &[dir.path().as_ref()]].concat();
        assert!(
            run("mount", &arguments),
            "a small file system must be mounted"
        );
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// A file of somebody else that takes what is left but so much.
    fn leave(&self, bytes: u64) -> std::path::PathBuf {
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        let path = self.path().join("ballast");
        let taken = (stat.f_bavail * stat.f_frsize).saturating_sub(bytes);
        let mut file = File::create(&path).unwrap();
        for _ in 0..taken >> 12 {
            file.write_all(&[1; 4096]).unwrap();
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

fn config(root: &Path) -> StoreConfig {
    let mut config = small(root);
    config.segment_size = 256 << 10;
    config
}

/// Bodies of messages in order: what was written before its appender went on is acknowledged.
struct Sender {
    acknowledged: Vec<Vec<u8>>,
    /// Appended while the disk was full: told to nobody yet.
    waiting: Vec<(u64, Vec<u8>)>,
}

impl Sender {
    /// Appends until the store refuses, and says why.
    fn until_refused(&mut self, store: &Store) -> NotWritable {
        loop {
            let n = self.acknowledged.len() + self.waiting.len();
            let body = vec![n as u8; BODY];
            let message = Message {
                body: &body,
                key: &format!("k{n}"),
                ..Default::default()
            };
            match append(store, "t", 0, &[message]) {
                Ok(appended) => {
                    store.drive();
                    if store.written() >= appended.end && store.max_offset("t", 0) > n as i64 {
                        self.acknowledged.push(body);
                    } else {
                        self.waiting.push((appended.end, body));
                    }
                }
                Err(PutError::NotWritable(reason)) => return reason,
                Err(PutError::Busy(_)) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn settle(&mut self, store: &Store) {
        for (end, body) in self.waiting.drain(..) {
            assert!(store.written() >= end, "there is room again");
            self.acknowledged.push(body);
        }
    }
}

#[test]
#[ignore = "needs to mount a file system: see the head of this file"]
fn a_disk_that_fills_up_refuses_writes_goes_on_when_there_is_room_and_loses_nothing() {
    for flush in [FlushDiskType::AsyncFlush, FlushDiskType::SyncFlush] {
        let disk = SmallDisk::mount();
        let root = disk.path().join("store");
        let mut config = config(&root);
        config.flush = flush;
        let mut store: Arc<Store> = open(config.clone());
        let mut sender = Sender {
            acknowledged: Vec::new(),
            waiting: Vec::new(),
        };
        let mut room = 3 << 20;
        for round in 0..4 {
            let ballast = disk.leave(room);
            let reason = sender.until_refused(&store);
            assert!(matches!(reason, NotWritable::DiskFull(_)), "{reason}");
            assert_eq!(store.poisoned(), None);
            // What waits may find room at any moment: the store tries again by itself.
            let seen = bodies(&store, "t", 0, 0);
            let known = sender.acknowledged.len();
            assert!(
                seen.len() <= known + sender.waiting.len() && seen[..known] == sender.acknowledged,
                "readers read on"
            );
            if round == 2 {
                // Killed while the disk is full. What waited was promised to nobody: it is there or not, but nothing of it in between.
                // It opens while the disk is full, too: a member of a group must vote.
                crash(store);
                store = open(config.clone());
                let found = bodies(&store, "t", 0, 0);
                let known = sender.acknowledged.len();
                assert!(found[..known] == sender.acknowledged[..]);
                assert!(found.len() <= known + sender.waiting.len());
                sender.waiting.clear();
                sender.acknowledged = found;
                fs::remove_file(ballast).unwrap();
                wait(|| store.writable().is_ok());
            } else {
                fs::remove_file(ballast).unwrap();
                wait(|| store.writable().is_ok() && store.written() == store.appended());
                sender.settle(&store);
            }
            assert!(bodies(&store, "t", 0, 0) == sender.acknowledged);
            room = 1 << 20;
        }
        assert!(
            sender.acknowledged.len() > 600,
            "{} messages",
            sender.acknowledged.len()
        );
        store.shutdown();
        drop(store);
        let store = open(config);
        assert_eq!(
            store.runtime_figures().recovered_records,
            0,
            "stopped in order"
        );
        assert!(bodies(&store, "t", 0, 0) == sender.acknowledged);
        let last = sender.acknowledged.len() - 1;
        let found = store.query("t", &format!("k{last}"), 9, 0, i64::MAX);
        assert_eq!(found.records.len(), 1);
    }
}

/// The ratio says so before the file system does: expired or not, what is oldest goes, and writes are refused until then.
#[test]
#[ignore = "needs to mount a file system: see the head of this file"]
fn above_its_ratios_a_store_deletes_the_oldest_and_refuses_writes_until_there_is_room() {
    let disk = SmallDisk::mount();
    let mut config = config(&disk.path().join("store"));
    config.disk_space_warning_level_ratio = 90;
    config.disk_space_clean_forcibly_ratio = 85;
    config.clean_resource_interval = std::time::Duration::from_millis(50);
    let store = open(config.clone());
    let mut sender = Sender {
        acknowledged: Vec::new(),
        waiting: Vec::new(),
    };
    // By whichever comes first: the ratio, looked at now and then, or the file system.
    let reason = sender.until_refused(&store);
    assert!(matches!(reason, NotWritable::DiskFull(_)), "{reason}");
    let ratio = || store.runtime_figures().commit_log_disk_ratio;
    wait(|| ratio() > 0.9 && store.writable().is_err());
    assert_eq!(
        store.min_offset("t", 0),
        0,
        "not allowed to delete what is not expired"
    );
    config.clean_file_forcibly_enable = true;
    store.reconfigure(&config);
    wait(|| store.writable().is_ok() && store.written() == store.appended());
    wait(|| {
        ratio() < 0.85 && store.min_offset("t", 0) > 0 && store.earliest_store_time("t", 0) >= 0
    });
    sender.settle(&store);
    let min = store.min_offset("t", 0);
    assert!(bodies(&store, "t", 0, min) == sender.acknowledged[min as usize..]);
    // From now on it keeps itself below the limit.
    for n in 0..2_000u32 {
        let body = n.to_be_bytes().repeat(BODY / 4);
        wait(|| {
            match append(
                &store,
                "t",
                0,
                &[Message {
                    body: &body,
                    ..Default::default()
                }],
            ) {
                Ok(_) => true,
                Err(PutError::Busy(_) | PutError::NotWritable(NotWritable::DiskFull(_))) => false,
                Err(error) => panic!("{error}"),
            }
        });
        store.drive();
    }
    assert_eq!(store.poisoned(), None);
    assert!(store.min_offset("t", 0) > min);
}

/// A member of a group saves its term and its vote here, and retention what it is about to take.
#[test]
#[ignore = "needs to mount a file system: see the head of this file"]
fn a_file_of_two_slots_is_saved_on_a_full_disk() {
    let disk = SmallDisk::mount();
    let path = disk.path().join("state");
    let mut file = store::SlotFile::new(path.clone());
    file.save(&[0; 300]).unwrap();
    disk.leave(0);
    assert!(fs::write(disk.path().join("more"), [1; 4096]).is_err());
    for round in 1..20 {
        file.save(&[round; 3000]).unwrap();
        let read = store::SlotFile::read(&path).unwrap();
        assert_eq!(read.unwrap(), [round; 3000]);
        if round % 3 == 0 {
            // Another life.
            file = store::SlotFile::new(path.clone());
        }
    }
    assert!(file.save(&[1; 5000]).is_err(), "it has outgrown its slot");
    file.save(b"again").unwrap();
    assert!(!disk.path().join("state.tmp").exists());
    assert_eq!(store::SlotFile::read(&path).unwrap().unwrap(), b"again");
}

/// An ext4 within a file that is larger than what is left for it: write-back fails when that is used up, as on a device
/// that fails.
struct Thin {
    image: std::path::PathBuf,
    at: tempfile::TempDir,
}

impl Thin {
    /// None where this machine has no loop devices, or not the tools.
    fn mount(on: &SmallDisk, bytes: u64) -> Option<Self> {
        let image = on.path().join("image");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        let arguments = ["-q", "-F"].map(AsRef::as_ref);
        let arguments = [&arguments[..], &[image.as_ref()]].concat();
        if !run("mkfs.ext4", &arguments) {
            return None;
        }
        // Written as a whole, it has a place for each block; free ones lose it again.
        let whole = fs::read(&image).unwrap();
        fs::write(&image, whole).unwrap();
        let thin = Self {
            image,
            at: tempfile::tempdir().unwrap(),
        };
        let ready = thin.mount_again() && run("fstrim", &[thin.at.path().as_ref()]);
        ready.then_some(thin)
    }

    fn mount_again(&self) -> bool {
        let arguments = ["-o".as_ref(), "loop".as_ref()];
        let places = [self.image.as_ref(), self.at.path().as_ref()];
        run("mount", &[arguments, places].concat())
    }

    fn unmount(&self) -> bool {
        run("umount", &[self.at.path().as_ref()])
    }
}

impl Drop for Thin {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// What Linux and ext4 make of a failed write-back; the other tests of it have a disk that imitates them.
#[test]
#[ignore = "needs to mount a file system: see the head of this file"]
fn what_ext4_failed_to_write_is_on_disk_once_it_counts_as_flushed_after_a_restart() {
    let disk = SmallDisk::of(64 << 20);
    let Some(thin) = Thin::mount(&disk, 48 << 20) else {
        println!("not run: an ext4 cannot be mounted here");
        return;
    };
    let root = thin.at.path().join("store");
    for flush in [FlushDiskType::AsyncFlush, FlushDiskType::SyncFlush] {
        let _ = fs::remove_dir_all(&root);
        let mut config = config(&root);
        config.flush = flush;
        let store = open(config.clone());
        let put_one = |n: usize| put(&store, "t", 0, &vec![n as u8; BODY]);
        let first = put_one(0);
        wait(|| store.wait_flushed(first.end, std::time::Duration::from_secs(20)));
        let ballast = disk.leave(0);
        // Blocks that were made ready before find room.
        let mut count = 1;
        while store.poisoned().is_none() && count < 1_000 {
            let appended = put_one(count);
            count += 1;
            store.wait_flushed(appended.end, std::time::Duration::from_secs(20));
        }
        assert!(store.poisoned().is_some(), "nothing failed");
        crash(store);
        fs::remove_file(ballast).unwrap();
        let store = open(config.clone());
        let kept = bodies(&store, "t", 0, 0);
        assert!(kept.len() + 1 >= count, "memory had it all");
        wait(|| store.flushed() == store.written());
        crash(store);
        // All that is read afterwards is read from the disk.
        assert!(thin.unmount() && thin.mount_again());
        fs::remove_file(root.join("flushed")).unwrap();
        fs::remove_file(root.join("offsets")).unwrap();
        let store = open(config);
        assert_eq!(bodies(&store, "t", 0, 0), kept);
        store.shutdown();
    }
}
