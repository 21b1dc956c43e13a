//! From Kubernetes objects to what one computer needs for them: pods with programs, arguments, environment, files and folders, and a hosts file that
//! stands in for cluster DNS. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec, Service, Volume};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use operator_core::build::{LABEL_COMPONENT, Objects};
use remoting::properties::{Properties, environment_name};
use serde::{Deserialize, Serialize};

use super::network::{Addresses, FIRST_BROKER, FIRST_NAME_SERVER, Network};

/// Kubernetes' own default.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// Nobody here follows a route that is being withdrawn, so a stop need not wait for clients as long as in a cluster.
const LOCAL_DRAIN_MS: &str = "200";
/// Where a slave copies from.
const MASTER: &str = "haMasterAddress";
/// Keys of an elected group.
const ENABLE_ELECTION: &str = "enableDLegerCommitLog";
const PEERS: &str = "dLegerPeers";

/// Which program a pod runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Program {
    NameServer,
    Broker,
}

impl Program {
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::NameServer => "mqnamesrv",
            Self::Broker => "mqbroker",
        }
    }
}

/// What its file tells a broker to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Duty {
    Master,
    Slave,
    /// The group elects its master.
    Elected,
}

/// One process, with everything it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) program: Program,
    /// `None` for a name server.
    pub(crate) duty: Option<Duty>,
    /// The brokers that keep the same messages; empty for a name server.
    pub(crate) group: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) files: BTreeMap<PathBuf, String>,
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) log: PathBuf,
    /// Where clients reach it.
    pub(crate) address: SocketAddr,
    /// Where `/livez` and `/readyz` are.
    pub(crate) http: SocketAddr,
    pub(crate) grace: Duration,
    /// `host:port` of the members of its group by id, where the group is elected.
    pub(crate) members: BTreeMap<String, String>,
}

impl Pod {
    /// Whether a process of the one does what the other asks for. Who belongs to an elected group is told to its leader, so that restarts nobody.
    pub(crate) fn needs_no_restart(&self, other: &Self) -> bool {
        self.without_members() == other.without_members()
    }

    fn without_members(&self) -> Self {
        let mut pod = self.clone();
        pod.members.clear();
        pod.env.remove(&environment_name(PEERS));
        let names_members = |line: &&str| {
            line.strip_prefix(PEERS)
                .is_some_and(|rest| rest.starts_with('='))
        };
        for text in pod.files.values_mut() {
            *text = text.lines().filter(|line| !names_members(line)).collect();
        }
        pod
    }
}

/// Everything that runs, and the names by which the pods find each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Name servers first.
    pub(crate) pods: Vec<Pod>,
    pub(crate) hosts: String,
    pub(crate) name_servers: Vec<SocketAddr>,
}

struct Placed<'a> {
    name: String,
    labels: BTreeMap<String, String>,
    set: &'a StatefulSet,
    ip: IpAddr,
    place: u8,
    program: Program,
}

/// Places pods that have no address yet and makes the plan. `folder` is the cluster's own.
pub(crate) fn plan(objects: &Objects, addresses: &mut Addresses, folder: &Path) -> Result<Plan> {
    let mut placed = Vec::new();
    for set in &objects.stateful_sets {
        let (name, spec) = (
            name_of(&set.metadata.name)?,
            set.spec.as_ref().context("a StatefulSet has no spec")?,
        );
        let labels = spec
            .template
            .metadata
            .as_ref()
            .and_then(|m| m.labels.clone())
            .unwrap_or_default();
        let (program, first) = match labels.get(LABEL_COMPONENT).map(String::as_str) {
            Some("namesrv") => (Program::NameServer, FIRST_NAME_SERVER),
            Some("broker") => (Program::Broker, FIRST_BROKER),
            other => bail!("StatefulSet {name}: no program is known for component {other:?}"),
        };
        for ordinal in 0..spec.replicas.unwrap_or(1) {
            let pod = format!("{name}-{ordinal}");
            let mut labels = labels.clone();
            labels.insert("statefulset.kubernetes.io/pod-name".to_owned(), pod.clone());
            labels.insert(
                "apps.kubernetes.io/pod-index".to_owned(),
                ordinal.to_string(),
            );
            let place = addresses.place(&pod, first)?;
            placed.push(Placed {
                name: pod,
                labels,
                set,
                ip: addresses.ip(place),
                place,
                program,
            });
        }
    }
    placed.sort_by_key(|p| p.program);
    let hosts_file = folder.join("hosts");
    let mut name_servers = Vec::new();
    for pod in placed.iter().filter(|p| p.program == Program::NameServer) {
        name_servers.push(SocketAddr::new(
            pod.ip,
            port_named(container(pod)?, "remoting", addresses, pod.place)?.0,
        ));
    }
    let pods = placed
        .iter()
        .map(|p| {
            make_pod(
                p,
                &placed,
                objects,
                addresses,
                folder,
                &hosts_file,
                &name_servers,
            )
        })
        .collect::<Result<_>>()?;
    Ok(Plan {
        pods,
        hosts: hosts(&objects.services, &placed),
        name_servers,
    })
}

fn name_of(name: &Option<String>) -> Result<&str> {
    name.as_deref().context("an object has no name")
}

fn pod_spec<'a>(pod: &Placed<'a>) -> Result<&'a PodSpec> {
    pod.set
        .spec
        .as_ref()
        .and_then(|s| s.template.spec.as_ref())
        .with_context(|| format!("{} has no pod template", pod.name))
}

fn container<'a>(pod: &Placed<'a>) -> Result<&'a Container> {
    match pod_spec(pod)?.containers.as_slice() {
        [one] => Ok(one),
        many => bail!(
            "{} has {} containers; a process can be only one",
            pod.name,
            many.len()
        ),
    }
}

/// The port with this name: the one to use here, and the one in the container.
fn port_named(
    container: &Container,
    name: &str,
    addresses: &Addresses,
    place: u8,
) -> Result<(u16, u16)> {
    let ports = container.ports.as_deref().unwrap_or_default();
    let found = ports
        .iter()
        .enumerate()
        .find(|(_, p)| p.name.as_deref() == Some(name));
    let (index, port) =
        found.with_context(|| format!("container {} has no port {name}", container.name))?;
    let standard = u16::try_from(port.container_port).context("a port is out of range")?;
    Ok((addresses.port(place, index, standard), standard))
}

/// The duty and the group that a broker's file gives it.
fn duty_of(config: &Properties) -> (Duty, String) {
    let duty = if config.get(ENABLE_ELECTION) == Some("true") {
        Duty::Elected
    } else if config.get("brokerRole") == Some("SLAVE") {
        Duty::Slave
    } else {
        Duty::Master
    };
    (
        duty,
        config.get("brokerName").unwrap_or_default().to_owned(),
    )
}

/// `host:port` of a pod's own name, with the address and the port that the pod has here.
fn target_here(target: &str, placed: &[Placed<'_>], addresses: &Addresses) -> Result<SocketAddr> {
    let (host, port) = target.rsplit_once(':').context("no port")?;
    let port: i32 = port.parse().context("its port is no number")?;
    let name = host.split('.').next().unwrap_or_default();
    let pod = placed
        .iter()
        .find(|p| p.name == name)
        .context("there is no such pod")?;
    let ports = container(pod)?.ports.as_deref().unwrap_or_default();
    let index = ports
        .iter()
        .position(|p| p.container_port == port)
        .context("the pod has no such port")?;
    let port = addresses.port(pod.place, index, u16::try_from(port)?);
    Ok(SocketAddr::new(pod.ip, port))
}

/// The members of an elected group by id, from `id-host:port` parted by `;`.
fn members_of(peers: &str) -> Result<BTreeMap<String, String>> {
    let all = peers
        .split(';')
        .map(str::trim)
        .filter(|peer| !peer.is_empty());
    all.map(|peer| {
        let (id, target) = peer.split_once('-').context("no id")?;
        Ok((id.to_owned(), target.to_owned()))
    })
    .collect()
}

/// The same with their addresses here.
fn members_here(
    peers: &str,
    placed: &[Placed<'_>],
    addresses: &Addresses,
) -> Result<BTreeMap<String, String>> {
    let mut members = members_of(peers)?;
    for target in members.values_mut() {
        *target = target_here(target, placed, addresses)?.to_string();
    }
    Ok(members)
}

fn make_pod(
    pod: &Placed<'_>,
    placed: &[Placed<'_>],
    objects: &Objects,
    addresses: &Addresses,
    folder: &Path,
    hosts_file: &Path,
    name_servers: &[SocketAddr],
) -> Result<Pod> {
    let (spec, container) = (pod_spec(pod)?, container(pod)?);
    let own = folder.join(&pod.name);
    let mut env = environment(pod, container.env.as_deref().unwrap_or_default());
    let mounts = mounts(pod, spec, container, &own)?;
    let expand = |text: &str| expand(text, &env);
    let args: Vec<String> = container
        .args
        .iter()
        .flatten()
        .map(|a| map_path(&expand(a), &mounts))
        .collect();

    let mut files = BTreeMap::new();
    for volume in spec.volumes.iter().flatten() {
        let Some(map) = &volume.config_map else {
            continue;
        };
        let Some(found) = objects
            .config_maps
            .iter()
            .find(|m| m.metadata.name.as_deref() == Some(map.name.as_str()))
        else {
            bail!(
                "{}: ConfigMap {} is not part of this cluster; it cannot be mounted here",
                pod.name,
                map.name
            );
        };
        for (key, text) in found.data.iter().flatten() {
            // Of the files of a group, a pod reads its own.
            if objects.config_of(&pod.name).is_none() || *key == format!("{}.conf", pod.name) {
                files.insert(own.join(&volume.name).join(key), map_values(text, &mounts));
            }
        }
    }
    let folders = mounts.values().cloned().collect();
    let config = match (pod.program, objects.config_of(&pod.name)) {
        (Program::Broker, Some(text)) => Some(
            Properties::parse(text.as_bytes())
                .with_context(|| format!("the configuration of {}", pod.name))?,
        ),
        _ => None,
    };

    let (http, _) = port_named(container, probe_port(container), addresses, pod.place)?;
    let (remoting, _) = port_named(container, "remoting", addresses, pod.place)?;
    env.insert("ROCKETMQ_BIND_ADDRESS".to_owned(), pod.ip.to_string());
    env.insert(
        "ROCKETMQ_HOSTS_FILE".to_owned(),
        hosts_file.display().to_string(),
    );
    if pod.program == Program::Broker {
        env.insert(
            "ROCKETMQ_SHUTDOWN_DRAIN_MS".to_owned(),
            LOCAL_DRAIN_MS.to_owned(),
        );
    }
    let told = |key: &str| config.as_ref().and_then(|c| c.get(key));
    let peers = || format!("{PEERS} of {}", pod.name);
    let mut members = match told(PEERS) {
        Some(text) => members_of(text).with_context(peers)?,
        None => BTreeMap::new(),
    };
    if matches!(addresses.network, Network::Shared { .. }) {
        // Names cannot carry ports, so with one address the lists are given as addresses.
        env.insert("ROCKETMQ_LISTEN_PORT".to_owned(), remoting.to_string());
        env.insert("ROCKETMQ_HTTP_PORT".to_owned(), http.to_string());
        if pod.program == Program::Broker {
            // The fast port is always two below; a pod's block leaves that room at the end of the one before.
            if let Ok((port, _)) = port_named(container, "ha", addresses, pod.place) {
                env.insert(environment_name("haListenPort"), port.to_string());
            }
            let list: Vec<String> = name_servers.iter().map(ToString::to_string).collect();
            env.insert("ROCKETMQ_NAMESRV_ADDR".to_owned(), list.join(";"));
            if let Some(master) = told(MASTER) {
                let here = target_here(master, placed, addresses)
                    .with_context(|| format!("{MASTER}: {master}"))?;
                env.insert(environment_name(MASTER), here.to_string());
            }
            if let Some(text) = told(PEERS) {
                members = members_here(text, placed, addresses).with_context(peers)?;
                let list: Vec<String> = members
                    .iter()
                    .map(|(id, address)| format!("{id}-{address}"))
                    .collect();
                env.insert(environment_name(PEERS), list.join(";"));
            }
        }
    }
    let (duty, group) = config.as_ref().map(duty_of).unzip();
    Ok(Pod {
        name: pod.name.clone(),
        program: pod.program,
        duty,
        group: group.unwrap_or_default(),
        args,
        env,
        files,
        folders,
        log: folder.join("logs").join(format!("{}.log", pod.name)),
        address: SocketAddr::new(pod.ip, remoting),
        http: SocketAddr::new(pod.ip, http),
        grace: spec
            .termination_grace_period_seconds
            .and_then(|s| u64::try_from(s).ok())
            .map_or(DEFAULT_GRACE, Duration::from_secs),
        members,
    })
}

fn probe_port(container: &Container) -> &str {
    let port = container
        .readiness_probe
        .as_ref()
        .and_then(|p| p.http_get.as_ref())
        .map(|g| &g.port);
    match port {
        Some(IntOrString::String(name)) => name,
        _ => "http",
    }
}

fn environment(pod: &Placed<'_>, wanted: &[EnvVar]) -> BTreeMap<String, String> {
    let namespace = pod.set.metadata.namespace.clone().unwrap_or_default();
    let mut env = BTreeMap::new();
    for variable in wanted {
        let field = variable
            .value_from
            .as_ref()
            .and_then(|f| f.field_ref.as_ref())
            .map(|f| f.field_path.as_str());
        let value = match (field, &variable.value) {
            (Some("metadata.name"), _) => pod.name.clone(),
            (Some("metadata.namespace"), _) => namespace.clone(),
            (Some("status.podIP" | "status.hostIP"), _) => pod.ip.to_string(),
            (Some("spec.nodeName"), _) => "localhost".to_owned(),
            // Secrets, resource fields and the like are not here; what asks for them runs without.
            (_, None) => continue,
            (_, Some(value)) => expand(value, &env),
        };
        env.insert(variable.name.clone(), value);
    }
    env
}

/// `$(NAME)` becomes the variable's value; an unknown one stays as it is, and `$$` is a dollar sign: Kubernetes' rule.
fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let reference = rest.strip_prefix("$(").and_then(|r| r.split_once(')'));
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
        } else if let Some((value, after)) =
            reference.and_then(|(name, after)| Some((env.get(name)?, after)))
        {
            out.push_str(value);
            rest = after;
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

/// Folder in the container → folder here.
fn mounts(
    pod: &Placed<'_>,
    spec: &PodSpec,
    container: &Container,
    own: &Path,
) -> Result<BTreeMap<String, PathBuf>> {
    let claims = pod
        .set
        .spec
        .iter()
        .flat_map(|s| s.volume_claim_templates.iter().flatten())
        .filter_map(|c| c.metadata.name.as_deref());
    let claims: Vec<&str> = claims.collect();
    let mut mounts = BTreeMap::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = spec.volumes.iter().flatten().find(|v| v.name == mount.name);
        if !claims.contains(&mount.name.as_str()) && !volume.is_some_and(can_be_a_folder) {
            bail!(
                "{}: volume {} is of a kind that only a Kubernetes has",
                pod.name,
                mount.name
            );
        }
        let mut target = own.join(&mount.name);
        if let Some(sub) = &mount.sub_path {
            target.push(sub);
        }
        mounts.insert(mount.mount_path.trim_end_matches('/').to_owned(), target);
    }
    Ok(mounts)
}

fn can_be_a_folder(volume: &Volume) -> bool {
    volume.config_map.is_some() || volume.empty_dir.is_some()
}

/// A path inside a mount, as a path here; anything else unchanged.
fn map_path(text: &str, mounts: &BTreeMap<String, PathBuf>) -> String {
    // The longest mount that contains the path: a mount may lie in another.
    for (mount, folder) in mounts.iter().rev() {
        if let Some(rest) = text.strip_prefix(mount.as_str()) {
            if rest.is_empty() {
                return folder.display().to_string();
            }
            if let Some(rest) = rest.strip_prefix('/') {
                return folder.join(rest).display().to_string();
            }
        }
    }
    text.to_owned()
}

/// The values of a properties file, mapped like arguments.
fn map_values(text: &str, mounts: &BTreeMap<String, PathBuf>) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        match line.split_once('=') {
            Some((key, value)) if value.trim_start().starts_with('/') => {
                // A folder here may hold letters that properties text must escape.
                let mapped = map_path(value.trim(), mounts);
                out.push_str(
                    remoting::properties::write([(key.trim(), mapped.as_str())]).trim_end(),
                );
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

/// Every Service name with the addresses of the pods it selects. A Service with one address of its own is not to be had here, so its name has those of
/// its pods as well, which means the same to a client.
fn hosts(services: &[Service], placed: &[Placed<'_>]) -> String {
    let mut out = String::from("# Written by rocketctl up: what cluster DNS would answer.\n");
    for service in services {
        let (Some(name), Some(spec)) = (&service.metadata.name, &service.spec) else {
            continue;
        };
        let Some(selector) = spec.selector.as_ref().filter(|s| !s.is_empty()) else {
            continue;
        };
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let forms = |host: &str| {
            format!(
                "{host}.{namespace}.svc {host}.{namespace}.svc.cluster.local {host}.{namespace} {host}"
            )
        };
        for pod in placed
            .iter()
            .filter(|p| selector.iter().all(|(k, v)| p.labels.get(k) == Some(v)))
        {
            let _ = write!(out, "{} {}", pod.ip, forms(name));
            let governs = pod
                .set
                .spec
                .as_ref()
                .is_some_and(|s| s.service_name.as_deref() == Some(name.as_str()));
            if governs {
                let _ = write!(out, " {}", forms(&format!("{}.{name}", pod.name)));
            }
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::manifest;
    use super::*;

    fn planned(spec: &str, network: Network) -> Plan {
        let text = format!(
            "apiVersion: rocketcluster.io/v1alpha1\nkind: RocketCluster\nmetadata: {{name: demo, namespace: shop}}\nspec: {spec}\n"
        );
        let manifest = manifest::parse(&text, None).unwrap();
        plan(
            &manifest.objects,
            &mut Addresses::new(network),
            Path::new("/x/demo"),
        )
        .unwrap()
    }

    const OWN: Network = Network::Own {
        second: 9,
        third: 8,
    };

    #[test]
    fn pods_get_addresses_arguments_files_and_folders() {
        let plan = planned(
            "{mode: multi-master, nameServer: {replicas: 2}, broker: {groups: 2}}",
            OWN,
        );
        let names: Vec<_> = plan
            .pods
            .iter()
            .map(|p| (p.name.as_str(), p.address.to_string()))
            .collect();
        assert_eq!(
            names,
            vec![
                ("demo-namesrv-0", "127.9.8.1:9876".to_owned()),
                ("demo-namesrv-1", "127.9.8.2:9876".to_owned()),
                ("demo-broker-0-0", "127.9.8.11:10911".to_owned()),
                ("demo-broker-1-0", "127.9.8.12:10911".to_owned()),
            ]
        );
        let broker = &plan.pods[3];
        assert_eq!(
            broker.args,
            vec!["-c", "/x/demo/demo-broker-1-0/config/demo-broker-1-0.conf"]
        );
        assert_eq!(broker.http.to_string(), "127.9.8.12:10913");
        assert_eq!(broker.env["POD_NAME"], "demo-broker-1-0");
        assert_eq!(broker.env["ROCKETMQ_BIND_ADDRESS"], "127.9.8.12");
        assert!(!broker.env.contains_key("ROCKETMQ_LISTEN_PORT"));
        let conf = &broker.files[Path::new("/x/demo/demo-broker-1-0/config/demo-broker-1-0.conf")];
        assert!(
            conf.contains("storePathRootDir=/x/demo/demo-broker-1-0/data/store\n"),
            "{conf}"
        );
        assert!(
            conf.contains("namesrvAddr=demo-namesrv-nodes.shop.svc:9876\n"),
            "{conf}"
        );
        assert_eq!(broker.files.len(), 1);
        assert!(
            broker
                .folders
                .contains(&PathBuf::from("/x/demo/demo-broker-1-0/data"))
        );
    }

    #[test]
    fn the_hosts_file_answers_what_cluster_dns_would() {
        let plan = planned(
            "{mode: multi-master, nameServer: {replicas: 2}, broker: {groups: 2}}",
            OWN,
        );
        let lookup = |name: &str| {
            let has = |line: &&str| line.split_whitespace().skip(1).any(|n| n == name);
            plan.hosts
                .lines()
                .filter(has)
                .map(|l| l.split_whitespace().next().unwrap_or_default())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            lookup("demo-namesrv-nodes.shop.svc"),
            vec!["127.9.8.1", "127.9.8.2"]
        );
        assert_eq!(lookup("demo-namesrv"), vec!["127.9.8.1", "127.9.8.2"]);
        assert_eq!(lookup("demo-broker-1-0.shop.svc"), vec!["127.9.8.12"]);
        assert_eq!(
            lookup("demo-broker-0-0.demo-broker-0.shop.svc.cluster.local"),
            vec!["127.9.8.11"]
        );
        assert_eq!(
            lookup("demo-namesrv-1.demo-namesrv-nodes.shop.svc"),
            vec!["127.9.8.2"]
        );
    }

    #[test]
    fn with_one_address_ports_differ_and_names_are_not_needed() {
        let plan = planned(
            "{mode: single-master}",
            Network::Shared { first_port: 20_000 },
        );
        let [name_server, broker] = plan.pods.as_slice() else {
            panic!("{plan:?}")
        };
        assert_eq!(name_server.address.to_string(), "127.0.0.1:20000");
        assert_eq!(name_server.env["ROCKETMQ_LISTEN_PORT"], "20000");
        assert_eq!(broker.env["ROCKETMQ_NAMESRV_ADDR"], "127.0.0.1:20000");
        let ports: Vec<u16> = ["LISTEN", "HA_LISTEN", "HTTP"]
            .iter()
            .map(|p| broker.env[&format!("ROCKETMQ_{p}_PORT")].parse().unwrap())
            .collect();
        assert_eq!(ports, vec![20_100, 20_102, 20_103]);
    }

    #[test]
    fn brokers_of_a_group_find_each_other_on_one_address() {
        let shared = || Network::Shared { first_port: 20_000 };
        let plan = planned("{mode: 2m-2s-async}", shared());
        let slave = plan.pods.iter().find(|p| p.name == "demo-broker-1-1");
        let slave = slave.unwrap();
        assert_eq!(slave.duty, Some(Duty::Slave));
        assert_eq!(slave.group, "broker-1");
        let master = plan.pods.iter().find(|p| p.name == "demo-broker-1-0");
        let replication = &master.unwrap().env["ROCKETMQ_HA_LISTEN_PORT"];
        assert_eq!(
            slave.env["ROCKETMQ_HA_MASTER_ADDRESS"],
            format!("127.0.0.1:{replication}")
        );
        let plan = planned("{mode: dledger}", shared());
        let members: Vec<&Pod> = plan
            .pods
            .iter()
            .filter(|p| p.duty == Some(Duty::Elected))
            .collect();
        assert_eq!(members.len(), 3);
        for member in members {
            assert_eq!(
                member.env["ROCKETMQ_D_LEGER_PEERS"],
                "n0-127.0.0.1:20102;n1-127.0.0.1:20112;n2-127.0.0.1:20122"
            );
        }
    }

    #[test]
    fn a_name_that_is_no_pod_of_the_cluster_is_told() {
        let addresses = Addresses::new(Network::Shared { first_port: 20_000 });
        for (wrong, why) in [
            ("n0-nobody:10911", "there is no such pod"),
            ("n0-nobody:x", "its port is no number"),
            ("n0-nobody", "no port"),
            ("nobody", "no id"),
        ] {
            let e = members_here(wrong, &[], &addresses).unwrap_err();
            assert_eq!(e.to_string(), why);
        }
    }

    #[test]
    fn a_file_gives_a_broker_its_duty() {
        let duty = |text: &str| duty_of(&Properties::parse(text.as_bytes()).unwrap());
        assert_eq!(
            duty("brokerName=a\nbrokerRole=SLAVE\n"),
            (Duty::Slave, "a".to_owned())
        );
        assert_eq!(duty("brokerRole=SYNC_MASTER\n").0, Duty::Master);
        assert_eq!(
            duty("brokerRole=SLAVE\nenableDLegerCommitLog=true\n").0,
            Duty::Elected
        );
    }

    #[test]
    fn variables_and_paths() {
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        assert_eq!(expand("x$(A)$(B)$$(A) $", &env), "x1$(B)$(A) $");
        let mounts = BTreeMap::from([
            ("/data".to_owned(), PathBuf::from("/h/data")),
            ("/data/in".to_owned(), PathBuf::from("/h/in")),
        ]);
        assert_eq!(map_path("/data", &mounts), "/h/data");
        assert_eq!(map_path("/data/store", &mounts), "/h/data/store");
        assert_eq!(map_path("/data/in/x", &mounts), "/h/in/x");
        assert_eq!(map_path("/database", &mounts), "/database");
        assert_eq!(
            map_values("a=1\nroot=/data/x\n", &mounts),
            "a=1\nroot=/h/data/x\n"
        );
    }

    #[test]
    fn a_change_of_configuration_restarts_the_pod_and_a_change_of_members_nobody() {
        let before = planned("{mode: single-master}", OWN);
        let after = planned(
            "{mode: single-master, broker: {config: {fileReservedTime: 3}}}",
            OWN,
        );
        assert_eq!(before.pods[0], after.pods[0]);
        assert!(before.pods[0].needs_no_restart(&after.pods[0]));
        assert!(!before.pods[1].needs_no_restart(&after.pods[1]));
        for network in [OWN, Network::Shared { first_port: 20_000 }] {
            let members = |count: i32| {
                let spec = format!("{{mode: dledger, broker: {{replicasPerGroup: {count}}}}}");
                let plan = planned(&spec, network);
                let first = |pod: &&Pod| pod.name == "demo-broker-0-0";
                plan.pods.iter().find(first).unwrap().clone()
            };
            let (three, five) = (members(3), members(5));
            assert_ne!(three, five);
            assert!(three.needs_no_restart(&five));
            assert_eq!((three.members.len(), five.members.len()), (3, 5));
            assert!(five.members["n4"].contains(':'));
        }
    }
}
