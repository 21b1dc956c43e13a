//! A master that comes back asks its slaves what they have before it serves: the end of the log that a power cut took from
//! it is taken back from them. Until then it is no master yet, and not registered.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use remoting::admin::Admin;
use store::{LastStop, Store};
use tokio::time::{Instant, sleep};

use super::history::{self, Comparison, Other, blocking};
use super::peer::{self, PeerInfo};
use super::protocol::Start;
use super::{Node, SyncRule, slave};
use crate::config::BrokerConfig;
use crate::role::{Role, RoleNow};

/// What the mark of a doubt says of a volume that was empty.
const VOLUME_LOST: &[u8] = b"volume lost";
/// Pause between two rounds of questions.
const PAUSE: Duration = Duration::from_millis(300);
/// A master that lost nothing, or promised no copies, waits no longer than this for anybody.
const SHORT_PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two looks whether a slave follows.
const FOLLOW_PAUSE: Duration = Duration::from_millis(10);
/// Asking a name server for the group's members.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether a master asks at all. One that stopped in an orderly way has all it acknowledged; a synchronous one asks all the same, as
/// its volume may have been put back to an earlier state.
pub(super) fn is_needed(config: &BrokerConfig, store: &Store, role: &RoleNow) -> bool {
    role.role == Role::Master
        && !config.enable_dleger_commit_log
        && !config.namesrv_addr.is_empty()
        && (role.sync || may_have_lost(config, store))
}

/// Whether what was acknowledged may be missing here. An empty store may be a volume that was lost.
fn may_have_lost(config: &BrokerConfig, store: &Store) -> bool {
    store.last_stop() == LastStop::PowerLost || is_empty(store) || mark(config).exists()
}

/// A file in the store's folder from the first doubt until the master serves. Whoever is stopped in between, in an orderly
/// way or not, leaves a log that looks whole to the next start.
fn mark(config: &BrokerConfig) -> PathBuf {
    Path::new(&config.store_path_root_dir).join("unsettled")
}

/// Whether the volume was empty when the doubt began: the tables are not there either, whatever came back of the log since.
fn is_volume_lost(config: &BrokerConfig, store: &Store) -> bool {
    is_empty(store) || fs::read(mark(config)).is_ok_and(|text| text == VOLUME_LOST)
}

/// Notes the doubt, if there is one, before anything can end it.
pub(super) fn note(config: &BrokerConfig, store: &Store) {
    if !may_have_lost(config, store) {
        return;
    }
    let path = mark(config);
    let lost_all = is_volume_lost(config, store);
    let noted = || -> io::Result<()> {
        let mut file = File::create(&path)?;
        file.write_all(if lost_all { VOLUME_LOST } else { b"" })?;
        file.sync_all()?;
        path.parent()
            .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    if let Err(error) = noted() {
        tracing::warn!(path = %path.display(), %error, "a restart will not know that the end of the log may be missing");
    }
}

fn is_empty(store: &Store) -> bool {
    store.written() == store.min_phy_offset()
}

/// What a round of questions found.
#[derive(Debug, Default)]
struct Round {
    /// A name server told who the slaves are.
    told: bool,
    /// Slaves that are registered.
    slaves: usize,
    /// Slaves that answered.
    answered: usize,
    /// Those of them that are ours, by main address.
    native: Vec<String>,
    /// The one of ours whose log ends last: its main address and what it said.
    furthest: Option<(String, PeerInfo)>,
}

/// Whether the master may serve after this round. `lost`: what it acknowledged may be missing; `empty`: it holds nothing.
fn is_settled(round: &Round, lost: bool, empty: bool, sync: bool) -> bool {
    if round.answered > 0 {
        return true;
    }
    match (round.told, round.slaves) {
        // Nobody knows of a slave: a new group, or one whose slaves lost power too and are not up again.
        (true, 0) => empty || !(sync && lost),
        // A slave that does not answer may have what is missing here.
        (true, _) => !lost,
        (false, _) => false,
    }
}

/// Asks until the master may serve, then makes it one.
pub(super) async fn run(node: &Node) {
    let broker = &node.broker;
    let config = &broker.settings.raw;
    let role = RoleNow::configured(config);
    if broker.role.now().role != Role::Undecided || !is_needed(config, &broker.store, &role) {
        return;
    }
    let (lost, empty) = (
        may_have_lost(config, &broker.store),
        is_empty(&broker.store),
    );
    let volume_lost = is_volume_lost(config, &broker.store);
    // A slave gave its copies of the tables.
    let mut tables = false;
    let patience = match role.sync && lost {
        true => {
            Duration::from_millis(u64::try_from(config.master_catch_up_timeout_ms).unwrap_or(0))
        }
        false => SHORT_PATIENCE,
    };
    let mut begun = Instant::now();
    let mut said = false;
    let slaves = loop {
        let round = ask(node).await;
        let mut problem = match (round.told, round.slaves) {
            (false, _) => "no name server told who the slaves are".to_owned(),
            (true, 0) => "no slave is registered".to_owned(),
            (true, n) => format!("{} of {n} slaves answer", round.answered),
        };
        let mut settled = is_settled(&round, lost, empty, role.sync);
        // One that does not answer yet may have more than those that do.
        if role.sync && lost && round.answered < round.slaves && begun.elapsed() < patience {
            settled = false;
        }
        if let Some((address, info)) = &round.furthest
            && info.confirmed > broker.store.written()
        {
            let had = broker.store.written();
            match take_back(node, address, info).await {
                // Another one may have still more.
                Ok(bytes) if bytes > 0 => continue,
                Ok(_) => {}
                Err(reason) => {
                    settled = false;
                    // It came a part of the way: serving now would cut the slave back to that part.
                    if broker.store.written() > had {
                        begun = Instant::now();
                    }
                    problem = format!("{address} is ahead, but: {reason}");
                }
            }
        }
        // Whoever serves without the tables has them replaced on its slaves, too.
        if settled
            && lost
            && !tables
            && let Some((address, _)) = &round.furthest
        {
            match crate::slave::take_back(broker, &node.client, address, volume_lost).await {
                Ok(()) => tables = true,
                Err(reason) => {
                    settled = false;
                    problem = format!("the tables of {address} cannot be copied: {reason}");
                }
            }
        }
        let patient = begun.elapsed() < patience;
        if settled || (!patient && (!role.sync || !lost || config.master_catch_up_go_on)) {
            if !settled {
                tracing::warn!(problem, "serving without having asked a slave");
            }
            break round.native;
        }
        let mut reason = format!("waiting for a slave before serving as master: {problem}");
        if !patient {
            reason += "; what this synchronous master acknowledged last may be on its slaves only: \
                not registered until one answers, or masterCatchUpGoOn=true";
            if !std::mem::replace(&mut said, true) {
                tracing::error!("{reason}");
            }
        }
        *broker.ha.unsettled.lock() = Some(reason);
        sleep(PAUSE).await;
    };
    if role.sync && !slaves.is_empty() {
        // They are up and know this address: once they follow, no send has to be answered SLAVE_NOT_AVAILABLE.
        broker.ha.settled.store(true, Ordering::Release);
        *broker.ha.unsettled.lock() = Some("waiting for a slave to follow".to_owned());
        for slave in &slaves {
            peer::tell_to_follow(&node.client, broker, slave).await;
        }
        let max_gap = SyncRule::new(&broker.config()).max_gap;
        let begun = Instant::now();
        while begun.elapsed() < SHORT_PATIENCE
            && !broker
                .ha
                .replicas
                .available(broker.store.written(), max_gap)
        {
            sleep(FOLLOW_PAUSE).await;
        }
    }
    *broker.ha.unsettled.lock() = None;
    let _ = fs::remove_file(mark(config));
    tracing::info!(end = broker.store.written(), "serving as master");
    broker.role.set(role);
}

/// One round: who are the slaves, and what do they have?
async fn ask(node: &Node) -> Round {
    let config = &node.broker.settings.raw;
    let admin =
        Admin::new(node.client.clone(), config.namesrv_addr.clone()).with_timeout(ASK_TIMEOUT);
    let mut round = Round::default();
    let Ok(name_servers) = admin.name_server_addresses().await else {
        return round;
    };
    let mut slaves = BTreeSet::new();
    for name_server in name_servers {
        let Ok(cluster) = admin.cluster_info_of(&name_server.to_string()).await else {
            continue;
        };
        round.told = true;
        if let Some(group) = cluster.broker_addr_table.get(&config.broker_name) {
            let others = group.broker_addrs.iter().filter(|(id, _)| **id > 0);
            slaves.extend(others.map(|(_, address)| address.clone()));
        }
    }
    slaves.remove(node.broker.address());
    round.slaves = slaves.len();
    for address in slaves {
        match peer::ask_info(&node.client, &address).await {
            // A stock slave cannot give anything back; it answers, and that is all that can be asked of it.
            Ok(None) => round.answered += 1,
            Ok(Some(info)) => {
                round.answered += 1;
                round.native.push(address.clone());
                let ahead = round
                    .furthest
                    .as_ref()
                    .is_none_or(|(_, other)| info.confirmed > other.confirmed);
                if ahead {
                    round.furthest = Some((address, info));
                }
            }
            Err(reason) => tracing::warn!(address, reason, "a slave does not answer"),
        }
    }
    round
}

/// Copies what a slave has beyond the own log; returns how many bytes that was.
async fn take_back(node: &Node, address: &str, info: &PeerInfo) -> Result<u64, String> {
    let store = &node.broker.store;
    if info.segment_size != store.segment_size() {
        return Err(format!(
            "its log files have {} bytes and ours {}",
            info.segment_size,
            store.segment_size()
        ));
    }
    if is_empty(store) {
        slave::begin_at(store, info.min).await?;
    } else {
        let other = Other {
            client: &node.client,
            address,
        };
        let compared = history::compare(store, &other, info).await?;
        if compared != Comparison::Same {
            // The master's word counts; the slave will cut itself back to what is common.
            tracing::warn!(
                address,
                ?compared,
                "a slave has another history than its master"
            );
            return Ok(0);
        }
    }
    let from = store.written();
    tracing::warn!(
        address,
        from,
        to = info.confirmed,
        "taking back from a slave what is missing here"
    );
    let mut stream = slave::connect(node, &info.ha_address).await?;
    let copied = slave::copy(
        node,
        &mut stream,
        Start::Exactly(from),
        Some(info.confirmed),
    )
    .await;
    // Whatever came, only whole records stay.
    let whole = store.confirm_offset();
    if whole < store.written() {
        let cutting = std::sync::Arc::clone(store);
        blocking(move || cutting.truncate_to(whole))
            .await?
            .map_err(|error| error.to_string())?;
    }
    let bytes = store.written().saturating_sub(from);
    match copied {
        Ok(()) if store.written() >= info.confirmed => Ok(bytes),
        Ok(()) => Err("it closed the connection".to_owned()),
        Err(reason) => Err(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_serve_after_a_round() {
        let round = |told, slaves, answered| Round {
            told,
            slaves,
            answered,
            ..Round::default()
        };
        for (round, lost, empty, sync, settled) in [
            (round(true, 0, 0), false, false, true, true),
            (round(true, 0, 0), true, false, true, false),
            (round(true, 0, 0), true, true, true, true),
            (round(true, 0, 0), true, false, false, true),
            (round(true, 1, 0), false, false, true, true),
            (round(true, 1, 0), true, false, true, false),
            (round(true, 1, 0), true, true, true, false),
            (round(true, 1, 0), true, false, false, false),
            (round(true, 2, 1), true, false, true, true),
            (round(false, 0, 0), false, false, true, false),
        ] {
            let found = is_settled(&round, lost, empty, sync);
            assert_eq!(found, settled, "{round:?} {lost} {empty} {sync}");
        }
    }
}
