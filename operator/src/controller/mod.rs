//! The RocketCluster controller: dereference → validate → plan (which builds) → apply → tell → restart → sweep → status.
//!
//! Every step looks at what is, never at what an earlier run did, and each may be the last one of a dying process: the next run takes up from
//! there. Objects are applied before a pod is restarted, and swept last, so that nothing is removed before its successor is there.

mod apply;
mod dereference;
mod status;
mod tell;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt, future};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::{DeserializeGuard, NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, Resource, ResourceExt};
use operator_core::api::RocketCluster;
use operator_core::build::{LABEL_CLUSTER, LABEL_MANAGED_BY, MANAGED_BY};
use operator_core::plan::{Observed, Plan, Refusal, plan};
use operator_core::validate::validate;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::error::Error;

/// Several events of one change become one reconcile.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// Next look at a cluster that is as asked. Watches bring most changes at once; this finds what no watch tells, a broker that lost its
/// registration above all.
const CALM: Duration = Duration::from_secs(30);
/// Next look while something is on its way.
const BUSY: Duration = Duration::from_secs(2);
/// Next look when something has been on its way for long.
const STUCK: Duration = Duration::from_secs(10);
/// What "for long" is.
const STUCK_AFTER_SECONDS: i64 = 300;
/// Next look at an object that cannot be used; only its owner can change that.
const REFUSED: Duration = Duration::from_secs(300);

/// A RocketCluster as it came, readable or not.
pub type Guarded = DeserializeGuard<RocketCluster>;

/// Serves the RocketClusters of the given namespaces (none given: of all) until `shutdown`.
pub async fn run(
    context: Arc<Context>,
    namespaces: &[String],
    concurrency: u16,
    shutdown: CancellationToken,
) {
    let scopes: Vec<Option<&str>> = if namespaces.is_empty() {
        vec![None]
    } else {
        namespaces.iter().map(|n| Some(n.as_str())).collect()
    };
    let controllers = scopes
        .into_iter()
        .map(|scope| controller(context.clone(), scope, concurrency, shutdown.clone()));
    future::join_all(controllers).await;
}

async fn controller(
    context: Arc<Context>,
    namespace: Option<&str>,
    concurrency: u16,
    shutdown: CancellationToken,
) {
    let owned = watcher::Config::default().labels(&format!("{LABEL_MANAGED_BY}={MANAGED_BY}"));
    Controller::new(
        api::<Guarded>(&context, namespace),
        watcher::Config::default(),
    )
    .with_config(
        Config::default()
            .concurrency(concurrency)
            .debounce(DEBOUNCE),
    )
    .owns(api::<StatefulSet>(&context, namespace), owned.clone())
    .owns(api::<Service>(&context, namespace), owned.clone())
    .owns(api::<ConfigMap>(&context, namespace), owned.clone())
    .owns(api::<ServiceAccount>(&context, namespace), owned.clone())
    .owns(
        api::<PodDisruptionBudget>(&context, namespace),
        owned.clone(),
    )
    // Pods belong to StatefulSets, so they are found by their label.
    .watches(
        api::<PartialObjectMeta<Pod>>(&context, namespace),
        owned,
        |pod| cluster_of(&pod),
    )
    .graceful_shutdown_on(async move { shutdown.cancelled().await })
    .run(
        |cluster, context| reconcile(cluster, context).boxed(),
        error_policy,
        context,
    )
    .for_each(|result| {
        if let Err(error) = result {
            // What a reconcile returned was logged by the error policy.
            if !matches!(
                error,
                kube::runtime::controller::Error::ReconcilerFailed(..)
                    | kube::runtime::controller::Error::ObjectNotFound(..)
            ) {
                tracing::warn!(%error, "watch");
            }
        }
        future::ready(())
    })
    .await;
}

fn api<K>(context: &Context, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(context.client.clone(), namespace),
        None => Api::all(context.client.clone()),
    }
}

fn cluster_of(pod: &PartialObjectMeta<Pod>) -> Option<ObjectRef<Guarded>> {
    let name = pod.labels().get(LABEL_CLUSTER)?;
    Some(ObjectRef::new(name).within(&pod.namespace()?))
}

/// One look at one RocketCluster.
pub async fn reconcile(object: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Error> {
    let begun = Instant::now();
    let result = steps(&object, &context).await;
    context.metrics.reconciled(begun.elapsed());
    if result.is_ok() {
        context.recovered(&object.namespace().unwrap_or_default(), &object.name_any());
    }
    result
}

async fn steps(object: &Guarded, context: &Context) -> Result<Action, Error> {
    // Children are removed by their owner references; nothing waits for the operator.
    if object.meta().deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let cluster = match &object.0 {
        Ok(cluster) => cluster,
        Err(invalid) => {
            status::unreadable(context, object, &invalid.error).await?;
            return Ok(Action::requeue(REFUSED));
        }
    };
    let validated = match validate(cluster, &context.defaults) {
        Ok(validated) => validated,
        Err(invalid) => {
            status::invalid(context, cluster, &invalid).await?;
            return Ok(Action::requeue(REFUSED));
        }
    };

    let seen = match dereference::dereference(context, &validated).await {
        Ok(seen) => seen,
        Err(error) => return failed(context, cluster, None, error).await,
    };
    let mut plan = plan(&validated, &seen.observed);
    if !plan.cluster.paused && !plan.held {
        match carry_out(context, cluster, &plan, &seen).await {
            // Pods can be compared with a new template only when Kubernetes has given it a revision; until then it is not "all as asked".
            Ok(done) => {
                let first = done.changed.first();
                plan.waiting = plan
                    .waiting
                    .or_else(|| first.map(|set| operator_core::plan::not_seen_yet(set)));
                if let Some(why) = done.members_unchanged {
                    plan.waiting = Some(why);
                    plan.member_step = None;
                }
                plan.refusals.extend(done.refusals);
            }
            Err(error) => {
                return failed(context, cluster, Some((&plan, &seen.observed)), error).await;
            }
        }
    }
    let written = status::of(context, cluster, &plan, &seen.observed).await?;
    Ok(Action::requeue(next_look(&plan, written.as_ref())))
}

/// What came of a plan.
#[derive(Default)]
struct Done {
    /// StatefulSets that changed.
    changed: BTreeSet<String>,
    /// Why a leader did not change its group's members; it is asked again at the next look.
    members_unchanged: Option<String>,
    /// What brokers refuse.
    refusals: Vec<Refusal>,
}

async fn carry_out(
    context: &Context,
    cluster: &RocketCluster,
    plan: &Plan,
    seen: &dereference::Seen,
) -> Result<Done, Error> {
    let changed = apply::apply(context, cluster, &plan.objects, seen).await?;
    let mut done = Done::default();
    if let Some(step) = &plan.member_step {
        let asked = tell::change_members(context, cluster, step, &seen.observed).await;
        done.members_unchanged = asked.err();
    }
    done.refusals = tell::configure(context, cluster, &plan.configure, &seen.observed).await;
    if let Some(restart) = &plan.restart {
        // The plan rests on what was seen before the apply: a StatefulSet that has just changed is looked at again first.
        if changed.contains(&restart.stateful_set) {
            tracing::debug!(pod = restart.pod, "restart waits for the new revision");
        } else {
            apply::restart(context, cluster, restart).await?;
        }
    }
    apply::sweep(context, cluster, &plan.objects, seen).await?;
    done.changed = changed;
    Ok(done)
}

/// The error is told in the status before it is returned, where that is possible.
async fn failed(
    context: &Context,
    cluster: &RocketCluster,
    seen: Option<(&Plan, &Observed)>,
    error: Error,
) -> Result<Action, Error> {
    if let Err(second) = status::failed(context, cluster, seen, &error).await {
        tracing::debug!(%second, "status not written");
    }
    Err(error)
}

fn next_look(plan: &Plan, status: Option<&operator_core::api::RocketClusterStatus>) -> Duration {
    let quiet = plan.outdated.is_empty()
        && plan.waiting.is_none()
        && plan.member_step.is_none()
        && plan.configure.is_empty();
    if quiet || plan.cluster.paused || plan.held {
        return CALM;
    }
    let since = status
        .and_then(|status| {
            status
                .conditions
                .iter()
                .find(|c| c.type_ == operator_core::status::READY)
        })
        .map_or(0, |condition| {
            status::now().0.as_second() - condition.last_transition_time.0.as_second()
        });
    if since > STUCK_AFTER_SECONDS {
        STUCK
    } else {
        BUSY
    }
}

/// A failure costs its own object a growing pause, and no other object anything.
pub fn error_policy(object: Arc<Guarded>, error: &Error, context: Arc<Context>) -> Action {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let pause = context.pause(&namespace, &name);
    context.metrics.failed(error.reason());
    tracing::warn!(namespace, name, %error, pause_seconds = pause.as_secs(), "reconcile stopped");
    Action::requeue(pause)
}

/// The object that events are about.
fn reference(
    object: &(impl Resource<DynamicType = ()> + Debug),
) -> k8s_openapi::api::core::v1::ObjectReference {
    object.object_ref(&())
}

/// Tells the user about something that went another way than asked.
async fn warn(
    context: &Context,
    object: &(impl Resource<DynamicType = ()> + Debug),
    reason: &str,
    note: &str,
) {
    context
        .tell(
            &reference(object),
            EventType::Warning,
            reason,
            "Reconcile",
            note,
        )
        .await;
}

#[cfg(test)]
mod tests;
