//! What the API server refuses (the definition's CEL rules, without a server) and what `validate` refuses, on the same inputs where both can see them.

use serde_json::json;

use super::*;

fn cluster(spec: Value) -> RocketCluster {
    named("demo", spec)
}

fn named(name: &str, spec: Value) -> RocketCluster {
    serde_json::from_value(json!({
        "apiVersion": "rocketcluster.io/v1alpha1",
        "kind": "RocketCluster",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": spec,
    }))
    .unwrap()
}

fn problems(cluster: &RocketCluster) -> String {
    validate(cluster, &Defaults::default())
        .map(|_| String::new())
        .unwrap_or_else(|invalid| invalid.to_string())
}

fn cel(cluster: &RocketCluster) -> String {
    cluster
        .validate_cel()
        .map(|()| String::new())
        .unwrap_or_else(|errors| errors.to_string())
}

fn cel_update(old: Value, new: Value) -> String {
    cluster(new)
        .validate_cel_update(&cluster(old))
        .map(|()| String::new())
        .unwrap_or_else(|errors| errors.to_string())
}

#[test]
fn what_is_right_passes_both() {
    for spec in [
        json!({"mode": "single-master"}),
        json!({"mode": "single-master", "broker": {"groups": 1, "replicasPerGroup": 1}}),
        json!({"mode": "multi-master"}),
        json!({"mode": "multi-master", "broker": {"groups": 1}}),
        json!({"mode": "2m-2s-async"}),
        json!({"mode": "2m-2s-sync", "broker": {"groups": 1, "replicasPerGroup": 3, "config": {"inSyncReplicas": 3}}}),
        json!({"mode": "dledger"}),
        json!({"mode": "dledger", "broker": {"groups": 2, "replicasPerGroup": 5, "config": {"preferredLeaderId": "n4"}}}),
        json!({"mode": "multi-master", "clusterName": "Default_Cluster", "broker": {"groups": 12}}),
        json!({"mode": "multi-master", "nameServer": {"replicas": 3, "config": {"orderMessageEnable": true}}}),
        json!({"mode": "single-master", "broker": {"config": {"flushDiskType": "SYNC_FLUSH", "fileReservedTime": 48, "diskMaxUsedSpaceRatio": "75"}}}),
        json!({"mode": "single-master", "broker": {"storage": {"size": "1.5Ti", "storageClassName": "fast", "whenDeleted": "Delete"}}}),
        json!({"mode": "single-master", "image": {"repository": "localhost:5000/rocket/cluster", "tag": "1.2.3-rc.1"}}),
        json!({"mode": "single-master", "broker": {"pod": {
            "volumes": [{"name": "certs", "secret": {"secretName": "x"}}],
            "volumeMounts": [{"name": "certs", "mountPath": "/certs", "readOnly": true}],
        }}}),
    ] {
        let cluster = cluster(spec.clone());
        assert_eq!(cel(&cluster), "", "{spec}");
        assert_eq!(problems(&cluster), "", "{spec}");
    }
}

#[test]
fn what_the_api_server_refuses_validate_refuses_too() {
    for (spec, sentence) in [
        (
            json!({"mode": "single-master", "broker": {"groups": 2}}),
            "single-master has one broker group",
        ),
        (
            json!({"mode": "multi-master", "broker": {"replicasPerGroup": 2}}),
            "one broker in a group",
        ),
        (
            json!({"mode": "dledger", "broker": {"replicasPerGroup": 4}}),
            "odd",
        ),
        (
            json!({"mode": "dledger", "broker": {"replicasPerGroup": 1}}),
            "odd",
        ),
        (
            json!({"mode": "2m-2s-async", "broker": {"replicasPerGroup": 1}}),
            "2 or more|two or more",
        ),
        (
            json!({"mode": "2m-2s-sync", "broker": {"replicasPerGroup": 1}}),
            "2 or more|two or more",
        ),
        (
            json!({"mode": "single-master", "broker": {"pod": {"volumes": [{"name": "data", "emptyDir": {}}]}}}),
            "the volume names data and config belong to the operator",
        ),
        (
            json!({"mode": "single-master", "broker": {"pod": {"volumes": [{"name": "x"}]}}}),
            "exactly one source",
        ),
        (
            json!({"mode": "single-master", "broker": {"pod": {"volumes": [{"name": "x", "emptyDir": {}}], "volumeMounts": [{"name": "x", "mountPath": "/data/x"}]}}}),
            "belong to the operator",
        ),
    ] {
        let cluster = cluster(spec.clone());
        for text in [cel(&cluster), problems(&cluster)] {
            assert!(
                sentence.split('|').any(|s| text.contains(s)),
                "{spec}: {text}"
            );
        }
    }
}

#[test]
fn names_must_leave_room_for_derived_names() {
    let longest = "a".repeat(MAX_NAME_LENGTH);
    let fits = named(&longest, json!({"mode": "single-master"}));
    assert_eq!(
        (cel(&fits), problems(&fits)),
        (String::new(), String::new())
    );
    let group = crate::build::names::broker_group(&longest, MAX_GROUPS - 1);
    assert!(group.len() <= 52, "{group}");
    for name in [
        "a".repeat(MAX_NAME_LENGTH + 1),
        "a.b".to_owned(),
        "1a".to_owned(),
        "a-".to_owned(),
        "A".to_owned(),
    ] {
        let cluster = named(&name, json!({"mode": "single-master"}));
        assert!(
            cel(&cluster).contains("metadata.name"),
            "{name}: {}",
            cel(&cluster)
        );
        assert!(problems(&cluster).contains("metadata.name"), "{name}");
    }
}

#[test]
fn changes_that_pass() {
    for (old, new) in [
        (
            json!({"mode": "single-master"}),
            json!({"mode": "multi-master"}),
        ),
        (
            json!({"mode": "multi-master"}),
            json!({"mode": "multi-master", "broker": {"groups": 3}}),
        ),
        (
            json!({"mode": "single-master"}),
            json!({"mode": "single-master", "clusterName": "demo"}),
        ),
        (
            json!({"mode": "single-master"}),
            json!({"mode": "2m-2s-async", "broker": {"groups": 1}}),
        ),
        (
            json!({"mode": "multi-master"}),
            json!({"mode": "2m-2s-sync"}),
        ),
        (
            json!({"mode": "2m-2s-async"}),
            json!({"mode": "2m-2s-sync", "broker": {"groups": 3, "replicasPerGroup": 3}}),
        ),
        (
            json!({"mode": "2m-2s-sync"}),
            json!({"mode": "2m-2s-async"}),
        ),
        (
            json!({"mode": "2m-2s-async", "broker": {"groups": 1}}),
            json!({"mode": "single-master", "broker": {"groups": 1}}),
        ),
        (
            json!({"mode": "2m-2s-sync", "broker": {"replicasPerGroup": 3}}),
            json!({"mode": "multi-master", "broker": {"replicasPerGroup": 1}}),
        ),
        (
            json!({"mode": "dledger"}),
            json!({"mode": "dledger", "broker": {"replicasPerGroup": 5}}),
        ),
        (
            json!({"mode": "dledger", "broker": {"replicasPerGroup": 5}}),
            json!({"mode": "dledger", "broker": {"replicasPerGroup": 3}}),
        ),
        (
            json!({"mode": "single-master", "broker": {"storage": {"size": "1024Mi"}}}),
            json!({"mode": "single-master", "broker": {"storage": {"size": "1Gi"}}}),
        ),
        (
            json!({"mode": "single-master", "nameServer": {"replicas": 3}}),
            json!({"mode": "single-master", "nameServer": {"replicas": 1}}),
        ),
    ] {
        assert_eq!(cel_update(old.clone(), new.clone()), "", "{old} -> {new}");
    }
}

#[test]
fn changes_that_are_refused() {
    for (old, new, sentence) in [
        (
            json!({"mode": "single-master"}),
            json!({"mode": "single-master", "clusterName": "other"}),
            "clusterName cannot be changed",
        ),
        (
            json!({"mode": "single-master", "clusterName": "x"}),
            json!({"mode": "single-master"}),
            "clusterName cannot be changed",
        ),
        (
            json!({"mode": "multi-master"}),
            json!({"mode": "dledger"}),
            "make a second cluster and migrate",
        ),
        (
            json!({"mode": "dledger"}),
            json!({"mode": "multi-master"}),
            "make a second cluster and migrate",
        ),
        (
            json!({"mode": "2m-2s-sync"}),
            json!({"mode": "dledger"}),
            "make a second cluster and migrate",
        ),
        (
            json!({"mode": "2m-2s-sync"}),
            json!({"mode": "single-master", "broker": {"groups": 1}}),
            "groups cannot be removed yet",
        ),
        (
            json!({"mode": "multi-master", "broker": {"groups": 3}}),
            json!({"mode": "multi-master"}),
            "groups cannot be removed yet",
        ),
        (
            json!({"mode": "multi-master"}),
            json!({"mode": "single-master"}),
            "groups cannot be removed yet",
        ),
        (
            json!({"mode": "single-master", "broker": {"storage": {"size": "2Gi"}}}),
            json!({"mode": "single-master", "broker": {"storage": {"size": "1900Mi"}}}),
            "cannot shrink",
        ),
        (
            json!({"mode": "single-master", "broker": {"storage": {"size": "2Gi"}}}),
            json!({"mode": "single-master", "broker": {"storage": {"size": "3Gi"}}}),
            "volumes cannot be grown by this version yet",
        ),
        (
            json!({"mode": "single-master", "nameServer": {"storage": {"size": "2Gi"}}}),
            json!({"mode": "single-master"}),
            "cannot shrink",
        ),
        (
            json!({"mode": "single-master"}),
            json!({"mode": "single-master", "broker": {"storage": {"size": "20Gi", "storageClassName": "fast"}}}),
            "storageClassName cannot be changed",
        ),
        (
            json!({"mode": "single-master"}),
            json!({"mode": "single-master", "broker": {"namePrefix": "b"}}),
            "namePrefix cannot be changed",
        ),
    ] {
        let text = cel_update(old.clone(), new.clone());
        assert!(text.contains(sentence), "{old} -> {new}: {text}");
    }
}

#[test]
fn owned_keys_are_refused_with_their_owner() {
    for (config, sentence) in [
        (
            json!({"brokerName": "x"}),
            "spec.broker.config.brokerName: brokerName belongs to spec.broker.namePrefix; take it out of config",
        ),
        (
            json!({"brokerClusterName": "x"}),
            "belongs to spec.clusterName",
        ),
        (json!({"brokerRole": "SLAVE"}), "belongs to spec.mode"),
        (
            json!({"storepathrootdir": "/x"}),
            "storePathRootDir belongs to spec.broker.storage",
        ),
        (
            json!({"listenPort": 1}),
            "belongs to the operator, whose Services",
        ),
        (
            json!({"namesrvAddr": "x"}),
            "belongs to the operator, which gives",
        ),
        (json!({"a b": 1}), "not the name of a property"),
        (json!({"x": null}), "takes text, a number or a truth value"),
        (
            json!({"x": {"y": 1}}),
            "takes text, a number or a truth value",
        ),
        (
            json!({"shutdownDrainMs": "soon"}),
            "\"soon\" is not a number of milliseconds",
        ),
        (
            json!({"shutdownDrainMs": 600_001}),
            "is not a number of milliseconds",
        ),
    ] {
        let text = problems(&cluster(
            json!({"mode": "single-master", "broker": {"config": config}}),
        ));
        assert!(text.contains(sentence), "{config}: {text}");
    }
    let text = problems(&cluster(
        json!({"mode": "single-master", "nameServer": {"config": {"kvConfigPath": "/x"}}}),
    ));
    assert!(
        text.contains("kvConfigPath belongs to spec.nameServer.storage"),
        "{text}"
    );
}

#[test]
fn values_that_cannot_be_are_refused_before_any_broker_meets_them() {
    for (spec, sentence) in [
        (
            json!({"mode": "single-master", "broker": {"config": {"fileReservedTime": "soon"}}}),
            "spec.broker.config.fileReservedTime: \"soon\" is not a whole number of 32 bits",
        ),
        (
            json!({"mode": "single-master", "broker": {"config": {"traceOn": "perhaps"}}}),
            "spec.broker.config.traceOn: \"perhaps\" is not true or false",
        ),
        (
            json!({"mode": "2m-2s-sync", "broker": {"config": {"inSyncReplicas": 3}}}),
            "asks for more copies than the 2 brokers of a group can hold",
        ),
        (
            json!({"mode": "dledger", "broker": {"config": {"preferredLeaderId": "n3"}}}),
            "there is no member \"n3\": the members of a group are n0 to n2",
        ),
        (
            json!({"mode": "2m-2s-sync", "broker": {"config": {"preferredLeaderId": "n0"}}}),
            "has a meaning in mode dledger only",
        ),
        (
            json!({"mode": "dledger", "broker": {"config": {"dLegerPeers": "n0-x:1"}}}),
            "dLegerPeers belongs to spec.mode",
        ),
    ] {
        let text = problems(&cluster(spec.clone()));
        assert!(text.contains(sentence), "{spec}: {text}");
    }
}

#[test]
fn everything_wrong_is_told_at_once() {
    let invalid = validate(
        &cluster(json!({
            "mode": "single-master",
            "broker": {"groups": 2, "config": {"brokerId": 1}, "pod": {"env": [{"name": "ROCKETMQ_LISTEN_PORT", "value": "1"}], "labels": {"rocketcluster.io/group": "7"}}},
        })),
        &Defaults::default(),
    )
    .unwrap_err();
    let paths: Vec<&str> = invalid.0.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "spec.broker.groups",
            "spec.broker.config.brokerId",
            "spec.broker.pod.labels",
            "spec.broker.pod.env"
        ]
    );
}

#[test]
fn defaults_come_from_the_mode_and_the_installation() {
    let defaults = Defaults {
        repository: "reg.example/rc/".to_owned(),
        tag: "1.0".to_owned(),
        pull_policy: PullPolicy::Always,
    };
    let got = validate(&cluster(json!({"mode": "multi-master"})), &defaults).unwrap();
    assert_eq!(
        (
            got.name_server.replicas,
            got.broker.groups,
            got.broker.replicas_per_group
        ),
        (2, 2, 1)
    );
    assert_eq!(
        (got.cluster_name.as_str(), got.namespace.as_str()),
        ("demo", "shop")
    );
    assert_eq!(got.broker.image, "reg.example/rc/mqbroker:1.0");
    assert_eq!(got.name_server.image, "reg.example/rc/mqnamesrv:1.0");
    let got = validate(&cluster(json!({"mode": "single-master", "image": {"tag": "2.0"}, "broker": {"config": {"shutdownDrainMs": 0}}})), &defaults).unwrap();
    assert_eq!(
        (
            got.name_server.replicas,
            got.broker.groups,
            got.broker.shutdown_drain_ms
        ),
        (1, 1, 0)
    );
    assert_eq!(got.broker.image, "reg.example/rc/mqbroker:2.0");
    assert!(
        got.broker.config.is_empty(),
        "rendered from the checked number alone"
    );
}

#[test]
fn sizes() {
    for (text, bytes) in [
        ("1", Some(1)),
        ("1k", Some(1000)),
        ("1Ki", Some(1024)),
        ("1.5Gi", Some(1_610_612_736)),
        ("0.001", Some(1)),
        ("1.0001Gi", None),
        ("Gi", None),
        ("-1Gi", None),
        ("1e3", None),
        ("", None),
    ] {
        assert_eq!(size_bytes(text), bytes, "{text}");
    }
}
