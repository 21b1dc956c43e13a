//! What our own brokers of one group ask each other on the main port, with codes that upstream does not use.
//!
//! A stock broker answers REQUEST_CODE_NOT_SUPPORTED, which is how it is told apart.

use std::sync::Arc;

use remoting::RemotingClient;
use remoting::protocol::{RemotingCommand, request_code, response_code};
use serde::{Deserialize, Serialize};
use store::Store;

use crate::broker::Broker;
use crate::role::{MasterAddress, Role};

/// "Who are you, and what does your log hold?"
pub(crate) const HA_PEER_INFO: i32 = 21_001;
/// "What are the checksums of these ranges of your log?"
pub(crate) const HA_CHECKSUMS: i32 = 21_002;
/// "I am the master of your group, and here": to slaves that cannot know it yet, as it is not registered.
pub(crate) const HA_FOLLOW: i32 = 21_003;

/// Feature bit: begins the stream exactly where it is asked to, and compares histories.
const FEATURE_EXACT_START: u64 = 1;
/// Ranges of one request for checksums, and bytes of one range.
pub(super) const MAX_RANGES: usize = 64;
pub(super) const MAX_RANGE_BYTES: u64 = 8 << 20;
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);

/// What a broker of ours says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PeerInfo {
    pub(super) features: u64,
    pub(super) cluster_name: String,
    pub(super) broker_name: String,
    pub(super) broker_id: i64,
    pub(super) role: String,
    /// Where its main port is.
    pub(super) address: String,
    /// Where its replication port is.
    pub(super) ha_address: String,
    pub(super) segment_size: u64,
    /// The log it holds: whole records up to `confirmed`, bytes up to `written`.
    pub(super) min: u64,
    pub(super) written: u64,
    pub(super) confirmed: u64,
}

impl PeerInfo {
    fn of(broker: &Broker) -> Self {
        let role = broker.role.now();
        let store = &broker.store;
        // The end before the begin: what is deleted meanwhile must not make the log look longer than it is.
        let (confirmed, written) = (store.confirm_offset(), store.written());
        Self {
            features: FEATURE_EXACT_START,
            cluster_name: broker.settings.raw.broker_cluster_name.clone(),
            broker_name: broker.name().to_owned(),
            broker_id: role.broker_id,
            role: match role.role {
                Role::Master => "MASTER",
                Role::Slave => "SLAVE",
                Role::Undecided if broker.ha.is_settled() => "MASTER",
                Role::Undecided => "UNDECIDED",
            }
            .to_owned(),
            address: broker.address().to_owned(),
            ha_address: broker.ha_address().to_owned(),
            segment_size: store.segment_size(),
            min: store.min_phy_offset(),
            written,
            confirmed,
        }
    }

    pub(super) fn is_undecided(&self) -> bool {
        self.role == "UNDECIDED"
    }

    pub(super) fn is_slave(&self) -> bool {
        self.role == "SLAVE"
    }

    pub(super) fn is_empty(&self) -> bool {
        self.written == self.min
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Ranges {
    ranges: Vec<(u64, u64)>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Checksums {
    /// `null` where the log does not hold the range.
    checksums: Vec<Option<u32>>,
}

/// Serves HA_PEER_INFO.
pub(crate) fn get_peer_info(broker: &Arc<Broker>, _request: &RemotingCommand) -> RemotingCommand {
    RemotingCommand::response(response_code::SUCCESS).json_body(&PeerInfo::of(broker))
}

/// Serves HA_FOLLOW. One that follows somebody already stays with him.
pub(crate) fn follow(broker: &Arc<Broker>, request: &RemotingCommand) -> RemotingCommand {
    let master: PeerInfo = match serde_json::from_slice(&request.body) {
        Ok(master) => master,
        Err(error) => {
            return RemotingCommand::error(response_code::SYSTEM_ERROR, error.to_string());
        }
    };
    let own = &broker.settings.raw;
    let same_group =
        master.broker_name == own.broker_name && master.cluster_name == own.broker_cluster_name;
    if same_group && !broker.ha.link.now().connected {
        broker.role.update(|now| {
            if now.role == Role::Slave {
                now.master = MasterAddress {
                    address: Some(master.address),
                    ha_address: Some(master.ha_address),
                };
            }
        });
    }
    RemotingCommand::response(response_code::SUCCESS)
}

/// Tells a slave that this broker is its master.
pub(super) async fn tell_to_follow(client: &RemotingClient, broker: &Broker, slave: &str) {
    let request = RemotingCommand::request(HA_FOLLOW).json_body(&PeerInfo::of(broker));
    // Whoever does not hear it finds the registration.
    let _ = client.invoke(slave, request, TIMEOUT).await;
}

/// Serves HA_CHECKSUMS. Reads the log, so it may block.
pub(crate) fn get_checksums(broker: &Arc<Broker>, request: &RemotingCommand) -> RemotingCommand {
    let asked: Ranges = match serde_json::from_slice(&request.body) {
        Ok(asked) => asked,
        Err(error) => {
            return RemotingCommand::error(response_code::SYSTEM_ERROR, error.to_string());
        }
    };
    if asked.ranges.len() > MAX_RANGES {
        let remark = format!("more than {MAX_RANGES} ranges");
        return RemotingCommand::error(response_code::SYSTEM_ERROR, remark);
    }
    let checksums = asked
        .ranges
        .iter()
        .map(|(from, to)| checksum(&broker.store, *from, *to))
        .collect();
    RemotingCommand::response(response_code::SUCCESS).json_body(&Checksums { checksums })
}

/// CRC-32 of `from..to` of the log; `None` when it does not hold all of it, or the range is too long. Reads the log.
pub(super) fn checksum(store: &Store, mut from: u64, to: u64) -> Option<u32> {
    const PIECE: u64 = 256 << 10;
    if from > to || to - from > MAX_RANGE_BYTES || to > store.written() {
        return None;
    }
    let (mut hasher, mut bytes) = (crc32fast::Hasher::new(), Vec::new());
    while from < to {
        bytes.clear();
        let max = (to - from).min(PIECE) as usize;
        let n = store.read_range(from, max, &mut bytes).ok()?;
        if n == 0 {
            return None;
        }
        hasher.update(&bytes);
        from += n as u64;
    }
    Some(hasher.finalize())
}

/// Asks a broker who it is; `None` when it is not one of ours.
pub(super) async fn ask_info(
    client: &RemotingClient,
    address: &str,
) -> Result<Option<PeerInfo>, String> {
    let request = RemotingCommand::request(HA_PEER_INFO);
    let answer = client
        .invoke(address, request, TIMEOUT)
        .await
        .map_err(|e| e.to_string())?;
    if answer.code != response_code::SUCCESS {
        return Ok(None);
    }
    let info: PeerInfo = serde_json::from_slice(&answer.body)
        .map_err(|e| format!("answer of {address} to a question of ours: {e}"))?;
    Ok((info.features & FEATURE_EXACT_START != 0).then_some(info))
}

/// Asks one of ours for checksums of its log.
pub(super) async fn ask_checksums(
    client: &RemotingClient,
    address: &str,
    ranges: Vec<(u64, u64)>,
) -> Result<Vec<Option<u32>>, String> {
    let count = ranges.len();
    let request = RemotingCommand::request(HA_CHECKSUMS).json_body(&Ranges { ranges });
    let answer = client
        .invoke(address, request, TIMEOUT)
        .await
        .map_err(|e| e.to_string())?;
    let answer: Checksums = match answer.code {
        response_code::SUCCESS => {
            serde_json::from_slice(&answer.body).map_err(|e| e.to_string())?
        }
        code => {
            return Err(format!(
                "{address} answered {code} to a request for checksums"
            ));
        }
    };
    if answer.checksums.len() != count {
        return Err(format!(
            "{address} answered for {} of {count} ranges",
            answer.checksums.len()
        ));
    }
    Ok(answer.checksums)
}

/// What a stock master tells anybody: the size of its log files (26), if it does.
pub(super) async fn ask_stock_segment_size(client: &RemotingClient, address: &str) -> Option<u64> {
    let request = RemotingCommand::request(request_code::GET_BROKER_CONFIG);
    let answer = client.invoke(address, request, TIMEOUT).await.ok()?;
    let text = std::str::from_utf8(&answer.body).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("mappedFileSizeCommitLog="));
    line?.trim().parse().ok()
}

/// Begin and end of a stock master's log (28).
pub(super) async fn ask_stock_range(client: &RemotingClient, address: &str) -> Option<(u64, u64)> {
    let request = RemotingCommand::request(request_code::GET_BROKER_RUNTIME_INFO);
    let answer = client.invoke(address, request, TIMEOUT).await.ok()?;
    let table: remoting::protocol::body::KVTable =
        remoting::protocol::json::from_slice(&answer.body).ok()?;
    let figure = |key: &str| table.table.get(key)?.parse::<i64>().ok();
    // An empty log begins at -1.
    let min = figure("commitLogMinOffset")?.max(0);
    let max = figure("commitLogMaxOffset")?.max(0);
    Some((min.unsigned_abs(), max.unsigned_abs()))
}
