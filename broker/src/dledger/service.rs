//! The member of a group inside a broker: the one thread that drives [`Member`], and what it does with what that decides.
//!
//! Each turn: messages and frames in, ticks, one write of the log, then out: whoever waits for an answer that is in doubt is
//! told so **before** the commit moves, so that an answer is never given for a record that another leader's took the place of.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use remoting::protocol::body::{DLedgerMember, DLedgerState, DLedgerStatus, TopicConfig};
use store::{LastStop, Store};

use super::core::{Error, Member, Output, Refused, Role, Settings, Status, TICK_MS};
use super::entry::{Change, Conf, Standing};
use super::gate::Gate;
use super::log::{FileState, Stamper, StoreLog};
use super::transport::{Delivery, Identity, Receiver, Transport};
use crate::broker::Broker;
use crate::config::DLedgerConfig;
use crate::role::{self, MasterAddress};

/// Bytes that may wait to be committed; further sends are answered SYSTEM_BUSY.
const MAX_UNCOMMITTED_BYTES: u64 = 256 * 1024 * 1024;
/// After the thread could not run for long (SIGSTOP, a stalled disk), so many ticks are made up for.
const MOST_TICKS_AT_ONCE: u32 = 5;
/// A question to the group's thread is answered by then.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// A hand-over before a stop has this long.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);
/// A learner this close to the end of the log is made a voter.
const CLOSE_ENTRIES: u64 = 256;
/// Readable and writable.
const PERM_RW: i32 = 6;

type Answer<T> = mpsc::SyncSender<T>;

enum Event {
    Message(Delivery),
    Lost(u64),
    Transfer(Option<u64>, Answer<Result<(), Refused>>),
    Change(Change, Answer<Result<(), Refused>>),
    Stop,
}

#[derive(Default)]
struct Inbox {
    events: Mutex<Events>,
    came: Condvar,
}

/// Messages are bounded by the room that the transport gives each member; nothing else comes often.
#[derive(Default)]
struct Events {
    queue: VecDeque<Event>,
    poked: bool,
    /// Nobody takes anything any more.
    closed: bool,
}

impl Inbox {
    fn push(&self, event: Event) {
        let mut events = self.events.lock();
        if events.closed {
            return;
        }
        events.queue.push_back(event);
        self.came.notify_one();
    }

    /// Something else is to be looked at: frames, watermarks.
    fn poke(&self) {
        let mut events = self.events.lock();
        if !std::mem::replace(&mut events.poked, true) {
            self.came.notify_one();
        }
    }

    fn close(&self) {
        let mut events = self.events.lock();
        events.closed = true;
        events.queue.clear();
    }

    fn take(&self, until: Instant) -> VecDeque<Event> {
        let mut events = self.events.lock();
        while events.queue.is_empty() && !events.poked {
            if self.came.wait_until(&mut events, until).timed_out() {
                break;
            }
        }
        events.poked = false;
        std::mem::take(&mut events.queue)
    }
}

struct Ears {
    inbox: Arc<Inbox>,
    /// Main ports of the others, as they said.
    addresses: Arc<Mutex<BTreeMap<u64, String>>>,
}

impl Receiver for Ears {
    fn message(&self, delivery: Delivery) {
        self.inbox.push(Event::Message(delivery));
    }

    fn lost(&self, id: u64) {
        self.inbox.push(Event::Lost(id));
    }

    fn greeted(&self, caller: &Identity) -> Result<(), String> {
        let mut addresses = self.addresses.lock();
        addresses.insert(caller.id, caller.address.clone());
        drop(addresses);
        self.inbox.poke();
        Ok(())
    }
}

/// What a broker has of its group.
pub struct Group {
    config: DLedgerConfig,
    inbox: Arc<Inbox>,
    status: Arc<Mutex<Option<Status>>>,
    failure: Arc<Mutex<Option<String>>>,
    store: Arc<Store>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// What is known before the store is opened.
pub struct Prepared {
    /// The folder of log and state.
    pub folder: PathBuf,
    /// A position up to which the log is known to be committed.
    pub committed: u64,
    state: Option<super::entry::HardState>,
    listener: std::net::TcpListener,
}

/// Reads the state and takes the port, before the store is opened.
pub fn prepare(config: &DLedgerConfig, folder: PathBuf, bind: SocketAddr) -> io::Result<Prepared> {
    debug_assert!(config.peers.contains_key(&config.id));
    let listener = std::net::TcpListener::bind(bind)?;
    let (state, committed) = match FileState::load(&folder)? {
        Some((state, committed)) => (Some(state), committed),
        None => (None, 0),
    };
    Ok(Prepared {
        folder,
        committed,
        state,
        listener,
    })
}

/// `nK` for the id K + 1.
pub fn name_of(id: u64) -> String {
    format!("n{}", id.saturating_sub(1))
}

/// The id of `nK`.
pub fn id_of(name: &str) -> Option<u64> {
    let number: u32 = name.strip_prefix('n')?.parse().ok()?;
    Some(u64::from(number) + 1)
}

impl Group {
    /// Starts the member's thread.
    pub fn start(
        broker: &Arc<Broker>,
        prepared: Prepared,
        config: DLedgerConfig,
    ) -> io::Result<Self> {
        let store = Arc::clone(&broker.store);
        let flushed =
            broker.settings.raw.flush_disk_type == crate::config::FlushDiskType::SyncFlush;
        let inbox = Arc::new(Inbox::default());
        let gate = Arc::new(Gate::new(MAX_UNCOMMITTED_BYTES));
        let waker = Arc::clone(&inbox);
        store.set_frame_stamp(Arc::new(Stamper {
            gate: Arc::clone(&gate),
            wake: Box::new(move || waker.poke()),
        }));
        let waker = Arc::clone(&inbox);
        store.on_watermark(Box::new(move |_| waker.poke()));
        let log = StoreLog::new(Arc::clone(&store), flushed)?;
        let committed = Arc::new(AtomicU64::new(prepared.committed));
        let state_file = FileState::new(&prepared.folder, Arc::clone(&committed));
        let settings = Settings {
            id: config.id,
            conf: Conf::of_voters(config.peers.iter().map(|(id, a)| (*id, a.clone()))),
            preferred: config.preferred,
            unclean: !flushed && store.last_stop() == LastStop::PowerLost,
            now_ms: u64::try_from(broker.clock.now_ms()).unwrap_or(0),
            seed: u64::try_from(broker.clock.now_ms()).unwrap_or(0)
                ^ u64::from(std::process::id()) << 32,
        };
        let member = Member::new(settings, prepared.state, log, state_file, gate)
            .map_err(io::Error::other)?;
        let addresses = Arc::new(Mutex::new(BTreeMap::new()));
        let transport = Transport::start(
            Identity {
                id: config.id,
                group: config.group.clone(),
                address: broker.address().to_owned(),
                segment_size: store.segment_size(),
                sync_flush: flushed,
            },
            prepared.listener,
            Arc::new(Ears {
                inbox: Arc::clone(&inbox),
                addresses: Arc::clone(&addresses),
            }),
        )?;
        let status = Arc::new(Mutex::new(None));
        let failure = Arc::new(Mutex::new(None));
        let mut driver = Driver {
            broker: Arc::downgrade(broker),
            store: Arc::clone(&store),
            inbox: Arc::clone(&inbox),
            status: Arc::clone(&status),
            committed,
            addresses,
            configured: config.peers.clone(),
            transport,
            id: config.id,
            member,
            leads: None,
            base: 0,
            changed: true,
        };
        let told = Arc::clone(&failure);
        let thread = std::thread::Builder::new()
            .name("dledger".to_owned())
            .spawn(move || {
                let run = std::panic::AssertUnwindSafe(|| driver.run());
                let reason = match std::panic::catch_unwind(run) {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(describe(&error)),
                    Err(_) => Some("the group's thread panicked; see the log".to_owned()),
                };
                if let Some(reason) = reason {
                    tracing::error!(reason, "the member of the group stopped");
                    *told.lock() = Some(reason);
                    driver.resign();
                }
                driver.inbox.close();
                driver.transport.stop();
            })?;
        Ok(Self {
            config,
            inbox,
            status,
            failure,
            store,
            thread: Mutex::new(Some(thread)),
        })
    }

    fn ask<T>(&self, event: impl FnOnce(Answer<T>) -> Event) -> Option<T> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.inbox.push(event(answer));
        answered.recv_timeout(ASK_TIMEOUT).ok()
    }

    /// Asks to hand the leadership over, to whoever has most when nobody is named.
    pub fn transfer(&self, to: Option<u64>) -> Result<(), Refused> {
        self.ask(|answer| Event::Transfer(to, answer))
            .unwrap_or(Err(Refused::Busy))
    }

    /// Asks for one change of the membership.
    pub fn change(&self, change: Change) -> Result<(), Refused> {
        self.ask(|answer| Event::Change(change, answer))
            .unwrap_or(Err(Refused::Busy))
    }

    /// What the member saw last.
    pub fn status(&self) -> Option<Status> {
        self.status.lock().clone()
    }

    /// The answer to 20101.
    pub fn report(&self) -> DLedgerStatus {
        let long = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let mut report = DLedgerStatus {
            group: self.config.group.clone(),
            self_id: name_of(self.config.id),
            commit_offset: long(self.store.confirm_offset()),
            last_offset: long(self.store.written()),
            ..DLedgerStatus::default()
        };
        let Some(status) = self.status() else {
            return report;
        };
        report.term = long(status.role.term);
        report.commit_index = long(status.committed);
        report.applied_index = long(status.applied);
        report.last_index = long(status.last);
        report.leader_id = status.role.leader.map(name_of).unwrap_or_default();
        report.state = match status.role.role {
            Role::Leading | Role::Elected => DLedgerState::Leader,
            Role::Seeking => DLedgerState::Candidate,
            Role::Removed => DLedgerState::Removed,
            Role::Following if status.conf.learners.contains(&status.id) => DLedgerState::Learner,
            Role::Following => DLedgerState::Follower,
        };
        let end = |index: u64| self.store.entry_end(index).ok().flatten();
        let ids = status.conf.voters.iter().chain(&status.conf.learners);
        for &id in ids {
            let seen = status.members.iter().find(|m| m.id == id);
            let (matched, active, sure) = match seen {
                Some(m) => (m.matched, m.active, m.sure),
                None if id == status.id => {
                    (status.persisted, true, status.standing == Standing::Sound)
                }
                None => (0, false, false),
            };
            let address = status.conf.addresses.get(&id);
            let behind = || {
                let reached = end(matched).unwrap_or(self.store.min_phy_offset());
                long(self.store.written().saturating_sub(reached))
            };
            report.members.push(DLedgerMember {
                id: name_of(id),
                address: address.cloned().unwrap_or_default(),
                match_index: long(matched),
                recently_active: active,
                sure,
                voter: status.conf.voters.contains(&id),
                lag_bytes: behind(),
            });
        }
        report
    }

    /// Why this member is not ready: its group has no leader, or it is far behind.
    pub fn ready(&self) -> Result<(), String> {
        if let Some(reason) = &*self.failure.lock() {
            return Err(reason.clone());
        }
        match self.status() {
            None => Err("the member of the group starts".to_owned()),
            Some(s) => match (s.role.role, s.standing) {
                (Role::Seeking | Role::Elected, _) => Err(format!(
                    "the group has no leader: {} of {} voters are needed",
                    s.conf.voters.len() / 2 + 1,
                    s.conf.voters.len()
                )),
                (Role::Removed, _) => Err("this member was removed from its group".to_owned()),
                (_, Standing::Sound) => Ok(()),
                (..) => Err("this member has not caught up with its group".to_owned()),
            },
        }
    }

    /// Hands the leadership over, if this member has it, so that the others need no election. Blocks.
    pub fn hand_over(&self) {
        let leads = |s: &Status| matches!(s.role.role, Role::Leading | Role::Elected);
        let alone = |s: &Status| s.conf.voters.len() < 2;
        if !self.status().is_some_and(|s| leads(&s) && !alone(&s)) {
            return;
        }
        if let Err(refused) = self.transfer(None) {
            tracing::warn!(%refused, "the leadership is not handed over");
            return;
        }
        let until = Instant::now() + HAND_OVER_TIMEOUT;
        while self.status().is_some_and(|s| leads(&s)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(TICK_MS));
        }
    }

    /// Ends the thread and waits for it. Blocks.
    pub fn stop(&self) {
        if let Some(thread) = self.thread.lock().take() {
            self.inbox.push(Event::Stop);
            let _ = thread.join();
        }
    }
}

fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(next) = source {
        text.push_str(": ");
        text.push_str(&next.to_string());
        source = next.source();
    }
    text
}

struct Driver {
    broker: Weak<Broker>,
    store: Arc<Store>,
    inbox: Arc<Inbox>,
    status: Arc<Mutex<Option<Status>>>,
    committed: Arc<AtomicU64>,
    addresses: Arc<Mutex<BTreeMap<u64, String>>>,
    /// `dLegerPeers`: where members are of whom no change told.
    configured: BTreeMap<u64, String>,
    transport: Transport,
    id: u64,
    member: Member<StoreLog, FileState>,
    /// The term in which this member leads, and whether its broker knows.
    leads: Option<(u64, bool)>,
    base: u64,
    /// Role or membership are not what was published last.
    changed: bool,
}

impl Driver {
    fn run(&mut self) -> Result<(), Error> {
        let tick = Duration::from_millis(TICK_MS);
        let conf = self.member.status().conf;
        self.connect(&conf);
        let mut next = Instant::now() + tick;
        loop {
            let events = self.inbox.take(next);
            for event in events {
                match event {
                    Event::Message(m) => self.member.step(m.message, &m.frames)?,
                    Event::Lost(id) => self.member.peer_lost(id),
                    Event::Transfer(to, answer) => {
                        let to = to.or_else(|| self.member.successor());
                        let done =
                            to.map_or(Err(Refused::NotLeader), |to| self.member.transfer(to));
                        let _ = answer.send(done);
                    }
                    Event::Change(change, answer) => {
                        let done = self.member.propose(change)?.map(|_| ());
                        let _ = answer.send(done);
                    }
                    Event::Stop => return Ok(()),
                }
                self.settle()?;
            }
            self.member.pump()?;
            let mut ticks = 0;
            while next <= Instant::now() && ticks < MOST_TICKS_AT_ONCE {
                self.member.tick()?;
                next += tick;
                ticks += 1;
            }
            if ticks == MOST_TICKS_AT_ONCE {
                next = Instant::now() + tick;
            }
            self.settle()?;
            if ticks > 0 {
                self.compact()?;
                self.promote()?;
            }
            if ticks > 0 || std::mem::take(&mut self.changed) {
                *self.status.lock() = Some(self.member.status());
            }
        }
    }

    /// What was appended is written, what was decided is done.
    fn settle(&mut self) -> Result<(), Error> {
        loop {
            self.store.drive();
            if let Some(reason) = self.store.poisoned() {
                return Err(Error::Io(io::Error::other(reason)));
            }
            self.member.persisted()?;
            let out = self.member.take_output();
            let again = !out.messages.is_empty() || out.commit.is_some() || out.role.is_some();
            self.act(out)?;
            if !again {
                return Ok(());
            }
        }
    }

    fn act(&mut self, out: Output) -> Result<(), Error> {
        if out.cut.is_some() {
            self.doubt();
        }
        self.changed |= out.role.is_some() || out.conf.is_some();
        if let Some(role) = out.role {
            match role.role {
                Role::Leading => {
                    if self.leads.map(|(term, _)| term) != Some(role.term) {
                        self.leads = Some((role.term, false));
                    }
                }
                _ => self.follow(role.role, role.term, role.leader)?,
            }
            tracing::info!(role = ?role.role, term = role.term, leader = ?role.leader, "the group");
        }
        if let Some(commit) = out.commit {
            self.store.advance_confirm(commit.position);
            self.committed.store(commit.position, Ordering::Release);
        }
        if let Some(conf) = out.conf {
            self.connect(&conf);
        }
        self.lead();
        self.tell_master();
        for message in out.messages {
            let log = self.member.log();
            let sent = self.transport.send(&message, |bytes| {
                use super::entry::EntryLog as _;
                message.entries.iter().try_for_each(|e| log.read(e, bytes))
            });
            let sent = sent.unwrap_or_else(|error| {
                // Retention was faster, or the disk failed for once: the follower is told where the log begins now.
                tracing::warn!(%error, member = name_of(message.to), "entries were not sent");
                false
            });
            if !sent && !message.entries.is_empty() {
                self.member.peer_lost(message.to);
            }
        }
        Ok(())
    }

    fn connect(&self, conf: &Conf) {
        let mut peers = BTreeMap::new();
        for id in conf.voters.iter().chain(&conf.learners) {
            if let Some(address) = conf.addresses.get(id).or_else(|| self.configured.get(id)) {
                peers.insert(*id, address.clone());
            }
        }
        if !peers.contains_key(&self.id) {
            // Not in the group yet, or not any more: it is the others who know.
            peers = self.configured.clone();
        }
        self.transport.set_peers(&peers);
    }

    /// Whoever waits for an answer learns that its fate is unknown.
    fn doubt(&self) {
        if let Some(broker) = self.broker.upgrade() {
            broker.doubt_what_waits();
        }
    }

    fn follow(&mut self, role: Role, term: u64, leader: Option<u64>) -> Result<(), Error> {
        if self.leads.take().is_some() {
            self.store.close_gate();
            self.doubt();
        }
        if role != Role::Elected {
            self.store.follow_log().map_err(io::Error::other)?;
        }
        let Some(broker) = self.broker.upgrade() else {
            return Ok(());
        };
        let address = leader.and_then(|id| self.addresses.lock().get(&id).cloned());
        let id = self.id;
        broker.role.update(|now| {
            now.term = term.max(1);
            now.sync = true;
            match role {
                Role::Following | Role::Seeking | Role::Elected
                    if leader.is_some() || now.role != role::Role::Undecided =>
                {
                    now.role = role::Role::Slave;
                    now.broker_id = i64::try_from(id).unwrap_or(i64::MAX);
                    now.master = MasterAddress {
                        address,
                        ha_address: None,
                    };
                }
                Role::Removed => {
                    now.role = role::Role::Undecided;
                    now.broker_id = -1;
                }
                _ => {}
            }
        });
        Ok(())
    }

    /// A leader's broker is its group's master as soon as everything of former leaders is in its queues.
    fn lead(&mut self) {
        let Some((term, told)) = self.leads else {
            return;
        };
        if !self.store.gate_is_open() && self.store.open_gate(term).is_err() {
            // Not all of it is dispatched yet.
            return;
        }
        if told {
            return;
        }
        let Some(broker) = self.broker.upgrade() else {
            return;
        };
        self.leads = Some((term, true));
        know_topics(&broker);
        broker.role.set(role::RoleNow {
            role: role::Role::Master,
            broker_id: 0,
            sync: true,
            master: MasterAddress::default(),
            term,
        });
    }

    /// A follower's tables come from its leader's main port, which the leader tells when it calls.
    fn tell_master(&self) {
        let Some(broker) = self.broker.upgrade() else {
            return;
        };
        let now = broker.role.now();
        if now.role != role::Role::Slave || now.master.address.is_some() {
            return;
        }
        let Some(leader) = self.member.role().leader else {
            return;
        };
        if let Some(address) = self.addresses.lock().get(&leader).cloned() {
            broker.role.update(|now| {
                if now.role == role::Role::Slave {
                    now.master.address = Some(address);
                }
            });
        }
    }

    /// Retention took what the configurations of before were kept for.
    fn compact(&mut self) -> Result<(), Error> {
        let base = self.store.compacted_entry().index;
        if base != self.base {
            self.base = base;
            self.member.compacted()?;
        }
        Ok(())
    }

    /// A learner votes as soon as it has nearly everything.
    fn promote(&mut self) -> Result<(), Error> {
        if self.leads.is_none() {
            return Ok(());
        }
        let status = self.member.status();
        let close = |m: &&super::core::MemberStatus| {
            !m.voter
                && m.active
                && m.sure
                && status.last - m.matched.min(status.last) <= CLOSE_ENTRIES
        };
        if let Some(learner) = status.members.iter().find(close) {
            let id = learner.id;
            match self.member.propose(Change::Promote { id })? {
                Ok(index) => {
                    tracing::info!(member = name_of(id), index, "a learner votes from now on")
                }
                Err(why) => tracing::debug!(member = name_of(id), %why, "not yet a voter"),
            }
        }
        Ok(())
    }

    /// The member cannot go on: its broker serves what it has, and takes nothing.
    fn resign(&mut self) {
        self.store.close_gate();
        self.leads = None;
        self.doubt();
        if let Some(broker) = self.broker.upgrade() {
            broker.role.update(|now| {
                now.role = role::Role::Undecided;
                now.broker_id = -1;
            });
        }
    }
}

/// A topic of which the log has messages but whose settings never came from the former leader gets the usual ones, with
/// the queues that are there.
fn know_topics(broker: &Broker) {
    let table = broker.topics.snapshot();
    let missing = broker
        .store
        .queues()
        .into_iter()
        .filter(|(topic, _)| table.get(topic).is_none())
        .map(|(topic, queues)| {
            let count = queues.into_iter().max().unwrap_or(0).saturating_add(1);
            TopicConfig {
                topic_name: topic,
                read_queue_nums: count,
                write_queue_nums: count,
                perm: PERM_RW,
                ..TopicConfig::default()
            }
        });
    let missing: Vec<TopicConfig> = missing.collect();
    if !missing.is_empty() {
        tracing::warn!(
            topics = missing.len(),
            "topics of which only messages were known get default settings"
        );
        broker.topics.update(missing);
    }
}
