//! Elects one of several replicas through a Lease, by client-go's rule: a candidate may take a Lease over only when it has seen it **unchanged for
//! its full duration on its own monotonic clock**. The times written in the Lease are for people; no decision rests on another machine's clock.
//!
//! Losing the Lease must be harmless: every write of the operator is idempotent, brokers and name servers serve without it.

use std::future::Future;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::error::is_conflict;

/// How long a Lease holds without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for so long gives up, well before another may take over.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries.
const RETRY: Duration = Duration::from_secs(2);

/// What to do about a Lease, given what was seen of it and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It is ours, or free, or long unchanged.
    Take,
    /// Somebody else holds it.
    Wait,
}

/// What a candidate remembers of the Lease.
#[derive(Debug, Default)]
struct Watch {
    seen: Option<(LeaseSpec, Instant)>,
}

impl Watch {
    fn next(&mut self, spec: &LeaseSpec, me: &str, now: Instant) -> Next {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder == me || holder.is_empty() {
            return Next::Take;
        }
        match &self.seen {
            Some((seen, since)) if seen == spec => {
                let seconds = spec
                    .lease_duration_seconds
                    .and_then(|s| u64::try_from(s).ok());
                let duration = seconds.map_or(DURATION, Duration::from_secs);
                if now.duration_since(*since) >= duration {
                    Next::Take
                } else {
                    Next::Wait
                }
            }
            _ => {
                self.seen = Some((spec.clone(), now));
                Next::Wait
            }
        }
    }
}

/// A candidate for one Lease.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    watch: Watch,
}

impl Elector {
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            watch: Watch::default(),
        }
    }

    /// Waits for the Lease, runs `work` while holding it, and gives it back. The token that `work` gets is cancelled when the Lease is lost or
    /// `shutdown` is asked for. Returns whether the Lease was lost.
    pub async fn lead<F, W>(mut self, shutdown: CancellationToken, work: F) -> bool
    where
        F: FnOnce(CancellationToken) -> W,
        W: Future<Output = ()>,
    {
        while !self.try_once().await {
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        tracing::info!(lease = self.name, identity = self.identity, "leading");
        let term = shutdown.child_token();
        let lost = {
            let work = work(term.clone());
            tokio::pin!(work);
            let lost = tokio::select! {
                () = &mut work => false,
                () = self.keep() => true,
            };
            if lost {
                tracing::error!(
                    lease = self.name,
                    "the Lease could not be renewed: stopping"
                );
                term.cancel();
                work.await;
            }
            lost
        };
        if !lost {
            self.release().await;
        }
        lost
    }

    /// Renews until that has failed for [`RENEW_DEADLINE`].
    async fn keep(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < RENEW_DEADLINE {
            tokio::time::sleep(RETRY).await;
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            if tokio::time::timeout(left, self.try_once()).await == Ok(true) {
                renewed = Instant::now();
            }
        }
    }

    /// One try to take or renew the Lease; whether it is ours now.
    async fn try_once(&mut self) -> bool {
        match self.take_or_renew().await {
            Ok(ours) => ours,
            Err(error) if is_conflict(&error) => false,
            Err(error) => {
                tracing::warn!(%error, lease = self.name, "election");
                false
            }
        }
    }

    async fn take_or_renew(&mut self) -> kube::Result<bool> {
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let spec = self.spec(&LeaseSpec::default(), now);
            let metadata = ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            };
            self.api
                .create(
                    &PostParams::default(),
                    &Lease {
                        metadata,
                        spec: Some(spec),
                    },
                )
                .await?;
            return Ok(true);
        };
        let spec = lease.spec.take().unwrap_or_default();
        if self.watch.next(&spec, &self.identity, Instant::now()) == Next::Wait {
            return Ok(false);
        }
        // The resource version that was read goes back with it: of two candidates only one is accepted.
        lease.spec = Some(self.spec(&spec, now));
        self.api
            .replace(&self.name, &PostParams::default(), &lease)
            .await?;
        Ok(true)
    }

    fn spec(&self, before: &LeaseSpec, now: MicroTime) -> LeaseSpec {
        let mine = before.holder_identity.as_deref() == Some(self.identity.as_str());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if mine {
                before.acquire_time.clone()
            } else {
                Some(now.clone())
            },
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!mine)),
            ..before.clone()
        }
    }

    /// Lets the next one take over at once.
    async fn release(&mut self) {
        let released = async {
            let mut lease = self.api.get(&self.name).await?;
            if let Some(spec) = &mut lease.spec
                && spec.holder_identity.as_deref() == Some(self.identity.as_str())
            {
                spec.holder_identity = None;
                self.api
                    .replace(&self.name, &PostParams::default(), &lease)
                    .await?;
            }
            Ok::<(), kube::Error>(())
        };
        match tokio::time::timeout(RETRY, released).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "Lease not given back"),
            Err(_) => tracing::debug!("Lease not given back in time"),
        }
    }
}

#[cfg(test)]
mod tests;
