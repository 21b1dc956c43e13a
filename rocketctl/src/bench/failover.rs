//! The row `failover`: how long a group that elects its master takes no sends, when its master dies and when it hands over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use remoting::protocol::body::{DLedgerState, DLedgerStatus};
use remoting::protocol::header::SendMessageRequestHeader;
use remoting::protocol::{RemotingCommand, request_code, response_code};
use remoting::{Admin, ClientConfig, RemotingClient};
use tokio::task::JoinHandle;

use super::compare::{Bench, Line, median};
use super::rows::{ASYNC, SYNC};
use super::servers::{Mode, Servers, Side};

const SENDERS: usize = 4;
const BODY: &[u8] = &[b'x'; 1024];
/// A send that is not answered by then is tried elsewhere.
const CALL_LIMIT: Duration = Duration::from_secs(3);
/// Between two tries of a sender that was refused.
const RETRY_AFTER: Duration = Duration::from_millis(2);
/// A group that takes nothing for so long, or does not come together again, has failed.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Sends go on for so long before a leader is taken away, and after it was.
const CALM: Duration = Duration::from_millis(500);

/// When sends that were begun at `.0` were acknowledged.
#[derive(Default)]
struct Seen {
    acknowledged: Mutex<Vec<(Instant, Instant)>>,
    to: AtomicUsize,
    stop: AtomicBool,
}

struct Senders {
    seen: Arc<Seen>,
    tasks: Vec<JoinHandle<()>>,
}

impl Senders {
    fn start(brokers: &[SocketAddr]) -> Self {
        let seen = Arc::<Seen>::default();
        let brokers: Vec<String> = brokers.iter().map(ToString::to_string).collect();
        let tasks = (0..SENDERS)
            .map(|_| tokio::spawn(send_on(brokers.clone(), Arc::clone(&seen))))
            .collect();
        Self { seen, tasks }
    }

    /// From then to the acknowledgement of the first send that was begun after it.
    async fn first_after(&self, then: Instant) -> Result<Duration> {
        loop {
            let first = {
                let acknowledged = self.seen.acknowledged.lock();
                let later = acknowledged.iter().filter(|(begun, _)| *begun >= then);
                later.map(|(_, ended)| *ended).min()
            };
            if let Some(first) = first {
                return Ok(first - then);
            }
            ensure!(then.elapsed() < LIMIT, "no send is taken any more");
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    /// The longest time without an acknowledgement since then.
    fn longest_gap(&self, since: Instant) -> Duration {
        let mut ends: Vec<Instant> = self
            .seen
            .acknowledged
            .lock()
            .iter()
            .map(|(_, ended)| *ended)
            .filter(|ended| *ended >= since)
            .collect();
        ends.sort();
        let last = ends.last().copied().unwrap_or_else(Instant::now);
        let gaps = ends.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_else(|| last.elapsed())
    }

    async fn stop(self) -> Result<()> {
        self.seen.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.context("a sender ended")?;
        }
        Ok(())
    }
}

fn message() -> RemotingCommand {
    RemotingCommand::request(request_code::SEND_MESSAGE)
        .with_header(&SendMessageRequestHeader {
            producer_group: "bench".into(),
            topic: "failover".into(),
            default_topic: "TBW102".into(),
            default_topic_queue_nums: 4,
            queue_id: -1,
            ..SendMessageRequestHeader::default()
        })
        .with_body(BODY.to_vec())
}

/// One send after the other, to whoever takes them.
async fn send_on(brokers: Vec<String>, seen: Arc<Seen>) {
    let client = RemotingClient::new(ClientConfig::default());
    while !seen.stop.load(Ordering::Relaxed) {
        let to = seen.to.load(Ordering::Relaxed);
        let begun = Instant::now();
        let answer = client.invoke(&brokers[to], message(), CALL_LIMIT).await;
        if answer.is_ok_and(|a| a.code == response_code::SUCCESS) {
            seen.acknowledged.lock().push((begun, Instant::now()));
            continue;
        }
        let next = (to + 1) % brokers.len();
        // Another sender may have gone on already.
        let _ = seen
            .to
            .compare_exchange(to, next, Ordering::Relaxed, Ordering::Relaxed);
        tokio::time::sleep(RETRY_AFTER).await;
    }
    client.shutdown().await;
}

/// The leader, once everybody follows it and has everything.
async fn settled(admin: &Admin, brokers: &[SocketAddr]) -> Result<usize> {
    let level = |s: &DLedgerStatus| {
        s.state == DLedgerState::Leader
            && s.members.len() == brokers.len()
            && s.members.iter().all(|m| m.recently_active && m.sure)
    };
    let end = Instant::now() + LIMIT;
    loop {
        for (at, broker) in brokers.iter().enumerate() {
            let status = admin.dledger_status(&broker.to_string()).await;
            if status.is_ok_and(|s| level(&s)) {
                return Ok(at);
            }
        }
        ensure!(Instant::now() < end, "the group does not come together");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut lines = Vec::new();
    for (flush, name) in [(ASYNC, "ASYNC_FLUSH"), (SYNC, "SYNC_FLUSH")] {
        let mut group = bench.start(Side::Ours, Mode::Dledger, flush)?;
        let (killed, handed) = runtime.block_on(turns(&mut group, bench.args.kills))?;
        let longest = |of: &[f64]| of.iter().copied().fold(0.0, f64::max);
        let count = bench.args.kills;
        lines.extend([
            Line::at_most(
                format!("{name}: kill -9 of the leader to the first send taken, median of {count}"),
                median(killed.iter().copied()),
                "ms",
                1_500.0,
            ),
            Line::at_most("the longest of them", longest(&killed), "ms", 3_000.0),
            Line::at_most(
                format!("{name}: longest gap in sends at a hand-over, longest of {count}"),
                longest(&handed),
                "ms",
                200.0,
            ),
            Line::reported("their median", median(handed.iter().copied()), "ms"),
        ]);
    }
    Ok(lines)
}

/// Milliseconds after each kill, and at each hand-over.
async fn turns(group: &mut Servers, count: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let ms = |d: Duration| d.as_secs_f64() * 1_000.0;
    let brokers = group.brokers();
    let admin = Admin::new(RemotingClient::new(ClientConfig::default()), "");
    let (mut killed, mut handed) = (Vec::new(), Vec::new());
    for n in 1..=count {
        let leader = settled(&admin, &brokers).await?;
        let senders = Senders::start(&brokers);
        senders.first_after(Instant::now()).await?;
        tokio::time::sleep(CALM).await;
        let since = Instant::now();
        admin
            .dledger_transfer_leadership(&brokers[leader].to_string(), None)
            .await
            .context("handing over")?;
        tokio::time::sleep(CALM).await;
        senders.first_after(Instant::now()).await?;
        handed.push(ms(senders.longest_gap(since)));

        let leader = settled(&admin, &brokers).await?;
        group.kill_at(leader)?;
        let died = Instant::now();
        killed.push(ms(senders.first_after(died).await?));
        senders.stop().await?;
        group.again_at(leader)?;
        eprintln!(
            "failover {n}: {:.0} ms after the kill, {:.0} ms at the hand-over",
            killed[n - 1],
            handed[n - 1]
        );
    }
    Ok((killed, handed))
}
