use serde_json::json;

use super::*;
use crate::fixtures::{cluster, healthy};

fn multi_master() -> ValidatedCluster {
    cluster(json!({"mode": "multi-master"}))
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

/// As [`healthy`], with what the brokers of a group say of each other.
fn with_copies(cluster: &ValidatedCluster) -> Observed {
    let mut observed = healthy(cluster);
    for wanted in wanted_pods(cluster) {
        if wanted.component != Component::Broker {
            continue;
        }
        let replicas = cluster.broker.replicas(wanted.group);
        let replication = match (cluster.mode, wanted.ordinal) {
            (Mode::DLedger, ordinal) => Replication::Member(Member {
                id: names::member_id(ordinal),
                leads: ordinal == 1,
                term: 4,
                commit_index: 90,
                applied_index: 89,
                commit_offset: 9_000,
                peers: (0..replicas)
                    .map(|peer| Peer {
                        id: names::member_id(peer),
                        lag_bytes: 0,
                        voter: true,
                        active: true,
                        sure: true,
                    })
                    .collect(),
            }),
            (_, 0) => Replication::Master {
                end: 1 << 40,
                slaves: (1..replicas)
                    .map(|slave| SlaveSeen {
                        ip: ip(wanted.group, slave),
                        in_sync: true,
                    })
                    .collect(),
            },
            _ => Replication::Slave { end: 1 << 40 },
        };
        let pod = pod(&mut observed, &wanted.pod);
        pod.ip = Some(ip(wanted.group, wanted.ordinal));
        pod.server.as_mut().unwrap().replication = replication;
    }
    observed
}

fn ip(group: i32, ordinal: i32) -> String {
    format!("10.0.{group}.{ordinal}")
}

fn dledger(replicas: i32) -> ValidatedCluster {
    cluster(json!({"mode": "dledger", "broker": {"replicasPerGroup": replicas}}))
}

/// Changes what the leader of the only group says of a member.
fn peer(observed: &mut Observed, id: &str, change: impl Fn(&mut Peer)) {
    for pod in &mut observed.pods {
        let server = pod.server.as_mut().unwrap();
        if let Replication::Member(member) = &mut server.replication {
            let peer = member.peers.iter_mut().find(|peer| peer.id == id);
            change(peer.unwrap());
        }
    }
}

fn order_of(cluster: &ValidatedCluster) -> Vec<String> {
    let mut observed = with_copies(cluster);
    new_image(&mut observed);
    let mut order = Vec::new();
    while let Some(restart) = plan(cluster, &observed).restart {
        pod(&mut observed, &restart.pod).revision = Some("r2".to_owned());
        order.push(restart.pod);
    }
    order.retain(|pod| pod.contains("broker"));
    order
}

#[test]
fn who_takes_the_writes_goes_last() {
    for mode in ["2m-2s-async", "2m-2s-sync"] {
        let cluster =
            cluster(json!({"mode": mode, "broker": {"replicasPerGroup": 3, "groups": 1}}));
        assert_eq!(
            order_of(&cluster),
            ["demo-broker-0-2", "demo-broker-0-1", "demo-broker-0-0"]
        );
    }
    assert_eq!(
        order_of(&dledger(3)),
        ["demo-broker-0-2", "demo-broker-0-0", "demo-broker-0-1"]
    );
}

#[test]
fn a_roll_waits_for_a_slave_that_is_behind_or_away() {
    let cluster = cluster(json!({"mode": "2m-2s-async"}));
    let mut observed = with_copies(&cluster);
    new_image(&mut observed);
    for pod in &mut observed.pods {
        if pod.name != "demo-broker-0-0" {
            pod.revision = Some("r2".to_owned());
        }
    }
    assert_eq!(restart(&plan(&cluster, &observed)), Some("demo-broker-0-0"));
    for (what, said) in [
        (
            (1_i64 << 40) - (40 << 20),
            "demo-broker-1-1 has not caught up: it is more than 32 MiB behind",
        ),
        (
            0,
            "demo-broker-1-1 has not caught up: it is more than 1024 GiB behind",
        ),
    ] {
        let mut observed = observed.clone();
        pod(&mut observed, "demo-broker-1-1")
            .server
            .as_mut()
            .unwrap()
            .replication = Replication::Slave { end: what };
        let plan = plan(&cluster, &observed);
        assert_eq!(restart(&plan), None);
        assert_eq!(plan.waiting.as_deref(), Some(said));
    }
    // Of which the master says that it is not in sync.
    let mut away = observed.clone();
    if let Replication::Master { slaves, .. } = &mut pod(&mut away, "demo-broker-1-0")
        .server
        .as_mut()
        .unwrap()
        .replication
    {
        slaves[0].in_sync = false;
    }
    assert_eq!(
        plan(&cluster, &away).waiting.as_deref(),
        Some("demo-broker-1-1 does not follow demo-broker-1-0")
    );
    // A slave that is reached by another address than its own is judged by what it says itself.
    let mut behind_a_proxy = observed.clone();
    pod(&mut behind_a_proxy, "demo-broker-1-1").ip = Some("192.0.2.1".to_owned());
    assert_eq!(
        restart(&plan(&cluster, &behind_a_proxy)),
        Some("demo-broker-0-0")
    );
}

#[test]
fn what_a_broker_says_of_itself_is_told() {
    let cluster = cluster(json!({"mode": "2m-2s-sync"}));
    let mut observed = with_copies(&cluster);
    let lost = pod(&mut observed, "demo-broker-0-0");
    lost.ready = false;
    lost.server.as_mut().unwrap().not_ready = Some("asks its slaves".to_owned());
    assert_eq!(
        plan(&cluster, &observed).waiting.as_deref(),
        Some("demo-broker-0-0 is not ready: asks its slaves")
    );
}

#[test]
fn a_majority_of_members_that_are_caught_up_stays() {
    let cluster = dledger(3);
    let mut observed = with_copies(&cluster);
    new_image(&mut observed);
    for server in ["demo-namesrv-0", "demo-namesrv-1"] {
        pod(&mut observed, server).revision = Some("r2".to_owned());
    }
    // n2 came back without its volume, so its word does not count: it goes first, and nobody else while it is.
    peer(&mut observed, "n2", |peer| peer.sure = false);
    assert_eq!(restart(&plan(&cluster, &observed)), Some("demo-broker-0-2"));
    pod(&mut observed, "demo-broker-0-2").revision = Some("r2".to_owned());
    let held = plan(&cluster, &observed);
    assert_eq!((restart(&held), held.at_risk), (None, true));
    assert_eq!(
        held.waiting.as_deref(),
        Some(
            "demo-broker-0-0 is not restarted: 1 of the 3 members of broker-0 would be up and caught up without it, and 2 are needed"
        )
    );
    // A pod that does not come back is no reason to tell less.
    let mut away = observed.clone();
    away.pods.retain(|pod| pod.name != "demo-broker-0-2");
    let held = plan(&cluster, &away);
    assert_eq!((restart(&held), held.at_risk), (None, false));
    assert_eq!(
        held.waiting.as_deref(),
        Some(
            "demo-broker-0-2 is being created; demo-broker-0-0 is not restarted: 1 of the 3 members of broker-0 would be up and caught up without it, and 2 are needed"
        )
    );
    // Without a roll, that nobody may go is told all the same.
    let steady = with_copies(&cluster);
    let told = |observed: &Observed| {
        let now = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let status = crate::status::status(&plan(&cluster, observed), observed, None, &now);
        let degraded = status
            .conditions
            .into_iter()
            .find(|c| c.type_ == "Degraded");
        let degraded = degraded.unwrap();
        (degraded.reason, degraded.message)
    };
    assert_eq!(told(&steady).0, "AsAsked");
    let mut short = steady;
    peer(&mut short, "n2", |peer| peer.active = false);
    assert_eq!(
        told(&short),
        (
            "QuorumAtRisk".to_owned(),
            "2 of the 3 members of broker-0 are up and caught up, and 2 are needed: none may be stopped or drained until another is back".to_owned()
        )
    );
    // Not even a member that is not well is restarted while it counts.
    pod(&mut observed, "demo-broker-0-0").ready = false;
    assert_eq!(restart(&plan(&cluster, &observed)), None);
    // Two of five may be away, and the third not.
    let cluster = dledger(5);
    let mut observed = with_copies(&cluster);
    new_image(&mut observed);
    for server in ["demo-namesrv-0", "demo-namesrv-1"] {
        pod(&mut observed, server).revision = Some("r2".to_owned());
    }
    for id in ["n3", "n4"] {
        peer(&mut observed, id, |peer| peer.lag_bytes = 1 << 30);
    }
    for expected in [Some("demo-broker-0-4"), Some("demo-broker-0-3"), None] {
        let next = plan(&cluster, &observed);
        assert_eq!(restart(&next), expected);
        if let Some(restart) = next.restart {
            pod(&mut observed, &restart.pod).revision = Some("r2".to_owned());
            // Stays behind, and is not restarted again.
        }
        if expected == Some("demo-broker-0-4") {
            // The next of those that do not count waits while this one is new and not well.
            assert_eq!(restart(&plan(&cluster, &observed)), None);
            peer(&mut observed, "n4", |peer| peer.lag_bytes = 0);
        }
    }
}

#[test]
fn without_a_leader_nothing_that_runs_is_touched_but_what_is_broken() {
    let cluster = dledger(3);
    let mut observed = with_copies(&cluster);
    for pod in &mut observed.pods {
        if let Some(ServerReport {
            replication: Replication::Member(member),
            ..
        }) = &mut pod.server
        {
            member.leads = false;
        }
    }
    let seen = plan(&cluster, &observed);
    assert_eq!(seen.waiting.as_deref(), Some("broker-0 has no leader"));
    assert_eq!((restart(&seen), &seen.member_step), (None, &None));
}

#[test]
fn a_leader_that_is_not_well_goes_last_all_the_same() {
    let cluster = dledger(3);
    let mut observed = with_copies(&cluster);
    new_image(&mut observed);
    for server in ["demo-namesrv-0", "demo-namesrv-1"] {
        pod(&mut observed, server).revision = Some("r2".to_owned());
    }
    // A name server that was just restarted has not heard from everybody: that passes by itself.
    let mut unheard = observed.clone();
    let leader = pod(&mut unheard, "demo-broker-0-1");
    leader.server.as_mut().unwrap().registered = false;
    let held = plan(&cluster, &unheard);
    assert_eq!(restart(&held), None);
    assert_eq!(
        held.waiting.as_deref(),
        Some("demo-broker-0-1 is not registered with every name server yet")
    );
    // Whatever else is wrong with it, who follows is restarted before who leads.
    for expected in [
        Some("demo-broker-0-2"),
        Some("demo-broker-0-0"),
        Some("demo-broker-0-1"),
        None,
    ] {
        pod(&mut observed, "demo-broker-0-1").ready = expected.is_none();
        let next = plan(&cluster, &observed);
        assert_eq!(restart(&next), expected);
        if let Some(restart) = next.restart {
            pod(&mut observed, &restart.pod).revision = Some("r2".to_owned());
        }
    }
}

#[test]
fn while_nobody_tells_who_leads_only_members_that_are_not_ready_are_restarted() {
    let cluster = dledger(3);
    let mut observed = with_copies(&cluster);
    new_image(&mut observed);
    for server in ["demo-namesrv-0", "demo-namesrv-1"] {
        pod(&mut observed, server).revision = Some("r2".to_owned());
    }
    // The leader is there and does not answer the operator in time.
    pod(&mut observed, "demo-broker-0-1").server = None;
    let held = plan(&cluster, &observed);
    assert_eq!((restart(&held), held.at_risk), (None, true));
    assert_eq!(
        held.waiting.as_deref(),
        Some(
            "demo-broker-0-2 is not restarted: without an answer from the leader of broker-0 nobody knows how many of its 3 members are up and caught up, and 2 are needed"
        )
    );
    for member in 0..3 {
        pod(&mut observed, &format!("demo-broker-0-{member}")).ready = false;
    }
    assert_eq!(restart(&plan(&cluster, &observed)), Some("demo-broker-0-2"));
}

#[test]
fn members_that_are_asked_for_join_one_by_one() {
    let (three, five) = (dledger(3), dledger(5));
    // One pod more is started, and no second one while it is not there.
    let first = plan(&five, &with_copies(&three));
    assert_eq!(first.member_step, None);
    assert_eq!(
        first.objects.stateful_sets[1]
            .spec
            .as_ref()
            .unwrap()
            .replicas,
        Some(4)
    );
    assert!(first.objects.config_of("demo-broker-0-3").is_some());
    let mut four = three.clone();
    four.broker.replicas_per_group = 4;
    let mut observed = with_copies(&four);
    for pod in &mut observed.pods {
        let server = pod.server.as_mut().unwrap();
        if let Replication::Member(member) = &mut server.replication {
            member.peers.retain(|peer| peer.id != "n3");
        }
    }
    let step = plan(&five, &observed).member_step.unwrap();
    assert_eq!(step.leader, "demo-broker-0-1");
    assert_eq!(
        step.change,
        MemberChange::Add {
            id: "n3".to_owned(),
            address: "demo-broker-0-3.demo-broker-0.shop.svc:40911".to_owned()
        }
    );
    // It learns: the next one waits.
    let mut observed = with_copies(&four);
    peer(&mut observed, "n3", |peer| peer.voter = false);
    let learning = plan(&five, &observed);
    assert_eq!(learning.member_step, None);
    assert_eq!(
        learning.objects.stateful_sets[1]
            .spec
            .as_ref()
            .unwrap()
            .replicas,
        Some(4)
    );
    assert_eq!(
        learning.waiting.as_deref(),
        Some("broker-0 changes further when demo-broker-0-3 votes")
    );
    let grown = plan(&five, &with_copies(&four));
    assert_eq!(
        grown.objects.stateful_sets[1]
            .spec
            .as_ref()
            .unwrap()
            .replicas,
        Some(5)
    );
}

#[test]
fn members_that_are_not_asked_for_go_from_the_top_leader_or_not() {
    let (three, five) = (dledger(3), dledger(5));
    let observed = with_copies(&five);
    let step = plan(&three, &observed).member_step.unwrap();
    assert_eq!(
        step.change,
        MemberChange::Remove {
            id: "n4".to_owned()
        }
    );
    let mut leads = observed.clone();
    for pod in &mut leads.pods {
        let server = pod.server.as_mut().unwrap();
        if let Replication::Member(member) = &mut server.replication {
            member.leads = member.id == "n4";
        }
    }
    let step = plan(&three, &leads).member_step.unwrap();
    assert_eq!(
        step.change,
        MemberChange::Transfer {
            to: "n0".to_owned()
        }
    );
    assert_eq!(step.leader, "demo-broker-0-4");
    // Let go, its pod goes; while it goes, nobody else does.
    let mut gone = observed.clone();
    for pod in &mut gone.pods {
        let server = pod.server.as_mut().unwrap();
        if let Replication::Member(member) = &mut server.replication {
            member.peers.retain(|peer| peer.id != "n4");
        }
    }
    let next = plan(&three, &gone);
    assert_eq!(next.member_step, None);
    assert_eq!(
        next.objects.stateful_sets[1]
            .spec
            .as_ref()
            .unwrap()
            .replicas,
        Some(4)
    );
    gone.stateful_sets[1].spec.as_mut().unwrap().replicas = Some(4);
    let waits = plan(&three, &gone);
    assert_eq!(waits.member_step, None);
    assert_eq!(
        waits.waiting.as_deref(),
        Some("demo-broker-0-4 is being removed")
    );
    gone.pods.retain(|pod| pod.name != "demo-broker-0-4");
    let step = plan(&three, &gone).member_step.unwrap();
    assert_eq!(
        step.change,
        MemberChange::Remove {
            id: "n3".to_owned()
        }
    );
    // A member whose pod went without being let go is let go all the same.
    let mut stray = with_copies(&five);
    stray.pods.retain(|pod| pod.name != "demo-broker-0-4");
    stray.stateful_sets[1].spec.as_mut().unwrap().replicas = Some(4);
    let step = plan(&three, &stray).member_step.unwrap();
    assert_eq!(
        step.change,
        MemberChange::Remove {
            id: "n4".to_owned()
        }
    );
}

#[test]
fn slaves_go_one_by_one_when_nobody_counts_on_them() {
    let sync = |replicas: i32| {
        cluster(
            json!({"mode": "2m-2s-sync", "broker": {"groups": 1, "replicasPerGroup": replicas}}),
        )
    };
    let replicas = |plan: &Plan| {
        plan.objects.stateful_sets[1]
            .spec
            .as_ref()
            .unwrap()
            .replicas
    };
    let multi = cluster(json!({"mode": "multi-master", "broker": {"groups": 1}}));
    let observed = with_copies(&sync(3));
    // The master still promises a copy.
    let first = plan(&multi, &observed);
    assert_eq!(
        (replicas(&first), restart(&first)),
        (Some(3), Some("demo-broker-0-0"))
    );
    assert_eq!(
        first.waiting.as_deref(),
        Some("demo-broker-0-2 goes when demo-broker-0-0 runs with its new settings")
    );
    let mut relieved = observed.clone();
    let file = config_hash(multi_file(&multi).as_bytes());
    pod(&mut relieved, "demo-broker-0-0")
        .server
        .as_mut()
        .unwrap()
        .config_hash = Some(file);
    assert_eq!(replicas(&plan(&multi, &relieved)), Some(2));
    relieved.stateful_sets[1].spec.as_mut().unwrap().replicas = Some(2);
    let waits = plan(&multi, &relieved);
    assert_eq!(replicas(&waits), Some(2));
    assert_eq!(
        waits.waiting.as_deref(),
        Some("demo-broker-0-2 is being removed")
    );
    relieved.pods.retain(|pod| pod.name != "demo-broker-0-2");
    assert_eq!(replicas(&plan(&multi, &relieved)), Some(1));
    // The one that stays must have caught up before the other goes.
    let mut behind = observed.clone();
    pod(&mut behind, "demo-broker-0-1")
        .server
        .as_mut()
        .unwrap()
        .replication = Replication::Slave { end: 0 };
    let held = plan(&sync(2), &behind);
    assert_eq!(replicas(&held), Some(3));
    assert_eq!(
        held.waiting.as_deref(),
        Some("demo-broker-0-2 goes when demo-broker-0-1 has caught up")
    );
    assert_eq!(replicas(&plan(&sync(2), &observed)), Some(2));
    // More come at once.
    assert_eq!(replicas(&plan(&sync(5), &observed)), Some(5));
}

fn multi_file(cluster: &ValidatedCluster) -> String {
    build(cluster)
        .config_of("demo-broker-0-0")
        .unwrap()
        .to_owned()
}
