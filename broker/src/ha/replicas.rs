//! The slaves of a master: what each has, and up to where enough of them have everything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::config::BrokerConfig;

/// What a synchronous acknowledgement asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncRule {
    /// Copies, the master's own included.
    pub replicas: usize,
    /// Copies that must be in sync.
    pub least: usize,
    /// Every slave in sync must have it.
    pub all: bool,
    /// Ask for no more copies than are in sync, down to `least`.
    pub auto: bool,
    /// Bytes behind beyond which a slave is not in sync.
    pub max_gap: u64,
}

impl SyncRule {
    /// The rule of these keys. 4.9's meaning is the least: one slave has it.
    pub fn new(config: &BrokerConfig) -> Self {
        let count = |n: i32| usize::try_from(n).unwrap_or(0).max(2);
        Self {
            replicas: count(config.in_sync_replicas.max(config.min_in_sync_replicas)),
            least: count(config.min_in_sync_replicas),
            all: config.all_ack_in_sync_state_set,
            auto: config.enable_auto_in_sync_replicas,
            max_gap: u64::try_from(config.ha_max_gap_not_in_sync).unwrap_or(0),
        }
    }
}

/// What the reports of all slaves amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Slaves that are connected and not too far behind.
    pub in_sync: usize,
    /// Up to here enough slaves have everything; `None` when too few are connected.
    pub reached: Option<u64>,
}

/// `acked`: what each connected slave reported; `end`: the end of the master's log.
pub fn judge(acked: &mut [u64], end: u64, rule: &SyncRule) -> Verdict {
    acked.sort_unstable_by(|a, b| b.cmp(a));
    let in_sync = acked
        .iter()
        .take_while(|acked| end.saturating_sub(**acked) <= rule.max_gap)
        .count();
    let mut slaves = rule.replicas - 1;
    if rule.auto {
        slaves = slaves.min(in_sync).max(rule.least - 1);
    }
    if rule.all {
        slaves = in_sync.max(rule.least - 1);
    }
    Verdict {
        in_sync,
        reached: acked.get(slaves - 1).copied(),
    }
}

/// One connected slave.
#[derive(Debug)]
pub struct Replica {
    /// Its end of the connection.
    pub peer: SocketAddr,
    /// End of its log, as it last reported.
    pub acked: AtomicU64,
    /// When it did, ms since 1970.
    pub acked_at_ms: AtomicI64,
    /// Where the next chunk to it begins.
    pub sent: AtomicU64,
    /// Bytes of the log sent to it.
    pub transferred: AtomicU64,
    /// The same in the last whole second.
    pub per_second: AtomicU64,
}

impl Replica {
    /// A slave that begins here.
    pub fn new(peer: SocketAddr, position: u64, now_ms: i64) -> Self {
        Self {
            peer,
            acked: AtomicU64::new(position),
            acked_at_ms: AtomicI64::new(now_ms),
            sent: AtomicU64::new(position),
            transferred: AtomicU64::new(0),
            per_second: AtomicU64::new(0),
        }
    }
}

/// No slave counts.
const NONE: i64 = -1;

/// All connected slaves.
#[derive(Debug)]
pub struct Replicas {
    list: Mutex<Vec<Arc<Replica>>>,
    /// Highest position that enough slaves ever reported together.
    mark: AtomicU64,
    /// The same as of now, or [`NONE`].
    current: AtomicI64,
}

impl Default for Replicas {
    fn default() -> Self {
        Self {
            list: Mutex::default(),
            mark: AtomicU64::new(0),
            current: AtomicI64::new(NONE),
        }
    }
}

impl Replicas {
    pub(super) fn add(&self, replica: Arc<Replica>) {
        self.list.lock().push(replica);
    }

    pub(super) fn remove(&self, replica: &Arc<Replica>) {
        self.list.lock().retain(|one| !Arc::ptr_eq(one, replica));
    }

    /// All connected slaves.
    pub fn list(&self) -> Vec<Arc<Replica>> {
        self.list.lock().clone()
    }

    /// Takes the reports together again; true when more is replicated than before.
    pub(super) fn judge(&self, end: u64, rule: &SyncRule) -> bool {
        let list = self.list.lock();
        let mut acked: smallvec::SmallVec<[u64; 8]> = list
            .iter()
            .map(|replica| replica.acked.load(Ordering::Relaxed))
            .collect();
        let verdict = judge(&mut acked, end, rule);
        let current = verdict
            .reached
            .map_or(NONE, |p| i64::try_from(p).unwrap_or(i64::MAX));
        self.current.store(current, Ordering::Release);
        match verdict.reached {
            Some(reached) => self.mark.fetch_max(reached, Ordering::AcqRel) < reached,
            None => false,
        }
    }

    /// Up to here enough slaves have everything: what lies below stays acknowledged whatever becomes of them.
    pub fn mark(&self) -> u64 {
        self.mark.load(Ordering::Acquire)
    }

    /// Whether enough slaves are there and near enough to wait for.
    pub fn available(&self, end: u64, max_gap: u64) -> bool {
        let current = self.current.load(Ordering::Acquire);
        u64::try_from(current).is_ok_and(|reached| end.saturating_sub(reached) <= max_gap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> SyncRule {
        let mut config = BrokerConfig::default();
        config
            .apply_file(std::path::Path::new("x"), text.as_bytes())
            .unwrap();
        SyncRule::new(&config)
    }

    fn verdict(acked: &[u64], text: &str) -> (usize, Option<u64>) {
        let text = format!("haMaxGapNotInSync=100\n{text}");
        let verdict = judge(&mut acked.to_vec(), 1_000, &rule(&text));
        (verdict.in_sync, verdict.reached)
    }

    #[test]
    fn one_slave_is_waited_for_even_when_5x_would_wait_for_none() {
        assert_eq!(verdict(&[], ""), (0, None));
        assert_eq!(verdict(&[950], ""), (1, Some(950)));
        assert_eq!(verdict(&[10, 980, 950], ""), (2, Some(980)));
        assert_eq!(verdict(&[10], "inSyncReplicas=1\n"), (0, Some(10)));
    }

    #[test]
    fn more_copies_are_waited_for_when_asked() {
        assert_eq!(verdict(&[950], "inSyncReplicas=3\n"), (1, None));
        assert_eq!(verdict(&[950, 990], "inSyncReplicas=3\n"), (2, Some(950)));
        assert_eq!(
            verdict(&[950, 990], "inSyncReplicas=2\nminInSyncReplicas=3\n"),
            (2, Some(950))
        );
    }

    #[test]
    fn the_number_of_copies_follows_what_is_in_sync() {
        let auto = "inSyncReplicas=3\nenableAutoInSyncReplicas=true\n";
        assert_eq!(verdict(&[990, 970], auto), (2, Some(970)));
        assert_eq!(verdict(&[990, 100], auto), (1, Some(990)));
        assert_eq!(verdict(&[100], auto), (0, Some(100)));
        assert_eq!(verdict(&[], auto), (0, None));
        let all = "allAckInSyncStateSet=true\n";
        assert_eq!(verdict(&[990, 970, 940], all), (3, Some(940)));
        assert_eq!(verdict(&[990, 970, 100], all), (2, Some(970)));
    }

    #[test]
    fn what_was_replicated_stays_so_and_what_is_there_now_decides_whether_to_wait() {
        let replicas = Replicas::default();
        let peer = "10.0.0.1:1".parse().unwrap();
        let one = Arc::new(Replica::new(peer, 500, 0));
        let rule = rule("haMaxGapNotInSync=100\n");
        assert!(!replicas.judge(500, &rule));
        assert!(!replicas.available(500, 100));
        replicas.add(Arc::clone(&one));
        assert!(replicas.judge(500, &rule));
        assert_eq!(replicas.mark(), 500);
        assert!(replicas.available(600, 100));
        assert!(!replicas.available(601, 100));
        replicas.remove(&one);
        assert!(!replicas.judge(600, &rule));
        assert_eq!(replicas.mark(), 500);
        assert!(!replicas.available(500, 100));
    }
}
