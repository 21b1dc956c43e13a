//! Tells every name server what this broker has: in full at start and every 30 s, the changed topics at once, and good-bye.
//!
//! Runs on a thread and a runtime of its own, so that neither a slow disk nor a busy connection ever silences it. The names
//! in `namesrvAddr` are looked up again and again, so name servers come, go and move without a restart here. One
//! connection per name server stays open: a name server drops a broker whose connection closes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use remoting::protocol::body::{
    ClusterInfo, KVTable, RegisterBrokerBody, TopicConfig, TopicConfigSerializeWrapper,
    TopicRouteData,
};
use remoting::protocol::message::body_crc;
use remoting::protocol::{RemotingCommand, json, request_code, response_code};
use remoting::{Connection, RemotingClient, Resolver};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::role::{MasterAddress, Role};
use crate::topic::perm;

/// Upstream clamps `registerNameServerPeriod` to this.
const PERIOD_MS: std::ops::RangeInclusive<u64> = 10_000..=60_000;
/// A name server that failed is tried again after this long at first, twice as long each time, up to the look-up interval.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Waiting for a name server's farewell longer than this would only delay the stop.
const UNREGISTER_TIMEOUT: Duration = Duration::from_secs(1);
/// Looking up the names of the name servers.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait of an answer for the registration of the topic that it made.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);
/// Asking a name server for the cluster's masters, and a master to create a topic.
const SPREAD_TIMEOUT: Duration = Duration::from_secs(3);

/// Id of a group's master.
const MASTER_ID: i64 = 0;

enum Command {
    /// These topics changed; the number counts such commands.
    Topics(Vec<String>, u64),
    Spread(TopicConfig),
    All,
    Stop(oneshot::Sender<()>),
}

/// Handle by which the rest of the broker asks for a registration; cheap to clone, never blocks.
#[derive(Clone)]
pub struct Registrar {
    commands: mpsc::UnboundedSender<Command>,
    state: Arc<State>,
}

impl std::fmt::Debug for Registrar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registrar")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// What the outside may know about registrations.
#[derive(Debug, Default)]
pub struct State {
    registered: AtomicUsize,
    known: AtomicUsize,
    ever: AtomicBool,
    /// Topic changes announced to the thread, and those that every registered name server has taken.
    asked: AtomicU64,
    settled: AtomicU64,
    moved: Notify,
    last_error: Mutex<Option<String>>,
}

impl State {
    /// Name servers that took the last registration.
    pub fn registered(&self) -> usize {
        self.registered.load(Ordering::Acquire)
    }

    /// Name servers known by address.
    pub fn known(&self) -> usize {
        self.known.load(Ordering::Acquire)
    }

    /// Whether a name server ever took a registration.
    pub fn ever(&self) -> bool {
        self.ever.load(Ordering::Acquire)
    }

    /// What went wrong last, while something is wrong.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }
}

/// The receiving end, before its thread runs.
pub struct Pending {
    commands: mpsc::UnboundedReceiver<Command>,
    state: Arc<State>,
}

impl Registrar {
    /// A handle and what [`Pending::start`] needs later, when the broker exists.
    pub fn new() -> (Self, Pending) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let state = Arc::new(State::default());
        (
            Self {
                commands: sender,
                state: Arc::clone(&state),
            },
            Pending {
                commands: receiver,
                state,
            },
        )
    }

    /// These topics are new or changed: register them now.
    pub fn topics_changed(&self, topics: Vec<String>) {
        let number = self.state.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let _ = self.commands.send(Command::Topics(topics, number));
    }

    /// Whether every registered name server knows every topic change so far.
    pub fn is_settled(&self) -> bool {
        self.state.settled.load(Ordering::Acquire) >= self.state.asked.load(Ordering::Acquire)
    }

    /// Waits until every registered name server knows the topic changes so far, but not for ever: whoever is told "done"
    /// asks the name servers next.
    pub async fn settled(&self) {
        let wanted = self.state.asked.load(Ordering::Acquire);
        let settled = async {
            loop {
                let moved = self.state.moved.notified();
                if self.state.settled.load(Ordering::Acquire) >= wanted {
                    return;
                }
                moved.await;
            }
        };
        let _ = tokio::time::timeout(SETTLE_TIMEOUT, settled).await;
    }

    /// A send created this topic: create it on every other master of the cluster.
    pub fn created_by_send(&self, topic: TopicConfig) {
        let _ = self.commands.send(Command::Spread(topic));
    }

    /// Register everything now.
    pub fn register_all(&self) {
        let _ = self.commands.send(Command::All);
    }

    /// What is registered.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Leaves every name server and ends the thread; later requests are ignored.
    pub async fn stop(&self) {
        let (done, wait) = oneshot::channel();
        if self.commands.send(Command::Stop(done)).is_ok() {
            let _ = wait.await;
        }
    }
}

impl Pending {
    /// Starts the thread; it ends with [`Registrar::stop`] or when the broker is gone.
    pub fn start(self, broker: &Arc<Broker>) -> std::io::Result<std::thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let worker = Worker {
            broker: Arc::downgrade(broker),
            state: self.state,
            servers: HashMap::new(),
            resolver: Resolver::from_env(),
            client: RemotingClient::default(),
            calls: JoinSet::new(),
            changes: 0,
        };
        std::thread::Builder::new()
            .name("registration".to_owned())
            .spawn(move || runtime.block_on(worker.run(self.commands)))
    }
}

/// One name server, by address.
struct Server {
    /// Over which it was registered: the name server forgets the broker when this closes.
    connection: Option<Arc<Connection>>,
    retry: Duration,
    /// When to register in full.
    next: Instant,
    /// One registration at a time, so that an older one never arrives after a newer one.
    in_flight: bool,
    /// Something changed while one was on its way.
    again: bool,
    /// Topic changes that it was told.
    told: u64,
}

impl Server {
    fn new(now: Instant) -> Self {
        Self {
            connection: None,
            retry: FIRST_RETRY,
            next: now,
            in_flight: false,
            again: false,
            told: 0,
        }
    }

    fn is_registered(&self) -> bool {
        self.connection.as_ref().is_some_and(|c| c.is_open())
    }
}

/// What became of a registration at one name server.
type Outcome = (SocketAddr, u64, Result<Told, String>);

/// What a name server told by its answer.
struct Told {
    /// The connection that the registration went over.
    connection: Arc<Connection>,
    /// The order topics, if it told them.
    ordered: Option<KVTable>,
    /// To a slave: where its master is, if it is registered.
    master: MasterAddress,
}

struct Worker {
    broker: Weak<Broker>,
    state: Arc<State>,
    servers: HashMap<SocketAddr, Server>,
    resolver: Resolver,
    client: RemotingClient,
    calls: JoinSet<Outcome>,
    /// Topic changes that this thread knows of.
    changes: u64,
}

impl Worker {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut next_lookup = Instant::now();
        let Some(mut role) = self.broker.upgrade().map(|b| b.role.subscribe()) else {
            return;
        };
        loop {
            let Some(broker) = self.broker.upgrade() else {
                return;
            };
            if Instant::now() >= next_lookup {
                self.look_up(&broker).await;
                next_lookup = Instant::now() + interval(&broker);
            }
            self.register_due(&broker);
            drop(broker);
            let idle = self.servers.values().filter(|s| !s.in_flight);
            let wake = idle.map(|s| s.next).fold(next_lookup, Instant::min);
            let command = tokio::select! {
                command = commands.recv() => command,
                Some(outcome) = self.calls.join_next() => {
                    if let (Ok(outcome), Some(broker)) = (outcome, self.broker.upgrade()) {
                        self.note(&broker, outcome);
                    }
                    continue;
                }
                Ok(()) = role.changed() => {
                    self.all_due();
                    continue;
                }
                () = tokio::time::sleep_until(wake) => continue,
            };
            let Some(broker) = self.broker.upgrade() else {
                return;
            };
            match command {
                None => return,
                Some(Command::All) => self.all_due(),
                Some(Command::Topics(topics, number)) => {
                    self.changes = number;
                    self.register_topics(&broker, &topics);
                    self.publish();
                }
                Some(Command::Spread(topic)) => {
                    if broker.config().auto_create_topic_on_all_masters {
                        let servers = self.servers.keys().copied().collect();
                        let client = self.client.clone();
                        tokio::spawn(spread(client, servers, broker, topic));
                    }
                }
                Some(Command::Stop(done)) => {
                    self.unregister(&broker).await;
                    let _ = done.send(());
                    return;
                }
            }
        }
    }

    async fn look_up(&mut self, broker: &Broker) {
        let list = &broker.settings.raw.namesrv_addr;
        if list.is_empty() {
            return;
        }
        let looked_up = tokio::time::timeout(LOOKUP_TIMEOUT, self.resolver.resolve(list)).await;
        let now = Instant::now();
        match looked_up {
            Ok(Ok(addresses)) => {
                // A name that failed to resolve for a moment costs nothing: a name server that answers is kept.
                self.servers.retain(|address, server| {
                    let kept = addresses.contains(address) || server.is_registered();
                    if !kept {
                        tracing::info!(%address, "name server gone");
                    }
                    kept
                });
                for address in addresses {
                    self.servers.entry(address).or_insert_with(|| {
                        tracing::info!(%address, "name server found");
                        Server::new(now)
                    });
                }
            }
            Ok(Err(error)) => self.note_error(format!("cannot resolve {list}: {error}")),
            Err(_) => self.note_error(format!("looking up {list} takes too long")),
        }
        let mut lost = None;
        for (address, server) in &mut self.servers {
            if server.connection.take_if(|c| !c.is_open()).is_some() {
                tracing::warn!(%address, "the name server closed the connection");
                server.next = now;
                lost = Some(format!("{address}: connection closed"));
            }
        }
        if let Some(error) = lost {
            self.note_error(error);
        }
        self.publish();
    }

    fn all_due(&mut self) {
        let now = Instant::now();
        for server in self.servers.values_mut() {
            server.next = now;
            server.again = server.in_flight;
        }
    }

    fn register_due(&mut self, broker: &Arc<Broker>) {
        let now = Instant::now();
        let due = |server: &Server| !server.in_flight && server.next <= now;
        if !self.servers.values().any(due) {
            return;
        }
        if broker.role.now().role == Role::Undecided {
            // Neither master nor slave: nothing to register. The next change of the role makes all of them due.
            for server in self.servers.values_mut().filter(|s| due(s)) {
                server.next = now + LAST_RETRY;
            }
            return;
        }
        let full = Registration::new(broker, broker.topics.table().wrapper(), self.changes);
        let ask_first = !broker.config().force_register;
        for (&address, server) in &mut self.servers {
            if due(server) {
                server.in_flight = true;
                let ask_first = ask_first && server.is_registered();
                let call =
                    full.clone()
                        .send(self.client.clone(), address, timeout(broker), ask_first);
                self.calls.spawn(call);
            }
        }
    }

    fn register_topics(&mut self, broker: &Arc<Broker>, topics: &[String]) {
        let table = broker.topics.table();
        let mut wrapper = TopicConfigSerializeWrapper {
            data_version: *table.version(),
            ..Default::default()
        };
        for topic in topics.iter().filter_map(|t| table.get(t)) {
            wrapper
                .topic_config_table
                .insert(topic.name().to_owned(), topic.config.clone());
        }
        if wrapper.topic_config_table.is_empty() {
            return self.all_due();
        }
        let some = Registration::new(broker, wrapper, self.changes);
        for (&address, server) in &mut self.servers {
            if server.in_flight {
                server.again = true;
            } else if server.is_registered() {
                // One that has no full table yet gets it soon, and would refuse a table of one topic (3.2, rule 4).
                server.in_flight = true;
                let call = some
                    .clone()
                    .send(self.client.clone(), address, timeout(broker), false);
                self.calls.spawn(call);
            }
        }
    }

    fn note(&mut self, broker: &Broker, outcome: Outcome) {
        let period = u64::try_from(broker.config().register_name_server_period).unwrap_or(0);
        let period = Duration::from_millis(period.clamp(*PERIOD_MS.start(), *PERIOD_MS.end()));
        let (address, told, result) = outcome;
        let Some(server) = self.servers.get_mut(&address) else {
            return;
        };
        let now = Instant::now();
        server.in_flight = false;
        match result {
            Ok(Told {
                connection,
                ordered,
                master,
            }) => {
                if !server.is_registered() {
                    tracing::info!(%address, "registered");
                }
                server.connection = Some(connection);
                server.told = told;
                server.retry = FIRST_RETRY;
                server.next = if std::mem::take(&mut server.again) {
                    now
                } else {
                    now + period
                };
                if let Some(ordered) = ordered {
                    broker.topics.update_order_topics(&ordered.table);
                }
                broker.role.update(|now| {
                    // A master that is not registered at the moment is still where it was.
                    if now.role == Role::Slave && master.address.is_some() {
                        now.master = master;
                    }
                });
                self.state.ever.store(true, Ordering::Release);
            }
            Err(error) => {
                if server.connection.take().is_some() {
                    tracing::warn!(%address, error, "registration failed");
                }
                server.again = false;
                server.next = now + server.retry;
                server.retry = (server.retry * 2).min(LAST_RETRY);
                self.note_error(format!("{address}: {error}"));
            }
        }
        self.publish();
    }

    async fn unregister(&mut self, broker: &Broker) {
        let mut calls = JoinSet::new();
        for (&address, _) in self.servers.iter().filter(|(_, s)| s.is_registered()) {
            let command = identity(
                RemotingCommand::request(request_code::UNREGISTER_BROKER),
                broker,
            );
            let client = self.client.clone();
            calls.spawn(async move {
                (
                    address,
                    client
                        .invoke(&address.to_string(), command, UNREGISTER_TIMEOUT)
                        .await
                        .map(|_| ()),
                )
            });
        }
        while let Some(call) = calls.join_next().await {
            if let Ok((address, Err(error))) = call {
                tracing::warn!(%address, %error, "could not unregister");
            }
        }
        self.servers.clear();
        self.publish();
    }

    fn publish(&self) {
        let registered = self.servers.values().filter(|s| s.is_registered()).count();
        self.state
            .known
            .store(self.servers.len(), Ordering::Release);
        self.state.registered.store(registered, Ordering::Release);
        if registered == self.servers.len() {
            *self.state.last_error.lock() = None;
        }
        // With no name server to ask there is nothing to wait for.
        let told = self
            .servers
            .values()
            .filter(|s| s.is_registered())
            .map(|s| s.told);
        let settled = told.min().unwrap_or(self.changes);
        self.state.settled.store(settled, Ordering::Release);
        self.state.moved.notify_waiters();
    }

    fn note_error(&self, error: String) {
        *self.state.last_error.lock() = Some(error);
    }
}

fn interval(broker: &Broker) -> Duration {
    Duration::from_millis(
        u64::try_from(broker.settings.raw.namesrv_resolve_interval_ms).unwrap_or(2_000),
    )
}

fn timeout(broker: &Broker) -> Duration {
    Duration::from_millis(
        u64::try_from(broker.config().register_broker_timeout_mills).unwrap_or(6_000),
    )
}

fn identity(command: RemotingCommand, broker: &Broker) -> RemotingCommand {
    let config = &broker.settings.raw;
    command
        .with_ext("brokerName", config.broker_name.as_str())
        .with_ext("brokerAddr", broker.address())
        .with_ext("clusterName", config.broker_cluster_name.as_str())
        .with_ext("brokerId", broker.role.now().broker_id.to_string())
}

/// One registration, encoded once for all name servers.
#[derive(Clone)]
struct Registration {
    /// Topic changes that it tells of.
    changes: u64,
    command: RemotingCommand,
    question: RemotingCommand,
}

impl Registration {
    fn new(broker: &Broker, mut wrapper: TopicConfigSerializeWrapper, changes: u64) -> Self {
        let config = broker.config();
        let allowed = config.broker_permission;
        if allowed & (perm::READ | perm::WRITE) != perm::READ | perm::WRITE {
            for topic in wrapper.topic_config_table.values_mut() {
                topic.perm &= allowed;
            }
        }
        let question = identity(
            RemotingCommand::request(request_code::QUERY_DATA_VERSION),
            broker,
        )
        .json_body(&wrapper.data_version);
        let body = RegisterBrokerBody {
            topic_config_serialize_wrapper: wrapper,
            ..Default::default()
        };
        let bytes = json::to_vec(&body, json::KeyStyle::Escaped);
        let crc = body_crc(&bytes);
        let command = identity(
            RemotingCommand::request(request_code::REGISTER_BROKER),
            broker,
        )
        .with_ext("haServerAddr", broker.ha_address())
        .with_ext("compressed", "false")
        .with_ext("enableActingMaster", "false")
        .with_ext("bodyCrc32", crc.to_string())
        .with_body(bytes);
        Self {
            changes,
            command,
            question,
        }
    }

    /// `ask_first`: only when the name server has another version of the table.
    async fn send(
        self,
        client: RemotingClient,
        address: SocketAddr,
        timeout: Duration,
        ask_first: bool,
    ) -> Outcome {
        (
            address,
            self.changes,
            self.try_send(&client, &address.to_string(), timeout, ask_first)
                .await,
        )
    }

    async fn try_send(
        self,
        client: &RemotingClient,
        address: &str,
        timeout: Duration,
        ask_first: bool,
    ) -> Result<Told, String> {
        let connection = client
            .connection(address)
            .await
            .map_err(|e| e.to_string())?;
        if ask_first {
            let answer = call(client, address, self.question, timeout).await?;
            if answer.ext("changed") == Some("false") {
                return Ok(Told {
                    connection,
                    ordered: None,
                    master: MasterAddress::default(),
                });
            }
        }
        let answer = call(client, address, self.command, timeout).await?;
        let ordered = match answer.body.is_empty() {
            true => None,
            false => Some(
                json::from_slice(&answer.body)
                    .map_err(|e| format!("answer to a registration: {e}"))?,
            ),
        };
        let text = |name: &str| {
            let value = answer.ext(name).filter(|value| !value.is_empty());
            value.map(str::to_owned)
        };
        Ok(Told {
            connection,
            ordered,
            master: MasterAddress {
                address: text("masterAddr"),
                ha_address: text("haServerAddr"),
            },
        })
    }
}

async fn call(
    client: &RemotingClient,
    address: &str,
    command: RemotingCommand,
    timeout: Duration,
) -> Result<RemotingCommand, String> {
    let answer = client
        .invoke(address, command, timeout)
        .await
        .map_err(|e| e.to_string())?;
    if answer.code == response_code::SUCCESS {
        Ok(answer)
    } else {
        Err(format!(
            "code {} {}",
            answer.code,
            answer.remark.unwrap_or_default()
        ))
    }
}

/// Creates a topic on every other master of the cluster, so that its load does not stick to the broker that met it first.
async fn spread(
    client: RemotingClient,
    servers: Vec<SocketAddr>,
    broker: Arc<Broker>,
    topic: TopicConfig,
) {
    let mut masters: BTreeMap<String, String> = BTreeMap::new();
    let mut have_it: BTreeSet<String> = BTreeSet::new();
    for server in servers {
        let question = RemotingCommand::request(request_code::GET_BROKER_CLUSTER_INFO);
        let Ok(answer) = call(&client, &server.to_string(), question, SPREAD_TIMEOUT).await else {
            continue;
        };
        let Ok(info) = json::from_slice::<ClusterInfo>(&answer.body) else {
            continue;
        };
        for member in info.broker_addr_table.into_values() {
            if member.cluster == broker.settings.raw.broker_cluster_name
                && let Some(address) = member.broker_addrs.get(&MASTER_ID)
            {
                masters.insert(member.broker_name, address.clone());
            }
        }
        // A topic that stands somewhere already keeps the settings it has there.
        let question = RemotingCommand::request(request_code::GET_ROUTEINFO_BY_TOPIC)
            .with_ext("topic", topic.topic_name.as_str())
            .with_ext("acceptStandardJsonOnly", "true");
        if let Ok(answer) = call(&client, &server.to_string(), question, SPREAD_TIMEOUT).await
            && let Ok(route) = json::from_slice::<TopicRouteData>(&answer.body)
        {
            have_it.extend(route.queue_datas.into_iter().map(|q| q.broker_name));
        }
    }
    masters.retain(|name, _| name != broker.name() && !have_it.contains(name));
    let mut calls = JoinSet::new();
    for (name, address) in masters {
        let command = RemotingCommand::request(request_code::UPDATE_AND_CREATE_TOPIC)
            .with_ext("topic", topic.topic_name.as_str())
            .with_ext("defaultTopic", crate::topic::AUTO_CREATE_TOPIC_KEY_TOPIC)
            .with_ext("readQueueNums", topic.read_queue_nums.to_string())
            .with_ext("writeQueueNums", topic.write_queue_nums.to_string())
            .with_ext("perm", topic.perm.to_string())
            .with_ext("topicFilterType", "SINGLE_TAG")
            .with_ext("topicSysFlag", topic.topic_sys_flag.to_string())
            .with_ext("order", topic.order.to_string());
        let client = client.clone();
        calls.spawn(async move { (name, client.invoke(&address, command, SPREAD_TIMEOUT).await) });
    }
    while let Some(call) = calls.join_next().await {
        match call {
            Ok((_, Ok(answer))) if answer.code == response_code::SUCCESS => {}
            Ok((name, Ok(answer))) => tracing::warn!(
                topic = topic.topic_name,
                broker = name,
                code = answer.code,
                remark = answer.remark,
                "could not create the topic there"
            ),
            Ok((name, Err(error))) => {
                tracing::warn!(topic = topic.topic_name, broker = name, %error, "could not create the topic there")
            }
            Err(_) => {}
        }
    }
}
