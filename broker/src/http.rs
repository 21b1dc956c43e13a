//! `/livez`, `/readyz`, `/startupz`, `/metrics`: what they say. The server itself is [`remoting::http`], on a thread of its own.
//!
//! Counters on the send path are plain atomics; everything else is read from its owner when somebody asks.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::broker::{Broker, Phase};

/// Upper bounds of the latency histogram, in microseconds; a last bucket takes the rest. The bounds
/// of upstream's classes (28, `putMessageDistributeTime`) are among them.
const LATENCY_BOUNDS_US: [u64; 19] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000, 10_000_000,
];

/// A histogram of durations: one atomic add a value.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
    max_us: AtomicU64,
}

impl Latency {
    /// Counts one value.
    pub fn record(&self, value: Duration) {
        let us = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US
            .iter()
            .position(|bound| us <= *bound)
            .unwrap_or(LATENCY_BOUNDS_US.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
        if us > self.max_us.load(Ordering::Relaxed) {
            self.max_us.fetch_max(us, Ordering::Relaxed);
        }
    }

    /// The longest.
    pub fn max_ms(&self) -> u64 {
        self.max_us.load(Ordering::Relaxed) / 1000
    }

    /// How many were above `from` and at most `to` microseconds, by the bounds of the buckets.
    pub fn count_between(&self, from: u64, to: u64) -> u64 {
        let bounds = LATENCY_BOUNDS_US.iter().copied().chain([u64::MAX]);
        let inside = bounds
            .zip(&self.buckets)
            .filter(|(bound, _)| *bound > from && *bound <= to);
        inside.map(|(_, count)| count.load(Ordering::Relaxed)).sum()
    }

    /// The bound in milliseconds within which `share` of the values lie; 0 without values.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let total = self.count_between(0, u64::MAX) as f64;
        let mut seen = 0;
        for (bound, count) in LATENCY_BOUNDS_US.iter().zip(&self.buckets) {
            seen += count.load(Ordering::Relaxed);
            if total > 0.0 && seen as f64 >= total * share {
                return *bound as f64 / 1000.0;
            }
        }
        self.max_ms() as f64
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        header(out, name, help, "histogram");
        let mut count = 0;
        for (bucket, bound) in self.buckets.iter().zip(LATENCY_BOUNDS_US) {
            count += bucket.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "{name}_bucket{{le=\"{}\"}} {count}",
                bound as f64 / 1e6
            );
        }
        count += self.buckets[LATENCY_BOUNDS_US.len()].load(Ordering::Relaxed);
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(
            out,
            "{name}_sum {}",
            self.sum_us.load(Ordering::Relaxed) as f64 / 1e6
        );
        let _ = writeln!(out, "{name}_count {count}");
    }
}

/// What only `/metrics` shows.
#[derive(Debug, Default)]
pub struct Metrics {
    /// From the read of a send's request to its answer.
    pub put_latency: Latency,
}

/// What the probes answer, from before the store opens until after it closed.
#[derive(Default)]
pub struct Status {
    broker: OnceLock<Weak<Broker>>,
    server: Mutex<Option<remoting::http::Server>>,
}

impl Status {
    pub(crate) fn keep(&self, server: Option<remoting::http::Server>) {
        *self.server.lock() = server;
    }

    pub(crate) fn attach(&self, broker: &Arc<Broker>) {
        let _ = self.broker.set(Arc::downgrade(broker));
    }

    pub(crate) fn stop(&self) {
        drop(self.server.lock().take());
    }

    fn broker(&self) -> Option<Arc<Broker>> {
        self.broker.get()?.upgrade()
    }
}

impl remoting::http::Health for Status {
    fn live(&self) -> Result<(), String> {
        match self.broker().and_then(|b| b.store.poisoned()) {
            // Only a restart, which recovers from disk, leads out of this.
            Some(reason) => Err(format!("the store failed: {reason}")),
            None => Ok(()),
        }
    }

    fn started(&self) -> Result<(), String> {
        match self.broker() {
            Some(broker) if broker.phase() != Phase::Starting => Ok(()),
            _ => Err("the store is being opened".to_owned()),
        }
    }

    fn ready(&self) -> Result<(), String> {
        self.started()?;
        let Some(broker) = self.broker() else {
            return Err("stopped".to_owned());
        };
        if broker.phase() != Phase::Running {
            return Err("shutting down".to_owned());
        }
        broker.store.writable().map_err(|e| e.to_string())?;
        broker.ha.ready(&broker)?;
        let registration = broker.registrar.state();
        if registration.registered() > 0 {
            return Ok(());
        }
        if broker.settings.raw.namesrv_addr.is_empty() {
            return Err("namesrvAddr is empty, so no client can find this broker".to_owned());
        }
        match registration.last_error() {
            Some(error) => Err(format!("not registered with any name server: {error}")),
            None => Err("not registered with any name server yet".to_owned()),
        }
    }

    fn metrics(&self) -> String {
        self.broker()
            .map_or_else(|| "# EOF\n".to_owned(), |b| render(&b))
    }
}

/// OpenMetrics names a counter without the `_total` that its value carries.
pub(crate) fn header(out: &mut String, name: &str, help: &str, kind: &str) {
    let name = name.strip_suffix("_total").unwrap_or(name);
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

pub(crate) fn value(
    out: &mut String,
    name: &str,
    help: &str,
    kind: &str,
    value: impl std::fmt::Display,
) {
    header(out, name, help, kind);
    let _ = writeln!(out, "{name} {value}");
}

/// A label's value, escaped as the exposition format asks.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn render(broker: &Broker) -> String {
    let mut out = String::with_capacity(8 * 1024);
    let settings = &broker.settings;
    header(
        &mut out,
        "rocketmq_broker_info",
        "who this broker is, and the hash of the file it started with",
        "gauge",
    );
    let _ = writeln!(
        out,
        "rocketmq_broker_info{{cluster=\"{}\",broker=\"{}\",id=\"{}\",address=\"{}\",config_hash=\"{}\",version=\"{}\"}} 1",
        label(&settings.raw.broker_cluster_name),
        label(&settings.raw.broker_name),
        broker.role.now().broker_id,
        label(broker.address()),
        label(&settings.config_hash),
        crate::cli::version(),
    );
    let stats = &broker.stats;
    value(
        &mut out,
        "rocketmq_broker_put_messages_total",
        "messages stored",
        "counter",
        stats.put_total(),
    );
    value(
        &mut out,
        "rocketmq_broker_put_bytes_total",
        "bytes of records stored",
        "counter",
        stats.put_size_total(),
    );
    value(
        &mut out,
        "rocketmq_broker_put_failed_total",
        "sends refused or failed",
        "counter",
        stats.put_failed_total(),
    );
    value(
        &mut out,
        "rocketmq_broker_get_messages_total",
        "messages given to consumers",
        "counter",
        stats.get_total(),
    );
    broker.metrics.put_latency.write(
        &mut out,
        "rocketmq_broker_put_latency_seconds",
        "from the read of a send to its answer",
    );
    value(
        &mut out,
        "rocketmq_broker_connections",
        "open connections",
        "gauge",
        broker.open_connections(),
    );
    value(
        &mut out,
        "rocketmq_broker_long_polls",
        "pulls that wait for messages",
        "gauge",
        broker.held.len(),
    );
    value(
        &mut out,
        "rocketmq_broker_waiting_sends",
        "sends that wait for the log",
        "gauge",
        broker.acks.waiting(),
    );
    value(
        &mut out,
        "rocketmq_broker_in_flight_bytes",
        "bytes of sends that wait for the log",
        "gauge",
        broker.acks.bytes_in_flight(),
    );
    value(
        &mut out,
        "rocketmq_broker_topics",
        "topics",
        "gauge",
        broker.topics.table().len(),
    );
    value(
        &mut out,
        "rocketmq_broker_registered_name_servers",
        "name servers that took the last registration",
        "gauge",
        broker.registrar.state().registered(),
    );
    value(
        &mut out,
        "rocketmq_broker_known_name_servers",
        "name servers known by address",
        "gauge",
        broker.registrar.state().known(),
    );
    let marks = broker.store.watermarks();
    header(
        &mut out,
        "rocketmq_store_position",
        "positions in the log, in bytes",
        "gauge",
    );
    for (name, position) in [
        ("min", broker.store.min_phy_offset()),
        ("appended", marks.appended),
        ("written", marks.written),
        ("flushed", marks.flushed),
        ("confirmed", marks.confirm),
    ] {
        let _ = writeln!(out, "rocketmq_store_position{{mark=\"{name}\"}} {position}");
    }
    let figures = broker.store.runtime_figures();
    value(
        &mut out,
        "rocketmq_store_disk_ratio",
        "share of the disk of the log that is in use",
        "gauge",
        figures.commit_log_disk_ratio,
    );
    value(
        &mut out,
        "rocketmq_store_dispatch_behind_bytes",
        "bytes written but not in their queues yet",
        "gauge",
        figures.dispatch_behind_bytes,
    );
    value(
        &mut out,
        "rocketmq_store_unflushed_bytes",
        "bytes written but not on disk yet",
        "gauge",
        figures.unflushed_bytes,
    );
    value(
        &mut out,
        "rocketmq_store_queues",
        "queues in memory",
        "gauge",
        figures.queues,
    );
    value(
        &mut out,
        "rocketmq_store_writable",
        "1 when the store takes messages",
        "gauge",
        u8::from(broker.store.writable().is_ok()),
    );
    value(
        &mut out,
        "rocketmq_store_poisoned",
        "1 after a failed write or fdatasync, until the restart",
        "gauge",
        u8::from(broker.store.poisoned().is_some()),
    );
    broker.ha.write_metrics(&mut out, broker);
    process(&mut out, broker.boot_timestamp);
    out.push_str("# EOF\n");
    out
}

/// The usual figures of a process, from `/proc`; none where there is no such thing.
fn process(out: &mut String, boot_timestamp: i64) {
    value(
        out,
        "process_start_time_seconds",
        "when the process began to serve",
        "gauge",
        boot_timestamp as f64 / 1e3,
    );
    let usage = std::fs::read_to_string("/proc/self/statm").ok();
    let page = rustix::param::page_size() as u64;
    let resident = usage
        .as_deref()
        .and_then(|s| s.split(' ').nth(1)?.parse::<u64>().ok());
    if let Some(pages) = resident {
        value(
            out,
            "process_resident_memory_bytes",
            "resident memory",
            "gauge",
            pages * page,
        );
    }
    // utime and stime are the 14th and 15th field, counted after the name, which may hold blanks.
    let stat = std::fs::read_to_string("/proc/self/stat").ok();
    let ticks = stat.as_deref().and_then(|s| {
        let mut fields = s.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
        Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
    });
    if let Some(ticks) = ticks {
        value(
            out,
            "process_cpu_seconds_total",
            "CPU time",
            "counter",
            ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
        );
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        value(
            out,
            "process_open_fds",
            "open files",
            "gauge",
            files.count(),
        );
    }
}
