//! Queue locks of ordered consumers (41, 42). A lock is a lease: it lives 60 s after its last renewal, is held by a
//! client id, and is not given up when the client's connection closes (upstream `RebalanceLockManager`).

use std::collections::{BTreeSet, HashMap};

use parking_lot::Mutex;
use remoting::protocol::body::MessageQueue;

/// Upstream `rocketmq.broker.rebalance.lockMaxLiveTime`; clients renew every 20 s.
pub const LOCK_MAX_LIVE_MS: i64 = 60_000;

#[derive(Debug, Default)]
pub struct RebalanceLockManager {
    groups: Mutex<HashMap<String, HashMap<MessageQueue, Lock>>>,
}

#[derive(Debug)]
struct Lock {
    client_id: String,
    renewed_at_ms: i64,
}

impl Lock {
    fn is_expired(&self, now_ms: i64) -> bool {
        now_ms - self.renewed_at_ms > LOCK_MAX_LIVE_MS
    }
}

impl RebalanceLockManager {
    /// Locks or renews what is free, expired or already the client's; answers the queues it now holds.
    pub fn try_lock_batch<'q>(
        &self,
        group: &str,
        queues: impl IntoIterator<Item = &'q MessageQueue>,
        client_id: &str,
        now_ms: i64,
    ) -> BTreeSet<MessageQueue> {
        let mut groups = self.groups.lock();
        let locks = match groups.get_mut(group) {
            Some(locks) => locks,
            None => groups.entry(group.to_owned()).or_default(),
        };
        let mut locked = BTreeSet::new();
        for queue in queues {
            match locks.get_mut(queue) {
                Some(lock) if lock.client_id == client_id => lock.renewed_at_ms = now_ms,
                Some(lock) if lock.is_expired(now_ms) => {
                    tracing::info!(group, queue = ?queue, from = lock.client_id, to = client_id, "an expired queue lock moves");
                    *lock = Lock {
                        client_id: client_id.to_owned(),
                        renewed_at_ms: now_ms,
                    };
                }
                Some(_) => continue,
                None => {
                    locks.insert(
                        queue.clone(),
                        Lock {
                            client_id: client_id.to_owned(),
                            renewed_at_ms: now_ms,
                        },
                    );
                }
            }
            locked.insert(queue.clone());
        }
        locked
    }

    /// Releases what the client holds among `queues`.
    pub fn unlock_batch<'q>(
        &self,
        group: &str,
        queues: impl IntoIterator<Item = &'q MessageQueue>,
        client_id: &str,
    ) {
        let mut groups = self.groups.lock();
        let Some(locks) = groups.get_mut(group) else {
            return;
        };
        for queue in queues {
            if locks
                .get(queue)
                .is_some_and(|lock| lock.client_id == client_id)
            {
                locks.remove(queue);
            }
        }
        if locks.is_empty() {
            groups.remove(group);
        }
    }

    /// Whether the group holds a lock that has not expired (5.x: such a group consumes in order).
    pub fn is_locked(&self, group: &str, now_ms: i64) -> bool {
        self.groups
            .lock()
            .get(group)
            .is_some_and(|locks| locks.values().any(|lock| !lock.is_expired(now_ms)))
    }

    /// Forgets locks that expired, so that groups that went away do not stay in memory.
    pub fn sweep(&self, now_ms: i64) {
        self.groups.lock().retain(|_, locks| {
            locks.retain(|_, lock| !lock.is_expired(now_ms));
            !locks.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(id: i32) -> MessageQueue {
        MessageQueue::new("T", "b", id)
    }

    #[test]
    fn a_second_client_gets_only_free_expired_or_released_queues() {
        let locks = RebalanceLockManager::default();
        assert_eq!(
            locks
                .try_lock_batch("G", &[queue(0), queue(1)], "c1", 0)
                .len(),
            2
        );
        assert_eq!(
            locks.try_lock_batch("G", &[queue(0), queue(2)], "c2", 1000),
            BTreeSet::from([queue(2)])
        );
        assert_eq!(
            locks.try_lock_batch("H", &[queue(0)], "c2", 1000),
            BTreeSet::from([queue(0)])
        );
        locks.unlock_batch("G", &[queue(0), queue(2)], "c1");
        assert_eq!(
            locks.try_lock_batch("G", &[queue(0), queue(1)], "c2", 2000),
            BTreeSet::from([queue(0)])
        );
        assert_eq!(
            locks.try_lock_batch("G", &[queue(1)], "c2", LOCK_MAX_LIVE_MS),
            BTreeSet::from([])
        );
        assert_eq!(
            locks.try_lock_batch("G", &[queue(1)], "c2", LOCK_MAX_LIVE_MS + 1),
            BTreeSet::from([queue(1)])
        );
    }

    #[test]
    fn renewal_extends_the_lease_and_the_sweep_forgets_the_rest() {
        let locks = RebalanceLockManager::default();
        locks.try_lock_batch("G", &[queue(0)], "c1", 0);
        locks.try_lock_batch("G", &[queue(0)], "c1", 50_000);
        assert!(locks.is_locked("G", 100_000));
        locks.sweep(100_000);
        assert!(locks.is_locked("G", 100_000));
        locks.sweep(110_001);
        assert!(!locks.is_locked("G", 0));
    }
}
