//! Pulls that found nothing and wait for a message (upstream `PullRequestHoldService`).
//!
//! A pull waits under its queue; the dispatch of a batch wakes each queue once and only those pulls whose tags match. One
//! task ends the waits whose time is over. A connection that closes takes its pulls with it.
//!
//! Invariant: a pull is added under the lock that a wake-up takes after the queue's maximum moved, and the maximum is read
//! again under that lock, so no message slips between the read that found nothing and the wait.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::Instant;

use parking_lot::Mutex;
use remoting::Connection;
use smallvec::SmallVec;
use store::{Arrival, ConsumeQueue};
use tokio::sync::Notify;

use crate::processor::pull_message::PullJob;

/// Identity of a queue while anything holds it: its address.
type QueueKey = usize;

/// A pull that waits.
pub struct Held {
    /// Where the answer goes.
    pub connection: Arc<Connection>,
    /// What was asked.
    pub job: PullJob,
    deadline: Instant,
    id: u64,
}

#[derive(Default)]
struct Table {
    next_id: u64,
    queues: HashMap<QueueKey, Vec<Held>>,
    deadlines: BTreeMap<(Instant, u64), QueueKey>,
    connections: HashMap<u64, SmallVec<[(u64, QueueKey); 4]>>,
}

/// All pulls that wait.
#[derive(Default)]
pub struct PullRequestHoldService {
    table: Mutex<Table>,
    count: AtomicUsize,
    earlier: Notify,
}

fn key(queue: &Arc<ConsumeQueue>) -> QueueKey {
    Arc::as_ptr(queue) as usize
}

impl PullRequestHoldService {
    /// How many pulls wait.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets a pull wait until the deadline; gives it back when its queue has moved on meanwhile.
    pub fn hold(
        &self,
        connection: &Arc<Connection>,
        job: PullJob,
        deadline: Instant,
    ) -> Option<PullJob> {
        let mut table = self.table.lock();
        // Counted before the queue is looked at: a message that this look misses then finds the count, and waits for the lock.
        self.count.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if job.queue.max_offset() > job.offset || !connection.is_open() {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Some(job);
        }
        let id = table.next_id;
        table.next_id += 1;
        let queue = key(&job.queue);
        let first = table
            .deadlines
            .first_key_value()
            .is_none_or(|((at, _), _)| deadline < *at);
        table.deadlines.insert((deadline, id), queue);
        table
            .connections
            .entry(connection.id())
            .or_default()
            .push((id, queue));
        table.queues.entry(queue).or_default().push(Held {
            connection: Arc::clone(connection),
            job,
            deadline,
            id,
        });
        drop(table);
        if first {
            self.earlier.notify_one();
        }
        None
    }

    /// The pulls that a batch of new records wakes.
    pub fn arrived(&self, arrivals: &[Arrival]) -> Vec<Held> {
        let mut woken = Vec::new();
        // After the queues moved on; the counterpart stands in `hold`.
        fence(Ordering::SeqCst);
        if self.is_empty() {
            return woken;
        }
        let mut table = self.table.lock();
        for arrival in arrivals {
            let queue = key(&arrival.queue);
            let Some(waiting) = table.queues.get_mut(&queue) else {
                continue;
            };
            let before = woken.len();
            let mut at = 0;
            while at < waiting.len() {
                let job = &waiting[at].job;
                if job.offset <= arrival.queue_offset && job.filter.matches(arrival.tags_code) {
                    woken.push(waiting.swap_remove(at));
                } else {
                    at += 1;
                }
            }
            if waiting.is_empty() {
                table.queues.remove(&queue);
            }
            for held in &woken[before..] {
                table.forget(held);
            }
        }
        self.count.fetch_sub(woken.len(), Ordering::Relaxed);
        woken
    }

    /// Every pull that waits on this queue, for an offset reset or a deleted topic.
    pub fn wake_queue(&self, queue: &Arc<ConsumeQueue>) -> Vec<Held> {
        let mut table = self.table.lock();
        let woken = table.queues.remove(&key(queue)).unwrap_or_default();
        for held in &woken {
            table.forget(held);
        }
        self.count.fetch_sub(woken.len(), Ordering::Relaxed);
        woken
    }

    /// The pulls whose time is over.
    pub fn expired(&self, now: Instant) -> Vec<Held> {
        let mut expired = Vec::new();
        let mut table = self.table.lock();
        while let Some((&(at, id), &queue)) = table.deadlines.first_key_value() {
            if at > now {
                break;
            }
            table.deadlines.remove(&(at, id));
            if let Some(held) = table.take(queue, id) {
                table.forget(&held);
                expired.push(held);
            }
        }
        self.count.fetch_sub(expired.len(), Ordering::Relaxed);
        expired
    }

    /// Drops the pulls of a connection that closed.
    pub fn closed(&self, connection: u64) {
        if self.is_empty() {
            return;
        }
        let mut table = self.table.lock();
        let held = table.connections.remove(&connection).unwrap_or_default();
        let mut dropped = 0;
        for (id, queue) in held {
            if let Some(held) = table.take(queue, id) {
                table.deadlines.remove(&(held.deadline, id));
                dropped += 1;
            }
        }
        self.count.fetch_sub(dropped, Ordering::Relaxed);
    }

    /// Returns when the first deadline has passed, or earlier.
    pub async fn next_deadline(&self) {
        let first = self
            .table
            .lock()
            .deadlines
            .first_key_value()
            .map(|((at, _), _)| *at);
        match first {
            None => self.earlier.notified().await,
            Some(at) => {
                tokio::select! {
                    () = tokio::time::sleep_until(at.into()) => {}
                    () = self.earlier.notified() => {}
                }
            }
        }
    }
}

impl Table {
    fn take(&mut self, queue: QueueKey, id: u64) -> Option<Held> {
        let waiting = self.queues.get_mut(&queue)?;
        let at = waiting.iter().position(|h| h.id == id)?;
        let held = waiting.swap_remove(at);
        if waiting.is_empty() {
            self.queues.remove(&queue);
        }
        Some(held)
    }

    /// Removes a pull that left its queue from the other indexes.
    fn forget(&mut self, held: &Held) {
        self.deadlines.remove(&(held.deadline, held.id));
        let connection = held.connection.id();
        if let Some(ids) = self.connections.get_mut(&connection) {
            ids.retain(|(id, _)| *id != held.id);
            if ids.is_empty() {
                self.connections.remove(&connection);
            }
        }
    }
}
