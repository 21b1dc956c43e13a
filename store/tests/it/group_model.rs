//! A member's log: random entries, cuts, commits, restarts, failed syncs and power cuts, compared with a plain `Vec`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proptest::prelude::*;
use store::{Clock, FRAME_HEADER, Frame, FrameConfig, Store, StoreConfig};

use crate::common::*;
use crate::model::{cases, seed};
use crate::power::{TornDisk, another_boot};

const OWN: u32 = 1;
const QUEUES: i32 = 3;
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
enum Op {
    /// Messages of the leader, one entry each; nothing while nobody leads here.
    Send {
        queue_id: i32,
        sizes: Vec<usize>,
    },
    /// Everything is committed, and this member leads in the next term.
    Lead,
    /// Entries of another leader, who cut off so many that were not committed.
    Follow {
        cut: usize,
        entries: usize,
    },
    Commit {
        leave: usize,
    },
    Flush,
    Stop,
    Kill,
    /// A sync fails, and with it what waited for it.
    Fail,
    /// Whether the state file knew what was committed.
    PowerCut {
        known: bool,
    },
    Expire,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => (0..QUEUES, prop::collection::vec(0..3000usize, 1..5))
            .prop_map(|(queue_id, sizes)| Op::Send { queue_id, sizes }),
        4 => Just(Op::Lead),
        4 => (0..8usize, 1..6usize).prop_map(|(cut, entries)| Op::Follow { cut, entries }),
        8 => (0..4usize).prop_map(|leave| Op::Commit { leave }),
        3 => Just(Op::Flush),
        2 => Just(Op::Stop),
        3 => Just(Op::Kill),
        2 => Just(Op::Fail),
        4 => any::<bool>().prop_map(|known| Op::PowerCut { known }),
        2 => Just(Op::Expire),
    ]
}

struct Entry {
    frame: Frame,
    /// Queue, offset there and body of a message.
    message: Option<(i32, i64, Vec<u8>)>,
}

struct Member {
    disk: Arc<TornDisk>,
    config: StoreConfig,
    open: Option<Arc<Store>>,
    /// From the one behind `compacted_entry` on.
    entries: Vec<Entry>,
    term: u64,
    /// Index of the last committed entry.
    committed: u64,
    leads: bool,
    count: u8,
    /// Up to where syncs succeeded.
    durable: u64,
}

/// Long after every file's time.
fn clock() -> Arc<TestClock> {
    TestClock::at(4_000_000_000_000)
}

/// Where the next entry goes: never across the border of a file, and a blank record always fits behind it.
fn place(end: u64, len: u64, segment: u64) -> u64 {
    let rest = segment - end % segment;
    if len + 8 <= rest { end } else { end + rest }
}

impl Member {
    fn new(root: &Path) -> Self {
        let mut config = small(root);
        config.commit_log_path = Some(root.join("dledger-n0"));
        config.frames = Some(FrameConfig::default());
        config.file_reserved_hours = u64::MAX;
        config.delete_when = vec![clock().local_hour()];
        config.clean_resource_interval = Duration::from_millis(5);
        config.delete_commit_log_files_interval = Duration::ZERO;
        let mut member = Self {
            disk: Arc::default(),
            config,
            open: None,
            entries: Vec::new(),
            term: 0,
            committed: 0,
            leads: false,
            count: 0,
            durable: 0,
        };
        member.start(0);
        member
    }

    fn store(&self) -> &Store {
        self.open.as_ref().unwrap()
    }

    fn base(&self) -> u64 {
        self.store().compacted_entry().index
    }

    fn last(&self) -> u64 {
        self.base() + self.entries.len() as u64
    }

    fn committed_position(&self) -> u64 {
        self.store().entry_end(self.committed).unwrap().unwrap()
    }

    fn start(&mut self, committed: u64) {
        self.config.frames = Some(FrameConfig { committed });
        let store = try_open(self.config.clone(), clock(), self.disk.clone());
        self.open = Some(store.unwrap());
        self.leads = false;
        let (base, last) = (self.base(), self.store().last_entry().index);
        self.entries.truncate((last - base) as usize);
        self.committed = self.committed.min(last).max(base);
        self.commit(self.committed);
    }

    /// Lets go of the store as a kill would. Returns what was known to be committed.
    fn crash(&mut self) -> u64 {
        let committed = self.committed_position();
        self.durable = self.durable.max(self.store().flushed());
        crash(self.open.take().unwrap());
        committed
    }

    fn own_entry(&mut self) {
        let frame = self.store().append_entry(self.term, OWN, b"own").unwrap();
        let message = None;
        self.entries.push(Entry { frame, message });
        self.store().drive();
    }

    fn commit(&mut self, index: u64) {
        self.committed = index;
        self.store().advance_confirm(self.committed_position());
    }

    fn follow(&mut self) {
        self.store().close_gate();
        self.store().follow_log().unwrap();
        self.leads = false;
    }

    fn cut(&mut self, entries: usize) {
        let keep = self.last().saturating_sub(entries as u64);
        let keep = keep.max(self.committed);
        if keep < self.last() {
            self.store().truncate_from(keep + 1).unwrap();
            self.entries.truncate((keep - self.base()) as usize);
            self.durable = self.durable.min(self.store().appended());
        }
    }

    fn receive(&mut self, entries: usize) {
        for _ in 0..entries {
            let body = [7; 900];
            let len = (FRAME_HEADER + body.len()) as u32;
            let frame = Frame {
                index: self.last() + 1,
                term: self.term,
                position: place(
                    self.store().appended(),
                    len.into(),
                    self.store().segment_size(),
                ),
                len,
                kind: OWN,
                crc: crc32fast::hash(&body),
            };
            let bytes = [&frame.header()[..], &body].concat();
            self.store().append_received(&frame, &bytes).unwrap();
            let message = None;
            self.entries.push(Entry { frame, message });
        }
        self.store().drive();
    }

    fn send(&mut self, queue_id: i32, size: usize) {
        self.count = self.count.wrapping_add(1);
        let body = vec![self.count; size];
        let appended = put(self.store(), "q", queue_id, &body);
        let frame = self.store().frame(self.last() + 1).unwrap().unwrap();
        let message = Some((queue_id, appended.queue_offset, body));
        self.entries.push(Entry { frame, message });
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Send { queue_id, sizes } if self.leads => {
                sizes.into_iter().for_each(|size| self.send(queue_id, size));
            }
            Op::Send { .. } => {}
            Op::Lead => {
                self.follow();
                self.term += 1;
                self.own_entry();
                self.commit(self.last());
                self.store().open_gate(self.term).unwrap();
                self.leads = true;
            }
            Op::Follow { cut, entries } => {
                self.follow();
                self.cut(cut);
                self.term += 1;
                self.receive(entries);
            }
            Op::Commit { leave } => {
                let index = self.last().saturating_sub(leave as u64);
                if index > self.committed {
                    self.commit(index);
                }
            }
            Op::Flush => assert!(self.store().wait_flushed(self.store().written(), LIMIT)),
            Op::Stop => {
                self.store().shutdown();
                let committed = self.crash();
                self.start(committed);
            }
            Op::Kill => {
                let committed = self.crash();
                self.start(committed);
            }
            Op::Fail => {
                self.disk.fails.store(true, Ordering::SeqCst);
                self.own_entry();
                assert!(!self.store().wait_flushed(self.store().written(), LIMIT));
                let committed = self.crash();
                self.disk.fails.store(false, Ordering::SeqCst);
                self.start(committed);
            }
            Op::PowerCut { known } => {
                let committed = self.crash();
                self.disk.power_cut();
                another_boot(&self.config.root);
                let synced = self
                    .entries
                    .iter()
                    .filter(|e| e.frame.end() <= self.durable)
                    .count();
                self.start(if known { committed } else { 0 });
                assert!(
                    self.entries.len() >= synced,
                    "{synced} entries were synced, {} are left",
                    self.entries.len()
                );
                self.durable = self.durable.min(self.store().written());
            }
            Op::Expire => self.expire(),
        }
        self.check();
        self.durable = self.durable.max(self.store().flushed());
    }

    fn expire(&mut self) {
        assert!(self.store().wait_flushed(self.store().written(), LIMIT));
        let end = self.committed_position();
        self.store().allow_deletion_before(self.committed).unwrap();
        self.store().reconfigure(&StoreConfig {
            file_reserved_hours: 0,
            ..self.config.clone()
        });
        // The one in which the last committed entry ends stays.
        let size = self.store().segment_size();
        wait(|| self.store().min_phy_offset() >= end.saturating_sub(1) / size * size);
        self.store().reconfigure(&self.config);
        let base = self.base();
        self.entries.retain(|e| e.frame.index > base);
        let store = self.store();
        // The queues follow.
        wait(|| {
            (0..QUEUES).all(|queue| {
                let (min, max) = (store.min_offset("q", queue), store.max_offset("q", queue));
                (max - min) as usize == self.shown(queue).count()
            })
        });
    }

    /// Offset and body of what is committed in a queue.
    fn shown(&self, queue: i32) -> impl Iterator<Item = (i64, &[u8])> {
        self.entries
            .iter()
            .filter(|e| e.frame.index <= self.committed)
            .filter_map(move |e| match &e.message {
                Some((of, offset, body)) if *of == queue => Some((*offset, &body[..])),
                _ => None,
            })
    }

    fn check(&self) {
        let store = self.store();
        store.check_invariants();
        assert_eq!(store.last_entry().index, self.last());
        for entry in &self.entries {
            let frame = store.frame(entry.frame.index).unwrap();
            assert_eq!(frame, Some(entry.frame));
            let mut bytes = Vec::new();
            store.read_frame(&entry.frame, &mut bytes).unwrap();
            assert!(entry.frame.vouches_for(&bytes), "{:?}", entry.frame);
        }
        for queue in 0..QUEUES {
            let wanted: Vec<(i64, &[u8])> = self.shown(queue).collect();
            let (min, max) = (store.min_offset("q", queue), store.max_offset("q", queue));
            let offsets: Vec<i64> = wanted.iter().map(|w| w.0).collect();
            assert_eq!((min..max).collect::<Vec<_>>(), offsets, "queue {queue}");
            let found = bodies(store, "q", queue, min);
            assert!(found.iter().eq(wanted.iter().map(|w| w.1)), "queue {queue}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(32), rng_seed: seed(), max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_log_of_a_group_is_a_vec_whatever_happens_to_it(ops in prop::collection::vec(op(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut member = Member::new(dir.path());
        member.run(Op::Lead);
        ops.into_iter().for_each(|op| member.run(op));
    }
}
