//! Members whose settings differ.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use store::RealDisk;

use crate::common::until;
use crate::group::Cluster;

/// Another value of a key in a member's property file.
fn set(conf: &Path, key: &str, value: &str) {
    let text = fs::read_to_string(conf).unwrap();
    let begin = format!("{key}=");
    let lines = text.lines().map(|line| match line.starts_with(&begin) {
        true => format!("{begin}{value}\n"),
        false => format!("{line}\n"),
    });
    fs::write(conf, lines.collect::<String>()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn members_sync_as_each_is_told_and_one_whose_files_have_another_size_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::prepare(dir.path(), 3, "SYNC_FLUSH", "").await;
    set(&cluster.nodes[1].conf, "flushDiskType", "ASYNC_FLUSH");
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.all_sure().await;
    let load = cluster.load();
    load.acknowledged(50).await;
    // It comes back on a new volume, with files of another size.
    cluster.nodes[2].kill();
    fs::remove_dir_all(&cluster.nodes[2].store).unwrap();
    set(&cluster.nodes[2].conf, "mappedFileSizeCommitLog", "2097152");
    cluster.nodes[2].start_here(Arc::new(RealDisk)).await;
    load.acknowledged(50).await;
    let leader = cluster
        .leader(|s| s.members.iter().filter(|m| m.recently_active).count() == 2)
        .await;
    let status = cluster.status(leader).await.unwrap();
    let modes = status.members.iter().map(|m| m.flush_disk_type.as_str());
    let modes: Vec<_> = modes.collect();
    assert_eq!(modes, ["SYNC_FLUSH", "ASYNC_FLUSH", "SYNC_FLUSH"]);
    let other = Arc::clone(cluster.nodes[2].here.as_ref().unwrap());
    until("who is left out says why", async || {
        let why = other.ready().err().unwrap_or_default();
        why.contains("mappedFileSizeCommitLog=1048576 and this member 2097152")
    })
    .await;
    let acknowledged = load.stop().await;
    cluster.check([leader], &acknowledged).await;
    other.shutdown().await;
    cluster.end().await;
}
