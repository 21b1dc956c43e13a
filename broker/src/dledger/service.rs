//! The member of a group inside a broker: the one thread that drives [`Member`], and what it does with what that decides.
//!
//! Each turn: messages and frames in, ticks, one write of the log, then out: whoever waits for an answer that is in doubt is
//! told so **before** the commit moves, so that an answer is never given for a record that another leader's took the place of.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use remoting::protocol::body::{DLedgerMember, DLedgerState, DLedgerStatus};
use store::Store;

use super::core::{
    Error, Member, Output, Refused, Role, Settings, Status, TICK_MS, Unfit, Watermark,
};
use super::entry::{Change, Conf, EntryLog as _, Standing};
use super::gate::Gate;
use super::health::{LogState, Pulse, Room};
use super::log::{FileState, Saved, Stamper, StoreLog};
use super::peers::Peers;
use super::tables::{self, Committed, GroupTables};
use super::transport::{Delivery, Identity, Receiver, Transport};
use crate::broker::Broker;
use crate::config::DLedgerConfig;
use crate::role::{self, MasterAddress};

/// Bytes that may wait to be committed; further sends are answered SYSTEM_BUSY.
const MAX_UNCOMMITTED_BYTES: u64 = 128 * 1024 * 1024;
/// After the thread could not run for long (SIGSTOP, a stalled disk), so many ticks are made up for.
const MOST_TICKS_AT_ONCE: u32 = 5;
/// A question to the group's thread is answered by then.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// A hand-over before a stop has this long.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked whether the group's thread hangs.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// A leader registers anew so long after a member came back: what that one said to a name server of 4.x before it knew
/// better may have taken the leader's place there.
const REGISTER_AFTER: Duration = Duration::from_secs(1);

type Answer<T> = mpsc::SyncSender<T>;

enum Event {
    Message(Delivery),
    Lost(u64),
    TransportFailed,
    Retire,
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
    peers: Arc<Peers>,
}

impl Receiver for Ears {
    fn message(&self, delivery: Delivery) {
        self.inbox.push(Event::Message(delivery));
    }

    fn lost(&self, id: u64) {
        self.inbox.push(Event::Lost(id));
    }

    fn failed(&self) {
        self.inbox.push(Event::TransportFailed);
    }

    fn greeted(&self, caller: &Identity) -> Result<(), String> {
        self.peers.greeted(caller)?;
        // Where the leader's main port is may be what the group's thread waits for.
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
    pulse: Arc<Pulse>,
    peers: Arc<Peers>,
    store: Arc<Store>,
    tables: Arc<GroupTables>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

/// What is known before the store is opened.
pub struct Prepared {
    /// The folder of log and state.
    pub folder: PathBuf,
    /// A position up to which the log is known to be committed.
    pub committed: u64,
    saved: Option<Saved>,
    /// How far topics and groups are on disk beside the log.
    pub tables: Option<tables::Saved>,
    listener: std::net::TcpListener,
}

/// Reads the state and takes the port, before the store is opened.
pub fn prepare(config: &DLedgerConfig, folder: PathBuf, bind: SocketAddr) -> io::Result<Prepared> {
    debug_assert!(config.peers.contains_key(&config.id));
    let listener = std::net::TcpListener::bind(bind)?;
    let saved = FileState::load(&folder)?;
    Ok(Prepared {
        tables: tables::Saved::load(&folder).map_err(io::Error::other)?,
        folder,
        committed: saved.as_ref().map_or(0, |s| s.committed),
        saved,
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
        let tables = broker.tables.as_ref().map(Arc::clone);
        let tables = tables.ok_or_else(|| io::Error::other("a member of a group has tables"))?;
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
        let state_file = FileState::new(
            &prepared.folder,
            Arc::clone(&committed),
            Arc::clone(&store),
            flushed,
        );
        let settings = Settings {
            id: config.id,
            conf: Conf::of_voters(config.peers.iter().map(|(id, a)| (*id, a.clone()))),
            preferred: config.preferred,
            unclean: prepared
                .saved
                .as_ref()
                .is_some_and(|s| s.may_have_lost(store.last_stop(), store.written())),
            tables: tables.applied(),
            now_ms: u64::try_from(broker.clock.now_ms()).unwrap_or(0),
            seed: u64::try_from(broker.clock.now_ms()).unwrap_or(0)
                ^ u64::from(std::process::id()) << 32,
        };
        let mut member = Member::new(
            settings,
            prepared.saved.map(|s| s.hard),
            log,
            state_file,
            gate,
        )
        .map_err(io::Error::other)?;
        let told = member.take_output().tables;
        tables.replay(broker, &told).map_err(io::Error::other)?;
        let waker = Arc::clone(&inbox);
        tables.start(broker, Arc::new(move || waker.poke()))?;
        let identity = Identity {
            id: config.id,
            group: config.group.clone(),
            address: broker.address().to_owned(),
            segment_size: store.segment_size(),
            sync_flush: flushed,
        };
        let peers = Arc::new(Peers::new(identity.clone()));
        let transport = Transport::start(
            identity,
            prepared.listener,
            Arc::new(Ears {
                inbox: Arc::clone(&inbox),
                peers: Arc::clone(&peers),
            }),
        )?;
        let status = Arc::new(Mutex::new(None));
        let thorough = broker.settings.raw.flush_commit_log_thorough_interval;
        let flush_due_after = Duration::from_millis(u64::try_from(thorough).unwrap_or(0));
        let failure = Arc::new(Mutex::new(None));
        let pulse = Arc::new(Pulse::new());
        let mut driver = Driver {
            broker: Arc::downgrade(broker),
            store: Arc::clone(&store),
            inbox: Arc::clone(&inbox),
            status: Arc::clone(&status),
            tables: Arc::clone(&tables),
            to_apply: VecDeque::new(),
            commit: Watermark::default(),
            committed,
            peers: Arc::clone(&peers),
            configured: config.peers.clone(),
            transport,
            id: config.id,
            member,
            pulse: Arc::clone(&pulse),
            room: Room::new(flush_due_after, Instant::now()),
            unfit: None,
            leads: None,
            active: BTreeSet::new(),
            register_at: None,
            base: 0,
            needed: 0,
            changed: true,
        };
        let told = Arc::clone(&failure);
        let thread = std::thread::Builder::new()
            .name("dledger".to_owned())
            .spawn(move || {
                let run = std::panic::AssertUnwindSafe(|| driver.run());
                let reason = match std::panic::catch_unwind(run) {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(store::chain(&error)),
                    Err(_) => Some("the group's thread panicked; see the log".to_owned()),
                };
                if let Some(reason) = reason {
                    tracing::error!(reason, "the member of the group stopped");
                    *told.lock() = Some(reason);
                    driver.resign();
                }
                driver.inbox.close();
                driver.transport.stop();
                driver.pulse.end();
            })?;
        let (watched, of) = (Arc::clone(&pulse), Arc::downgrade(broker));
        let watch = std::thread::Builder::new()
            .name("dledger-watch".to_owned())
            .spawn(move || {
                while !watched.ended_within(WATCH_EVERY)
                    && let Some(broker) = of.upgrade()
                {
                    watch(&watched, &broker);
                }
            })?;
        Ok(Self {
            config,
            inbox,
            status,
            failure,
            pulse,
            peers,
            store,
            tables,
            threads: Mutex::new(vec![thread, watch]),
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
            let (matched, active, sure, may_lead) = match seen {
                Some(m) => (m.matched, m.active, m.sure, m.fit),
                None if id == status.id => {
                    let sure = status.standing == Standing::Sound;
                    (status.persisted, true, sure, status.unfit.is_none())
                }
                None => (0, false, false, false),
            };
            let flush = self.peers.flush(id).unwrap_or_default();
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
                may_lead,
                flush_disk_type: flush.to_owned(),
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
        if self.pulse.hangs() {
            return Err("the member of the group hangs, most likely in its disk".to_owned());
        }
        match self.status() {
            None => Err("the member of the group starts".to_owned()),
            Some(Status {
                unfit: Some(Unfit::Stalled),
                ..
            }) => Err(Unfit::Stalled.to_string()),
            Some(s) => match (s.role.role, s.standing) {
                (Role::Seeking | Role::Elected, _) => {
                    let why = self.peers.disagreement();
                    Err(format!(
                        "the group has no leader: {} of {} voters are needed{}",
                        s.conf.voters.len() / 2 + 1,
                        s.conf.voters.len(),
                        why.map_or_else(String::new, |why| format!(", and {why}"))
                    ))
                }
                (Role::Removed, _) => Err("this member was removed from its group".to_owned()),
                (_, Standing::Sound) => Ok(()),
                (..) => Err("this member has not caught up with its group".to_owned()),
            },
        }
    }

    /// Before a stop: this member leads no more. What leadership it has is handed over, so that the others need no
    /// election. Blocks until that is done, or has taken too long.
    pub fn retire(&self) {
        self.inbox.push(Event::Retire);
        let leads = |s: &Status| matches!(s.role.role, Role::Leading | Role::Elected);
        let alone = |s: &Status| s.conf.voters.len() < 2;
        let until = Instant::now() + HAND_OVER_TIMEOUT;
        while self.status().is_some_and(|s| leads(&s) && !alone(&s)) {
            if Instant::now() >= until {
                tracing::warn!("the leadership is not handed over");
                return;
            }
            std::thread::sleep(Duration::from_millis(TICK_MS));
        }
    }

    /// Ends its threads and waits for them. Blocks.
    pub fn stop(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        self.inbox.push(Event::Stop);
        for thread in threads {
            let _ = thread.join();
        }
        self.tables.stop();
    }
}

/// While the group's thread hangs, the others elect another leader; this broker must not go on as the group's master, least
/// of all at the name servers. On a thread of its own, since a disk that hangs may hold up any other.
fn watch(pulse: &Pulse, broker: &Broker) {
    if !pulse.hangs() {
        return;
    }
    let mut deposed = pulse.deposed();
    if broker.role.role() != role::Role::Master {
        return;
    }
    *deposed = true;
    tracing::warn!(
        "the member of the group hangs, most likely in its disk: it counts as no leader"
    );
    become_undecided(broker);
    broker.doubt_what_waits();
}

fn become_undecided(broker: &Broker) {
    broker.role.update(|now| {
        now.role = role::Role::Undecided;
        now.broker_id = -1;
    });
}

struct Driver {
    broker: Weak<Broker>,
    store: Arc<Store>,
    inbox: Arc<Inbox>,
    status: Arc<Mutex<Option<Status>>>,
    tables: Arc<GroupTables>,
    /// Committed changes of topics and groups that are not applied yet: nothing behind the first is shown.
    to_apply: VecDeque<Committed>,
    /// What is committed, shown or not.
    commit: Watermark,
    /// What is shown.
    committed: Arc<AtomicU64>,
    peers: Arc<Peers>,
    /// `dLegerPeers`: where members are of whom no change told.
    configured: BTreeMap<u64, String>,
    transport: Transport,
    id: u64,
    member: Member<StoreLog, FileState>,
    pulse: Arc<Pulse>,
    room: Room,
    /// Why the member must not lead, as it was said last.
    unfit: Option<Unfit>,
    /// The term in which this member leads, and whether its broker knows.
    leads: Option<(u64, bool)>,
    /// Those whom this leader hears of.
    active: BTreeSet<u64>,
    register_at: Option<Instant>,
    base: u64,
    /// The first entry that retention was told to leave.
    needed: u64,
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
                    Event::TransportFailed => {
                        let why = "the connections to the other members panicked; see the log";
                        return Err(Error::State(why));
                    }
                    Event::Retire => self.member.retire()?,
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
                self.look_at_disk();
                self.member.tick()?;
                next += tick;
                ticks += 1;
            }
            if ticks == MOST_TICKS_AT_ONCE {
                next = Instant::now() + tick;
            }
            self.settle()?;
            self.pulse.beat();
            self.take_up()?;
            let changed = std::mem::take(&mut self.changed);
            if ticks > 0 {
                self.compact()?;
            }
            if ticks > 0 || changed {
                let status = self.member.status();
                if self.leads.is_some() && ticks > 0 {
                    self.promote(&status)?;
                    self.register_anew(&status);
                }
                *self.status.lock() = Some(status);
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
            self.show()?;
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
        if let Some(position) = out.cut {
            self.doubt();
            self.take_back(position);
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
        if let Some(index) = out.anew {
            self.to_apply.clear();
            self.tables.begin_anew(index);
        }
        if !out.tables.is_empty() {
            let log = self.member.log();
            let committed = |&index: &u64| {
                let end = log.entry(index)?.end();
                Some(Committed { index, end })
            };
            let entries: Option<Vec<Committed>> = out.tables.iter().map(committed).collect();
            let entries = entries.ok_or(Error::State("a change of topics cannot be read"))?;
            self.to_apply.extend(&entries);
            self.tables.committed(entries);
        }
        if let Some(commit) = out.commit {
            self.commit = commit;
            self.show()?;
        }
        if let Some(conf) = out.conf {
            self.connect(&conf);
        }
        self.lead();
        self.tell_master();
        for message in out.messages {
            let log = self.member.log();
            let sent = self.transport.send(&message, |bytes| {
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

    /// What is committed is shown, up to the first change of topics or groups that has yet to be applied.
    fn show(&mut self) -> Result<(), Error> {
        if let Some(reason) = self.tables.failure() {
            return Err(Error::Io(io::Error::other(reason)));
        }
        if !self.to_apply.is_empty() {
            let applied = self.tables.applied();
            while self.to_apply.front().is_some_and(|c| c.index <= applied) {
                self.to_apply.pop_front();
            }
        }
        let first = self.to_apply.front();
        let position = first.map_or(self.commit.position, |c| c.end.min(self.commit.position));
        if position > self.committed.load(Ordering::Acquire) {
            self.committed.store(position, Ordering::Release);
            self.store.advance_confirm(position);
        }
        if self.to_apply.is_empty() {
            self.tables.reached(self.commit.index);
        }
        Ok(())
    }

    /// Topics and groups that came with frames from this position on are no more.
    fn take_back(&self, position: u64) {
        if let Some(broker) = self.broker.upgrade() {
            self.tables.cut(&broker, position);
        }
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
            self.take_back(0);
        }
        self.play(role, term, leader);
        // The last, for it waits for who writes at the moment, and he may wait for a disk that hangs.
        if role != Role::Elected {
            self.store.follow_log().map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// The broker of a member that does not lead.
    fn play(&self, role: Role, term: u64, leader: Option<u64>) {
        let Some(broker) = self.broker.upgrade() else {
            return;
        };
        let address = leader.and_then(|id| self.peers.address(id));
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
    }

    /// While the thread hung the broker's role was taken from it: it gets back what is its own now.
    fn take_up(&mut self) -> Result<(), Error> {
        if !std::mem::take(&mut *self.pulse.deposed()) {
            return Ok(());
        }
        if let Some((_, told)) = &mut self.leads {
            *told = false;
            self.lead();
            return Ok(());
        }
        let now = self.member.role();
        self.follow(now.role, now.term, now.leader)
    }

    fn look_at_disk(&mut self) {
        let room = self.room.look(LogState::of(&self.store), Instant::now());
        self.member.set_room(room);
        let unfit = self.member.unfit();
        if unfit == std::mem::replace(&mut self.unfit, unfit) {
            return;
        }
        self.changed = true;
        match unfit {
            Some(why) => tracing::warn!(%why, "this member must not lead its group"),
            None => tracing::info!("this member may lead its group again"),
        }
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
        if let Some(address) = self.peers.address(leader) {
            broker.role.update(|now| {
                if now.role == role::Role::Slave {
                    now.master.address = Some(address);
                }
            });
        }
    }

    /// Retention may take what is applied and not needed for the tables; when it did, the configurations of before are not
    /// needed any more.
    fn compact(&mut self) -> Result<(), Error> {
        let needed = self.member.compactable().min(self.tables.kept_from());
        if needed != self.needed {
            self.needed = needed;
            if let Err(error) = self.store.allow_deletion_before(needed) {
                tracing::debug!(%error, "retention waits");
            }
        }
        let base = self.store.compacted_entry().index;
        if base != self.base {
            self.base = base;
            self.member.compacted()?;
        }
        Ok(())
    }

    /// A learner votes as soon as it has nearly everything.
    fn promote(&mut self, status: &Status) -> Result<(), Error> {
        for learner in status.members.iter().filter(|m| !m.voter) {
            let id = learner.id;
            match self.member.propose(Change::Promote { id })? {
                Ok(index) => {
                    tracing::info!(member = name_of(id), index, "a learner votes from now on")
                }
                Err(why) => tracing::trace!(member = name_of(id), %why, "not yet a voter"),
            }
        }
        Ok(())
    }

    /// Some time after a member came back.
    fn register_anew(&mut self, status: &Status) {
        let active = status.members.iter().filter(|m| m.active).map(|m| m.id);
        let active: BTreeSet<u64> = active.collect();
        let now = Instant::now();
        if !active.is_subset(&self.active) {
            self.register_at = Some(now + REGISTER_AFTER);
        }
        self.active = active;
        if self.register_at.take_if(|at| *at <= now).is_some()
            && let Some(broker) = self.broker.upgrade()
        {
            broker.registrar.register_all();
        }
    }

    /// The member cannot go on: its broker serves what it has, and takes nothing.
    fn resign(&mut self) {
        self.store.close_gate();
        self.leads = None;
        self.doubt();
        self.take_back(0);
        if let Some(broker) = self.broker.upgrade() {
            become_undecided(&broker);
        }
    }
}
