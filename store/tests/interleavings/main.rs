//! The hand-over of the writer's role, the tail ring and the wake-ups in every order in which their threads may run (loom), up to a bound of pre-emptions:
//! `LOOM_MAX_PREEMPTIONS` raises it.

#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[allow(dead_code)]
mod sync;

#[allow(dead_code)]
#[path = "../../src/handover.rs"]
mod handover;
#[allow(dead_code)]
#[path = "../../src/ring.rs"]
mod ring;
#[allow(dead_code)]
#[path = "../../src/signal.rs"]
mod signal;
#[allow(dead_code, unreachable_pub)]
#[path = "../../src/waiters.rs"]
mod waiters;

use std::time::Duration;

use loom::thread;

use handover::Handover;
use ring::Ring;
use signal::{Signal, Wanted};
use waiters::Waiters;

use sync::{Arc, AtomicBool, AtomicU64, CHUNK, Mutex, Ordering};

const MAX_PREEMPTIONS: usize = 3;

fn every_order(test: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound.get_or_insert(MAX_PREEMPTIONS);
    model.check(test);
}

/// What `Store` has around its writer: `appended` rises under a lock, `written` follows.
struct Log {
    append: Mutex<()>,
    appended: AtomicU64,
    written: AtomicU64,
    writer: Handover<u64>,
}

impl Log {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            append: Mutex::new(()),
            appended: AtomicU64::new(0),
            written: AtomicU64::new(0),
            writer: Handover::new(0),
        })
    }

    fn append(&self) -> u64 {
        let _append = self.append.lock();
        let end = self.appended.load(Ordering::Relaxed) + 1;
        self.appended.store(end, Ordering::Release);
        end
    }

    fn has_work(&self) -> bool {
        self.appended.load(Ordering::Acquire) > self.written.load(Ordering::Acquire)
    }

    fn drive(&self, rounds: usize) -> bool {
        let round = |state: &mut u64| {
            if !self.has_work() {
                return false;
            }
            let end = {
                let _append = self.append.lock();
                self.appended.load(Ordering::Relaxed)
            };
            // One at a time, and never back.
            assert_eq!(*state, self.written.load(Ordering::Relaxed));
            assert!(end > *state);
            *state = end;
            self.written.store(end, Ordering::Release);
            true
        };
        self.writer.drive(rounds, || self.has_work(), round)
    }
}

#[test]
fn whoever_finds_a_writer_may_leave_its_work_to_it() {
    every_order(|| {
        let log = Log::new();
        let others: Vec<_> = (0..2)
            .map(|_| {
                let log = log.clone();
                thread::spawn(move || {
                    log.append();
                    assert!(log.drive(usize::MAX));
                })
            })
            .collect();
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(log.written.load(Ordering::Acquire), 2);
    });
}

#[test]
fn a_writer_that_gives_up_after_its_rounds_says_so() {
    every_order(|| {
        let log = Log::new();
        let other = {
            let log = log.clone();
            thread::spawn(move || {
                log.append();
                let first = log.drive(1);
                log.append();
                log.drive(1) && first
            })
        };
        log.append();
        let mine = log.drive(1);
        let others = other.join().unwrap();
        let written = log.written.load(Ordering::Acquire);
        assert!(
            written == 3 || !(mine && others),
            "{written} of 3 and nobody says so"
        );
        assert!(log.drive(usize::MAX));
        assert_eq!(log.written.load(Ordering::Acquire), 3);
    });
}

/// As saving offsets and truncating do.
#[test]
fn who_kept_writers_away_looks_for_what_they_left() {
    every_order(|| {
        let log = Log::new();
        let other = {
            let log = log.clone();
            thread::spawn(move || {
                log.append();
                log.drive(usize::MAX);
            })
        };
        drop(log.writer.lock());
        log.drive(usize::MAX);
        other.join().unwrap();
        assert_eq!(log.written.load(Ordering::Acquire), 1);
    });
}

/// The value of the byte at each position.
fn byte_at(position: u64) -> u8 {
    position as u8 + 1
}

#[test]
fn a_reader_of_the_ring_gets_what_was_pushed_or_nothing() {
    every_order(|| {
        let (ring, mut tail) = Ring::new(2 * CHUNK, 1);
        let ring = Arc::new(ring);
        let reader = {
            let ring = ring.clone();
            thread::spawn(move || {
                let mut cursor = ring.cursor();
                // The second read may find the chunk that the cursor kept pushed out, and its memory used again.
                for (from, to) in [(1, 4), (2, 3)] {
                    let mut at = from;
                    let whole = cursor.read(from, to, |piece| {
                        for byte in piece {
                            assert_eq!(*byte, byte_at(at));
                            at += 1;
                        }
                    });
                    assert_eq!(whole, at == to);
                }
            })
        };
        for position in [1u64, 2, 4] {
            let end = if position == 2 { 4 } else { position + 1 };
            let bytes: Vec<u8> = (position..end).map(byte_at).collect();
            ring.push(&mut tail, &bytes);
        }
        reader.join().unwrap();
        assert_eq!((tail.position, ring.oldest()), (5, 2));
    });
}

#[test]
fn the_writer_reads_what_others_append_behind_it() {
    every_order(|| {
        let (ring, tail) = Ring::new(3 * CHUNK, 0);
        let shared = Arc::new((ring, Mutex::new(tail), AtomicU64::new(0)));
        let appender = {
            let shared = shared.clone();
            thread::spawn(move || {
                let (ring, tail, appended) = &*shared;
                for _ in 0..2 {
                    let mut tail = tail.lock();
                    let bytes = [byte_at(tail.position), byte_at(tail.position + 1)];
                    let len = if tail.position == 0 { 2 } else { 1 };
                    ring.push(&mut tail, &bytes[..len]);
                    appended.store(tail.position, Ordering::Release);
                }
            })
        };
        let (ring, _, appended) = &*shared;
        let end = appended.load(Ordering::Acquire);
        let mut at = 0;
        for chunk in ring.cursor().chunks(0, end) {
            for byte in chunk.slice(at, end) {
                assert_eq!(*byte, byte_at(at));
                at += 1;
            }
        }
        assert_eq!(at, end, "all that is appended can be written");
        appender.join().unwrap();
    });
}

/// Writers ask for a flush once each; the flusher sleeps without a time limit, so one that is lost would be a deadlock.
#[test]
fn no_request_for_a_flush_is_lost() {
    every_order(|| {
        struct Shared {
            signal: Signal,
            wanted: Wanted,
            written: AtomicU64,
            flushed: AtomicU64,
        }
        let shared = Arc::new(Shared {
            signal: Signal::default(),
            wanted: Wanted::new(),
            written: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
        });
        let flusher = {
            let shared = shared.clone();
            thread::spawn(move || {
                while shared.flushed.load(Ordering::Acquire) < 2 {
                    shared.signal.wait(Duration::ZERO);
                    if shared.wanted.take() {
                        let target = shared.written.load(Ordering::Acquire);
                        shared.flushed.fetch_max(target, Ordering::AcqRel);
                    }
                }
            })
        };
        for end in 1..=2 {
            shared.written.store(end, Ordering::Release);
            shared.wanted.ask(&shared.signal);
        }
        flusher.join().unwrap();
    });
}

#[test]
fn a_wake_up_before_the_sleep_counts() {
    every_order(|| {
        let shared = Arc::new((Signal::default(), AtomicBool::new(false)));
        let sleeper = {
            let shared = shared.clone();
            thread::spawn(move || {
                while !shared.1.load(Ordering::Acquire) {
                    shared.0.wait(Duration::ZERO);
                }
            })
        };
        shared.1.store(true, Ordering::Release);
        shared.0.raise();
        sleeper.join().unwrap();
    });
}

/// Answers wait for the position at which their message ends; the writer moves the watermark and releases.
#[test]
fn every_answer_is_given_once() {
    every_order(|| {
        struct Shared {
            waiters: Waiters<u64>,
            written: AtomicU64,
            given: AtomicU64,
        }
        let shared = Arc::new(Shared {
            waiters: Waiters::default(),
            written: AtomicU64::new(0),
            given: AtomicU64::new(0),
        });
        // Each answer is a digit of its own, so a second one shows.
        let give = |shared: &Shared, answer| shared.given.fetch_add(answer, Ordering::AcqRel);
        let senders: Vec<_> = [(2, 1), (1, 10)]
            .into_iter()
            .map(|(end, answer)| {
                let shared = shared.clone();
                thread::spawn(move || {
                    let reached = || shared.written.load(Ordering::Acquire);
                    if let Some(answer) = shared.waiters.wait(end, answer, reached) {
                        give(&shared, answer);
                    }
                })
            })
            .collect();
        for end in 1..=2 {
            shared.written.store(end, Ordering::Release);
            for answer in shared.waiters.release(end) {
                give(&shared, answer);
            }
        }
        for sender in senders {
            sender.join().unwrap();
        }
        assert_eq!(shared.given.load(Ordering::Acquire), 11);
        assert!(shared.waiters.is_empty());
    });
}

/// A store that fails is noted, then all that wait are told; who queues an answer looks at the note afterwards.
#[test]
fn no_answer_waits_for_a_log_that_has_failed() {
    every_order(|| {
        let shared = Arc::new((
            Waiters::default(),
            AtomicBool::new(false),
            AtomicU64::new(0),
        ));
        let fail = |shared: &(Waiters<()>, AtomicBool, AtomicU64)| {
            let failed = shared.0.take(|_, ()| true).len() as u64;
            shared.2.fetch_add(failed, Ordering::AcqRel);
        };
        let sender = {
            let shared = shared.clone();
            thread::spawn(move || {
                assert!(shared.0.wait(1, (), || 0).is_none());
                if shared.1.load(Ordering::Acquire) {
                    fail(&shared);
                }
            })
        };
        shared.1.store(true, Ordering::Release);
        fail(&shared);
        sender.join().unwrap();
        assert_eq!(shared.2.load(Ordering::Acquire), 1);
    });
}
