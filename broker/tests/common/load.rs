//! Senders whose acknowledgements are written down, and what is found of them afterwards.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use remoting::admin::Admin;
use remoting::client::RemotingClient;
use remoting::protocol::header::SendMessageRequestHeader;
use remoting::protocol::{RemotingCommand, request_code, response_code};
use tokio::task::JoinHandle;

use super::until;

pub(crate) const TOPIC: &str = "LoadTest";
pub(crate) const QUEUES: i32 = 4;
/// A call that is not answered by then is taken for lost.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(4);
/// Between two tries of a sender that nobody answers.
const RETRY_AFTER: Duration = Duration::from_millis(5);
/// Messages in one pull.
const BATCH: i32 = 32;

/// Queue and offset.
pub(crate) type Place = (i32, i64);
/// Where an acknowledged body was said to lie.
pub(crate) type Acknowledged = BTreeMap<String, Place>;
/// The body that lies there.
pub(crate) type Found = BTreeMap<Place, String>;

/// A message to a queue that the broker draws.
pub(crate) fn message(body: &str) -> RemotingCommand {
    RemotingCommand::request(request_code::SEND_MESSAGE)
        .with_header(&SendMessageRequestHeader {
            producer_group: "load".into(),
            topic: TOPIC.into(),
            default_topic: "TBW102".into(),
            default_topic_queue_nums: QUEUES,
            queue_id: -1,
            ..SendMessageRequestHeader::default()
        })
        .with_body(body.as_bytes().to_vec())
}

/// Where the message of this answer lies; none when it was not acknowledged.
pub(crate) fn place(answer: &RemotingCommand) -> Option<Place> {
    let field = |name: &str| answer.ext(name).unwrap().parse::<i64>().unwrap();
    (answer.code == response_code::SUCCESS).then(|| (field("queueId") as i32, field("queueOffset")))
}

#[derive(Default)]
struct Seen {
    acknowledged: Mutex<Acknowledged>,
    count: AtomicU64,
    longest_gap_ms: AtomicU64,
    /// Who takes messages, as far as the senders know.
    to: AtomicUsize,
    stop: AtomicBool,
}

/// Senders that run until they are stopped, each with one message on its way, to whichever of the brokers takes it.
pub(crate) struct Load {
    seen: Arc<Seen>,
    senders: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(addresses: &[String], senders: u64) -> Self {
        let seen = Arc::<Seen>::default();
        let senders = (0..senders)
            .map(|sender| tokio::spawn(send_on(addresses.to_vec(), sender, Arc::clone(&seen))))
            .collect();
        Self { seen, senders }
    }

    /// Waits for so many more.
    pub(crate) async fn acknowledged(&self, more: u64) {
        let target = self.seen.count.load(Ordering::Relaxed) + more;
        until("enough acknowledgements", async || {
            self.seen.count.load(Ordering::Relaxed) >= target
        })
        .await;
    }

    pub(crate) fn so_far(&self) -> Acknowledged {
        self.seen.acknowledged.lock().unwrap().clone()
    }

    /// The longest time a sender was without an acknowledgement, since this was asked last.
    pub(crate) fn longest_gap(&self) -> Duration {
        Duration::from_millis(self.seen.longest_gap_ms.swap(0, Ordering::Relaxed))
    }

    pub(crate) async fn stop(self) -> Acknowledged {
        self.seen.stop.store(true, Ordering::Relaxed);
        for sender in self.senders {
            sender.await.unwrap();
        }
        let acknowledged = std::mem::take(&mut *self.seen.acknowledged.lock().unwrap());
        assert!(!acknowledged.is_empty());
        acknowledged
    }
}

async fn send_on(addresses: Vec<String>, sender: u64, seen: Arc<Seen>) {
    let client = RemotingClient::default();
    let mut last = Instant::now();
    for n in 0.. {
        if seen.stop.load(Ordering::Relaxed) {
            return;
        }
        let body = format!("{sender}-{n} {}", "x".repeat(200));
        let to = seen.to.load(Ordering::Relaxed);
        let answer = client.invoke(&addresses[to], message(&body), CALL_LIMIT);
        if let Some(place) = answer.await.ok().as_ref().and_then(place) {
            let before = seen.acknowledged.lock().unwrap().insert(body, place);
            assert_eq!(before, None);
            seen.count.fetch_add(1, Ordering::Relaxed);
            let gap = last.elapsed().as_millis() as u64;
            seen.longest_gap_ms.fetch_max(gap, Ordering::Relaxed);
            last = Instant::now();
        } else {
            // That message may or may not be there.
            let next = (to + 1) % addresses.len();
            let _ = seen
                .to
                .compare_exchange(to, next, Ordering::Relaxed, Ordering::Relaxed);
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
}

/// Every message of the topic that this broker shows.
pub(crate) async fn read_all(address: &str) -> Found {
    let admin = Admin::new(RemotingClient::default(), "");
    let mut found = Found::new();
    for queue in 0..QUEUES {
        let (mut offset, max) = (0, admin.max_offset(address, TOPIC, queue).await.unwrap());
        while offset < max {
            let pulled = admin.pull(address, TOPIC, queue, offset, BATCH).await;
            let (messages, header) = pulled.unwrap();
            assert!(
                header.next_begin_offset > offset,
                "queue {queue} stands still at {offset} of {max}"
            );
            offset = header.next_begin_offset;
            for m in messages {
                let body = String::from_utf8(m.body).unwrap();
                let before = found.insert((queue, m.queue_offset), body);
                assert_eq!(before, None, "an offset twice");
            }
        }
    }
    found
}

/// Everything acknowledged is found where it was said to lie.
pub(crate) fn check(who: &str, acknowledged: &Acknowledged, found: &Found) {
    let missing: Vec<_> = acknowledged
        .iter()
        .filter(|(body, at)| found.get(at) != Some(body))
        .collect();
    assert!(
        missing.is_empty(),
        "{who}: {} of {} acknowledged are not where they were: {:?}",
        missing.len(),
        acknowledged.len(),
        &missing[..missing.len().min(5)]
    );
    println!(
        "{who}: {} messages, all {} acknowledged ones among them",
        found.len(),
        acknowledged.len()
    );
}
