//! What the operator counts.

use std::sync::Mutex;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

/// What the operator counts.
pub struct Metrics {
    registry: Mutex<Registry>,
    reconciles: Counter,
    failures: Family<Reason, Counter>,
    seconds: Histogram,
    restarts: Counter,
    swept: Counter,
    leader: Gauge,
}

/// Upper bounds of the histogram: a quiet reconcile takes milliseconds, one with a server that does not answer some seconds.
const SECONDS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0];

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("rocketcluster_operator")),
            reconciles: Counter::default(),
            failures: Family::default(),
            seconds: Histogram::new(SECONDS),
            restarts: Counter::default(),
            swept: Counter::default(),
            leader: Gauge::default(),
        };
        if let Ok(mut registry) = metrics.registry.lock() {
            registry.register("reconciles", "Reconciles begun", metrics.reconciles.clone());
            registry.register(
                "reconcile_failures",
                "Reconciles that stopped on an error",
                metrics.failures.clone(),
            );
            registry.register(
                "reconcile_seconds",
                "Time of a reconcile",
                metrics.seconds.clone(),
            );
            registry.register(
                "pod_restarts",
                "Pods restarted to roll a change out",
                metrics.restarts.clone(),
            );
            registry.register(
                "objects_swept",
                "Objects removed because nothing asks for them",
                metrics.swept.clone(),
            );
            registry.register(
                "leader",
                "1 while this replica serves",
                metrics.leader.clone(),
            );
        }
        metrics
    }
}

impl Metrics {
    pub(crate) fn reconciled(&self, took: Duration) {
        self.reconciles.inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn failed(&self, reason: &str) {
        self.failures
            .get_or_create(&Reason {
                reason: reason.to_owned(),
            })
            .inc();
    }

    pub(crate) fn restarted(&self) {
        self.restarts.inc();
    }

    pub(crate) fn swept(&self) {
        self.swept.inc();
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let Ok(registry) = self.registry.lock() else {
            return text;
        };
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}
