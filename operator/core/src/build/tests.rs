use k8s_openapi::Resource;
use serde_json::{Value, json};

use super::*;
use crate::fixtures::cluster;

fn built(spec: Value) -> Objects {
    build(&cluster(spec))
}

fn metas(objects: &Objects) -> Vec<(&'static str, &ObjectMeta)> {
    fn of<K: Resource>(
        list: &[K],
        meta: fn(&K) -> &ObjectMeta,
    ) -> Vec<(&'static str, &ObjectMeta)> {
        list.iter().map(|o| (K::KIND, meta(o))).collect()
    }
    [
        of(&objects.service_accounts, |o| &o.metadata),
        of(&objects.config_maps, |o| &o.metadata),
        of(&objects.services, |o| &o.metadata),
        of(&objects.pod_disruption_budgets, |o| &o.metadata),
        of(&objects.stateful_sets, |o| &o.metadata),
    ]
    .concat()
}

fn names_of(objects: &Objects) -> Vec<String> {
    let named =
        |(kind, meta): (&str, &ObjectMeta)| format!("{kind} {}", meta.name.clone().unwrap());
    metas(objects).into_iter().map(named).collect()
}

#[test]
fn the_objects_of_a_multi_master_cluster() {
    let objects = built(json!({"mode": "multi-master"}));
    assert_eq!(
        names_of(&objects),
        [
            "ServiceAccount demo-rocketmq",
            "ConfigMap demo-namesrv",
            "ConfigMap demo-broker-0",
            "ConfigMap demo-broker-1",
            "Service demo-namesrv",
            "Service demo-namesrv-nodes",
            "Service demo-broker-0",
            "Service demo-broker-0-0",
            "Service demo-broker-1",
            "Service demo-broker-1-0",
            "PodDisruptionBudget demo-namesrv",
            "PodDisruptionBudget demo-broker-0",
            "PodDisruptionBudget demo-broker-1",
            "StatefulSet demo-namesrv",
            "StatefulSet demo-broker-0",
            "StatefulSet demo-broker-1",
        ]
    );
}

#[test]
fn the_files() {
    let objects = built(json!({
        "mode": "multi-master",
        "clusterName": "shop-1",
        "nameServer": {"config": {"orderMessageEnable": true}},
        "broker": {"namePrefix": "b", "config": {"fileReservedTime": 48, "flushDiskType": "SYNC_FLUSH", "shutdownDrainMs": 500}},
    }));
    assert_eq!(
        objects.config_of("demo-broker-1-0").unwrap(),
        "brokerClusterName=shop-1\n\
         brokerName=b-1\n\
         brokerId=0\n\
         brokerRole=ASYNC_MASTER\n\
         namesrvAddr=demo-namesrv-nodes.shop.svc:9876\n\
         advertisedHost=demo-broker-1-0.shop.svc\n\
         listenPort=10911\n\
         httpPort=10913\n\
         storePathRootDir=/data/store\n\
         shutdownDrainMs=500\n\
         haListenPort=10912\n\
         flushDiskType=SYNC_FLUSH\n\
         # dynamic\n\
         fileReservedTime=48\n"
    );
    assert_eq!(
        objects.config_of("demo-namesrv-1").unwrap(),
        "listenPort=9876\n\
         httpPort=9877\n\
         kvConfigPath=/data/namesrv/kvConfig.json\n\
         deleteTopicWithBrokerRegistration=true\n\
         orderMessageEnable=true\n"
    );
    assert_eq!(objects.config_of("demo-namesrv-2"), None);
}

#[test]
fn the_files_of_a_master_and_its_slave() {
    let of = |mode: &str| built(json!({"mode": mode, "broker": {"config": {"traceOn": false}}}));
    let (objects, sync) = (of("2m-2s-async"), of("2m-2s-sync"));
    let master = "brokerClusterName=demo\n\
         brokerName=broker-1\n\
         brokerId=0\n\
         brokerRole=ASYNC_MASTER\n\
         namesrvAddr=demo-namesrv-nodes.shop.svc:9876\n\
         advertisedHost=demo-broker-1-0.shop.svc\n\
         listenPort=10911\n\
         httpPort=10913\n\
         storePathRootDir=/data/store\n\
         shutdownDrainMs=2000\n\
         haListenPort=10912\n\
         # dynamic\n\
         slaveReadEnable=true\n\
         traceOn=false\n";
    assert_eq!(objects.config_of("demo-broker-1-0").unwrap(), master);
    let slave = "brokerClusterName=demo\n\
         brokerName=broker-1\n\
         brokerId=1\n\
         brokerRole=SLAVE\n\
         namesrvAddr=demo-namesrv-nodes.shop.svc:9876\n\
         advertisedHost=demo-broker-1-1.shop.svc\n\
         listenPort=10911\n\
         httpPort=10913\n\
         storePathRootDir=/data/store\n\
         shutdownDrainMs=2000\n\
         haListenPort=10912\n\
         haMasterAddress=demo-broker-1-0.demo-broker-1.shop.svc:10912\n\
         # dynamic\n\
         slaveReadEnable=true\n\
         traceOn=false\n";
    assert_eq!(objects.config_of("demo-broker-1-1").unwrap(), slave);
    // Only the master knows of the difference.
    assert_eq!(
        sync.config_of("demo-broker-1-0").unwrap(),
        master.replace("ASYNC_MASTER", "SYNC_MASTER")
    );
    assert_eq!(sync.config_of("demo-broker-1-1").unwrap(), slave);
    assert_eq!(objects.stateful_sets, sync.stateful_sets);
}

#[test]
fn the_file_of_a_member_that_is_elected_or_not() {
    let objects =
        built(json!({"mode": "dledger", "broker": {"config": {"preferredLeaderId": "n1"}}}));
    assert_eq!(
        objects.config_of("demo-broker-0-2").unwrap(),
        "brokerClusterName=demo\n\
         brokerName=broker-0\n\
         enableDLegerCommitLog=true\n\
         dLegerGroup=broker-0\n\
         dLegerSelfId=n2\n\
         namesrvAddr=demo-namesrv-nodes.shop.svc:9876\n\
         advertisedHost=demo-broker-0-2.shop.svc\n\
         listenPort=10911\n\
         httpPort=10913\n\
         storePathRootDir=/data/store\n\
         shutdownDrainMs=2000\n\
         preferredLeaderId=n1\n\
         # dynamic\n\
         slaveReadEnable=true\n\
         dLegerPeers=n0-demo-broker-0-0.demo-broker-0.shop.svc:40911;n1-demo-broker-0-1.demo-broker-0.shop.svc:40911;n2-demo-broker-0-2.demo-broker-0.shop.svc:40911\n"
    );
}

#[test]
fn the_objects_of_groups_with_copies() {
    for (mode, expected) in [
        (
            "2m-2s-sync",
            &[
                "Service demo-broker-1",
                "Service demo-broker-1-0",
                "Service demo-broker-1-1",
            ][..],
        ),
        (
            "dledger",
            &[
                "Service demo-broker-0",
                "Service demo-broker-0-0",
                "Service demo-broker-0-1",
                "Service demo-broker-0-2",
            ],
        ),
    ] {
        let objects = built(json!({"mode": mode}));
        let names = names_of(&objects);
        let services: Vec<&String> = names
            .iter()
            .filter(|name| expected.contains(&name.as_str()))
            .collect();
        assert_eq!(services, expected);
        let (name, port) = if mode == "dledger" {
            ("raft", 40911)
        } else {
            ("ha", 10912)
        };
        let group = objects.services.iter().find(|service| {
            service
                .metadata
                .name
                .as_deref()
                .is_some_and(|n| n.ends_with("broker-0"))
        });
        let spec = group.unwrap().spec.clone().unwrap();
        assert_eq!(spec.publish_not_ready_addresses, Some(true));
        let port_of = |ports: &[ServicePort]| {
            let found = ports.iter().find(|p| p.name.as_deref() == Some(name));
            found.map(|p| p.port)
        };
        assert_eq!(port_of(&spec.ports.unwrap()), Some(port));
        let set = objects.stateful_sets.last().unwrap().spec.clone().unwrap();
        assert_eq!(set.replicas, Some(if mode == "dledger" { 3 } else { 2 }));
        let pod = set.template.spec.unwrap();
        let ports = pod.containers[0].ports.clone().unwrap();
        assert!(
            ports
                .iter()
                .any(|p| p.name.as_deref() == Some(name) && p.container_port == port)
        );
        let apart = pod.affinity.unwrap().pod_anti_affinity.unwrap();
        let terms = apart
            .preferred_during_scheduling_ignored_during_execution
            .unwrap();
        let labels = terms[0].pod_affinity_term.label_selector.clone().unwrap();
        assert!(labels.match_labels.unwrap().contains_key(LABEL_GROUP));
        for budget in &objects.pod_disruption_budgets {
            assert_eq!(
                budget.spec.as_ref().unwrap().max_unavailable,
                Some(IntOrString::Int(1))
            );
        }
    }
}

/// What a mode change may touch: a pod template that changed would restart everybody, so nothing but the master's file may differ.
#[test]
fn modes_that_change_into_each_other_share_their_pod_template() {
    let template = |spec: serde_json::Value| {
        let objects = built(spec);
        let set = objects.stateful_sets[1].clone();
        assert_eq!(set.metadata.name.as_deref(), Some("demo-broker-0"));
        set.spec.unwrap().template
    };
    let single = template(json!({"mode": "single-master"}));
    for mode in ["multi-master", "2m-2s-async", "2m-2s-sync"] {
        assert_eq!(template(json!({"mode": mode})), single, "{mode}");
    }
    let file = |mode: &str| {
        let objects = built(json!({"mode": mode}));
        config_hash(objects.config_of("demo-broker-0-0").unwrap().as_bytes())
    };
    assert_eq!(file("single-master"), file("2m-2s-async"));
    assert_eq!(file("multi-master"), file("2m-2s-async"));
    assert_ne!(file("2m-2s-async"), file("2m-2s-sync"));
}

#[test]
fn more_members_restart_nobody() {
    let three = built(json!({"mode": "dledger"}));
    let five = built(json!({"mode": "dledger", "broker": {"replicasPerGroup": 5}}));
    let hash =
        |objects: &Objects| config_hash(objects.config_of("demo-broker-0-1").unwrap().as_bytes());
    assert_eq!(hash(&three), hash(&five));
    assert_eq!(
        three.stateful_sets[1].spec.as_ref().unwrap().template,
        five.stateful_sets[1].spec.as_ref().unwrap().template
    );
}

#[test]
fn what_can_never_change_on_a_stateful_set() {
    for set in built(json!({"mode": "multi-master"})).stateful_sets {
        let spec = set.spec.unwrap();
        assert_eq!(spec.pod_management_policy.as_deref(), Some("Parallel"));
        assert_eq!(
            spec.update_strategy.unwrap().type_.as_deref(),
            Some("OnDelete")
        );
        let name = set.metadata.name.unwrap();
        let (service, labels) = match name.as_str() {
            "demo-namesrv" => (
                "demo-namesrv-nodes",
                json!({"rocketcluster.io/cluster": "demo", "rocketcluster.io/component": "namesrv"}),
            ),
            group => (
                group,
                json!({"rocketcluster.io/cluster": "demo", "rocketcluster.io/component": "broker", "rocketcluster.io/group": group.trim_start_matches("demo-broker-")}),
            ),
        };
        assert_eq!(spec.service_name.as_deref(), Some(service));
        assert_eq!(json!(spec.selector.match_labels.unwrap()), labels);
        assert_eq!(
            spec.volume_claim_templates.unwrap()[0]
                .metadata
                .name
                .as_deref(),
            Some("data")
        );
    }
}

#[test]
fn pods_pass_the_restricted_pod_security_standard() {
    for set in built(json!({"mode": "single-master"})).stateful_sets {
        let pod = set.spec.unwrap().template.spec.unwrap();
        let security = pod.security_context.unwrap();
        assert_eq!(security.run_as_non_root, Some(true));
        assert_ne!(security.run_as_user, Some(0));
        assert_eq!(security.seccomp_profile.unwrap().type_, "RuntimeDefault");
        assert_eq!(
            (
                pod.automount_service_account_token,
                pod.enable_service_links
            ),
            (Some(false), Some(false))
        );
        for container in pod.containers {
            let security = container.security_context.unwrap();
            assert_eq!(security.allow_privilege_escalation, Some(false));
            assert_eq!(security.read_only_root_filesystem, Some(true));
            assert_eq!(security.capabilities.unwrap().drop.unwrap(), ["ALL"]);
            assert_eq!(
                container.args.unwrap(),
                ["-c", "/etc/rocketmq/$(POD_NAME).conf"]
            );
            assert!(
                container.startup_probe.is_some()
                    && container.readiness_probe.is_some()
                    && container.liveness_probe.is_some()
            );
        }
    }
}

#[test]
fn the_grace_period_follows_the_drain() {
    let grace = |config: serde_json::Value| {
        let objects = built(json!({"mode": "single-master", "broker": {"config": config}}));
        let set = objects.stateful_sets.last().unwrap().clone();
        set.spec
            .unwrap()
            .template
            .spec
            .unwrap()
            .termination_grace_period_seconds
            .unwrap()
    };
    assert_eq!(grace(json!({})), 62);
    assert_eq!(grace(json!({"shutdownDrainMs": 30_001})), 91);
}

#[test]
fn pods_keep_their_selector_labels_and_can_be_adjusted() {
    let objects = built(json!({
        "mode": "single-master",
        "broker": {"pod": {
            "labels": {"team": "shop"},
            "affinity": {},
            "serviceAccountName": "mine",
            "env": [{"name": "RUST_LOG", "value": "debug"}],
            "volumes": [{"name": "certs", "secret": {"secretName": "x"}}],
            "volumeMounts": [{"name": "certs", "mountPath": "/certs"}],
        }},
    }));
    let template = objects.stateful_sets[1].spec.clone().unwrap().template;
    let labels = template.metadata.unwrap().labels.unwrap();
    assert_eq!(
        (labels["team"].as_str(), labels[LABEL_GROUP].as_str()),
        ("shop", "0")
    );
    let pod = template.spec.unwrap();
    assert_eq!(pod.affinity, Some(Default::default()));
    assert_eq!(pod.service_account_name.as_deref(), Some("mine"));
    assert_eq!(pod.containers[0].env.as_ref().unwrap()[1].name, "RUST_LOG");
    assert_eq!(pod.containers[0].volume_mounts.as_ref().unwrap().len(), 3);
    assert_eq!(pod.volumes.unwrap().len(), 2);
}

#[test]
fn members_keep_apart_as_far_as_nodes_allow_or_wait_for_a_node() {
    let apart = |pod: Value| {
        let objects =
            built(json!({"mode": "dledger", "broker": {"pod": pod}, "nameServer": {"pod": pod}}));
        let terms = |set: &StatefulSet| {
            let pod = set.spec.clone().unwrap().template.spec.unwrap();
            let apart = pod.affinity.unwrap().pod_anti_affinity.unwrap();
            let required = apart.required_during_scheduling_ignored_during_execution;
            let preferred = apart.preferred_during_scheduling_ignored_during_execution;
            let group_of = |term: &k8s_openapi::api::core::v1::PodAffinityTerm| {
                assert_eq!(term.topology_key, "kubernetes.io/hostname");
                let labels = term.label_selector.clone().unwrap().match_labels.unwrap();
                labels.contains_key(LABEL_GROUP)
            };
            let preferred = preferred.unwrap_or_default();
            (
                required
                    .unwrap_or_default()
                    .iter()
                    .map(group_of)
                    .collect::<Vec<bool>>(),
                preferred
                    .iter()
                    .map(|p| (p.weight, group_of(&p.pod_affinity_term)))
                    .collect::<Vec<_>>(),
            )
        };
        (
            terms(&objects.stateful_sets[0]),
            terms(&objects.stateful_sets[1]),
        )
    };
    let default = (
        (vec![], vec![(50, false)]),
        (vec![], vec![(100, true), (50, false)]),
    );
    assert_eq!(apart(json!({})), default);
    assert_eq!(apart(json!({"antiAffinity": "Preferred"})), default);
    assert_eq!(
        apart(json!({"antiAffinity": "Required"})),
        ((vec![false], vec![]), (vec![true], vec![(50, false)]))
    );
}

#[test]
fn every_object_has_its_owner_and_its_labels() {
    let objects = built(json!({"mode": "multi-master"}));
    for (_, meta) in metas(&objects) {
        let labels = meta.labels.as_ref().unwrap();
        assert_eq!(labels[LABEL_CLUSTER], "demo");
        assert_eq!(labels[LABEL_MANAGED_BY], MANAGED_BY);
        assert_eq!(meta.owner_references.as_ref().unwrap()[0].uid, "u-1");
        assert_eq!(meta.namespace.as_deref(), Some("shop"));
        assert!(meta.name.as_ref().unwrap().len() <= 63);
    }
}

#[test]
fn scaling_name_servers_touches_no_broker_and_no_other_name_server() {
    let two = built(json!({"mode": "multi-master"}));
    let three = built(json!({"mode": "multi-master", "nameServer": {"replicas": 3}}));
    assert_eq!(two.stateful_sets[1..], three.stateful_sets[1..]);
    assert_eq!(two.config_maps[1..], three.config_maps[1..]);
    assert_eq!(
        two.stateful_sets[0].spec.as_ref().unwrap().template,
        three.stateful_sets[0].spec.as_ref().unwrap().template
    );
    assert_eq!(
        two.config_of("demo-namesrv-0"),
        three.config_of("demo-namesrv-0")
    );
}

#[test]
fn what_is_written_to_a_property_file() {
    let pairs = [
        ("a b".to_owned(), " x y ".to_owned()),
        ("k=:".to_owned(), "a=b:c#d\\e\n".to_owned()),
        ("#k".to_owned(), "ü😀".to_owned()),
    ];
    assert_eq!(
        write_properties(&pairs),
        "a\\u0020b=\\u0020x y\\u0020\nk\\=\\:=a=b:c#d\\\\e\\n\n\\#k=\\u00fc\\ud83d\\ude00\n"
    );
}

#[test]
fn the_hash_is_the_servers_own() {
    // The same two lines stand in remoting::properties.
    assert_eq!(config_hash(b""), "cbf29ce484222325");
    assert_eq!(config_hash(b"foobar"), "85944171f73967e8");
    assert_eq!(
        config_hash(b"foobar\n# dynamic\nx=1\n"),
        config_hash(b"foobar\n")
    );
}
