//! Whole reconciles against the small Kubernetes of `fixtures`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::fixtures::{Crash, Fake};

/// Looks at a cluster until there is nothing left to do, as the watches and requeues would. Returns how often.
async fn settle(fake: &Fake, context: &Arc<Context>, name: &str) -> usize {
    for round in 0..200 {
        let before = fake.state().writes.len();
        let calm = look(fake, context, name)
            .await
            .is_ok_and(|action| action == Action::requeue(CALM));
        fake.tick();
        if calm && fake.state().writes.len() == before {
            return round;
        }
    }
    panic!(
        "not settled: {:?}, {:#?}",
        look(fake, context, name).await,
        fake.state().writes
    );
}

async fn look(fake: &Fake, context: &Arc<Context>, name: &str) -> Result<Action, Error> {
    let object = fake.get("rocketclusters", name).unwrap();
    let object: Guarded = serde_json::from_value(object).unwrap();
    reconcile(Arc::new(object), context.clone()).await
}

fn condition(fake: &Fake, name: &str, kind: &str) -> (String, String, String) {
    let object = fake.get("rocketclusters", name).unwrap();
    let conditions = object["status"]["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|c| c["type"] == kind).unwrap();
    let text = |field: &str| found[field].as_str().unwrap().to_owned();
    (text("status"), text("reason"), text("message"))
}

async fn running(spec: Value) -> (Fake, Arc<Context>) {
    let fake = Fake::default();
    fake.user_applies("demo", spec);
    let context = fake.context();
    settle(&fake, &context, "demo").await;
    assert_eq!(condition(&fake, "demo", "Ready").0, "True");
    let mut state = fake.state();
    state.writes.clear();
    state.events.clear();
    drop(state);
    (fake, context)
}

fn multi_master() -> Value {
    json!({"mode": "multi-master"})
}

#[tokio::test]
async fn a_cluster_comes_up() {
    let fake = Fake::default();
    fake.user_applies("demo", multi_master());
    let context = fake.context();
    settle(&fake, &context, "demo").await;
    assert_eq!(
        condition(&fake, "demo", "Ready"),
        (
            "True".into(),
            "AllRegistered".into(),
            "2 name servers, 2 of 2 brokers registered and ready".into()
        )
    );
    assert_eq!(condition(&fake, "demo", "Progressing").0, "False");
    assert_eq!(
        fake.names("pods"),
        [
            "demo-broker-0-0",
            "demo-broker-1-0",
            "demo-namesrv-0",
            "demo-namesrv-1"
        ]
    );
    let writes = fake.state().writes.clone();
    let first = |what: &str| writes.iter().position(|w| w.starts_with(what)).unwrap();
    assert!(first("PATCH serviceaccounts") < first("PATCH configmaps"));
    assert!(first("PATCH configmaps") < first("PATCH services"));
    assert!(first("PATCH services") < first("PATCH statefulsets"));
    let status = &fake.get("rocketclusters", "demo").unwrap()["status"];
    assert_eq!(
        (&status["readyBrokers"], &status["readyNameServers"]),
        (&json!("2/2"), &json!("2/2"))
    );
    assert_eq!(status["observedGeneration"], 1);
    assert!(
        status["brokers"][0]["address"]
            .as_str()
            .unwrap()
            .ends_with(":10911")
    );
    assert!(
        fake.state()
            .events
            .iter()
            .any(|e| e.starts_with("AllRegistered: "))
    );
    assert!(fake.names("rocketclusters").len() == 1);
}

#[tokio::test]
async fn nothing_is_written_when_nothing_changed() {
    let (fake, context) = running(multi_master()).await;
    for _ in 0..3 {
        look(&fake, &context, "demo").await.unwrap();
        fake.tick();
    }
    // A fresh process applies all once, and that changes nothing.
    let versions = fake.essence();
    look(&fake, &fake.context(), "demo").await.unwrap();
    assert_eq!(fake.essence(), versions);
    assert_eq!(
        fake.state()
            .writes
            .iter()
            .filter(|w| !w.starts_with("PATCH") || w.ends_with("/status"))
            .count(),
        0
    );
    assert_eq!(fake.state().events, [""; 0]);
}

#[tokio::test]
async fn drift_is_put_back() {
    let (fake, context) = running(multi_master()).await;
    let before = fake.essence();
    fake.edit("services", "demo-namesrv", |o| {
        o["spec"]["ports"][0]["port"] = json!(1)
    });
    fake.edit("configmaps", "demo-broker-0", |o| {
        o["data"]["demo-broker-0-0.conf"] = json!("brokerName=evil")
    });
    fake.edit("statefulsets", "demo-broker-1", |o| {
        o["spec"]["replicas"] = json!(0)
    });
    fake.remove("services", "demo-broker-1");
    fake.remove("poddisruptionbudgets", "demo-namesrv");
    settle(&fake, &context, "demo").await;
    assert_eq!(fake.essence(), before);
}

#[tokio::test]
async fn orphans_are_swept_and_nobody_elses_objects() {
    let (fake, context) = running(multi_master()).await;
    let like = |kind: &str, name: &str, uid: &str| {
        json!({"apiVersion": "v1", "kind": kind, "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"),
            "labels": {"rocketcluster.io/cluster": "demo", "app.kubernetes.io/managed-by": "rocketcluster-operator"},
            "ownerReferences": [{"apiVersion": "rocketcluster.io/v1alpha1", "kind": "RocketCluster", "name": "demo", "uid": uid}],
        }})
    };
    fake.insert(
        "configmaps",
        like("ConfigMap", "demo-of-an-older-operator", "uid-of-demo"),
    );
    fake.insert(
        "services",
        like("Service", "demo-of-an-older-operator", "uid-of-demo"),
    );
    fake.insert(
        "configmaps",
        like(
            "ConfigMap",
            "demo-of-an-earlier-demo",
            "uid-of-an-earlier-demo",
        ),
    );
    settle(&fake, &context, "demo").await;
    assert_eq!(fake.get("configmaps", "demo-of-an-older-operator"), None);
    assert_eq!(fake.get("services", "demo-of-an-older-operator"), None);
    assert!(fake.get("configmaps", "demo-of-an-earlier-demo").is_some());
    assert_eq!(
        fake.state()
            .writes
            .iter()
            .filter(|w| w.starts_with("DELETE"))
            .count(),
        2
    );
}

#[tokio::test]
async fn an_object_of_somebody_else_is_not_taken_over() {
    let fake = Fake::default();
    fake.user_applies("demo", multi_master());
    fake.insert("services", json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "demo-namesrv", "namespace": "shop", "uid": "x"}, "spec": {"clusterIP": "10.96.0.1"}}));
    let before = fake.get("services", "demo-namesrv");
    let error = look(&fake, &fake.context(), "demo").await.unwrap_err();
    assert_eq!(error.reason(), "ObjectNotOurs");
    assert_eq!(fake.get("services", "demo-namesrv"), before);
    let (truth, reason, message) = condition(&fake, "demo", "Degraded");
    assert_eq!((truth.as_str(), reason.as_str()), ("True", "ObjectNotOurs"));
    assert!(
        message.starts_with("Service demo-namesrv is there already"),
        "{message}"
    );
}

/// The pods in the order in which they were restarted.
fn restarts(fake: &Fake) -> Vec<String> {
    fake.state()
        .writes
        .iter()
        .filter_map(|w| Some(w.strip_prefix("DELETE pods/")?.to_owned()))
        .collect()
}

#[tokio::test]
async fn a_new_image_rolls_every_pod_one_by_one() {
    let (fake, context) = running(multi_master()).await;
    fake.user_applies(
        "demo",
        json!({"mode": "multi-master", "image": {"tag": "2.0"}}),
    );
    // From the first look on it is told that the change is not done.
    look(&fake, &context, "demo").await.unwrap();
    assert_eq!(condition(&fake, "demo", "Progressing").0, "True");
    settle(&fake, &context, "demo").await;
    assert_eq!(
        restarts(&fake),
        [
            "demo-namesrv-1",
            "demo-namesrv-0",
            "demo-broker-0-0",
            "demo-broker-1-0"
        ]
    );
    assert_eq!(fake.state().worst, 1);
    for pod in fake.names("pods") {
        assert!(
            fake.get("pods", &pod).unwrap()["spec"]["containers"][0]["image"]
                .as_str()
                .unwrap()
                .ends_with(":2.0")
        );
    }
    assert_eq!(condition(&fake, "demo", "Ready").0, "True");
    assert!(fake.state().events.iter().any(
        |e| e == "RestartingPod: restarting demo-broker-0-0: its image or pod settings changed"
    ));
}

#[tokio::test]
async fn a_changed_key_rolls_the_brokers_only() {
    let (fake, context) = running(multi_master()).await;
    fake.user_applies(
        "demo",
        json!({"mode": "multi-master", "broker": {"config": {"flushDiskType": "SYNC_FLUSH"}}}),
    );
    settle(&fake, &context, "demo").await;
    assert_eq!(restarts(&fake), ["demo-broker-0-0", "demo-broker-1-0"]);
    assert_eq!(fake.state().worst, 1);
}

#[tokio::test]
async fn a_broker_that_is_not_registered_again_holds_the_roll() {
    let (fake, context) = running(multi_master()).await;
    fake.user_applies(
        "demo",
        json!({"mode": "multi-master", "broker": {"config": {"flushDiskType": "SYNC_FLUSH"}}}),
    );
    for _ in 0..20 {
        look(&fake, &context, "demo").await.unwrap();
        if restarts(&fake).len() == 1 {
            let mut state = fake.state();
            state.unregistered.insert("demo-broker-0-0".to_owned());
        }
        fake.tick();
    }
    assert_eq!(restarts(&fake), ["demo-broker-0-0"]);
    assert_eq!(
        condition(&fake, "demo", "Ready").2,
        "demo-broker-0-0 is not registered with every name server yet"
    );
    fake.state().unregistered.clear();
    settle(&fake, &context, "demo").await;
    assert_eq!(restarts(&fake), ["demo-broker-0-0", "demo-broker-1-0"]);
}

#[tokio::test]
async fn a_bad_image_stops_at_one_pod_and_is_repaired() {
    let (fake, context) = running(multi_master()).await;
    fake.user_applies(
        "demo",
        json!({"mode": "multi-master", "image": {"tag": "bad"}}),
    );
    for _ in 0..20 {
        look(&fake, &context, "demo").await.unwrap();
        fake.tick();
    }
    assert_eq!(restarts(&fake), ["demo-namesrv-1"]);
    assert_eq!(
        condition(&fake, "demo", "Degraded").2,
        "demo-namesrv-1: ImagePullBackOff: no such image"
    );
    fake.user_applies("demo", multi_master());
    settle(&fake, &context, "demo").await;
    assert_eq!(condition(&fake, "demo", "Ready").0, "True");
    assert_eq!(restarts(&fake), ["demo-namesrv-1", "demo-namesrv-1"]);
}

#[tokio::test]
async fn name_servers_scale_without_touching_a_broker() {
    let (fake, context) = running(multi_master()).await;
    for replicas in [3, 1] {
        fake.user_applies(
            "demo",
            json!({"mode": "multi-master", "nameServer": {"replicas": replicas}}),
        );
        settle(&fake, &context, "demo").await;
        assert_eq!(fake.names("pods").len(), 2 + replicas);
    }
    assert_eq!(restarts(&fake), [""; 0]);
}

#[tokio::test]
async fn groups_grow_and_a_smaller_number_is_refused() {
    let (fake, context) = running(multi_master()).await;
    fake.user_applies(
        "demo",
        json!({"mode": "multi-master", "broker": {"groups": 3}}),
    );
    settle(&fake, &context, "demo").await;
    assert!(fake.get("pods", "demo-broker-2-0").is_some());
    assert_eq!(
        fake.get("rocketclusters", "demo").unwrap()["status"]["groups"],
        3
    );
    fake.user_applies("demo", multi_master());
    settle(&fake, &context, "demo").await;
    assert!(fake.get("pods", "demo-broker-2-0").is_some());
    let (truth, reason, _) = condition(&fake, "demo", "Degraded");
    assert_eq!(
        (truth.as_str(), reason.as_str()),
        ("True", "ScaleInNotServed")
    );
    assert_eq!(restarts(&fake), [""; 0]);
}

fn with_slaves(mode: &str) -> Value {
    json!({"mode": mode, "nameServer": {"replicas": 1}})
}

#[tokio::test]
async fn slaves_are_restarted_before_their_masters_and_each_waits_until_the_last_has_caught_up() {
    for mode in ["2m-2s-async", "2m-2s-sync"] {
        let (fake, context) = running(with_slaves(mode)).await;
        let mut spec = with_slaves(mode);
        spec["image"] = json!({"tag": "2.0"});
        fake.user_applies("demo", spec);
        settle(&fake, &context, "demo").await;
        assert_eq!(
            restarts(&fake),
            [
                "demo-namesrv-0",
                "demo-broker-0-1",
                "demo-broker-0-0",
                "demo-broker-1-1",
                "demo-broker-1-0"
            ]
        );
        let state = fake.state();
        assert_eq!((state.worst, state.worst_of_group), (1, 1));
        assert_eq!(state.violations, [""; 0]);
    }
}

#[tokio::test]
async fn a_slave_that_does_not_catch_up_holds_its_master() {
    let (fake, context) = running(with_slaves("2m-2s-sync")).await;
    fake.state()
        .lag
        .insert("demo-broker-0-1".to_owned(), 700 << 20);
    let mut spec = with_slaves("2m-2s-sync");
    spec["broker"] = json!({"config": {"flushDiskType": "SYNC_FLUSH"}});
    fake.user_applies("demo", spec);
    for _ in 0..20 {
        look(&fake, &context, "demo").await.unwrap();
        fake.tick();
    }
    // It is itself outdated and not well, so it is restarted; nobody else is.
    assert_eq!(restarts(&fake), ["demo-broker-0-1"]);
    let said = "demo-broker-0-1 has not caught up: it is more than 512 MiB behind";
    assert_eq!(condition(&fake, "demo", "Ready").2, said);
    let row = &fake.get("rocketclusters", "demo").unwrap()["status"]["brokers"][1];
    assert_eq!(
        (&row["role"], &row["inSync"], &row["ready"]),
        (&json!("Slave"), &json!(false), &json!(false))
    );
    fake.state().lag.clear();
    settle(&fake, &context, "demo").await;
    assert_eq!(restarts(&fake).len(), 4);
    let status = &fake.get("rocketclusters", "demo").unwrap()["status"];
    assert_eq!(status["inSync"], "4/4");
    assert_eq!(status["masters"], "demo-broker-0-0,demo-broker-1-0");
    assert_eq!(status["brokerGroups"][1]["inSync"], "2/2");
}

#[tokio::test]
async fn single_master_becomes_master_and_slave_without_a_restart() {
    let (fake, context) =
        running(json!({"mode": "single-master", "nameServer": {"replicas": 1}})).await;
    fake.user_applies(
        "demo",
        json!({"mode": "2m-2s-async", "nameServer": {"replicas": 1}, "broker": {"groups": 1}}),
    );
    settle(&fake, &context, "demo").await;
    assert_eq!(restarts(&fake), [""; 0]);
    assert!(fake.get("pods", "demo-broker-0-1").is_some());
    // What the master can take while it runs it was told.
    assert_eq!(
        fake.state().values["demo-broker-0-0"]["slaveReadEnable"],
        "true"
    );
    assert_eq!(condition(&fake, "demo", "Ready").0, "True");
}

#[tokio::test]
async fn a_master_promises_copies_only_when_there_is_one_and_stops_before_the_last_goes() {
    let (fake, context) = running(multi_master()).await;
    fake.user_applies("demo", json!({"mode": "2m-2s-sync"}));
    settle(&fake, &context, "demo").await;
    assert_eq!(restarts(&fake), ["demo-broker-0-0", "demo-broker-1-0"]);
    let role = |pod: &str| fake.state().values[pod]["brokerRole"].clone();
    assert_eq!(role("demo-broker-0-0"), "SYNC_MASTER");
    fake.state().writes.clear();
    fake.user_applies("demo", multi_master());
    // The slaves stay until their masters run without the promise.
    look(&fake, &context, "demo").await.unwrap();
    fake.tick();
    look(&fake, &context, "demo").await.unwrap();
    assert_eq!(
        fake.get("statefulsets", "demo-broker-0").unwrap()["spec"]["replicas"],
        2
    );
    settle(&fake, &context, "demo").await;
    assert_eq!(restarts(&fake), ["demo-broker-0-0", "demo-broker-1-0"]);
    assert_eq!(role("demo-broker-0-0"), "ASYNC_MASTER");
    assert_eq!(fake.get("pods", "demo-broker-0-1"), None);
    assert_eq!(fake.get("services", "demo-broker-1-1"), None);
    let state = fake.state();
    assert_eq!(state.violations, [""; 0]);
    assert_eq!(state.worst_of_group, 1);
    // And the key that only copies asked for is put back.
    assert_eq!(state.values["demo-broker-0-0"]["slaveReadEnable"], "false");
}

#[tokio::test]
async fn a_slave_that_cannot_run_does_not_keep_itself() {
    let (fake, context) = running(with_slaves("2m-2s-sync")).await;
    fake.user_applies(
        "demo",
        json!({"mode": "2m-2s-sync", "nameServer": {"replicas": 1}, "broker": {"replicasPerGroup": 3}}),
    );
    settle(&fake, &context, "demo").await;
    fake.state()
        .lag
        .insert("demo-broker-1-2".to_owned(), 1 << 40);
    fake.user_applies("demo", with_slaves("2m-2s-sync"));
    settle(&fake, &context, "demo").await;
    assert_eq!(fake.get("pods", "demo-broker-1-2"), None);
    assert_eq!(condition(&fake, "demo", "Ready").0, "True");
    assert_eq!(restarts(&fake), [""; 0]);
}

fn dledger(broker: Value) -> Value {
    json!({"mode": "dledger", "nameServer": {"replicas": 1}, "broker": broker})
}

#[tokio::test]
async fn a_group_that_elects_is_restarted_leader_last_and_keeps_its_majority() {
    let (fake, context) = running(dledger(json!({}))).await;
    let leader = fake.state().elected["demo-broker-0"].leader.clone();
    assert_eq!(leader.as_deref(), Some("n0"));
    let status = &fake.get("rocketclusters", "demo").unwrap()["status"];
    assert_eq!(status["masters"], "demo-broker-0-0");
    assert_eq!(status["brokerGroups"][0]["inSync"], "3/3");
    assert!(status["brokerGroups"][0]["term"].is_number());
    // Somebody else leads than the place would suggest.
    fake.state()
        .elected
        .get_mut("demo-broker-0")
        .unwrap()
        .leader = Some("n1".to_owned());
    fake.user_applies(
        "demo",
        dledger(json!({"config": {"flushDiskType": "SYNC_FLUSH"}})),
    );
    settle(&fake, &context, "demo").await;
    assert_eq!(
        restarts(&fake),
        ["demo-broker-0-2", "demo-broker-0-0", "demo-broker-0-1"]
    );
    let state = fake.state();
    assert_eq!((state.worst, state.worst_of_group), (1, 1));
    assert_eq!(state.violations, [""; 0]);
}

#[tokio::test]
async fn members_come_and_go_one_at_a_time_and_nobody_is_restarted() {
    let (fake, context) = running(dledger(json!({}))).await;
    fake.user_applies("demo", dledger(json!({"replicasPerGroup": 5})));
    settle(&fake, &context, "demo").await;
    assert_eq!(fake.state().elected["demo-broker-0"].members.len(), 5);
    assert_eq!(condition(&fake, "demo", "Ready").0, "True");
    let took: Vec<String> = fake
        .state()
        .events
        .iter()
        .filter(|e| e.starts_with("ChangingMembers"))
        .cloned()
        .collect();
    assert_eq!(
        took,
        [
            "ChangingMembers: broker-0 takes n3 in: demo-broker-0-3 joins",
            "ChangingMembers: broker-0 takes n4 in: demo-broker-0-4 joins"
        ]
    );
    // The one that is to go leads: it hands over first.
    fake.state()
        .elected
        .get_mut("demo-broker-0")
        .unwrap()
        .leader = Some("n4".to_owned());
    fake.user_applies("demo", dledger(json!({})));
    settle(&fake, &context, "demo").await;
    assert_eq!(fake.state().elected["demo-broker-0"].members.len(), 3);
    assert_eq!(fake.get("pods", "demo-broker-0-3"), None);
    assert_eq!(restarts(&fake), [""; 0]);
    assert_eq!(fake.state().violations, [""; 0]);
}

#[tokio::test]
async fn what_would_break_the_majority_is_refused_with_the_numbers() {
    let (fake, context) = running(dledger(json!({"replicasPerGroup": 5}))).await;
    // Two of five are too far behind to count: one more may not go.
    for pod in ["demo-broker-0-1", "demo-broker-0-2"] {
        fake.state().lag.insert(pod.to_owned(), 1 << 40);
    }
    fake.user_applies("demo", dledger(json!({})));
    for _ in 0..10 {
        look(&fake, &context, "demo").await.unwrap();
        fake.tick();
    }
    assert_eq!(fake.state().elected["demo-broker-0"].members.len(), 5);
    let (truth, reason, message) = condition(&fake, "demo", "Degraded");
    assert_eq!((truth.as_str(), reason.as_str()), ("True", "QuorumAtRisk"));
    assert_eq!(
        message,
        "n4 of broker-0 is not removed: 2 of the 4 other members are up and caught up, and 3 are needed"
    );
    // A roll of the same group begins with those that do not count, and touches none of the three that do.
    fake.user_applies(
        "demo",
        dledger(json!({"replicasPerGroup": 5, "config": {"flushDiskType": "SYNC_FLUSH"}})),
    );
    for _ in 0..30 {
        look(&fake, &context, "demo").await.unwrap();
        fake.tick();
    }
    assert_eq!(restarts(&fake), ["demo-broker-0-2"]);
    let (truth, reason, message) = condition(&fake, "demo", "Progressing");
    assert_eq!((truth.as_str(), reason.as_str()), ("True", "QuorumAtRisk"));
    assert!(
        message.contains(
            "2 of the 5 members of broker-0 would be up and caught up without it, and 3 are needed"
        ),
        "{message}"
    );
    fake.state().lag.clear();
    settle(&fake, &context, "demo").await;
    assert_eq!(restarts(&fake).len(), 5);
    assert_eq!(fake.state().violations, [""; 0]);
}

#[tokio::test]
async fn keys_that_a_running_broker_takes_are_told_and_taken_back_without_a_restart() {
    let (fake, context) = running(multi_master()).await;
    // Somebody changed a key that nobody asked for here: it is theirs.
    fake.state()
        .values
        .get_mut("demo-broker-1-0")
        .unwrap()
        .insert("traceOn".to_owned(), "false".to_owned());
    let spec = |config: Value| json!({"mode": "multi-master", "broker": {"config": config}});
    fake.user_applies("demo", spec(json!({"fileReservedTime": 48})));
    settle(&fake, &context, "demo").await;
    let value = |pod: &str, key: &str| fake.state().values[pod][key].clone();
    for pod in ["demo-broker-0-0", "demo-broker-1-0"] {
        assert_eq!(value(pod, "fileReservedTime"), "48");
    }
    assert_eq!(value("demo-broker-1-0", "traceOn"), "false");
    assert!(
        fake.state().events.contains(
            &"ConfigChanged: demo-broker-0-0 runs with fileReservedTime=48, without a restart"
                .to_owned()
        )
    );
    // Changed by hand, it is put back; taken out of the spec, the default counts again.
    fake.state()
        .values
        .get_mut("demo-broker-0-0")
        .unwrap()
        .insert("fileReservedTime".to_owned(), "1".to_owned());
    settle(&fake, &context, "demo").await;
    assert_eq!(value("demo-broker-0-0", "fileReservedTime"), "48");
    fake.user_applies("demo", spec(json!({})));
    settle(&fake, &context, "demo").await;
    assert_eq!(value("demo-broker-1-0", "fileReservedTime"), "72");
    assert_eq!(value("demo-broker-1-0", "traceOn"), "false");
    assert_eq!(restarts(&fake), [""; 0]);
}

#[tokio::test]
async fn a_key_that_a_broker_does_not_take_is_named() {
    let (fake, context) = running(multi_master()).await;
    fake.state().refuses = Some("fileReservedTime=-1: must be 1 or more".to_owned());
    fake.user_applies(
        "demo",
        json!({"mode": "multi-master", "broker": {"config": {"fileReservedTime": -1}}}),
    );
    for _ in 0..4 {
        look(&fake, &context, "demo").await.unwrap();
        fake.tick();
    }
    let (truth, reason, message) = condition(&fake, "demo", "Degraded");
    assert_eq!((truth.as_str(), reason.as_str()), ("True", "ConfigRefused"));
    assert!(
        message.starts_with("spec.broker.config: demo-broker-0-0 does not take fileReservedTime=-1: fileReservedTime=-1: must be 1 or more"),
        "{message}"
    );
}

#[tokio::test]
async fn a_change_between_kinds_of_logs_changes_nothing() {
    let (fake, context) = running(with_slaves("2m-2s-sync")).await;
    let before = fake.essence();
    fake.user_applies("demo", dledger(json!({"groups": 2})));
    for _ in 0..4 {
        look(&fake, &context, "demo").await.unwrap();
        fake.tick();
    }
    let children = |all: BTreeMap<String, Value>| -> Vec<_> {
        let mut all: Vec<_> = all.into_iter().collect();
        all.retain(|(name, _)| !name.starts_with("rocketclusters"));
        all
    };
    assert_eq!(children(fake.essence()), children(before));
    let (truth, reason, message) = condition(&fake, "demo", "Degraded");
    assert_eq!(
        (truth.as_str(), reason.as_str()),
        ("True", "ModeChangeRefused")
    );
    assert!(
        message.contains("make a second cluster and migrate"),
        "{message}"
    );
}

#[tokio::test]
async fn paused_touches_nothing() {
    let (fake, context) = running(multi_master()).await;
    let children = |fake: &Fake| -> Vec<_> {
        fake.essence()
            .into_iter()
            .filter(|(name, _)| !name.starts_with("rocketclusters"))
            .collect()
    };
    fake.user_applies(
        "demo",
        json!({"mode": "multi-master", "paused": true, "image": {"tag": "2.0"}}),
    );
    fake.edit("services", "demo-namesrv", |o| {
        o["spec"]["ports"][0]["port"] = json!(1)
    });
    let before = children(&fake);
    settle(&fake, &context, "demo").await;
    assert_eq!(children(&fake), before);
    assert_eq!(condition(&fake, "demo", "Progressing").1, "Paused");
}

#[tokio::test]
async fn a_spec_that_cannot_be_used_is_told_and_what_runs_is_left() {
    let (fake, context) = running(multi_master()).await;
    let before = fake.names("pods");
    fake.user_applies(
        "demo",
        json!({"mode": "multi-master", "broker": {"config": {"brokerId": 7}}}),
    );
    assert_eq!(
        look(&fake, &context, "demo").await.unwrap(),
        Action::requeue(REFUSED)
    );
    fake.tick();
    let (_, reason, message) = condition(&fake, "demo", "Ready");
    assert_eq!(reason, "InvalidSpec");
    assert!(
        message.starts_with("spec.broker.config.brokerId: brokerId belongs to the operator"),
        "{message}"
    );
    assert_eq!(fake.names("pods"), before);
    assert_eq!(
        fake.get("rocketclusters", "demo").unwrap()["status"]["brokers"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert!(
        fake.state()
            .events
            .iter()
            .any(|e| e.starts_with("InvalidSpec: "))
    );
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_told_and_stops_nobody_else() {
    let (fake, context) = running(multi_master()).await;
    fake.user_applies("broken", json!({"mode": ["not", "a", "mode"]}));
    assert_eq!(
        look(&fake, &context, "broken").await.unwrap(),
        Action::requeue(REFUSED)
    );
    assert_eq!(condition(&fake, "broken", "Ready").1, "NotReadable");
    fake.user_applies(
        "demo",
        json!({"mode": "multi-master", "broker": {"groups": 3}}),
    );
    settle(&fake, &context, "demo").await;
    assert_eq!(condition(&fake, "demo", "Ready").0, "True");
}

#[tokio::test]
async fn a_deleted_cluster_is_left_to_the_garbage_collector() {
    let (fake, context) = running(multi_master()).await;
    fake.edit("rocketclusters", "demo", |o| {
        o["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")
    });
    assert_eq!(
        look(&fake, &context, "demo").await.unwrap(),
        Action::await_change()
    );
    assert_eq!(fake.state().writes, [""; 0]);
}

#[tokio::test]
async fn failures_cost_a_growing_pause_of_their_own() {
    let fake = Fake::default();
    fake.user_applies("demo", multi_master());
    fake.user_applies("other", multi_master());
    let context = fake.context();
    let object = |name: &str| {
        Arc::new(
            serde_json::from_value::<Guarded>(fake.get("rocketclusters", name).unwrap()).unwrap(),
        )
    };
    let error = Error::Foreign {
        kind: "Service".to_owned(),
        name: "x".to_owned(),
    };
    let pause = |name: &str| error_policy(object(name), &error, context.clone());
    let seconds = |s| Action::requeue(Duration::from_secs(s));
    assert_eq!(
        [pause("demo"), pause("demo"), pause("demo"), pause("other")],
        [seconds(1), seconds(2), seconds(4), seconds(1)]
    );
    for _ in 0..20 {
        pause("demo");
    }
    assert_eq!(pause("demo"), seconds(120));
    look(&fake, &context, "demo").await.unwrap();
    assert_eq!(pause("demo"), seconds(1));
}

/// The process dies at each write in turn, before or after it took effect, and another one goes on: the end is the same, at no time were more pods
/// of a group restarting than one, and nothing happened that never may.
///
/// Every `stride`-th write dies, beginning with another one before than after; `CRASH_AT_EVERY_WRITE=1` takes them all.
async fn may_die_at_any_write(
    steps: &[Value],
    stride: usize,
    least_crashes: usize,
    most_away: usize,
) {
    let stride = match std::env::var_os("CRASH_AT_EVERY_WRITE") {
        Some(_) => 1,
        None => stride,
    };
    let undisturbed = Fake::default();
    for spec in steps {
        undisturbed.user_applies("demo", spec.clone());
        let context = undisturbed.context();
        settle(&undisturbed, &context, "demo").await;
    }
    let end = undisturbed.essence();
    let members = |fake: &Fake| -> Vec<_> {
        let state = fake.state();
        let groups = state.elected.iter();
        groups
            .map(|(set, g)| (set.clone(), g.members.clone()))
            .collect()
    };
    assert_eq!(undisturbed.state().violations, [""; 0]);
    for (crash, first) in [(Crash::Before, 1), (Crash::After, 1 + stride / 2)] {
        let mut crashes = 0;
        for call in (first..).step_by(stride) {
            let fake = Fake::default();
            fake.state().crash = Some((call, crash));
            for spec in steps {
                fake.user_applies("demo", spec.clone());
                let mut context = fake.context();
                while !fake.state().crashed {
                    let before = fake.state().writes.len();
                    let calm = look(&fake, &context, "demo")
                        .await
                        .is_ok_and(|action| action == Action::requeue(CALM));
                    if fake.state().crashed {
                        break;
                    }
                    fake.tick();
                    if calm && fake.state().writes.len() == before {
                        break;
                    }
                }
                if fake.state().crashed {
                    fake.tick();
                    context = fake.context();
                }
                settle(&fake, &context, "demo").await;
            }
            let got = fake.essence();
            assert_eq!(
                got.keys().collect::<Vec<_>>(),
                end.keys().collect::<Vec<_>>(),
                "{crash:?} call {call}"
            );
            for (name, object) in &end {
                assert_eq!(got[name], *object, "{crash:?} call {call}: {name}");
            }
            assert_eq!(
                members(&fake),
                members(&undisturbed),
                "{crash:?} call {call}"
            );
            let state = fake.state();
            assert_eq!(state.violations, [""; 0], "{crash:?} call {call}");
            assert!(
                state.worst <= most_away && state.worst_of_group <= 1,
                "{crash:?} call {call}: {} pods away, {} of a group restarting",
                state.worst,
                state.worst_of_group
            );
            if !state.crashed {
                break;
            }
            crashes += stride;
        }
        assert!(
            crashes > least_crashes,
            "{crashes} calls are too few to be the whole story"
        );
    }
}

#[tokio::test]
async fn a_process_may_die_at_any_write() {
    // A roll restarts one at a time; a pod that scaling adds may be on its way beside none other.
    may_die_at_any_write(
        &[
            json!({"mode": "multi-master", "broker": {"groups": 1}}),
            json!({"mode": "multi-master", "image": {"tag": "2.0"}, "broker": {"groups": 2, "config": {"flushDiskType": "SYNC_FLUSH"}}}),
        ],
        1,
        25,
        2,
    )
    .await;
}

#[tokio::test]
async fn a_process_may_die_at_any_write_of_a_mode_change() {
    let one_group = |mode: &str, broker: Value| json!({"mode": mode, "nameServer": {"replicas": 1}, "broker": broker});
    may_die_at_any_write(
        &[
            one_group("single-master", json!({"groups": 1})),
            one_group("2m-2s-async", json!({"groups": 1})),
            one_group("2m-2s-sync", json!({"groups": 1, "replicasPerGroup": 3})),
            one_group("multi-master", json!({"groups": 1})),
        ],
        5,
        50,
        3,
    )
    .await;
}

#[tokio::test]
async fn a_process_may_die_at_any_write_while_members_come_and_go() {
    let members = |replicas: i32, tag: &str| json!({"mode": "dledger", "nameServer": {"replicas": 1}, "image": {"tag": tag}, "broker": {"replicasPerGroup": replicas}});
    may_die_at_any_write(
        &[members(3, "1.0"), members(5, "1.0"), members(3, "2.0")],
        9,
        50,
        2,
    )
    .await;
}

/// A small generator of numbers that look random: the same seed, the same run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Users change their minds at any time, operators die and are replaced at any time, and pods are lost while all is well. In the end all is as asked,
/// and on the way nothing happened that never may. `SEEDS=n` takes n seeds, `SEED=n` one.
async fn any_history_ends_as_asked(specs: &[Value]) {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(4),
    };
    let mut ends = BTreeMap::new();
    for seed in seeds {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1);
        let fake = Fake::default();
        let mut context = fake.context();
        let mut last = 0;
        for _ in 0..4 {
            last = dice.below(specs.len());
            fake.user_applies("demo", specs[last].clone());
            for _ in 0..5 + dice.below(60) {
                match dice.below(12) {
                    0 => context = fake.context(),
                    1 => {
                        let when = [Crash::Before, Crash::After][dice.below(2)];
                        fake.crash_soon(1 + dice.below(3), when);
                    }
                    2 if fake.all_are_ready() => {
                        let pods = fake.names("pods");
                        fake.remove("pods", &pods[dice.below(pods.len())]);
                    }
                    _ => {}
                }
                // A call that fails is the end of that process.
                if look(&fake, &context, "demo").await.is_err() {
                    context = fake.context();
                }
                if dice.below(5) > 0 {
                    fake.tick();
                }
            }
        }
        settle(&fake, &fake.context(), "demo").await;
        if let std::collections::btree_map::Entry::Vacant(end) = ends.entry(last) {
            let fresh = Fake::default();
            fresh.user_applies("demo", specs[last].clone());
            settle(&fresh, &fresh.context(), "demo").await;
            end.insert(fresh.essence());
        }
        let got = fake.essence();
        for (name, object) in &ends[&last] {
            assert_eq!(got.get(name), Some(object), "seed {seed}: {name}");
        }
        assert_eq!(got.len(), ends[&last].len(), "seed {seed}");
        let state = fake.state();
        assert_eq!(state.violations, [""; 0], "seed {seed}");
        assert!(
            state.worst_of_group <= 1,
            "seed {seed}: {} pods of a group were restarting at once",
            state.worst_of_group
        );
    }
}

#[tokio::test]
async fn any_history_of_masters_and_slaves_ends_as_asked() {
    let spec = |mode: &str, replicas: i32, config: Value, tag: &str| {
        json!({"mode": mode, "nameServer": {"replicas": 1}, "image": {"tag": tag},
            "broker": {"groups": 2, "replicasPerGroup": replicas, "config": config}})
    };
    any_history_ends_as_asked(&[
        spec("multi-master", 1, json!({}), "1.0"),
        spec("2m-2s-async", 2, json!({}), "1.0"),
        spec("2m-2s-async", 3, json!({"fileReservedTime": 48}), "1.0"),
        spec(
            "2m-2s-sync",
            2,
            json!({"flushDiskType": "SYNC_FLUSH"}),
            "1.0",
        ),
        spec("2m-2s-sync", 3, json!({}), "2.0"),
        spec("multi-master", 1, json!({"traceOn": false}), "2.0"),
    ])
    .await;
}

#[tokio::test]
async fn any_history_of_members_ends_as_asked() {
    let spec = |replicas: i32, config: Value, tag: &str| {
        json!({"mode": "dledger", "nameServer": {"replicas": 1}, "image": {"tag": tag},
            "broker": {"replicasPerGroup": replicas, "config": config}})
    };
    any_history_ends_as_asked(&[
        spec(3, json!({}), "1.0"),
        spec(5, json!({}), "1.0"),
        spec(3, json!({"flushDiskType": "SYNC_FLUSH"}), "1.0"),
        spec(5, json!({"fileReservedTime": 48}), "2.0"),
        spec(3, json!({}), "2.0"),
    ])
    .await;
}
