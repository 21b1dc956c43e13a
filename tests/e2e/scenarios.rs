//! The scenarios, one function each: what a user does, and what must be seen.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolumeClaim, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use operator_core::api::RocketCluster;
use serde_json::{Value, json};

use crate::clients::JAVA;
use crate::kubernetes::{
    Kind, OPERATOR_NAMESPACE, Restarting, Space, World, condition, is_ready, lives, run, until,
};
use crate::replicated::{
    a_lost_master_is_read_from_its_slave, an_elected_group_changes_its_members,
    an_elected_group_outlives_its_leaders_machine, an_elected_group_serves_and_rolls,
    masters_with_async_slaves_serve_and_roll, masters_with_sync_slaves_serve_and_roll,
    modes_change_in_place_while_messages_flow, needs_three_nodes,
};

/// What a RocketCluster may take from `apply` to Ready, volumes and all, on a busy machine.
pub(crate) const READY: Duration = Duration::from_secs(90);
/// What the operator may take to answer a change.
const REACTION: Duration = Duration::from_secs(30);
/// For a roll of all pods.
pub(crate) const ROLL: Duration = Duration::from_secs(150);
/// The address that applications use, from within the namespace.
pub(crate) const NAMESRV: &str = "demo-namesrv:9876";
/// Messages a second of a checked producer.
pub(crate) const RATE: u32 = 50;

/// One scenario.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) play: fn(Space) -> LocalBoxFuture<'static, Result<()>>,
    /// Disturbs others, so it runs by itself.
    pub(crate) alone: bool,
    /// Why it cannot run here.
    pub(crate) unless: fn(&World) -> Option<String>,
}

macro_rules! scenarios {
    ($($name:ident $(: alone $(, unless $unless:expr)?)?;)*) => {
        /// All of them.
        pub(crate) const SCENARIOS: &[Scenario] = &[$(Scenario {
            name: stringify!($name),
            play: |space| $name(space).boxed_local(),
            alone: [$(scenarios!(@alone $($unless)?),)? false][0],
            unless: scenarios!(@unless $($($unless)?)?),
        }),*];
    };
    (@alone $($unless:expr)?) => { true };
    (@unless) => { |_| None };
    (@unless $unless:expr) => { $unless };
}

// What takes longest begins first, so that nothing is waited for alone at the end.
scenarios! {
    chart_installs_the_operator;
    modes_change_in_place_while_messages_flow;
    an_elected_group_changes_its_members;
    masters_with_sync_slaves_serve_and_roll;
    masters_with_async_slaves_serve_and_roll;
    an_elected_group_serves_and_rolls;
    a_lost_master_is_read_from_its_slave;
    name_servers_scale_without_a_broker_restart;
    groups_scale_out_and_not_in;
    a_new_image_rolls_everything_one_by_one;
    a_changed_key_rolls_the_brokers_one_by_one;
    deleted_broker_pod_comes_back_as_it_was;
    a_deleted_cluster_leaves_only_what_it_should;
    single_master_serves_stock_clients;
    multi_master_serves_stock_clients;
    drift_is_put_back;
    a_broken_object_stops_no_other;
    manifests_are_strictly_valid;
    bad_clusters_are_refused;
    a_restarted_operator_touches_nothing: alone;
    power_cut_of_a_node: alone, unless needs_our_nodes;
    an_elected_group_outlives_its_leaders_machine: alone, unless needs_three_nodes;
}

/// A small cluster of the given mode; fields are merged in.
pub(crate) fn cluster(name: &str, mode: &str, broker: Value) -> Value {
    let mut broker = broker;
    let defaults = json!({
        "storage": {"size": "1Gi"},
        "config": {"mappedFileSizeCommitLog": 67_108_864, "shutdownDrainMs": 500},
    });
    merge(&mut broker, &defaults);
    json!({
        "apiVersion": "rocketcluster.io/v1alpha1",
        "kind": "RocketCluster",
        "metadata": {"name": name},
        "spec": {"mode": mode, "nameServer": {"storage": {"size": "64Mi"}}, "broker": broker},
    })
}

/// Adds what is not there yet.
fn merge(into: &mut Value, defaults: &Value) {
    if let (Value::Object(into), Value::Object(defaults)) = (into, defaults) {
        for (key, value) in defaults {
            merge(into.entry(key).or_insert_with(|| value.clone()), value);
        }
    }
}

/// Every manifest we ship passes a strict check of the API server: no unknown field, no wrong type, every CEL rule and admission.
async fn manifests_are_strictly_valid(space: Space) -> Result<()> {
    for folder in ["crds/", "deploy/", "examples/"] {
        let mut kubectl = space.world.command("kubectl");
        run(
            kubectl.args([
                "apply",
                "--server-side",
                "--force-conflicts",
                "--dry-run=server",
                "--validate=strict",
                "-f",
                folder,
            ]),
            None,
        )
        .await?;
    }
    Ok(())
}

async fn chart_installs_the_operator(space: Space) -> Result<()> {
    let api = Api::<Deployment>::namespaced(space.world.client.clone(), OPERATOR_NAMESPACE);
    let list = api
        .list(&ListParams::default().labels("app.kubernetes.io/name=rocketcluster-operator"))
        .await?;
    let deployment = list.items.first().context("no Deployment")?;
    let ready = deployment.status.as_ref().and_then(|s| s.ready_replicas);
    ensure!(ready == Some(1), "{ready:?} replicas are ready");
    // What a user asks first. (api-resources also makes kubectl forget what it had cached before the definition was there.)
    let known = space
        .kubectl(&["api-resources", "--api-group=rocketcluster.io"])
        .await?;
    ensure!(known.contains("rmq"), "{known}");
    let told = space.kubectl(&["explain", "rmq.spec.mode"]).await?;
    ensure!(told.contains("How brokers form the cluster"), "{told}");
    Ok(())
}

async fn bad_clusters_are_refused(space: Space) -> Result<()> {
    let long = "a".repeat(42);
    const ODD: &str = "a dledger group elects by majority: replicasPerGroup must be odd, 3 or more";
    let elected = |replicas: i32| cluster("x", "dledger", json!({"replicasPerGroup": replicas}));
    let bad: [(Value, &str); 13] = [
        (
            cluster("x", "2m-2s-async", json!({"replicasPerGroup": 1})),
            "need a slave: replicasPerGroup of 2 or more",
        ),
        (elected(1), ODD),
        (elected(2), ODD),
        (elected(4), ODD),
        (elected(11), "spec.broker.replicasPerGroup"),
        (
            cluster(
                "x",
                "dledger",
                json!({"pod": {"antiAffinity": "Required", "affinity": {}}}),
            ),
            "affinity takes the place of antiAffinity: give one of them",
        ),
        (cluster("x", "cluster", json!({})), "spec.mode"),
        (
            cluster("x", "single-master", json!({"groups": 2})),
            "single-master has one broker group; use mode multi-master for more",
        ),
        (
            cluster("x", "multi-master", json!({"replicasPerGroup": 2})),
            "have one broker in a group",
        ),
        (
            cluster("x", "multi-master", json!({"groups": 0})),
            "spec.broker.groups",
        ),
        (
            cluster("x", "single-master", json!({"storage": {"size": "much"}})),
            "spec.broker.storage.size",
        ),
        (
            cluster(&long, "single-master", json!({})),
            "at most 41 letters",
        ),
        (
            cluster("9x", "single-master", json!({})),
            "beginning with a letter",
        ),
    ];
    for (manifest, sentence) in &bad {
        space.refused(manifest, sentence).await?;
    }
    // Changes that would lose something. The operator is told to keep its hands off, so that nothing is started for this.
    for mut good in [
        cluster("good", "multi-master", json!({"groups": 2})),
        cluster("elects", "dledger", json!({})),
    ] {
        merge(&mut good["spec"], &json!({"paused": true}));
        space.apply(&good).await?;
    }
    const OTHER_LOG: &str = "to and from dledger there is no change in place, because the log formats differ: make a second cluster and migrate";
    for (name, change, sentence) in [
        ("good", json!({"mode": "dledger"}), OTHER_LOG),
        ("elects", json!({"mode": "2m-2s-sync"}), OTHER_LOG),
        ("elects", json!({"broker": {"replicasPerGroup": 4}}), ODD),
        (
            "good",
            json!({"broker": {"groups": 1}}),
            "broker groups cannot be removed yet",
        ),
        (
            "good",
            json!({"broker": {"storage": {"size": "512Mi"}}}),
            "a volume cannot shrink",
        ),
        (
            "good",
            json!({"broker": {"namePrefix": "other"}}),
            "spec.broker.namePrefix cannot be changed",
        ),
        (
            "good",
            json!({"clusterName": "other"}),
            "spec.clusterName cannot be changed",
        ),
    ] {
        match space.patch(name, &json!({"spec": change})).await {
            Ok(_) => bail!("accepted, instead of refused with \"{sentence}\": {change}"),
            Err(e) => crate::kubernetes::says(&e, sentence)?,
        }
    }
    Ok(())
}

/// `examples/single-master.yaml`, and what a user sees and does with it.
async fn single_master_serves_stock_clients(space: Space) -> Result<()> {
    space
        .kubectl(&["apply", "-f", "examples/single-master.yaml"])
        .await?;
    let clients = space.clients(None).await?;
    let wait = format!("--timeout={}s", READY.as_secs());
    space
        .kubectl(&["wait", "--for=condition=Ready", "rocketcluster/demo", &wait])
        .await?;
    let table = space.kubectl(&["get", "rmq"]).await?;
    let row: Vec<&str> = table
        .lines()
        .nth(1)
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    ensure!(
        row.len() == 5 && row[..4] == ["demo", "single-master", "1/1", "1/1"],
        "{table}"
    );

    for version in JAVA {
        clients
            .exchange_java(
                version,
                NAMESRV,
                &format!("java-{version}").replace('.', "_"),
            )
            .await?;
    }
    clients
        .exchange_go("http://demo-namesrv:9876", "go", 100)
        .await?;
    // From another namespace's point of view, and by the addresses that the status tells.
    let status = space
        .get::<RocketCluster>("demo")
        .await?
        .status
        .context("no status")?;
    let told = status
        .name_servers
        .context("no name servers in the status")?;
    ensure!(
        told.address == format!("demo-namesrv.{}.svc:9876", space.name),
        "{}",
        told.address
    );
    clients
        .exchange_java(JAVA[1], &told.address, "by-status")
        .await?;
    clients
        .exchange_go(
            &told.http_address.context("no address for Go")?,
            "by-http",
            20,
        )
        .await?;
    clients
        .exchange_go(
            &told.cluster_ip_address.context("no ClusterIP")?,
            "by-ip",
            20,
        )
        .await?;
    Ok(())
}

async fn multi_master_serves_stock_clients(space: Space) -> Result<()> {
    space
        .kubectl(&["apply", "-f", "examples/multi-master.yaml"])
        .await?;
    let clients = space.clients(None).await?;
    let cluster = space.ready("demo", READY).await?;
    let status = cluster.status.context("no status")?;
    ensure!(
        status.ready_brokers.as_deref() == Some("2/2")
            && status.ready_name_servers.as_deref() == Some("2/2"),
        "{status:?}"
    );
    let names: Vec<&str> = status.brokers.iter().map(|b| b.name.as_str()).collect();
    ensure!(names == ["broker-0", "broker-1"], "{names:?}");
    for version in JAVA {
        clients.exchange_java(version, NAMESRV, "shared").await?;
    }
    clients
        .exchange_go("http://demo-namesrv:9876", "shared", 100)
        .await
        .map(drop)
}

async fn deleted_broker_pod_comes_back_as_it_was(space: Space) -> Result<()> {
    const COUNT: u32 = 300;
    space
        .apply(&cluster("demo", "single-master", json!({})))
        .await?;
    let clients = space.clients(None).await?;
    space.ready("demo", READY).await?;
    clients.produce(NAMESRV, "kept", COUNT).await?;
    let pod = space.get::<Pod>("demo-broker-0-0").await?;
    let facts = async || -> Result<(Option<String>, Option<String>, Option<String>)> {
        let claim = space
            .get::<PersistentVolumeClaim>("data-demo-broker-0-0")
            .await?;
        let service = space.get::<Service>("demo-broker-0-0").await?;
        let status = space
            .get::<RocketCluster>("demo")
            .await?
            .status
            .context("no status")?;
        Ok((
            claim.spec.and_then(|s| s.volume_name),
            service.spec.and_then(|s| s.cluster_ip),
            status.brokers.first().and_then(|b| b.address.clone()),
        ))
    };
    let before = facts().await?;
    ensure!(
        before.2.as_deref() == before.1.as_ref().map(|ip| format!("{ip}:10911")).as_deref(),
        "the advertised address is not the Service's: {before:?}"
    );
    space
        .api::<Pod>()
        .delete("demo-broker-0-0", &DeleteParams::default())
        .await?;
    space
        .replaced("demo-broker-0-0", &pod.uid().unwrap_or_default(), READY)
        .await?;
    space.ready("demo", READY).await?;
    let after = facts().await?;
    ensure!(
        before == after,
        "volume, Service and address were {before:?}, are {after:?}"
    );
    clients.consume(NAMESRV, "kept", COUNT).await?;
    // And it takes new ones.
    clients
        .exchange_java(JAVA[0], NAMESRV, "kept")
        .await
        .map(drop)
}

async fn name_servers_scale_without_a_broker_restart(space: Space) -> Result<()> {
    let mut manifest = cluster("demo", "multi-master", json!({}));
    merge(&mut manifest["spec"]["nameServer"], &json!({"replicas": 1}));
    space.apply(&manifest).await?;
    let clients = space.clients(None).await?;
    space.ready("demo", READY).await?;
    let before = lives(&space.pods("demo", "broker").await?);
    ensure!(before.len() == 2, "{before:?}");
    let flow = clients.flow(JAVA[1], NAMESRV, "scaling", RATE).await?;
    for replicas in [3, 2] {
        space
            .patch(
                "demo",
                &json!({"spec": {"nameServer": {"replicas": replicas}}}),
            )
            .await?;
        let cluster = space.ready("demo", READY).await?;
        let told = cluster.status.and_then(|s| s.ready_name_servers);
        ensure!(
            told.as_deref() == Some(&format!("{replicas}/{replicas}")),
            "{told:?}"
        );
        until("the surplus name servers to go", REACTION, async || {
            let pods = space.pods("demo", "namesrv").await?;
            ensure!(pods.len() == replicas, "{:?}", pods.keys());
            Ok(())
        })
        .await?;
        // A client that starts now, whichever name server it meets, finds every broker.
        clients
            .exchange_go("http://demo-namesrv:9876", &format!("with-{replicas}"), 20)
            .await?;
    }
    let after = lives(&space.pods("demo", "broker").await?);
    ensure!(
        before == after,
        "a broker restarted: {before:?} became {after:?}"
    );
    let report = flow.end().await?;
    ensure!(
        report.refused == 0,
        "sends failed while name servers were scaled: {report:?}"
    );
    Ok(())
}

async fn groups_scale_out_and_not_in(space: Space) -> Result<()> {
    space
        .apply(&cluster("demo", "multi-master", json!({"groups": 1})))
        .await?;
    let clients = space.clients(None).await?;
    space.ready("demo", READY).await?;
    let before = lives(&space.pods("demo", "broker").await?);
    let flow = clients.flow(JAVA[0], NAMESRV, "growing", RATE).await?;
    space
        .kubectl(&["scale", "rocketcluster/demo", "--replicas=3"])
        .await?;
    let status = space
        .ready("demo", READY)
        .await?
        .status
        .context("no status")?;
    ensure!(status.ready_brokers.as_deref() == Some("3/3"), "{status:?}");
    let after = lives(&space.pods("demo", "broker").await?);
    ensure!(
        after.len() == 3
            && before
                .iter()
                .all(|(name, life)| after.get(name) == Some(life)),
        "{before:?} became {after:?}"
    );
    clients.exchange_java(JAVA[1], NAMESRV, "grown").await?;
    match space
        .kubectl(&["scale", "rocketcluster/demo", "--replicas=2"])
        .await
    {
        Ok(_) => bail!("scale-in was accepted"),
        Err(e) => crate::kubernetes::says(
            &e,
            "broker groups cannot be removed yet: the messages of a removed group would be lost to its consumers",
        )?,
    }
    flow.end().await.map(drop)
}

async fn drift_is_put_back(space: Space) -> Result<()> {
    space
        .apply(&cluster("demo", "single-master", json!({})))
        .await?;
    space.ready("demo", READY).await?;
    let before = lives(&space.pods("demo", "broker").await?);

    let hand = PatchParams::apply("somebody").force();
    let config = space.get::<ConfigMap>("demo-broker-0").await?.data;
    let edit = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"demo-broker-0-0.conf": "brokerName=other\n"}});
    space
        .api::<ConfigMap>()
        .patch("demo-broker-0", &hand, &Patch::Apply(&edit))
        .await?;
    let namesrv = space
        .get::<Service>("demo-namesrv")
        .await?
        .spec
        .context("no spec")?;
    let edit = json!({"spec": {"ports": [{"name": "remoting", "port": 9999, "protocol": "TCP"}], "selector": {"rocketcluster.io/component": "nobody", "stray": "label"}}});
    space
        .api::<Service>()
        .patch(
            "demo-namesrv",
            &PatchParams::default(),
            &Patch::Merge(&edit),
        )
        .await?;
    space
        .api::<PodDisruptionBudget>()
        .delete("demo-broker-0", &DeleteParams::default())
        .await?;
    space
        .api::<Service>()
        .delete("demo-broker-0", &DeleteParams::default())
        .await?;

    until("everything to be put back", REACTION, async || {
        let now = space.get::<ConfigMap>("demo-broker-0").await?.data;
        ensure!(now == config, "the ConfigMap is {now:?}");
        let service = space
            .get::<Service>("demo-namesrv")
            .await?
            .spec
            .context("no spec")?;
        ensure!(service.ports == namesrv.ports, "ports {:?}", service.ports);
        ensure!(
            service.selector == namesrv.selector,
            "selects {:?}",
            service.selector
        );
        space.get::<PodDisruptionBudget>("demo-broker-0").await?;
        space.get::<Service>("demo-broker-0").await.map(drop)
    })
    .await?;
    space.ready("demo", READY).await?;
    let after = lives(&space.pods("demo", "broker").await?);
    ensure!(
        before == after,
        "a broker was rolled for a file it never ran with: {before:?} became {after:?}"
    );
    Ok(())
}

/// Watches the pods of a component until all are new and ready; fails if two are away at once. The order in which they went.
pub(crate) async fn replace_all(
    space: &Space,
    component: &str,
    before: &BTreeMap<String, Pod>,
) -> Result<Vec<String>> {
    let mut restarting = Restarting::default();
    let mut at_once: Vec<String> = Vec::new();
    let mut order: Vec<String> = Vec::new();
    until(
        &format!("every {component} pod to be replaced"),
        ROLL,
        async || {
            let now = space.pods("demo", component).await?;
            let away = restarting.look(&now);
            if away.len() > at_once.len() {
                at_once = away;
            }
            for (name, old) in before {
                let there = now.get(name).is_some_and(|pod| pod.uid() == old.uid());
                if !there && !order.contains(name) {
                    order.push(name.clone());
                }
            }
            for (name, old) in before {
                let pod = now.get(name).with_context(|| format!("{name} is away"))?;
                ensure!(pod.uid() != old.uid(), "{name} is still the old one");
                ensure!(is_ready(pod), "{name} is not ready");
            }
            Ok(())
        },
    )
    .await?;
    ensure!(at_once.len() <= 1, "away at once: {at_once:?}");
    Ok(order)
}

async fn a_changed_key_rolls_the_brokers_one_by_one(space: Space) -> Result<()> {
    space
        .apply(&cluster("demo", "multi-master", json!({})))
        .await?;
    let clients = space.clients(None).await?;
    let ready = space.ready("demo", READY).await?;
    let hashes = |cluster: &RocketCluster| -> Vec<Option<String>> {
        cluster
            .status
            .iter()
            .flat_map(|s| &s.brokers)
            .map(|b| b.config_hash.clone())
            .collect()
    };
    let old_hashes = hashes(&ready);
    let flow = clients.flow(JAVA[0], NAMESRV, "rolling", RATE).await?;
    let brokers = space.pods("demo", "broker").await?;
    let name_servers = lives(&space.pods("demo", "namesrv").await?);
    space
        .patch(
            "demo",
            &json!({"spec": {"broker": {"config": {"flushDiskType": "SYNC_FLUSH"}}}}),
        )
        .await?;
    replace_all(&space, "broker", &brokers).await?;
    let cluster = space.ready("demo", READY).await?;
    let new_hashes = hashes(&cluster);
    ensure!(
        new_hashes.iter().all(Option::is_some)
            && new_hashes.iter().zip(&old_hashes).all(|(n, o)| n != o),
        "{old_hashes:?} became {new_hashes:?}"
    );
    ensure!(
        lives(&space.pods("demo", "namesrv").await?) == name_servers,
        "name servers were touched"
    );
    flow.end().await.map(drop)
}

/// The same code under another tag, while messages flow.
async fn a_new_image_rolls_everything_one_by_one(space: Space) -> Result<()> {
    space
        .apply(&cluster("demo", "multi-master", json!({})))
        .await?;
    let clients = space.clients(None).await?;
    space.ready("demo", READY).await?;
    let flow = clients.flow(JAVA[1], NAMESRV, "rolling", RATE).await?;
    let brokers = space.pods("demo", "broker").await?;
    let name_servers = space.pods("demo", "namesrv").await?;
    let tag = format!("{}-next", space.world.tag);
    space
        .patch("demo", &json!({"spec": {"image": {"tag": tag}}}))
        .await?;
    let (a, b) = tokio::join!(
        replace_all(&space, "broker", &brokers),
        replace_all(&space, "namesrv", &name_servers),
    );
    a.and(b)?;
    space.ready("demo", READY).await?;
    for pod in space.list::<Pod>("rocketcluster.io/cluster=demo").await? {
        let image = pod
            .spec
            .iter()
            .flat_map(|s| &s.containers)
            .find_map(|c| c.image.clone())
            .unwrap_or_default();
        ensure!(
            image.ends_with(&format!(":{tag}")),
            "{} runs {image}",
            pod.name_any()
        );
    }
    let report = flow.end().await?;
    space
        .world
        .figures
        .add("multi-master", "new image, every pod restarted", report);
    Ok(())
}

async fn a_broken_object_stops_no_other(space: Space) -> Result<()> {
    let broken = cluster(
        "broken",
        "single-master",
        json!({"config": {"listenPort": 1, "brokerName": "mine"}}),
    );
    space.apply(&broken).await?;
    // An image that is nowhere: its pods never start, and nobody else waits for them.
    let mut stuck = cluster("stuck", "single-master", json!({}));
    merge(
        &mut stuck["spec"],
        &json!({"image": {"tag": "no-such-tag", "pullPolicy": "Never"}}),
    );
    space.apply(&stuck).await?;
    space
        .apply(&cluster("demo", "single-master", json!({})))
        .await?;
    let message = until("the broken one to be told", REACTION, async || {
        condition(
            &space.get::<RocketCluster>("broken").await?,
            "Ready",
            "False",
        )
    })
    .await?;
    for key in ["listenPort", "brokerName"] {
        ensure!(
            message.contains(key),
            "both wrong keys should be told: {message}"
        );
    }
    space.ready("demo", READY).await?;
    ensure!(
        space.pods("broken", "broker").await?.is_empty(),
        "the broken one has pods"
    );
    condition(
        &space.get::<RocketCluster>("stuck").await?,
        "Ready",
        "False",
    )?;
    // Mended, it goes on by itself.
    space
        .patch(
            "broken",
            &json!({"spec": {"broker": {"config": {"listenPort": null, "brokerName": null}}}}),
        )
        .await?;
    space.ready("broken", READY).await.map(drop)
}

async fn a_deleted_cluster_leaves_only_what_it_should(space: Space) -> Result<()> {
    space
        .apply(&cluster("keeps", "single-master", json!({})))
        .await?;
    let mut manifest = cluster(
        "drops",
        "single-master",
        json!({"storage": {"whenDeleted": "Delete"}}),
    );
    manifest["spec"]["nameServer"]["storage"]["whenDeleted"] = json!("Delete");
    space.apply(&manifest).await?;
    space.ready("keeps", READY).await?;
    space.ready("drops", READY).await?;
    space
        .kubectl(&["delete", "rocketcluster", "keeps", "drops", "--timeout=60s"])
        .await?;
    async fn left<K: Kind>(space: &Space, cluster: &str, found: &mut Vec<String>) -> Result<()> {
        let labels = format!("rocketcluster.io/cluster={cluster}");
        found.extend(
            space
                .list::<K>(&labels)
                .await?
                .iter()
                .map(|o| format!("{} {}", K::kind(&()), o.name_any())),
        );
        Ok(())
    }
    until(
        "the objects to be gone",
        Duration::from_secs(60),
        async || {
            let mut found = Vec::new();
            for cluster in ["keeps", "drops"] {
                left::<StatefulSet>(&space, cluster, &mut found).await?;
                left::<Pod>(&space, cluster, &mut found).await?;
                left::<Service>(&space, cluster, &mut found).await?;
                left::<ConfigMap>(&space, cluster, &mut found).await?;
                left::<PodDisruptionBudget>(&space, cluster, &mut found).await?;
                left::<ServiceAccount>(&space, cluster, &mut found).await?;
            }
            left::<PersistentVolumeClaim>(&space, "drops", &mut found).await?;
            ensure!(found.is_empty(), "{found:?}");
            Ok(())
        },
    )
    .await?;
    let claims: Vec<String> = space
        .list::<PersistentVolumeClaim>("")
        .await?
        .iter()
        .map(|c| c.name_any())
        .collect();
    ensure!(
        claims == ["data-keeps-broker-0-0", "data-keeps-namesrv-0"],
        "claims left: {claims:?}"
    );
    // The same name again takes the volume, and with it the messages, over.
    space
        .apply(&cluster("keeps", "single-master", json!({})))
        .await?;
    space.ready("keeps", READY).await.map(drop)
}

async fn a_restarted_operator_touches_nothing(space: Space) -> Result<()> {
    space
        .apply(&cluster("demo", "multi-master", json!({})))
        .await?;
    space.ready("demo", READY).await?;
    let objects = async || -> Result<BTreeMap<String, Option<String>>> {
        let mut all = BTreeMap::new();
        for set in space.list::<StatefulSet>("").await? {
            all.insert(
                format!("StatefulSet {}", set.name_any()),
                set.metadata.generation.map(|g| g.to_string()),
            );
        }
        for map in space
            .list::<ConfigMap>("rocketcluster.io/cluster=demo")
            .await?
        {
            all.insert(
                format!("ConfigMap {}", map.name_any()),
                map.resource_version(),
            );
        }
        for service in space.list::<Service>("").await? {
            all.insert(
                format!("Service {}", service.name_any()),
                service.resource_version(),
            );
        }
        for pod in space.list::<Pod>("").await? {
            all.insert(format!("Pod {}", pod.name_any()), pod.uid());
        }
        Ok(all)
    };
    let before = objects().await?;
    let operators = Api::<Pod>::namespaced(space.world.client.clone(), OPERATOR_NAMESPACE);
    let of_ours = ListParams::default().labels("app.kubernetes.io/name=rocketcluster-operator");
    let old: Vec<Pod> = operators.list(&of_ours).await?.items;
    for pod in &old {
        operators
            .delete(&pod.name_any(), &DeleteParams::default())
            .await?;
    }
    until("a new operator", READY, async || {
        let pods = operators.list(&of_ours).await?.items;
        ensure!(
            pods.iter()
                .any(|p| is_ready(p) && old.iter().all(|o| o.uid() != p.uid())),
            "not ready yet"
        );
        Ok(())
    })
    .await?;
    // It serves a change, so it has gone over everything.
    space
        .apply(&cluster("second", "single-master", json!({})))
        .await?;
    space.ready("second", READY).await?;
    let mut after = objects().await?;
    after.retain(|name, _| !name.contains(" second"));
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(())
}

pub(crate) fn needs_our_nodes(world: &World) -> Option<String> {
    world
        .scripts
        .is_none()
        .then(|| "only a cluster started by run.sh lets a node's power be cut".to_owned())
}

pub(crate) fn node_of(pod: &Pod) -> String {
    pod.spec
        .as_ref()
        .and_then(|s| s.node_name.clone())
        .unwrap_or_default()
}

pub(crate) async fn wait_for_node(world: &World, name: &str) -> Result<()> {
    let nodes = Api::<Node>::all(world.client.clone());
    until("the node to be back", Duration::from_secs(60), async || {
        let node = nodes.get(name).await?;
        let ready = node
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .any(|c| c.type_ == "Ready" && c.status == "True");
        ensure!(ready, "not ready");
        Ok(())
    })
    .await
}

/// Half of the brokers and of the name servers lose their machine; applications go on with the rest, and nothing acknowledged is lost.
async fn power_cut_of_a_node(space: Space) -> Result<()> {
    let world = &space.world;
    let operators = Api::<Pod>::namespaced(world.client.clone(), OPERATOR_NAMESPACE);
    let list = operators.list(&ListParams::default()).await?;
    let survivor = node_of(list.items.first().context("no operator")?);
    space
        .apply(&cluster("demo", "multi-master", json!({})))
        .await?;
    let clients = space.clients(Some(&survivor)).await?;
    space.ready("demo", READY).await?;
    let brokers = space.pods("demo", "broker").await?;
    let victim = brokers
        .values()
        .map(node_of)
        .find(|node| *node != survivor)
        .context("all brokers are on one node")?;
    let number = victim
        .strip_prefix("node")
        .with_context(|| victim.clone())?
        .to_owned();
    let flow = clients.flow(JAVA[1], NAMESRV, "power", RATE).await?;

    world.script("node-down.sh", &[&number, "kill"]).await?;
    let said = until(
        "the cluster to see it",
        Duration::from_secs(60),
        async || condition(&space.get::<RocketCluster>("demo").await?, "Ready", "False"),
    )
    .await;
    // Whatever was seen, the node comes back, for the others' sake.
    world.script("node-up.sh", &[&number]).await?;
    let message = said?;
    ensure!(
        message.contains("broker"),
        "it should tell which broker is away: {message}"
    );
    wait_for_node(world, &victim).await?;
    space.ready("demo", READY).await?;
    let report = flow.end().await?;
    world.figures.add(
        "multi-master",
        "power cut of a node with a broker and a name server",
        report,
    );
    ensure!(
        report.longest_gap_ms < 30_000,
        "sending stood still: {report:?}"
    );
    Ok(())
}
