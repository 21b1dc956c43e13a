//! The property files.

use std::fmt::Write as _;

use super::{
    BROKER_HA_PORT, BROKER_HTTP_PORT, BROKER_PORT, DATA_FOLDER, NAME_SERVER_HTTP_PORT,
    NAME_SERVER_PORT, initial_role, names,
};
use crate::api::{Mode, Role};
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

/// `broker.conf` of one broker.
pub fn broker_conf(cluster: &ValidatedCluster, group: i32, ordinal: i32) -> String {
    let role = match (initial_role(ordinal), cluster.mode) {
        (Role::Slave, _) => "SLAVE",
        (Role::Master, Mode::MasterSlaveSync) => "SYNC_MASTER",
        (Role::Master, _) => "ASYNC_MASTER",
    };
    let name_servers =
        names::service_host(&names::name_server_nodes(&cluster.name), &cluster.namespace);
    let own_service = names::service_host(
        &names::broker_pod(&cluster.name, group, ordinal),
        &cluster.namespace,
    );
    let mut pairs = vec![
        ("brokerClusterName".to_owned(), cluster.cluster_name.clone()),
        (
            "brokerName".to_owned(),
            names::broker_name(&cluster.broker.name_prefix, group),
        ),
        ("brokerId".to_owned(), ordinal.to_string()),
        ("brokerRole".to_owned(), role.to_owned()),
        (
            "namesrvAddr".to_owned(),
            format!("{name_servers}:{NAME_SERVER_PORT}"),
        ),
        ("advertisedHost".to_owned(), own_service),
        ("listenPort".to_owned(), BROKER_PORT.to_string()),
        ("haListenPort".to_owned(), BROKER_HA_PORT.to_string()),
        ("httpPort".to_owned(), BROKER_HTTP_PORT.to_string()),
        (
            "storePathRootDir".to_owned(),
            format!("{DATA_FOLDER}/store"),
        ),
        (
            "shutdownDrainMs".to_owned(),
            cluster.broker.shutdown_drain_ms.to_string(),
        ),
    ];
    pairs.extend(
        cluster
            .broker
            .config
            .iter()
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    write_properties(&pairs)
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

/// FNV-1a of 64 bits, as 16 hexadecimal digits: what brokers and name servers report of the file they started with (`remoting::properties`).
pub fn config_hash(file: &[u8]) -> String {
    let hash = file.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}
