//! The master's end of replication connections: one task a slave, all on the thread of replication.
//!
//! What the tail of the log in memory holds is copied from there; what is older is read by a thread that may block, and no
//! faster than `haCatchUpBytesPerSecond`, so that a slave that catches up leaves the disk to the traffic.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::tcp::WriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::protocol::{HEADER_BYTES, ReportReader, Start, encode_header};
use super::replicas::{Replica, SyncRule};
use super::{Node, TICK};
use crate::broker::Broker;
use crate::config::BrokerConfig;
use crate::role::Role;

/// Slaves of one master; more connections are closed at once.
const MAX_SLAVES: usize = 64;
/// Bytes handed to the socket at once, of memory and of disk.
const WRITE_FROM_MEMORY: usize = 256 << 10;
const WRITE_FROM_DISK: usize = 1 << 20;
/// A burst from disk may go this far above the rate before it pauses.
const BURST: Duration = Duration::from_millis(50);
/// A master without slaves looks only this often whether it has become one with.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// A listener that cannot accept (no descriptors) tries again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How much may be read from disk for slaves: a leaky bucket over all of them.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// When everything taken so far is paid for.
    paid: Option<Instant>,
}

impl Budget {
    /// Takes so many bytes; returns until when to pause afterwards.
    fn take(&mut self, bytes: u64, rate: u64, now: Instant) -> Option<Instant> {
        if rate == 0 {
            return None;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let paid = self.paid.map_or(now, |paid| paid.max(now)) + cost;
        self.paid = Some(paid);
        (paid > now + BURST).then_some(paid)
    }
}

/// Bytes a second for a slave that is so far behind a log that grows by so much a second; 0 for no bound. One that is in
/// sync is not held back, and none so much that it never arrives.
fn catch_up_rate(config: &BrokerConfig, behind: u64, growth: u64) -> u64 {
    let bytes = |value: i64| u64::try_from(value).unwrap_or(0);
    match bytes(config.ha_catch_up_bytes_per_second) {
        0 => 0,
        _ if behind <= bytes(config.ha_max_gap_not_in_sync) => 0,
        rate => rate.max(growth.saturating_mul(2)),
    }
}

/// Serves slaves until the broker stops.
pub(super) async fn accept(node: &Node, listener: TcpListener) {
    let mut slaves = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) if slaves.len() < MAX_SLAVES => {
                    let broker = Arc::clone(&node.broker);
                    slaves.spawn(async move { serve(&broker, stream, peer).await });
                }
                Ok((_, peer)) => tracing::warn!(%peer, "too many slaves"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a slave");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = slaves.join_next() => {}
        }
    }
}

/// Answers what waited too long for slaves, judges them again as the log grows away from them, measures how fast it grows.
pub(super) async fn keep_time(broker: &Arc<Broker>) {
    let (mut from, mut since) = (broker.store.written(), Instant::now());
    loop {
        let idle = broker.acks.waiting() == 0 && broker.ha.replicas.list().is_empty();
        sleep(if idle { IDLE_TICK } else { TICK }).await;
        if since.elapsed() >= IDLE_TICK {
            let (end, passed) = (broker.store.written(), since.elapsed().as_secs_f64());
            let growth = end.saturating_sub(from) as f64 / passed;
            broker.ha.growth.store(growth as u64, Ordering::Relaxed);
            (from, since) = (end, Instant::now());
        }
        if idle {
            continue;
        }
        reported(broker);
        let timeout =
            Duration::from_millis(u64::try_from(broker.config().slave_timeout).unwrap_or(0));
        if let Some(before) = std::time::Instant::now().checked_sub(timeout) {
            broker
                .acks
                .expire_replicated(before, broker.ha.replicated());
        }
    }
}

/// A slave reported, came or went.
fn reported(broker: &Arc<Broker>) {
    let rule = SyncRule::new(&broker.config());
    let ha = &broker.ha;
    if ha.replicas.judge(broker.store.written(), &rule) {
        broker
            .acks
            .release_replicated(&broker.store.watermarks(), ha.replicated());
    }
    ha.acked.notify_waiters();
}

async fn serve(broker: &Arc<Broker>, mut stream: TcpStream, peer: SocketAddr) {
    let _ = stream.set_nodelay(true);
    let mut slave = Slave::new(broker, peer);
    let end = slave.run(&mut stream).await;
    if let Some(replica) = slave.replica.take() {
        broker.ha.replicas.remove(&replica);
        reported(broker);
    }
    match end {
        Ok(()) => tracing::info!(%peer, "the slave closed its connection"),
        Err(reason) => tracing::warn!(%peer, reason, "replication to the slave ended"),
    }
}

struct Slave<'a> {
    broker: &'a Arc<Broker>,
    peer: SocketAddr,
    /// Known since its first report.
    replica: Option<Arc<Replica>>,
    reports: ReportReader,
    /// Where the next chunk begins.
    next: u64,
    out: Vec<u8>,
    /// So much of `out` is sent.
    sent: usize,
    /// Set while reading from disk must pause.
    paused: Option<Instant>,
    heard_at: Instant,
    wrote_at: Instant,
    metered_at: Instant,
    metered: u64,
}

impl<'a> Slave<'a> {
    fn new(broker: &'a Arc<Broker>, peer: SocketAddr) -> Self {
        let now = Instant::now();
        Self {
            broker,
            peer,
            replica: None,
            reports: ReportReader::default(),
            next: 0,
            out: Vec::new(),
            sent: 0,
            paused: None,
            heard_at: now,
            wrote_at: now,
            metered_at: now,
            metered: 0,
        }
    }

    async fn run(&mut self, stream: &mut TcpStream) -> Result<(), String> {
        let (mut reader, writer) = stream.split();
        let mut input = [0; 1024];
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut pause = pin!(sleep_until(Instant::now()));
        loop {
            if self.sent == self.out.len() && self.may_send() {
                self.fill().await?;
                if let Some(until) = self.paused {
                    pause.as_mut().reset(until);
                }
            }
            self.push(&writer)?;
            let unsent = self.sent < self.out.len();
            let waits = !unsent && self.paused.is_none() && self.replica.is_some();
            let (store, next) = (&self.broker.store, self.next);
            let moved = self.broker.ha.wake.moved_unless(|| store.written() > next);
            tokio::select! {
                read = reader.read(&mut input) => match read {
                    Ok(0) => return Ok(()),
                    Ok(n) => self.heard(&input[..n])?,
                    Err(error) => return Err(error.to_string()),
                },
                ready = writer.writable(), if unsent => ready.map_err(|e| e.to_string())?,
                () = moved, if waits => {}
                () = pause.as_mut(), if self.paused.is_some() => self.paused = None,
                _ = tick.tick() => self.tick()?,
            }
        }
    }

    fn may_send(&self) -> bool {
        self.replica.is_some() && self.paused.is_none() && self.broker.store.written() > self.next
    }

    /// Reports of the slave: the first says where to begin, each what it has.
    fn heard(&mut self, bytes: &[u8]) -> Result<(), String> {
        let (mut first, mut last) = (None, None);
        self.reports.feed(bytes, |report| {
            first.get_or_insert(report);
            last = Some(report);
        });
        self.heard_at = Instant::now();
        let (Some(first), Some(last)) = (first, last) else {
            return Ok(());
        };
        let now_ms = self.broker.clock.now_ms();
        let begun = self.replica.is_some();
        let written = self.broker.store.written();
        let replica = match &self.replica {
            Some(replica) => replica,
            None => {
                self.next = self.begin(Start::from_report(first), written)?;
                // What a stock slave without a log has is nothing, wherever it begins.
                let has = u64::try_from(first).unwrap_or(!first as u64);
                let replica = Arc::new(Replica::new(self.peer, has, now_ms));
                replica.sent.store(self.next, Ordering::Relaxed);
                self.broker.ha.replicas.add(Arc::clone(&replica));
                tracing::info!(peer = %self.peer, from = self.next, end = written, "a slave follows");
                self.replica.insert(replica)
            }
        };
        if begun || last != first {
            let Some(acked) = u64::try_from(last).ok().filter(|acked| *acked <= written) else {
                return Err(format!(
                    "it reports {last}, but the log ends at {written} here"
                ));
            };
            replica.acked.store(acked, Ordering::Release);
        }
        replica.acked_at_ms.store(now_ms, Ordering::Relaxed);
        reported(self.broker);
        Ok(())
    }

    /// Where a slave that says this begins.
    fn begin(&self, start: Start, written: u64) -> Result<u64, String> {
        let store = &self.broker.store;
        let role = self.broker.role.now().role;
        let serves = match start {
            Start::Exactly(_) => role != Role::Undecided || self.broker.ha.is_settled(),
            Start::LastFile | Start::At(_) => role == Role::Master,
        };
        if !serves {
            return Err(format!(
                "a slave asked for the log of a broker that is {role:?}"
            ));
        }
        let oldest = store.min_phy_offset();
        match start {
            Start::LastFile => Ok((written - written % store.segment_size()).max(oldest)),
            Start::At(position) | Start::Exactly(position)
                if (oldest..=written).contains(&position) =>
            {
                Ok(position)
            }
            Start::At(position) | Start::Exactly(position) => Err(format!(
                "it asks for {position}, but the log here holds {oldest} to {written}"
            )),
        }
    }

    /// Chunks for the socket, from memory or else from disk.
    async fn fill(&mut self) -> Result<(), String> {
        self.out.clear();
        self.sent = 0;
        self.heartbeat_if_due();
        let config = self.broker.config();
        let batch = usize::try_from(config.ha_transfer_batch_size).unwrap_or(1024);
        if self.next < self.broker.store.oldest_in_memory() {
            let (store, next) = (Arc::clone(&self.broker.store), self.next);
            let mut out = std::mem::take(&mut self.out);
            let read = tokio::task::spawn_blocking(move || {
                let end = chunks(&store, next, batch, WRITE_FROM_DISK, &mut out);
                (out, end)
            });
            let (out, next) = read.await.map_err(|e| e.to_string())?;
            self.out = out;
            let next = next?;
            let behind = self.broker.store.written().saturating_sub(next);
            let mine = self.broker.ha.growth.load(Ordering::Relaxed);
            let rate = catch_up_rate(&config, behind, mine);
            self.paused = self
                .broker
                .ha
                .budget
                .lock()
                .take(next - self.next, rate, Instant::now());
            self.advance(next);
        } else {
            let store = &self.broker.store;
            let next = chunks(store, self.next, batch, WRITE_FROM_MEMORY, &mut self.out)?;
            self.advance(next);
        }
        Ok(())
    }

    fn advance(&mut self, next: u64) {
        if let Some(replica) = &self.replica {
            replica
                .transferred
                .fetch_add(next - self.next, Ordering::Relaxed);
            replica.sent.store(next, Ordering::Relaxed);
        }
        self.next = next;
    }

    fn push(&mut self, writer: &WriteHalf<'_>) -> Result<(), String> {
        while self.sent < self.out.len() {
            match writer.try_write(&self.out[self.sent..]) {
                Ok(n) => {
                    self.sent += n;
                    self.wrote_at = Instant::now();
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// Upstream looks at the heartbeat before it looks for data.
    fn heartbeat_if_due(&mut self) {
        let after = milliseconds(self.broker.config().ha_send_heartbeat_interval);
        if self.wrote_at.elapsed() >= after {
            self.out.extend_from_slice(&encode_header(self.next, 0));
        }
    }

    fn tick(&mut self) -> Result<(), String> {
        let limit = milliseconds(self.broker.config().ha_housekeeping_interval);
        if self.heard_at.elapsed() > limit {
            return Err(format!("nothing heard for {limit:?}"));
        }
        if self.replica.is_some() && self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
            self.heartbeat_if_due();
        }
        let since = self.metered_at.elapsed();
        if let Some(replica) = &self.replica
            && since >= Duration::from_secs(1)
        {
            let total = replica.transferred.load(Ordering::Relaxed);
            let rate = (total - self.metered) as f64 / since.as_secs_f64();
            replica.per_second.store(rate as u64, Ordering::Relaxed);
            self.metered = total;
            self.metered_at = Instant::now();
        }
        Ok(())
    }
}

fn milliseconds(value: i32) -> Duration {
    Duration::from_millis(u64::try_from(value).unwrap_or(0))
}

/// Appends chunks of at most `batch` bytes from `next` on, up to about `limit` bytes; returns where the next one begins.
fn chunks(
    store: &store::Store,
    mut next: u64,
    batch: usize,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<u64, String> {
    while out.len() < limit && next < store.written() {
        let header = out.len();
        out.resize(header + HEADER_BYTES, 0);
        let size = store
            .read_range(next, batch, out)
            .map_err(|error| error.to_string())?;
        let size_field = u32::try_from(size).map_err(|error| error.to_string())?;
        out[header..header + HEADER_BYTES].copy_from_slice(&encode_header(next, size_field));
        next += size as u64;
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_from_disk_keeps_to_the_rate_over_all_slaves() {
        let now = Instant::now();
        let mut budget = Budget::default();
        assert_eq!(budget.take(1 << 30, 0, now), None, "no bound");
        assert_eq!(budget.take(1_000, 100_000, now), None, "a burst");
        let until = budget.take(9_000, 100_000, now).unwrap();
        assert_eq!(until - now, Duration::from_millis(100));
        let later = now + Duration::from_secs(5);
        assert_eq!(budget.take(4_000, 100_000, later), None, "nothing is owed");
    }

    #[test]
    fn a_slave_in_sync_is_not_held_back_and_none_so_much_that_it_never_arrives() {
        let config = BrokerConfig {
            ha_catch_up_bytes_per_second: 1_000,
            ha_max_gap_not_in_sync: 500,
            ..BrokerConfig::default()
        };
        assert_eq!(catch_up_rate(&config, 500, 0), 0);
        assert_eq!(catch_up_rate(&config, 501, 0), 1_000);
        assert_eq!(catch_up_rate(&config, 501, 700), 1_400);
        let config = BrokerConfig {
            ha_catch_up_bytes_per_second: 0,
            ..config
        };
        assert_eq!(catch_up_rate(&config, 1 << 40, 700), 0);
    }
}
