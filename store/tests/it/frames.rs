//! A log of frames: the Raft log of a group within the CommitLog.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use store::{EntryId, FRAME_HEADER, Frame, FrameConfig, PutError, Store, StoreConfig};

use crate::common::*;

const OWN: u32 = 1;
/// Another kind without records.
const TABLES: u32 = 3;

fn framed(root: &Path) -> StoreConfig {
    let mut config = small(root);
    config.commit_log_path = Some(root.join("dledger-n0"));
    config.frames = Some(FrameConfig::default());
    config
}

/// A store whose log is led at this term: its first entry, which is no message, is committed.
fn lead(store: &Store, term: u64) {
    let frame = store.append_entry(term, OWN, b"").unwrap();
    store.drive();
    store.advance_confirm(frame.end());
    store.open_gate(term).unwrap();
}

fn commit_all(store: &Store) {
    store.advance_confirm(store.written());
}

/// Copies what `to` lacks, entry by entry.
fn copy(from: &Store, to: &Store) {
    for index in to.last_entry().index + 1..=from.last_entry().index {
        let frame = from.frame(index).unwrap().unwrap();
        let mut bytes = Vec::new();
        from.read_frame(&frame, &mut bytes).unwrap();
        to.append_received(&frame, &bytes).unwrap();
        to.drive();
    }
}

fn frames(store: &Store) -> Vec<Frame> {
    (store.compacted_entry().index + 1..=store.last_entry().index)
        .map(|index| store.frame(index).unwrap().unwrap())
        .collect()
}

fn fill(store: &Store, count: u8) {
    for i in 0..count {
        put(
            store,
            "t",
            i32::from(i % 3),
            &vec![i; 100 + usize::from(i) * 10],
        );
    }
}

#[test]
fn only_what_is_committed_is_shown_and_all_of_it_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(framed(dir.path()));
    assert_eq!(
        append(&store, "t", 0, &[Message::default()]),
        Err(PutError::NotLeader)
    );
    lead(&store, 1);
    let batch = [Message {
        body: b"both",
        key: "k",
        ..Message::default()
    }; 2];
    let first = append(&store, "t", 0, &batch).unwrap();
    store.drive();
    assert_eq!(store.max_offset("t", 0), 0);
    let frame = store.frame(2).unwrap().unwrap();
    assert_eq!(
        (frame.term, frame.end(), first.phy_offset),
        (1, first.end, frame.position + FRAME_HEADER as u64)
    );
    store.advance_confirm(frame.end());
    assert_eq!(bodies(&store, "t", 0, 0), [b"both", b"both"]);
    let later = put(&store, "t", 0, b"later");
    assert_eq!((later.queue_offset, store.max_offset("t", 0)), (2, 2));
    for clean in [true, false] {
        let kept = frames(&store);
        wait(|| store.flushed() == store.written() || !clean);
        let store_again = {
            if clean {
                store.shutdown();
            }
            open(framed(&{
                let copy = dir.path().join(format!("copy-{clean}"));
                copy_tree(dir.path(), &copy);
                copy
            }))
        };
        assert_eq!(frames(&store_again), kept);
        assert!(store_again.max_offset("t", 0) <= 2);
        store_again.advance_confirm(first.end);
        assert_eq!(bodies(&store_again, "t", 0, 0).len(), 2);
        store_again.advance_confirm(later.end);
        assert_eq!(bodies(&store_again, "t", 0, 2), [b"later"]);
        assert_eq!(put_again(&store_again).queue_offset, 3);
    }
}

/// The next leader's first message.
fn put_again(store: &Store) -> store::Appended {
    lead(store, store.last_entry().term + 1);
    put(store, "t", 0, b"next")
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name.to_str().unwrap().starts_with("copy") {
            continue;
        }
        let target = to.join(&name);
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_follower_holds_the_same_bytes_and_goes_on_as_leader() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (leader, follower) = (open(framed(a.path())), open(framed(b.path())));
    lead(&leader, 1);
    fill(&leader, 100);
    commit_all(&leader);
    copy(&leader, &follower);
    assert_eq!(frames(&leader), frames(&follower));
    assert_eq!(follower.max_offset("t", 0), 0);
    assert_eq!(
        follower.open_gate(2),
        Err(PutError::Busy(
            "entries of former leaders are not dispatched yet"
        ))
    );
    commit_all(&follower);
    for queue_id in 0..3 {
        assert_eq!(
            bodies(&leader, "t", queue_id, 0),
            bodies(&follower, "t", queue_id, 0)
        );
    }
    lead(&follower, 2);
    leader.close_gate();
    assert_eq!(
        append(&leader, "t", 0, &[Message::default()]),
        Err(PutError::NotLeader)
    );
    let next = put(&follower, "t", 0, b"of the new leader");
    assert_eq!(next.queue_offset, 34);
    leader.follow_log().unwrap();
    copy(&follower, &leader);
    commit_all(&leader);
    assert_eq!(bodies(&leader, "t", 0, 34), [b"of the new leader"]);
}

#[test]
fn what_a_lost_leader_appended_is_rolled_back_with_its_queue_offsets() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (old, new) = (open(framed(a.path())), open(framed(b.path())));
    lead(&old, 1);
    fill(&old, 60);
    copy(&old, &new);
    let agreed = old.last_entry().index;
    fill(&old, 30);
    // The rest of the group agreed on the first sixty; the old leader never learnt of it.
    commit_all(&new);
    lead(&new, 2);
    fill(&new, 9);
    commit_all(&new);
    old.close_gate();
    old.truncate_from(agreed + 1).unwrap();
    assert_eq!(
        old.last_entry(),
        EntryId {
            index: agreed,
            term: 1
        }
    );
    copy(&new, &old);
    commit_all(&old);
    assert_eq!(frames(&old), frames(&new));
    for queue_id in 0..3 {
        assert_eq!(
            bodies(&old, "t", queue_id, 0),
            bodies(&new, "t", queue_id, 0)
        );
    }
    // Nothing committed goes.
    assert!(old.truncate_from(agreed).is_err());
    assert!(old.truncate_from(old.last_entry().index + 1).is_ok());
}

/// Where the next entry begins follows from the last one alone, also where the one that was cut or torn had begun a new file.
#[test]
fn padding_goes_with_the_entry_that_it_was_made_for() {
    for torn in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(framed(dir.path()));
        lead(&store, 1);
        fill(&store, 60);
        let all = frames(&store);
        let size = store.segment_size();
        let rolled = all
            .iter()
            .position(|f| f.index > 1 && f.position.is_multiple_of(size))
            .unwrap();
        let (before, first) = (all[rolled - 1], all[rolled]);
        assert!(before.end() < first.position, "there is padding");
        if torn {
            store.shutdown();
            drop(store);
            let path = dir
                .path()
                .join(format!("dledger-n0/{:020}", first.position));
            fs::write(path, vec![0; size as usize]).unwrap();
            store = open(framed(dir.path()));
        } else {
            store.close_gate();
            store.truncate_from(first.index).unwrap();
        }
        assert_eq!(store.last_entry().index, before.index);
        assert_eq!(store.appended(), before.end());
        let next = store.append_entry(2, OWN, b"").unwrap();
        assert_eq!((next.index, next.position), (first.index, before.end()));
        store.drive();
        crash(store);
        assert_eq!(frames(&open(framed(dir.path()))).last(), Some(&next));
    }
}

#[test]
fn the_log_ends_before_the_first_frame_that_is_not_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(framed(dir.path()));
    lead(&store, 1);
    fill(&store, 40);
    let all = frames(&store);
    store.shutdown();
    drop(store);
    for torn in [38, 20, 7] {
        let frame = all[torn];
        let size = 16 << 10;
        let path = dir
            .path()
            .join(format!("dledger-n0/{:020}", frame.position / size * size));
        let mut bytes = fs::read(&path).unwrap();
        bytes[(frame.end() % size) as usize - 1] ^= 1;
        fs::write(&path, bytes).unwrap();
        let store = open(framed(dir.path()));
        assert_eq!(frames(&store), all[..torn]);
        crash(store);
    }
    let store = open(framed(dir.path()));
    commit_all(&store);
    lead(&store, 2);
    fill(&store, 40);
    let all = frames(&store);
    crash(store);
    assert_eq!(frames(&open(framed(dir.path()))), all);
}

#[test]
fn the_table_of_entries_is_built_from_the_log_when_its_files_are_missing_or_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(framed(dir.path()));
    lead(&store, 1);
    fill(&store, 50);
    commit_all(&store);
    lead_again(&store, 2);
    fill(&store, 50);
    let all = frames(&store);
    let log = dir.path().join("dledger-n0");
    let tables = || -> Vec<_> {
        fs::read_dir(&log)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "frames"))
            .collect()
    };
    wait(|| tables().len() > 2);
    store.shutdown();
    drop(store);
    let damages: [&dyn Fn(&Path); 4] = [
        &|_| {},
        &|path| fs::remove_file(path).unwrap(),
        &|path| fs::write(path, [0; 40]).unwrap(),
        &|path| fs::write(path, [0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 1, 1]).unwrap(),
    ];
    for damage in damages {
        tables().iter().for_each(|path| damage(path));
        let store = open(framed(dir.path()));
        assert_eq!(frames(&store), all);
        for frame in &all {
            assert_eq!(store.entry_term(frame.index).unwrap(), Some(frame.term));
            assert_eq!(store.entry_below(frame.end()).unwrap(), frame.index);
            assert_eq!(store.entry_below(frame.end() - 1).unwrap(), frame.index - 1);
        }
        assert_eq!(store.entry_term(0).unwrap(), Some(0));
        assert_eq!(store.entry_term(all.len() as u64 + 1).unwrap(), None);
        crash(store);
    }
}

fn lead_again(store: &Store, term: u64) {
    store.close_gate();
    store.follow_log().unwrap();
    lead(store, term);
}

/// A clock long after every file's time, which counts how often retention asks for the hour.
#[derive(Default)]
struct Rounds(AtomicU64);

impl store::Clock for Rounds {
    fn now_ms(&self) -> i64 {
        4_000_000_000_000
    }

    fn local_hour(&self) -> u8 {
        self.0.fetch_add(1, Ordering::SeqCst);
        12
    }
}

#[test]
fn retention_leaves_index_and_term_of_what_it_took() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = framed(dir.path());
    config.file_reserved_hours = 0;
    config.clean_resource_interval = std::time::Duration::from_millis(1);
    let store = open(config.clone());
    lead(&store, 3);
    fill(&store, 100);
    let before = frames(&store);
    commit_all(&store);
    wait(|| store.flushed() == store.written());
    store.shutdown();
    drop(store);
    let rounds = Arc::new(Rounds::default());
    let store = Store::open(config.clone(), rounds.clone()).unwrap();
    commit_all(&store);
    // What is committed may not be applied, nor be known to stay.
    let applied = before
        .iter()
        .find(|f| f.position == store.segment_size())
        .unwrap();
    store.allow_deletion_before(applied.index - 1).unwrap();
    store.delete_expired_now();
    let now = rounds.0.load(Ordering::SeqCst);
    wait(|| rounds.0.load(Ordering::SeqCst) > now + 2);
    assert_eq!(store.min_phy_offset(), 0);
    store.allow_deletion_before(applied.index).unwrap();
    store.delete_expired_now();
    wait(|| store.min_phy_offset() == applied.position);
    store
        .allow_deletion_before(store.last_entry().index)
        .unwrap();
    store.delete_expired_now();
    wait(|| store.compacted_entry().index > 0);
    wait(|| store.min_phy_offset() == store.written() / (16 << 10) * (16 << 10));
    let compacted = store.compacted_entry();
    assert_eq!(compacted.term, 3);
    assert_eq!(
        frames(&store),
        before[compacted.index as usize..],
        "what is left"
    );
    assert_eq!(store.entry_term(compacted.index).unwrap(), Some(3));
    assert_eq!(store.frame(compacted.index).unwrap(), None);
    crash(store);
    let store = Store::open(config, rounds).unwrap();
    assert_eq!(store.compacted_entry(), compacted);
    assert_eq!(frames(&store), before[compacted.index as usize..]);
}

#[test]
fn an_entry_without_records_goes_the_way_of_batches_and_is_shown_as_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let store = open(framed(dir.path()));
    let follower = open(framed(other.path()));
    assert_eq!(
        store.append_counted(TABLES, b"{}"),
        Err(PutError::NotLeader)
    );
    lead(&store, 1);
    put(&store, "t", 0, b"before");
    let entry = store.append_counted(TABLES, b"{\"a\":1}").unwrap();
    put(&store, "t", 0, b"behind");
    assert_eq!((entry.index, entry.term, entry.kind), (3, 1, TABLES));
    assert_eq!(store.frame(3).unwrap(), Some(entry));
    commit_all(&store);
    copy(&store, &follower);
    commit_all(&follower);
    for store in [&store, &follower] {
        assert_eq!(store.max_offset("t", 0), 2);
        assert_eq!(store.confirm_offset(), store.written());
    }
    store.close_gate();
    assert_eq!(
        store.append_counted(TABLES, b"{}"),
        Err(PutError::NotLeader)
    );
}

#[test]
fn a_topic_that_is_made_anew_is_read_from_its_begin_though_a_late_record_came_first() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let store = open(framed(dir.path()));
    let follower = open(framed(other.path()));
    lead(&store, 1);
    for _ in 0..5 {
        put(&store, "t", 0, b"old");
    }
    commit_all(&store);
    copy(&store, &follower);
    commit_all(&follower);
    // The follower is quicker than a sender who still holds the queue.
    follower.delete_topic("t").unwrap();
    put(&store, "t", 0, b"late");
    store.delete_topic("t").unwrap();
    put(&store, "t", 0, b"new");
    put(&store, "t", 0, b"newer");
    commit_all(&store);
    copy(&store, &follower);
    commit_all(&follower);
    for store in [&store, &follower] {
        let queue = store.find_queue("t", 0).unwrap();
        assert_eq!((queue.min_offset(), queue.max_offset()), (0, 2));
        assert_eq!(store.query_consume_queue("t", 0, 0, 5).len(), 2);
    }
}

#[test]
fn nothing_is_appended_to_a_topic_while_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(framed(dir.path()));
    lead(&store, 1);
    put(&store, "t", 0, b"before");
    store.refuse_topic("t", true);
    let refused = append(&store, "t", 0, &[Message::default()]);
    assert!(matches!(refused, Err(PutError::Busy(_))), "{refused:?}");
    put(&store, "u", 0, b"another");
    store.refuse_topic("t", false);
    put(&store, "t", 0, b"behind");
    commit_all(&store);
    assert_eq!(store.max_offset("t", 0), 2);
}

#[test]
fn a_log_that_is_given_up_goes_on_where_the_leader_s_begins() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let leader = open(framed(a.path()));
    lead(&leader, 1);
    fill(&leader, 100);
    commit_all(&leader);
    let behind = open(framed(b.path()));
    lead(&behind, 1);
    fill(&behind, 20);
    commit_all(&behind);
    let first = frames(&leader)
        .into_iter()
        .find(|f| f.position == 32 << 10)
        .unwrap();
    let entry = EntryId {
        index: first.index - 1,
        term: 1,
    };
    behind.start_after(entry, first.position).unwrap();
    assert_eq!((behind.last_entry(), behind.max_offset("t", 0)), (entry, 0));
    crash(behind);
    let behind = open(framed(b.path()));
    assert_eq!((behind.last_entry(), behind.written()), (entry, 32 << 10));
    copy(&leader, &behind);
    commit_all(&behind);
    assert_eq!(frames(&behind), frames(&leader)[entry.index as usize..]);
    let min = behind.min_offset("t", 0);
    assert!(min > 0);
    assert_eq!(bodies(&behind, "t", 0, min), bodies(&leader, "t", 0, min));
    behind.shutdown();
    drop(behind);
    let behind = open(framed(b.path()));
    assert_eq!(bodies(&behind, "t", 0, min), bodies(&leader, "t", 0, min));
}

#[test]
fn the_log_of_one_mode_is_refused_in_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(framed(dir.path()));
    lead(&store, 1);
    store.shutdown();
    drop(store);
    let clock = || TestClock::at(0);
    let refused = |config| match Store::open(config, clock()) {
        Err(store::Error::Unsupported(text)) => text,
        other => panic!("{:?}", other.map(|_| ())),
    };
    assert!(refused(small(dir.path())).contains("dledger group"));
    let plain = tempfile::tempdir().unwrap();
    let store: Arc<Store> = open(small(plain.path()));
    put(&store, "t", 0, b"x");
    store.shutdown();
    drop(store);
    assert!(refused(framed(plain.path())).contains("without enableDLegerCommitLog"));
}

/// A power cut that takes the end of the log: what is read again begins where queues and index were last synced.
#[test]
fn a_restart_after_a_power_cut_reads_the_tail_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(framed(dir.path()));
    lead(&store, 1);
    fill(&store, 100);
    commit_all(&store);
    store.shutdown();
    drop(store);
    let store = open(framed(dir.path()));
    commit_all(&store);
    lead(&store, 2);
    for _ in 0..30 {
        put(&store, "t", 0, b"tail");
    }
    commit_all(&store);
    let all = frames(&store);
    let (synced, torn) = (all[101].position, all[all.len() - 10]);
    let offsets = dir.path().join("offsets");
    let field = |at| i64_at(&fs::read(&offsets).unwrap(), at) as u64;
    wait(|| field(64) > torn.end());
    assert!(field(72) <= synced, "nothing was synced since");
    crash(store);
    let size = 16 << 10;
    let path = dir
        .path()
        .join(format!("dledger-n0/{:020}", torn.position / size * size));
    let mut bytes = fs::read(&path).unwrap();
    bytes[(torn.position % size) as usize..].fill(0);
    fs::write(&path, bytes).unwrap();
    let mut bytes = fs::read(&offsets).unwrap();
    bytes[48] ^= 1;
    let crc = crc32fast::hash(&bytes[..104]);
    bytes[104..].copy_from_slice(&crc.to_be_bytes());
    fs::write(&offsets, bytes).unwrap();
    fs::remove_file(dir.path().join("flushed")).unwrap();
    let store = open(framed(dir.path()));
    assert_eq!(frames(&store), all[..all.len() - 10]);
    assert!(store.runtime_figures().recovered_records < 30);
    let mut config = framed(dir.path());
    config.frames = Some(FrameConfig { committed: 0 });
    commit_all(&store);
    assert_eq!(bodies(&store, "t", 0, 34).len(), 30 - 10);
}
