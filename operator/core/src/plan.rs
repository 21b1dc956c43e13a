//! What may be done now, and for everything that may not, why.
//!
//! A plan is made anew at each reconcile from what is seen, never from what was done before. It holds all objects to apply and at most **one** pod
//! to restart in the whole cluster; the next restart is planned only when the last one is ready and registered again. What is refused is a
//! [`Refusal`] with a sentence, which becomes a condition and an event.
//!
//! Order of a roll: a pod that is outdated and not well comes first (it serves nobody, and its fault may be what the change repairs), but only while
//! no pod of its kind is unwell *with* the new settings, so that a bad change stops at one pod; then name servers, then brokers by group, within a
//! group those that follow from the highest ordinal down, and last who takes the writes (an elected leader even when it is not well). A broker is well when it is registered and, where it follows
//! somebody, has caught up; so the master goes only when all that it has is elsewhere too. In a group that elects its master no restart leaves fewer
//! than a majority of members that are up and caught up.

mod dynamic;
pub mod group;
mod stage;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::StatefulSet;

use self::group::{Elected, Group, MAX_LAG_BYTES, behind};
use crate::api::Mode;
use crate::build::{
    CLAIM, Component, LABEL_COMPONENT, LABEL_GROUP, Objects, build, config_hash, names,
    replication_port,
};
use crate::validate::{ValidatedCluster, size_bytes};

pub use dynamic::noted_keys;
pub use stage::QUORUM_AT_RISK;

/// What was seen of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// StatefulSets of this cluster, those no longer wanted too.
    pub stateful_sets: Vec<StatefulSet>,
    pub pods: Vec<ObservedPod>,
    /// ClusterIP of the name servers' client Service.
    pub name_server_ip: Option<String>,
    /// ClusterIP of each broker's Service, by pod.
    pub broker_ips: BTreeMap<String, String>,
    /// Keys that brokers were given while they ran, by StatefulSet, as noted in its ConfigMap.
    pub dynamic_keys: BTreeMap<String, BTreeSet<String>>,
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

    /// Pods that a StatefulSet asks for now.
    fn replicas_of(&self, stateful_set: &str) -> Option<i32> {
        self.stateful_set(stateful_set)?.spec.as_ref()?.replicas
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
    pub ip: Option<String>,
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
    /// Whether every name server lists the broker under its address, and where its id is given by its place, under that id.
    pub registered: bool,
    /// The id under which they list it.
    pub broker_id: Option<i64>,
    /// Why it says that it is not ready.
    pub not_ready: Option<String>,
    /// The values of its keys, by name.
    pub values: BTreeMap<String, String>,
    pub replication: Replication,
}

/// What a broker says of the others of its group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Replication {
    #[default]
    Unknown,
    /// It takes writes.
    Master {
        /// Where its log ends.
        end: i64,
        slaves: Vec<SlaveSeen>,
    },
    /// It follows a master.
    Slave {
        /// Where its log ends.
        end: i64,
    },
    /// It is one of a group that elects its master.
    Member(Member),
}

/// A slave, as its master sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlaveSeen {
    pub ip: String,
    pub in_sync: bool,
}

/// What a member of a group that elects its master says of the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// `dLegerSelfId`.
    pub id: String,
    pub leads: bool,
    pub term: i64,
    pub commit_index: i64,
    pub applied_index: i64,
    pub commit_offset: i64,
    pub peers: Vec<Peer>,
}

/// A member of a group that elects its master, as the leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    pub id: String,
    pub lag_bytes: i64,
    pub voter: bool,
    /// Heard of lately.
    pub active: bool,
    /// Its word counts: it has all that it ever acknowledged.
    pub sure: bool,
}

impl Peer {
    fn caught_up(&self) -> bool {
        self.active && self.sure && self.lag_bytes <= MAX_LAG_BYTES
    }
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
    /// The wait is for a majority: what would be left without the next pod, and what is needed.
    pub at_risk: bool,
    pub refusals: Vec<Refusal>,
    /// The one change of a group's members to ask its leader for, if any may be. Nothing is restarted beside it.
    pub member_step: Option<MemberStep>,
    /// Keys to change in running brokers.
    pub configure: Vec<Configure>,
    /// Nothing at all may be changed: what is asked for cannot be made of what is there.
    pub held: bool,
}

/// A change of who belongs to a group that elects its master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStep {
    /// `brokerName`.
    pub group: String,
    /// The pod to ask.
    pub leader: String,
    pub change: MemberChange,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// The leadership goes to this member.
    Transfer { to: String },
    /// The member under this `host:port` is taken in.
    Add { id: String, address: String },
    /// The member is let go.
    Remove { id: String },
}

impl std::fmt::Display for MemberChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Transfer { to } => write!(f, "hands over to {to}"),
            Self::Add { id, .. } => write!(f, "takes {id} in"),
            Self::Remove { id } => write!(f, "lets {id} go"),
        }
    }
}

/// What one broker is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configure {
    pub pod: String,
    pub changes: BTreeMap<String, String>,
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

/// Every pod of a cluster, in the order of a roll as far as places tell it.
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
            (0..cluster.broker.replicas(group))
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
    let (mut cluster, mut refusals) = refuse_scale_in(cluster, observed);
    let other_kind = refuse_other_kind(&cluster, observed);
    let held = other_kind.is_some();
    refusals.extend(other_kind);
    let staged = if held {
        stage::Staged::default()
    } else {
        stage::stage(&mut cluster, observed)
    };
    refusals.extend(staged.refusals);
    let mut objects = build(&cluster);
    keep_claims(&mut objects, observed, &mut refusals);
    let configure = dynamic::configure(&cluster, &mut objects, observed);
    let roll = roll(&cluster, &objects, observed);
    let acts = !cluster.paused && !held;
    Plan {
        restart: roll.restart.filter(|_| acts && staged.step.is_none()),
        outdated: roll.outdated,
        at_risk: roll.at_risk,
        waiting: if roll.at_risk {
            roll.waiting
        } else {
            staged.waiting.or(roll.waiting)
        },
        member_step: staged.step.filter(|_| acts),
        configure: if acts { configure } else { Vec::new() },
        cluster,
        objects,
        refusals,
        held,
    }
}

/// A log of records and a log of entries are not made of each other. The API server refuses the change; a definition of its own may not have.
fn refuse_other_kind(cluster: &ValidatedCluster, observed: &Observed) -> Option<Refusal> {
    let asked = replication_port(cluster.mode).0;
    let other = observed.stateful_sets.iter().find(|set| {
        let ports = || -> Option<bool> {
            let labels = set.metadata.labels.as_ref()?;
            let is_broker = labels.get(LABEL_COMPONENT)? == Component::Broker.as_str();
            let pod = set.spec.as_ref()?.template.spec.as_ref()?;
            let ports = pod.containers.first()?.ports.as_ref()?;
            let named = |name: &str| ports.iter().any(|p| p.name.as_deref() == Some(name));
            Some(is_broker && (named("ha") || named("raft")) && !named(asked))
        };
        ports().unwrap_or(false)
    })?;
    Some(Refusal {
        reason: "ModeChangeRefused",
        message: format!(
            "{} runs {} dledger: to and from dledger there is no change in place, because the log formats differ: make a second cluster and migrate",
            other.metadata.name.as_deref().unwrap_or_default(),
            if cluster.mode == Mode::DLedger {
                "without"
            } else {
                "in mode"
            }
        ),
    })
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
    at_risk: bool,
}

/// Every pod that counts for a roll, in its order, with what is known of its group. Brokers that are to go anyway do not count: they neither hold up
/// the others nor are they worth a restart.
fn roll_order(cluster: &ValidatedCluster, observed: &Observed) -> (Vec<Wanted>, Vec<Group>) {
    let groups: Vec<Group> = (0..cluster.broker.groups)
        .map(|group| Group::of(cluster, observed, group))
        .collect();
    let mut pods: Vec<Wanted> = wanted_pods(cluster)
        .into_iter()
        .filter(|w| {
            w.component == Component::NameServer || w.ordinal < cluster.broker.replicas_per_group
        })
        .collect();
    // Stable, so all else keeps its order: name servers, then group by group.
    pods.sort_by_key(|w| {
        let master = group_of(&groups, w).and_then(|group| group.master.as_ref());
        (
            w.component,
            w.group,
            w.component == Component::Broker && master == Some(&w.pod),
        )
    });
    (pods, groups)
}

fn group_of<'a>(groups: &'a [Group], wanted: &Wanted) -> Option<&'a Group> {
    (wanted.component == Component::Broker)
        .then(|| groups.iter().find(|group| group.group == wanted.group))
        .flatten()
}

fn roll(cluster: &ValidatedCluster, objects: &Objects, observed: &Observed) -> Roll {
    let mut roll = Roll::default();
    // By how little a restart can harm, in the order of a roll: pods that cannot run at all, pods that are not well, pods that are well.
    let mut broken: Option<Restart> = None;
    let mut unwell: Option<(Component, Restart)> = None;
    let mut healthy: Option<Restart> = None;
    // The first of a group's brokers that are outdated and well.
    let mut follower: Option<(i32, Restart)> = None;
    // Something on its way; nothing may be restarted until it is done.
    let mut on_its_way: Option<String> = None;
    // Something that is not well; only a pod that is itself outdated and not well may be restarted.
    let mut not_well: Option<String> = None;
    // A restart that would take the majority from a group.
    let mut at_risk: Option<String> = None;
    // Pods that run as asked and yet are not well: restarting more of their kind would spread the trouble.
    let mut new_and_not_well: Vec<Component> = Vec::new();

    let (pods, groups) = roll_order(cluster, observed);
    for wanted in pods {
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
        let group = group_of(&groups, &wanted);
        let well = is_well(&wanted, pod, group);
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
        let risk = group.filter(|_| cluster.mode == Mode::DLedger);
        if let Some(risk) = risk.and_then(|group| leaves_no_majority(group, &wanted, pod)) {
            at_risk.get_or_insert(risk);
            continue;
        }
        let restart = Restart {
            pod: name.clone(),
            uid: pod.uid.clone(),
            why,
            stateful_set: wanted.stateful_set.clone(),
            revision,
        };
        if pod.trouble.is_some() {
            broken.get_or_insert(restart);
        } else if well.is_ok() {
            if follower.as_ref().is_none_or(|(of, _)| *of != wanted.group) {
                follower = Some((wanted.group, restart.clone()));
            }
            healthy.get_or_insert(restart);
        } else if !is_only_unheard(pod) {
            // Who leads goes last, well or not.
            let before = follower.take_if(|(of, _)| {
                *of == wanted.group && group.is_some_and(|g| g.elected.is_some())
            });
            let first = before.map_or(restart, |(_, restart)| restart);
            unwell.get_or_insert((wanted.component, first));
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
    let at_risk = at_risk.filter(|_| roll.restart.is_none());
    roll.at_risk = on_its_way.is_none() && at_risk.is_some();
    roll.waiting = match (on_its_way, at_risk) {
        // A pod that stays away for long is all the more a reason to tell the numbers.
        (Some(way), Some(risk)) => Some(format!("{way}; {risk}")),
        (way, risk) => way.or(risk).or(not_well),
    };
    roll
}

/// A name server that was just restarted hears from the brokers within moments: no reason to restart one of them.
fn is_only_unheard(pod: &ObservedPod) -> bool {
    pod.ready && pod.server.as_ref().is_some_and(|server| !server.registered)
}

/// A group that elects keeps a majority of members that are up and caught up, whoever is restarted. A member that does not count now can go at any time,
/// and while nobody tells who counts, one that is not ready.
fn leaves_no_majority(group: &Group, wanted: &Wanted, pod: &ObservedPod) -> Option<String> {
    let Some(elected) = &group.elected else {
        let members = group.brokers.len();
        return pod.ready.then(|| {
            format!(
                "{} is not restarted: without an answer from the leader of {} nobody knows how many of its {members} members are up and caught up, and {} are needed",
                wanted.pod,
                group.name,
                Elected::quorum(members)
            )
        });
    };
    let id = names::member_id(wanted.ordinal);
    if !elected.active.contains(&id) {
        return None;
    }
    let (left, needed) = elected.without(&id);
    (left < needed).then(|| {
        format!(
            "{} is not restarted: {left} of the {} members of {} would be up and caught up without it, and {needed} are needed",
            wanted.pod,
            elected.voters.len(),
            group.name
        )
    })
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
pub fn is_well(wanted: &Wanted, pod: &ObservedPod, group: Option<&Group>) -> Result<(), String> {
    let name = &pod.name;
    if let Some(trouble) = &pod.trouble {
        return Err(format!("{name}: {trouble}"));
    }
    if !pod.ready {
        let said = pod.server.as_ref().and_then(|s| s.not_ready.as_deref());
        return Err(match said {
            Some(said) => format!("{name} is not ready: {said}"),
            None => format!("{name} is not ready"),
        });
    }
    match &pod.server {
        None => return Err(format!("{name} is ready but does not answer the operator")),
        Some(report) if wanted.component == Component::Broker && !report.registered => {
            return Err(format!(
                "{name} is not registered with every name server yet"
            ));
        }
        Some(_) => {}
    }
    match group {
        Some(group) if group.brokers.len() > 1 => follows(wanted, name, group),
        _ => Ok(()),
    }
}

/// Whether a broker of a group with copies has what the others have.
fn follows(wanted: &Wanted, name: &str, group: &Group) -> Result<(), String> {
    let Some(broker) = group.broker(wanted.ordinal) else {
        return Ok(());
    };
    if broker.role.is_none() {
        return Err(match &group.elected {
            None => format!("{} has no leader", group.name),
            Some(_) => format!("{name} does not tell how it stands in {}", group.name),
        });
    }
    if broker.voter == Some(false) {
        return Err(format!("{name} does not vote in {} yet", group.name));
    }
    match (broker.in_sync, broker.lag_bytes) {
        (Some(false), Some(lag)) if lag > MAX_LAG_BYTES => {
            Err(format!("{name} has not caught up: it is {}", behind(lag)))
        }
        (Some(false), _) => Err(format!(
            "{name} does not follow {}",
            group.master.as_deref().unwrap_or("its master")
        )),
        _ => Ok(()),
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
