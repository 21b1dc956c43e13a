//! Disks that fail under a leader and under a follower.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::common::until;
use crate::group::{Cluster, Trouble};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// The member `n0`, which leads or follows, has a disk that fails under load; the others go on, and a restart heals it.
async fn a_disk_fails(leads: bool, fail: impl FnOnce(&Trouble)) {
    let dir = tempfile::tempdir().unwrap();
    let preferred = if leads {
        "preferredLeaderId=n0\n"
    } else {
        "preferredLeaderId=n1\n"
    };
    let mut cluster = Cluster::prepare(dir.path(), 3, "SYNC_FLUSH", preferred).await;
    let disk = Arc::new(Trouble::default());
    cluster.nodes[0].start_here(Arc::clone(&disk)).await;
    cluster.nodes[1].start();
    cluster.nodes[2].start();
    let load = cluster.load();
    cluster
        .leader(|s| (s.self_id == "n0") == leads && s.members.iter().all(|m| m.sure))
        .await;
    load.acknowledged(100).await;
    fail(&disk);
    let sick = Arc::clone(cluster.nodes[0].here.as_ref().unwrap());
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

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_sync_its_disk_makes_room_for_another() {
    a_disk_fails(true, |disk| disk.sync.store(EIO, Ordering::SeqCst)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_cannot_sync_its_disk_holds_nobody_up() {
    a_disk_fails(false, |disk| disk.sync.store(EIO, Ordering::SeqCst)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_disk_is_full_holds_nobody_up() {
    a_disk_fails(false, |disk| disk.write.store(ENOSPC, Ordering::SeqCst)).await;
}
