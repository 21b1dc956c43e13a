//! Scenarios of the modes that keep a message on more than one broker: rolls, lost masters, changes of mode and of the number of copies.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::api::{DeleteParams, PostParams};
use operator_core::api::{RocketCluster, Role};
use serde_json::json;

use crate::clients::JAVA;
use crate::kubernetes::{LOOK_AGAIN, Restarting, Space, condition, until};
use crate::scenarios::{NAMESRV, RATE, READY, ROLL, cluster, replace_all};

/// Messages that are there before something is taken away.
const KEPT: u32 = 300;
/// What an election, or a client's way to another broker, may take on a busy machine.
const GAP: u64 = 10_000;

/// The broker pods by what they are, as the status tells.
fn roles(cluster: &RocketCluster) -> BTreeMap<String, Role> {
    cluster
        .status
        .iter()
        .flat_map(|s| &s.brokers)
        .filter_map(|b| Some((b.pod.clone(), b.role?)))
        .collect()
}

fn with_role(cluster: &RocketCluster, role: Role) -> BTreeSet<String> {
    roles(cluster)
        .into_iter()
        .filter(|(_, found)| *found == role)
        .map(|(pod, _)| pod)
        .collect()
}

/// Brokers that do not run as asked yet.
fn outdated(cluster: &RocketCluster) -> Vec<String> {
    let brokers = cluster.status.iter().flat_map(|s| &s.brokers);
    brokers
        .filter(|b| !b.up_to_date)
        .map(|b| b.pod.clone())
        .collect()
}

/// The part of a broker pod's name that its group shares.
fn group_of(pod: &str) -> &str {
    pod.rsplit_once('-').map_or(pod, |(group, _)| group)
}

pub(crate) async fn masters_with_async_slaves_serve_and_roll(space: Space) -> Result<()> {
    serve_and_roll(space, "2m-2s-async", 2, 4).await
}

pub(crate) async fn masters_with_sync_slaves_serve_and_roll(space: Space) -> Result<()> {
    serve_and_roll(space, "2m-2s-sync", 2, 4).await
}

/// Comes up, serves stock clients, and gets a new image while messages flow: within a group who copies first, then whoever is copied from.
async fn serve_and_roll(space: Space, mode: &str, masters: usize, brokers: usize) -> Result<()> {
    space.apply(&cluster("demo", mode, json!({}))).await?;
    let clients = space.clients(None).await?;
    let ready = space.ready("demo", READY).await?;
    let told = ready
        .status
        .as_ref()
        .and_then(|s| s.ready_brokers.clone())
        .unwrap_or_default();
    ensure!(told == format!("{brokers}/{brokers}"), "{told}");
    let led = with_role(&ready, Role::Master);
    ensure!(
        led.len() == masters && roles(&ready).len() == brokers,
        "{:?}",
        roles(&ready)
    );
    clients.exchange_java(JAVA[0], NAMESRV, "shared").await?;
    clients
        .exchange_go("http://demo-namesrv:9876", "shared", 100)
        .await?;

    let flow = clients.flow(JAVA[1], NAMESRV, "rolling", RATE).await?;
    let before = space.pods("demo", "broker").await?;
    let tag = format!("{}-next", space.world.tag);
    space
        .patch("demo", &json!({"spec": {"image": {"tag": tag}}}))
        .await?;
    let order = replace_all(&space, "broker", &before).await?;
    for group in led.iter().map(|pod| group_of(pod)) {
        let last = order.iter().rfind(|pod| group_of(pod) == group);
        ensure!(
            last.is_some_and(|pod| led.contains(pod)),
            "the master of {group} should be restarted last: {order:?}, masters were {led:?}"
        );
    }
    space.ready("demo", ROLL).await?;
    let report = flow.end().await?;
    space
        .world
        .figures
        .add(mode, "new image, every pod restarted", report);
    ensure!(
        report.longest_gap_ms < GAP,
        "sending stood still: {report:?}"
    );
    Ok(())
}

/// Pods that go are not made again while this holds: what a broken machine looks like to the others.
async fn no_new_pods(space: &Space) -> Result<()> {
    let quota: ResourceQuota = serde_json::from_value(
        json!({"metadata": {"name": "no-new-pods"}, "spec": {"hard": {"pods": "0"}}}),
    )?;
    let api = space.api::<ResourceQuota>();
    api.create(&PostParams::default(), &quota).await?;
    until(
        "the quota to be in force",
        Duration::from_secs(20),
        async || {
            let status = api.get("no-new-pods").await?.status.unwrap_or_default();
            ensure!(status.hard.is_some_and(|h| h.contains_key("pods")));
            Ok(())
        },
    )
    .await
}

async fn new_pods_again(space: &Space, stateful_set: &str) -> Result<()> {
    space
        .api::<ResourceQuota>()
        .delete("no-new-pods", &DeleteParams::default())
        .await?;
    // Kubernetes waits longer and longer between its tries, unless it sees the object change.
    space
        .kubectl(&["annotate", "statefulset", stateful_set, "e2e/try-again=yes"])
        .await
        .map(drop)
}

/// The pod's processes are killed, without time for a goodbye.
async fn kill_pod(space: &Space, pod: &str) -> Result<()> {
    let now = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    space.api::<Pod>().delete(pod, &now).await?;
    until(
        &format!("{pod} to be gone"),
        Duration::from_secs(30),
        async || match space.api::<Pod>().get_opt(pod).await? {
            None => Ok(()),
            Some(_) => bail!("it is still there"),
        },
    )
    .await
}

/// A master's pod is lost and stays away: consumers read what it had from its slave, producers use the other group, and when it is back nothing that was
/// acknowledged is missing.
pub(crate) async fn a_lost_master_is_read_from_its_slave(space: Space) -> Result<()> {
    space
        .apply(&cluster("demo", "2m-2s-sync", json!({})))
        .await?;
    let clients = space.clients(None).await?;
    space.ready("demo", READY).await?;
    clients.produce(NAMESRV, "kept", KEPT).await?;
    let flow = clients.flow(JAVA[1], NAMESRV, "flowing", RATE).await?;
    no_new_pods(&space).await?;
    kill_pod(&space, "demo-broker-0-0").await?;
    // A group that was never here before finds every message, also those of the lost master.
    clients.consume(NAMESRV, "kept", KEPT).await?;
    ensure!(
        space
            .api::<Pod>()
            .get_opt("demo-broker-0-0")
            .await?
            .is_none(),
        "the master should have been away all the time"
    );
    new_pods_again(&space, "demo-broker-0").await?;
    let back = space.ready("demo", READY).await?;
    ensure!(
        with_role(&back, Role::Master).len() == 2,
        "{:?}",
        roles(&back)
    );
    clients.consume(NAMESRV, "kept", KEPT).await?;
    let report = flow.end().await?;
    space.world.figures.add(
        "2m-2s-sync",
        "a master's pod killed and kept away while its slave was read",
        report,
    );
    ensure!(
        report.longest_gap_ms < GAP,
        "sending stood still: {report:?}"
    );
    Ok(())
}

/// Runs `work`, and fails when two pods of a group were being restarted at once meanwhile. Pods from `replicas` on are being scaled away and do not count.
async fn one_of_a_group_at_a_time<T>(
    space: &Space,
    replicas: &Cell<usize>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let watch = async {
        let mut restarting = Restarting::default();
        loop {
            let mut away: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for name in restarting.look(&space.pods("demo", "broker").await?) {
                let ordinal = name.rsplit('-').next().and_then(|n| n.parse().ok());
                if ordinal.is_some_and(|n: usize| n < replicas.get()) {
                    let group = group_of(&name).to_owned();
                    away.entry(group).or_default().push(name);
                }
            }
            if let Some(pods) = away.into_values().find(|pods| pods.len() > 1) {
                return anyhow::Ok(pods);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::select! {
        done = work => done,
        seen = watch => bail!("restarting at once: {:?}", seen?),
    }
}

/// From one broker to four that keep every message twice, and to more copies and back, without a stop.
pub(crate) async fn modes_change_in_place_while_messages_flow(space: Space) -> Result<()> {
    space
        .apply(&cluster("demo", "single-master", json!({})))
        .await?;
    let clients = space.clients(None).await?;
    space.ready("demo", READY).await?;
    let flow = clients.flow(JAVA[1], NAMESRV, "changing", RATE).await?;
    let replicas = Cell::new(1);
    one_of_a_group_at_a_time(&space, &replicas, async {
        for (mode, copies, brokers) in [
            ("multi-master", 1, 2),
            ("2m-2s-async", 2, 4),
            ("2m-2s-sync", 2, 4),
            ("2m-2s-sync", 3, 6),
            ("2m-2s-sync", 2, 4),
            ("multi-master", 1, 2),
        ] {
            // Those to be scaled away may go from now on; those to come do not count before they were ready.
            replicas.set(copies);
            let broker = json!({"groups": 2, "replicasPerGroup": copies});
            space
                .patch("demo", &json!({"spec": {"mode": mode, "broker": broker}}))
                .await?;
            let what = format!("{mode} with {copies} in a group");
            // It is Ready all the time; that the pods are those asked for says that nothing is left to do.
            until(&what, ROLL, async || {
                let now = space.get::<RocketCluster>("demo").await?;
                condition(&now, "Ready", "True")?;
                let told = now.status.as_ref().and_then(|s| s.ready_brokers.clone());
                ensure!(
                    told == Some(format!("{brokers}/{brokers}")),
                    "brokers: {told:?}"
                );
                let modes = outdated(&now);
                ensure!(modes.is_empty(), "not as asked: {modes:?}");
                let masters = with_role(&now, Role::Master);
                ensure!(masters.len() == 2, "masters: {masters:?}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    })
    .await?;
    let report = flow.end().await?;
    space.world.figures.add(
        "single → multi → async → sync → multi",
        "the mode changed in place, slaves 0 → 1 → 2 → 1 → 0",
        report,
    );
    Ok(())
}
