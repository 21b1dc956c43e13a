//! Random appends, restarts, kills and power cuts, compared with a plain `Vec`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use store::{Clock, Store, StoreConfig};

use crate::common::*;

#[derive(Clone, Debug)]
enum Op {
    /// Sizes of the bodies of one batch.
    Append {
        queue_id: i32,
        sizes: Vec<usize>,
        keys: bool,
    },
    Flush,
    Stop,
    Kill,
    /// The log from a point behind the flushed position on is lost, wholly or for so many bytes; so are the queue and
    /// index entries, at random, that were never synced.
    PowerCut {
        point: u32,
        hole: Option<u16>,
        seed: u64,
    },
    /// All queues, the index, or one file of either disappear.
    LoseQueues,
    LoseIndex,
    LoseFile {
        nth: usize,
    },
    /// Retention takes the oldest segments.
    Expire,
    Truncate {
        back: usize,
    },
}

/// Length of the log's files, as `small` has it.
const SEGMENT: u64 = 16 << 10;

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => (0..4i32, prop::collection::vec(0..3000usize, 1..6), any::<bool>())
            .prop_map(|(queue_id, sizes, keys)| Op::Append { queue_id, sizes, keys }),
        3 => Just(Op::Flush),
        2 => Just(Op::Stop),
        3 => Just(Op::Kill),
        4 => (any::<u32>(), prop::option::of(any::<u16>()), any::<u64>())
            .prop_map(|(point, hole, seed)| Op::PowerCut { point, hole, seed }),
        1 => Just(Op::LoseQueues),
        1 => Just(Op::LoseIndex),
        2 => any::<usize>().prop_map(|nth| Op::LoseFile { nth }),
        2 => Just(Op::Expire),
        2 => (0..12usize).prop_map(|back| Op::Truncate { back }),
    ]
}

struct Known {
    queue_id: i32,
    queue_offset: i64,
    body: Vec<u8>,
    key: String,
    phy_offset: u64,
    end: u64,
}

/// `floors` is where each queue must go on at least, once nothing of it is left.
fn check(store: &Store, model: &[Known], floors: [i64; 4]) {
    store.check_invariants();
    assert_eq!(store.written(), store.appended());
    let mut queues: BTreeMap<i32, Vec<&Known>> = BTreeMap::new();
    for known in model {
        queues.entry(known.queue_id).or_default().push(known);
    }
    for queue_id in 0..4 {
        let known = queues.get(&queue_id).map_or(&[][..], |known| known);
        let wanted: Vec<&[u8]> = known.iter().map(|k| &k.body[..]).collect();
        let (min, max) = (
            store.min_offset("q", queue_id),
            store.max_offset("q", queue_id),
        );
        assert_eq!(
            max - min,
            wanted.len() as i64,
            "queue {queue_id}: {min}..{max}, log from {} {:?}",
            store.min_phy_offset(),
            known
                .iter()
                .map(|k| (k.queue_offset, k.phy_offset))
                .collect::<Vec<_>>()
        );
        assert_eq!(min, known.first().map_or(max, |first| first.queue_offset));
        let floor = floors[queue_id as usize];
        assert!(
            max >= floor,
            "queue {queue_id} ends at {max}, {floor} was read"
        );
        assert_eq!(bodies(store, "q", queue_id, min), wanted);
    }
    for known in model.iter().rev().take(3).filter(|k| !k.key.is_empty()) {
        let found = store.query("q", &known.key, 64, 0, i64::MAX).records;
        assert_eq!(
            found
                .iter()
                .map(|r| i64_at(r, 28) as u64)
                .collect::<Vec<_>>(),
            [known.phy_offset],
            "{}",
            known.key
        );
    }
    if let Some(known) = model.last() {
        assert_eq!(
            body(&store.record_at(known.phy_offset).unwrap()),
            known.body
        );
    }
}

fn xorshift(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

fn files(dir: &Path, out: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), out)
        } else {
            out.push(entry.path())
        }
    }
}

/// What the page cache held and the disk did not is gone. Returns where the log is damaged.
fn lose(
    root: &Path,
    flushed: u64,
    queues_synced: &mut u64,
    model: &[Known],
    point: u32,
    hole: Option<u16>,
    mut seed: u64,
) -> u64 {
    seed |= 1;
    let offsets = root.join("offsets");
    let mut bytes = fs::read(&offsets).unwrap_or_default();
    if bytes.len() == 108 {
        // After a restart the claim may begin low; what was on disk before still is.
        *queues_synced = (*queues_synced).max(i64_at(&bytes, 72) as u64);
        // Another run of the kernel.
        bytes[48..56].copy_from_slice(&seed.to_be_bytes());
        let crc = crc32fast::hash(&bytes[..104]);
        bytes[104..].copy_from_slice(&crc.to_be_bytes());
        fs::write(&offsets, &bytes).unwrap();
    }
    let synced = *queues_synced;
    let mut queue_files = Vec::new();
    files(&root.join("consumequeue"), &mut queue_files);
    for path in queue_files {
        let mut bytes = fs::read(&path).unwrap();
        for unit in bytes.chunks_exact_mut(20) {
            if i64_at(unit, 0) as u64 >= synced
                && i32_at(unit, 8) != i32::MAX
                && xorshift(&mut seed).is_multiple_of(3)
            {
                unit.fill(0);
            }
        }
        fs::write(path, bytes).unwrap();
    }
    let lost: Vec<&Known> = model.iter().filter(|k| k.phy_offset >= flushed).collect();
    let Some(first) = (!lost.is_empty()).then(|| lost[point as usize % lost.len()]) else {
        return u64::MAX;
    };
    // Within the record, but never only its last bytes: properties have no checksum, and zeros may be what was there.
    const PROPERTIES: u64 = 16;
    let mut at = first.phy_offset + u64::from(point) % (first.end - first.phy_offset - PROPERTIES);
    let damaged = at;
    let mut left = hole.map_or(u64::MAX, |n| u64::from(n).max(first.end - at));
    while left > 0 {
        let base = at - at % SEGMENT;
        let Ok(file) = fs::OpenOptions::new()
            .write(true)
            .open(root.join("commitlog").join(format!("{base:020}")))
        else {
            break;
        };
        let n = left.min(base + SEGMENT - at);
        file.write_all_at(&vec![0; n as usize], at - base).unwrap();
        at += n;
        left -= n;
    }
    damaged
}

fn run(ops: Vec<Op>) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    // Long after every file's time.
    let clock = TestClock::at(4_000_000_000_000);
    let mut config = small(root);
    config.delete_when = vec![clock.local_hour()];
    config.file_reserved_hours = u64::MAX;
    config.clean_resource_interval = Duration::from_millis(5);
    config.delete_commit_log_files_interval = Duration::ZERO;
    let small = |_: &Path| config.clone();
    let mut store = open_at(small(root), clock.clone());
    let mut model: Vec<Known> = Vec::new();
    let (mut count, mut durable, mut queues_synced) = (0u32, 0, 0);
    let mut floors = [0; 4];
    for op in ops {
        // Recovery by checkpoint compares times.
        clock.set(clock.now_ms() + 2_000);
        let stop = |store: Arc<Store>| {
            store.shutdown();
            crash(store);
        };
        match op {
            Op::Append {
                queue_id,
                sizes,
                keys,
            } => {
                let new: Vec<(Vec<u8>, String)> = sizes
                    .iter()
                    .map(|size| {
                        count += 1;
                        (
                            vec![1 + (count % 255) as u8; *size],
                            if keys {
                                format!("k{count}")
                            } else {
                                String::new()
                            },
                        )
                    })
                    .collect();
                let messages: Vec<Message<'_>> = new
                    .iter()
                    .map(|(body, key)| Message {
                        body,
                        key,
                        ..Default::default()
                    })
                    .collect();
                let appended = append(&store, "q", queue_id, &messages).unwrap();
                store.drive();
                for ((body, key), record) in new.into_iter().zip(&appended.records) {
                    let end = record.phy_offset + u64::from(record.size);
                    model.push(Known {
                        queue_id,
                        queue_offset: record.queue_offset,
                        body,
                        key,
                        phy_offset: record.phy_offset,
                        end,
                    });
                }
            }
            Op::Flush => assert!(store.wait_flushed(store.written(), Duration::from_secs(20))),
            Op::Stop => {
                stop(store);
                store = open_at(small(root), clock.clone());
            }
            Op::Kill => {
                crash(store);
                store = open_at(small(root), clock.clone());
            }
            Op::PowerCut { point, hole, seed } => {
                // After a kill `flushed` begins low; what was durable before still is.
                durable = durable.max(store.flushed());
                let flushed = durable;
                crash(store);
                let damaged = lose(root, flushed, &mut queues_synced, &model, point, hole, seed);
                queues_synced = queues_synced.min(damaged);
                let flushed_records = model.iter().filter(|k| k.end <= flushed).count();
                model.retain(|k| k.end <= damaged);
                assert!(model.len() >= flushed_records);
                store = open_at(small(root), clock.clone());
            }
            Op::LoseQueues => {
                crash(store);
                let _ = fs::remove_dir_all(root.join("consumequeue"));
                queues_synced = 0;
                floors = [0; 4];
                store = open_at(small(root), clock.clone());
            }
            Op::LoseIndex => {
                stop(store);
                fs::remove_dir_all(root.join("index")).unwrap();
                store = open_at(small(root), clock.clone());
            }
            Op::LoseFile { nth } => {
                stop(store);
                let mut all = Vec::new();
                files(&root.join("consumequeue"), &mut all);
                files(&root.join("index"), &mut all);
                all.sort();
                if let Some(file) = all.get(nth % all.len().max(1)) {
                    fs::remove_file(file).unwrap();
                }
                queues_synced = 0;
                floors = [0; 4];
                store = open_at(small(root), clock.clone());
            }
            Op::Expire => {
                assert!(store.wait_flushed(store.written(), Duration::from_secs(20)));
                let end = store.written();
                store.reconfigure(&StoreConfig {
                    file_reserved_hours: 0,
                    ..config.clone()
                });
                // The one that is written stays, also once the next is made ahead.
                wait(|| store.min_phy_offset() == end - end % SEGMENT);
                // The queues follow.
                let gone = |k: &Known| k.phy_offset < store.min_phy_offset();
                wait(|| {
                    (0..4).all(|queue_id| {
                        let mut known = model.iter().filter(|k| k.queue_id == queue_id);
                        let lost = known.rfind(|k| gone(k));
                        lost.is_none_or(|k| store.min_offset("q", queue_id) > k.queue_offset)
                    })
                });
                for known in model.iter().filter(|k| gone(k)) {
                    floors[known.queue_id as usize] = known.queue_offset + 1;
                }
                model.retain(|k| !gone(k));
                // Before a segment goes the queues are on disk as far as it reaches.
                queues_synced = queues_synced.max(store.min_phy_offset());
                store.reconfigure(&config);
            }
            Op::Truncate { back } => {
                let keep = model.len().saturating_sub(back);
                let position = match keep {
                    0 => store.min_phy_offset(),
                    _ => model[keep - 1].end,
                };
                store.truncate_to(position).unwrap();
                model.truncate(keep);
                durable = durable.min(position);
                queues_synced = queues_synced.min(position);
            }
        }
        check(&store, &model, floors);
        durable = durable.max(store.flushed());
    }
}

/// So many within the budget of the test command; `PROPTEST_CASES` for more.
pub(crate) fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(usual)
}

/// The same cases each time, so that a change is judged by what it changed; `STORE_MODEL_SEED` goes through others.
pub(crate) fn seed() -> RngSeed {
    let seed = std::env::var("STORE_MODEL_SEED").ok();
    RngSeed::Fixed(seed.and_then(|s| s.parse().ok()).unwrap_or(4_907))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(48), rng_seed: seed(), max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_store_is_a_vec_whatever_happens_to_it(ops in prop::collection::vec(op(), 1..40)) {
        run(ops);
    }
}

fn append_to(queue_id: i32, sizes: &[usize], keys: bool) -> Op {
    Op::Append {
        queue_id,
        sizes: sizes.to_vec(),
        keys,
    }
}

#[test]
fn a_power_cut_after_retention_took_all_of_a_queue() {
    run(vec![
        append_to(3, &[0, 0, 1940, 2800], false),
        append_to(3, &[1628], true),
        append_to(0, &[1807, 725, 2524, 1920, 2064], true),
        Op::Expire,
        Op::Truncate { back: 0 },
        Op::PowerCut {
            point: 4_452_903,
            hole: Some(31_086),
            seed: 6_111_887_650_530_751_078,
        },
        append_to(3, &[895], true),
        append_to(3, &[422], false),
        Op::Stop,
    ]);
}

/// A queue that is rebuilt when it is read first is on disk before retention takes what it was rebuilt from.
#[test]
fn a_power_cut_after_a_lost_queue_was_rebuilt_and_expired() {
    for nth in 0..3 {
        run(vec![
            append_to(1, &[0], false),
            append_to(0, &[2228, 2245, 1636, 206], false),
            append_to(1, &[2617, 2738, 1580, 2299], false),
            Op::Flush,
            Op::LoseFile { nth },
            Op::Expire,
            Op::PowerCut {
                point: 3_374_106_150,
                hole: None,
                seed: 16_973_193_399_836_351_651,
            },
        ]);
    }
}

/// The index keeps entries of truncated records; none of them may be taken for the begin of a record.
#[test]
fn a_power_cut_after_a_truncation() {
    let append = |sizes: &[usize], keys| append_to(0, sizes, keys);
    run(vec![
        append(&[0], true),
        append(&[0, 0, 0, 0, 0, 0], false),
        append(&[0, 803, 0], true),
        Op::Truncate { back: 9 },
        append(&[461], false),
        Op::Stop,
        Op::PowerCut {
            point: 0,
            hole: None,
            seed: 1,
        },
    ]);
}
