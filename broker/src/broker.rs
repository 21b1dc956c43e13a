//! The broker's parts and its life: open the store, bind, register, serve; and the other way round at the end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex};
use remoting::http::Health as _;
use remoting::protocol::body::DataVersion;
use remoting::protocol::response_code;
use remoting::server::{self, ServerConfig};
use store::{
    Appended, Arrival, Clock, Disk, PutError, RealDisk, Store, StoreConfig, SystemClock, Watermarks,
};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::ack::{AckTable, AnswerWriter, Level};
use crate::client::{Connections, ConsumerManager, ProducerManager};
use crate::config::{BrokerConfig, FlushDiskType, Settings};
use crate::config_file::{self, Saver};
use crate::dledger;
use crate::dledger::service::Group;
use crate::dledger::tables::{self, GroupTables};
use crate::ha::{self, Ha};
use crate::http::{Metrics, Status};
use crate::longpolling::{Held, PullRequestHoldService};
use crate::offset::ConsumerOffsetManager;
use crate::processor::send_message::{self, InnerMessage};
use crate::processor::{self, FrontDoor, pull_message};
use crate::rebalance_lock::RebalanceLockManager;
use crate::registration::Registrar;
use crate::request_mode::MessageRequestModeManager;
use crate::role::{Role, RoleHolder};
use crate::schedule::{DelayLevels, ScheduleMessageService};
use crate::slave::{self, Slave};
use crate::stats::BrokerStatsManager;
use crate::subscription::SubscriptionGroupManager;
use crate::topic::TopicConfigManager;
use crate::turn;

/// The fast port is this far below the main one.
const FAST_PORT_BELOW: u16 = 2;
/// Threads that may read from disk for pulls at the same time: enough to keep a disk busy, few enough to starve nobody.
const COLD_READERS: usize = 4;
/// Threads for administrative requests that may block.
const BLOCKING_WORKERS: usize = 8;
/// A put of the broker itself waits this long for its write before it counts as failed.
const INNER_PUT_TIMEOUT: Duration = Duration::from_secs(5);
/// Work that may wait for such a thread; more is refused as overload.
const MAX_BLOCKING_WAITING: usize = 10_000;
/// Bytes of administrative requests that are being served or wait; more are refused as overload.
const MAX_REQUEST_BYTES_IN_HAND: usize = 64 * 1024 * 1024;
/// Sends answered by a thread of the store itself; more are left to a worker while it goes on writing or flushing.
const ANSWERED_ON_THE_SPOT: usize = 8;
/// Pulls woken by one batch that are answered on the spot; more go to a thread that may take its time.
const WOKEN_ON_THE_SPOT: usize = 64;
/// How often the small duties run: statistics, flush time-outs.
const TICK: Duration = Duration::from_secs(1);
/// A send that waits for no flush is held this long at most while the disk is slow; clients give up after 3 s.
const HELD_AT_MOST: Duration = Duration::from_secs(1);
const EXPIRE_CLIENTS_EVERY: Duration = Duration::from_secs(10);
/// Output that one connection may leave unread before it is no longer read from.
const OUTBOX_LIMIT: usize = 4 * 1024 * 1024;
/// Used when the machine does not say how much memory it has.
const ASSUMED_MEMORY_BYTES: u64 = 4 << 30;

/// Why a broker did not start; each is one line for the user.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] crate::config::Error),
    /// A port is taken, or not ours to take.
    #[error("cannot listen on {address}")]
    Bind {
        /// Address and port.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The store cannot be opened: in use, not writable, damaged, of another kind.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A file below `config` cannot be read.
    #[error(transparent)]
    ConfigFile(#[from] config_file::Error),
    /// The member of the group cannot begin.
    #[error("the member of the group cannot start")]
    Group(#[source] io::Error),
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Where the broker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Opening the store.
    Starting = 0,
    /// Serving.
    Running = 1,
    /// Refuses sends, serves pulls, leaves the name servers.
    Draining = 2,
    /// Closing.
    Stopped = 3,
}

/// A broker: everything that requests share.
pub struct Broker {
    /// What it was started with.
    pub settings: Settings,
    config: ArcSwap<BrokerConfig>,
    /// Time, injectable.
    pub clock: Arc<dyn Clock>,
    /// The log.
    pub store: Arc<Store>,
    /// Writes the JSON files.
    pub saver: Arc<Saver>,
    /// Topics.
    pub topics: TopicConfigManager,
    /// Consumer groups' settings.
    pub groups: SubscriptionGroupManager,
    /// Consumer offsets.
    pub offsets: ConsumerOffsetManager,
    /// Who consumes by pops.
    pub request_modes: MessageRequestModeManager,
    /// Consumers online.
    pub consumers: ConsumerManager,
    /// Producers online.
    pub producers: ProducerManager,
    /// Connections that sent a heartbeat.
    pub connections: Connections,
    /// Locks of ordered consumers.
    pub locks: RebalanceLockManager,
    /// Delivers delayed messages.
    pub schedule: Arc<ScheduleMessageService>,
    /// Upstream's statistics.
    pub stats: Arc<BrokerStatsManager>,
    /// Sends that wait for the log.
    pub acks: AckTable,
    /// Pulls that wait for messages.
    pub held: PullRequestHoldService,
    /// What it is within its group.
    pub role: RoleHolder,
    /// Replication of the log, as master or slave.
    pub ha: Ha,
    /// The group that elects its own master, when it is a member of one.
    pub group: OnceLock<Group>,
    /// Topics and groups as such a group agrees on them.
    pub(crate) tables: Option<Arc<GroupTables>>,
    /// What it copies from its master beside the log.
    pub slave: Slave,
    /// Asks for registrations.
    pub registrar: Registrar,
    /// Counters of `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Reads from disk for pulls.
    pub cold_reads: BlockingPool,
    /// Administrative requests that read or write files, or wait for the log.
    pub blocking: BlockingPool,
    /// Bounds what requests that are served elsewhere than on their connection's task hold in memory.
    pub(crate) in_hand: Arc<Semaphore>,
    /// When it started, ms since 1970.
    pub boot_timestamp: i64,
    pub(crate) status: Arc<Status>,
    store_host: SocketAddr,
    address: String,
    ha_address: String,
    listen_address: SocketAddr,
    added_properties: Vec<u8>,
    unique_key_prefix: String,
    unique_key_counter: AtomicU32,
    in_memory_total: u64,
    phase: AtomicU8,
    open_connections: AtomicUsize,
    connection_closed: Notify,
    written: WrittenWaiters,
    config_version: Mutex<DataVersion>,
    stop: CancellationToken,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

/// Blocking threads that wait for the log to be written.
#[derive(Default)]
struct WrittenWaiters {
    waiting: AtomicUsize,
    lock: Mutex<()>,
    moved: Condvar,
}

/// Runs work that may block, from any thread: a bounded number at a time, and a bounded number that waits.
pub struct BlockingPool {
    runtime: tokio::runtime::Handle,
    permits: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

impl BlockingPool {
    fn new(threads: usize) -> Self {
        Self {
            runtime: tokio::runtime::Handle::current(),
            permits: Arc::new(Semaphore::new(threads)),
            waiting: Arc::default(),
        }
    }

    /// Runs `work` on a thread that may block, when one of the few is free; false when too much waits already.
    #[must_use]
    pub fn run(&self, work: impl FnOnce() + Send + 'static) -> bool {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_BLOCKING_WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        let (permits, waiting) = (Arc::clone(&self.permits), Arc::clone(&self.waiting));
        self.runtime.spawn(async move {
            let permit = permits.acquire_owned().await;
            let done = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                work();
            });
            let _ = done.await;
            waiting.fetch_sub(1, Ordering::Relaxed);
        });
        true
    }

    /// Waits on a thread that may block.
    pub(crate) fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }
}

impl Broker {
    /// Opens the store, binds the ports, starts everything. Returns when the broker serves; registration follows at once.
    pub async fn start(settings: Settings) -> Result<Arc<Self>, StartError> {
        Self::start_with_clock(settings, Arc::new(SystemClock)).await
    }

    /// The same with a clock of the caller's.
    pub async fn start_with_clock(
        settings: Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, StartError> {
        Self::start_on_disk(settings, clock, Arc::new(RealDisk)).await
    }

    /// The same with the store's file operations of the caller's: a test makes them fail.
    pub async fn start_on_disk(
        settings: Settings,
        clock: Arc<dyn Clock>,
        disk: Arc<dyn Disk>,
    ) -> Result<Arc<Self>, StartError> {
        let mut settings = settings;
        settings.resolve_advertised().await?;
        let raw = settings.raw.clone();
        let listener = bind(SocketAddr::new(settings.bind_address, raw.listen_port)).await?;
        let listen_address = listener.local_addr().map_err(|source| StartError::Bind {
            address: SocketAddr::new(settings.bind_address, raw.listen_port),
            source,
        })?;
        let fast = match raw.listen_port {
            0 => None,
            port => Some(
                bind(SocketAddr::new(
                    settings.bind_address,
                    port - FAST_PORT_BELOW,
                ))
                .await?,
            ),
        };
        let replication = ha::Listener::bind(&settings, listen_address.port())
            .await
            .map_err(|(address, source)| StartError::Bind { address, source })?;
        let status = Arc::new(Status::default());
        let http = match raw.http_port {
            0 => None,
            port => {
                let address = SocketAddr::new(settings.bind_address, port);
                let health: Arc<dyn remoting::http::Health> = Arc::clone(&status) as _;
                Some(
                    remoting::http::serve(address, health)
                        .map_err(|source| StartError::Bind { address, source })?,
                )
            }
        };
        status.keep(http);

        let mut store_config = store_config(&settings, &settings.raw);
        let mut prepared = None;
        if let (Some(group), Some(folder)) = (&settings.dledger, &settings.commit_log_path) {
            let address = SocketAddr::new(settings.bind_address, group.port);
            let ready = dledger::service::prepare(group, folder.clone(), address)
                .map_err(|source| StartError::Bind { address, source })?;
            store_config.frames = Some(store::FrameConfig {
                committed: ready.committed,
            });
            prepared = Some(ready);
        }
        let store_clock = Arc::clone(&clock);
        let opened = tokio::task::spawn_blocking(move || {
            Store::open_with_disk(store_config, store_clock, disk)
        });
        let opened = opened.await;
        let store = match opened {
            Ok(store) => store?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        let tables = prepared.as_ref().map(|prepared| {
            let config = settings.root.join("config");
            let files = tables::Files {
                folder: prepared.folder.clone(),
                topics: config.join("topics.json"),
                groups: config.join("subscriptionGroup.json"),
            };
            GroupTables::new(Arc::clone(&store), files, prepared.tables)
        });
        let broker = Self::build(
            settings,
            clock,
            store,
            tables,
            listen_address,
            replication.port(),
            status,
        )?;
        broker.clone().listen_to_store();
        ha::start(&broker, replication).map_err(StartError::Thread)?;
        let thread = slave::start(&broker, broker.stop.clone()).map_err(StartError::Thread)?;
        broker.threads.lock().push(thread);
        broker.play_role()?;
        if let (Some(prepared), Some(group)) = (prepared, broker.settings.dledger.clone()) {
            let group = Group::start(&broker, prepared, group).map_err(StartError::Group)?;
            let _ = broker.group.set(group);
        }
        broker.serve(listener, false);
        if let Some(fast) = fast {
            broker.serve(fast, true);
        }
        broker.spawn_duties();
        broker.phase.store(Phase::Running as u8, Ordering::Release);
        Ok(broker)
    }

    fn build(
        settings: Settings,
        clock: Arc<dyn Clock>,
        store: Arc<Store>,
        tables: Option<Arc<GroupTables>>,
        listen_address: SocketAddr,
        ha_port: u16,
        status: Arc<Status>,
    ) -> Result<Arc<Self>, StartError> {
        let raw = settings.raw.clone();
        let saver = Arc::new(Saver::start().map_err(StartError::Thread)?);
        let file = |name: &str| -> PathBuf { settings.root.join("config").join(name) };
        let stats = Arc::new(BrokerStatsManager::new(&raw.broker_cluster_name));
        let (registrar, registration) = Registrar::new();
        let topics = TopicConfigManager::load(
            file("topics.json"),
            &raw,
            Arc::clone(&saver),
            Arc::clone(&clock),
            registrar.clone(),
            tables.clone(),
        )?;
        let groups = SubscriptionGroupManager::load(
            file("subscriptionGroup.json"),
            Arc::clone(&saver),
            Arc::clone(&clock),
            tables.clone(),
        )?;
        if let Some(tables) = &tables {
            tables.begin_with(topics.rows(), groups.rows());
        }
        let request_modes =
            MessageRequestModeManager::load(file("messageRequestMode.json"), Arc::clone(&saver))?;
        let offsets = ConsumerOffsetManager::load(file("consumerOffset.json"), Arc::clone(&clock))?;
        let levels = DelayLevels::new(settings.delay_levels.clone());
        let schedule = ScheduleMessageService::load(
            file("delayOffset.json"),
            levels,
            Arc::clone(&store),
            Arc::clone(&clock),
            Arc::clone(&stats),
            Arc::clone(&saver),
            raw.flush_delay_offset_interval.into(),
        )?;
        let port = listen_address.port();
        let store_host = SocketAddr::new(settings.advertised, port);
        let ha_ip: IpAddr = raw.broker_ip2.parse().unwrap_or(settings.advertised);
        let metrics = Arc::new(Metrics::default());
        let writer = AnswerWriter::new(store_host, &raw.region_id, raw.trace_on);
        let added = format!(
            "MSG_REGION\u{1}{}\u{2}TRACE_ON\u{1}{}\u{2}CLUSTER\u{1}{}\u{2}",
            raw.region_id, raw.trace_on, raw.broker_cluster_name
        );
        let broker = Arc::new(Self {
            role: RoleHolder::new(ha::first_role(&raw, &store)),
            ha: Ha::default(),
            group: OnceLock::new(),
            tables,
            slave: Slave::default(),
            request_modes,
            config: ArcSwap::from_pointee(raw),
            boot_timestamp: clock.now_ms(),
            unique_key_prefix: unique_key_prefix(settings.advertised),
            unique_key_counter: AtomicU32::new(0),
            in_memory_total: store::memory_bytes().unwrap_or(ASSUMED_MEMORY_BYTES),
            acks: AckTable::new(writer, Arc::clone(&metrics)),
            held: PullRequestHoldService::default(),
            cold_reads: BlockingPool::new(COLD_READERS),
            blocking: BlockingPool::new(BLOCKING_WORKERS),
            in_hand: Arc::new(Semaphore::new(MAX_REQUEST_BYTES_IN_HAND)),
            consumers: ConsumerManager::default(),
            producers: ProducerManager::default(),
            connections: Connections::default(),
            locks: RebalanceLockManager::default(),
            schedule: Arc::new(schedule),
            address: store_host.to_string(),
            ha_address: SocketAddr::new(ha_ip, ha_port).to_string(),
            added_properties: added.into_bytes(),
            phase: AtomicU8::new(Phase::Starting as u8),
            open_connections: AtomicUsize::new(0),
            connection_closed: Notify::new(),
            written: WrittenWaiters::default(),
            config_version: Mutex::default(),
            stop: CancellationToken::new(),
            tasks: Mutex::default(),
            threads: Mutex::default(),
            settings,
            clock,
            store,
            saver,
            topics,
            groups,
            offsets,
            stats,
            registrar,
            metrics,
            status,
            store_host,
            listen_address,
        });
        broker.status.attach(&broker);
        broker.topics.persist();
        let thread = registration.start(&broker).map_err(StartError::Thread)?;
        broker.threads.lock().push(thread);
        Ok(broker)
    }

    /// Whether all tables are on disk and the name servers know of every topic.
    pub fn is_settled(&self) -> bool {
        self.registrar.is_settled() && (self.tables.is_some() || self.saver.is_idle())
    }

    /// Waits for that. A file that cannot be written, or a name server that is away, holds nobody up for long. Tables that
    /// a group agrees on are in its log, whatever becomes of their files.
    pub async fn settled(&self) {
        self.registrar.settled().await;
        if self.tables.is_none() && !self.saver.is_idle() {
            let saver = Arc::clone(&self.saver);
            let _ = tokio::task::spawn_blocking(move || saver.flush()).await;
        }
    }

    /// Drops what lies beside the table of topics of one that is gone from it: offsets, figures, queues.
    pub(crate) fn forget_topic(&self, topic: &str) -> Result<(), store::Error> {
        self.offsets.remove_topic(topic);
        self.stats.forget_topic(topic);
        self.store.delete_topic(topic)
    }

    /// The same for a consumer group; its offsets stay unless somebody asked for that.
    pub(crate) fn forget_group(&self, group: &str, offsets: bool) {
        if offsets {
            self.offsets.remove_group(group);
        }
        self.stats.forget_group(group);
    }

    /// The configuration as it is now.
    pub fn config(&self) -> Arc<BrokerConfig> {
        self.config.load_full()
    }

    /// Changes the configuration in memory.
    pub fn update_config(&self, change: impl FnOnce(&mut BrokerConfig)) {
        let mut version = self.config_version.lock();
        let before = self.config.load_full();
        let mut config = BrokerConfig::clone(&before);
        change(&mut config);
        config.clamp();
        let registers = config.broker_permission != before.broker_permission;
        self.store
            .reconfigure(&store_config(&self.settings, &config));
        self.config.store(Arc::new(config));
        version.next_version(self.clock.now_ms());
        if registers {
            self.topics.touch();
        }
    }

    /// Counts the changes of the configuration since the start.
    pub fn config_version(&self) -> DataVersion {
        *self.config_version.lock()
    }

    /// Merges values into the file that the broker was started with; the text on the error is for the user. Blocks.
    pub(crate) fn write_config<'a>(
        &self,
        changes: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<(), String> {
        let Some(path) = &self.settings.config_path else {
            return Err("the broker was started without a file".to_owned());
        };
        let _one_writer = self.config_version.lock();
        let text = std::fs::read(path).map_err(|e| e.to_string())?;
        let merged = crate::config::merge_file(&text, changes).map_err(|e| e.to_string())?;
        config_file::write(path, &merged).map_err(|e| e.to_string())
    }

    /// The replica group's name.
    pub fn name(&self) -> &str {
        &self.settings.raw.broker_name
    }

    /// Whether this node takes writes by its role.
    pub fn is_master(&self) -> bool {
        self.role.role() == Role::Master
    }

    /// Where the broker is in its life.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Running,
            2 => Phase::Draining,
            _ => Phase::Stopped,
        }
    }

    /// Whether sends are taken at all, else the code and the remark of their answer; the store may still refuse.
    pub fn accepts_sends(&self) -> Result<(), (i32, String)> {
        if self.phase() != Phase::Running {
            let host = self.settings.advertised;
            return Err((
                response_code::NO_PERMISSION,
                format!("the broker[{host}] sending message is forbidden"),
            ));
        }
        if self.is_master() {
            return Ok(());
        }
        Err(self.not_master())
    }

    /// How a request is refused that only a master serves: by a configured slave as upstream, where somebody elects as one that
    /// is no leader.
    pub fn not_master(&self) -> (i32, String) {
        let role = self.role.now();
        match role.role {
            Role::Slave if role.term == 0 => (
                response_code::SYSTEM_BUSY,
                "[REJECTREQUEST]system busy, start flow control for a while: this broker is a slave"
                    .to_owned(),
            ),
            Role::Slave => (
                response_code::SERVICE_NOT_AVAILABLE,
                "service not available now: this broker does not lead its group".to_owned(),
            ),
            _ => (
                response_code::SERVICE_NOT_AVAILABLE,
                match self.ha.unsettled() {
                    Some(reason) => format!("service not available now: {reason}"),
                    None => "service not available now: the group has no master yet".to_owned(),
                },
            ),
        }
    }

    /// What `/readyz` says: registered with a name server, and writable; the reason when not.
    pub fn ready(&self) -> Result<(), String> {
        self.status.ready()
    }

    /// `brokerIP1:listenPort`, as registered.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Address registered for slaves.
    pub fn ha_address(&self) -> &str {
        &self.ha_address
    }

    /// Address that is listened on, with the port that was taken.
    pub fn listen_address(&self) -> SocketAddr {
        self.listen_address
    }

    /// Host written into records and message ids.
    pub fn store_host(&self) -> SocketAddr {
        self.store_host
    }

    /// Properties that every stored message gets.
    pub(crate) fn added_properties(&self) -> &[u8] {
        &self.added_properties
    }

    /// Highest delay level.
    pub fn max_delay_level(&self) -> i32 {
        self.schedule.levels().max()
    }

    /// Delay of a level.
    pub fn delay_ms(&self, level: i32) -> i64 {
        self.schedule.levels().delay_ms(level)
    }

    /// Bytes at the end of the log that count as "in memory" (`accessMessageInMemoryMaxRatio`).
    pub fn in_memory_bytes(&self) -> u64 {
        let ratio =
            u64::try_from(self.config.load().access_message_in_memory_max_ratio).unwrap_or(0);
        self.in_memory_total / 100 * ratio
    }

    /// A unique key for a message whose producer sent none (4.9).
    pub(crate) fn next_unique_key(&self) -> String {
        let counter = self.unique_key_counter.fetch_add(1, Ordering::Relaxed);
        let [a, b, _, _] = (self.clock.now_ms() as u32).to_be_bytes();
        // Eight digits that change with time, then four that count, as clients build them.
        let low = self.clock.now_ms() as u16;
        format!(
            "{}{a:02X}{b:02X}{low:04X}{:04X}",
            self.unique_key_prefix, counter as u16
        )
    }

    /// Connections that are open.
    pub fn open_connections(&self) -> usize {
        self.open_connections.load(Ordering::Relaxed)
    }

    pub(crate) fn connection_opened(&self) {
        self.open_connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn connection_closed(&self) {
        self.open_connections.fetch_sub(1, Ordering::Relaxed);
        self.connection_closed.notify_waiters();
    }

    /// Stores a message of the broker itself and waits until it is written. Blocks: call it from a thread that may.
    pub(crate) fn put_message(&self, message: &InnerMessage<'_>) -> Result<Appended, PutError> {
        if !self.is_master() {
            return Err(PutError::Busy("this broker is not the master of its group"));
        }
        let era = self.acks.era();
        let appended = send_message::append_inner(self, message)?;
        self.store.drive();
        if self.wait_written(appended.end) && era == self.acks.era() {
            Ok(appended)
        } else {
            Err(PutError::Busy("the log was not written in time"))
        }
    }

    /// The group's log may lose what was appended and is not committed: whoever waits for it learns so.
    pub(crate) fn doubt_what_waits(&self) {
        self.acks.begin_era();
        self.schedule.roll_back();
        let _guard = self.written.lock.lock();
        self.written.moved.notify_all();
    }

    /// Blocks until the log is written up to here; false when that takes too long or the store failed.
    fn wait_written(&self, end: u64) -> bool {
        if self.store.confirm_offset() >= end {
            return true;
        }
        let deadline = Instant::now() + INNER_PUT_TIMEOUT;
        self.written.waiting.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.written.lock.lock();
        let era = self.acks.era();
        let reached = loop {
            if self.store.confirm_offset() >= end {
                break true;
            }
            if self.store.poisoned().is_some()
                || self.acks.era() != era
                || self
                    .written
                    .moved
                    .wait_until(&mut guard, deadline)
                    .timed_out()
            {
                break self.store.confirm_offset() >= end;
            }
        };
        drop(guard);
        self.written.waiting.fetch_sub(1, Ordering::SeqCst);
        reached
    }

    /// Runs again what waits on a queue: its offset was reset, or its topic deleted.
    pub fn wake_pulls(self: &Arc<Self>, topic: &str, queue_id: i32) {
        if let Some(queue) = self.store.find_queue(topic, queue_id) {
            let woken = self.held.wake_queue(&queue);
            if !woken.is_empty() {
                self.resume_elsewhere(woken);
            }
        }
    }

    /// Many pulls at once would hold up whoever woke them.
    fn resume_elsewhere(self: &Arc<Self>, woken: Vec<Held>) {
        let broker = Arc::clone(self);
        self.blocking
            .runtime
            .spawn_blocking(move || pull_message::resume(&broker, woken));
    }

    fn listen_to_store(self: Arc<Self>) {
        let weak = Arc::downgrade(&self);
        self.store.on_arrival(Box::new(move |arrivals| {
            if let Some(broker) = weak.upgrade() {
                broker.arrived(arrivals);
            }
        }));
        let weak: Weak<Self> = Arc::downgrade(&self);
        self.store.on_watermark(Box::new(move |marks| {
            if let Some(broker) = weak.upgrade() {
                broker.watermark_moved(marks);
            }
        }));
    }

    fn arrived(self: &Arc<Self>, arrivals: &[Arrival]) {
        if self.role.role() == Role::Slave && self.tables.is_none() {
            self.slave.arrived(self, arrivals);
        }
        self.schedule.arrived(arrivals);
        let woken = self.held.arrived(arrivals);
        if woken.len() > WOKEN_ON_THE_SPOT {
            self.resume_elsewhere(woken);
        } else if !woken.is_empty() {
            pull_message::resume(self, woken);
        }
    }

    /// The position up to which answers of this level may be given.
    pub(crate) fn reached(&self, level: Level) -> u64 {
        level.reached(&self.store.watermarks(), self.ha.replicated())
    }

    fn watermark_moved(self: &Arc<Self>, marks: Watermarks) {
        self.ha.log_moved();
        if !turn::is_worker() && self.acks.waiting() > ANSWERED_ON_THE_SPOT {
            // A thread of the store that has to write or flush again.
            let broker = Arc::clone(self);
            self.blocking.runtime.spawn(async move {
                let marks = broker.store.watermarks();
                broker.acks.release(&marks, broker.ha.replicated());
            });
        } else {
            self.acks.release(&marks, self.ha.replicated());
        }
        if marks.poisoned {
            let reason = self.store.poisoned();
            self.acks
                .fail_all(reason.as_deref().unwrap_or("the store failed"));
        }
        if self.written.waiting.load(Ordering::SeqCst) > 0 {
            let _guard = self.written.lock.lock();
            self.written.moved.notify_all();
        }
    }

    fn serve(self: &Arc<Self>, listener: TcpListener, fast: bool) {
        let raw = &self.settings.raw;
        let config = ServerConfig {
            max_connections: usize::try_from(raw.max_connections).unwrap_or(1),
            idle: Duration::from_secs(
                u64::try_from(raw.server_channel_max_idle_time_seconds).unwrap_or(120),
            ),
            outbox_limit: OUTBOX_LIMIT,
            ..ServerConfig::default()
        };
        let service = Arc::new(FrontDoor {
            broker: Arc::clone(self),
            fast,
        });
        let stop = self.stop.clone();
        self.spawn(async move {
            if let Err(error) = server::serve(listener, config, service, stop).await {
                tracing::error!(%error, fast, "stopped listening");
            }
        });
    }

    /// Does what only a master does while this broker is one, now and after every change of its role.
    fn play_role(self: &Arc<Self>) -> Result<(), StartError> {
        let mut roles = self.role.subscribe();
        if roles.borrow_and_update().role == Role::Master {
            self.schedule.start().map_err(StartError::Thread)?;
        }
        let (broker, stop) = (Arc::clone(self), self.stop.clone());
        self.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = roles.changed() => if changed.is_err() { return },
                }
                let role = roles.borrow_and_update().role;
                let schedule = Arc::clone(&broker.schedule);
                // Stopping waits for the thread.
                let played = tokio::task::spawn_blocking(move || match role {
                    Role::Master => schedule.start(),
                    Role::Slave | Role::Undecided => {
                        schedule.stop();
                        Ok(())
                    }
                });
                if let Ok(Err(error)) = played.await {
                    tracing::error!(%error, "delayed messages are not delivered");
                }
            }
        });
        Ok(())
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().push(tokio::spawn(task));
    }

    fn spawn_duties(self: &Arc<Self>) {
        let (broker, stop) = (Arc::clone(self), self.stop.clone());
        self.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = broker.held.next_deadline() => {}
                }
                let expired = broker.held.expired(Instant::now());
                if !expired.is_empty() {
                    pull_message::resume(&broker, expired);
                }
            }
        });
        let (broker, stop) = (Arc::clone(self), self.stop.clone());
        self.spawn(async move {
            let mut tick = tokio::time::interval(TICK);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            let (mut offsets_saved, mut clients_expired) = (Instant::now(), Instant::now());
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = tick.tick() => {}
                }
                let now = Instant::now();
                let config = broker.config();
                let now_ms = broker.clock.now_ms();
                broker.stats.tick(now_ms, local_day(now_ms));
                let timeout =
                    Duration::from_millis(u64::try_from(config.sync_flush_timeout).unwrap_or(0));
                if let Some(before) = now.checked_sub(timeout) {
                    broker.acks.expire(before);
                }
                if let Some(before) = now.checked_sub(HELD_AT_MOST) {
                    let confirm = broker.store.watermarks().confirm;
                    let replicated = broker.ha.replicated();
                    broker.acks.release_held(confirm, replicated, before);
                }
                let every = Duration::from_millis(
                    u64::try_from(config.flush_consumer_offset_interval).unwrap_or(0),
                );
                if now - offsets_saved >= every {
                    offsets_saved = now;
                    broker.offsets.persist(&broker.saver);
                }
                if now - clients_expired >= EXPIRE_CLIENTS_EVERY {
                    clients_expired = now;
                    processor::client_manage::expire_clients(&broker);
                }
            }
        });
    }

    /// Leaves the name servers, serves pulls a while longer, puts everything on disk. Returns when all is done.
    pub async fn shutdown(self: &Arc<Self>) {
        if self.phase.swap(Phase::Draining as u8, Ordering::AcqRel) >= Phase::Draining as u8 {
            return;
        }
        if self.group.get().is_some() {
            let broker = Arc::clone(self);
            let handed = tokio::task::spawn_blocking(move || {
                if let Some(group) = broker.group.get() {
                    group.retire();
                }
            });
            let _ = handed.await;
        }
        self.registrar.stop().await;
        let drain = tokio::time::sleep(self.settings.shutdown_drain);
        tokio::pin!(drain);
        loop {
            let closed = self.connection_closed.notified();
            if self.open_connections() == 0 {
                break;
            }
            tokio::select! {
                () = &mut drain => break,
                () = closed => {}
            }
        }
        self.ha.drained(self, self.settings.shutdown_drain).await;
        self.phase.store(Phase::Stopped as u8, Ordering::Release);
        self.acks.give_up_replicated();
        self.stop.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            let _ = task.await;
        }
        let broker = Arc::clone(self);
        let closing = tokio::task::spawn_blocking(move || broker.close());
        let _ = closing.await;
    }

    fn close(&self) {
        self.schedule.stop();
        self.ha.stop();
        if let Some(group) = self.group.get() {
            group.stop();
        }
        self.offsets.persist(&self.saver);
        self.groups.persist();
        self.topics.persist();
        if !self.saver.flush() {
            tracing::error!("some config files could not be written");
        }
        self.saver.stop();
        self.store.shutdown();
        self.status.stop();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker")
            .field("name", &self.settings.raw.broker_name)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Bind { address, source })
}

fn store_config(settings: &Settings, raw: &BrokerConfig) -> StoreConfig {
    fn ms(value: i32) -> Duration {
        Duration::from_millis(u64::try_from(value).unwrap_or(0))
    }
    fn size<T: TryFrom<i64>>(value: impl Into<i64>, otherwise: T) -> T {
        T::try_from(value.into()).unwrap_or(otherwise)
    }
    let base = StoreConfig::new(&settings.root);
    StoreConfig {
        commit_log_path: settings.commit_log_path.clone(),
        segment_size: size(raw.mapped_file_size_commit_log, base.segment_size),
        consume_queue_file_size: size(
            raw.mapped_file_size_consume_queue,
            base.consume_queue_file_size,
        ),
        flush: match raw.flush_disk_type {
            FlushDiskType::AsyncFlush => store::FlushDiskType::AsyncFlush,
            FlushDiskType::SyncFlush => store::FlushDiskType::SyncFlush,
        },
        flush_interval: ms(raw.flush_interval_commit_log),
        flush_least_pages: size(raw.flush_commit_log_least_pages, base.flush_least_pages),
        flush_thorough_interval: ms(raw.flush_commit_log_thorough_interval),
        tail_ring_bytes: size(raw.tail_ring_bytes, base.tail_ring_bytes),
        max_message_size: size(raw.max_message_size, base.max_message_size),
        max_hash_slot_num: size(raw.max_hash_slot_num, base.max_hash_slot_num),
        max_index_num: size(raw.max_index_num, base.max_index_num),
        message_index_enable: raw.message_index_enable,
        file_reserved_hours: size(raw.file_reserved_time, base.file_reserved_hours),
        delete_when: crate::config::parse_delete_when(&raw.delete_when)
            .unwrap_or_else(|| settings.delete_when.clone()),
        disk_max_used_space_ratio: size(
            raw.disk_max_used_space_ratio,
            base.disk_max_used_space_ratio,
        ),
        disk_space_clean_forcibly_ratio: size(
            raw.disk_space_clean_forcibly_ratio,
            base.disk_space_clean_forcibly_ratio,
        ),
        disk_space_warning_level_ratio: size(
            raw.disk_space_warning_level_ratio,
            base.disk_space_warning_level_ratio,
        ),
        clean_file_forcibly_enable: raw.clean_file_forcibly_enable,
        delete_file_batch_max: size(raw.delete_file_batch_max, base.delete_file_batch_max),
        clean_resource_interval: ms(raw.clean_resource_interval),
        max_transfer_bytes_in_memory: size(
            raw.max_transfer_bytes_on_message_in_memory,
            base.max_transfer_bytes_in_memory,
        ),
        max_transfer_count_in_memory: size(
            raw.max_transfer_count_on_message_in_memory,
            base.max_transfer_count_in_memory,
        ),
        max_transfer_bytes_on_disk: size(
            raw.max_transfer_bytes_on_message_in_disk,
            base.max_transfer_bytes_on_disk,
        ),
        max_transfer_count_on_disk: size(
            raw.max_transfer_count_on_message_in_disk,
            base.max_transfer_count_on_disk,
        ),
        access_message_in_memory_max_ratio: size(
            raw.access_message_in_memory_max_ratio,
            base.access_message_in_memory_max_ratio,
        ),
        delay_levels_ms: settings
            .delay_levels
            .iter()
            .map(|d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
            .collect(),
        ..base
    }
}

/// Number of the local day, for "yesterday" and "today" in the statistics.
fn local_day(now_ms: i64) -> i64 {
    let now = jiff::Timestamp::from_millisecond(now_ms).unwrap_or_default();
    let zone = jiff::tz::TimeZone::system();
    (now_ms / 1000 + i64::from(zone.to_offset(now).seconds())).div_euclid(86_400)
}

fn unique_key_prefix(ip: IpAddr) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02X}")).collect::<String>();
    let ip = match ip {
        IpAddr::V4(ip) => hex(&ip.octets()),
        IpAddr::V6(ip) => hex(&ip.octets()),
    };
    // Clients put a hash of their class loader here; ours tells two starts with the same process id apart.
    let start = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() as u32);
    format!("{ip}{:04X}{start:08X}", std::process::id() as u16)
}
