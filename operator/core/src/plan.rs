//! What may be done now, and for everything that may not, why.
//!
//! A plan is made anew at each reconcile from what is seen, never from what was done before. It holds all objects to apply and at most **one** pod
//! to restart in the whole cluster; the next restart is planned only when the last one is ready and registered again. What is refused is a
//! [`Refusal`] with a sentence, which becomes a condition and an event.
//!
//! Order of a roll: a pod that is outdated and not well comes first (it serves nobody, and its fault may be what the change repairs), but only while
//! no pod of its kind is unwell *with* the new settings, so that a bad change stops at one pod; then name servers, then brokers by group, within a
//! group from the highest ordinal down, so that the master comes last.

use k8s_openapi::api::apps::v1::StatefulSet;

use crate::build::{
    CLAIM, Component, LABEL_COMPONENT, LABEL_GROUP, Objects, build, config_hash, names,
};
use crate::validate::{ValidatedCluster, size_bytes};

/// What was seen of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// StatefulSets of this cluster, those no longer wanted too.
    pub stateful_sets: Vec<StatefulSet>,
    pub pods: Vec<ObservedPod>,
    /// ClusterIP of the name servers' client Service.
    pub name_server_ip: Option<String>,
    /// ClusterIP of each broker's Service, by pod.
    pub broker_ips: std::collections::BTreeMap<String, String>,
}

impl Observed {
    pub fn pod(&self, name: &str) -> Option<&ObservedPod> {
        self.pods.iter().find(|pod| pod.name == name)
    }

    fn stateful_set(&self, name: &str) -> Option<&StatefulSet> {
        self.stateful_sets
            .iter()
            .find(|set| set.metadata.name.as_deref() == Some(name))
    }

    /// Numbers of the broker groups that have a StatefulSet.
    pub fn groups(&self) -> impl Iterator<Item = i32> {
        self.stateful_sets.iter().filter_map(|set| {
            let labels = set.metadata.labels.as_ref()?;
            (labels.get(LABEL_COMPONENT)? == Component::Broker.as_str())
                .then(|| labels.get(LABEL_GROUP)?.parse().ok())
                .flatten()
        })
    }
}

/// A pod and, when it could be asked, the process in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObservedPod {
    pub name: String,
    pub uid: String,
    /// Revision of the template it was made from.
    pub revision: Option<String>,
    pub ready: bool,
    pub terminating: bool,
    /// Why it does not run: an image that cannot be pulled, no node that fits, a container that crashes.
    pub trouble: Option<String>,
    /// What its process said; `None` when it did not answer.
    pub server: Option<ServerReport>,
}

/// What a name server or a broker says of itself, and what the name servers say of a broker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerReport {
    /// Hash of the file it started with.
    pub config_hash: Option<String>,
    pub version: Option<String>,
    /// Whether every name server lists the broker under its address.
    pub registered: bool,
}

/// What may be done now.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The cluster as it is carried out: refused changes left out.
    pub cluster: ValidatedCluster,
    /// All objects, to be applied in order. Whatever else belongs to the cluster is to be swept.
    pub objects: Objects,
    /// The one pod to restart, if any may be.
    pub restart: Option<Restart>,
    /// All pods that do not run as asked, in the order in which they will be restarted.
    pub outdated: Vec<Outdated>,
    /// What the next step waits for.
    pub waiting: Option<String>,
    pub refusals: Vec<Refusal>,
}

/// A pod to delete, so that its StatefulSet makes it anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    pub pod: String,
    /// Only this very pod: had it been replaced meanwhile, nothing may happen.
    pub uid: String,
    pub why: String,
    /// The StatefulSet and the revision that the decision rests on.
    pub stateful_set: String,
    pub revision: String,
}

/// A pod that does not run as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outdated {
    pub pod: String,
    pub why: String,
}

/// Something asked for that is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Reason of a condition.
    pub reason: &'static str,
    pub message: String,
}

/// A pod that should be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub pod: String,
    pub stateful_set: String,
    pub component: Component,
    pub group: i32,
    pub ordinal: i32,
}

/// Every pod of a cluster, in the order of a roll.
pub fn wanted_pods(cluster: &ValidatedCluster) -> Vec<Wanted> {
    let mut pods: Vec<Wanted> = (0..cluster.name_server.replicas)
        .rev()
        .map(|ordinal| Wanted {
            pod: names::name_server_pod(&cluster.name, ordinal),
            stateful_set: names::name_server(&cluster.name),
            component: Component::NameServer,
            group: 0,
            ordinal,
        })
        .collect();
    for group in 0..cluster.broker.groups {
        pods.extend(
            (0..cluster.broker.replicas_per_group)
                .rev()
                .map(|ordinal| Wanted {
                    pod: names::broker_pod(&cluster.name, group, ordinal),
                    stateful_set: names::broker_group(&cluster.name, group),
                    component: Component::Broker,
                    group,
                    ordinal,
                }),
        );
    }
    pods
}

/// Decides what may be done now.
pub fn plan(cluster: &ValidatedCluster, observed: &Observed) -> Plan {
    let (cluster, mut refusals) = refuse_scale_in(cluster, observed);
    let mut objects = build(&cluster);
    keep_claims(&mut objects, observed, &mut refusals);
    let roll = roll(&cluster, &objects, observed);
    Plan {
        restart: roll.restart.filter(|_| !cluster.paused),
        outdated: roll.outdated,
        waiting: roll.waiting,
        cluster,
        objects,
        refusals,
    }
}

/// A group that is there stays, with all its objects, whatever the spec says.
fn refuse_scale_in(
    cluster: &ValidatedCluster,
    observed: &Observed,
) -> (ValidatedCluster, Vec<Refusal>) {
    let there = observed
        .groups()
        .map(|group| group + 1)
        .max()
        .unwrap_or(0)
        .min(crate::api::MAX_GROUPS);
    let mut kept = cluster.clone();
    if there <= cluster.broker.groups {
        return (kept, Vec::new());
    }
    kept.broker.groups = there;
    let refusal = Refusal {
        reason: "ScaleInNotServed",
        message: format!(
            "{there} broker groups are there and {} are asked for: groups cannot be removed yet, because the messages of a removed group would be lost to its consumers; set spec.broker.groups to {there}",
            cluster.broker.groups
        ),
    };
    (kept, vec![refusal])
}

/// Claim templates of a StatefulSet cannot change, so those that are there are kept, and a wish to grow is answered.
fn keep_claims(objects: &mut Objects, observed: &Observed, refusals: &mut Vec<Refusal>) {
    for set in &mut objects.stateful_sets {
        let Some(name) = set.metadata.name.clone() else {
            continue;
        };
        let Some(live) = observed
            .stateful_set(&name)
            .and_then(|live| live.spec.as_ref()?.volume_claim_templates.clone())
        else {
            continue;
        };
        let Some(spec) = &mut set.spec else { continue };
        let (asked, there) = (
            claim_size(spec.volume_claim_templates.as_deref()),
            claim_size(Some(&live)),
        );
        if let (Some(asked), Some(there)) = (asked, there)
            && size_bytes(&asked) != size_bytes(&there)
        {
            refusals.push(Refusal {
                reason: "VolumeChangeNotServed",
                message: format!("the volumes of {name} have {there} and {asked} are asked for: they stay as they are, because volumes cannot be changed by this version yet"),
            });
        }
        spec.volume_claim_templates = Some(
            live.into_iter()
                .map(|mut claim| {
                    claim.status = None;
                    claim
                })
                .collect(),
        );
    }
}

fn claim_size(
    claims: Option<&[k8s_openapi::api::core::v1::PersistentVolumeClaim]>,
) -> Option<String> {
    let claim = claims?
        .iter()
        .find(|claim| claim.metadata.name.as_deref() == Some(CLAIM))?;
    Some(
        claim
            .spec
            .as_ref()?
            .resources
            .as_ref()?
            .requests
            .as_ref()?
            .get("storage")?
            .0
            .clone(),
    )
}

#[derive(Default)]
struct Roll {
    restart: Option<Restart>,
    outdated: Vec<Outdated>,
    waiting: Option<String>,
}

fn roll(cluster: &ValidatedCluster, objects: &Objects, observed: &Observed) -> Roll {
    let mut roll = Roll::default();
    // By how little a restart can harm, in the order of a roll: pods that cannot run at all, pods that are not well, pods that are well.
    let mut broken: Option<Restart> = None;
    let mut unwell: Option<(Component, Restart)> = None;
    let mut healthy: Option<Restart> = None;
    // Something on its way; nothing may be restarted until it is done.
    let mut on_its_way: Option<String> = None;
    // Something that is not well; only a pod that is itself outdated and not well may be restarted.
    let mut not_well: Option<String> = None;
    // Pods that run as asked and yet are not well: restarting more of their kind would spread the trouble.
    let mut new_and_not_well: Vec<Component> = Vec::new();

    for wanted in wanted_pods(cluster) {
        let name = &wanted.pod;
        let Some(pod) = observed.pod(name) else {
            on_its_way.get_or_insert_with(|| format!("{name} is being created"));
            continue;
        };
        if pod.terminating {
            on_its_way.get_or_insert_with(|| format!("{name} is being replaced"));
            continue;
        }
        let Some(revision) = settled_revision(observed.stateful_set(&wanted.stateful_set)) else {
            on_its_way.get_or_insert_with(|| not_seen_yet(&wanted.stateful_set));
            continue;
        };
        let well = is_well(&wanted, pod);
        if let Err(why) = &well {
            not_well.get_or_insert_with(|| why.clone());
        }
        let Some(why) = outdated(objects, pod, &revision) else {
            if well.is_err() {
                new_and_not_well.push(wanted.component);
            }
            continue;
        };
        roll.outdated.push(Outdated {
            pod: name.clone(),
            why: why.clone(),
        });
        let restart = Restart {
            pod: name.clone(),
            uid: pod.uid.clone(),
            why,
            stateful_set: wanted.stateful_set.clone(),
            revision,
        };
        if pod.trouble.is_some() {
            broken.get_or_insert(restart);
        } else if well.is_err() {
            unwell.get_or_insert((wanted.component, restart));
        } else {
            healthy.get_or_insert(restart);
        }
    }
    let unwell = unwell
        .filter(|(component, _)| !new_and_not_well.contains(component))
        .map(|(_, restart)| restart);
    roll.restart = if on_its_way.is_some() {
        None
    } else {
        broken
            .or(unwell)
            .or_else(|| healthy.filter(|_| not_well.is_none()))
    };
    roll.waiting = on_its_way.or(not_well);
    roll
}

/// The revision that pods should have, once Kubernetes has taken note of the last change.
pub fn settled_revision(set: Option<&StatefulSet>) -> Option<String> {
    let set = set?;
    let status = set.status.as_ref()?;
    let seen = status.observed_generation.unwrap_or(0) >= set.metadata.generation.unwrap_or(0);
    seen.then(|| status.update_revision.clone()).flatten()
}

/// Why nothing can be said about the pods of a StatefulSet that has just changed.
pub fn not_seen_yet(stateful_set: &str) -> String {
    format!("Kubernetes has not seen the last change of {stateful_set}")
}

/// Whether a pod does what it is there for; else a sentence.
pub fn is_well(wanted: &Wanted, pod: &ObservedPod) -> Result<(), String> {
    let name = &pod.name;
    if let Some(trouble) = &pod.trouble {
        return Err(format!("{name}: {trouble}"));
    }
    if !pod.ready {
        return Err(format!("{name} is not ready"));
    }
    match &pod.server {
        None => Err(format!("{name} is ready but does not answer the operator")),
        Some(report) if wanted.component == Component::Broker && !report.registered => Err(
            format!("{name} is not registered with every name server yet"),
        ),
        Some(_) => Ok(()),
    }
}

/// Why a pod does not run as asked, if it does not.
fn outdated(objects: &Objects, pod: &ObservedPod, revision: &str) -> Option<String> {
    if pod.revision.as_deref() != Some(revision) {
        return Some("its image or pod settings changed".to_owned());
    }
    let running = pod.server.as_ref()?.config_hash.as_ref()?;
    let asked = config_hash(objects.config_of(&pod.name)?.as_bytes());
    (*running != asked).then(|| "its configuration changed".to_owned())
}

#[cfg(test)]
mod tests;
