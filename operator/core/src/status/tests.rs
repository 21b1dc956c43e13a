use serde_json::json;

use super::*;
use crate::fixtures::{self, healthy};
use crate::plan::plan;
use crate::validate::ValidatedCluster;

fn cluster() -> ValidatedCluster {
    fixtures::cluster(json!({"mode": "multi-master"}))
}

fn at(second: i64) -> Time {
    serde_json::from_value(json!(format!("2026-01-01T00:00:{second:02}Z"))).unwrap()
}

fn condition<'a>(status: &'a RocketClusterStatus, kind: &str) -> &'a Condition {
    status.conditions.iter().find(|c| c.type_ == kind).unwrap()
}

#[test]
fn all_is_well() {
    let cluster = cluster();
    let observed = healthy(&cluster);
    let status = status(&plan(&cluster, &observed), &observed, None, &at(0));
    let ready = condition(&status, READY);
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("True", "AllRegistered")
    );
    assert_eq!(
        ready.message,
        "2 name servers, 2 of 2 brokers registered and ready"
    );
    assert_eq!(ready.observed_generation, Some(3));
    assert_eq!(condition(&status, PROGRESSING).status, "False");
    assert_eq!(condition(&status, DEGRADED).status, "False");
    assert_eq!(status.ready_brokers.as_deref(), Some("2/2"));
    let servers = status.name_servers.unwrap();
    assert_eq!(servers.address, "demo-namesrv.shop.svc:9876");
    assert_eq!(
        servers.cluster_ip_address.as_deref(),
        Some("10.96.0.9:9876")
    );
    assert_eq!(
        servers.http_address.as_deref(),
        Some("http://demo-namesrv.shop.svc:9876")
    );
    assert_eq!(
        servers.nodes.as_deref(),
        Some(
            "demo-namesrv-0.demo-namesrv-nodes.shop.svc:9876;demo-namesrv-1.demo-namesrv-nodes.shop.svc:9876"
        )
    );
    assert_eq!(
        (
            status.brokers[1].name.as_str(),
            status.brokers[1].address.as_deref()
        ),
        ("broker-1", Some("10.96.0.10:10911"))
    );
}

#[test]
fn who_is_missing_is_named_and_times_stay_while_nothing_changes() {
    let cluster = cluster();
    let mut observed = healthy(&cluster);
    let first = status(&plan(&cluster, &observed), &observed, None, &at(0));
    let again = status(&plan(&cluster, &observed), &observed, Some(&first), &at(1));
    assert_eq!(first, again);
    observed.pods[2].server.as_mut().unwrap().registered = false;
    let later = status(&plan(&cluster, &observed), &observed, Some(&first), &at(2));
    let ready = condition(&later, READY);
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", "BrokersNotRegistered")
    );
    assert_eq!(
        ready.message,
        "demo-broker-0-0 is not registered with every name server yet"
    );
    assert_eq!(ready.last_transition_time, at(2));
    assert_eq!(condition(&later, DEGRADED).last_transition_time, at(0));
    assert_eq!(later.ready_brokers.as_deref(), Some("1/2"));
}

#[test]
fn refusals_and_failing_pods_degrade() {
    let cluster = cluster();
    let mut observed = healthy(&cluster);
    observed.pods[0].trouble = Some("ImagePullBackOff: no such image".to_owned());
    let failing = status(&plan(&cluster, &observed), &observed, None, &at(0));
    assert_eq!(condition(&failing, DEGRADED).reason, "PodsFailing");
    assert_eq!(
        condition(&failing, DEGRADED).message,
        "demo-namesrv-1: ImagePullBackOff: no such image"
    );
    let mut refused_plan = plan(&cluster, &observed);
    refused_plan.refusals.push(crate::plan::Refusal {
        reason: "ScaleInNotServed",
        message: "no".to_owned(),
    });
    let refused = status(&refused_plan, &observed, None, &at(0));
    assert_eq!(condition(&refused, DEGRADED).reason, "ScaleInNotServed");
}

#[test]
fn a_spec_that_cannot_be_used_keeps_what_was_known() {
    let cluster = cluster();
    let observed = healthy(&cluster);
    let before = status(&plan(&cluster, &observed), &observed, None, &at(0));
    let after = refused(
        Some(4),
        "InvalidSpec",
        "spec.mode: no",
        Some(&before),
        &at(1),
    );
    assert_eq!(after.observed_generation, Some(4));
    assert_eq!(after.brokers, before.brokers);
    assert_eq!(condition(&after, READY).reason, "InvalidSpec");
    assert_eq!(condition(&after, DEGRADED).message, "spec.mode: no");
    let failed = failed(
        before.clone(),
        Some(3),
        "ApplyFailed",
        "boom",
        Some(&before),
        &at(1),
    );
    assert_eq!(condition(&failed, READY).status, "True");
    assert_eq!(condition(&failed, DEGRADED).message, "boom");
    assert_eq!(failed.conditions.len(), 3);
}

#[test]
fn figures_that_always_move_are_no_news() {
    let group = |offset: i64| crate::api::BrokerGroupStatus {
        name: "broker-0".to_owned(),
        commit_offset: Some(offset),
        term: Some(3),
        ..Default::default()
    };
    let cluster = cluster();
    let observed = healthy(&cluster);
    let mut one = status(&plan(&cluster, &observed), &observed, None, &at(0));
    one.broker_groups = vec![group(1)];
    one.brokers[0].lag_bytes = Some(7);
    one.conditions[1].message = "x is 12345 bytes behind, 3 to go".to_owned();
    let mut other = one.clone();
    other.broker_groups = vec![group(2)];
    other.brokers[0].lag_bytes = None;
    other.conditions[1].message = "x is 777777 bytes behind, 3 to go".to_owned();
    assert_eq!(without_figures(&one), without_figures(&other));
    other.conditions[1].message = "x is 777777 bytes behind, 2 to go".to_owned();
    assert_ne!(without_figures(&one), without_figures(&other));
}

#[test]
fn a_group_that_elects_tells_its_leader_its_term_and_how_far_everybody_is() {
    use crate::plan::{Member, Peer, Replication};

    let cluster = fixtures::cluster(json!({"mode": "dledger"}));
    let mut observed = healthy(&cluster);
    let nobody = status(&plan(&cluster, &observed), &observed, None, &at(0));
    assert_eq!((nobody.masters, nobody.terms), (None, None));
    for pod in &mut observed.pods {
        let Some((_, ordinal)) = pod.name.split_once("-broker-0-") else {
            continue;
        };
        let id = format!("n{ordinal}");
        pod.server.as_mut().unwrap().replication = Replication::Member(Member {
            leads: id == "n1",
            id,
            term: 4,
            commit_index: 90,
            applied_index: 89,
            commit_offset: 9_000,
            peers: [("n0", 7), ("n1", 0), ("n2", 64 << 20)]
                .map(|(id, lag_bytes)| Peer {
                    id: id.to_owned(),
                    lag_bytes,
                    voter: true,
                    active: true,
                    sure: true,
                })
                .to_vec(),
        });
    }
    let told = status(&plan(&cluster, &observed), &observed, None, &at(0));
    assert_eq!(told.masters.as_deref(), Some("demo-broker-0-1"));
    assert_eq!(told.terms.as_deref(), Some("4"));
    assert_eq!(told.in_sync.as_deref(), Some("2/3"));
    let [group] = &told.broker_groups[..] else {
        panic!("{:?}", told.broker_groups)
    };
    assert_eq!(
        (
            group.term,
            group.commit_index,
            group.applied_index,
            group.commit_offset
        ),
        (Some(4), Some(90), Some(89), Some(9_000))
    );
    let lags: Vec<_> = told.brokers.iter().map(|b| b.lag_bytes).collect();
    assert_eq!(lags, [Some(7), Some(0), Some(64 << 20)]);
}
