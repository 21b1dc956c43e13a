//! Typed calls of the administration: what the operator and the command line ask of name servers and
//! brokers. Every call is one request and one answer; nothing is cached.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::RemotingClient;
use crate::connection::InvokeError;
use crate::properties::{self, Properties};
use crate::protocol::body::*;
use crate::protocol::header::*;
use crate::protocol::message::{RecordView, records};
use crate::protocol::{
    DecodeError, HeaderError, LanguageCode, RemotingCommand, json, request_code, response_code,
};

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Invoke(#[from] InvokeError),
    #[error("name server list {list:?} cannot be resolved: {source}")]
    Resolve {
        list: String,
        #[source]
        source: std::io::Error,
    },
    /// The other side answered with another code than success.
    #[error("{} ({code}) from {address}: {remark}", response_code::name(*code))]
    Refused {
        address: String,
        code: i32,
        remark: String,
    },
    #[error("answer of {address}: {source}")]
    Header {
        address: String,
        #[source]
        source: HeaderError,
    },
    #[error("answer of {address}: {source}")]
    Body {
        address: String,
        #[source]
        source: json::Error,
    },
    #[error("answer of {address}: {source}")]
    Properties {
        address: String,
        #[source]
        source: properties::ParseError,
    },
    #[error("answer of {address}: {source}")]
    Record {
        address: String,
        #[source]
        source: DecodeError,
    },
    #[error("no name server is given")]
    NoNameServer,
}

impl Error {
    /// The response code, if there was an answer.
    pub fn code(&self) -> Option<i32> {
        match self {
            Error::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// The configuration a broker or a name server reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReportedConfig {
    pub values: BTreeMap<String, String>,
    /// Hash of the file the broker started with; only our brokers tell it.
    pub config_hash: Option<String>,
    /// The DataVersion of the configuration, as JSON text.
    pub version: String,
    /// Text that comes with a success, such as "changed in memory only".
    pub remark: Option<String>,
}

/// A record in owned form, as tools show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub queue_id: i32,
    pub queue_offset: i64,
    pub physical_offset: i64,
    pub msg_id: String,
    pub flag: i32,
    pub sys_flag: i32,
    pub born_timestamp: i64,
    pub born_host: SocketAddr,
    pub store_timestamp: i64,
    pub store_host: SocketAddr,
    pub reconsume_times: i32,
    pub body_crc: i32,
    pub size: usize,
    pub body: Vec<u8>,
    pub properties: BTreeMap<String, String>,
}

impl From<&RecordView<'_>> for Message {
    fn from(record: &RecordView<'_>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            topic: text(record.topic),
            queue_id: record.queue_id,
            queue_offset: record.queue_offset,
            physical_offset: record.physical_offset,
            msg_id: record.message_id().to_string(),
            flag: record.flag,
            sys_flag: record.sys_flag,
            born_timestamp: record.born_timestamp,
            born_host: record.born_host,
            store_timestamp: record.store_timestamp,
            store_host: record.store_host,
            reconsume_times: record.reconsume_times,
            body_crc: record.body_crc,
            size: record.size,
            body: record.body.to_vec(),
            properties: crate::protocol::message::properties(record.properties)
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
        }
    }
}

/// A client for administration. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    client: RemotingClient,
    name_servers: String,
    timeout: Duration,
}

impl Admin {
    /// Time for one call, as mqadmin's.
    pub const TIMEOUT: Duration = Duration::from_secs(5);

    /// `name_servers` is a list `host:port;host2:port`; it may be empty if only brokers are called.
    pub fn new(client: RemotingClient, name_servers: impl Into<String>) -> Self {
        Self {
            client,
            name_servers: name_servers.into(),
            timeout: Self::TIMEOUT,
        }
    }

    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    pub fn client(&self) -> &RemotingClient {
        &self.client
    }

    /// All addresses of all name servers.
    pub async fn name_server_addresses(&self) -> Result<Vec<SocketAddr>> {
        let addresses = self
            .client
            .resolver()
            .resolve(&self.name_servers)
            .await
            .map_err(|source| Error::Resolve {
                list: self.name_servers.clone(),
                source,
            })?;
        if addresses.is_empty() {
            return Err(Error::NoNameServer);
        }
        Ok(addresses)
    }

    /// One request to one address; the answer whatever its code.
    pub async fn invoke(&self, address: &str, request: RemotingCommand) -> Result<RemotingCommand> {
        Ok(self.client.invoke(address, request, self.timeout).await?)
    }

    /// One request to one address; an error unless the answer is a success.
    pub async fn call(&self, address: &str, request: RemotingCommand) -> Result<RemotingCommand> {
        let answer = self.invoke(address, request).await?;
        if answer.is_success() {
            return Ok(answer);
        }
        Err(Error::Refused {
            address: address.to_owned(),
            code: answer.code,
            remark: answer.remark.unwrap_or_default(),
        })
    }

    /// A request to the first name server that answers at all.
    async fn call_name_server(
        &self,
        request: RemotingCommand,
    ) -> Result<(String, RemotingCommand)> {
        let mut last = Error::NoNameServer;
        for address in self.name_server_addresses().await? {
            let address = address.to_string();
            match self.call(&address, request.clone()).await {
                Ok(answer) => return Ok((address, answer)),
                Err(error @ Error::Invoke(_)) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// A request to every name server, since they do not talk to each other. All are tried; the first
    /// error is returned.
    async fn call_every_name_server(
        &self,
        request: RemotingCommand,
    ) -> Result<Vec<RemotingCommand>> {
        let mut answers = Vec::new();
        let mut failure = None;
        for address in self.name_server_addresses().await? {
            match self.call(&address.to_string(), request.clone()).await {
                Ok(answer) => answers.push(answer),
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(answers),
        }
    }

    async fn name_server_json<T: DeserializeOwned>(&self, request: RemotingCommand) -> Result<T> {
        let (address, answer) = self.call_name_server(request).await?;
        body(&address, &answer)
    }

    async fn json<T: DeserializeOwned>(
        &self,
        address: &str,
        request: RemotingCommand,
    ) -> Result<T> {
        let answer = self.call(address, request).await?;
        body(address, &answer)
    }

    async fn header<T: DeserializeOwned>(
        &self,
        address: &str,
        request: RemotingCommand,
    ) -> Result<T> {
        let answer = self.call(address, request).await?;
        header(address, &answer)
    }

    async fn done(&self, address: &str, request: RemotingCommand) -> Result<()> {
        self.call(address, request).await.map(drop)
    }
}

fn request(code: i32, header: &impl Serialize) -> RemotingCommand {
    RemotingCommand::request(code).with_header(header)
}

fn header<T: DeserializeOwned>(address: &str, answer: &RemotingCommand) -> Result<T> {
    answer.header().map_err(|source| Error::Header {
        address: address.to_owned(),
        source,
    })
}

/// An absent body reads as an empty object: some handlers of the original answer so.
fn body<T: DeserializeOwned>(address: &str, answer: &RemotingCommand) -> Result<T> {
    let text: &[u8] = if answer.body.is_empty() {
        b"{}"
    } else {
        &answer.body
    };
    json::from_slice(text).map_err(|source| Error::Body {
        address: address.to_owned(),
        source,
    })
}

fn properties_of(address: &str, answer: &RemotingCommand) -> Result<BTreeMap<String, String>> {
    let parsed = Properties::parse(&answer.body).map_err(|source| Error::Properties {
        address: address.to_owned(),
        source,
    })?;
    Ok(parsed
        .iter()
        .map(|property| (property.key.clone(), property.value.clone()))
        .collect())
}

fn properties_text(changes: &BTreeMap<String, String>) -> String {
    properties::write(
        changes
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str())),
    )
}

fn messages(address: &str, answer: &RemotingCommand) -> Result<Vec<Message>> {
    records(&answer.body)
        .map(|record| {
            record
                .map(|record| Message::from(&record))
                .map_err(|source| Error::Record {
                    address: address.to_owned(),
                    source,
                })
        })
        .collect()
}

/// Calls to name servers.
impl Admin {
    pub async fn cluster_info(&self) -> Result<ClusterInfo> {
        self.name_server_json(RemotingCommand::request(
            request_code::GET_BROKER_CLUSTER_INFO,
        ))
        .await
    }

    /// What one name server, given by its address, knows of the cluster.
    pub async fn cluster_info_of(&self, name_server: &str) -> Result<ClusterInfo> {
        self.json(
            name_server,
            RemotingCommand::request(request_code::GET_BROKER_CLUSTER_INFO),
        )
        .await
    }

    /// The route of a topic; `None` if no name server that answers knows it.
    pub async fn topic_route(&self, topic: &str) -> Result<Option<TopicRouteData>> {
        let request = request(
            request_code::GET_ROUTEINFO_BY_TOPIC,
            &GetRouteInfoRequestHeader {
                topic: topic.to_owned(),
                accept_standard_json_only: Some(true),
            },
        );
        match self.name_server_json(request).await {
            Ok(route) => Ok(Some(route)),
            Err(error) if error.code() == Some(response_code::TOPIC_NOT_EXIST) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn topic_list(&self) -> Result<TopicList> {
        self.name_server_json(RemotingCommand::request(
            request_code::GET_ALL_TOPIC_LIST_FROM_NAMESERVER,
        ))
        .await
    }

    pub async fn topics_by_cluster(&self, cluster: &str) -> Result<TopicList> {
        self.name_server_json(request(
            request_code::GET_TOPICS_BY_CLUSTER,
            &GetTopicsByClusterRequestHeader {
                cluster: cluster.to_owned(),
            },
        ))
        .await
    }

    /// Writes a pair on every name server.
    pub async fn put_kv(&self, namespace: &str, key: &str, value: &str) -> Result<()> {
        self.call_every_name_server(request(
            request_code::PUT_KV_CONFIG,
            &PutKvConfigRequestHeader {
                namespace: namespace.to_owned(),
                key: key.to_owned(),
                value: value.to_owned(),
            },
        ))
        .await
        .map(drop)
    }

    /// Writes a pair on one name server.
    pub async fn put_kv_on(
        &self,
        name_server: &str,
        namespace: &str,
        key: &str,
        value: &str,
    ) -> Result<()> {
        let header = PutKvConfigRequestHeader {
            namespace: namespace.to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
        };
        self.done(name_server, request(request_code::PUT_KV_CONFIG, &header))
            .await
    }

    pub async fn get_kv(&self, namespace: &str, key: &str) -> Result<Option<String>> {
        let request = request(
            request_code::GET_KV_CONFIG,
            &GetKvConfigRequestHeader {
                namespace: namespace.to_owned(),
                key: key.to_owned(),
            },
        );
        match self.call_name_server(request).await {
            Ok((address, answer)) => {
                Ok(header::<GetKvConfigResponseHeader>(&address, &answer)?.value)
            }
            Err(error) if error.code() == Some(response_code::QUERY_NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes a pair on every name server.
    pub async fn delete_kv(&self, namespace: &str, key: &str) -> Result<()> {
        self.call_every_name_server(request(
            request_code::DELETE_KV_CONFIG,
            &DeleteKvConfigRequestHeader {
                namespace: namespace.to_owned(),
                key: key.to_owned(),
            },
        ))
        .await
        .map(drop)
    }

    /// Deletes a pair on one name server.
    pub async fn delete_kv_on(&self, name_server: &str, namespace: &str, key: &str) -> Result<()> {
        let header = DeleteKvConfigRequestHeader {
            namespace: namespace.to_owned(),
            key: key.to_owned(),
        };
        self.done(
            name_server,
            request(request_code::DELETE_KV_CONFIG, &header),
        )
        .await
    }

    /// All pairs of a namespace as one name server has them; empty if it has none.
    pub async fn kv_list_of(
        &self,
        name_server: &str,
        namespace: &str,
    ) -> Result<BTreeMap<String, String>> {
        let request = request(
            request_code::GET_KVLIST_BY_NAMESPACE,
            &GetKvListByNamespaceRequestHeader {
                namespace: namespace.to_owned(),
            },
        );
        match self.json::<KVTable>(name_server, request).await {
            Ok(table) => Ok(table.table),
            Err(error) if error.code() == Some(response_code::QUERY_NOT_FOUND) => {
                Ok(BTreeMap::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes the write permission from every topic of a broker name, on every name server. Returns how
    /// many topics changed on each.
    pub async fn wipe_write_perm(&self, broker_name: &str) -> Result<Vec<i32>> {
        let answers = self
            .call_every_name_server(request(
                request_code::WIPE_WRITE_PERM_OF_BROKER,
                &WipeWritePermOfBrokerRequestHeader {
                    broker_name: broker_name.to_owned(),
                },
            ))
            .await?;
        answers
            .iter()
            .map(|answer| {
                header::<WipeWritePermOfBrokerResponseHeader>("name server", answer)
                    .map(|header| header.wipe_topic_count)
            })
            .collect()
    }

    /// Gives the write permission back, on every name server.
    pub async fn add_write_perm(&self, broker_name: &str) -> Result<Vec<i32>> {
        let answers = self
            .call_every_name_server(request(
                request_code::ADD_WRITE_PERM_OF_BROKER,
                &AddWritePermOfBrokerRequestHeader {
                    broker_name: broker_name.to_owned(),
                },
            ))
            .await?;
        answers
            .iter()
            .map(|answer| {
                header::<AddWritePermOfBrokerResponseHeader>("name server", answer)
                    .map(|header| header.add_topic_count)
            })
            .collect()
    }

    /// Takes a broker out of every name server's tables.
    pub async fn unregister_broker(
        &self,
        cluster: &str,
        broker_name: &str,
        broker_addr: &str,
        broker_id: i64,
    ) -> Result<()> {
        self.call_every_name_server(request(
            request_code::UNREGISTER_BROKER,
            &UnRegisterBrokerRequestHeader {
                broker_name: broker_name.to_owned(),
                broker_addr: broker_addr.to_owned(),
                cluster_name: cluster.to_owned(),
                broker_id,
            },
        ))
        .await
        .map(drop)
    }

    /// Removes a topic from every name server. Brokers that still have it register it again, so
    /// delete it there first.
    pub async fn delete_topic_in_name_servers(
        &self,
        topic: &str,
        cluster: Option<&str>,
    ) -> Result<()> {
        self.call_every_name_server(request(
            request_code::DELETE_TOPIC_IN_NAMESRV,
            &DeleteTopicFromNamesrvRequestHeader {
                topic: topic.to_owned(),
                cluster_name: cluster.map(str::to_owned),
            },
        ))
        .await
        .map(drop)
    }

    pub async fn name_server_config(&self, name_server: &str) -> Result<BTreeMap<String, String>> {
        let answer = self
            .call(
                name_server,
                RemotingCommand::request(request_code::GET_NAMESRV_CONFIG),
            )
            .await?;
        properties_of(name_server, &answer)
    }

    pub async fn update_name_server_config(
        &self,
        name_server: &str,
        changes: &BTreeMap<String, String>,
    ) -> Result<()> {
        let request = RemotingCommand::request(request_code::UPDATE_NAMESRV_CONFIG)
            .with_body(properties_text(changes));
        self.done(name_server, request).await
    }
}

/// Calls to one broker: configuration and state.
impl Admin {
    pub async fn broker_runtime_info(&self, broker: &str) -> Result<BTreeMap<String, String>> {
        let request = RemotingCommand::request(request_code::GET_BROKER_RUNTIME_INFO);
        Ok(self.json::<KVTable>(broker, request).await?.table)
    }

    pub async fn broker_config(&self, broker: &str) -> Result<ReportedConfig> {
        let answer = self
            .call(
                broker,
                RemotingCommand::request(request_code::GET_BROKER_CONFIG),
            )
            .await?;
        let header: GetBrokerConfigResponseHeader = header(broker, &answer)?;
        Ok(ReportedConfig {
            values: properties_of(broker, &answer)?,
            config_hash: header.config_hash,
            version: header.version,
            remark: answer.remark,
        })
    }

    /// Changes keys at run time. The answer's remark is returned: it tells when the change will not
    /// outlive the process.
    pub async fn update_broker_config(
        &self,
        broker: &str,
        changes: &BTreeMap<String, String>,
    ) -> Result<Option<String>> {
        let request = RemotingCommand::request(request_code::UPDATE_BROKER_CONFIG)
            .with_body(properties_text(changes));
        Ok(self.call(broker, request).await?.remark)
    }

    pub async fn ha_status(&self, broker: &str) -> Result<HARuntimeInfo> {
        self.json(
            broker,
            RemotingCommand::request(request_code::GET_BROKER_HA_STATUS),
        )
        .await
    }

    /// How a member of a group that elects its own master sees the group.
    pub async fn dledger_status(&self, broker: &str) -> Result<DLedgerStatus> {
        self.json(
            broker,
            RemotingCommand::request(request_code::DLEDGER_STATUS),
        )
        .await
    }

    /// Asks the leader to hand over to a member, or to whichever follower is furthest. Answered when the hand-over has begun: the
    /// leader refuses when that member is too far behind. Anybody but the leader answers `SERVICE_NOT_AVAILABLE` (14), naming the leader.
    pub async fn dledger_transfer_leadership(
        &self,
        leader: &str,
        target: Option<&str>,
    ) -> Result<()> {
        let header = DLedgerTransferLeadershipRequestHeader {
            target_id: target.map(str::to_owned),
        };
        self.done(
            leader,
            request(request_code::DLEDGER_TRANSFER_LEADERSHIP, &header),
        )
        .await
    }

    /// Asks the leader to take a member in: as a learner, which votes from when it has caught up. Answered when the change is proposed; one
    /// change at a time, so another answer than success may be asked again. Success as well when it is a member already.
    pub async fn dledger_add_member(&self, leader: &str, id: &str, address: &str) -> Result<()> {
        let header = DLedgerAddMemberRequestHeader {
            id: id.to_owned(),
            address: address.to_owned(),
        };
        self.done(leader, request(request_code::DLEDGER_ADD_MEMBER, &header))
            .await
    }

    /// Asks the leader to let a member go, which must not be the leader itself. Success as well when it is no member.
    pub async fn dledger_remove_member(&self, leader: &str, id: &str) -> Result<()> {
        let header = DLedgerRemoveMemberRequestHeader { id: id.to_owned() };
        self.done(
            leader,
            request(request_code::DLEDGER_REMOVE_MEMBER, &header),
        )
        .await
    }

    pub async fn broker_stats(
        &self,
        broker: &str,
        name: &str,
        key: &str,
    ) -> Result<BrokerStatsData> {
        let header = ViewBrokerStatsDataRequestHeader {
            stats_name: name.to_owned(),
            stats_key: key.to_owned(),
        };
        self.json(
            broker,
            request(request_code::VIEW_BROKER_STATS_DATA, &header),
        )
        .await
    }

    pub async fn clean_expired_consume_queue(&self, broker: &str) -> Result<()> {
        self.done(
            broker,
            RemotingCommand::request(request_code::CLEAN_EXPIRED_CONSUMEQUEUE),
        )
        .await
    }

    pub async fn clean_unused_topic(&self, broker: &str) -> Result<()> {
        self.done(
            broker,
            RemotingCommand::request(request_code::CLEAN_UNUSED_TOPIC),
        )
        .await
    }

    pub async fn delete_expired_commit_log(&self, broker: &str) -> Result<()> {
        self.done(
            broker,
            RemotingCommand::request(request_code::DELETE_EXPIRED_COMMITLOG),
        )
        .await
    }
}

/// Calls to one broker: topics and groups.
impl Admin {
    pub async fn create_topic(&self, broker: &str, topic: &TopicConfig) -> Result<()> {
        let attributes: Vec<String> = topic
            .attributes
            .iter()
            .map(|(key, value)| format!("+{key}={value}"))
            .collect();
        let header = CreateTopicRequestHeader {
            topic: topic.topic_name.clone(),
            default_topic: "TBW102".to_owned(),
            read_queue_nums: topic.read_queue_nums,
            write_queue_nums: topic.write_queue_nums,
            perm: topic.perm,
            topic_filter_type: Some(topic.topic_filter_type.clone()),
            topic_sys_flag: Some(topic.topic_sys_flag),
            order: topic.order,
            attributes: (!attributes.is_empty()).then(|| attributes.join(",")),
            force: None,
        };
        self.done(
            broker,
            request(request_code::UPDATE_AND_CREATE_TOPIC, &header),
        )
        .await
    }

    pub async fn delete_topic_in_broker(&self, broker: &str, topic: &str) -> Result<()> {
        let header = DeleteTopicRequestHeader {
            topic: topic.to_owned(),
        };
        self.done(
            broker,
            request(request_code::DELETE_TOPIC_IN_BROKER, &header),
        )
        .await
    }

    pub async fn topic_configs(&self, broker: &str) -> Result<TopicConfigSerializeWrapper> {
        self.json(
            broker,
            RemotingCommand::request(request_code::GET_ALL_TOPIC_CONFIG),
        )
        .await
    }

    /// One topic's configuration; `None` if the broker has no such topic.
    pub async fn topic_config(&self, broker: &str, topic: &str) -> Result<Option<TopicConfig>> {
        let header = GetTopicConfigRequestHeader {
            topic: topic.to_owned(),
            lo: None,
        };
        match self
            .json(broker, request(request_code::GET_TOPIC_CONFIG, &header))
            .await
        {
            Ok(config) => Ok(Some(config)),
            Err(error) if error.code() == Some(response_code::TOPIC_NOT_EXIST) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn topic_stats(&self, broker: &str, topic: &str) -> Result<TopicStatsTable> {
        let header = GetTopicStatsInfoRequestHeader {
            topic: topic.to_owned(),
        };
        self.json(broker, request(request_code::GET_TOPIC_STATS_INFO, &header))
            .await
    }

    pub async fn topic_consume_by_who(&self, broker: &str, topic: &str) -> Result<GroupList> {
        let header = QueryTopicConsumeByWhoRequestHeader {
            topic: topic.to_owned(),
        };
        self.json(
            broker,
            request(request_code::QUERY_TOPIC_CONSUME_BY_WHO, &header),
        )
        .await
    }

    pub async fn topics_of_consumer(&self, broker: &str, group: &str) -> Result<TopicList> {
        let header = QueryTopicsByConsumerRequestHeader {
            group: group.to_owned(),
        };
        self.json(
            broker,
            request(request_code::QUERY_TOPICS_BY_CONSUMER, &header),
        )
        .await
    }

    pub async fn create_subscription_group(
        &self,
        broker: &str,
        group: &SubscriptionGroupConfig,
    ) -> Result<()> {
        let request = RemotingCommand::request(request_code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP)
            .json_body(group);
        self.done(broker, request).await
    }

    pub async fn delete_subscription_group(
        &self,
        broker: &str,
        group: &str,
        clean_offset: bool,
    ) -> Result<()> {
        let header = DeleteSubscriptionGroupRequestHeader {
            group_name: group.to_owned(),
            clean_offset: Some(clean_offset),
            remove_offset: Some(clean_offset),
        };
        self.done(
            broker,
            request(request_code::DELETE_SUBSCRIPTIONGROUP, &header),
        )
        .await
    }

    pub async fn subscription_groups(&self, broker: &str) -> Result<SubscriptionGroupWrapper> {
        self.json(
            broker,
            RemotingCommand::request(request_code::GET_ALL_SUBSCRIPTIONGROUP_CONFIG),
        )
        .await
    }

    pub async fn consume_stats(
        &self,
        broker: &str,
        group: &str,
        topic: Option<&str>,
    ) -> Result<ConsumeStats> {
        let header = GetConsumeStatsRequestHeader {
            consumer_group: group.to_owned(),
            topic: topic.map(str::to_owned),
            topic_list: None,
        };
        self.json(broker, request(request_code::GET_CONSUME_STATS, &header))
            .await
    }

    /// The members of a group on this broker; `None` if it is offline there.
    pub async fn consumer_connection(
        &self,
        broker: &str,
        group: &str,
    ) -> Result<Option<ConsumerConnection>> {
        let header = GetConsumerConnectionListRequestHeader {
            consumer_group: group.to_owned(),
        };
        let request = request(request_code::GET_CONSUMER_CONNECTION_LIST, &header);
        match self.json(broker, request).await {
            Ok(connection) => Ok(Some(connection)),
            Err(error) if error.code() == Some(response_code::CONSUMER_NOT_ONLINE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn producer_connection(
        &self,
        broker: &str,
        group: &str,
    ) -> Result<ProducerConnection> {
        let header = GetProducerConnectionListRequestHeader {
            producer_group: group.to_owned(),
        };
        self.json(
            broker,
            request(request_code::GET_PRODUCER_CONNECTION_LIST, &header),
        )
        .await
    }

    pub async fn consumer_running_info(
        &self,
        broker: &str,
        group: &str,
        client_id: &str,
        jstack: bool,
    ) -> Result<ConsumerRunningInfo> {
        let header = GetConsumerRunningInfoRequestHeader {
            consumer_group: group.to_owned(),
            client_id: client_id.to_owned(),
            jstack_enable: Some(jstack),
        };
        self.json(
            broker,
            request(request_code::GET_CONSUMER_RUNNING_INFO, &header),
        )
        .await
    }
}

/// Calls to one broker: offsets and messages.
impl Admin {
    pub async fn max_offset(&self, broker: &str, topic: &str, queue_id: i32) -> Result<i64> {
        let header = GetMaxOffsetRequestHeader {
            topic: topic.to_owned(),
            queue_id,
            committed: None,
        };
        let request = request(request_code::GET_MAX_OFFSET, &header);
        let answer: GetMaxOffsetResponseHeader = self.header(broker, request).await?;
        Ok(answer.offset)
    }

    pub async fn min_offset(&self, broker: &str, topic: &str, queue_id: i32) -> Result<i64> {
        let header = GetMinOffsetRequestHeader {
            topic: topic.to_owned(),
            queue_id,
        };
        let request = request(request_code::GET_MIN_OFFSET, &header);
        let answer: GetMinOffsetResponseHeader = self.header(broker, request).await?;
        Ok(answer.offset)
    }

    pub async fn search_offset(
        &self,
        broker: &str,
        topic: &str,
        queue_id: i32,
        timestamp_ms: i64,
    ) -> Result<i64> {
        let header = SearchOffsetRequestHeader {
            topic: topic.to_owned(),
            queue_id,
            timestamp: timestamp_ms,
            boundary_type: None,
        };
        let request = request(request_code::SEARCH_OFFSET_BY_TIMESTAMP, &header);
        let answer: SearchOffsetResponseHeader = self.header(broker, request).await?;
        Ok(answer.offset)
    }

    /// The committed offset of a group; `None` if it has none.
    pub async fn consumer_offset(
        &self,
        broker: &str,
        group: &str,
        topic: &str,
        queue_id: i32,
    ) -> Result<Option<i64>> {
        let header = QueryConsumerOffsetRequestHeader {
            consumer_group: group.to_owned(),
            topic: topic.to_owned(),
            queue_id,
            set_zero_if_not_found: Some(false),
        };
        let request = request(request_code::QUERY_CONSUMER_OFFSET, &header);
        match self
            .header::<QueryConsumerOffsetResponseHeader>(broker, request)
            .await
        {
            Ok(answer) => Ok(Some(answer.offset)),
            Err(error) if error.code() == Some(response_code::QUERY_NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn update_consumer_offset(
        &self,
        broker: &str,
        group: &str,
        topic: &str,
        queue_id: i32,
        commit_offset: i64,
    ) -> Result<()> {
        let header = UpdateConsumerOffsetRequestHeader {
            consumer_group: group.to_owned(),
            topic: topic.to_owned(),
            queue_id,
            commit_offset,
        };
        self.done(
            broker,
            request(request_code::UPDATE_CONSUMER_OFFSET, &header),
        )
        .await
    }

    /// Resets a group to a time; −1 means the end of each queue.
    pub async fn reset_offset(
        &self,
        broker: &str,
        group: &str,
        topic: &str,
        timestamp_ms: i64,
        force: bool,
    ) -> Result<MessageQueueMap<i64>> {
        let header = ResetOffsetRequestHeader {
            topic: topic.to_owned(),
            group: group.to_owned(),
            timestamp: timestamp_ms,
            is_force: force,
            offset: None,
            queue_id: None,
        };
        let mut request = request(request_code::INVOKE_BROKER_TO_RESET_OFFSET, &header);
        // The broker writes object keys only for languages that read them.
        request.language = LanguageCode::Java;
        Ok(self
            .json::<ResetOffsetBody>(broker, request)
            .await?
            .offset_table)
    }

    pub async fn clone_group_offset(
        &self,
        broker: &str,
        from: &str,
        to: &str,
        topic: Option<&str>,
        offline: bool,
    ) -> Result<()> {
        let header = CloneGroupOffsetRequestHeader {
            src_group: from.to_owned(),
            dest_group: to.to_owned(),
            topic: topic.map(str::to_owned),
            offline: Some(offline),
        };
        self.done(broker, request(request_code::CLONE_GROUP_OFFSET, &header))
            .await
    }

    /// The message at a physical offset.
    pub async fn view_message(&self, broker: &str, offset: i64) -> Result<Option<Message>> {
        let header = ViewMessageRequestHeader {
            topic: None,
            offset,
        };
        let answer = self
            .call(broker, request(request_code::VIEW_MESSAGE_BY_ID, &header))
            .await?;
        Ok(messages(broker, &answer)?.into_iter().next())
    }

    /// Messages by key, or by unique key. Hash collisions are removed here, as every client must.
    pub async fn query_message(
        &self,
        broker: &str,
        topic: &str,
        key: &str,
        max: i32,
        between_ms: (i64, i64),
        unique: bool,
    ) -> Result<Vec<Message>> {
        let header = QueryMessageRequestHeader {
            topic: topic.to_owned(),
            key: key.to_owned(),
            max_num: max,
            begin_timestamp: between_ms.0,
            end_timestamp: between_ms.1,
            unique_key_query: Some(unique),
        };
        let answer = self
            .invoke(broker, request(request_code::QUERY_MESSAGE, &header))
            .await?;
        if answer.code == response_code::QUERY_NOT_FOUND {
            return Ok(Vec::new());
        }
        if !answer.is_success() {
            return Err(Error::Refused {
                address: broker.to_owned(),
                code: answer.code,
                remark: answer.remark.unwrap_or_default(),
            });
        }
        let mut found = messages(broker, &answer)?;
        found.retain(|message| {
            let value = |name| {
                message
                    .properties
                    .get(name)
                    .map(String::as_str)
                    .unwrap_or_default()
            };
            message.topic == topic
                && if unique {
                    value("UNIQ_KEY") == key
                } else {
                    value("KEYS").split_whitespace().any(|word| word == key)
                }
        });
        Ok(found)
    }

    pub async fn query_consume_queue(
        &self,
        broker: &str,
        topic: &str,
        queue_id: i32,
        index: i64,
        count: i32,
        group: Option<&str>,
    ) -> Result<QueryConsumeQueueResponseBody> {
        let header = QueryConsumeQueueRequestHeader {
            topic: topic.to_owned(),
            queue_id,
            index,
            count,
            consumer_group: group.map(str::to_owned),
        };
        self.json(broker, request(request_code::QUERY_CONSUME_QUEUE, &header))
            .await
    }

    /// Pulls once without waiting: the records from `queue_offset` on, and where to go on.
    pub async fn pull(
        &self,
        broker: &str,
        topic: &str,
        queue_id: i32,
        queue_offset: i64,
        max: i32,
    ) -> Result<(Vec<Message>, PullMessageResponseHeader)> {
        const TOOLS_GROUP: &str = "TOOLS_CONSUMER";
        let request_header = PullMessageRequestHeader {
            consumer_group: TOOLS_GROUP.to_owned(),
            topic: topic.to_owned(),
            queue_id,
            queue_offset,
            max_msg_nums: max,
            sys_flag: crate::protocol::message::pull_sys_flag::SUBSCRIPTION,
            subscription: Some("*".to_owned()),
            expression_type: Some("TAG".to_owned()),
            ..PullMessageRequestHeader::default()
        };
        let answer = self
            .invoke(broker, request(request_code::PULL_MESSAGE, &request_header))
            .await?;
        match answer.code {
            response_code::SUCCESS
            | response_code::PULL_NOT_FOUND
            | response_code::PULL_RETRY_IMMEDIATELY
            | response_code::PULL_OFFSET_MOVED => {
                Ok((messages(broker, &answer)?, header(broker, &answer)?))
            }
            code => Err(Error::Refused {
                address: broker.to_owned(),
                code,
                remark: answer.remark.unwrap_or_default(),
            }),
        }
    }
}
