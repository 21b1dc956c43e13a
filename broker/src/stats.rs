//! Counters of the broker: per topic and group for VIEW_BROKER_STATS_DATA (315), in total for runtime info (28).
//!
//! The hot path touches atomics only, through handles ([`TopicStats`], [`GroupStats`]) that are looked up once and
//! kept. A background tick once a second takes the samples from which rates are computed; nothing here knows a thread.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use parking_lot::{Mutex, RwLock};
use remoting::protocol::body::{BrokerStatsData, BrokerStatsItem};

pub const TOPIC_PUT_NUMS: &str = "TOPIC_PUT_NUMS";
pub const TOPIC_PUT_SIZE: &str = "TOPIC_PUT_SIZE";
pub const GROUP_GET_NUMS: &str = "GROUP_GET_NUMS";
pub const GROUP_GET_SIZE: &str = "GROUP_GET_SIZE";
pub const SNDBCK_PUT_NUMS: &str = "SNDBCK_PUT_NUMS";
pub const BROKER_PUT_NUMS: &str = "BROKER_PUT_NUMS";
pub const BROKER_GET_NUMS: &str = "BROKER_GET_NUMS";

/// Samples kept per window, as upstream `StatsItem`: a minute in steps of 10 s, an hour of 10 min, a day of 1 h.
const MINUTE: Window = Window {
    step_ms: 10_000,
    samples: 7,
};
const HOUR: Window = Window {
    step_ms: 600_000,
    samples: 7,
};
const DAY: Window = Window {
    step_ms: 3_600_000,
    samples: 25,
};

/// One sample a second, for rates over up to ten minutes (upstream `StoreStatsService.MAX_RECORDS_OF_SAMPLING`).
const TOTAL_SAMPLES: usize = 601;

/// Items without a change for this long are forgotten (upstream `autoDeleteUnusedStats`, which uses the day window).
const UNUSED_AFTER_MS: i64 = 24 * 3_600_000;

struct Window {
    step_ms: i64,
    samples: usize,
}

/// A sum and the number of additions to it.
#[derive(Debug, Default)]
pub struct StatsItem {
    value: AtomicU64,
    times: AtomicU64,
    history: Mutex<History>,
}

#[derive(Debug, Default)]
struct History {
    minute: VecDeque<Snapshot>,
    hour: VecDeque<Snapshot>,
    day: VecDeque<Snapshot>,
    changed_at_ms: i64,
    last_value: u64,
}

#[derive(Debug, Clone, Copy)]
struct Snapshot {
    at_ms: i64,
    value: u64,
    times: u64,
}

impl StatsItem {
    pub fn add(&self, value: u64, times: u64) {
        self.value.fetch_add(value, Relaxed);
        self.times.fetch_add(times, Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.value.load(Relaxed)
    }

    /// Takes the samples that are due; answers false when the item has been idle for a day.
    fn sample(&self, now_ms: i64) -> bool {
        let now = Snapshot {
            at_ms: now_ms,
            value: self.value.load(Relaxed),
            times: self.times.load(Relaxed),
        };
        let mut history = self.history.lock();
        if now.value != history.last_value || history.changed_at_ms == 0 {
            history.last_value = now.value;
            history.changed_at_ms = now_ms;
        }
        let History {
            minute,
            hour,
            day,
            changed_at_ms,
            ..
        } = &mut *history;
        for (list, window) in [(minute, MINUTE), (hour, HOUR), (day, DAY)] {
            window.push(list, now);
        }
        now_ms - *changed_at_ms < UNUSED_AFTER_MS
    }

    fn rate(&self, window: impl FnOnce(&History) -> &VecDeque<Snapshot>) -> BrokerStatsItem {
        let history = self.history.lock();
        let list = window(&history);
        let (Some(first), Some(last)) = (list.front(), list.back()) else {
            return BrokerStatsItem::default();
        };
        let sum = last.value.wrapping_sub(first.value);
        let times = last.times.wrapping_sub(first.times);
        let elapsed_ms = last.at_ms - first.at_ms;
        BrokerStatsItem {
            sum: sum as i64,
            tps: if elapsed_ms > 0 {
                sum as f64 * 1000.0 / elapsed_ms as f64
            } else {
                0.0
            },
            avgpt: if times > 0 {
                sum as f64 / times as f64
            } else {
                0.0
            },
        }
    }

    /// Rate over the last minute.
    pub fn tps(&self) -> f64 {
        self.rate(|history| &history.minute).tps
    }

    pub fn data(&self) -> BrokerStatsData {
        BrokerStatsData {
            stats_minute: self.rate(|history| &history.minute),
            stats_hour: self.rate(|history| &history.hour),
            stats_day: self.rate(|history| &history.day),
        }
    }
}

impl Window {
    /// Appends when a step has passed. A fresh list starts with a zero one step earlier, as upstream, so that the
    /// first samples count.
    fn push(&self, list: &mut VecDeque<Snapshot>, now: Snapshot) {
        match list.back() {
            Some(last) if now.at_ms - last.at_ms < self.step_ms => return,
            Some(_) => {}
            None => list.push_back(Snapshot {
                at_ms: now.at_ms - self.step_ms,
                value: 0,
                times: 0,
            }),
        }
        list.push_back(now);
        if list.len() > self.samples {
            list.pop_front();
        }
    }
}

/// Handle of a topic's counters.
#[derive(Debug, Default, Clone)]
pub struct TopicStats {
    put_nums: Arc<StatsItem>,
    put_size: Arc<StatsItem>,
}

/// Handle of the counters of a group on a topic.
#[derive(Debug, Default, Clone)]
pub struct GroupStats {
    get_nums: Arc<StatsItem>,
    get_size: Arc<StatsItem>,
}

type ItemsByKey = HashMap<Box<str>, Arc<StatsItem>>;

#[derive(Debug)]
pub struct BrokerStatsManager {
    items: RwLock<HashMap<&'static str, ItemsByKey>>,
    broker_put: Arc<StatsItem>,
    broker_get: Arc<StatsItem>,
    totals: Totals,
    samples: Mutex<VecDeque<TotalsSnapshot>>,
    mornings: Mutex<Mornings>,
    items_sampled_at_ms: AtomicI64,
}

/// Counters since the start, for runtime info.
#[derive(Debug, Default)]
pub struct Totals {
    put_times: AtomicU64,
    put_size: AtomicU64,
    put_failed: AtomicU64,
    get_found: AtomicU64,
    get_miss: AtomicU64,
    get_transferred: AtomicU64,
    get_time_max_ms: AtomicU64,
}

#[derive(Debug, Clone, Copy, Default)]
struct TotalsSnapshot {
    at_ms: i64,
    put: u64,
    found: u64,
    miss: u64,
    transferred: u64,
}

/// Totals at the last two midnights (upstream `BrokerStats`).
#[derive(Debug, Clone, Copy, Default)]
pub struct Mornings {
    day: i64,
    pub put_yesterday: u64,
    pub put_today: u64,
    pub get_yesterday: u64,
    pub get_today: u64,
}

/// Rates over 10, 60 and 600 s.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tps(pub [f64; 3]);

impl std::fmt::Display for Tps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [ten, minute, ten_minutes] = self.0;
        write!(f, "{ten:?} {minute:?} {ten_minutes:?}")
    }
}

impl BrokerStatsManager {
    /// `cluster` keys the broker-wide items, as in the original.
    pub fn new(cluster: &str) -> Self {
        let manager = Self {
            items: RwLock::default(),
            broker_put: Arc::default(),
            broker_get: Arc::default(),
            totals: Totals::default(),
            samples: Mutex::default(),
            mornings: Mutex::default(),
            items_sampled_at_ms: AtomicI64::new(0),
        };
        {
            let mut items = manager.items.write();
            items
                .entry(BROKER_PUT_NUMS)
                .or_default()
                .insert(cluster.into(), Arc::clone(&manager.broker_put));
            items
                .entry(BROKER_GET_NUMS)
                .or_default()
                .insert(cluster.into(), Arc::clone(&manager.broker_get));
        }
        manager
    }

    /// The handle of a topic. Look it up once and keep it: the counters appear to 315 from now on.
    pub fn topic(&self, topic: &str) -> TopicStats {
        TopicStats {
            put_nums: self.item(TOPIC_PUT_NUMS, topic),
            put_size: self.item(TOPIC_PUT_SIZE, topic),
        }
    }

    /// The handle of a group on a topic, to be kept as well.
    pub fn group(&self, topic: &str, group: &str) -> GroupStats {
        let key = format!("{topic}@{group}");
        GroupStats {
            get_nums: self.item(GROUP_GET_NUMS, &key),
            get_size: self.item(GROUP_GET_SIZE, &key),
        }
    }

    /// `messages` were stored in one request.
    pub fn put(&self, topic: &TopicStats, messages: u64, bytes: u64) {
        topic.put_nums.add(messages, 1);
        topic.put_size.add(bytes, 1);
        self.broker_put.add(messages, 1);
        self.totals.put_times.fetch_add(messages, Relaxed);
        self.totals.put_size.fetch_add(bytes, Relaxed);
    }

    /// A put was refused or failed.
    pub fn put_failed(&self) {
        self.totals.put_failed.fetch_add(1, Relaxed);
    }

    /// A pull was answered with `messages`.
    pub fn get(&self, group: &GroupStats, messages: u64, bytes: u64) {
        group.get_nums.add(messages, 1);
        group.get_size.add(bytes, 1);
        self.broker_get.add(messages, 1);
        self.totals.get_found.fetch_add(1, Relaxed);
        self.totals.get_transferred.fetch_add(messages, Relaxed);
    }

    /// A pull found nothing.
    pub fn get_missed(&self) {
        self.totals.get_miss.fetch_add(1, Relaxed);
    }

    /// How long reading from the store took.
    pub fn get_time(&self, millis: u64) {
        self.totals.get_time_max_ms.fetch_max(millis, Relaxed);
    }

    /// A message came back through 36.
    pub fn sent_back(&self, topic: &str, group: &str) {
        self.item(SNDBCK_PUT_NUMS, &format!("{topic}@{group}"))
            .add(1, 1);
    }

    /// Rate of a group on a topic over the last minute (208).
    pub fn group_tps(&self, topic: &str, group: &str) -> f64 {
        self.existing(GROUP_GET_NUMS, &format!("{topic}@{group}"))
            .map_or(0.0, |item| item.tps())
    }

    /// Rate of a topic over the last minute (202).
    pub fn topic_tps(&self, topic: &str) -> f64 {
        self.existing(TOPIC_PUT_NUMS, topic)
            .map_or(0.0, |item| item.tps())
    }

    /// The answer of 315; `None` when there is no such item.
    pub fn data(&self, name: &str, key: &str) -> Option<BrokerStatsData> {
        self.existing(name, key).map(|item| item.data())
    }

    pub fn forget_topic(&self, topic: &str) {
        let mut items = self.items.write();
        for name in [TOPIC_PUT_NUMS, TOPIC_PUT_SIZE] {
            if let Some(keys) = items.get_mut(name) {
                keys.remove(topic);
            }
        }
        for name in [GROUP_GET_NUMS, GROUP_GET_SIZE, SNDBCK_PUT_NUMS] {
            if let Some(keys) = items.get_mut(name) {
                keys.retain(|key, _| {
                    key.split_once('@')
                        .is_none_or(|(of_topic, _)| of_topic != topic)
                });
            }
        }
    }

    pub fn forget_group(&self, group: &str) {
        let mut items = self.items.write();
        for name in [GROUP_GET_NUMS, GROUP_GET_SIZE, SNDBCK_PUT_NUMS] {
            if let Some(keys) = items.get_mut(name) {
                keys.retain(|key, _| {
                    key.split_once('@')
                        .is_none_or(|(_, of_group)| of_group != group)
                });
            }
        }
    }

    /// To be called once a second. `day` is the number of the current day in local time.
    pub fn tick(&self, now_ms: i64, day: i64) {
        self.sample_totals(now_ms);
        self.watch_midnight(day);
        if now_ms - self.items_sampled_at_ms.load(Relaxed) < MINUTE.step_ms {
            return;
        }
        self.items_sampled_at_ms.store(now_ms, Relaxed);
        let all: Vec<(&'static str, Box<str>, Arc<StatsItem>)> = {
            let items = self.items.read();
            items
                .iter()
                .flat_map(|(name, keys)| {
                    keys.iter()
                        .map(|(key, item)| (*name, key.clone(), Arc::clone(item)))
                })
                .collect()
        };
        for (name, key, item) in all {
            let used = item.sample(now_ms);
            // A handle kept elsewhere would count into an item nobody sees: forget only what nobody holds.
            if !used && Arc::strong_count(&item) == 2 {
                self.items
                    .write()
                    .get_mut(name)
                    .and_then(|keys| keys.remove(&key));
            }
        }
    }

    fn sample_totals(&self, now_ms: i64) {
        let now = TotalsSnapshot {
            at_ms: now_ms,
            put: self.totals.put_times.load(Relaxed),
            found: self.totals.get_found.load(Relaxed),
            miss: self.totals.get_miss.load(Relaxed),
            transferred: self.totals.get_transferred.load(Relaxed),
        };
        let mut samples = self.samples.lock();
        samples.push_back(now);
        if samples.len() > TOTAL_SAMPLES {
            samples.pop_front();
        }
    }

    fn watch_midnight(&self, day: i64) {
        let mut mornings = self.mornings.lock();
        if mornings.day != 0 && mornings.day != day {
            mornings.put_yesterday = mornings.put_today;
            mornings.get_yesterday = mornings.get_today;
            mornings.put_today = self.put_total();
            mornings.get_today = self.get_total();
        }
        mornings.day = day;
    }

    fn tps(&self, of: impl Fn(&TotalsSnapshot) -> u64) -> Tps {
        let samples = self.samples.lock();
        let Some(last) = samples.back() else {
            return Tps::default();
        };
        Tps([10, 60, 600].map(|seconds| {
            let first = samples
                .iter()
                .rev()
                .nth(seconds)
                .or_else(|| samples.front())
                .unwrap_or(last);
            let elapsed_ms = last.at_ms - first.at_ms;
            if elapsed_ms > 0 {
                (of(last) - of(first)) as f64 * 1000.0 / elapsed_ms as f64
            } else {
                0.0
            }
        }))
    }

    pub fn put_tps(&self) -> Tps {
        self.tps(|sample| sample.put)
    }

    pub fn get_found_tps(&self) -> Tps {
        self.tps(|sample| sample.found)
    }

    pub fn get_miss_tps(&self) -> Tps {
        self.tps(|sample| sample.miss)
    }

    pub fn get_total_tps(&self) -> Tps {
        self.tps(|sample| sample.found + sample.miss)
    }

    pub fn get_transferred_tps(&self) -> Tps {
        self.tps(|sample| sample.transferred)
    }

    /// Messages stored since the start.
    pub fn put_total(&self) -> u64 {
        self.totals.put_times.load(Relaxed)
    }

    /// Bytes stored since the start.
    pub fn put_size_total(&self) -> u64 {
        self.totals.put_size.load(Relaxed)
    }

    pub fn put_failed_total(&self) -> u64 {
        self.totals.put_failed.load(Relaxed)
    }

    /// Messages handed to consumers since the start.
    pub fn get_total(&self) -> u64 {
        self.totals.get_transferred.load(Relaxed)
    }

    pub fn get_time_max_ms(&self) -> u64 {
        self.totals.get_time_max_ms.load(Relaxed)
    }

    pub fn mornings(&self) -> Mornings {
        *self.mornings.lock()
    }

    fn existing(&self, name: &str, key: &str) -> Option<Arc<StatsItem>> {
        self.items.read().get(name)?.get(key).cloned()
    }

    fn item(&self, name: &'static str, key: &str) -> Arc<StatsItem> {
        if let Some(item) = self.existing(name, key) {
            return item;
        }
        Arc::clone(
            self.items
                .write()
                .entry(name)
                .or_default()
                .entry(key.into())
                .or_default(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: i64 = 1_700_000_000_000;

    #[test]
    fn windows_of_a_minute_and_more() {
        let stats = BrokerStatsManager::new("C");
        let topic = stats.topic("T");
        stats.tick(BASE, 1);
        for second in 1..=60 {
            stats.put(&topic, 10, 1000);
            stats.tick(BASE + second * 1000, 1);
        }
        let data = stats.data(TOPIC_PUT_NUMS, "T").unwrap();
        assert_eq!(
            (
                data.stats_minute.sum,
                data.stats_minute.tps,
                data.stats_minute.avgpt
            ),
            (600, 10.0, 10.0)
        );
        assert_eq!(data.stats_hour.sum, 0);
        assert_eq!(
            stats.data(TOPIC_PUT_SIZE, "T").unwrap().stats_minute.sum,
            60_000
        );
        assert_eq!(
            stats.data(BROKER_PUT_NUMS, "C").unwrap().stats_minute.sum,
            600
        );
        assert!(stats.data(TOPIC_PUT_NUMS, "U").is_none());
        assert!(stats.data("NONSENSE", "T").is_none());
        for second in 61..=600 {
            stats.tick(BASE + second * 1000, 1);
        }
        let data = stats.data(TOPIC_PUT_NUMS, "T").unwrap();
        assert_eq!((data.stats_minute.sum, data.stats_hour.sum), (0, 600));
    }

    #[test]
    fn totals_over_ten_seconds_a_minute_and_ten_minutes() {
        let stats = BrokerStatsManager::new("C");
        let topic = stats.topic("T");
        stats.tick(0, 1);
        for second in 1..=120 {
            stats.put(&topic, if second > 110 { 5 } else { 1 }, 1);
            stats.tick(second * 1000, 1);
        }
        assert_eq!(stats.put_tps(), Tps([5.0, 100.0 / 60.0, 160.0 / 120.0]));
        assert_eq!(Tps([0.0, 1.5, 2.0]).to_string(), "0.0 1.5 2.0");
    }

    #[test]
    fn midnight_moves_the_morning_totals() {
        let stats = BrokerStatsManager::new("C");
        let topic = stats.topic("T");
        stats.tick(0, 1);
        stats.put(&topic, 3, 1);
        stats.tick(1000, 2);
        stats.put(&topic, 4, 1);
        stats.tick(2000, 3);
        let mornings = stats.mornings();
        assert_eq!(
            (
                mornings.put_yesterday,
                mornings.put_today,
                stats.put_total()
            ),
            (3, 7, 7)
        );
    }

    #[test]
    fn idle_items_are_forgotten_unless_a_handle_is_kept() {
        let stats = BrokerStatsManager::new("C");
        let kept = stats.topic("kept");
        stats.topic("dropped");
        stats.tick(BASE, 1);
        stats.tick(BASE + UNUSED_AFTER_MS, 2);
        assert!(stats.data(TOPIC_PUT_NUMS, "dropped").is_none());
        stats.put(&kept, 1, 1);
        assert!(stats.data(TOPIC_PUT_NUMS, "kept").is_some());
        stats.forget_topic("kept");
        assert!(stats.data(TOPIC_PUT_NUMS, "kept").is_none());
    }
}
