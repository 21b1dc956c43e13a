//! The property files.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{
    BROKER_HA_PORT, BROKER_HTTP_PORT, BROKER_PORT, BROKER_RAFT_PORT, DATA_FOLDER,
    NAME_SERVER_HTTP_PORT, NAME_SERVER_PORT, configured_role, names,
};
use crate::api::{Mode, Role};
use crate::keys;
use crate::validate::ValidatedCluster;

/// `namesrv.conf` of every name server of a cluster.
pub fn name_server_conf(cluster: &ValidatedCluster) -> String {
    let mut pairs = vec![
        ("listenPort".to_owned(), NAME_SERVER_PORT.to_string()),
        ("httpPort".to_owned(), NAME_SERVER_HTTP_PORT.to_string()),
        (
            "kvConfigPath".to_owned(),
            format!("{DATA_FOLDER}/namesrv/kvConfig.json"),
        ),
    ];
    // A deleted topic must not come back from a broker that was away meanwhile. May be overridden.
    if !cluster
        .name_server
        .config
        .contains_key(DELETE_TOPIC_WITH_REGISTRATION)
    {
        pairs.push((DELETE_TOPIC_WITH_REGISTRATION.to_owned(), "true".to_owned()));
    }
    pairs.extend(
        cluster
            .name_server
            .config
            .iter()
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    write_properties(&pairs)
}

const DELETE_TOPIC_WITH_REGISTRATION: &str = "deleteTopicWithBrokerRegistration";

/// A line of just this parts a file: keys below it can be changed while the broker runs, so they decide no restart. As in `remoting::properties`.
pub const DYNAMIC_MARK: &str = "# dynamic";

/// `broker.conf` of one broker.
pub fn broker_conf(cluster: &ValidatedCluster, group: i32, ordinal: i32) -> String {
    let name_servers =
        names::service_host(&names::name_server_nodes(&cluster.name), &cluster.namespace);
    let own_service = names::service_host(
        &names::broker_pod(&cluster.name, group, ordinal),
        &cluster.namespace,
    );
    let broker_name = names::broker_name(&cluster.broker.name_prefix, group);
    let mut pairs = vec![
        ("brokerClusterName".to_owned(), cluster.cluster_name.clone()),
        ("brokerName".to_owned(), broker_name.clone()),
    ];
    match configured_role(cluster.mode, ordinal) {
        Some(role) => {
            let in_file = match (role, cluster.mode) {
                (Role::Slave, _) => "SLAVE",
                (Role::Master, Mode::MasterSlaveSync) => "SYNC_MASTER",
                (Role::Master, _) => "ASYNC_MASTER",
            };
            pairs.push(("brokerId".to_owned(), ordinal.to_string()));
            pairs.push(("brokerRole".to_owned(), in_file.to_owned()));
        }
        None => {
            pairs.push(("enableDLegerCommitLog".to_owned(), "true".to_owned()));
            pairs.push(("dLegerGroup".to_owned(), broker_name));
            pairs.push(("dLegerSelfId".to_owned(), names::member_id(ordinal)));
        }
    }
    pairs.extend([
        (
            "namesrvAddr".to_owned(),
            format!("{name_servers}:{NAME_SERVER_PORT}"),
        ),
        ("advertisedHost".to_owned(), own_service),
        ("listenPort".to_owned(), BROKER_PORT.to_string()),
        ("httpPort".to_owned(), BROKER_HTTP_PORT.to_string()),
        (
            "storePathRootDir".to_owned(),
            format!("{DATA_FOLDER}/store"),
        ),
        (
            "shutdownDrainMs".to_owned(),
            cluster.broker.shutdown_drain_ms.to_string(),
        ),
    ]);
    if cluster.mode != Mode::DLedger {
        pairs.push(("haListenPort".to_owned(), BROKER_HA_PORT.to_string()));
    }
    if configured_role(cluster.mode, ordinal) == Some(Role::Slave) {
        let master = names::broker_pod_host(&cluster.name, &cluster.namespace, group, 0);
        pairs.push((
            "haMasterAddress".to_owned(),
            format!("{master}:{BROKER_HA_PORT}"),
        ));
    }
    let config = cluster.broker.config.iter();
    pairs.extend(
        config
            .filter(|(key, _)| !keys::is_dynamic(key))
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    let mut below: Vec<(String, String)> = broker_dynamic(cluster).into_iter().collect();
    if cluster.mode == Mode::DLedger {
        below.push(("dLegerPeers".to_owned(), peers(cluster, group)));
    }
    let mut text = write_properties(&pairs);
    if !below.is_empty() {
        text.push_str(DYNAMIC_MARK);
        text.push('\n');
        text.push_str(&write_properties(&below));
    }
    text
}

/// The keys that the brokers of a cluster take while they run, with what they should be.
pub fn broker_dynamic(cluster: &ValidatedCluster) -> BTreeMap<String, String> {
    let mut dynamic: BTreeMap<String, String> = cluster
        .broker
        .config
        .iter()
        .filter(|(key, _)| keys::is_dynamic(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    // Where there are copies, consumers may read them: a group whose master is behind or away serves on. May be overridden.
    if cluster.broker.replicas_per_group > 1 {
        dynamic
            .entry(SLAVE_READ.to_owned())
            .or_insert_with(|| "true".to_owned());
    }
    dynamic
}

const SLAVE_READ: &str = "slaveReadEnable";

/// Who a group begins with. Later members come and go by requests to the leader, so a change of this list alone restarts nobody.
fn peers(cluster: &ValidatedCluster, group: i32) -> String {
    let size = cluster.broker.replicas_per_group;
    let peers: Vec<String> = (0..size.max(cluster.broker.replicas(group)))
        .map(|ordinal| {
            format!(
                "{}-{}",
                names::member_id(ordinal),
                raft_address(cluster, group, ordinal)
            )
        })
        .collect();
    peers.join(";")
}

/// `host:port` by which the other members of a group reach one.
pub fn raft_address(cluster: &ValidatedCluster, group: i32, ordinal: i32) -> String {
    let host = names::broker_pod_host(&cluster.name, &cluster.namespace, group, ordinal);
    format!("{host}:{BROKER_RAFT_PORT}")
}

/// Java properties text: `key=value` lines that Java's reader, and ours, read back as the same pairs whatever is in them.
pub fn write_properties(pairs: &[(String, String)]) -> String {
    let mut out = String::new();
    for (key, value) in pairs {
        escape_into(&mut out, key, true);
        out.push('=');
        escape_into(&mut out, value, false);
        out.push('\n');
    }
    out
}

fn escape_into(out: &mut String, text: &str, key: bool) {
    let last = text.chars().count().saturating_sub(1);
    for (at, c) in text.chars().enumerate() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0c' => out.push_str("\\f"),
            // A blank at the end as well: editors and some readers drop it.
            ' ' if key || at == 0 || at == last => out.push_str("\\u0020"),
            '=' | ':' | '#' | '!' if key => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
}

/// FNV-1a of 64 bits up to the line [`DYNAMIC_MARK`], as 16 hexadecimal digits: what brokers and name servers report of the file they started with
/// (`remoting::properties`).
pub fn config_hash(file: &[u8]) -> String {
    let mut counts = 0;
    for line in file.split_inclusive(|&byte| byte == b'\n') {
        if line.trim_ascii_end() == DYNAMIC_MARK.as_bytes() {
            break;
        }
        counts += line.len();
    }
    let hash = file[..counts]
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    format!("{hash:016x}")
}
