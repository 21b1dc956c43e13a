//! Stores written by Apache RocketMQ 4.9.7 and 5.3.3, stopped and killed; `*.expect.json` was made by another reader.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest, Sha256};
use store::{GetStatus, Store, StoreConfig};

use crate::common::*;

fn unpack(name: &str, to: &Path) -> (PathBuf, Value) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let status = Command::new("tar")
        .arg("-xJf")
        .arg(fixtures.join(format!("{name}.tar.xz")))
        .arg("-C")
        .arg(to)
        .status()
        .unwrap();
    assert!(status.success());
    let expect = std::fs::read(fixtures.join(format!("{name}.expect.json"))).unwrap();
    (to.join(name), serde_json::from_slice(&expect).unwrap())
}

fn config(root: &Path) -> StoreConfig {
    let mut config = small(root);
    config.max_hash_slot_num = 500;
    config.max_index_num = 2000;
    config.tail_ring_bytes = 4 << 20;
    config
}

struct Seen {
    offset_msg_id: String,
    body_sha: String,
    tags_code: i64,
    phy_offset: i64,
    record: Vec<u8>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        write!(text, "{b:02x}").unwrap();
        text
    })
}

fn look(record: &[u8], tags_code: i64) -> Seen {
    let phy_offset = i64_at(record, 28);
    let mut id = record[64..72].to_vec();
    id.extend(phy_offset.to_be_bytes());
    let mut content = body(record).to_vec();
    if i32_at(record, 36) & 1 != 0 {
        content.clear();
        flate2::read::ZlibDecoder::new(body(record))
            .read_to_end(&mut content)
            .unwrap();
    }
    Seen {
        offset_msg_id: hex(&id).to_uppercase(),
        body_sha: hex(&Sha256::digest(&content))[..16].to_owned(),
        tags_code,
        phy_offset,
        record: record.to_vec(),
    }
}

fn read_queue(store: &Store, topic: &str, queue_id: i32) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut offset = store.min_offset(topic, queue_id);
    while offset < store.max_offset(topic, queue_id) {
        let (result, bytes, _) = get(store, &request(topic, queue_id, offset, 32));
        assert_eq!(result.status, GetStatus::Found);
        let units = store.query_consume_queue(topic, queue_id, offset, result.count as usize);
        for (record, unit) in records(&bytes).into_iter().zip(units) {
            assert_eq!((i64_at(record, 28), record.len() as i32), (unit.0, unit.1));
            seen.push(look(record, unit.2));
        }
        offset = result.next_begin_offset;
    }
    seen
}

/// Every queue, message and key of the expectation.
fn check(store: &Store, expect: &Value) {
    let mut all = BTreeMap::new();
    for queue in expect["queues"].as_array().unwrap() {
        let (topic, queue_id) = (
            queue["topic"].as_str().unwrap(),
            queue["queueId"].as_i64().unwrap() as i32,
        );
        assert_eq!(
            store.min_offset(topic, queue_id),
            queue["minOffset"].as_i64().unwrap(),
            "{topic} {queue_id}"
        );
        assert_eq!(
            store.max_offset(topic, queue_id),
            queue["maxOffset"].as_i64().unwrap(),
            "{topic} {queue_id}"
        );
        let seen = read_queue(store, topic, queue_id);
        let mut digest = Sha256::new();
        for (i, s) in seen.iter().enumerate() {
            let line = format!(
                "{topic}|{queue_id}|{i}|{}|{}|{}\n",
                s.offset_msg_id, s.body_sha, s.tags_code
            );
            digest.update(line.as_bytes());
        }
        assert_eq!(
            hex(&digest.finalize()),
            queue["digest"].as_str().unwrap(),
            "{topic} {queue_id}"
        );
        all.insert((topic.to_owned(), queue_id), seen);
    }
    assert_eq!(
        store.queues().values().map(Vec::len).sum::<usize>(),
        all.len()
    );
    for message in expect["messages"].as_array().unwrap() {
        let topic = message["topic"].as_str().unwrap().to_owned();
        let queue_id = message["queueId"].as_i64().unwrap() as i32;
        let seen = &all[&(topic, queue_id)][message["queueOffset"].as_u64().unwrap() as usize];
        assert_eq!(seen.phy_offset, message["physicalOffset"].as_i64().unwrap());
        assert_eq!(seen.record.len() as u64, message["size"].as_u64().unwrap());
        assert_eq!(seen.body_sha, message["bodySha256_16"].as_str().unwrap());
        assert_eq!(seen.tags_code, message["tagsCode"].as_i64().unwrap());
        assert_eq!(
            i64_at(&seen.record, 56),
            message["storeTimestamp"].as_i64().unwrap()
        );
        assert_eq!(
            store.record_at(seen.phy_offset as u64).unwrap(),
            seen.record
        );
    }
    for (key, topics) in expect["keys"].as_object().unwrap() {
        for (topic, wanted) in topics.as_object().unwrap() {
            let mut wanted: Vec<(i64, i64)> = wanted
                .as_array()
                .unwrap()
                .iter()
                .map(|w| (w[0].as_i64().unwrap(), w[1].as_i64().unwrap()))
                .collect();
            let found = store.query(topic, key, 64, 0, i64::MAX).records;
            let mut found: Vec<(i64, i64)> = found
                .iter()
                .map(|r| (i64::from(i32_at(r, 12)), i64_at(r, 20)))
                .collect();
            wanted.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, wanted, "{topic} {key}");
        }
    }
    assert_eq!(
        store.written(),
        expect["commitLog"]["maxOffset"].as_u64().unwrap()
    );
}

fn take_over(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (root, expect) = unpack(name, dir.path());
    let store = open(config(&root));
    check(&store, &expect);
    let max = store.max_offset("store-one", 0);
    assert_eq!(put(&store, "store-one", 0, b"ours").queue_offset, max);
    assert_eq!(bodies(&store, "store-one", 0, max), [b"ours"]);
    let end = store.written();
    crash(store);
    let store = open(config(&root));
    assert_eq!(
        (store.written(), store.max_offset("store-one", 0)),
        (end, max + 1)
    );
    store
        .truncate_to(expect["commitLog"]["maxOffset"].as_u64().unwrap())
        .unwrap();
    check(&store, &expect);
    store.shutdown();
    drop(store);
    let store = open(config(&root));
    check(&store, &expect);
}

#[test]
fn a_store_of_4_9_7_after_a_clean_stop() {
    take_over("4.9.7-clean");
}

#[test]
fn a_store_of_4_9_7_after_kill() {
    take_over("4.9.7-killed");
}

#[test]
fn a_store_of_5_3_3_after_a_clean_stop() {
    take_over("5.3.3-clean");
}

#[test]
fn a_store_of_5_3_3_after_kill() {
    take_over("5.3.3-killed");
}

fn without(names: &[&str], name: &str) -> (tempfile::TempDir, Arc<Store>, Value) {
    let dir = tempfile::tempdir().unwrap();
    let (root, expect) = unpack(name, dir.path());
    for name in names {
        let path = root.join(name);
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap()
        } else {
            std::fs::remove_file(path).unwrap()
        }
    }
    let store = open(config(&root));
    (dir, store, expect)
}

#[test]
fn queues_and_index_come_back_from_the_log_alone() {
    for names in [
        &["consumequeue"][..],
        &["index"],
        &["consumequeue", "index", "checkpoint"],
    ] {
        for name in ["4.9.7-clean", "5.3.3-killed"] {
            let (_dir, store, expect) = without(names, name);
            check(&store, &expect);
        }
    }
}
