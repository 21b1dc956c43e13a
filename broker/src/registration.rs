//! Tells every name server what this broker has: in full at start and every 30 s, the changed topics at once, and good-bye.
//!
//! Runs on a thread and a runtime of its own, so that neither a slow disk nor a busy connection ever silences it. The names
//! in `namesrvAddr` are looked up again and again, so name servers come, go and move without a restart here. One
//! connection per name server stays open: a name server drops a broker whose connection closes.
//!
//! A broker registers as what it is now ([`crate::role`]), at once after each change of role; one that is undecided leaves
//! the name servers. A slave learns from the answers where its master is, and asks every second while nobody knows.

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
use crate::role::{MasterAddress, Role, RoleNow};
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
/// A slave asks a name server that knows no master of its group again after this long.
const LOOK_FOR_MASTER_EVERY: Duration = Duration::from_secs(1);

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

    /// What a name server says of its own accord: NOTIFY_MIN_BROKER_ID_CHANGE (905) when a group's smallest id came or went.
    /// Who asks now learns of the master that came, or that there is none.
    fn notified(&self, name: &str, request: &RemotingCommand) -> Option<RemotingCommand> {
        if request.code != request_code::NOTIFY_MIN_BROKER_ID_CHANGE {
            return Some(RemotingCommand::not_supported(request.code));
        }
        if request.ext("brokerName") == Some(name) {
            self.register_all();
        }
        Some(RemotingCommand::response(response_code::SUCCESS))
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
        let client = RemotingClient::default();
        let (registrar, name) = (broker.registrar.clone(), broker.name().to_owned());
        client.set_handler(move |_, request| registrar.notified(&name, &request));
        let worker = Worker {
            broker: Arc::downgrade(broker),
            state: self.state,
            servers: HashMap::new(),
            resolver: Resolver::from_env(),
            client,
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
    /// The id that it knows this broker by.
    broker_id: i64,
    /// Where it said that this slave's master is, and when.
    master: Option<(Instant, MasterAddress)>,
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
            broker_id: -1,
            master: None,
        }
    }

    fn is_registered(&self) -> bool {
        self.connection.as_ref().is_some_and(|c| c.is_open())
    }
}

/// What became of a registration at one name server.
struct Outcome {
    address: SocketAddr,
    /// Topic changes that it told of.
    told: u64,
    /// As whom it registered.
    broker_id: i64,
    result: Result<Registered, String>,
}

/// What a name server said to a registration.
struct Registered {
    connection: Arc<Connection>,
    /// The order topics, if it told them.
    ordered: Option<KVTable>,
    /// Where a slave's master is; nothing when it was only asked for its version of the table.
    master: Option<MasterAddress>,
}

/// What the name servers know together of a slave's master: the newest word of those that know one. That all of them know none
/// is word that it is gone; that none of them can be asked is no word. The replication address stays as it was, as upstream
/// keeps it: a stream that still flows is not cut because a name server restarted.
fn told_master(
    words: impl Iterator<Item = (Instant, MasterAddress)>,
    before: &MasterAddress,
    own: &str,
) -> MasterAddress {
    let mut nobody = true;
    let known = words
        .inspect(|_| nobody = false)
        .filter(|(_, master)| master.address.as_deref().is_some_and(|a| a != own))
        .max_by_key(|(when, _)| *when)
        .map(|(_, master)| master);
    match known {
        Some(master) => MasterAddress {
            ha_address: master.ha_address.or_else(|| before.ha_address.clone()),
            ..master
        },
        None if nobody => before.clone(),
        None => MasterAddress {
            address: None,
            ha_address: before.ha_address.clone(),
        },
    }
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
        let Some(mut roles) = self.broker.upgrade().map(|b| b.role.subscribe()) else {
            return;
        };
        let mut registers_as = identity_of(&roles.borrow_and_update());
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
                Ok(()) = roles.changed() => {
                    let now = identity_of(&roles.borrow_and_update());
                    if now != std::mem::replace(&mut registers_as, now) {
                        let (id, _) = now;
                        tracing::info!(broker_id = id, "another role, another registration");
                        self.all_due();
                        if let Some(broker) = self.broker.upgrade().filter(|_| id < 0) {
                            self.unregister(&broker).await;
                        }
                    }
                    continue;
                }
                Some(outcome) = self.calls.join_next() => {
                    if let (Ok(outcome), Some(broker)) = (outcome, self.broker.upgrade()) {
                        self.note(&broker, outcome);
                        if broker.role.role() == Role::Undecided {
                            // It became so while the registration was on its way.
                            self.unregister(&broker).await;
                        }
                    }
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
                    self.await_calls(&broker).await;
                    self.unregister(&broker).await;
                    self.servers.clear();
                    self.publish();
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
        let role = broker.role.now();
        if role.role == Role::Undecided {
            let later = now + LAST_RETRY;
            self.servers
                .values_mut()
                .for_each(|s| s.next = s.next.max(later));
            return;
        }
        let due = |server: &Server| !server.in_flight && server.next <= now;
        if !self.servers.values().any(due) {
            return;
        }
        let full = Registration::new(broker, &role, broker.topics.table().wrapper(), self.changes);
        // Only the answer to a whole registration tells a slave where its master is.
        // Where a master is elected, its place may have been taken since by one that did not know yet that it is none.
        let ask_first =
            !broker.config().force_register && role.role == Role::Master && role.term == 0;
        for (&address, server) in &mut self.servers {
            if due(server) {
                server.in_flight = true;
                let ask_first =
                    ask_first && server.is_registered() && server.broker_id == role.broker_id;
                let call =
                    full.clone()
                        .send(self.client.clone(), address, timeout(broker), ask_first);
                self.calls.spawn(call);
            }
        }
    }

    fn register_topics(&mut self, broker: &Arc<Broker>, topics: &[String]) {
        let role = broker.role.now();
        if role.role == Role::Undecided {
            return;
        }
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
        let some = Registration::new(broker, &role, wrapper, self.changes);
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
        let Outcome {
            address,
            told,
            broker_id,
            result,
        } = outcome;
        let Some(server) = self.servers.get_mut(&address) else {
            return;
        };
        let now = Instant::now();
        let role = broker.role.now();
        server.in_flight = false;
        match result {
            Ok(registered) => {
                if !server.is_registered() || server.broker_id != broker_id {
                    tracing::info!(%address, broker_id, "registered");
                }
                server.connection = Some(registered.connection);
                server.broker_id = broker_id;
                server.told = told;
                server.retry = FIRST_RETRY;
                let looks_for_master = role.role == Role::Slave
                    && registered
                        .master
                        .as_ref()
                        .is_some_and(|m| m.address.is_none());
                if let Some(master) = registered.master {
                    server.master = Some((now, master));
                }
                // The role may have changed while the registration was on its way.
                server.next = if std::mem::take(&mut server.again) || broker_id != role.broker_id {
                    now
                } else if looks_for_master {
                    now + LOOK_FOR_MASTER_EVERY
                } else {
                    now + period
                };
                if let Some(ordered) = registered.ordered.filter(|_| role.role == Role::Master) {
                    broker.topics.update_order_topics(&ordered.table);
                }
                self.state.ever.store(true, Ordering::Release);
                self.learn_master(broker);
            }
            Err(error) => {
                if server.connection.take().is_some() {
                    tracing::warn!(%address, error, "registration failed");
                }
                server.again = false;
                server.master = None;
                server.next = now + server.retry;
                server.retry = (server.retry * 2).min(LAST_RETRY);
                self.note_error(format!("{address}: {error}"));
            }
        }
        self.publish();
    }

    /// Puts what the name servers said of a slave's master into its role; an election knows better.
    fn learn_master(&self, broker: &Broker) {
        let words = self.servers.values().filter(|s| s.is_registered());
        let words = words.filter_map(|s| s.master.clone());
        broker.role.update(|role| {
            if role.role != Role::Slave || role.term != 0 {
                return;
            }
            let mut master = told_master(words, &role.master, broker.address());
            // A name server that began anew knows nobody for a while; the master itself knows better.
            if master.address.is_none() && broker.slave.master_answers() {
                master = role.master.clone();
            }
            if role.master != master {
                tracing::info!(?master, "the name servers' word of the master");
                role.master = master;
            }
        });
    }

    /// Waits for the registrations on their way, so that none of them arrives behind the farewell, and the farewell is said
    /// as whom they named.
    async fn await_calls(&mut self, broker: &Broker) {
        let until = Instant::now() + UNREGISTER_TIMEOUT;
        while let Ok(Some(call)) = tokio::time::timeout_at(until, self.calls.join_next()).await {
            if let Ok(outcome) = call {
                self.note(broker, outcome);
            }
        }
    }

    /// Leaves every name server, as whom it knows this broker.
    ///
    /// A name server of 4.x takes away whoever has the id, and where a master is elected somebody else may have the
    /// master's by now. So one that was master takes its own id first, which takes its own address from the other.
    async fn unregister(&mut self, broker: &Broker) {
        let mut calls = JoinSet::new();
        let own = broker.settings.dledger.as_ref().map(|group| RoleNow {
            broker_id: i64::try_from(group.id).unwrap_or(i64::MAX),
            ..RoleNow::clone(&broker.role.now())
        });
        let as_itself = own.map(|role| {
            let table = broker.topics.table().wrapper();
            Registration::new(broker, &role, table, self.changes)
        });
        for (&address, server) in self.servers.iter_mut().filter(|(_, s)| s.is_registered()) {
            let first = as_itself
                .clone()
                .filter(|own| own.broker_id != server.broker_id);
            let known_as = first.as_ref().map_or(server.broker_id, |own| own.broker_id);
            let command = identity(
                RemotingCommand::request(request_code::UNREGISTER_BROKER),
                broker,
                known_as,
            );
            server.connection = None;
            server.master = None;
            let client = self.client.clone();
            calls.spawn(async move {
                let to = address.to_string();
                let leave = async {
                    if let Some(first) = first {
                        call(&client, &to, first.command, UNREGISTER_TIMEOUT).await?;
                    }
                    call(&client, &to, command, UNREGISTER_TIMEOUT).await
                };
                (address, leave.await)
            });
        }
        while let Some(call) = calls.join_next().await {
            if let Ok((address, Err(error))) = call {
                tracing::warn!(%address, error, "could not unregister");
            }
        }
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

/// What another registration follows from: the id, and a master's term. One that was elected again may have lost its place
/// to another meanwhile, without having seen it.
fn identity_of(role: &RoleNow) -> (i64, u64) {
    match role.role {
        Role::Master => (role.broker_id, role.term),
        Role::Slave | Role::Undecided => (role.broker_id, 0),
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

fn identity(command: RemotingCommand, broker: &Broker, broker_id: i64) -> RemotingCommand {
    let config = &broker.settings.raw;
    command
        .with_ext("brokerName", config.broker_name.as_str())
        .with_ext("brokerAddr", broker.address())
        .with_ext("clusterName", config.broker_cluster_name.as_str())
        .with_ext("brokerId", broker_id.to_string())
}

/// One registration, encoded once for all name servers.
#[derive(Clone)]
struct Registration {
    /// Topic changes that it tells of.
    changes: u64,
    /// As whom it registers.
    broker_id: i64,
    command: RemotingCommand,
    question: RemotingCommand,
}

impl Registration {
    fn new(
        broker: &Broker,
        role: &RoleNow,
        mut wrapper: TopicConfigSerializeWrapper,
        changes: u64,
    ) -> Self {
        let config = broker.config();
        let broker_id = role.broker_id;
        // A name server of 5.x gives an id to nobody who was elected before the one that has it.
        wrapper.data_version.state_version = i64::try_from(role.term).unwrap_or(i64::MAX);
        let allowed = config.broker_permission;
        if allowed & (perm::READ | perm::WRITE) != perm::READ | perm::WRITE {
            for topic in wrapper.topic_config_table.values_mut() {
                topic.perm &= allowed;
            }
        }
        let question = identity(
            RemotingCommand::request(request_code::QUERY_DATA_VERSION),
            broker,
            broker_id,
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
            broker_id,
        )
        .with_ext("haServerAddr", broker.ha_address())
        .with_ext("compressed", "false")
        .with_ext("enableActingMaster", "false")
        .with_ext("bodyCrc32", crc.to_string())
        .with_body(bytes);
        Self {
            changes,
            broker_id,
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
        Outcome {
            address,
            told: self.changes,
            broker_id: self.broker_id,
            result: self
                .try_send(&client, &address.to_string(), timeout, ask_first)
                .await,
        }
    }

    async fn try_send(
        self,
        client: &RemotingClient,
        address: &str,
        timeout: Duration,
        ask_first: bool,
    ) -> Result<Registered, String> {
        let connection = client
            .connection(address)
            .await
            .map_err(|e| e.to_string())?;
        if ask_first {
            let answer = call(client, address, self.question, timeout).await?;
            if answer.ext("changed") == Some("false") {
                return Ok(Registered {
                    connection,
                    ordered: None,
                    master: None,
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
        let told = |field| {
            answer
                .ext(field)
                .filter(|a| !a.is_empty())
                .map(str::to_owned)
        };
        Ok(Registered {
            connection,
            ordered,
            master: Some(MasterAddress {
                address: told("masterAddr"),
                ha_address: told("haServerAddr"),
            }),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn master(address: Option<&str>, ha: Option<&str>) -> MasterAddress {
        MasterAddress {
            address: address.map(str::to_owned),
            ha_address: ha.map(str::to_owned),
        }
    }

    #[test]
    fn a_master_that_was_elected_again_registers_again_and_a_slave_does_not() {
        let role = |role: Role, broker_id: i64, term: u64| RoleNow {
            role,
            broker_id,
            sync: true,
            master: MasterAddress::default(),
            term,
        };
        let of = |of: Role, id: i64, term: u64| identity_of(&role(of, id, term));
        assert_ne!(of(Role::Master, 0, 3), of(Role::Master, 0, 5));
        assert_ne!(of(Role::Master, 0, 3), of(Role::Slave, 1, 3));
        assert_eq!(of(Role::Slave, 2, 3), of(Role::Slave, 2, 4));
    }

    #[test]
    fn the_newest_word_of_a_master_counts_and_none_means_gone_but_nobody_to_ask_does_not() {
        let (old, new) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let (a, b) = (
            master(Some("1:1"), Some("1:2")),
            master(Some("2:1"), Some("2:2")),
        );
        let none = master(None, None);
        let told = |words: Vec<(Instant, MasterAddress)>, before: &MasterAddress| {
            told_master(words.into_iter(), before, "9:9")
        };
        assert_eq!(told(vec![(new, b.clone()), (old, a.clone())], &none), b);
        assert_eq!(
            told(vec![(old, a.clone()), (new, none.clone())], &none),
            a,
            "a name server that just began knows less, not more"
        );
        assert_eq!(
            told(vec![(new, none.clone())], &a),
            master(None, Some("1:2")),
            "the stream is kept"
        );
        assert_eq!(told(vec![], &a), a);
        assert_eq!(
            told(vec![(new, master(Some("9:9"), Some("9:8")))], &none),
            none,
            "nobody is his own master"
        );
    }
}
