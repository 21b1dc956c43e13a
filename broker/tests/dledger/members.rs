//! Members that come and go.

use std::fs;

use remoting::protocol::body::DLedgerStatus;

use crate::common::until;
use crate::group::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_member_joins_with_an_empty_volume_and_another_leaves_under_load() {
    let dir = tempfile::tempdir().unwrap();
    // The fourth is prepared with the three, of whose membership it is no part yet.
    let mut cluster = Cluster::prepare(dir.path(), 4, "ASYNC_FLUSH", "").await;
    let text = fs::read_to_string(&cluster.nodes[0].conf).unwrap();
    let peers = text
        .lines()
        .find_map(|l| l.strip_prefix("dLegerPeers="))
        .unwrap();
    let (three, fourth) = peers.rsplit_once(';').unwrap();
    let address = fourth.strip_prefix("n3-").unwrap();
    for node in &mut cluster.nodes[..3] {
        let own = fs::read_to_string(&node.conf).unwrap();
        fs::write(&node.conf, own.replace(peers, three)).unwrap();
        node.start();
    }
    let load = cluster.load();
    load.acknowledged(50).await;
    cluster.nodes[3].start();
    until("the fourth is taken in", async || {
        let leader = cluster.leader(|_| true).await;
        let leader = &cluster.nodes[leader].address;
        let asked = cluster.admin.dledger_add_member(leader, "n3", address);
        asked.await.is_ok()
    })
    .await;
    let votes = |s: &DLedgerStatus, name: &str| s.members.iter().any(|m| m.id == name && m.voter);
    let leader = cluster.leader(|s| votes(s, "n3")).await;
    load.acknowledged(50).await;
    let leaves = (0..3).find(|at| *at != leader).unwrap();
    let name = cluster.nodes[leaves].name.clone();
    until("a member is let go", async || {
        let leader = cluster.leader(|_| true).await;
        let leader = &cluster.nodes[leader].address;
        let asked = cluster.admin.dledger_remove_member(leader, &name);
        asked.await.is_ok()
    })
    .await;
    cluster
        .leader(|s| s.members.len() == 3 && !votes(s, &name))
        .await;
    cluster.nodes[leaves].kill();
    // The one that joined counts: without it there would be no majority now.
    let other = (0..3).find(|at| *at != leader && *at != leaves).unwrap();
    cluster.nodes[other].kill();
    load.acknowledged(50).await;
    cluster.nodes[other].start();
    let acknowledged = load.stop().await;
    cluster.all_level().await;
    cluster.check([leader, other, 3], &acknowledged).await;
    cluster.end().await;
}
