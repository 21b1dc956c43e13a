//! A full disk is waited out.

use std::sync::Arc;

use crate::disks::{ENOSPC, Ill, Ills, Trouble, write};
use crate::group::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_without_room_goes_on_voting_and_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::prepare(dir.path(), 3, "SYNC_FLUSH", "preferredLeaderId=n1\n").await;
    let disk = Arc::new(Trouble::default());
    cluster.nodes[0].start_here(Arc::clone(&disk) as _).await;
    cluster.nodes[1].start();
    cluster.nodes[2].start();
    let load = cluster.load();
    let all = |s: &remoting::protocol::body::DLedgerStatus| s.members.iter().all(|m| m.sure);
    cluster.leader(|s| s.self_id == "n1" && all(s)).await;
    load.acknowledged(100).await;
    disk.set(write(Ill::Fails(ENOSPC)));
    load.acknowledged(100).await;
    // The last one can only be elected with its vote.
    cluster.nodes[1].kill();
    cluster.leader(|s| s.self_id == "n2").await;
    disk.set(Ills::default());
    load.acknowledged(20).await;
    cluster.nodes[1].start();
    let acknowledged = load.stop().await;
    cluster.all_level().await;
    cluster.check(0..3, &acknowledged).await;
    cluster.end().await;
}
