//! Keys that brokers take while they run: which broker is to be told what.

use std::collections::{BTreeMap, BTreeSet};

use super::{Configure, Observed};
use crate::build::{ANNOTATION_DYNAMIC_KEYS, Component, Objects, broker_dynamic, set_dynamic_keys};
use crate::keys;
use crate::validate::ValidatedCluster;

use super::wanted_pods;

/// What brokers that answer are to be told, so that they run with the keys asked for. A key that is not asked for any more is told its default once;
/// keys that were never asked for are the user's own and are left alone.
///
/// What was given and is to be taken back is noted in the group's ConfigMap until it is, so that it survives the operator.
pub(super) fn configure(
    cluster: &ValidatedCluster,
    objects: &mut Objects,
    observed: &Observed,
) -> Vec<Configure> {
    let wanted = broker_dynamic(cluster);
    let mut told = Vec::new();
    let mut still_given: BTreeMap<i32, BTreeSet<String>> = BTreeMap::new();
    for place in wanted_pods(cluster) {
        if place.component != Component::Broker {
            continue;
        }
        let none = BTreeSet::new();
        let given = observed
            .dynamic_keys
            .get(&place.stateful_set)
            .unwrap_or(&none);
        let dropped = given.iter().filter(|key| !wanted.contains_key(*key));
        let reported = observed
            .pod(&place.pod)
            .filter(|pod| !pod.terminating)
            .and_then(|pod| pod.server.as_ref());
        let Some(report) = reported else {
            // It may still run with what it was given.
            still_given
                .entry(place.group)
                .or_default()
                .extend(dropped.cloned());
            continue;
        };
        let mut changes = BTreeMap::new();
        let mut compare = |key: &str, value: &str| -> bool {
            let differs = report
                .values
                .get(key)
                .is_some_and(|running| !keys::same(key, value, running));
            if differs {
                changes.insert(key.to_owned(), value.to_owned());
            }
            differs
        };
        for key in dropped {
            if let Some(known) = keys::broker_key(key)
                && compare(key, known.default)
            {
                still_given
                    .entry(place.group)
                    .or_default()
                    .insert(key.clone());
            }
        }
        for (key, value) in &wanted {
            compare(key, value);
        }
        if !changes.is_empty() {
            told.push(Configure {
                pod: place.pod,
                changes,
            });
        }
    }
    for (group, keys) in still_given.into_iter().filter(|(_, keys)| !keys.is_empty()) {
        let name = crate::build::names::broker_group(&cluster.name, group);
        let map = objects
            .config_maps
            .iter_mut()
            .find(|map| map.metadata.name.as_deref() == Some(&name));
        if let Some(map) = map {
            let all: BTreeSet<String> = wanted.keys().cloned().chain(keys).collect();
            set_dynamic_keys(map, all.into_iter());
        }
    }
    told
}

/// The keys that a ConfigMap notes.
pub fn noted_keys(annotations: Option<&BTreeMap<String, String>>) -> BTreeSet<String> {
    annotations
        .and_then(|all| all.get(ANNOTATION_DYNAMIC_KEYS))
        .into_iter()
        .flat_map(|list| list.split(','))
        .map(str::to_owned)
        .collect()
}
