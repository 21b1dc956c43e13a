//! From what was written to what is used: defaults by mode, and every rule, so that later steps cannot meet a spec that is wrong.
//!
//! The rules of the API server are checked again here: the laptop runner has no API server, and an old definition may be installed.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::ResourceRequirements;
use serde_json::Value;

use crate::api::{
    AntiAffinity, MAX_GROUPS, MAX_NAME_LENGTH, MAX_NAME_SERVERS, MAX_REPLICAS_PER_GROUP, Mode,
    PodSpec, Properties, PullPolicy, RocketCluster, StorageSpec,
};
use crate::build::names;
use crate::keys;

/// What the operator (or the runner) was installed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Images are `<repository>/mqnamesrv:<tag>` and `<repository>/mqbroker:<tag>`.
    pub repository: String,
    pub tag: String,
    pub pull_policy: PullPolicy,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            repository: "rocketcluster".to_owned(),
            tag: env!("CARGO_PKG_VERSION").to_owned(),
            pull_policy: PullPolicy::IfNotPresent,
        }
    }
}

/// A RocketCluster that cannot be wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedCluster {
    pub name: String,
    pub namespace: String,
    /// Absent without an API server; then objects have no owner.
    pub uid: Option<String>,
    pub generation: Option<i64>,
    pub mode: Mode,
    /// `brokerClusterName`.
    pub cluster_name: String,
    pub name_server: ValidatedNameServer,
    pub broker: ValidatedBroker,
    pub pull_policy: PullPolicy,
    pub paused: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedNameServer {
    pub replicas: i32,
    pub image: String,
    pub config: BTreeMap<String, String>,
    pub storage: StorageSpec,
    pub resources: Option<ResourceRequirements>,
    pub pod: PodSpec,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedBroker {
    pub groups: i32,
    /// Brokers of a group, as asked for; [`Self::replicas`] is what a group has for now.
    pub replicas_per_group: i32,
    /// Groups that have another size for now, on their way to the one asked for. Set by [`crate::plan`] alone.
    pub staged: BTreeMap<i32, i32>,
    pub name_prefix: String,
    pub image: String,
    pub config: BTreeMap<String, String>,
    /// `shutdownDrainMs`; the grace period of the pods follows from it.
    pub shutdown_drain_ms: u32,
    pub storage: StorageSpec,
    pub resources: Option<ResourceRequirements>,
    pub pod: PodSpec,
}

impl ValidatedBroker {
    /// Brokers of a group for now.
    pub fn replicas(&self, group: i32) -> i32 {
        self.staged
            .get(&group)
            .copied()
            .unwrap_or(self.replicas_per_group)
    }
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `spec.broker.config.brokerName`
    pub path: String,
    pub sentence: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.sentence)
    }
}

/// Everything that is wrong with a RocketCluster, never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub Vec<Problem>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("; ")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

/// The member that leads when it can.
const PREFERRED_LEADER: &str = "preferredLeaderId";
/// `shutdownDrainMs` when it is not set.
const DEFAULT_SHUTDOWN_DRAIN_MS: u32 = 2_000;
/// Longest `shutdownDrainMs` the broker takes.
const MAX_SHUTDOWN_DRAIN_MS: u32 = 600_000;
/// Longest value in `config`; all of a group's files share a ConfigMap of 1 MiB.
const MAX_VALUE_BYTES: usize = 4_096;
/// Longest key in `config`.
const MAX_KEY_BYTES: usize = 128;

const IDENTITY: &str = "the operator, which gives every broker its identity";
const MODE: &str = "spec.mode";
const NETWORK: &str = "the operator, whose Services and probes depend on it";
const STORAGE: &str = "spec.broker.storage and the operator, which mounts the volume";
const DISCOVERY: &str = "the operator, which gives every broker the name servers of this cluster";

/// Keys of broker.conf that are not the user's here, and whose they are.
const BROKER_OWNED: &[(&str, &str)] = &[
    ("brokerClusterName", "spec.clusterName"),
    ("brokerName", "spec.broker.namePrefix"),
    ("brokerId", IDENTITY),
    ("brokerRole", MODE),
    ("brokerIP1", IDENTITY),
    ("brokerIP2", IDENTITY),
    ("advertisedHost", IDENTITY),
    ("haMasterAddress", MODE),
    ("enableDLegerCommitLog", MODE),
    ("dLegerGroup", MODE),
    ("dLegerPeers", MODE),
    ("dLegerSelfId", MODE),
    ("duplicationEnable", MODE),
    ("enableControllerMode", MODE),
    ("controllerAddr", MODE),
    ("namesrvAddr", DISCOVERY),
    ("fetchNamesrvAddrByAddressServer", DISCOVERY),
    ("fetchNameSrvAddrByDnsLookup", DISCOVERY),
    ("rmqAddressServerDomain", DISCOVERY),
    ("rmqAddressServerSubGroup", DISCOVERY),
    ("listenPort", NETWORK),
    ("fastListenPort", NETWORK),
    ("haListenPort", NETWORK),
    ("bindAddress", NETWORK),
    ("httpPort", NETWORK),
    ("storePathRootDir", STORAGE),
    ("storePathCommitLog", STORAGE),
    ("storePathConsumeQueue", STORAGE),
    ("storePathIndex", STORAGE),
    ("storePathDLedgerCommitLog", STORAGE),
    ("storePathEpochFile", STORAGE),
    ("storeCheckpoint", STORAGE),
    ("abortFile", STORAGE),
    ("readOnlyCommitLogStorePaths", STORAGE),
    ("rocketmqHome", STORAGE),
    ("brokerConfigPath", STORAGE),
];

const NAMESRV_STORAGE: &str = "spec.nameServer.storage and the operator, which mounts the volume";

/// Keys of namesrv.conf that are not the user's here, and whose they are.
const NAME_SERVER_OWNED: &[(&str, &str)] = &[
    ("listenPort", NETWORK),
    ("bindAddress", NETWORK),
    ("httpPort", NETWORK),
    ("kvConfigPath", NAMESRV_STORAGE),
    ("configStorePath", NAMESRV_STORAGE),
    ("rocketmqHome", NAMESRV_STORAGE),
    ("enableControllerInNamesrv", MODE),
];

/// Checks a RocketCluster and fills in what was not written. All that is wrong is told at once.
pub fn validate(cluster: &RocketCluster, defaults: &Defaults) -> Result<ValidatedCluster, Invalid> {
    let mut problems = Problems::default();
    let spec = &cluster.spec;
    let mode = spec.mode;

    let name = cluster.metadata.name.clone().unwrap_or_default();
    check_name(&name, &mut problems);

    let cluster_name = spec.cluster_name.clone().unwrap_or_else(|| name.clone());
    check_rocketmq_name("spec.clusterName", &cluster_name, &mut problems);

    let name_servers = spec
        .name_server
        .replicas
        .unwrap_or_else(|| mode.default_name_servers());
    problems.range("spec.nameServer.replicas", name_servers, MAX_NAME_SERVERS);
    let groups = spec.broker.groups.unwrap_or_else(|| mode.default_groups());
    problems.range("spec.broker.groups", groups, MAX_GROUPS);
    if mode == Mode::SingleMaster && groups != 1 {
        problems.add(
            "spec.broker.groups",
            "single-master has one broker group; use mode multi-master for more",
        );
    }
    let replicas = spec
        .broker
        .replicas_per_group
        .unwrap_or_else(|| mode.default_replicas_per_group());
    problems.range(
        "spec.broker.replicasPerGroup",
        replicas,
        MAX_REPLICAS_PER_GROUP,
    );
    let replicas_fit = match mode {
        Mode::SingleMaster | Mode::MultiMaster => replicas == 1,
        Mode::MasterSlaveAsync | Mode::MasterSlaveSync => replicas >= 2,
        Mode::DLedger => replicas >= 3 && replicas % 2 == 1,
    };
    if !replicas_fit {
        let allowed = match mode {
            Mode::SingleMaster | Mode::MultiMaster => "one broker in a group",
            Mode::MasterSlaveAsync | Mode::MasterSlaveSync => "two or more brokers in a group",
            Mode::DLedger => "an odd number of brokers in a group, 3 or more",
        };
        problems.add(
            "spec.broker.replicasPerGroup",
            format!("mode {mode} has {allowed}, not {replicas}"),
        );
    }
    check_rocketmq_name(
        "spec.broker.namePrefix",
        &spec.broker.name_prefix,
        &mut problems,
    );

    let name_server_config = check_config(
        "spec.nameServer.config",
        &spec.name_server.config,
        NAME_SERVER_OWNED,
        &mut problems,
    );
    let mut broker_config = check_config(
        "spec.broker.config",
        &spec.broker.config,
        BROKER_OWNED,
        &mut problems,
    );
    for (key, value) in &broker_config {
        if let Some(problem) = keys::problem(key, value) {
            problems.add(format!("spec.broker.config.{key}"), problem);
        }
    }
    check_copies(mode, replicas, &broker_config, &mut problems);
    // Rendered by `build` whether it was written or not.
    let shutdown_drain_ms = match broker_config.remove("shutdownDrainMs") {
        None => DEFAULT_SHUTDOWN_DRAIN_MS,
        Some(text) => text.trim().parse().ok().filter(|ms| *ms <= MAX_SHUTDOWN_DRAIN_MS).unwrap_or_else(|| {
            problems.add(
                "spec.broker.config.shutdownDrainMs",
                format!("\"{text}\" is not a number of milliseconds from 0 to {MAX_SHUTDOWN_DRAIN_MS}"),
            );
            DEFAULT_SHUTDOWN_DRAIN_MS
        }),
    };
    check_storage(
        "spec.nameServer.storage",
        &spec.name_server.storage,
        &mut problems,
    );
    check_storage("spec.broker.storage", &spec.broker.storage, &mut problems);
    check_pod("spec.nameServer.pod", &spec.name_server.pod, &mut problems);
    check_pod("spec.broker.pod", &spec.broker.pod, &mut problems);

    problems.into_result()?;

    let image = spec.image.clone().unwrap_or_default();
    let repository = image
        .repository
        .unwrap_or_else(|| defaults.repository.clone());
    let repository = repository.trim_end_matches('/');
    let tag = image.tag.unwrap_or_else(|| defaults.tag.clone());
    Ok(ValidatedCluster {
        name,
        namespace: cluster
            .metadata
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned()),
        uid: cluster.metadata.uid.clone(),
        generation: cluster.metadata.generation,
        mode,
        cluster_name,
        name_server: ValidatedNameServer {
            replicas: name_servers,
            image: format!("{repository}/mqnamesrv:{tag}"),
            config: name_server_config,
            storage: spec.name_server.storage.clone(),
            resources: spec.name_server.resources.clone(),
            pod: spec.name_server.pod.clone(),
        },
        broker: ValidatedBroker {
            groups,
            replicas_per_group: replicas,
            staged: BTreeMap::new(),
            name_prefix: spec.broker.name_prefix.clone(),
            image: format!("{repository}/mqbroker:{tag}"),
            config: broker_config,
            shutdown_drain_ms,
            storage: spec.broker.storage.clone(),
            resources: spec.broker.resources.clone(),
            pod: spec.broker.pod.clone(),
        },
        pull_policy: image.pull_policy.unwrap_or(defaults.pull_policy),
        paused: spec.paused,
    })
}

/// Keys that speak of the other brokers of a group must fit its size.
fn check_copies(
    mode: Mode,
    replicas: i32,
    config: &BTreeMap<String, String>,
    problems: &mut Problems,
) {
    if mode == Mode::MasterSlaveSync {
        for key in ["inSyncReplicas", "minInSyncReplicas"] {
            let asked = config.get(key).and_then(|text| text.trim().parse().ok());
            if asked.is_some_and(|copies: i64| copies > i64::from(replicas)) {
                problems.add(
                    format!("spec.broker.config.{key}"),
                    format!("asks for more copies than the {replicas} brokers of a group can hold: no send would ever be acknowledged"),
                );
            }
        }
    }
    if let Some(id) = config.get(PREFERRED_LEADER).filter(|id| !id.is_empty()) {
        if mode != Mode::DLedger {
            problems.add(
                format!("spec.broker.config.{PREFERRED_LEADER}"),
                format!("has a meaning in mode dledger only, not in {mode}"),
            );
        } else if !(0..replicas).any(|ordinal| names::member_id(ordinal) == *id) {
            problems.add(
                format!("spec.broker.config.{PREFERRED_LEADER}"),
                format!(
                    "there is no member \"{id}\": the members of a group are n0 to {}",
                    names::member_id(replicas - 1)
                ),
            );
        }
    }
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, path: impl Into<String>, sentence: impl Into<String>) {
        self.0.push(Problem {
            path: path.into(),
            sentence: sentence.into(),
        });
    }

    fn range(&mut self, path: &str, value: i32, max: i32) {
        if !(1..=max).contains(&value) {
            self.add(path, format!("must be from 1 to {max}, not {value}"));
        }
    }

    fn into_result(self) -> Result<(), Invalid> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Invalid(self.0))
        }
    }
}

fn check_name(name: &str, problems: &mut Problems) {
    if name.is_empty() {
        problems.add("metadata.name", "is missing");
        return;
    }
    if name.len() > MAX_NAME_LENGTH {
        problems.add(
            "metadata.name",
            format!("may have at most {MAX_NAME_LENGTH} letters, so that the names of all objects made from it fit; this one has {}", name.len()),
        );
    }
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
    let rest = name
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if !starts || !rest || name.ends_with('-') {
        problems.add("metadata.name", "becomes the name of Services: lower-case letters, digits and '-', beginning with a letter");
    }
}

/// Upstream's rule for topics, which cluster and broker names are too.
fn check_rocketmq_name(path: &str, name: &str, problems: &mut Problems) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '%' | '|' | '_' | '-');
    if name.is_empty() || name.len() > 127 || !name.chars().all(allowed) {
        problems.add(
            path,
            "takes 1 to 127 letters, digits and % | _ -, because it is the name of a topic too",
        );
    }
}

fn check_config(
    path: &str,
    config: &Properties,
    owned: &[(&str, &str)],
    problems: &mut Problems,
) -> BTreeMap<String, String> {
    let mut checked = BTreeMap::new();
    for (key, value) in &config.0 {
        let here = format!("{path}.{key}");
        let plain = key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if key.is_empty() || key.len() > MAX_KEY_BYTES || !plain {
            problems.add(here, "is not the name of a property");
            continue;
        }
        // Case is ignored here, so that a near miss is explained as well.
        if let Some((name, owner)) = owned
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
        {
            problems.add(
                here,
                format!("{name} belongs to {owner}; take it out of config"),
            );
            continue;
        }
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Bool(truth) => truth.to_string(),
            Value::Number(number) => number.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                problems.add(here, "takes text, a number or a truth value");
                continue;
            }
        };
        if text.len() > MAX_VALUE_BYTES || text.contains('\0') {
            problems.add(
                here,
                format!("takes at most {MAX_VALUE_BYTES} bytes and no zero byte"),
            );
            continue;
        }
        checked.insert(key.clone(), text);
    }
    checked
}

/// Binary and decimal suffixes of a quantity, with their exponents.
const UNITS: [(&str, u32, u32); 12] = [
    ("Ki", 2, 10),
    ("Mi", 2, 20),
    ("Gi", 2, 30),
    ("Ti", 2, 40),
    ("Pi", 2, 50),
    ("Ei", 2, 60),
    ("k", 10, 3),
    ("M", 10, 6),
    ("G", 10, 9),
    ("T", 10, 12),
    ("P", 10, 15),
    ("E", 10, 18),
];

/// The bytes of a size such as `20Gi` or `1.5G`, rounded up; `None` when it is not one.
pub fn size_bytes(text: &str) -> Option<u128> {
    let (number, factor) = UNITS
        .iter()
        .find_map(|(suffix, base, exponent)| {
            text.strip_suffix(suffix)
                .map(|n| (n, u128::from(*base).pow(*exponent)))
        })
        .unwrap_or((text, 1));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |t: &str, max: usize| {
        !t.is_empty() && t.len() <= max && t.bytes().all(|b| b.is_ascii_digit())
    };
    if !digits(whole, 15) || !digits(fraction, 3) {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let thousandths = whole
        .parse::<u128>()
        .ok()?
        .checked_mul(scale)?
        .checked_add(fraction.parse().ok()?)?;
    Some(thousandths.checked_mul(factor)?.div_ceil(scale))
}

fn check_storage(path: &str, storage: &StorageSpec, problems: &mut Problems) {
    match size_bytes(&storage.size) {
        None => problems.add(
            format!("{path}.size"),
            format!("\"{}\" is not a size such as 20Gi", storage.size),
        ),
        Some(0) => problems.add(format!("{path}.size"), "a volume needs a size above 0"),
        Some(_) => {}
    }
}

fn check_pod(path: &str, pod: &PodSpec, problems: &mut Problems) {
    if pod.affinity.is_some() && pod.anti_affinity != AntiAffinity::default() {
        problems.add(
            path,
            "affinity takes the place of antiAffinity: give one of them",
        );
    }
    let reserved = |key: &str| {
        key.starts_with("app.kubernetes.io/")
            || key
                .split('/')
                .next()
                .is_some_and(|p| p.ends_with("rocketcluster.io"))
    };
    for key in pod.labels.keys().filter(|key| reserved(key)) {
        problems.add(
            format!("{path}.labels"),
            format!("{key} belongs to the operator, whose Services select pods by it"),
        );
    }
    for key in pod.annotations.keys().filter(|key| {
        key.split('/')
            .next()
            .is_some_and(|p| p.ends_with("rocketcluster.io"))
    }) {
        problems.add(
            format!("{path}.annotations"),
            format!("{key} belongs to the operator"),
        );
    }
    for env in &pod.env {
        if env.name.starts_with("ROCKETMQ_") || env.name == "POD_NAME" || env.name == "NAMESRV_ADDR"
        {
            problems.add(format!("{path}.env"), format!("{} belongs to the operator: it would override the rendered configuration; use config", env.name));
        }
    }
    for volume in &pod.volumes {
        if matches!(volume.name.as_str(), "data" | "config") {
            problems.add(
                format!("{path}.volumes"),
                "the volume names data and config belong to the operator",
            );
        }
        let sources = [
            volume.config_map.is_some(),
            volume.secret.is_some(),
            volume.empty_dir.is_some(),
            volume.persistent_volume_claim.is_some(),
        ];
        if sources.iter().filter(|s| **s).count() != 1 {
            problems.add(
                format!("{path}.volumes"),
                format!("{} needs exactly one source", volume.name),
            );
        }
    }
    for mount in &pod.volume_mounts {
        if mount.mount_path.starts_with("/etc/rocketmq") || mount.mount_path.starts_with("/data") {
            problems.add(
                format!("{path}.volumeMounts"),
                "the folders /etc/rocketmq and /data belong to the operator",
            );
        }
        if !pod.volumes.iter().any(|volume| volume.name == mount.name) {
            problems.add(
                format!("{path}.volumeMounts"),
                format!("there is no volume {}", mount.name),
            );
        }
    }
}

#[cfg(test)]
mod tests;
