//! What senders and readers saw, and when; and whether one log could have shown it to them.
//!
//! The promise (docs/modes.md): a try to send is in the log once at most, and not at all when it was refused; sends lie in an
//! order in which they could have happened; whoever acknowledged a send shows it from then on, while it lives; whatever anybody showed is
//! committed, and stays where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use remoting::admin::Admin;
use remoting::client::RemotingClient;
use remoting::protocol::response_code;
use tokio::task::JoinHandle;

use crate::common::load::{CALL_LIMIT, Found, Place, QUEUES, TOPIC, message, place};
use crate::common::until;

/// Senders that go to whoever takes messages; beside them each member has one that knows no other.
const ROAMING: usize = 3;
/// Between two tries of a sender that is refused, and between two reads.
const PAUSE: Duration = Duration::from_millis(5);
/// A reader pulls from up to so far before the end.
const LOOK_BACK: i64 = 64;
const BATCH: i32 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Acknowledged(Place),
    /// With the code of one who does not lead: it is nowhere.
    Refused,
    Unknown,
}

#[derive(Debug)]
struct Sent {
    body: String,
    to: usize,
    /// The member's life in which it was begun, if it was ended in the same.
    life: Option<u64>,
    began: Instant,
    ended: Instant,
    fate: Fate,
}

#[derive(Debug)]
enum Shown {
    /// The offset behind the last message.
    End(i64),
    /// A pull from an offset that was shown to be there.
    From(i64, BTreeMap<i64, String>),
}

#[derive(Debug)]
struct Read {
    at: usize,
    life: u64,
    queue: i32,
    began: Instant,
    shown: Shown,
}

#[derive(Default)]
struct Recorded {
    sends: Mutex<Vec<Sent>>,
    reads: Mutex<Vec<Read>>,
    /// Which life of each member it is.
    lives: Vec<AtomicU64>,
    acknowledged: AtomicU64,
    /// Who takes messages, as far as the roaming senders know.
    to: AtomicUsize,
    stop: AtomicBool,
}

impl Recorded {
    fn life(&self, member: usize) -> u64 {
        self.lives[member].load(Ordering::SeqCst)
    }
}

/// Senders and readers that run until they are stopped.
pub(crate) struct History {
    recorded: Arc<Recorded>,
    tasks: Vec<JoinHandle<()>>,
}

impl History {
    /// Readers at each of the members, and senders.
    pub(crate) fn begin(members: &[String]) -> Self {
        let recorded = Arc::new(Recorded {
            lives: members.iter().map(|_| AtomicU64::new(0)).collect(),
            ..Recorded::default()
        });
        let mut tasks = Vec::new();
        for (at, member) in members.iter().enumerate() {
            let reader = read_on(member.clone(), at, Arc::clone(&recorded));
            tasks.push(tokio::spawn(reader));
        }
        for sender in 0..ROAMING + members.len() {
            let only = sender.checked_sub(ROAMING);
            let sending = send_on(members.to_vec(), sender, only, Arc::clone(&recorded));
            tasks.push(tokio::spawn(sending));
        }
        Self { recorded, tasks }
    }

    /// Waits for so many more.
    pub(crate) async fn acknowledged(&self, more: u64) {
        let count = || self.recorded.acknowledged.load(Ordering::Relaxed);
        let target = count() + more;
        until("enough acknowledgements", async || count() >= target).await;
    }

    /// This member was killed, and is about to be started: it may show less for a moment.
    pub(crate) fn died(&self, member: usize) {
        self.recorded.lives[member].fetch_add(1, Ordering::SeqCst);
    }

    /// How many sends to this member were begun since then, and acknowledged.
    pub(crate) fn acknowledged_by(&self, member: usize, since: Instant) -> usize {
        let sends = self.recorded.sends.lock().unwrap();
        let by = |s: &&Sent| {
            s.to == member && s.began > since && matches!(s.fate, Fate::Acknowledged(_))
        };
        sends.iter().filter(by).count()
    }

    /// Ends all of it. What was recorded fits the messages that are there in the end.
    pub(crate) async fn check(self, read_at_the_end: impl AsyncFnOnce() -> Found) {
        self.recorded.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        let found = read_at_the_end().await;
        let sends = std::mem::take(&mut *self.recorded.sends.lock().unwrap());
        let reads = std::mem::take(&mut *self.recorded.reads.lock().unwrap());
        check_all(&sends, &reads, &found);
        let of = |fate: fn(&Fate) -> bool| sends.iter().filter(|s| fate(&s.fate)).count();
        println!(
            "{} messages: {} acknowledged, {} refused, {} of unknown fate; {} reads",
            found.len(),
            of(|f| matches!(f, Fate::Acknowledged(_))),
            of(|f| matches!(f, Fate::Refused)),
            of(|f| matches!(f, Fate::Unknown)),
            reads.len()
        );
    }
}

async fn send_on(
    members: Vec<String>,
    sender: usize,
    only: Option<usize>,
    recorded: Arc<Recorded>,
) {
    let client = RemotingClient::default();
    for n in 0.. {
        if recorded.stop.load(Ordering::Relaxed) {
            return;
        }
        let body = format!("{sender}-{n} {}", "x".repeat(200));
        let to = only.unwrap_or_else(|| recorded.to.load(Ordering::Relaxed));
        let (began, life) = (Instant::now(), recorded.life(to));
        let answer = client
            .invoke(&members[to], message(&body), CALL_LIMIT)
            .await;
        let ended = Instant::now();
        let fate = match &answer {
            Ok(answer) if answer.code == response_code::SERVICE_NOT_AVAILABLE => Fate::Refused,
            Ok(answer) => place(answer).map_or(Fate::Unknown, Fate::Acknowledged),
            Err(_) => Fate::Unknown,
        };
        recorded.sends.lock().unwrap().push(Sent {
            body,
            to,
            life: (recorded.life(to) == life).then_some(life),
            began,
            ended,
            fate,
        });
        if let Fate::Acknowledged(_) = fate {
            recorded.acknowledged.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        if only.is_none() {
            let next = (to + 1) % members.len();
            let _ = recorded
                .to
                .compare_exchange(to, next, Ordering::Relaxed, Ordering::Relaxed);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn read_on(member: String, at: usize, recorded: Arc<Recorded>) {
    let admin = Admin::new(RemotingClient::default(), "");
    let record = |life, queue, began, shown| {
        if life != recorded.life(at) {
            return;
        }
        recorded.reads.lock().unwrap().push(Read {
            at,
            life,
            queue,
            began,
            shown,
        });
    };
    for n in 0_i64.. {
        if recorded.stop.load(Ordering::Relaxed) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
        let queue = (n % i64::from(QUEUES)) as i32;
        let (began, life) = (Instant::now(), recorded.life(at));
        let Ok(end) = admin.max_offset(&member, TOPIC, queue).await else {
            continue;
        };
        record(life, queue, began, Shown::End(end));
        let from = (end - 1 - n % LOOK_BACK).max(0);
        if from >= end {
            continue;
        }
        let began = Instant::now();
        if let Ok((messages, _)) = admin.pull(&member, TOPIC, queue, from, BATCH).await {
            let shown = messages
                .into_iter()
                .map(|m| (m.queue_offset, String::from_utf8(m.body).unwrap()));
            record(life, queue, began, Shown::From(from, shown.collect()));
        }
    }
}

fn check_all(sends: &[Sent], reads: &[Read], found: &Found) {
    let mut of_body: BTreeMap<&str, Place> = BTreeMap::new();
    for (place, body) in found {
        let before = of_body.insert(body, *place);
        assert_eq!(
            before, None,
            "a try to send is there twice: {body}, {place:?}"
        );
    }
    check_places(sends, found, &of_body);
    check_order(sends, &of_body);
    check_shown(reads, found);
    check_visible(sends, reads);
}

/// What was acknowledged lies where that was said, and what was refused nowhere.
fn check_places(sends: &[Sent], found: &Found, of_body: &BTreeMap<&str, Place>) {
    let mut taken = BTreeSet::new();
    for send in sends {
        match send.fate {
            Fate::Acknowledged(place) => {
                assert!(taken.insert(place), "two were told {place:?}");
                assert_eq!(found.get(&place), Some(&send.body), "{place:?}");
            }
            Fate::Refused => assert_eq!(of_body.get(&*send.body), None, "{send:?}"),
            Fate::Unknown => {}
        }
    }
}

/// What was begun after an acknowledgement lies behind what was acknowledged.
fn check_order(sends: &[Sent], of_body: &BTreeMap<&str, Place>) {
    let mut placed: Vec<(Place, &Sent)> = sends
        .iter()
        .filter_map(|s| Some((*of_body.get(&*s.body)?, s)))
        .collect();
    placed.sort_unstable_by_key(|(place, _)| std::cmp::Reverse(*place));
    // From the end on: what is acknowledged first of all that lies behind.
    let mut first: Option<(i32, &Sent)> = None;
    for ((queue, offset), send) in placed {
        if first.is_some_and(|(of, _)| of != queue) {
            first = None;
        }
        if let Some((_, behind)) = first {
            assert!(
                behind.ended >= send.began,
                "{send:?} came to lie at {offset} of queue {queue}, before {behind:?}"
            );
        }
        if matches!(send.fate, Fate::Acknowledged(_))
            && first.is_none_or(|(_, behind)| send.ended < behind.ended)
        {
            first = Some((queue, send));
        }
    }
}

/// Nothing was ever shown that is not there in the end, and nobody showed less than before.
fn check_shown(reads: &[Read], found: &Found) {
    let mut ends: BTreeMap<(usize, u64, i32), i64> = BTreeMap::new();
    for read in reads {
        match &read.shown {
            Shown::End(end) => {
                let who = (read.at, read.life, read.queue);
                let before = ends.insert(who, *end).unwrap_or(0);
                assert!(before <= *end, "it showed {before} before: {read:?}");
                let last = found.contains_key(&(read.queue, end - 1));
                assert!(*end == 0 || last, "{read:?}");
            }
            Shown::From(from, messages) => {
                assert!(messages.contains_key(from), "{read:?}");
                for (offset, body) in messages {
                    assert_eq!(found.get(&(read.queue, *offset)), Some(body), "{read:?}");
                }
            }
        }
    }
}

/// Who acknowledged a send shows it from then on.
fn check_visible(sends: &[Sent], reads: &[Read]) {
    // By member, life and queue: when what was acknowledged, and the last of it until then.
    let mut acknowledged: BTreeMap<(usize, u64, i32), Vec<(Instant, i64)>> = BTreeMap::new();
    for send in sends {
        if let (Fate::Acknowledged((queue, offset)), Some(life)) = (send.fate, send.life) {
            let of = acknowledged.entry((send.to, life, queue)).or_default();
            of.push((send.ended, offset));
        }
    }
    for of in acknowledged.values_mut() {
        of.sort_unstable();
        let mut last = -1;
        for (_, offset) in of {
            last = last.max(*offset);
            *offset = last;
        }
    }
    for read in reads {
        let Shown::End(end) = read.shown else {
            continue;
        };
        let Some(of) = acknowledged.get(&(read.at, read.life, read.queue)) else {
            continue;
        };
        let before = of.partition_point(|(ended, _)| *ended < read.began);
        if let Some((_, offset)) = before.checked_sub(1).map(|i| of[i]) {
            assert!(
                end > offset,
                "{read:?}: it had acknowledged {offset} already"
            );
        }
    }
}

/// What must not happen is found.
mod tests {
    use super::*;

    struct Story {
        began: Instant,
        found: Found,
        sends: Vec<Sent>,
        reads: Vec<Read>,
    }

    impl Story {
        /// `a` and `b`, one acknowledged after the other by the member 0, which showed both.
        fn good() -> Self {
            let mut story = Self {
                began: Instant::now(),
                found: Found::from([((0, 0), "a".into()), ((0, 1), "b".into())]),
                sends: Vec::new(),
                reads: Vec::new(),
            };
            story.sent("a", 0, 1, Fate::Acknowledged((0, 0)));
            story.sent("b", 2, 3, Fate::Acknowledged((0, 1)));
            story.read(4, Shown::End(2));
            let both = [(0, "a".into()), (1, "b".into())];
            story.read(5, Shown::From(0, BTreeMap::from(both)));
            story
        }

        fn at(&self, ms: u64) -> Instant {
            self.began + Duration::from_millis(ms)
        }

        fn sent(&mut self, body: &str, began: u64, ended: u64, fate: Fate) {
            self.sends.push(Sent {
                body: body.into(),
                to: 0,
                life: Some(0),
                began: self.at(began),
                ended: self.at(ended),
                fate,
            });
        }

        fn read(&mut self, began: u64, shown: Shown) {
            self.reads.push(Read {
                at: 0,
                life: 0,
                queue: 0,
                began: self.at(began),
                shown,
            });
        }

        fn fits(self) -> bool {
            std::panic::catch_unwind(|| check_all(&self.sends, &self.reads, &self.found)).is_ok()
        }
    }

    #[test]
    fn a_history_that_fits_one_log_is_told_from_one_that_does_not() {
        assert!(Story::good().fits());
        type Happens = fn(&mut Story);
        let bad: [(&str, Happens); 9] = [
            ("lost", |s| drop(s.found.remove(&(0, 1)))),
            ("changed", |s| drop(s.found.insert((0, 1), "c".into()))),
            ("twice", |s| drop(s.found.insert((0, 2), "a".into()))),
            ("two in one place", |s| {
                s.sent("c", 4, 5, Fate::Acknowledged((0, 1)));
            }),
            ("refused and there", |s| s.sends[0].fate = Fate::Refused),
            ("out of order", |s| {
                s.sends[0].fate = Fate::Acknowledged((0, 1));
                s.sends[1].fate = Fate::Acknowledged((0, 0));
                s.found = Found::from([((0, 0), "b".into()), ((0, 1), "a".into())]);
                s.reads.clear();
            }),
            ("shown and gone", |s| s.read(6, Shown::End(3))),
            ("shown no more", |s| s.read(6, Shown::End(1))),
            ("acknowledged and not shown", |s| {
                s.reads.clear();
                s.read(4, Shown::End(1));
            }),
        ];
        for (what, happens) in bad {
            let mut story = Story::good();
            happens(&mut story);
            assert!(!story.fits(), "{what}");
        }
        // Of unknown fate it may be there or not; who did not know it yet did not show it.
        let mut story = Story::good();
        story.sends[1].fate = Fate::Unknown;
        story.reads.clear();
        story.read(4, Shown::End(1));
        assert!(story.fits());
    }
}
