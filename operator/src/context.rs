//! What all reconciles share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use operator_core::validate::Defaults;

use crate::inspect::Inspect;
use crate::metrics::Metrics;

/// Who the operator is to the API server: owner of fields, reporter of events.
pub const FIELD_MANAGER: &str = "rocketcluster-operator";

/// First pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause after failures in a row.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// Between two writes of a status in which only figures moved.
const FIGURES_EVERY: Duration = Duration::from_secs(20);
/// Letters that an event's note may have.
const MAX_NOTE_CHARS: usize = 1_000;

/// What all reconciles share. Nothing here is needed for a right decision: all of it may be lost at any time.
pub struct Context {
    pub client: Client,
    pub defaults: Defaults,
    pub inspect: Arc<dyn Inspect>,
    pub metrics: Arc<Metrics>,
    pub(crate) applied: Applied,
    reporter: Reporter,
    /// Failures in a row, by namespace and name.
    failures: Mutex<HashMap<(String, String), u32>>,
    /// When a status was written last, by namespace and name.
    written: Mutex<HashMap<(String, String), Instant>>,
}

impl Context {
    pub fn new(
        client: Client,
        defaults: Defaults,
        inspect: Arc<dyn Inspect>,
        metrics: Arc<Metrics>,
        instance: Option<String>,
    ) -> Self {
        let reporter = Reporter {
            controller: FIELD_MANAGER.to_owned(),
            instance,
        };
        Self {
            client,
            defaults,
            inspect,
            metrics,
            applied: Applied::default(),
            reporter,
            failures: Mutex::default(),
            written: Mutex::default(),
        }
    }

    /// Whether figures in a status are old enough to be worth a write of their own.
    pub(crate) fn figures_due(&self, namespace: &str, name: &str) -> bool {
        let Ok(written) = self.written.lock() else {
            return false;
        };
        written
            .get(&(namespace.to_owned(), name.to_owned()))
            .is_none_or(|at| at.elapsed() >= FIGURES_EVERY)
    }

    /// The status was written just now.
    pub(crate) fn figures_written(&self, namespace: &str, name: &str) {
        if let Ok(mut written) = self.written.lock() {
            if written.len() >= MAX_REMEMBERED {
                written.clear();
            }
            written.insert((namespace.to_owned(), name.to_owned()), Instant::now());
        }
    }

    /// Tells the user, as far as possible: an event that cannot be written stops nothing.
    pub(crate) async fn tell(
        &self,
        about: &ObjectReference,
        type_: EventType,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.chars().take(MAX_NOTE_CHARS).collect()),
            action: action.to_owned(),
            secondary: None,
        };
        // A recorder of its own, because a shared one counts events of the same reason as one and drops the note of all but the first. Nothing is
        // told twice here: callers tell turns, not states.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        if let Err(error) = recorder.publish(&event, about).await {
            tracing::debug!(%error, reason, "event not written");
        }
    }

    /// How long to wait after one more failure of this object.
    pub(crate) fn pause(&self, namespace: &str, name: &str) -> Duration {
        let Ok(mut failures) = self.failures.lock() else {
            return LONGEST_PAUSE;
        };
        let count = failures
            .entry((namespace.to_owned(), name.to_owned()))
            .or_insert(0);
        *count = count.saturating_add(1);
        FIRST_PAUSE
            .saturating_mul(1 << (*count - 1).min(16))
            .min(LONGEST_PAUSE)
    }

    /// The object is well, or gone.
    pub(crate) fn recovered(&self, namespace: &str, name: &str) {
        if let Ok(mut failures) = self.failures.lock() {
            failures.remove(&(namespace.to_owned(), name.to_owned()));
        }
    }
}

/// What was applied last and what it looked like then, so that a poll of a cluster that nobody touched writes nothing.
#[derive(Default)]
pub(crate) struct Applied(Mutex<HashMap<ObjectKey, Entry>>);

/// Namespace, kind, name.
pub(crate) type ObjectKey = (String, &'static str, String);

struct Entry {
    /// The text that was applied.
    text: String,
    resource_version: String,
}

/// Objects remembered at most; beyond that all is forgotten once and applied again.
const MAX_REMEMBERED: usize = 100_000;

impl Applied {
    /// Whether exactly this was applied and nobody changed the object since.
    pub(crate) fn still_holds(&self, key: &ObjectKey, text: &str, live: Option<&str>) -> bool {
        let Ok(entries) = self.0.lock() else {
            return false;
        };
        entries.get(key).is_some_and(|entry| {
            entry.text == text && live == Some(entry.resource_version.as_str())
        })
    }

    pub(crate) fn remember(&self, key: ObjectKey, text: String, resource_version: Option<String>) {
        let Ok(mut entries) = self.0.lock() else {
            return;
        };
        if entries.len() >= MAX_REMEMBERED {
            entries.clear();
        }
        match resource_version {
            Some(resource_version) => entries.insert(
                key,
                Entry {
                    text,
                    resource_version,
                },
            ),
            None => entries.remove(&key),
        };
    }

    pub(crate) fn forget(&self, key: &ObjectKey) {
        if let Ok(mut entries) = self.0.lock() {
            entries.remove(key);
        }
    }
}
