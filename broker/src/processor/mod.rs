//! From a request to the code that serves it: one `match`, in one place.

mod admin_broker;
mod answer;
pub(crate) mod client_manage;
mod consumer_manage;
mod dledger;
pub(crate) mod pull_message;
mod query_message;
mod relay;
mod reset_offset;
mod runtime_info;
mod send_back;
pub(crate) mod send_message;

pub use self::admin_broker::NOT_SERVED;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use remoting::Connection;
use remoting::protocol::{RemotingCommand, request_code as code, response_code};
use remoting::server::{Request, Service};

use self::answer::{Answer, Refused as Refusal};
use crate::ack::Pending;
use crate::broker::Broker;
use crate::config::BrokerConfig;
use crate::dledger::tables::InDoubt;
use crate::ha::peer;
use crate::topic::{Table, Topic};

impl Refusal {
    fn write(self, request: &Request<'_>, out: &mut BytesMut) {
        if !request.header.is_oneway() {
            RemotingCommand::from(self).reply_to(request).encode(out);
        }
    }

    /// Java's producers look at these two fields whatever the code.
    fn write_send(self, broker: &Broker, request: &Request<'_>, out: &mut BytesMut) {
        if !request.header.is_oneway() {
            let config = &broker.settings.raw;
            RemotingCommand::from(self)
                .with_ext("MSG_REGION", &config.region_id)
                .with_ext("TRACE_ON", config.trace_on.to_string())
                .reply_to(request)
                .encode(out);
        }
    }
}

/// What one connection's task keeps between requests, so that the next one needs no allocation.
pub struct Local {
    config: Option<Arc<BrokerConfig>>,
    topics: Option<Arc<Table>>,
    /// When the first request of this socket read began.
    started: Option<Instant>,
    properties: Vec<u8>,
    ids: String,
    pending: Vec<Pending>,
    /// Answers that wait until the name servers know the topic, too.
    unannounced: Vec<(Pending, Arc<Topic>)>,
    /// Something was appended and awaits [`store::Store::drive`].
    driven: bool,
    random: u32,
}

impl Default for Local {
    fn default() -> Self {
        Self {
            config: None,
            topics: None,
            started: None,
            properties: Vec::new(),
            ids: String::new(),
            pending: Vec::new(),
            unannounced: Vec::new(),
            driven: false,
            random: 0x9E37_79B9,
        }
    }
}

impl Local {
    /// The configuration, looked up once a socket read.
    fn config(&mut self, broker: &Broker) -> &Arc<BrokerConfig> {
        self.config.get_or_insert_with(|| broker.config())
    }

    /// A queue at random (xorshift; spreading load needs no more).
    fn random_below(&mut self, limit: i32) -> i32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        let limit = u32::try_from(limit).unwrap_or(0).max(1);
        i32::try_from(self.random % limit).unwrap_or(0)
    }
}

/// One listening port of the broker.
pub struct FrontDoor {
    /// The broker behind it.
    pub broker: Arc<Broker>,
    /// The port two below the main one, which serves everything but pulls.
    pub fast: bool,
}

impl Service for FrontDoor {
    type Local = Local;

    fn opened(&self, _connection: &Arc<Connection>) {
        self.broker.connection_opened();
    }

    fn request(
        &self,
        connection: &Arc<Connection>,
        local: &mut Local,
        request: Request<'_>,
        out: &mut BytesMut,
    ) {
        match request.header.code {
            code::SEND_MESSAGE | code::SEND_MESSAGE_V2 | code::SEND_BATCH_MESSAGE => {
                send_message::send(&self.broker, connection, local, &request, out)
            }
            code::PULL_MESSAGE | code::LITE_PULL_MESSAGE if !self.fast => {
                pull_message::pull(&self.broker, connection, local, &request, out)
            }
            code::PULL_MESSAGE | code::LITE_PULL_MESSAGE => {
                RemotingCommand::not_supported(request.header.code)
                    .reply_to(&request)
                    .encode(out)
            }
            _ => dispatch(&self.broker, connection, &request, out),
        }
    }

    fn batch_end(&self, connection: &Arc<Connection>, local: &mut Local, out: &mut BytesMut) {
        send_message::finish(&self.broker, connection, local, out);
        local.config = None;
        local.topics = None;
    }

    fn closed(&self, connection: &Arc<Connection>, _local: &mut Local) {
        self.broker.held.closed(connection.id());
        client_manage::connection_closed(&self.broker, connection.id());
        self.broker.connection_closed();
    }
}

/// A request in hand costs at least this much, whatever the length of its frame.
const LEAST_WEIGHT: usize = 4 * 1024;

type LaterAnswer = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// How a request is served.
enum Handler {
    /// At once, on the connection's task.
    Here(fn(&Arc<Broker>, &RemotingCommand) -> Answer),
    /// The same, and who asks matters.
    Client(fn(&Arc<Broker>, &Arc<Connection>, &RemotingCommand) -> Answer),
    /// On a thread that may block: it may read or write files, or wait for the log.
    Blocking(fn(&Arc<Broker>, &RemotingCommand) -> Answer),
    /// Asks a client first.
    Relay(fn(Arc<Broker>, RemotingCommand) -> LaterAnswer),
}

fn handler(request: i32) -> Option<Handler> {
    use Handler::{Blocking, Client, Here, Relay};
    Some(match request {
        code::QUERY_MESSAGE => Blocking(query_message::query_message),
        code::VIEW_MESSAGE_BY_ID => Blocking(query_message::view_message_by_id),
        code::CONSUMER_SEND_MSG_BACK => Blocking(send_back::consumer_send_msg_back),

        code::HEART_BEAT => Client(client_manage::heartbeat),
        code::UNREGISTER_CLIENT => Client(client_manage::unregister_client),
        code::CHECK_CLIENT_CONFIG => Here(client_manage::check_client_config),

        code::GET_CONSUMER_LIST_BY_GROUP => Here(consumer_manage::get_consumer_list_by_group),
        code::QUERY_CONSUMER_OFFSET => Blocking(consumer_manage::query_consumer_offset),
        code::UPDATE_CONSUMER_OFFSET => Here(consumer_manage::update_consumer_offset),
        code::SEARCH_OFFSET_BY_TIMESTAMP => Blocking(consumer_manage::search_offset_by_timestamp),
        code::GET_MAX_OFFSET => Here(consumer_manage::get_max_offset),
        code::GET_MIN_OFFSET => Here(consumer_manage::get_min_offset),
        code::GET_EARLIEST_MSG_STORETIME => Blocking(consumer_manage::get_earliest_msg_storetime),
        code::LOCK_BATCH_MQ => Here(consumer_manage::lock_batch_mq),
        code::UNLOCK_BATCH_MQ => Here(consumer_manage::unlock_batch_mq),

        code::UPDATE_AND_CREATE_TOPIC => Here(admin_broker::update_and_create_topic),
        code::UPDATE_AND_CREATE_TOPIC_LIST => Here(admin_broker::update_and_create_topic_list),
        code::DELETE_TOPIC_IN_BROKER => Blocking(admin_broker::delete_topic),
        code::GET_ALL_TOPIC_CONFIG => Here(admin_broker::get_all_topic_config),
        code::GET_TOPIC_CONFIG => Here(admin_broker::get_topic_config),
        code::GET_SYSTEM_TOPIC_LIST_FROM_BROKER => Here(admin_broker::get_system_topic_list),
        code::GET_TOPIC_STATS_INFO => Blocking(admin_broker::get_topic_stats_info),
        code::CLEAN_UNUSED_TOPIC => Blocking(admin_broker::clean_unused_topic),

        code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP => {
            Here(admin_broker::update_and_create_subscription_group)
        }
        code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST => {
            Here(admin_broker::update_and_create_subscription_group_list)
        }
        code::GET_ALL_SUBSCRIPTIONGROUP_CONFIG => Here(admin_broker::get_all_subscription_group),
        code::GET_SUBSCRIPTIONGROUP_CONFIG => Here(admin_broker::get_subscription_group),
        code::DELETE_SUBSCRIPTIONGROUP => Here(admin_broker::delete_subscription_group),

        code::GET_CONSUMER_CONNECTION_LIST => Here(admin_broker::get_consumer_connection_list),
        code::GET_PRODUCER_CONNECTION_LIST => Here(admin_broker::get_producer_connection_list),
        code::GET_ALL_PRODUCER_INFO => Here(admin_broker::get_all_producer_info),
        code::GET_CONSUME_STATS => Blocking(admin_broker::get_consume_stats),
        code::GET_BROKER_CONSUME_STATS => Blocking(admin_broker::get_broker_consume_stats),
        code::QUERY_TOPIC_CONSUME_BY_WHO => Here(admin_broker::query_topic_consume_by_who),
        code::QUERY_TOPICS_BY_CONSUMER => Here(admin_broker::query_topics_by_consumer),
        code::QUERY_SUBSCRIPTION_BY_CONSUMER => Here(admin_broker::query_subscription_by_consumer),
        code::QUERY_CONSUME_TIME_SPAN => Blocking(admin_broker::query_consume_time_span),
        code::CLONE_GROUP_OFFSET => Here(admin_broker::clone_group_offset),
        code::QUERY_CONSUME_QUEUE => Blocking(admin_broker::query_consume_queue),
        code::INVOKE_BROKER_TO_RESET_OFFSET => Blocking(reset_offset::reset_offset),
        code::INVOKE_BROKER_TO_GET_CONSUMER_STATUS => {
            Relay(|b, r| Box::pin(relay::get_consumer_status(b, r)))
        }
        code::GET_CONSUMER_RUNNING_INFO => {
            Relay(|b, r| Box::pin(relay::get_consumer_running_info(b, r)))
        }
        code::CONSUME_MESSAGE_DIRECTLY => {
            Relay(|b, r| Box::pin(relay::consume_message_directly(b, r)))
        }

        code::GET_BROKER_RUNTIME_INFO => Blocking(runtime_info::get_broker_runtime_info),
        code::VIEW_BROKER_STATS_DATA => Here(admin_broker::view_broker_stats_data),
        code::GET_BROKER_CONFIG => Here(admin_broker::get_broker_config),
        code::UPDATE_BROKER_CONFIG => Blocking(admin_broker::update_broker_config),
        code::GET_BROKER_HA_STATUS => Here(admin_broker::get_broker_ha_status),
        code::CLEAN_EXPIRED_CONSUMEQUEUE => Blocking(admin_broker::clean_expired_consume_queue),
        code::DELETE_EXPIRED_COMMITLOG => Blocking(admin_broker::delete_expired_commit_log),

        peer::HA_PEER_INFO => Here(|broker, request| Ok(peer::get_peer_info(broker, request))),
        peer::HA_FOLLOW => Here(|broker, request| Ok(peer::follow(broker, request))),
        peer::HA_CHECKSUMS => Blocking(|broker, request| Ok(peer::get_checksums(broker, request))),

        code::DLEDGER_STATUS => Blocking(dledger::get_status),
        code::DLEDGER_TRANSFER_LEADERSHIP => Blocking(dledger::transfer_leadership),
        code::DLEDGER_ADD_MEMBER => Blocking(dledger::add_member),
        code::DLEDGER_REMOVE_MEMBER => Blocking(dledger::remove_member),

        code::GET_ALL_CONSUMER_OFFSET => Here(admin_broker::get_all_consumer_offset),
        code::GET_ALL_DELAY_OFFSET => Here(admin_broker::get_all_delay_offset),
        code::NOTIFY_MIN_BROKER_ID_CHANGE => Here(admin_broker::notify_min_broker_id_change),
        code::GET_ALL_MESSAGE_REQUEST_MODE => Here(admin_broker::get_all_message_request_mode),
        _ => return None,
    })
}

/// Requests whose answer says that a topic or a group is there, or gone: it is given when that is on disk, or a group that
/// elects its master agreed on it, and the name servers know of it, as upstream does. A consumer asks for the route of its retry
/// topic right after its heartbeat.
fn must_settle(request: i32) -> bool {
    matches!(
        request,
        code::HEART_BEAT
            | code::UPDATE_AND_CREATE_TOPIC
            | code::UPDATE_AND_CREATE_TOPIC_LIST
            | code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP
            | code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST
            | code::DELETE_SUBSCRIPTIONGROUP
    )
}

fn dispatch(
    broker: &Arc<Broker>,
    connection: &Arc<Connection>,
    request: &Request<'_>,
    out: &mut BytesMut,
) {
    fn reply(command: &RemotingCommand, answer: Answer) -> RemotingCommand {
        answer
            .unwrap_or_else(RemotingCommand::from)
            .reply_to(command)
    }
    let tables = broker.tables.as_ref();
    let tables = tables.filter(|_| must_settle(request.header.code));
    let before = tables.map(|tables| tables.now());
    // An answer to a oneway request is dropped by whoever sends it (`RemotingCommand::reply_to`).
    let here = |answer: Answer, out: &mut BytesMut| {
        if request.header.is_oneway() {
            return;
        }
        let reply = answer
            .unwrap_or_else(RemotingCommand::from)
            .reply_to(request);
        let changes = tables
            .zip(before)
            .filter(|_| reply.code == response_code::SUCCESS);
        let agreed = changes.is_none_or(|(tables, before)| tables.is_agreed(before));
        if !must_settle(request.header.code) || (agreed && broker.is_settled()) {
            return reply.encode(out);
        }
        let doubt = RemotingCommand::from(Refusal::from(InDoubt)).reply_to(request);
        let changes = changes.map(|(tables, before)| (Arc::clone(tables), before));
        let (broker, connection) = (Arc::clone(broker), Arc::clone(connection));
        tokio::spawn(async move {
            let agreed = match changes {
                Some((tables, before)) => tables.agreed(before).await.is_ok(),
                None => true,
            };
            broker.settled().await;
            connection.send(if agreed { &reply } else { &doubt });
        });
    };
    let busy = || {
        Err(Refusal::new(
            response_code::SYSTEM_BUSY,
            "[OVERLOAD]system busy, start flow control for a while",
        ))
    };
    let take = || {
        let weight = request.frame_len.max(LEAST_WEIGHT);
        let weight = u32::try_from(weight).unwrap_or(u32::MAX);
        Arc::clone(&broker.in_hand)
            .try_acquire_many_owned(weight)
            .ok()
    };
    match handler(request.header.code) {
        None => here(Ok(RemotingCommand::not_supported(request.header.code)), out),
        Some(Handler::Here(serve)) => here(serve(broker, &request.to_command()), out),
        Some(Handler::Client(serve)) => here(serve(broker, connection, &request.to_command()), out),
        Some(Handler::Blocking(serve)) => {
            let Some(held) = take() else {
                return here(busy(), out);
            };
            let (worker, asking, command) = (
                Arc::clone(broker),
                Arc::clone(connection),
                request.to_command(),
            );
            let taken = broker.blocking.run(move || {
                let _held = held;
                asking.send(&reply(&command, serve(&worker, &command)));
            });
            if !taken {
                here(busy(), out);
            }
        }
        Some(Handler::Relay(ask)) => {
            let Some(held) = take() else {
                return here(busy(), out);
            };
            let (broker, asking, command) = (
                Arc::clone(broker),
                Arc::clone(connection),
                request.to_command(),
            );
            tokio::spawn(async move {
                let _held = held;
                let answer = ask(broker, command.clone()).await;
                asking.send(&reply(&command, answer));
            });
        }
    }
}
