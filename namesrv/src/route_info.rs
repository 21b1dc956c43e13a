//! The routing tables: which topic has queues on which broker, and at which addresses its replicas are. Plain data: no socket, no lock, no clock
//! (time comes in as an argument), so that every rule of upstream's `RouteInfoManager` can be read and tested by itself.
//!
//! Invariant, checked in tests by `check_invariants`: every address in `brokers` belongs to a broker name of some cluster, no broker name is
//! without addresses, and no topic is without queues.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use remoting::protocol::body::{
    BrokerData, ClusterInfo, DataVersion, PERM_READ, PERM_WRITE, QueueData, TopicConfig,
    TopicQueueMappingInfo, TopicRouteData,
};

pub const MASTER_ID: i64 = 0;
/// What 327 sets.
const PERM_READ_WRITE: i32 = PERM_READ | PERM_WRITE;
/// `RouteInfoManager.DEFAULT_BROKER_CHANNEL_EXPIRED_TIME`: a broker that names no time-out of its own is dropped after so long a silence.
pub const DEFAULT_BROKER_EXPIRED_MS: i64 = 120_000;
/// `TopicValidator.SYNC_BROKER_MEMBER_GROUP_PREFIX`: such topics never show an acting master.
const SYNC_BROKER_MEMBER_GROUP_PREFIX: &str = "rmq_sys_SYNC_BROKER_MEMBER_";
/// Every broker creates this topic at start, so a table without it is not a whole one.
const SELF_TEST_TOPIC: &str = "SELF_TEST_TOPIC";
/// `TopicSysFlag`: bit 0 unit, bit 1 has unit subscriptions.
const FLAG_UNIT: i32 = 1;
const FLAG_UNIT_SUB: i32 = 2;

/// Identity of a connection; a broker's entry belongs to the connection that registered it last.
pub type ConnectionId = u64;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BrokerAddrInfo {
    pub cluster: String,
    pub addr: String,
}

#[derive(Clone, Debug)]
struct BrokerLiveInfo {
    broker_name: String,
    broker_id: i64,
    last_update_ms: i64,
    heartbeat_timeout_ms: i64,
    data_version: DataVersion,
    connection: ConnectionId,
    ha_server_addr: String,
}

#[derive(Clone, Debug, Default)]
struct Group {
    cluster: String,
    addrs: BTreeMap<i64, String>,
    enable_acting_master: bool,
    zone: Option<String>,
}

/// What a registration (103) says, after decoding.
#[derive(Clone, Debug, Default)]
pub struct Registration {
    pub cluster: String,
    pub broker_name: String,
    pub broker_addr: String,
    pub broker_id: i64,
    pub ha_server_addr: String,
    pub zone: Option<String>,
    /// Absent = an old broker.
    pub enable_acting_master: Option<bool>,
    pub heartbeat_timeout_ms: Option<i64>,
    pub data_version: DataVersion,
    pub topics: BTreeMap<String, TopicConfig>,
    /// Static topics (5.x): topic → mapping of this broker, kept as it came.
    pub mappings: BTreeMap<String, TopicQueueMappingInfo>,
    pub filter_servers: Vec<String>,
    pub connection: ConnectionId,
}

/// What goes back to the broker: filled for a slave whose master is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registered {
    pub master_addr: Option<String>,
    pub ha_server_addr: Option<String>,
    pub notice: Option<MinBrokerIdChanged>,
}

/// Rule 4 of a registration: one lone topic of a broker nobody knows is an increment to a table that is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("register broker failed")]
pub struct Refused;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unregistration {
    pub cluster: String,
    pub broker_name: String,
    pub broker_addr: String,
    pub broker_id: i64,
    /// Set where a connection closed: the entry stays if it has moved to another connection meanwhile. A broker that reconnects at once would
    /// otherwise be out of the routes until its next registration.
    pub owner: Option<ConnectionId>,
}

/// A group's smallest id is another one now: its members are told (905) when that is switched on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MinBrokerIdChanged {
    pub broker_name: String,
    pub min_broker_id: i64,
    pub min_broker_addr: String,
    pub offline_broker_addr: Option<String>,
    pub ha_broker_addr: Option<String>,
    /// Connections of the members that shall know.
    pub tell: Vec<ConnectionId>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    pub support_acting_master: bool,
    pub delete_topic_with_registration: bool,
}

/// Figures for `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub brokers: usize,
    pub broker_names: usize,
    pub topics: usize,
}

#[derive(Default)]
pub struct RouteInfoManager {
    topics: BTreeMap<String, BTreeMap<String, QueueData>>,
    groups: BTreeMap<String, Group>,
    clusters: BTreeMap<String, BTreeSet<String>>,
    live: HashMap<BrokerAddrInfo, BrokerLiveInfo>,
    filter_servers: HashMap<BrokerAddrInfo, Vec<String>>,
    mappings: BTreeMap<String, BTreeMap<String, TopicQueueMappingInfo>>,
}

impl RouteInfoManager {
    pub fn register(
        &mut self,
        r: Registration,
        options: Options,
        now_ms: i64,
    ) -> Result<Registered, Refused> {
        let Registration {
            cluster,
            broker_name,
            broker_addr,
            broker_id,
            ..
        } = &r;
        let key = BrokerAddrInfo {
            cluster: cluster.clone(),
            addr: broker_addr.clone(),
        };
        if let Some(group) = self.groups.get(broker_name)
            && let Some(holder) = group.addrs.get(broker_id).filter(|a| *a != broker_addr)
        {
            let held = self.live.get(&BrokerAddrInfo {
                cluster: cluster.clone(),
                addr: holder.clone(),
            });
            if held.is_some_and(|h| h.data_version.state_version > r.data_version.state_version) {
                self.live.remove(&key);
                return Ok(Registered::default());
            }
        }
        let known_id = self
            .groups
            .get(broker_name)
            .is_some_and(|g| g.addrs.contains_key(broker_id));
        if !known_id && r.topics.len() == 1 {
            return Err(Refused);
        }

        self.clusters
            .entry(cluster.clone())
            .or_default()
            .insert(broker_name.clone());
        let group = self
            .groups
            .entry(broker_name.clone())
            .or_insert_with(|| Group {
                cluster: cluster.clone(),
                ..Group::default()
            });
        let smallest_before = group.addrs.keys().next().copied();
        group.enable_acting_master = r.enable_acting_master.unwrap_or(false);
        group.zone = r.zone.clone();
        group
            .addrs
            .retain(|id, addr| addr != broker_addr || id == broker_id);
        let first = group
            .addrs
            .insert(*broker_id, broker_addr.clone())
            .is_none();
        let smallest = group.addrs.keys().next().copied();
        let acting_master = group.enable_acting_master;
        let prime_slave = r.enable_acting_master.is_some()
            && *broker_id != MASTER_ID
            && smallest == Some(*broker_id);

        if *broker_id == MASTER_ID || prime_slave {
            let changed = self
                .live
                .get(&key)
                .is_none_or(|l| l.data_version != r.data_version);
            if options.delete_topic_with_registration
                && r.mappings.is_empty()
                && is_whole_table(&r.topics)
            {
                self.topics.retain(|topic, queues| {
                    if !r.topics.contains_key(topic) {
                        queues.remove(broker_name);
                    }
                    !queues.is_empty()
                });
            }
            for (topic, config) in &r.topics {
                let unknown = !self
                    .topics
                    .get(topic)
                    .is_some_and(|queues| queues.contains_key(broker_name));
                if first || changed || unknown {
                    let mut perm = config.perm;
                    if prime_slave && acting_master {
                        perm &= !PERM_WRITE;
                    }
                    let queue = QueueData {
                        broker_name: broker_name.clone(),
                        read_queue_nums: config.read_queue_nums,
                        write_queue_nums: config.write_queue_nums,
                        perm,
                        topic_sys_flag: config.topic_sys_flag,
                    };
                    self.topics
                        .entry(topic.clone())
                        .or_default()
                        .insert(broker_name.clone(), queue);
                }
            }
            if first || changed {
                for (topic, mapping) in &r.mappings {
                    self.mappings
                        .entry(topic.clone())
                        .or_default()
                        .insert(broker_name.clone(), mapping.clone());
                }
            }
        }

        let live = BrokerLiveInfo {
            broker_name: broker_name.clone(),
            broker_id: *broker_id,
            last_update_ms: now_ms,
            heartbeat_timeout_ms: r
                .heartbeat_timeout_ms
                .filter(|t| *t > 0)
                .unwrap_or(DEFAULT_BROKER_EXPIRED_MS),
            data_version: r.data_version,
            connection: r.connection,
            ha_server_addr: r.ha_server_addr.clone(),
        };
        self.live.insert(key.clone(), live);
        if r.filter_servers.is_empty() {
            self.filter_servers.remove(&key);
        } else {
            self.filter_servers.insert(key, r.filter_servers.clone());
        }

        let mut registered = Registered::default();
        if *broker_id != MASTER_ID
            && let Some(master) = self
                .groups
                .get(broker_name)
                .and_then(|g| g.addrs.get(&MASTER_ID))
            && let Some(live) = self.live.get(&BrokerAddrInfo {
                cluster: cluster.clone(),
                addr: master.clone(),
            })
        {
            registered.master_addr = Some(master.clone());
            registered.ha_server_addr = Some(live.ha_server_addr.clone());
        }
        if smallest_before.is_some_and(|before| *broker_id < before) {
            registered.notice =
                self.min_broker_id_notice(broker_name, None, Some(r.ha_server_addr.clone()));
        }
        Ok(registered)
    }

    /// Applies a batch of unregistrations with one pass over the topics.
    pub fn unregister(&mut self, batch: &[Unregistration]) -> Vec<MinBrokerIdChanged> {
        let mut removed: BTreeSet<&str> = BTreeSet::new();
        let mut reduced: BTreeSet<&str> = BTreeSet::new();
        let mut smallest_left: BTreeMap<&str, &str> = BTreeMap::new();
        for u in batch {
            let key = BrokerAddrInfo {
                cluster: u.cluster.clone(),
                addr: u.broker_addr.clone(),
            };
            let moved = |owner| self.live.get(&key).is_none_or(|l| l.connection != owner);
            if u.owner.is_some_and(moved) {
                continue;
            }
            self.live.remove(&key);
            self.filter_servers.remove(&key);
            let mut emptied = false;
            if let Some(group) = self.groups.get_mut(&u.broker_name) {
                if group
                    .addrs
                    .first_key_value()
                    .is_some_and(|(_, addr)| *addr == u.broker_addr)
                {
                    smallest_left.insert(&u.broker_name, &u.broker_addr);
                }
                group.addrs.retain(|_, addr| *addr != u.broker_addr);
                emptied = group.addrs.is_empty();
            }
            if emptied {
                self.groups.remove(&u.broker_name);
                if let Some(names) = self.clusters.get_mut(&u.cluster) {
                    names.remove(&u.broker_name);
                    if names.is_empty() {
                        self.clusters.remove(&u.cluster);
                    }
                }
                removed.insert(&u.broker_name);
                reduced.remove(u.broker_name.as_str());
            } else if self.groups.contains_key(&u.broker_name) {
                reduced.insert(&u.broker_name);
            }
        }
        let masterless: BTreeSet<&str> = reduced
            .into_iter()
            .filter(|name| {
                self.groups
                    .get(*name)
                    .is_some_and(|g| g.enable_acting_master && !g.addrs.contains_key(&MASTER_ID))
            })
            .collect();
        if !removed.is_empty() || !masterless.is_empty() {
            self.topics.retain(|_, queues| {
                queues.retain(|name, _| !removed.contains(name.as_str()));
                for name in &masterless {
                    if let Some(queue) = queues.get_mut(*name) {
                        queue.perm &= !PERM_WRITE;
                    }
                }
                !queues.is_empty()
            });
            self.mappings.retain(|_, brokers| {
                brokers.retain(|name, _| !removed.contains(name.as_str()));
                !brokers.is_empty()
            });
        }
        smallest_left
            .into_iter()
            .filter_map(|(name, offline)| {
                self.min_broker_id_notice(name, Some(offline.to_owned()), None)
            })
            .collect()
    }

    fn min_broker_id_notice(
        &self,
        broker_name: &str,
        offline: Option<String>,
        ha: Option<String>,
    ) -> Option<MinBrokerIdChanged> {
        let group = self.groups.get(broker_name)?;
        let (id, addr) = group.addrs.first_key_value()?;
        let live = |addr: &String| {
            self.live.get(&BrokerAddrInfo {
                cluster: group.cluster.clone(),
                addr: addr.clone(),
            })
        };
        let ha = ha.or_else(|| live(addr).map(|l| l.ha_server_addr.clone()));
        // Upstream (`chooseBrokerAddrsToNotify`): when a broker left, everybody else is told; when one came, all but itself.
        let tell = group
            .addrs
            .iter()
            .filter(|(member, _)| offline.is_some() || *member != id)
            .filter_map(|(_, a)| live(a))
            .map(|l| l.connection);
        Some(MinBrokerIdChanged {
            broker_name: broker_name.to_owned(),
            min_broker_id: *id,
            min_broker_addr: addr.clone(),
            tell: tell.collect(),
            offline_broker_addr: offline,
            ha_broker_addr: ha,
        })
    }

    /// The brokers whose entry belongs to this connection.
    pub fn registered_by(&self, connection: ConnectionId) -> Vec<Unregistration> {
        self.live
            .iter()
            .filter(|(_, l)| l.connection == connection)
            .map(|(k, l)| unregistration(k, l))
            .collect()
    }

    /// The brokers that have been silent for longer than they promised, with the connection each of them used (`owner`).
    pub fn expired(&self, now_ms: i64) -> Vec<Unregistration> {
        let late =
            |l: &BrokerLiveInfo| l.last_update_ms.saturating_add(l.heartbeat_timeout_ms) < now_ms;
        self.live
            .iter()
            .filter(|(_, l)| late(l))
            .map(|(k, l)| unregistration(k, l))
            .collect()
    }

    /// Refreshes the live entry (322, 904); an unknown broker is ignored.
    pub fn touch(&mut self, cluster: &str, addr: &str, now_ms: i64) {
        if let Some(live) = self.live.get_mut(&BrokerAddrInfo {
            cluster: cluster.to_owned(),
            addr: addr.to_owned(),
        }) {
            live.last_update_ms = now_ms;
        }
    }

    pub fn data_version(&self, cluster: &str, addr: &str) -> Option<DataVersion> {
        self.live
            .get(&BrokerAddrInfo {
                cluster: cluster.to_owned(),
                addr: addr.to_owned(),
            })
            .map(|l| l.data_version)
    }

    /// The route of a topic without `orderTopicConf`; `None` where it has no queue or no broker.
    pub fn pickup_topic_route_data(&self, topic: &str, options: Options) -> Option<TopicRouteData> {
        let queues = self.topics.get(topic)?;
        let mut route = TopicRouteData {
            queue_datas: queues.values().cloned().collect(),
            ..TopicRouteData::default()
        };
        for (name, queue) in queues {
            let Some(group) = self.groups.get(name) else {
                continue;
            };
            let mut data = broker_data(name, group);
            for addr in group.addrs.values() {
                let key = BrokerAddrInfo {
                    cluster: group.cluster.clone(),
                    addr: addr.clone(),
                };
                if let Some(servers) = self.filter_servers.get(&key) {
                    route
                        .filter_server_table
                        .insert(addr.clone(), servers.clone());
                }
            }
            let acting = options.support_acting_master
                && group.enable_acting_master
                && !topic.starts_with(SYNC_BROKER_MEMBER_GROUP_PREFIX);
            if acting
                && queue.perm & PERM_WRITE == 0
                && !data.broker_addrs.contains_key(&MASTER_ID)
                && let Some((_, addr)) = data.broker_addrs.pop_first()
            {
                data.broker_addrs.insert(MASTER_ID, addr);
            }
            route.broker_datas.push(data);
        }
        route.topic_queue_mapping_by_broker = self.mappings.get(topic).cloned();
        (!route.broker_datas.is_empty()).then_some(route)
    }

    /// The zone of a broker name, for the route filter.
    pub fn zone(&self, broker_name: &str) -> Option<&str> {
        self.groups.get(broker_name)?.zone.as_deref()
    }

    pub fn cluster_info(&self) -> ClusterInfo {
        ClusterInfo {
            broker_addr_table: self
                .groups
                .iter()
                .map(|(name, group)| (name.clone(), broker_data(name, group)))
                .collect(),
            cluster_addr_table: self
                .clusters
                .iter()
                .map(|(c, names)| (c.clone(), names.clone()))
                .collect(),
        }
    }

    /// 901: the members of a group; a group nobody knows has none.
    pub fn broker_member_group(&self, broker_name: &str) -> BTreeMap<i64, String> {
        self.groups
            .get(broker_name)
            .map(|g| g.addrs.clone())
            .unwrap_or_default()
    }

    pub fn all_topics(&self) -> BTreeSet<String> {
        self.topics.keys().cloned().collect()
    }

    pub fn topics_of_cluster(&self, cluster: &str) -> BTreeSet<String> {
        let Some(names) = self.clusters.get(cluster) else {
            return BTreeSet::new();
        };
        self.topics
            .iter()
            .filter(|(_, queues)| queues.keys().any(|name| names.contains(name)))
            .map(|(t, _)| t.clone())
            .collect()
    }

    /// 304: cluster and broker names, and one broker the tool can ask on.
    pub fn system_topics(&self) -> (BTreeSet<String>, Option<String>) {
        let mut list = BTreeSet::new();
        for (cluster, names) in &self.clusters {
            list.insert(cluster.clone());
            list.extend(names.iter().cloned());
        }
        (
            list,
            self.groups
                .values()
                .find_map(|g| g.addrs.values().next().cloned()),
        )
    }

    pub fn unit_topics(&self) -> BTreeSet<String> {
        self.topics_by_flag(|flag| flag & FLAG_UNIT != 0)
    }

    pub fn unit_sub_topics(&self) -> BTreeSet<String> {
        self.topics_by_flag(|flag| flag & FLAG_UNIT_SUB != 0)
    }

    pub fn unit_sub_un_unit_topics(&self) -> BTreeSet<String> {
        self.topics_by_flag(|flag| flag & FLAG_UNIT == 0 && flag & FLAG_UNIT_SUB != 0)
    }

    /// Upstream looks at the first queue of a topic only; the flag is the same on all.
    fn topics_by_flag(&self, wanted: impl Fn(i32) -> bool) -> BTreeSet<String> {
        let matches = |queues: &BTreeMap<String, QueueData>| {
            queues
                .values()
                .next()
                .is_some_and(|q| wanted(q.topic_sys_flag))
        };
        self.topics
            .iter()
            .filter(|(_, queues)| matches(queues))
            .map(|(t, _)| t.clone())
            .collect()
    }

    /// 216. With a cluster only its brokers lose the topic.
    pub fn delete_topic(&mut self, topic: &str, cluster: Option<&str>) {
        match cluster {
            None => {
                self.topics.remove(topic);
            }
            Some(cluster) => {
                let (Some(queues), Some(names)) =
                    (self.topics.get_mut(topic), self.clusters.get(cluster))
                else {
                    return;
                };
                queues.retain(|name, _| !names.contains(name));
                if queues.is_empty() {
                    self.topics.remove(topic);
                }
            }
        }
    }

    /// 217: queues of brokers that are known here are taken over.
    pub fn register_topic(&mut self, topic: &str, queues: Vec<QueueData>) {
        let known: Vec<QueueData> = queues
            .into_iter()
            .filter(|q| self.groups.contains_key(&q.broker_name))
            .collect();
        if known.is_empty() {
            return;
        }
        let table = self.topics.entry(topic.to_owned()).or_default();
        for queue in known {
            table.insert(queue.broker_name.clone(), queue);
        }
    }

    /// 205: returns how many topics the broker has (upstream counts them all, changed or not).
    pub fn wipe_write_perm(&mut self, broker_name: &str) -> usize {
        self.operate_write_perm(broker_name, |perm| perm & !PERM_WRITE)
    }

    /// 327.
    pub fn add_write_perm(&mut self, broker_name: &str) -> usize {
        self.operate_write_perm(broker_name, |_| PERM_READ_WRITE)
    }

    fn operate_write_perm(&mut self, broker_name: &str, change: impl Fn(i32) -> i32) -> usize {
        let mut count = 0;
        for queue in self
            .topics
            .values_mut()
            .filter_map(|queues| queues.get_mut(broker_name))
        {
            queue.perm = change(queue.perm);
            count += 1;
        }
        count
    }

    pub fn sizes(&self) -> Sizes {
        Sizes {
            brokers: self.live.len(),
            broker_names: self.groups.len(),
            topics: self.topics.len(),
        }
    }

    #[cfg(test)]
    fn check_invariants(&self) {
        for (name, group) in &self.groups {
            assert!(!group.addrs.is_empty(), "{name} has no address");
            assert!(
                self.clusters
                    .get(&group.cluster)
                    .is_some_and(|names| names.contains(name)),
                "{name} is in no cluster"
            );
        }
        for (topic, queues) in &self.topics {
            assert!(!queues.is_empty(), "{topic} has no queue");
            for name in queues.keys() {
                assert!(
                    self.groups.contains_key(name),
                    "{topic} has queues on {name}, which nobody knows"
                );
            }
        }
        assert!(self.clusters.values().all(|names| !names.is_empty()));
    }
}

/// An increment names only what changed; a whole table holds at least the topics every broker creates at start. Only the latter may delete:
/// upstream takes an increment for a whole table here, and its documentation warns of it.
fn is_whole_table(topics: &BTreeMap<String, TopicConfig>) -> bool {
    topics.len() > 1 && topics.contains_key(SELF_TEST_TOPIC)
}

fn unregistration(key: &BrokerAddrInfo, live: &BrokerLiveInfo) -> Unregistration {
    Unregistration {
        cluster: key.cluster.clone(),
        broker_name: live.broker_name.clone(),
        broker_addr: key.addr.clone(),
        broker_id: live.broker_id,
        owner: Some(live.connection),
    }
}

fn broker_data(name: &str, group: &Group) -> BrokerData {
    BrokerData {
        cluster: group.cluster.clone(),
        broker_name: name.to_owned(),
        broker_addrs: group.addrs.clone(),
        enable_acting_master: group.enable_acting_master,
        zone_name: group.zone.clone(),
    }
}

#[cfg(test)]
mod tests;
