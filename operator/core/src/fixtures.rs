//! What the tests of this crate begin with: a cluster from its spec, and how it looks when all is well.

use serde_json::{Value, json};

use crate::build::{build, config_hash};
use crate::plan::{Observed, ObservedPod, ServerReport, wanted_pods};
use crate::validate::{Defaults, ValidatedCluster, validate};

/// `demo` in the namespace `shop`.
pub(crate) fn cluster(spec: Value) -> ValidatedCluster {
    let object = serde_json::from_value(json!({
        "apiVersion": "rocketcluster.io/v1alpha1",
        "kind": "RocketCluster",
        "metadata": {"name": "demo", "namespace": "shop", "uid": "u-1", "generation": 3},
        "spec": spec,
    }))
    .unwrap();
    validate(&object, &Defaults::default()).unwrap()
}

/// Everything is there, runs with its file and is registered.
pub(crate) fn healthy(cluster: &ValidatedCluster) -> Observed {
    let objects = build(cluster);
    let mut observed = Observed {
        stateful_sets: objects.stateful_sets.clone(),
        name_server_ip: Some("10.96.0.9".to_owned()),
        ..Observed::default()
    };
    for set in &mut observed.stateful_sets {
        set.metadata.generation = Some(1);
        set.status = Some(
            serde_json::from_value(
                json!({"replicas": 1, "observedGeneration": 1, "updateRevision": "r1"}),
            )
            .unwrap(),
        );
    }
    for wanted in wanted_pods(cluster) {
        let file = objects.config_of(&wanted.pod).unwrap();
        observed
            .broker_ips
            .insert(wanted.pod.clone(), "10.96.0.10".to_owned());
        observed.pods.push(ObservedPod {
            uid: format!("uid-{}", wanted.pod),
            revision: Some("r1".to_owned()),
            ready: true,
            server: Some(ServerReport {
                config_hash: Some(config_hash(file.as_bytes())),
                version: Some("V4_9_8".to_owned()),
                registered: true,
                ..ServerReport::default()
            }),
            name: wanted.pod,
            ..ObservedPod::default()
        });
    }
    observed
}
