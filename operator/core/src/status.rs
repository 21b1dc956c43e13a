//! What the user is told: conditions with a reason and a sentence, and a row for each broker.
//!
//! `Ready` says whether the cluster serves as asked, `Progressing` whether the operator is still changing it, `Degraded` whether something needs the
//! user. A condition keeps its time while its status stays the same, so that an unchanged cluster gives an unchanged status.

use std::fmt::Write as _;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::{BrokerGroupStatus, BrokerStatus, NameServersStatus, RocketClusterStatus, Role};
use crate::build::{
    BROKER_PORT, Component, LABEL_CLUSTER, LABEL_COMPONENT, NAME_SERVER_PORT, configured_role,
    names,
};
use crate::plan::group::{Elected, Group};
use crate::plan::{Observed, Plan, QUORUM_AT_RISK, Wanted, is_well, wanted_pods};

/// The cluster serves as asked.
pub const READY: &str = "Ready";
/// The operator is still changing it.
pub const PROGRESSING: &str = "Progressing";
/// Something needs the user.
pub const DEGRADED: &str = "Degraded";

/// Pods named in a message at most; the rest is counted.
const NAMED_PODS: usize = 5;
/// Longest message; the API server takes 32768 letters.
const MAX_MESSAGE_CHARS: usize = 2_000;

/// One condition before it gets its time.
struct Says {
    kind: &'static str,
    truth: bool,
    reason: String,
    message: String,
}

impl Says {
    fn new(
        kind: &'static str,
        truth: bool,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            truth,
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// The status of a cluster whose plan was carried out.
pub fn status(
    plan: &Plan,
    observed: &Observed,
    previous: Option<&RocketClusterStatus>,
    now: &Time,
) -> RocketClusterStatus {
    let cluster = &plan.cluster;
    let wanted = wanted_pods(cluster);
    let groups: Vec<Group> = (0..cluster.broker.groups)
        .map(|group| Group::of(cluster, observed, group))
        .collect();
    let well = |w: &Wanted| well(observed, w, &groups);
    let count = |component: Component| {
        let all = wanted.iter().filter(|w| w.component == component);
        let well = all.clone().filter(|w| well(w).is_ok()).count();
        (well, all.count())
    };
    let (name_servers_well, name_servers) = count(Component::NameServer);
    let (brokers_well, brokers) = count(Component::Broker);
    let troubles: Vec<String> = wanted.iter().filter_map(|w| well(w).err()).collect();

    let ready = if troubles.is_empty() {
        Says::new(
            READY,
            true,
            "AllRegistered",
            format!(
                "{}, {brokers_well} of {brokers} brokers registered and ready",
                plural(name_servers, "name server")
            ),
        )
    } else {
        let reason = if name_servers_well < name_servers {
            "NameServersNotReady"
        } else {
            "BrokersNotRegistered"
        };
        Says::new(READY, false, reason, list(&troubles))
    };

    let progressing = if cluster.paused {
        Says::new(
            PROGRESSING,
            false,
            "Paused",
            "spec.paused is true: the operator leaves everything as it is",
        )
    } else if let Some(restart) = &plan.restart {
        Says::new(
            PROGRESSING,
            true,
            "Rolling",
            format!(
                "restarting {} ({}), {} to go",
                restart.pod,
                restart.why,
                plan.outdated.len()
            ),
        )
    } else if let Some(step) = &plan.member_step {
        Says::new(
            PROGRESSING,
            true,
            "ChangingMembers",
            format!("{} {}: {}", step.group, step.change, step.why),
        )
    } else if plan.at_risk {
        let waiting = plan.waiting.as_deref().unwrap_or_default();
        Says::new(PROGRESSING, true, QUORUM_AT_RISK, waiting)
    } else if !plan.outdated.is_empty() {
        let waiting = plan.waiting.as_deref().unwrap_or("the next look");
        Says::new(
            PROGRESSING,
            true,
            "Rolling",
            format!(
                "{} to restart; waiting: {waiting}",
                plural(plan.outdated.len(), "pod")
            ),
        )
    } else if let Some(waiting) = &plan.waiting {
        Says::new(PROGRESSING, true, "Waiting", waiting.clone())
    } else {
        Says::new(PROGRESSING, false, "UpToDate", "all runs as asked")
    };

    let failing: Vec<String> = wanted
        .iter()
        .filter_map(|w| {
            let pod = observed.pod(&w.pod)?;
            Some(format!("{}: {}", pod.name, pod.trouble.as_ref()?))
        })
        .collect();
    let degraded = if let Some(first) = plan.refusals.first() {
        let messages: Vec<String> = plan.refusals.iter().map(|r| r.message.clone()).collect();
        Says::new(DEGRADED, true, first.reason, list(&messages))
    } else if !failing.is_empty() {
        Says::new(DEGRADED, true, "PodsFailing", list(&failing))
    } else if let Some(groups) = nobody_to_spare(plan, &groups) {
        Says::new(DEGRADED, true, QUORUM_AT_RISK, groups)
    } else {
        Says::new(
            DEGRADED,
            false,
            "AsAsked",
            "nothing is refused and no pod fails",
        )
    };

    let generation = cluster.generation;
    let client = names::service_host(&names::name_server(&cluster.name), &cluster.namespace);
    let nodes = names::service_host(&names::name_server_nodes(&cluster.name), &cluster.namespace);
    let node_list: Vec<String> = (0..cluster.name_server.replicas)
        .map(|ordinal| {
            format!(
                "{}.{nodes}:{NAME_SERVER_PORT}",
                names::name_server_pod(&cluster.name, ordinal)
            )
        })
        .collect();
    let mut rows: Vec<BrokerStatus> = wanted
        .iter()
        .filter(|w| w.component == Component::Broker)
        .map(|w| broker_row(plan, observed, w, &groups, well(w).is_ok()))
        .collect();
    rows.sort_by_key(|row| natural(&row.pod));

    RocketClusterStatus {
        observed_generation: generation,
        conditions: conditions(
            vec![ready, progressing, degraded],
            generation,
            previous,
            now,
        ),
        name_servers: Some(NameServersStatus {
            ready: i32::try_from(name_servers_well).unwrap_or(i32::MAX),
            replicas: cluster.name_server.replicas,
            address: format!("{client}:{NAME_SERVER_PORT}"),
            cluster_ip_address: observed
                .name_server_ip
                .as_ref()
                .map(|ip| host_port(ip, NAME_SERVER_PORT)),
            http_address: Some(format!("http://{client}:{NAME_SERVER_PORT}")),
            nodes: Some(node_list.join(";")),
        }),
        brokers: rows,
        masters: masters(&groups),
        terms: terms(&groups),
        in_sync: in_sync(&groups),
        broker_groups: groups
            .iter()
            .filter(|group| group.brokers.len() > 1)
            .map(group_row)
            .collect(),
        groups: i32::try_from(observed.groups().count()).ok(),
        selector: Some(format!(
            "{LABEL_CLUSTER}={},{LABEL_COMPONENT}={}",
            cluster.name,
            Component::Broker.as_str()
        )),
        ready_brokers: Some(format!("{brokers_well}/{brokers}")),
        ready_name_servers: Some(format!("{name_servers_well}/{name_servers}")),
    }
}

/// The status of a cluster whose spec cannot be used, or whose last reconcile failed: what was known, with conditions that say so.
pub fn refused(
    generation: Option<i64>,
    reason: &str,
    message: &str,
    previous: Option<&RocketClusterStatus>,
    now: &Time,
) -> RocketClusterStatus {
    let says = vec![
        Says::new(READY, false, reason, message),
        Says::new(
            PROGRESSING,
            false,
            reason,
            "what runs is left as it is until the spec can be used",
        ),
        Says::new(DEGRADED, true, reason, message),
    ];
    RocketClusterStatus {
        observed_generation: generation,
        conditions: conditions(says, generation, previous, now),
        ..previous.cloned().unwrap_or_default()
    }
}

/// A status in which `Degraded` says what failed on the way.
pub fn failed(
    known: RocketClusterStatus,
    generation: Option<i64>,
    reason: &str,
    message: &str,
    previous: Option<&RocketClusterStatus>,
    now: &Time,
) -> RocketClusterStatus {
    let mut status = known;
    let says = vec![Says::new(DEGRADED, true, reason, message)];
    status.conditions.retain(|c| c.type_ != DEGRADED);
    status
        .conditions
        .extend(conditions(says, generation, previous, now));
    status
}

fn conditions(
    says: Vec<Says>,
    generation: Option<i64>,
    previous: Option<&RocketClusterStatus>,
    now: &Time,
) -> Vec<Condition> {
    says.into_iter()
        .map(|say| {
            let truth = if say.truth { "True" } else { "False" };
            let before = previous
                .iter()
                .flat_map(|status| &status.conditions)
                .find(|c| c.type_ == say.kind && c.status == truth);
            Condition {
                type_: say.kind.to_owned(),
                status: truth.to_owned(),
                reason: say.reason,
                message: say.message.chars().take(MAX_MESSAGE_CHARS).collect(),
                observed_generation: generation,
                last_transition_time: before
                    .map_or_else(|| now.clone(), |c| c.last_transition_time.clone()),
            }
        })
        .collect()
}

fn well(observed: &Observed, wanted: &Wanted, groups: &[Group]) -> Result<(), String> {
    let group = (wanted.component == Component::Broker)
        .then(|| groups.iter().find(|group| group.group == wanted.group))
        .flatten();
    match observed.pod(&wanted.pod) {
        None => Err(format!("{} is not there yet", wanted.pod)),
        Some(pod) if pod.terminating => Err(format!("{} is being replaced", wanted.pod)),
        Some(pod) => is_well(wanted, pod, group),
    }
}

/// Groups that elect and cannot lose one more member, but for those that are being restarted on purpose. Kubernetes refuses to evict their pods.
fn nobody_to_spare(plan: &Plan, groups: &[Group]) -> Option<String> {
    if !plan.outdated.is_empty() || plan.member_step.is_some() {
        return None;
    }
    let sentences: Vec<String> = groups
        .iter()
        .filter_map(|group| {
            let elected = group.elected.as_ref()?;
            let (there, all) = (elected.active.len(), elected.voters.len());
            let needed = Elected::quorum(all);
            (all > 1 && there <= needed && there < all).then(|| {
                format!(
                    "{there} of the {all} members of {} are up and caught up, and {needed} are needed: none may be stopped or drained until another is back",
                    group.name
                )
            })
        })
        .collect();
    (!sentences.is_empty()).then(|| list(&sentences))
}

/// How many brokers of these groups have what their master has, of all in groups with copies.
fn in_sync<'a>(groups: impl IntoIterator<Item = &'a Group>) -> Option<String> {
    let copies: Vec<_> = groups
        .into_iter()
        .filter(|group| group.brokers.len() > 1)
        .flat_map(|group| &group.brokers)
        .collect();
    let there = copies.iter().filter(|b| b.in_sync == Some(true)).count();
    (!copies.is_empty()).then(|| format!("{there}/{}", copies.len()))
}

/// The first few of them, separated by commas.
fn first_few(all: Vec<String>) -> Option<String> {
    let more = if all.len() > NAMED_PODS { ",…" } else { "" };
    let named = all[..all.len().min(NAMED_PODS)].join(",");
    (!all.is_empty()).then(|| format!("{named}{more}"))
}

fn masters(groups: &[Group]) -> Option<String> {
    first_few(groups.iter().filter_map(|g| g.master.clone()).collect())
}

fn terms(groups: &[Group]) -> Option<String> {
    let elected = groups.iter().filter_map(|g| g.elected.as_ref());
    first_few(elected.map(|elected| elected.term.to_string()).collect())
}

fn group_row(group: &Group) -> BrokerGroupStatus {
    let elected = group.elected.as_ref();
    BrokerGroupStatus {
        name: group.name.clone(),
        master: group.master.clone(),
        in_sync: in_sync([group]).unwrap_or_default(),
        commit_offset: group.commit_offset,
        term: elected.map(|elected| elected.term),
        commit_index: elected.map(|elected| elected.commit_index),
        applied_index: elected.map(|elected| elected.applied_index),
    }
}

/// Figures that move with every message. They are no reason to write a status, but go along when there is one.
pub fn without_figures(status: &RocketClusterStatus) -> RocketClusterStatus {
    let mut status = status.clone();
    for group in &mut status.broker_groups {
        (group.commit_offset, group.commit_index, group.applied_index) = (None, None, None);
    }
    for broker in &mut status.brokers {
        broker.lag_bytes = None;
    }
    for condition in &mut status.conditions {
        condition.message = without_long_numbers(&condition.message);
    }
    status
}

/// Digits of a number that is a figure and not a count.
const FIGURE_DIGITS: usize = 4;

fn without_long_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut digits = String::new();
    for c in text.chars().chain(['\0']) {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        if digits.len() >= FIGURE_DIGITS {
            out.push('#');
        } else {
            out.push_str(&digits);
        }
        digits.clear();
        out.push(c);
    }
    out.pop();
    out
}

fn broker_row(
    plan: &Plan,
    observed: &Observed,
    wanted: &Wanted,
    groups: &[Group],
    ready: bool,
) -> BrokerStatus {
    let group = groups.iter().find(|group| group.group == wanted.group);
    let standing = group.and_then(|group| group.broker(wanted.ordinal));
    let copies = group.is_some_and(|group| group.brokers.len() > 1);
    let pod = observed.pod(&wanted.pod);
    let report = pod.and_then(|pod| pod.server.as_ref());
    BrokerStatus {
        name: names::broker_name(&plan.cluster.broker.name_prefix, wanted.group),
        pod: wanted.pod.clone(),
        role: standing.and_then(|standing| standing.role),
        broker_id: match configured_role(plan.cluster.mode, wanted.ordinal) {
            Some(Role::Master | Role::Slave) => Some(i64::from(wanted.ordinal)),
            None => report.and_then(|report| report.broker_id),
        },
        lag_bytes: standing.filter(|_| copies).and_then(|s| s.lag_bytes),
        in_sync: standing.filter(|_| copies).and_then(|s| s.in_sync),
        address: observed
            .broker_ips
            .get(&wanted.pod)
            .map(|ip| host_port(ip, BROKER_PORT)),
        ready,
        registered: report.is_some_and(|report| report.registered),
        up_to_date: pod.is_some() && !plan.outdated.iter().any(|o| o.pod == wanted.pod),
        version: report.and_then(|report| report.version.clone()),
        config_hash: report.and_then(|report| report.config_hash.clone()),
    }
}

/// `10.0.0.1:80` or `[::1]:80`.
pub fn host_port(ip: &str, port: i32) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

/// Sorts `x-10` behind `x-9`.
fn natural(name: &str) -> Vec<(bool, u64, String)> {
    name.split('-')
        .map(|part| match part.parse::<u64>() {
            Ok(number) => (false, number, String::new()),
            Err(_) => (true, 0, part.to_owned()),
        })
        .collect()
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{count} {noun}s")
    }
}

fn list(sentences: &[String]) -> String {
    let mut text = sentences
        .iter()
        .take(NAMED_PODS)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    if sentences.len() > NAMED_PODS {
        // Writing to a String cannot fail.
        let _ = write!(text, "; and {} more", sentences.len() - NAMED_PODS);
    }
    text
}

#[cfg(test)]
mod tests;
