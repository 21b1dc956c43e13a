use serde_json::{Value, json};

use super::*;
use crate::validate::{Defaults, validate};

fn cluster(spec: Value) -> ValidatedCluster {
    let object = serde_json::from_value(json!({
        "apiVersion": "rocketcluster.io/v1alpha1",
        "kind": "RocketCluster",
        "metadata": {"name": "demo", "namespace": "shop", "uid": "u-1", "generation": 1},
        "spec": spec,
    }))
    .unwrap();
    validate(&object, &Defaults::default()).unwrap()
}

fn multi_master() -> ValidatedCluster {
    cluster(json!({"mode": "multi-master"}))
}

/// A cluster as it looks when all is well.
fn healthy(cluster: &ValidatedCluster) -> Observed {
    let objects = build(cluster);
    let stateful_sets = objects
        .stateful_sets
        .iter()
        .map(|set| {
            let mut set = set.clone();
            set.metadata.generation = Some(1);
            set.status = Some(
                serde_json::from_value(
                    json!({"replicas": 1, "observedGeneration": 1, "updateRevision": "r1"}),
                )
                .unwrap(),
            );
            set
        })
        .collect();
    let pods = wanted_pods(cluster)
        .into_iter()
        .map(|wanted| ObservedPod {
            uid: format!("uid-{}", wanted.pod),
            revision: Some("r1".to_owned()),
            ready: true,
            server: Some(ServerReport {
                config_hash: Some(config_hash(
                    objects.config_of(&wanted.pod).unwrap().as_bytes(),
                )),
                version: None,
                registered: true,
            }),
            name: wanted.pod,
            ..ObservedPod::default()
        })
        .collect();
    Observed {
        stateful_sets,
        pods,
        ..Observed::default()
    }
}

fn new_image(observed: &mut Observed) {
    for set in &mut observed.stateful_sets {
        set.status.as_mut().unwrap().update_revision = Some("r2".to_owned());
    }
}

fn pod<'a>(observed: &'a mut Observed, name: &str) -> &'a mut ObservedPod {
    observed
        .pods
        .iter_mut()
        .find(|pod| pod.name == name)
        .unwrap()
}

fn restart(plan: &Plan) -> Option<&str> {
    plan.restart.as_ref().map(|restart| restart.pod.as_str())
}

#[test]
fn nothing_is_restarted_when_all_is_well_or_nothing_is_there() {
    let cluster = multi_master();
    let all_well = plan(&cluster, &healthy(&cluster));
    assert_eq!(
        (all_well.restart, all_well.outdated.len(), all_well.waiting),
        (None, 0, None)
    );
    let nothing = plan(&cluster, &Observed::default());
    assert_eq!((nothing.restart, nothing.outdated.len()), (None, 0));
    assert_eq!(
        nothing.waiting.as_deref(),
        Some("demo-namesrv-1 is being created")
    );
    assert_eq!(nothing.objects, build(&cluster));
}

#[test]
fn a_roll_goes_one_by_one_name_servers_first() {
    let cluster = multi_master();
    let mut observed = healthy(&cluster);
    new_image(&mut observed);
    let mut order = Vec::new();
    loop {
        let next = plan(&cluster, &observed);
        let Some(restart) = next.restart else { break };
        order.push(restart.pod.clone());
        let pod = pod(&mut observed, &restart.pod);
        assert_eq!(pod.uid, restart.uid);
        // Terminating, then new and not ready, then ready and not registered: each time nobody else may go.
        pod.terminating = true;
        let name = restart.pod.clone();
        assert_eq!(plan(&cluster, &observed).restart, None);
        *self::pod(&mut observed, &name) = ObservedPod {
            name: name.clone(),
            uid: "new".to_owned(),
            revision: Some("r2".to_owned()),
            ..ObservedPod::default()
        };
        assert_eq!(plan(&cluster, &observed).restart, None);
        let fresh = healthy(&cluster);
        let pod = self::pod(&mut observed, &name);
        pod.ready = true;
        assert_eq!(plan(&cluster, &observed).restart, None);
        let pod = self::pod(&mut observed, &name);
        pod.server = fresh.pod(&name).unwrap().server.clone();
        if name.contains("broker") {
            pod.server.as_mut().unwrap().registered = false;
            assert_eq!(plan(&cluster, &observed).restart, None);
            self::pod(&mut observed, &name)
                .server
                .as_mut()
                .unwrap()
                .registered = true;
        }
    }
    assert_eq!(
        order,
        [
            "demo-namesrv-1",
            "demo-namesrv-0",
            "demo-broker-0-0",
            "demo-broker-1-0"
        ]
    );
}

#[test]
fn a_changed_file_rolls_the_pods_that_run_with_the_old_one() {
    let before = multi_master();
    let after = cluster(
        json!({"mode": "multi-master", "broker": {"config": {"flushDiskType": "SYNC_FLUSH"}}}),
    );
    let plan = plan(&after, &healthy(&before));
    assert_eq!(restart(&plan), Some("demo-broker-0-0"));
    assert_eq!(plan.outdated.len(), 2);
    assert_eq!(plan.outdated[0].why, "its configuration changed");
}

#[test]
fn nothing_is_decided_before_kubernetes_has_seen_the_change() {
    let cluster = multi_master();
    let mut observed = healthy(&cluster);
    new_image(&mut observed);
    observed.stateful_sets[2].metadata.generation = Some(2);
    let plan = plan(&cluster, &observed);
    assert_eq!(plan.restart, None);
    assert_eq!(
        plan.waiting.as_deref(),
        Some("Kubernetes has not seen the last change of demo-broker-1")
    );
}

#[test]
fn a_broken_pod_goes_first_and_a_bad_image_stops_at_one_pod() {
    let cluster = multi_master();
    let mut observed = healthy(&cluster);
    new_image(&mut observed);
    // The first pod of the roll came up with the bad image.
    let first = pod(&mut observed, "demo-namesrv-1");
    first.revision = Some("r2".to_owned());
    first.ready = false;
    first.trouble = Some("ImagePullBackOff".to_owned());
    first.server = None;
    let stopped = plan(&cluster, &observed);
    assert_eq!(restart(&stopped), None);
    assert_eq!(
        stopped.waiting.as_deref(),
        Some("demo-namesrv-1: ImagePullBackOff")
    );
    assert_eq!(stopped.outdated.len(), 3);
    // The user repairs it: a third revision. The broken pod is replaced first, though it is not ready.
    for set in &mut observed.stateful_sets {
        set.status.as_mut().unwrap().update_revision = Some("r3".to_owned());
    }
    assert_eq!(restart(&plan(&cluster, &observed)), Some("demo-namesrv-1"));
}

#[test]
fn brokers_that_lost_their_name_servers_are_not_rolled_one_after_the_other() {
    let cluster = multi_master();
    let mut observed = healthy(&cluster);
    for set in &mut observed.stateful_sets[1..] {
        set.status.as_mut().unwrap().update_revision = Some("r2".to_owned());
    }
    for name in ["demo-broker-0-0", "demo-broker-1-0"] {
        pod(&mut observed, name).server.as_mut().unwrap().registered = false;
    }
    pod(&mut observed, "demo-broker-0-0").revision = Some("r2".to_owned());
    assert_eq!(restart(&plan(&cluster, &observed)), None);
}

#[test]
fn a_pod_that_does_not_answer_holds_the_roll() {
    let cluster = multi_master();
    let mut observed = healthy(&cluster);
    new_image(&mut observed);
    pod(&mut observed, "demo-broker-1-0").server = None;
    pod(&mut observed, "demo-broker-1-0").revision = Some("r2".to_owned());
    let plan = plan(&cluster, &observed);
    assert_eq!(restart(&plan), None);
    assert_eq!(
        plan.waiting.as_deref(),
        Some("demo-broker-1-0 is ready but does not answer the operator")
    );
}

#[test]
fn paused_plans_but_does_not_restart() {
    let mut cluster = multi_master();
    let mut observed = healthy(&cluster);
    new_image(&mut observed);
    cluster.paused = true;
    let plan = plan(&cluster, &observed);
    assert_eq!((restart(&plan), plan.outdated.len()), (None, 4));
}

#[test]
fn groups_grow_and_do_not_shrink() {
    let three = cluster(json!({"mode": "multi-master", "broker": {"groups": 3}}));
    let two = multi_master();
    assert_eq!(plan(&three, &healthy(&two)).objects.stateful_sets.len(), 4);
    let refused = plan(&two, &healthy(&three));
    assert_eq!(refused.objects, build(&three));
    assert_eq!(refused.cluster.broker.groups, 3);
    assert_eq!(refused.refusals[0].reason, "ScaleInNotServed");
    assert!(
        refused.refusals[0]
            .message
            .contains("3 broker groups are there and 2 are asked for")
    );
}

#[test]
fn volumes_keep_the_size_they_have() {
    let small = cluster(json!({"mode": "single-master", "broker": {"storage": {"size": "1Gi"}}}));
    let same = cluster(json!({"mode": "single-master", "broker": {"storage": {"size": "1024Mi"}}}));
    let large = cluster(json!({"mode": "single-master", "broker": {"storage": {"size": "2Gi"}}}));
    assert_eq!(plan(&same, &healthy(&small)).refusals, []);
    let refused = plan(&large, &healthy(&small));
    assert_eq!(refused.refusals[0].reason, "VolumeChangeNotServed");
    assert_eq!(refused.objects.stateful_sets, build(&small).stateful_sets);
}
