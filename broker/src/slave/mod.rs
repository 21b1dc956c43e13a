//! What a slave does beside copying the log: it copies its master's tables, and knows whether the master answers.
//!
//! Upstream `SlaveSynchronize`: topics (21), groups (201), consumer offsets (43), delay offsets (45) and request modes (402),
//! asked for again and again, and topics at once when a record of an unknown topic comes with the log. In a group that elects its
//! master topics and groups are entries of the log ([`crate::dledger::tables`]), and only the rest is asked for. All of it on a thread
//! of its own, never on that of the replication. All requests go to the master's main port: one connection, which is also how a
//! slave notices within moments that its master is gone.

pub mod merge;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use remoting::protocol::body::{
    ConsumerOffsetSerializeWrapper, DataVersion, DelayOffsetSerializeWrapper,
    MessageRequestModeSerializeWrapper, SubscriptionGroupWrapper, TopicConfig,
    TopicConfigSerializeWrapper,
};
use remoting::protocol::{RemotingCommand, json, request_code, response_code};
use remoting::{Connection, RemotingClient};
use store::Arrival;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::merge::{Next, OffsetTable, Page, Pages};
use crate::broker::Broker;
use crate::role::Role;

/// Longest wait for one answer of the master.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Topics and groups change seldom and their tables are large: they are asked for in every so manyth round.
const TABLES_EVERY: u32 = 3;
/// Rows of one page, where the master knows pages.
const ROWS_OF_A_PAGE: usize = 2_000;
/// Two questions for the sake of unknown topics are this far apart, so that a burst of new topics is one.
const UNKNOWN_TOPICS_EVERY: Duration = Duration::from_millis(50);
/// Unknown topics remembered at a time; more than this are found by the next round.
const MOST_UNKNOWN_TOPICS: usize = 1_024;
/// A log that holds something is compared with the master's before tables are copied, if that takes no longer than this.
const COMPARISON_PATIENCE: Duration = Duration::from_secs(2);
const COMPARISON_PAUSE: Duration = Duration::from_millis(10);
/// After so many rounds in vain the name servers are asked again where the master is.
const LOOK_AGAIN_AFTER: u32 = 3;

/// What others may know of a slave's copies.
#[derive(Default)]
pub struct Slave {
    /// Topics met in the log that nobody here knows.
    unknown: Mutex<HashSet<Box<str>>>,
    /// There may be some: looked at before the lock is taken.
    wanted: Notify,
    /// Over which the master answered last.
    connection: Mutex<Option<Arc<Connection>>>,
    answers: AtomicBool,
    /// When all tables were copied last, ms since 1970; 0 for never.
    copied_ms: AtomicI64,
}

impl std::fmt::Debug for Slave {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slave")
            .field("answers", &self.answers)
            .field("copied_ms", &self.copied_ms)
            .finish_non_exhaustive()
    }
}

impl Slave {
    /// Records came with the log. Called on the thread that dispatches them.
    pub(crate) fn arrived(&self, broker: &Broker, arrivals: &[Arrival]) {
        let topics = broker.topics.table();
        let mut last: Option<&str> = None;
        for arrival in arrivals {
            let topic = arrival.queue.topic();
            if last == Some(topic) {
                continue;
            }
            last = Some(topic);
            if topics.get(topic).is_none() {
                let mut unknown = self.unknown.lock();
                if unknown.len() < MOST_UNKNOWN_TOPICS && unknown.insert(topic.into()) {
                    self.wanted.notify_one();
                }
            }
        }
    }

    /// Whether the master answered the last question and its connection stands.
    pub fn master_answers(&self) -> bool {
        self.answers.load(Ordering::Acquire)
            && self.connection.lock().as_ref().is_some_and(|c| c.is_open())
    }

    /// When all tables were copied last, ms since 1970; 0 for never.
    pub fn copied_ms(&self) -> i64 {
        self.copied_ms.load(Ordering::Acquire)
    }

    fn answered(&self, connection: Option<Arc<Connection>>) {
        self.answers.store(connection.is_some(), Ordering::Release);
        *self.connection.lock() = connection;
    }
}

/// Starts the thread, which copies while the broker is a slave and ends with `stop`.
pub(crate) fn start(
    broker: &Arc<Broker>,
    stop: CancellationToken,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let broker = Arc::clone(broker);
    std::thread::Builder::new()
        .name("slave-metadata".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = Synchroniser::new(broker).run() => {}
                }
            });
        })
}

struct Synchroniser {
    broker: Arc<Broker>,
    client: RemotingClient,
    /// What the master said last of consumer offsets; nothing after an absence.
    seen: Option<OffsetTable>,
    /// Topics that the master does not know either: not asked for again until its table changes or a round has passed.
    absent: HashSet<Box<str>>,
}

impl Synchroniser {
    fn new(broker: Arc<Broker>) -> Self {
        Self {
            broker,
            client: RemotingClient::default(),
            seen: None,
            absent: HashSet::new(),
        }
    }

    async fn run(mut self) {
        let mut roles = self.broker.role.subscribe();
        loop {
            let role = Arc::clone(&roles.borrow_and_update());
            match &role.master.address {
                Some(master) if role.role == Role::Slave => {
                    let (broker, master) = (Arc::clone(&self.broker), master.clone());
                    let elsewhere = async {
                        loop {
                            if roles.changed().await.is_err() {
                                std::future::pending::<()>().await;
                            }
                            let now = roles.borrow_and_update();
                            if now.role != Role::Slave
                                || now.master.address.as_deref() != Some(&*master)
                            {
                                return;
                            }
                        }
                    };
                    tokio::select! {
                        () = self.follow(&master) => {}
                        () = elsewhere => roles.mark_changed(),
                    }
                    broker.slave.answered(None);
                    self.client.disconnect(&master);
                    self.seen = None;
                }
                _ => {}
            }
            if roles.changed().await.is_err() {
                return;
            }
        }
    }

    /// Round after round with one master; the caller ends it.
    async fn follow(&mut self, master: &str) {
        let mut round: u32 = 0;
        let mut failed: u32 = 0;
        loop {
            let begun = Instant::now();
            match self.round(master, round.is_multiple_of(TABLES_EVERY)).await {
                Ok(()) => {
                    if failed > 0 {
                        tracing::info!(master, "the master answers again");
                    }
                    failed = 0;
                    round = round.wrapping_add(1);
                }
                Err(error) => {
                    if failed == 0 {
                        tracing::warn!(master, error, "cannot copy the master's tables");
                    }
                    self.lost();
                    failed += 1;
                    // It may have moved.
                    if failed.is_multiple_of(LOOK_AGAIN_AFTER) {
                        self.broker.registrar.register_all();
                    }
                    round = 0;
                }
            }
            let every = self.broker.config().slave_sync_interval_ms;
            let next = begun + Duration::from_millis(u64::try_from(every).unwrap_or(0));
            self.rest(master, next).await;
        }
    }

    fn lost(&mut self) {
        self.broker.slave.answered(None);
        self.seen = None;
        self.absent.clear();
    }

    /// Until the next round, and topics at once where an unknown one came with the log.
    async fn rest(&mut self, master: &str, until: Instant) {
        let broker = Arc::clone(&self.broker);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                () = broker.slave.wanted.notified() => {}
            }
            tokio::time::sleep(UNKNOWN_TOPICS_EVERY).await;
            if self.has_unknown() && self.unknown_topics(master).await.is_err() {
                self.lost();
                return;
            }
        }
    }

    /// Drops from the unknown topics what is known by now, or that the master does not know either.
    fn has_unknown(&self) -> bool {
        let table = self.broker.topics.table();
        let mut unknown = self.broker.slave.unknown.lock();
        unknown.retain(|topic| table.get(topic).is_none() && !self.absent.contains(topic));
        !unknown.is_empty()
    }

    async fn unknown_topics(&mut self, master: &str) -> Result<(), String> {
        // Those met while the answer is on its way need another question.
        let unknown = std::mem::take(&mut *self.broker.slave.unknown.lock());
        self.may_copy(master).await?;
        self.topics(master).await?;
        let table = self.broker.topics.table();
        let (known, absent): (Vec<_>, Vec<_>) =
            unknown.into_iter().partition(|t| table.get(t).is_some());
        if !known.is_empty() {
            tracing::info!(topics = ?known, "met in the log and copied from the master");
        }
        self.absent.extend(absent);
        Ok(())
    }

    /// A master that does not serve yet may have lost its tables, and takes them back from here.
    /// Nor are the tables of a master copied whose log was refused.
    async fn may_copy(&self, master: &str) -> Result<(), String> {
        let broker = &self.broker;
        if broker.settings.raw.enable_dleger_commit_log {
            return Ok(());
        }
        if crate::ha::is_undecided(&self.client, master).await {
            return Err(format!("{master} does not serve as master yet"));
        }
        let holds = broker.store.written() > broker.store.min_phy_offset();
        let until = Instant::now() + COMPARISON_PATIENCE;
        while holds && broker.ha.link.now().refused.is_none() && Instant::now() < until {
            tokio::time::sleep(COMPARISON_PAUSE).await;
        }
        match broker.ha.link.now().refused {
            Some(true) => Err(format!(
                "the log of {master} has nothing in common with the one here"
            )),
            _ => Ok(()),
        }
    }

    async fn round(&mut self, master: &str, tables: bool) -> Result<(), String> {
        self.may_copy(master).await?;
        if tables && self.broker.tables.is_none() {
            self.absent.clear();
            self.topics(master).await?;
            self.groups(master).await?;
        }
        self.offsets(master).await?;
        self.delays(master).await?;
        if tables {
            self.request_modes(master).await?;
        }
        let broker = &self.broker;
        let connection = self.client.connection(master).await;
        broker.slave.answered(connection.ok());
        broker
            .slave
            .copied_ms
            .store(broker.clock.now_ms(), Ordering::Release);
        Ok(())
    }

    async fn topics(&self, master: &str) -> Result<(), String> {
        let (version, topics) = topics_of(&self.client, master).await?;
        self.broker.topics.follow(version, topics);
        Ok(())
    }

    async fn groups(&self, master: &str) -> Result<(), String> {
        let groups = groups_of(&self.client, master).await?;
        self.broker.groups.follow(groups);
        Ok(())
    }

    async fn offsets(&mut self, master: &str) -> Result<(), String> {
        let body = offsets_of(&self.client, master).await?;
        self.broker.offsets.follow(self.seen.as_ref(), &body);
        self.seen = Some(body.offset_table);
        Ok(())
    }

    async fn delays(&self, master: &str) -> Result<(), String> {
        if let Some(body) = delays_of(&self.client, master).await? {
            self.broker.schedule.follow(body);
        }
        Ok(())
    }

    async fn request_modes(&self, master: &str) -> Result<(), String> {
        if let Some(body) = request_modes_of(&self.client, master).await? {
            self.broker.request_modes.follow(body);
        }
        Ok(())
    }
}

/// Gives a master that may have lost them the tables that a slave kept; on disk when it returns. `whole`: it lost its volume.
pub(crate) async fn take_back(
    broker: &Arc<Broker>,
    client: &RemotingClient,
    slave: &str,
    whole: bool,
) -> Result<(), String> {
    let (version, topics) = topics_of(client, slave).await?;
    let groups = groups_of(client, slave).await?;
    let offsets = offsets_of(client, slave).await?;
    let delays = delays_of(client, slave).await?;
    let modes = request_modes_of(client, slave).await?;
    broker.topics.take_back(version, topics, whole);
    broker.groups.take_back(groups, whole);
    broker.offsets.take_back(&offsets);
    if let Some(delays) = delays {
        broker.schedule.take_back(delays);
    }
    if let Some(modes) = modes.filter(|_| whole) {
        broker.request_modes.follow(modes);
    }
    broker.offsets.persist(&broker.saver);
    let saving = Arc::clone(broker);
    let saved = tokio::task::spawn_blocking(move || saving.saver.flush()).await;
    match saved {
        Ok(true) => Ok(()),
        _ => Err("the tables that came from it cannot be written".to_owned()),
    }
}

async fn ask(
    client: &RemotingClient,
    address: &str,
    request: RemotingCommand,
) -> Result<RemotingCommand, String> {
    let code = request.code;
    let answer = client.invoke(address, request, CALL_TIMEOUT).await;
    let answer = answer.map_err(|e| e.to_string())?;
    match answer.code {
        response_code::SUCCESS => Ok(answer),
        other => Err(format!(
            "request {code} was answered {other} {}",
            answer.remark.unwrap_or_default()
        )),
    }
}

async fn topics_of(
    client: &RemotingClient,
    address: &str,
) -> Result<(DataVersion, BTreeMap<String, TopicConfig>), String> {
    let mut pages = Pages::default();
    let mut from = 0;
    loop {
        let request = page_request(
            request_code::GET_ALL_TOPIC_CONFIG,
            ("topicSeq", "maxTopicNum"),
            from,
            &pages,
        );
        let answer = ask(client, address, request).await?;
        let body: TopicConfigSerializeWrapper = read(&answer)?;
        let page = Page {
            version: body.data_version,
            rows: body.topic_config_table,
            total: total(&answer, "totalTopicNum"),
        };
        match pages.add(page) {
            Next::From(next) => from = next,
            Next::GiveUp => return Err("its topics change all the time".to_owned()),
            Next::Done => break,
        }
    }
    Ok(pages.into_rows())
}

async fn groups_of(
    client: &RemotingClient,
    address: &str,
) -> Result<SubscriptionGroupWrapper, String> {
    let mut pages = Pages::default();
    let mut from = 0;
    let mut forbidden = std::collections::BTreeMap::new();
    loop {
        let request = page_request(
            request_code::GET_ALL_SUBSCRIPTIONGROUP_CONFIG,
            ("groupSeq", "maxGroupNum"),
            from,
            &pages,
        );
        let answer = ask(client, address, request).await?;
        let body: SubscriptionGroupWrapper = read(&answer)?;
        if from == 0 {
            forbidden.clear();
        }
        forbidden.extend(body.forbidden_table);
        let page = Page {
            version: body.data_version,
            rows: body.subscription_group_table,
            total: total(&answer, "totalGroupNum"),
        };
        match pages.add(page) {
            Next::From(next) => from = next,
            Next::GiveUp => return Err("its groups change all the time".to_owned()),
            Next::Done => break,
        }
    }
    let (data_version, subscription_group_table) = pages.into_rows();
    Ok(SubscriptionGroupWrapper {
        data_version,
        forbidden_table: forbidden,
        subscription_group_table,
    })
}

async fn offsets_of(
    client: &RemotingClient,
    address: &str,
) -> Result<ConsumerOffsetSerializeWrapper, String> {
    let request = RemotingCommand::request(request_code::GET_ALL_CONSUMER_OFFSET);
    read(&ask(client, address, request).await?)
}

async fn delays_of(
    client: &RemotingClient,
    address: &str,
) -> Result<Option<DelayOffsetSerializeWrapper>, String> {
    let request = RemotingCommand::request(request_code::GET_ALL_DELAY_OFFSET);
    let answer = ask(client, address, request).await?;
    // A master that never delayed a message may send nothing at all.
    match answer.body.is_empty() {
        true => Ok(None),
        false => read(&answer).map(Some),
    }
}

/// A 4.9 broker does not know the question.
async fn request_modes_of(
    client: &RemotingClient,
    address: &str,
) -> Result<Option<MessageRequestModeSerializeWrapper>, String> {
    let request = RemotingCommand::request(request_code::GET_ALL_MESSAGE_REQUEST_MODE);
    let answer = client.invoke(address, request, CALL_TIMEOUT).await;
    let answer = answer.map_err(|e| e.to_string())?;
    match answer.code == response_code::SUCCESS && !answer.body.is_empty() {
        true => read(&answer).map(Some),
        false => Ok(None),
    }
}

fn page_request<T>(
    code: i32,
    (from_field, most_field): (&str, &str),
    from: usize,
    pages: &Pages<T>,
) -> RemotingCommand {
    let version = pages
        .version()
        .and_then(|version| serde_json::to_string(version).ok());
    RemotingCommand::request(code)
        .with_ext(from_field, from.to_string())
        .with_ext("dataVersion", version.unwrap_or_default())
        .with_ext(most_field, ROWS_OF_A_PAGE.to_string())
}

fn total(answer: &RemotingCommand, field: &str) -> Option<usize> {
    answer.ext(field).and_then(|total| total.parse().ok())
}

fn read<T: serde::de::DeserializeOwned>(answer: &RemotingCommand) -> Result<T, String> {
    json::from_slice(&answer.body).map_err(|e| format!("an answer that cannot be read: {e}"))
}
