//! Scenarios of the modes that keep a message on more than one broker: rolls, lost masters, changes of mode and of the number of copies, elections.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use operator_core::api::{RocketCluster, Role};
use remoting::admin::Admin;
use remoting::{ClientConfig, RemotingClient};
use serde_json::json;

use crate::clients::{Flow, JAVA, Report};
use crate::kubernetes::{
    LOOK_AGAIN, OPERATOR_NAMESPACE, Restarting, Space, World, condition, is_ready, lives, restarts,
    run, says, until,
};
use crate::scenarios::{
    NAMESRV, RATE, READY, ROLL, cluster, needs_our_nodes, node_of, replace_all, wait_for_node,
};

/// Messages that are there before something is taken away.
const KEPT: u32 = 300;
/// What an election, or a client's way to another broker, may take on a busy machine.
const GAP: u64 = 10_000;
/// The same when a machine dies without a word: a client's own time-outs come on top.
const POWER_GAP: u64 = 30_000;

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

pub(crate) async fn an_elected_group_serves_and_rolls(space: Space) -> Result<()> {
    serve_and_roll(space, "dledger", 1, 3).await
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
    goes_on_within(GAP, &report)
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

/// The pod is deleted without the time that it asks for to stop. Returns the uid that it had.
async fn kill_pod(space: &Space, pod: &str) -> Result<String> {
    let now = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    let old = space.get::<Pod>(pod).await?.uid();
    space.api::<Pod>().delete(pod, &now).await?;
    gone(space, pod, old.clone()).await?;
    old.context("a pod without a uid")
}

/// Waits until the pod is gone, or where its uid is told, another one has taken its name.
async fn gone(space: &Space, pod: &str, uid: Option<String>) -> Result<()> {
    until(
        &format!("{pod} to be gone"),
        Duration::from_secs(30),
        async || match space.api::<Pod>().get_opt(pod).await? {
            Some(there) if uid.is_none() || there.uid() == uid => bail!("it is still there"),
            _ => Ok(()),
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
    goes_on_within(GAP, &report)
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

pub(crate) fn needs_three_nodes(world: &World) -> Option<String> {
    if let Some(reason) = needs_our_nodes(world) {
        return Some(reason);
    }
    (world.nodes() < 3)
        .then(|| "a group of three loses its majority with a node of two: NODES=3".to_owned())
}

async fn scale_operator(space: &Space, replicas: i32) -> Result<()> {
    let api = Api::<Deployment>::namespaced(space.world.client.clone(), OPERATOR_NAMESPACE);
    let labels = ListParams::default().labels("app.kubernetes.io/name=rocketcluster-operator");
    for deployment in api.list(&labels).await? {
        let patch = json!({"spec": {"replicas": replicas}});
        api.patch(
            &deployment.name_any(),
            &PatchParams::default(),
            &Patch::Merge(&patch),
        )
        .await?;
    }
    let pods = Api::<Pod>::namespaced(space.world.client.clone(), OPERATOR_NAMESPACE);
    until(
        &format!("{replicas} operators"),
        Duration::from_secs(60),
        async || {
            let there = pods.list(&labels).await?.items;
            let ready = there.iter().filter(|pod| is_ready(pod)).count();
            ensure!(
                there.len() == usize::try_from(replicas)? && ready == there.len(),
                "{ready} of {} are ready",
                there.len()
            );
            Ok(())
        },
    )
    .await
}

/// The pod whose broker the name servers list as master: asked over the wire, because without an operator no status is kept.
async fn registered_leader(space: &Space) -> Result<String> {
    let name_servers = space.pods("demo", "namesrv").await?;
    let client = RemotingClient::new(ClientConfig::default());
    let admin = Admin::new(client, "").with_timeout(Duration::from_secs(2));
    for pod in name_servers.values() {
        let Some(ip) = pod.status.as_ref().and_then(|s| s.pod_ip.as_ref()) else {
            continue;
        };
        let Ok(table) = admin.cluster_info_of(&format!("{ip}:9876")).await else {
            continue;
        };
        let address = table
            .broker_addr_table
            .values()
            .find_map(|data| data.broker_addrs.get(&0));
        let Some(ip) = address.and_then(|a| a.rsplit_once(':')).map(|(ip, _)| ip) else {
            continue;
        };
        for service in space.list::<Service>("").await? {
            if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some(ip) {
                return Ok(service.name_any());
            }
        }
    }
    bail!("no name server lists a master")
}

async fn another_leads(space: &Space, old: &str) -> Result<String> {
    until("another leader", Duration::from_secs(60), async || {
        let leader = registered_leader(space).await?;
        ensure!(leader != old, "{old} is still listed");
        Ok(leader)
    })
    .await
}

/// Waits until the pods of all brokers are ready, whatever the operator knows of it.
async fn all_ready(space: &Space, count: usize) -> Result<()> {
    until("all brokers to be ready", READY, async || {
        let pods = space.pods("demo", "broker").await?;
        let ready = pods.values().filter(|pod| is_ready(pod)).count();
        ensure!(ready == count, "{ready} of {count}");
        Ok(())
    })
    .await
}

/// With no operator at all the leader's machine loses its power: the group goes on by itself.
pub(crate) async fn an_elected_group_outlives_its_leaders_machine(space: Space) -> Result<()> {
    let apart = json!({"pod": {"antiAffinity": "Required"}});
    space.apply(&cluster("demo", "dledger", apart)).await?;
    let ready = space.ready("demo", READY).await?;
    let leader = leader_of(&ready)?;
    let pods = space.pods("demo", "broker").await?;
    let nodes: BTreeSet<String> = pods.values().map(node_of).collect();
    ensure!(
        nodes.len() == 3,
        "every member should be on a node of its own: {nodes:?}"
    );
    let victim = pods.get(&leader).map(node_of).context("no such pod")?;
    let safe = nodes.iter().find(|node| **node != victim);
    let clients = space.clients(safe.map(String::as_str)).await?;
    let (flow, away) = tokio::join!(
        clients.flow(JAVA[1], NAMESRV, "power", RATE),
        scale_operator(&space, 0)
    );
    let result = match flow.and_then(|flow| away.map(|()| flow)) {
        Ok(flow) => lose_machine(&space, flow, &leader, &victim).await,
        Err(e) => Err(e),
    };
    // Whatever was seen, the operator comes back, for the others' sake.
    scale_operator(&space, 1).await?;
    result?;
    space.ready("demo", READY).await.map(drop)
}

async fn lose_machine(space: &Space, mut flow: Flow, leader: &str, node: &str) -> Result<()> {
    let world = &space.world;
    let number = node.strip_prefix("node").with_context(|| node.to_owned())?;
    let lives_of = |pod: &Pod| (pod.uid(), restarts(pod));
    let before = lives_of(&space.get::<Pod>(leader).await?);
    flow.phase().await?;
    world.script("node-down.sh", &[number, "kill"]).await?;
    let goes_on = async {
        another_leads(space, leader).await?;
        flow.phase().await
    };
    let report = goes_on.await;
    // And so does the node.
    world.script("node-up.sh", &[number]).await?;
    let report = report?;
    wait_for_node(world, node).await?;
    // What its status says is from before the cut until its processes have been started again.
    until("the member to be back", READY, async || {
        let pod = space.get::<Pod>(leader).await?;
        ensure!(lives_of(&pod) != before, "it has not been restarted yet");
        Ok(())
    })
    .await?;
    all_ready(space, 3).await?;
    let report = report.and(flow.end().await?);
    goes_on_within(POWER_GAP, &report)?;
    world.figures.add(
        "dledger",
        "power cut of the leader's node, no operator",
        report,
    );
    Ok(())
}

fn goes_on_within(limit: u64, report: &Report) -> Result<()> {
    ensure!(
        report.longest_gap_ms < limit,
        "sending stood still: {report:?}"
    );
    Ok(())
}

/// The pod of the only leader there is.
fn leader_of(cluster: &RocketCluster) -> Result<String> {
    let mut leaders = with_role(cluster, Role::Master).into_iter();
    match (leaders.next(), leaders.next()) {
        (Some(leader), None) => Ok(leader),
        (first, second) => bail!("{first:?} and {second:?} lead"),
    }
}

/// The election that the leader of the only group won.
fn term_of(cluster: &RocketCluster) -> Result<i64> {
    let groups = cluster.status.iter().flat_map(|s| &s.broker_groups);
    groups
        .filter_map(|g| g.term)
        .next()
        .context("no term is told")
}

/// Waits until the group has so many members, all caught up and as asked.
async fn whole_group(space: &Space, members: usize) -> Result<RocketCluster> {
    let all = format!("{members}/{members}");
    until(&format!("a group of {members}"), ROLL, async || {
        let now = space.get::<RocketCluster>("demo").await?;
        condition(&now, "Ready", "True")?;
        condition(&now, "Progressing", "False")?;
        let status = now.status.as_ref().context("no status")?;
        ensure!(
            status.ready_brokers.as_ref() == Some(&all) && status.in_sync.as_ref() == Some(&all),
            "{status:?}"
        );
        leader_of(&now)?;
        Ok(now)
    })
    .await
}

/// A group of three becomes one of five and of three again, keeps its majority when its nodes are drained, gets a lost volume back and outlives its
/// leader's pod, all of it while messages flow.
pub(crate) async fn an_elected_group_changes_its_members(space: Space) -> Result<()> {
    space.apply(&cluster("demo", "dledger", json!({}))).await?;
    let clients = space.clients(None).await?;
    whole_group(&space, 3).await?;
    let first = lives(&space.pods("demo", "broker").await?);
    let mut flow = clients.flow(JAVA[1], NAMESRV, "members", RATE).await?;
    let mut rows = Vec::new();

    for (size, what) in [
        (5, "members 3 → 5, one at a time"),
        (3, "members 5 → 3, one at a time"),
    ] {
        let broker = json!({"broker": {"replicasPerGroup": size}});
        space.patch("demo", &json!({"spec": broker})).await?;
        whole_group(&space, size).await?;
        rows.push((what, flow.phase().await?));
    }
    let mut now = lives(&space.pods("demo", "broker").await?);
    now.retain(|pod, _| first.contains_key(pod)); // others may be on their way out
    ensure!(now == first, "restarted: {first:?} became {now:?}");
    tells_its_leader(&space).await?;

    keeps_its_majority_when_drained(&space).await?;
    rows.push(("a member's pod evicted and kept away", flow.phase().await?));

    let group = whole_group(&space, 3).await?;
    let follower = with_role(&group, Role::Slave).pop_first();
    lose_volume(&space, &follower.context("nobody follows")?).await?;
    let group = whole_group(&space, 3).await?;
    rows.push((
        "a member's pod and volume lost, replaced by an empty one",
        flow.phase().await?,
    ));

    let leader = leader_of(&group)?;
    let killed = kill_pod(&space, &leader).await?;
    // The one that was killed may be back in time to be elected again.
    until("another election", READY, async || {
        let now = space.get::<RocketCluster>("demo").await?;
        ensure!(term_of(&now)? > term_of(&group)?, "{:?}", now.status);
        leader_of(&now)
    })
    .await?;
    let elected = flow.phase().await?;
    space.replaced(&leader, &killed, READY).await?;
    whole_group(&space, 3).await?;

    // Nothing is lost over the whole of it, and what the pod's return costs counts as well.
    let what = "the leader's pod deleted with no time to stop";
    rows.push((what, elected.and(flow.end().await?)));
    for (what, report) in rows {
        goes_on_within(GAP, &report)?;
        space.world.figures.add("dledger", what, report);
    }
    Ok(())
}

/// What docs/modes.md shows of a group.
async fn tells_its_leader(space: &Space) -> Result<()> {
    let group = whole_group(space, 3).await?;
    let (leader, term) = (leader_of(&group)?, term_of(&group)?);
    let status = group.status.context("no status")?;
    let told = status.broker_groups.first().context("no group is told")?;
    ensure!(
        told.master.as_ref() == Some(&leader)
            && told.commit_index.is_some()
            && told.applied_index.is_some()
            && told.commit_offset.is_some(),
        "{told:?}"
    );
    ensure!(
        status.brokers.len() == 3 && status.brokers.iter().all(|b| b.lag_bytes.is_some()),
        "{:?}",
        status.brokers
    );
    let wide = space.kubectl(&["get", "rmq", "demo", "-o", "wide"]).await?;
    let row: Vec<&str> = wide
        .lines()
        .nth(1)
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let expected = [leader.as_str(), &term.to_string(), "3/3"];
    ensure!(
        row.windows(expected.len()).any(|cells| cells == expected),
        "{expected:?} should be in {wide}"
    );
    let columns = "custom-columns=POD:.status.brokers[*].pod,LAG:.status.brokers[*].lagBytes,COMMIT:.status.brokerGroups[*].commitIndex,APPLIED:.status.brokerGroups[*].appliedIndex";
    let members = space
        .kubectl(&["get", "rmq", "demo", "--no-headers", "-o", columns])
        .await?;
    let cells: Vec<&str> = members.split_whitespace().collect();
    ensure!(
        cells.len() == 4 && cells[0].split(',').count() == 3 && !members.contains("<none>"),
        "{members}"
    );
    Ok(())
}

/// One call as `kubectl drain` makes it, which would try again until it is let; so would the client library.
async fn evict(space: &Space, pod: &str) -> Result<()> {
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": pod, "namespace": space.name},
    });
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", space.name);
    let mut kubectl = space.world.command("kubectl");
    kubectl.args(["create", "--raw", &path, "-f", "-"]);
    run(&mut kubectl, Some(&eviction.to_string()))
        .await
        .map(drop)
}

/// One member is evicted and cannot come back: the budget refuses the next one, and the operator tells the numbers.
async fn keeps_its_majority_when_drained(space: &Space) -> Result<()> {
    let group = space.get::<RocketCluster>("demo").await?;
    let mut followers = with_role(&group, Role::Slave).into_iter();
    let (Some(first), Some(second)) = (followers.next(), followers.next()) else {
        bail!("two should follow: {:?}", roles(&group));
    };
    no_new_pods(space).await?;
    evict(space, &first).await?;
    gone(space, &first, None).await?;
    match evict(space, &second).await {
        Ok(()) => bail!("{second} was evicted while {first} was away"),
        Err(e) => says(&e, "violate the pod's disruption budget")?,
    }
    let expected = "2 of the 3 members of broker-0 are up and caught up, and 2 are needed: none may be stopped or drained until another is back";
    until("the numbers to be told", READY, async || {
        let message = condition(&space.get("demo").await?, "Degraded", "True")?;
        ensure!(message.contains(expected), "{message}");
        Ok(())
    })
    .await?;
    new_pods_again(space, "demo-broker-0").await
}

/// The pod, its claim and so its volume go; an empty one comes under the same name.
async fn lose_volume(space: &Space, pod: &str) -> Result<()> {
    let claims = space.api::<PersistentVolumeClaim>();
    let claim = format!("data-{pod}");
    let old = claims.get(&claim).await?.uid();
    claims.delete(&claim, &DeleteParams::default()).await?;
    let killed = kill_pod(space, pod).await?;
    // Until then the status may be from before.
    space.replaced(pod, &killed, READY).await?;
    let now = claims.get(&claim).await?.uid();
    ensure!(now != old, "the volume is still the old one");
    Ok(())
}
