//! One function per request code of the name server. Each takes the decoded request and answers at once; what has to write a file (KV tables,
//! configuration) does so on a blocking thread and answers from there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use remoting::Connection;
use remoting::protocol::body::{
    BrokerMemberGroup, DataVersion, GetBrokerMemberGroupResponseBody, KVTable, RegisterBrokerBody,
    TopicList, TopicRouteData,
};
use remoting::protocol::command::ReplyKey;
use remoting::protocol::{RemotingCommand, request_code as request, response_code as response};
use remoting::server::{Request, Service};
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::kv_config::ORDER_TOPIC_CONFIG;
use crate::route_info::{Registration, Unregistration};
use crate::state::State;

const ZONE_NAME: &str = "__ZONE_NAME";
const ZONE_MODE: &str = "__ZONE_MODE";
/// CRCs travel as non-negative ints.
const CRC_MASK: u32 = 0x7fff_ffff;
const FAQ: &str = "See https://rocketmq.apache.org/docs/bestPractice/06FAQ for further details.";

/// Bytes of requests that wait to write a file; more are answered SYSTEM_BUSY.
pub(crate) const MAX_WRITES_IN_HAND_BYTES: usize = 64 * 1024 * 1024;
/// Such a request costs at least this much, whatever its length.
const LEAST_WEIGHT: usize = 4 * 1024;

pub(crate) struct Processor {
    /// One permit a byte of what waits to write a file.
    pub(crate) in_hand: Arc<Semaphore>,
    pub(crate) state: Arc<State>,
}

/// Per connection: whether a broker ever registered through it, so that the thousands of client connections cost nothing when they close.
#[derive(Default)]
pub(crate) struct Local {
    registered: bool,
}

impl Service for Processor {
    type Local = Local;

    fn request(
        &self,
        connection: &Arc<Connection>,
        local: &mut Local,
        request: Request<'_>,
        out: &mut BytesMut,
    ) {
        let command = request.to_command();
        self.state.metrics.count(command.code);
        if let Some(reply) = self.answer(connection, local, &command)
            && !command.is_oneway()
        {
            reply.reply_to(&command).encode(out);
        }
    }

    fn closed(&self, connection: &Arc<Connection>, local: &mut Local) {
        if local.registered {
            self.state.connection_closed(connection.id());
        }
    }
}

impl Processor {
    /// `None` when the answer follows later.
    fn answer(
        &self,
        connection: &Arc<Connection>,
        local: &mut Local,
        command: &RemotingCommand,
    ) -> Option<RemotingCommand> {
        Some(match command.code {
            request::GET_ROUTEINFO_BY_TOPIC => self.route(command),
            request::REGISTER_BROKER => self.register(connection, local, command),
            request::UNREGISTER_BROKER => self.unregister(command),
            request::BROKER_HEARTBEAT => self.heartbeat(command),
            request::QUERY_DATA_VERSION => self.query_data_version(command),
            request::GET_BROKER_CLUSTER_INFO => RemotingCommand::response(response::SUCCESS)
                .json_body(&self.state.routes.read().cluster_info()),
            request::GET_BROKER_MEMBER_GROUP => self.member_group(command),
            request::GET_ALL_TOPIC_LIST_FROM_NAMESERVER => {
                if self.state.config.load().enable_all_topic_list {
                    topic_list(self.state.routes.read().all_topics())
                } else {
                    disabled()
                }
            }
            request::GET_TOPICS_BY_CLUSTER => {
                let cluster = text(command, "cluster").unwrap_or_default();
                self.listed(|| topic_list(self.state.routes.read().topics_of_cluster(cluster)))
            }
            request::GET_SYSTEM_TOPIC_LIST_FROM_NS => {
                let (topics, broker_addr) = self.state.routes.read().system_topics();
                ok_json(&TopicList {
                    topic_list: topics,
                    broker_addr,
                })
            }
            request::GET_UNIT_TOPIC_LIST => {
                self.listed(|| topic_list(self.state.routes.read().unit_topics()))
            }
            request::GET_HAS_UNIT_SUB_TOPIC_LIST => {
                self.listed(|| topic_list(self.state.routes.read().unit_sub_topics()))
            }
            request::GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST => {
                self.listed(|| topic_list(self.state.routes.read().unit_sub_un_unit_topics()))
            }
            request::DELETE_TOPIC_IN_NAMESRV => {
                let cluster = text(command, "clusterName").filter(|c| !c.is_empty());
                self.state
                    .routes
                    .write()
                    .delete_topic(text(command, "topic").unwrap_or_default(), cluster);
                success()
            }
            request::REGISTER_TOPIC_IN_NAMESRV => self.register_topic(command),
            request::WIPE_WRITE_PERM_OF_BROKER => {
                let count = self
                    .state
                    .routes
                    .write()
                    .wipe_write_perm(text(command, "brokerName").unwrap_or_default());
                success().with_ext("wipeTopicCount", count.to_string())
            }
            request::ADD_WRITE_PERM_OF_BROKER => {
                let count = self
                    .state
                    .routes
                    .write()
                    .add_write_perm(text(command, "brokerName").unwrap_or_default());
                success().with_ext("addTopicCount", count.to_string())
            }
            request::PUT_KV_CONFIG => return self.put_kv(connection, command),
            request::DELETE_KV_CONFIG => return self.delete_kv(connection, command),
            request::GET_KV_CONFIG => self.get_kv(command),
            request::GET_KVLIST_BY_NAMESPACE => self.list_kv(command),
            request::UPDATE_NAMESRV_CONFIG => return self.update_config(connection, command),
            request::GET_NAMESRV_CONFIG => {
                let config = self.state.config.load();
                // Ours: the operator compares it with the file it rendered.
                let hash = &config.config_hash;
                success().with_body(format!("{}configHash={hash}\n", config.to_properties()))
            }
            code => RemotingCommand::not_supported(code),
        })
    }

    fn route(&self, command: &RemotingCommand) -> RemotingCommand {
        let config = self.state.config.load();
        let topic = text(command, "topic").unwrap_or_default();
        if config.need_wait_for_service
            && self.state.uptime() < Duration::from_secs(config.wait_seconds_for_service)
        {
            return RemotingCommand::error(response::SYSTEM_ERROR, "name server not ready");
        }
        let zone = (text(command, ZONE_MODE) == Some("true"))
            .then(|| text(command, ZONE_NAME))
            .flatten()
            .filter(|z| !z.is_empty());
        let found = {
            let routes = self.state.routes.read();
            let mut found = routes.pickup_topic_route_data(topic, self.state.options(&config));
            if let (Some(route), Some(zone)) = (&mut found, zone) {
                keep_zone(route, |broker_name| {
                    routes
                        .zone(broker_name)
                        .is_some_and(|z| z.eq_ignore_ascii_case(zone))
                });
            }
            found
        };
        let Some(mut route) = found else {
            let remark =
                format!("No topic route info in name server for the topic: {topic}\n{FAQ}");
            return RemotingCommand::error(response::TOPIC_NOT_EXIST, remark);
        };
        if config.order_message_enable {
            route.order_topic_conf = self
                .state
                .kv
                .read()
                .get(ORDER_TOPIC_CONFIG, topic)
                .map(str::to_owned);
        }
        ok_json(&route)
    }

    fn register(
        &self,
        connection: &Arc<Connection>,
        local: &mut Local,
        command: &RemotingCommand,
    ) -> RemotingCommand {
        let config = self.state.config.load();
        let compressed = text(command, "compressed") == Some("true");
        let crc = number(command, "bodyCrc32")
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(0);
        if crc != 0 && crc32fast::hash(&command.body) & CRC_MASK != crc {
            return RemotingCommand::error(response::SYSTEM_ERROR, "crc32 not match");
        }
        let body = if command.body.is_empty() {
            RegisterBrokerBody::default()
        } else {
            match RegisterBrokerBody::decode(&command.body, compressed, command.version) {
                Ok(body) => body,
                Err(e) => {
                    return RemotingCommand::error(
                        response::SYSTEM_ERROR,
                        format!("register broker body: {e}"),
                    );
                }
            }
        };
        let tables = body.topic_config_serialize_wrapper;
        let (Some(broker_name), Some(broker_addr)) = (
            required(command, "brokerName"),
            required(command, "brokerAddr"),
        ) else {
            return RemotingCommand::error(
                response::SYSTEM_ERROR,
                "brokerName and brokerAddr must not be blank",
            );
        };
        let registration = Registration {
            cluster: text(command, "clusterName").unwrap_or_default().to_owned(),
            broker_name,
            broker_addr,
            broker_id: number(command, "brokerId").unwrap_or(0),
            ha_server_addr: text(command, "haServerAddr").unwrap_or_default().to_owned(),
            zone: text(command, ZONE_NAME).map(str::to_owned),
            enable_acting_master: text(command, "enableActingMaster").map(|v| v == "true"),
            heartbeat_timeout_ms: number(command, "heartbeatTimeoutMillis"),
            data_version: tables.data_version,
            topics: tables.topic_config_table,
            mappings: tables.topic_queue_mapping_info_map.unwrap_or_default(),
            filter_servers: body.filter_server_list,
            connection: connection.id(),
        };
        local.registered = true;
        let who = format!(
            "{} {} {}",
            registration.broker_name, registration.broker_id, registration.broker_addr
        );
        let registered = match self.state.register(registration, connection, &config) {
            Ok(registered) => registered,
            Err(refused) => {
                tracing::warn!("refused one lone topic of an unknown broker: {who}");
                return RemotingCommand::error(response::SYSTEM_ERROR, refused.to_string());
            }
        };
        let mut reply = success();
        if let Some(master) = registered.master_addr {
            reply = reply.with_ext("masterAddr", master);
        }
        if let Some(ha) = registered.ha_server_addr {
            reply = reply.with_ext("haServerAddr", ha);
        }
        if config.return_order_topic_config_to_broker
            && let Some(table) = self.state.kv.read().list(ORDER_TOPIC_CONFIG)
        {
            reply = reply.json_body(&KVTable {
                table: table.clone(),
            });
        }
        reply
    }

    fn unregister(&self, command: &RemotingCommand) -> RemotingCommand {
        let unregistration = Unregistration {
            cluster: text(command, "clusterName").unwrap_or_default().to_owned(),
            broker_name: text(command, "brokerName").unwrap_or_default().to_owned(),
            broker_addr: text(command, "brokerAddr").unwrap_or_default().to_owned(),
            broker_id: number(command, "brokerId").unwrap_or(0),
            owner: None,
        };
        if self.state.submit(unregistration) {
            success()
        } else {
            RemotingCommand::error(
                response::SYSTEM_ERROR,
                "too many unregistrations are waiting; try again",
            )
        }
    }

    fn heartbeat(&self, command: &RemotingCommand) -> RemotingCommand {
        self.touch(command);
        success()
    }

    fn touch(&self, command: &RemotingCommand) {
        let cluster = text(command, "clusterName").unwrap_or_default();
        self.state.routes.write().touch(
            cluster,
            text(command, "brokerAddr").unwrap_or_default(),
            self.state.now_ms(),
        );
    }

    fn query_data_version(&self, command: &RemotingCommand) -> RemotingCommand {
        let theirs: DataVersion = command.json().unwrap_or_default();
        let ours = {
            let routes = self.state.routes.read();
            let (cluster, addr) = (
                text(command, "clusterName").unwrap_or_default(),
                text(command, "brokerAddr").unwrap_or_default(),
            );
            routes.data_version(cluster, addr)
        };
        let changed = ours != Some(theirs);
        if !changed {
            self.touch(command);
        }
        let reply = success().with_ext("changed", changed.to_string());
        match ours {
            Some(version) => reply.json_body(&version),
            None => reply,
        }
    }

    fn member_group(&self, command: &RemotingCommand) -> RemotingCommand {
        let (cluster, name) = (
            text(command, "clusterName").unwrap_or_default(),
            text(command, "brokerName").unwrap_or_default(),
        );
        let group = BrokerMemberGroup {
            broker_addrs: self.state.routes.read().broker_member_group(name),
            broker_name: name.to_owned(),
            cluster: cluster.to_owned(),
        };
        ok_json(&GetBrokerMemberGroupResponseBody {
            broker_member_group: Some(group),
        })
    }

    fn register_topic(&self, command: &RemotingCommand) -> RemotingCommand {
        match command.json::<TopicRouteData>() {
            Ok(body) => {
                self.state
                    .routes
                    .write()
                    .register_topic(text(command, "topic").unwrap_or_default(), body.queue_datas);
                success()
            }
            Err(e) => RemotingCommand::error(response::SYSTEM_ERROR, format!("topic route: {e}")),
        }
    }

    fn listed(&self, list: impl FnOnce() -> RemotingCommand) -> RemotingCommand {
        if self.state.config.load().enable_topic_list {
            list()
        } else {
            disabled()
        }
    }

    fn put_kv(
        &self,
        connection: &Arc<Connection>,
        command: &RemotingCommand,
    ) -> Option<RemotingCommand> {
        let (namespace, key) = match namespace_and_key(command) {
            Ok(both) => both,
            Err(refusal) => return Some(refusal),
        };
        let Some(value) = text(command, "value").map(str::to_owned) else {
            return Some(RemotingCommand::error(
                response::SYSTEM_ERROR,
                "value is null",
            ));
        };
        self.later(connection, command, move |state| {
            match state.kv.write().put(&namespace, &key, &value) {
                Ok(()) => success(),
                Err(e) => RemotingCommand::error(response::SYSTEM_ERROR, e.to_string()),
            }
        })
    }

    fn delete_kv(
        &self,
        connection: &Arc<Connection>,
        command: &RemotingCommand,
    ) -> Option<RemotingCommand> {
        let (namespace, key) = match namespace_and_key(command) {
            Ok(both) => both,
            Err(refusal) => return Some(refusal),
        };
        self.later(connection, command, move |state| {
            match state.kv.write().delete(&namespace, &key) {
                Ok(()) => success(),
                Err(e) => RemotingCommand::error(response::SYSTEM_ERROR, e.to_string()),
            }
        })
    }

    fn get_kv(&self, command: &RemotingCommand) -> RemotingCommand {
        let (namespace, key) = (
            text(command, "namespace").unwrap_or_default(),
            text(command, "key").unwrap_or_default(),
        );
        match self.state.kv.read().get(namespace, key) {
            Some(value) => success().with_ext("value", value),
            None => RemotingCommand::error(
                response::QUERY_NOT_FOUND,
                format!("No config item, Namespace: {namespace} Key: {key}"),
            ),
        }
    }

    fn list_kv(&self, command: &RemotingCommand) -> RemotingCommand {
        let namespace = text(command, "namespace").unwrap_or_default();
        match self.state.kv.read().list(namespace) {
            Some(table) => ok_json(&KVTable {
                table: table.clone(),
            }),
            None => RemotingCommand::error(
                response::QUERY_NOT_FOUND,
                format!("No config item, Namespace: {namespace}"),
            ),
        }
    }

    fn update_config(
        &self,
        connection: &Arc<Connection>,
        command: &RemotingCommand,
    ) -> Option<RemotingCommand> {
        let properties = match remoting::properties::Properties::parse(&command.body) {
            Ok(properties) => properties,
            Err(e) => {
                return Some(RemotingCommand::error(
                    response::SYSTEM_ERROR,
                    e.to_string(),
                ));
            }
        };
        self.later(connection, command, move |state| {
            state.update_config(&properties)
        })
    }

    /// Runs `work` where blocking is allowed and answers from there.
    fn later(
        &self,
        connection: &Arc<Connection>,
        command: &RemotingCommand,
        work: impl FnOnce(&State) -> RemotingCommand + Send + 'static,
    ) -> Option<RemotingCommand> {
        let fields: usize = command
            .ext_fields
            .iter()
            .map(|(k, v)| k.len() + v.len())
            .sum();
        let weight = (command.body.len() + fields).max(LEAST_WEIGHT);
        let weight = u32::try_from(weight).unwrap_or(u32::MAX);
        let Ok(held) = Arc::clone(&self.in_hand).try_acquire_many_owned(weight) else {
            return Some(RemotingCommand::error(
                response::SYSTEM_BUSY,
                "too much waits to be written; try again",
            ));
        };
        let (state, connection) = (self.state.clone(), connection.clone());
        let request = ReplyKey {
            opaque: command.opaque,
            serialize_type: command.serialize_type,
            oneway: command.is_oneway(),
        };
        tokio::task::spawn_blocking(move || {
            let _held = held;
            let reply = work(&state);
            if !request.oneway {
                connection.send(&reply.reply_to(&request));
            }
        });
        None
    }
}

/// `ZoneRouteRPCHook`: brokers of the zone stay, and so do groups without a master, which nobody writes to.
fn keep_zone(route: &mut TopicRouteData, in_zone: impl Fn(&str) -> bool) {
    let (kept, dropped): (Vec<_>, Vec<_>) = std::mem::take(&mut route.broker_datas)
        .into_iter()
        .partition(|b| {
            !b.broker_addrs.contains_key(&crate::route_info::MASTER_ID) || in_zone(&b.broker_name)
        });
    route.broker_datas = kept;
    let dropped: BTreeMap<_, _> = dropped
        .into_iter()
        .map(|b| (b.broker_name, b.broker_addrs))
        .collect();
    route
        .queue_datas
        .retain(|q| !dropped.contains_key(&q.broker_name));
    route.filter_server_table.retain(|addr, _| {
        !dropped
            .values()
            .any(|addrs| addrs.values().any(|a| a == addr))
    });
}

fn success() -> RemotingCommand {
    RemotingCommand::response(response::SUCCESS)
}

fn ok_json(body: &impl Serialize) -> RemotingCommand {
    success().json_body(body)
}

fn topic_list(topic_list: BTreeSet<String>) -> RemotingCommand {
    ok_json(&TopicList {
        topic_list,
        broker_addr: None,
    })
}

fn disabled() -> RemotingCommand {
    RemotingCommand::error(response::SYSTEM_ERROR, "disable")
}

fn text<'a>(command: &'a RemotingCommand, key: &str) -> Option<&'a str> {
    command.ext(key)
}

/// Where a KV entry stands, or the answer that says what is missing.
fn namespace_and_key(command: &RemotingCommand) -> Result<(String, String), RemotingCommand> {
    match (required(command, "namespace"), required(command, "key")) {
        (Some(namespace), Some(key)) => Ok((namespace, key)),
        _ => Err(RemotingCommand::error(
            response::SYSTEM_ERROR,
            "namespace or key is null",
        )),
    }
}

fn required(command: &RemotingCommand, key: &str) -> Option<String> {
    text(command, key)
        .filter(|v| !v.is_empty())
        .map(str::to_owned)
}

fn number(command: &RemotingCommand, key: &str) -> Option<i64> {
    text(command, key)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NamesrvConfig;
    use crate::kv_config::KvConfigManager;

    #[tokio::test]
    async fn what_waits_to_be_written_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let kv = KvConfigManager::load(&folder.path().join("kvConfig.json")).unwrap();
        let (state, _waiting) = State::new(NamesrvConfig::default(), kv);
        let processor = Processor {
            in_hand: Arc::new(Semaphore::new(LEAST_WEIGHT)),
            state,
        };
        let address = "127.0.0.1:1".parse().unwrap();
        let connection = Connection::detached(address, address);
        let put = RemotingCommand::request(request::PUT_KV_CONFIG)
            .with_ext("namespace", "n")
            .with_ext("key", "k");
        let large = put.clone().with_ext("value", "x".repeat(LEAST_WEIGHT));
        let refused = processor.put_kv(&connection, &large).unwrap();
        assert_eq!(refused.code, response::SYSTEM_BUSY);
        let small = put.with_ext("value", "v");
        assert!(processor.put_kv(&connection, &small).is_none());
    }
}
