//! Disks that fail, fill up or hang under a leader and under a follower.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use broker::Broker;
use remoting::protocol::body::DLedgerStatus;
use store::{Disk, RealDisk};

use crate::common::{LIMIT, until};
use crate::group::Cluster;

const EIO: i32 = 5;
pub(crate) const ENOSPC: i32 = 28;
/// Without an acknowledgement for a sender while a disk takes nothing: three seconds until it counts as one that does not
/// answer, an election, a call that is given up, and a busy machine.
const LONGEST_GAP: Duration = Duration::from_secs(20);
/// Longer than a new leader waits before it offers the leadership to the preferred member.
const AFTER_OFFERS: Duration = Duration::from_millis(2500);

#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) enum Ill {
    #[default]
    Nothing,
    Fails(i32),
    Hangs,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Ills {
    pub(crate) write: Ill,
    pub(crate) sync: Ill,
}

/// A disk that is well until the test says otherwise, and again when it says so.
#[derive(Default)]
pub(crate) struct Trouble {
    ills: Mutex<Ills>,
    changed: Condvar,
}

impl Trouble {
    pub(crate) fn set(&self, ills: Ills) {
        *self.ills.lock().unwrap() = ills;
        self.changed.notify_all();
    }

    /// Returns when this may be done, or has failed.
    fn passes(&self, ill: impl Fn(&Ills) -> Ill) -> io::Result<()> {
        let hangs = |ills: &mut Ills| ill(ills) == Ill::Hangs;
        let ills = self.ills.lock().unwrap();
        // Not for ever: a test that fails must end.
        let (ills, _) = self.changed.wait_timeout_while(ills, LIMIT, hangs).unwrap();
        match ill(&ills) {
            Ill::Fails(error) => Err(io::Error::from_raw_os_error(error)),
            _ => Ok(()),
        }
    }
}

impl Disk for Trouble {
    fn write_at(&self, file: &File, buffers: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        self.passes(|ills| ills.write)?;
        RealDisk.write_at(file, buffers, position)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        self.passes(|ills| ills.sync)?;
        RealDisk.sync_data(file)
    }
}

/// Three members, the first of them with such a disk, which leads or follows.
async fn group(dir: &std::path::Path, leads: bool) -> (Cluster, Arc<Trouble>, Arc<Broker>) {
    let preferred = match leads {
        true => "preferredLeaderId=n0\n",
        false => "preferredLeaderId=n1\n",
    };
    let mut cluster = Cluster::prepare(dir, 3, "SYNC_FLUSH", preferred).await;
    let disk = Arc::new(Trouble::default());
    let on = Arc::clone(&disk) as Arc<dyn Disk>;
    cluster.nodes[0].start_here(on).await;
    cluster.nodes[1].start();
    cluster.nodes[2].start();
    let sick = Arc::clone(cluster.nodes[0].here.as_ref().unwrap());
    (cluster, disk, sick)
}

/// The disk fails under load: the others go on, and a restart heals the member.
async fn a_disk_fails(leads: bool, ills: Ills) {
    let dir = tempfile::tempdir().unwrap();
    let (mut cluster, disk, sick) = group(dir.path(), leads).await;
    let load = cluster.load();
    cluster
        .leader(|s| (s.self_id == "n0") == leads && s.members.iter().all(|m| m.sure))
        .await;
    load.acknowledged(100).await;
    disk.set(ills);
    until("a member whose disk failed is not ready", async || {
        sick.ready().is_err()
    })
    .await;
    cluster.leader(|s| s.self_id != "n0").await;
    load.acknowledged(100).await;
    assert!(sick.accepts_sends().is_err());
    cluster.nodes[0].here = None;
    sick.shutdown().await;
    drop(sick);
    cluster.nodes[0].start();
    load.acknowledged(20).await;
    let acknowledged = load.stop().await;
    cluster.all_level().await;
    cluster.check(0..3, &acknowledged).await;
    cluster.end().await;
}

/// The disk takes nothing for a while, under load: the others go on within a bounded time, the member is not made their
/// leader meanwhile, and is one of them again when its disk takes something.
async fn a_disk_takes_nothing_for_a_while(leads: bool, ills: Ills) {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, disk, sick) = group(dir.path(), leads).await;
    let load = cluster.load();
    cluster
        .leader(|s| (s.self_id == "n0") == leads && s.members.iter().all(|m| m.sure))
        .await;
    load.acknowledged(100).await;
    load.longest_gap();
    disk.set(ills);
    until(
        "a member whose disk takes nothing is not ready",
        async || sick.ready().is_err(),
    )
    .await;
    cluster.leader(|s| s.self_id != "n0").await;
    load.acknowledged(100).await;
    if leads {
        let began = Instant::now();
        until("the time for offers is over", async || {
            for at in 1..3 {
                let status = cluster.status(at).await;
                assert!(status.is_none_or(|s| s.leader_id != "n0"));
            }
            assert!(sick.accepts_sends().is_err());
            began.elapsed() > AFTER_OFFERS
        })
        .await;
        load.acknowledged(100).await;
    }
    let gap = load.longest_gap();
    println!("longest gap between two acknowledgements of a sender: {gap:?}");
    assert!(gap < LONGEST_GAP);
    disk.set(Ills::default());
    load.acknowledged(100).await;
    cluster
        .leader(|s| {
            (s.self_id == "n0") == leads && s.members.iter().all(|m| m.recently_active && m.sure)
        })
        .await;
    load.acknowledged(20).await;
    let acknowledged = load.stop().await;
    cluster.all_level().await;
    cluster.check(0..3, &acknowledged).await;
    sick.shutdown().await;
    cluster.end().await;
}

pub(crate) fn write(ill: Ill) -> Ills {
    Ills {
        write: ill,
        ..Ills::default()
    }
}

fn sync(ill: Ill) -> Ills {
    Ills {
        sync: ill,
        ..Ills::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_that_cannot_sync_its_disk_makes_room_for_another() {
    a_disk_fails(true, sync(Ill::Fails(EIO))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_that_cannot_write_its_disk_makes_room_for_another() {
    a_disk_fails(true, write(Ill::Fails(EIO))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_follower_that_cannot_sync_its_disk_holds_nobody_up() {
    a_disk_fails(false, sync(Ill::Fails(EIO))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_follower_that_cannot_write_its_disk_holds_nobody_up() {
    a_disk_fails(false, write(Ill::Fails(EIO))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_whose_disk_is_full_makes_room_for_another_until_there_is_room() {
    a_disk_takes_nothing_for_a_while(true, write(Ill::Fails(ENOSPC))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_follower_whose_disk_is_full_holds_nobody_up_and_goes_on_when_there_is_room() {
    a_disk_takes_nothing_for_a_while(false, write(Ill::Fails(ENOSPC))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_whose_writes_hang_makes_room_for_another_until_they_return() {
    a_disk_takes_nothing_for_a_while(true, write(Ill::Hangs)).await;
}

/// Here it is the group's own thread that hangs, which can do nothing about it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_that_hangs_itself_is_no_master_any_more_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, disk, sick) = group(dir.path(), true).await;
    cluster
        .leader(|s| s.self_id == "n0" && s.members.iter().all(|m| m.sure))
        .await;
    cluster.known_as_master(0).await;
    disk.set(write(Ill::Hangs));
    // An entry of the group's own, which its thread writes itself before anybody else has it.
    let address = &cluster.nodes[0].address;
    let asked = cluster
        .admin
        .dledger_add_member(address, "n9", "127.0.0.1:1");
    asked.await.unwrap();
    until("who hangs is no master", async || !sick.is_master()).await;
    let leader = cluster.leader(|s| s.self_id != "n0").await;
    cluster.known_as_master(leader).await;
    assert!(sick.ready().is_err());
    let load = cluster.load();
    load.acknowledged(100).await;
    disk.set(Ills::default());
    let all = |s: &DLedgerStatus| s.members.len() == 3 && s.members.iter().all(|m| m.sure);
    let leader = cluster.leader(|s| s.self_id == "n0" && all(s)).await;
    cluster.known_as_master(leader).await;
    load.acknowledged(20).await;
    let acknowledged = load.stop().await;
    cluster.all_level().await;
    cluster.check(0..3, &acknowledged).await;
    sick.shutdown().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_whose_syncs_hang_makes_room_for_another_until_they_return() {
    a_disk_takes_nothing_for_a_while(true, sync(Ill::Hangs)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_follower_whose_writes_hang_holds_nobody_up_and_goes_on_when_they_return() {
    a_disk_takes_nothing_for_a_while(false, write(Ill::Hangs)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_follower_whose_syncs_hang_holds_nobody_up_and_goes_on_when_they_return() {
    a_disk_takes_nothing_for_a_while(false, sync(Ill::Hangs)).await;
}
