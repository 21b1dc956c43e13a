//! Members, network, clocks, faults and clients, one event after the other; what must always hold is checked after each.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use broker::dledger::core::{
    APPEND_BYTES, ELECTION_TICKS, Member, Output, Role, RoleNow, Settings, TICK_MS, Watermark,
};
use broker::dledger::entry::{Change, Conf, Descriptor, EntryLog, HardState, Kind, Standing};
use broker::dledger::gate::Gate;
use broker::dledger::message::PeerMessage;

use crate::disk::{self, Disk, SEGMENT, SimFile, SimLog};
use crate::tables::{Agreed, Known};

/// Another seed for the named cases.
const CASES: &str = "DLEDGER_SIM_CASES";
/// Bytes that may wait to be committed in the simulation.
const MAX_UNCOMMITTED: u64 = 64 * 1024;
/// Events of one run; far more than any needs.
const MAX_EVENTS: u64 = 200_000;
/// Within which the healed group must be whole again: milliseconds.
const HEALED_WITHIN: u64 = 60_000;

pub(crate) type SimMember = Member<SimLog, SimFile>;

/// SplitMix64: the whole run follows from its seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// In so many cases of a thousand.
    pub(crate) fn permille(&mut self, n: u64) -> bool {
        self.below(1000) < n
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len() as u64) as usize])
    }
}

/// What a run is like.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) voters: u64,
    /// Members under SYNC_FLUSH.
    pub(crate) sync: Vec<bool>,
    pub(crate) loss: u64,
    pub(crate) double: u64,
    pub(crate) max_delay: u64,
    /// A fault every so many milliseconds, on average; 0 for none.
    pub(crate) fault_every: u64,
    pub(crate) send_every: u64,
    /// A change of topics or groups every so many milliseconds, on average; 0 for none.
    pub(crate) change_every: u64,
    pub(crate) membership: bool,
    pub(crate) compaction: bool,
    pub(crate) preferred: Option<u64>,
    pub(crate) length: u64,
}

impl Plan {
    pub(crate) fn quiet(voters: u64, sync: bool) -> Self {
        Self {
            seed: crate::number(CASES).unwrap_or(1),
            voters,
            sync: vec![sync; 8],
            loss: 0,
            double: 0,
            max_delay: 2,
            fault_every: 0,
            send_every: 20,
            change_every: 0,
            membership: false,
            compaction: false,
            preferred: None,
            length: 3000,
        }
    }

    pub(crate) fn of(seed: u64) -> Self {
        let mut r = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let voters = [3, 3, 3, 3, 3, 3, 5, 5, 1][r.below(9) as usize];
        let flush = r.below(3);
        Self {
            seed,
            voters,
            sync: (0..8)
                .map(|_| match flush {
                    0 => true,
                    1 => false,
                    _ => r.permille(500),
                })
                .collect(),
            loss: [0, 5, 30, 100][r.below(4) as usize],
            double: [0, 10, 50][r.below(3) as usize],
            max_delay: [2, 10, 60, 200][r.below(4) as usize],
            fault_every: [150, 400, 1000][r.below(3) as usize],
            send_every: [10, 25, 60][r.below(3) as usize],
            change_every: [0, 40, 150][(seed % 3) as usize],
            membership: r.permille(400),
            compaction: r.permille(500),
            preferred: r.permille(300).then(|| 1 + r.below(voters)),
            length: 5000,
        }
    }
}

/// What happened in a run, to see that enough did.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) events: u64,
    pub(crate) acknowledged: u64,
    pub(crate) doubtful: u64,
    pub(crate) leaders: u64,
    pub(crate) process_crashes: u64,
    pub(crate) machine_crashes: u64,
    pub(crate) power_cuts: u64,
    pub(crate) emptied: u64,
    pub(crate) broken_disks: u64,
    pub(crate) stopped: u64,
    pub(crate) partitions: u64,
    pub(crate) broken_connections: u64,
    pub(crate) reads: u64,
    pub(crate) reads_at_leaders: u64,
    pub(crate) reads_at_deposed_leaders: u64,
    pub(crate) changes: u64,
    pub(crate) hand_overs: u64,
    pub(crate) snapshots: u64,
    pub(crate) cuts: u64,
    pub(crate) recovered: u64,
    /// Changes of topics and groups: acknowledged, taken back with a lost term, rows appended anew.
    pub(crate) tables: u64,
    pub(crate) taken_back: u64,
    pub(crate) renewed: u64,
}

impl Told {
    fn fields(&mut self) -> [&mut u64; 23] {
        [
            &mut self.events,
            &mut self.acknowledged,
            &mut self.doubtful,
            &mut self.leaders,
            &mut self.process_crashes,
            &mut self.machine_crashes,
            &mut self.power_cuts,
            &mut self.emptied,
            &mut self.broken_disks,
            &mut self.stopped,
            &mut self.partitions,
            &mut self.broken_connections,
            &mut self.reads,
            &mut self.reads_at_leaders,
            &mut self.reads_at_deposed_leaders,
            &mut self.changes,
            &mut self.hand_overs,
            &mut self.snapshots,
            &mut self.cuts,
            &mut self.recovered,
            &mut self.tables,
            &mut self.taken_back,
            &mut self.renewed,
        ]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let mut other = Self { ..*other };
        for (mine, theirs) in self.fields().into_iter().zip(other.fields()) {
            *mine += *theirs;
        }
    }

    pub(crate) fn assert_rich(mut self) {
        let text = format!("{self:?}");
        assert!(self.fields().into_iter().all(|n| *n >= 20), "{text}");
    }
}

/// A record on its way: acknowledged once its frame is committed in the leadership in which it was appended.
#[derive(Clone, Copy)]
struct Sent {
    id: u64,
    index: u64,
    end: u64,
    /// The newest acknowledged index when it was sent: it must come behind it.
    after: u64,
}

pub(crate) struct Node {
    pub(crate) disk: Rc<RefCell<Disk>>,
    pub(crate) member: Option<SimMember>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) life: u64,
    /// SIGSTOP until then.
    paused_until: u64,
    stalled_until: u64,
    /// What it acknowledged in its last life may be gone.
    /// So full that nothing is taken from senders, though what comes can still be written.
    crowded: bool,
    unclean: bool,
    waiting: Vec<Sent>,
    checked: u64,
    pub(crate) told: Watermark,
    pub(crate) role: Option<RoleNow>,
    pub(crate) conf: Conf,
    pub(crate) known: Known,
    writing: bool,
}

#[derive(Debug)]
enum Event {
    Tick(u64, u64),
    Deliver(Vec<u8>, Vec<u8>),
    Write(u64, u64),
    Flush(u64, u64, u64),
    Pump(u64, u64),
    Send,
    Read,
    Fault,
    Membership,
    Tables,
    Compact,
    Restart(u64),
    Heal,
    Room(u64),
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) random: Random,
    /// For what changes nothing: with and without it the rest is the same.
    aside: Random,
    pub(crate) now: u64,
    /// By so much the clocks of members that start are behind.
    pub(crate) late: u64,
    seq: u64,
    events: BTreeMap<(u64, u64), Event>,
    pub(crate) nodes: BTreeMap<u64, Node>,
    blocked: BTreeSet<(u64, u64)>,
    /// Messages that never arrive, beside those of chance.
    pub(crate) swallowed: Box<dyn Fn(&PeerMessage) -> bool>,
    /// What is committed, from index 1 on: term, and hash of everything up to here.
    pub(crate) committed: Vec<(u64, u64)>,
    /// Acknowledged records: index, hash up to here.
    pub(crate) acknowledged: Vec<(u64, u64)>,
    /// (index, term) → hash up to here: two logs that agree in one entry agree in all before.
    matching: BTreeMap<(u64, u64), u64>,
    pub(crate) leaders: BTreeMap<u64, u64>,
    /// Records that are committed, by the tries of the senders.
    taken: BTreeSet<u64>,
    pub(crate) agreed: Agreed,
    next_id: u64,
    loud: bool,
    healed: bool,
    /// Nobody sends.
    pub(crate) resting: bool,
    pub(crate) count: Told,
}

impl World {
    pub(crate) fn new(plan: Plan, loud: bool) -> Self {
        let mut world = Self {
            random: Random(plan.seed),
            aside: Random(!plan.seed),
            now: 10_000,
            late: 0,
            seq: 0,
            events: BTreeMap::new(),
            nodes: BTreeMap::new(),
            blocked: BTreeSet::new(),
            swallowed: Box::new(|_| false),
            committed: Vec::new(),
            acknowledged: Vec::new(),
            matching: BTreeMap::new(),
            leaders: BTreeMap::new(),
            taken: BTreeSet::new(),
            agreed: Agreed::default(),
            next_id: 0,
            loud: loud || crate::number(CASES).is_some(),
            healed: false,
            resting: false,
            count: Told::default(),
            plan,
        };
        world.say(|w| format!("{:?}", w.plan));
        for id in 1..=world.plan.voters {
            world.start(id);
        }
        world.at(1, Event::Send);
        world.at(1, Event::Read);
        if world.plan.fault_every > 0 {
            world.at(1000, Event::Fault);
        }
        if world.plan.change_every > 0 {
            world.at(1, Event::Tables);
        }
        if world.plan.membership {
            world.at(1500, Event::Membership);
        }
        if world.plan.compaction {
            world.at(800, Event::Compact);
        }
        world
    }

    fn say(&self, what: impl FnOnce(&Self) -> String) {
        if self.loud {
            println!("{:>7} {}", self.now, what(self));
        }
    }

    fn at(&mut self, after: u64, event: Event) {
        self.seq += 1;
        self.events.insert((self.now + after, self.seq), event);
    }

    /// What the member's property file says: the group as it was last known, and itself. Whoever changes a group keeps the
    /// files up to date; an empty volume has nothing else to begin with.
    fn configured(&self, id: u64) -> Conf {
        let mut ids: BTreeSet<u64> = match self.newest_conf() {
            Some(conf) => conf.voters.into_iter().chain(conf.learners).collect(),
            None => (1..=self.plan.voters).collect(),
        };
        ids.insert(id);
        Conf::of_voters(ids.into_iter().map(|i| (i, format!("n{i}:1"))))
    }

    /// Starts a member on whatever its disk holds.
    pub(crate) fn start(&mut self, id: u64) {
        let configured = self.configured(id);
        let sync = self.plan.sync[id as usize - 1];
        // Machines do not agree on the time, and some come back with an earlier one.
        let late = self.late + self.aside.below(5) * self.aside.below(1000);
        let now_ms = self.now.saturating_sub(late);
        let node = self.nodes.entry(id).or_insert_with(|| Node {
            disk: Rc::default(),
            member: None,
            gate: Arc::new(Gate::new(MAX_UNCOMMITTED)),
            life: 0,
            paused_until: 0,
            stalled_until: 0,
            crowded: false,
            unclean: false,
            waiting: Vec::new(),
            checked: 0,
            told: Watermark::default(),
            role: None,
            conf: Conf::default(),
            known: Known::default(),
            writing: false,
        });
        assert!(node.member.is_none());
        node.disk.borrow_mut().start(sync);
        node.life += 1;
        node.gate = Arc::new(Gate::new(MAX_UNCOMMITTED));
        node.checked = 0;
        node.told = Watermark::default();
        node.waiting.clear();
        node.role = None;
        node.writing = false;
        let tables = self.load_tables(id);
        let node = self.nodes.get_mut(&id).expect("just made");
        let saved = node.disk.borrow().state.clone();
        let saved = saved.map(|bytes| HardState::decode(&bytes).expect("a whole state file"));
        let settings = Settings {
            id,
            conf: configured,
            preferred: self.plan.preferred,
            unclean: std::mem::take(&mut node.unclean),
            tables,
            now_ms,
            seed: self.plan.seed ^ node.life << 32,
        };
        let member = Member::new(
            settings,
            saved,
            SimLog(Rc::clone(&node.disk)),
            SimFile(Rc::clone(&node.disk)),
            Arc::clone(&node.gate),
        )
        .expect("a member starts on what a crash left");
        node.conf = member.status().conf;
        let (life, standing) = (node.life, member.hard_state().standing);
        node.member = Some(member);
        self.say(|_| format!("n{id} starts, {standing:?}"));
        let first = self.random.below(TICK_MS);
        self.at(first, Event::Tick(id, life));
        self.settle(id);
    }

    /// The process ends; its disk keeps what `keep` says.
    fn stop(&mut self, id: u64, keep: impl FnOnce(&mut Random, &Disk) -> u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        node.member = None;
        node.paused_until = 0;
        let mut disk = node.disk.borrow_mut();
        let keep = keep(&mut self.random, &disk);
        disk.crash(keep);
        self.count.doubtful += node.waiting.len() as u64;
        node.waiting.clear();
    }

    pub(crate) fn kill(&mut self, id: u64) {
        self.say(|_| format!("n{id} is killed"));
        self.count.process_crashes += 1;
        self.stop(id, |_, disk| disk.written);
    }

    /// The machine goes down: of what was not synced some first part may be left.
    pub(crate) fn power_cut(&mut self, id: u64) {
        self.count.machine_crashes += 1;
        self.stop(id, |r, disk| {
            disk.flushed + r.below(disk.written - disk.flushed + 1)
        });
        self.doubt(id);
        self.say(|w| {
            format!(
                "n{id} loses power, {} is left",
                w.nodes[&id].disk.borrow().appended()
            )
        });
    }

    /// The process ends because its disk failed. What was written and never synced may still be found in memory, or some
    /// first part of it; whatever is found is written again before it counts.
    fn fail(&mut self, id: u64) {
        self.stop(id, |r, disk| {
            disk.flushed + r.below(disk.written - disk.flushed + 1)
        });
        self.doubt(id);
    }

    /// What this life of the member acknowledged may be gone, unless all of it was on disk.
    fn doubt(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.unclean |= !node.disk.borrow().sync;
        }
    }

    /// The volume is lost.
    pub(crate) fn empty(&mut self, id: u64) {
        self.say(|_| format!("n{id} loses its volume"));
        self.count.emptied += 1;
        self.stop(id, |_, disk| disk.base.index);
        if let Some(node) = self.nodes.get_mut(&id) {
            *node.disk.borrow_mut() = Disk::default();
            node.unclean = false;
        }
    }

    pub(crate) fn isolate(&mut self, id: u64) {
        for other in self.nodes.keys().copied().filter(|&other| other != id) {
            self.blocked.insert((id, other));
            self.blocked.insert((other, id));
        }
    }

    pub(crate) fn reconnect(&mut self) {
        self.blocked.clear();
    }

    pub(crate) fn freeze(&mut self, id: u64, ms: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.paused_until = self.now + ms;
        }
    }

    /// No write of this member's reaches the disk for so long.
    pub(crate) fn stall_disk(&mut self, id: u64, ms: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.stalled_until = self.now + ms;
        }
    }

    /// The member's disk takes nothing from now on, or something again.
    pub(crate) fn fill_disk(&mut self, id: u64, full: bool) {
        self.node(id).disk.borrow_mut().full = full;
    }

    /// The member's disk is too full for senders from now on, or not any more.
    pub(crate) fn crowd_disk(&mut self, id: u64, crowded: bool) {
        self.node(id).crowded = crowded;
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        let leading =
            |n: &Node| n.member.is_some() && n.role.is_some_and(|r| r.role == Role::Leading);
        self.nodes
            .iter()
            .filter(|(_, n)| leading(n))
            .max_by_key(|(_, n)| n.role.map(|r| r.term))
            .map(|(&id, _)| id)
    }

    /// A group may lose a member once everybody's word counts, not before.
    pub(crate) fn all_sound(&self) -> bool {
        let sound = |m: &SimMember| m.hard_state().standing == Standing::Sound;
        self.nodes
            .values()
            .all(|n| n.member.as_ref().is_some_and(sound))
    }

    pub(crate) fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("a known member")
    }

    pub(crate) fn member(&mut self, id: u64) -> &mut SimMember {
        let node = self.node(id);
        node.member.as_mut().expect("a running member")
    }

    /// Runs until `done`, at most so long; whether it was.
    pub(crate) fn until(&mut self, ms: u64, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + ms;
        while !done(self) {
            match self.events.first_key_value() {
                Some((&(at, _), _)) if at <= end => self.one(),
                _ => {
                    self.now = end;
                    return done(self);
                }
            }
        }
        true
    }

    pub(crate) fn for_ms(&mut self, ms: u64) {
        self.until(ms, |_| false);
    }

    pub(crate) fn run(mut self) -> Told {
        self.for_ms(self.plan.length);
        self.heal();
        self.count
    }

    /// Everything works again: the group must be whole within a time, and hold what was acknowledged.
    pub(crate) fn heal(&mut self) {
        self.say(|_| "everything works again".into());
        self.healed = true;
        self.blocked.clear();
        self.swallowed = Box::new(|_| false);
        self.plan.loss = 0;
        self.plan.double = 0;
        self.plan.max_delay = 5;
        let all: Vec<u64> = self.nodes.keys().copied().collect();
        for id in all {
            let node = self.node(id);
            node.stalled_until = 0;
            node.paused_until = 0;
            node.crowded = false;
            node.disk.borrow_mut().full = false;
            if node.disk.borrow().broken {
                self.fail(id);
            }
        }
        let down: Vec<u64> = self
            .nodes
            .iter()
            .filter(|(_, n)| n.member.is_none() && n.conf.voters.len() < 100)
            .map(|(&id, _)| id)
            .collect();
        for id in down {
            if self.belongs(id) {
                self.start(id);
            }
        }
        self.resting = true;
        let whole = self.until(HEALED_WITHIN, Self::is_whole);
        assert!(whole, "the group is not whole again: {}", self.state());
        let before = self.acknowledged.len();
        self.resting = false;
        let goes_on = self.until(HEALED_WITHIN, |w| w.acknowledged.len() > before + 3);
        assert!(
            goes_on,
            "nothing is acknowledged any more: {}",
            self.state()
        );
        self.resting = true;
        assert!(self.until(HEALED_WITHIN, Self::is_whole));
        let all: Vec<u64> = self.nodes.keys().copied().collect();
        let all: Vec<u64> = all.into_iter().filter(|&id| self.belongs(id)).collect();
        for &id in &all {
            self.check_acknowledged(id, u64::MAX);
        }
        self.check_all_tables(&all);
        self.count.leaders = self.leaders.len() as u64;
        self.count.acknowledged = self.acknowledged.len() as u64;
    }

    fn state(&self) -> String {
        let members = self.nodes.iter().map(|(id, n)| {
            let status = n.member.as_ref().map(SimMember::status);
            format!("\n n{id} {status:?}")
        });
        members.collect()
    }

    /// Whether the newest configuration that anybody has names it.
    fn belongs(&self, id: u64) -> bool {
        self.newest_conf().is_none_or(|conf| conf.contains(id))
    }

    fn newest_conf(&self) -> Option<Conf> {
        self.nodes
            .values()
            .filter_map(|n| {
                let bytes = n.disk.borrow().state.clone()?;
                let state = HardState::decode(&bytes)?;
                let (from, conf) = state.conf()?.clone();
                (from > 0 || self.plan.voters as usize >= conf.voters.len()).then_some((from, conf))
            })
            .max_by_key(|(from, _)| *from)
            .map(|(_, conf)| conf)
    }

    fn is_whole(&self) -> bool {
        let Some(leader) = self.leader() else {
            return false;
        };
        let Some(lead) = self.nodes[&leader].member.as_ref() else {
            return false;
        };
        let status = lead.status();
        let last = status.last;
        status.persisted == last
            && status.committed == last
            && !self.nodes[&leader].gate.is_waiting()
            && status
                .conf
                .voters
                .iter()
                .chain(&status.conf.learners)
                .all(|id| {
                    self.nodes
                        .get(id)
                        .and_then(|n| n.member.as_ref())
                        .is_some_and(|m| {
                            let s = m.status();
                            s.last == last
                                && s.committed == last
                                && s.standing == Standing::Sound
                                && s.conf == status.conf
                        })
                })
    }

    fn one(&mut self) {
        let Some(((at, _), event)) = self.events.pop_first() else {
            return;
        };
        self.now = at;
        self.count.events += 1;
        assert!(
            self.count.events < MAX_EVENTS && self.events.len() < MAX_EVENTS as usize / 10,
            "messages breed: {}",
            self.state()
        );
        let whom = match &event {
            Event::Tick(id, life)
            | Event::Write(id, life)
            | Event::Flush(id, life, _)
            | Event::Pump(id, life) => {
                let Some(node) = self
                    .nodes
                    .get(id)
                    .filter(|n| n.life == *life && n.member.is_some())
                else {
                    return;
                };
                if node.paused_until > self.now && !matches!(event, Event::Flush(..)) {
                    let wait = node.paused_until - self.now;
                    self.at(wait, event);
                    return;
                }
                Some(*id)
            }
            _ => None,
        };
        match event {
            Event::Tick(id, life) => {
                let node = self.node(id);
                let room = !node.crowded && !node.disk.borrow().full;
                self.on(id, |member| {
                    member.set_room(room);
                    member.tick()
                });
                // No two clocks run alike, and some jump.
                let mut next = TICK_MS - 1 + self.random.below(3);
                if self.plan.fault_every > 0 && !self.healed && self.random.permille(2) {
                    for _ in 0..self.random.below(2 * ELECTION_TICKS as u64) {
                        self.on(id, SimMember::tick);
                    }
                    next += self.random.below(200);
                }
                self.at(next, Event::Tick(id, life));
            }
            Event::Deliver(bytes, frames) => self.deliver(bytes, frames),
            Event::Write(id, life) => self.write(id, life),
            Event::Flush(id, _, upto) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    let mut disk = node.disk.borrow_mut();
                    disk.flushed = disk.flushed.max(upto.min(disk.written));
                }
                self.on(id, SimMember::persisted);
            }
            Event::Pump(id, _) => self.on(id, SimMember::pump),
            Event::Send => {
                let wait = 1 + self.random.below(2 * self.plan.send_every);
                self.at(wait, Event::Send);
                if !self.resting {
                    self.send();
                }
            }
            Event::Read => {
                let wait = 1 + self.aside.below(4 * self.plan.send_every);
                self.at(wait, Event::Read);
                let mut whom = self.up();
                if self.aside.permille(700) {
                    // All who say that they lead, of whom one may be wrong.
                    whom.retain(|id| self.nodes[id].role.is_some_and(|r| r.role == Role::Leading));
                }
                if let Some(id) = self.aside.pick(&whom) {
                    self.read(id);
                }
            }
            Event::Fault => {
                if !self.healed {
                    let wait = 1 + self.random.below(2 * self.plan.fault_every);
                    self.at(wait, Event::Fault);
                    self.fault();
                }
            }
            Event::Membership => {
                if !self.healed {
                    let wait = 100 + self.random.below(800);
                    self.at(wait, Event::Membership);
                    self.change_membership();
                }
            }
            Event::Tables => {
                let wait = 1 + self.random.below(2 * self.plan.change_every);
                self.at(wait, Event::Tables);
                if !self.resting {
                    self.change_tables();
                }
            }
            Event::Compact => {
                self.at(400, Event::Compact);
                let up: Vec<u64> = self.up();
                if let Some(id) = self.random.pick(&up) {
                    self.compact(id);
                }
            }
            Event::Restart(id) => {
                if self.nodes[&id].member.is_none() && self.belongs(id) {
                    if self.random.permille(100) {
                        // Somebody changed `flushDiskType`: what the last life promised stays what it was.
                        let sync = &mut self.plan.sync[id as usize - 1];
                        *sync = !*sync;
                    }
                    self.start(id);
                }
            }
            Event::Heal => self.blocked.clear(),
            Event::Room(id) => self.fill_disk(id, false),
        }
        if let Some(id) = whom {
            self.check_order(id);
        }
    }

    pub(crate) fn compact(&mut self, id: u64) {
        self.save_tables(id);
        let kept_from = self.kept_from(id);
        let member = self.member(id);
        let limit = member.compactable().min(kept_from);
        member.log_mut().0.borrow_mut().compact(limit);
        self.on(id, SimMember::compacted);
    }

    pub(crate) fn up(&self) -> Vec<u64> {
        let up = |n: &Node| n.member.is_some() && n.paused_until <= self.now;
        self.nodes
            .iter()
            .filter(|(_, n)| up(n))
            .map(|(&id, _)| id)
            .collect()
    }

    /// One call of a member, and everything that follows from it. An error is a process that ends.
    pub(crate) fn on<E: std::fmt::Debug>(
        &mut self,
        id: u64,
        call: impl FnOnce(&mut SimMember) -> Result<(), E>,
    ) {
        let Some(member) = self.nodes.get_mut(&id).and_then(|n| n.member.as_mut()) else {
            return;
        };
        let looked = member.log().0.borrow().looked.get();
        match call(member) {
            Ok(()) => {
                let log = member.log().0.borrow();
                let cost = log.looked.get() - looked;
                assert!(
                    cost <= 64 + 8 * (log.frames.len() as u64),
                    "{cost} look-ups in one call"
                );
                drop(log);
                self.settle(id);
            }
            Err(e) => {
                let broken = member.log().0.borrow().broken;
                assert!(broken, "n{id} failed though its disk works: {e:?}");
                self.say(|_| format!("n{id} stops: {e:?}"));
                self.fail(id);
                self.at(300, Event::Restart(id));
            }
        }
    }

    /// The effects of a call.
    fn settle(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let Some(member) = node.member.as_mut() else {
            return;
        };
        let Output {
            messages,
            commit,
            role,
            cut,
            conf,
            tables,
            anew,
        } = member.take_output();
        assert!(
            member.unstable() <= 1,
            "the library holds {} entries",
            member.unstable()
        );
        {
            let mut disk = node.disk.borrow_mut();
            // Log matching: of whatever came to lie in the log.
            for index in disk.compared.max(disk.base.index) + 1..=disk.adopted {
                let term = disk.frame(index).expect("an entry of the log").0.term;
                let chain = disk.chain(index);
                let known = *self.matching.entry((index, term)).or_insert(chain);
                assert_eq!(known, chain, "n{id}: entry {index} of term {term} differs");
            }
            disk.compared = disk.adopted;
            let base = disk.base.index;
            if base > 0 && !disk.chains.contains_key(&base) {
                let known = self.committed[base as usize - 1].1;
                disk.chains.insert(base, known);
                self.count.snapshots += 1;
                node.checked = node.checked.max(base);
            }
        }
        if let Some(cut) = cut {
            self.count.cuts += 1;
            let before = node.waiting.len();
            node.waiting.retain(|s| s.end <= cut);
            self.count.doubtful += (before - node.waiting.len()) as u64;
        }
        if let Some(conf) = conf {
            node.conf = conf;
        }
        let mut begins_to_lead = false;
        if let Some(now) = role {
            let before = node.role.replace(now);
            if !matches!(now.role, Role::Leading) {
                self.count.doubtful += node.waiting.len() as u64;
                node.waiting.clear();
            }
            if matches!(now.role, Role::Elected | Role::Leading) {
                let first = *self.leaders.entry(now.term).or_insert(id);
                assert_eq!(first, id, "two leaders in term {}", now.term);
            }
            self.say(|_| format!("n{id} {now:?}"));
            if now.role == Role::Leading && before.is_none_or(|b| b.role != Role::Leading) {
                begins_to_lead = true;
                self.check_acknowledged(id, now.term);
                // Whoever led before may not know it yet.
                for other in self.up().into_iter().filter(|&other| other != id) {
                    self.read(other);
                }
            }
        }
        if let Some(commit) = commit {
            self.committed_on(id, commit);
        }
        self.settle_tables(id, cut, role, anew, &tables);
        if begins_to_lead {
            self.check_leads_tables(id);
        }
        for m in messages {
            self.post(m);
        }
        self.schedule_write(id);
    }

    pub(crate) fn pump_in(&mut self, id: u64, life: u64, wait: u64) {
        self.at(wait, Event::Pump(id, life));
    }

    pub(crate) fn schedule_write(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let disk = node.disk.borrow();
        if node.writing || disk.appended() == disk.flushed {
            return;
        }
        drop(disk);
        node.writing = true;
        let (life, stalled) = (node.life, node.stalled_until.saturating_sub(self.now));
        let wait = stalled + self.random.below(3);
        self.at(wait, Event::Write(id, life));
    }

    fn write(&mut self, id: u64, life: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if node.disk.borrow().full {
            self.at(TICK_MS, Event::Write(id, life));
            return;
        }
        node.writing = false;
        let upto = {
            let mut disk = node.disk.borrow_mut();
            disk.written = disk.appended();
            disk.written
        };
        let wait = 1 + self.random.below(8) + node.stalled_until.saturating_sub(self.now);
        self.at(wait, Event::Flush(id, life, upto));
        self.on(id, SimMember::persisted);
    }

    /// A member says that everything up to here is committed.
    fn committed_on(&mut self, id: u64, commit: Watermark) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        assert!(commit > node.told, "n{id}: the commit mark went back");
        node.told = commit;
        let disk = node.disk.borrow();
        for index in node.checked.max(disk.base.index) + 1..=commit.index {
            let (d, frame) = disk.frame(index).expect("what is committed is in the log");
            let of_this = (d.term, disk.chain(index));
            match self.committed.get(index as usize - 1) {
                Some(known) => {
                    assert_eq!(*known, of_this, "n{id}: committed entry {index} changed")
                }
                None => {
                    assert_eq!(self.committed.len() as u64, index - 1);
                    self.committed.push(of_this);
                    if d.kind == Kind::Records {
                        let once = self.taken.insert(disk::record(frame));
                        assert!(
                            once,
                            "n{id}: one try to send is committed twice, as {index} too"
                        );
                    }
                }
            }
            if index == commit.index {
                assert_eq!(d.end(), commit.position);
            }
        }
        node.checked = commit.index;
        drop(disk);
        let mut newest = self.acknowledged.last().map_or(0, |a| a.0);
        let (done, rest): (Vec<Sent>, Vec<Sent>) =
            node.waiting.iter().partition(|s| s.end <= commit.position);
        node.waiting = rest;
        for sent in done {
            let disk = node.disk.borrow();
            let frame = &disk.frame(sent.index).expect("an acknowledged frame").1;
            assert_eq!(disk::record(frame), sent.id, "another record lies there");
            assert!(
                sent.index > sent.after,
                "a record came before one that was acknowledged before it was sent"
            );
            self.acknowledged.push((sent.index, disk.chain(sent.index)));
            newest = newest.max(sent.index);
        }
        self.acknowledged.sort_unstable();
    }

    /// Every record that was acknowledged by leaders before this term is in this log, where it was. (A leader that was cut
    /// off may still learn that its first entry is committed when others long lead.)
    fn check_acknowledged(&self, id: u64, before: u64) {
        let disk = self.nodes[&id].disk.borrow();
        for &(index, chain) in &self.acknowledged {
            if index > disk.base.index && self.committed[index as usize - 1].0 < before {
                assert!(
                    index <= disk.adopted,
                    "n{id} lacks acknowledged entry {index}: {}",
                    self.state()
                );
                assert_eq!(
                    disk.chain(index),
                    chain,
                    "n{id}: acknowledged entry {index} is another"
                );
            }
        }
    }

    /// Somebody asks a member how far its log can be read. Who leads shows all that was acknowledged in its term and before;
    /// who was deposed and does not know it yet lacks only what later leaders acknowledged.
    fn read(&mut self, id: u64) {
        let node = &self.nodes[&id];
        self.count.reads += 1;
        let Some(RoleNow {
            role: Role::Leading,
            term,
            ..
        }) = node.role
        else {
            return;
        };
        self.count.reads_at_leaders += 1;
        if self
            .leaders
            .keys()
            .next_back()
            .is_some_and(|newest| *newest > term)
        {
            self.count.reads_at_deposed_leaders += 1;
        }
        let shown = node.told.index;
        let hidden = self
            .acknowledged
            .iter()
            .find(|(index, _)| *index > shown && self.committed[*index as usize - 1].0 <= term);
        assert_eq!(
            hidden, None,
            "n{id} leads in term {term} and shows entries up to {shown} only"
        );
    }

    fn check_order(&self, id: u64) {
        let node = &self.nodes[&id];
        let Some(member) = &node.member else {
            return;
        };
        let disk = node.disk.borrow();
        let (flushed, written, appended) = (disk.flushed, disk.written, disk.appended());
        assert!(
            flushed <= written && written <= appended,
            "n{id}: {flushed} {written} {appended}"
        );
        let log = member.log();
        drop(disk);
        assert!(log.base().index <= log.persisted() && log.persisted() <= log.last_index());
        assert!(member.compactable() <= log.persisted());
        assert!(node.told.index <= log.last_index());
    }

    fn post(&mut self, m: PeerMessage) {
        let Some(node) = self.nodes.get(&m.from) else {
            return;
        };
        let mut frames = Vec::new();
        if let Some(member) = &node.member {
            for e in &m.entries {
                member
                    .log()
                    .read(e, &mut frames)
                    .expect("an entry that was just there");
            }
            assert!(m.entries.len() == 1 || m.frames_len() <= APPEND_BYTES);
        }
        let mut bytes = Vec::new();
        m.encode(&mut bytes);
        if self.blocked.contains(&(m.from, m.to))
            || (self.swallowed)(&m)
            || self.random.permille(self.plan.loss)
        {
            return;
        }
        if self.random.permille(self.plan.double) {
            let wait = self.random.below(4 * self.plan.max_delay);
            self.at(wait, Event::Deliver(bytes.clone(), frames.clone()));
        }
        let wait = self.random.below(self.plan.max_delay);
        self.at(wait, Event::Deliver(bytes, frames));
    }

    fn deliver(&mut self, bytes: Vec<u8>, frames: Vec<u8>) {
        let m = PeerMessage::decode(&bytes).expect("what a member says can be read");
        let to = m.to;
        let Some(node) = self.nodes.get(&to).filter(|n| n.member.is_some()) else {
            return;
        };
        if node.paused_until > self.now {
            let wait = node.paused_until - self.now;
            self.at(wait, Event::Deliver(bytes, frames));
            return;
        }
        let standing = node.member.as_ref().map(|m| m.hard_state().standing);
        self.on(to, |member| member.step(m, &frames));
        let Some(node) = self.nodes.get(&to) else {
            return;
        };
        if standing != Some(Standing::Sound)
            && node
                .member
                .as_ref()
                .is_some_and(|m| m.hard_state().standing == Standing::Sound)
        {
            self.count.recovered += 1;
        }
        self.check_order(to);
    }

    /// A producer sends to whoever takes it.
    fn send(&mut self) {
        let up = self.up();
        let Some(id) = self.random.pick(&up) else {
            return;
        };
        // A real producer finds the leader; some still know the old one.
        let id = if self.random.permille(700) {
            self.leader().filter(|l| up.contains(l)).unwrap_or(id)
        } else {
            id
        };
        for _ in 0..=self.random.below(4) {
            if !self.send_to(id) {
                return;
            }
        }
        let life = self.nodes[&id].life;
        let wait = self.random.below(3);
        self.at(wait, Event::Pump(id, life));
    }

    /// As the send path does: index and position under one lock, then the bytes.
    pub(crate) fn send_to(&mut self, id: u64) -> bool {
        self.next_id += 1;
        let record = self.next_id;
        let size = self.random.below(120) as usize;
        let after = self.acknowledged.iter().map(|a| a.0).max().unwrap_or(0);
        let Some(node) = self.nodes.get_mut(&id) else {
            return false;
        };
        let mut payload = record.to_be_bytes().to_vec();
        payload.resize(8 + size, 7);
        let len = disk::frame_len(&payload);
        let mut disk = node.disk.borrow_mut();
        if disk.broken || disk.full || node.crowded {
            return false;
        }
        let position = disk.place(len.into());
        let Ok(stamp) = node.gate.stamp(Kind::Records, position, len) else {
            return false;
        };
        assert!(node.member.is_some());
        let d = Descriptor {
            index: stamp.index,
            term: stamp.term,
            position,
            len,
            kind: Kind::Records,
        };
        disk.push(d, disk::frame(d.index, d.term, position, d.kind, &payload));
        drop(disk);
        node.waiting.push(Sent {
            id: record,
            index: d.index,
            end: d.end(),
            after,
        });
        self.schedule_write(id);
        true
    }

    /// Whether its word does not count now, or would not if it were started.
    fn shaky(&self, id: u64) -> bool {
        let Some(node) = self.nodes.get(&id) else {
            return true;
        };
        if let Some(member) = &node.member {
            return member.hard_state().standing != Standing::Sound;
        }
        let state = node.disk.borrow().state.clone();
        let standing = state
            .and_then(|s| HardState::decode(&s))
            .map(|s| s.standing);
        standing != Some(Standing::Sound) || node.unclean
    }

    /// Whether one more voter may lose what it acknowledged: only a minority at a time, and while all agree who votes.
    fn may_lose(&self, id: u64) -> bool {
        let Some(conf) = self.newest_conf() else {
            return false;
        };
        let agreed = conf.voters.iter().chain(&conf.learners).all(|v| {
            self.nodes.get(v).is_some_and(|n| {
                let state = n.disk.borrow().state.clone();
                let state = state.and_then(|s| HardState::decode(&s));
                state.is_none_or(|s| {
                    s.conf().is_some_and(|(_, c)| *c == conf) || s.standing == Standing::Blank
                })
            })
        });
        let pending = self.nodes.values().any(|n| {
            let disk = n.disk.borrow();
            disk.frames
                .iter()
                .rev()
                .take(50)
                .any(|(d, _)| d.kind == Kind::Change && d.index > self.committed.len() as u64)
        });
        let shaky = conf
            .voters
            .iter()
            .filter(|&&v| v == id || self.shaky(v))
            .count();
        agreed && !pending && shaky <= (conf.voters.len() - 1) / 2
    }

    fn fault(&mut self) {
        let all: Vec<u64> = self
            .nodes
            .keys()
            .copied()
            .filter(|&id| self.belongs(id))
            .collect();
        let mut target = self.random.pick(&all);
        if self.random.permille(400) {
            target = self.leader().or(target);
        }
        let Some(id) = target else {
            return;
        };
        let running = self.nodes[&id].member.is_some();
        let restart_after = 50 + self.random.below(2500);
        match self.random.below(100) {
            0..20 if running => {
                self.kill(id);
                self.at(restart_after, Event::Restart(id));
            }
            20..40 if running && (self.plan.sync[id as usize - 1] || self.may_lose(id)) => {
                self.power_cut(id);
                self.at(restart_after, Event::Restart(id));
            }
            40..45 if self.plan.sync.iter().all(|&s| s) => {
                self.count.power_cuts += 1;
                for id in all {
                    if self.nodes[&id].member.is_some() {
                        self.power_cut(id);
                    }
                    let wait = 50 + self.random.below(500);
                    self.at(wait, Event::Restart(id));
                }
            }
            45..52 if self.may_lose(id) => {
                self.empty(id);
                self.at(restart_after, Event::Restart(id));
            }
            52..57 if running && (self.plan.sync[id as usize - 1] || self.may_lose(id)) => {
                self.say(|_| format!("n{id}: the disk breaks"));
                self.count.broken_disks += 1;
                self.nodes[&id].disk.borrow_mut().broken = true;
            }
            57..65 if running => {
                let ms = 100 + self.random.below(2000);
                self.say(|_| format!("n{id} is stopped for {ms} ms"));
                self.count.stopped += 1;
                self.freeze(id, ms);
            }
            65..68 => {
                let ms = 100 + self.random.below(5000);
                self.say(|_| format!("n{id}: the disk is full for {ms} ms"));
                self.fill_disk(id, true);
                self.at(ms, Event::Room(id));
            }
            68..72 => {
                let most = [1500, 6000][self.random.below(2) as usize];
                let ms = 100 + self.random.below(most);
                self.say(|_| format!("n{id}: the disk stalls for {ms} ms"));
                self.stall_disk(id, ms);
            }
            72..76 => {
                let Some(other) = self.random.pick(&all) else {
                    return;
                };
                self.say(|_| format!("connections between n{id} and n{other} break"));
                self.count.broken_connections += 1;
                for (one, another) in [(id, other), (other, id)] {
                    if self.up().contains(&one) {
                        self.on(one, |m| {
                            m.peer_lost(another);
                            Ok::<_, Infallible>(())
                        });
                    }
                }
            }
            76..90 => {
                self.count.partitions += 1;
                match self.random.below(3) {
                    0 => {
                        self.say(|_| format!("n{id} is cut off"));
                        self.isolate(id);
                    }
                    1 => {
                        let Some(other) = self.random.pick(&all) else {
                            return;
                        };
                        self.say(|_| format!("nothing goes from n{id} to n{other}"));
                        self.blocked.insert((id, other));
                    }
                    _ => {
                        let side: Vec<u64> = all
                            .iter()
                            .copied()
                            .filter(|_| self.random.permille(500))
                            .collect();
                        self.say(|_| format!("{side:?} are among themselves"));
                        for &a in &all {
                            for &b in &all {
                                if side.contains(&a) != side.contains(&b) {
                                    self.blocked.insert((a, b));
                                }
                            }
                        }
                    }
                }
                let ms = 200 + self.random.below(2500);
                self.at(ms, Event::Heal);
            }
            90..100 => {
                let Some(leader) = self.leader().filter(|l| self.up().contains(l)) else {
                    return;
                };
                if leader != id && self.member(leader).transfer(id).is_ok() {
                    self.say(|_| format!("n{leader} hands over to n{id}"));
                    self.count.hand_overs += 1;
                    self.settle(leader);
                }
            }
            _ => {}
        }
    }

    fn change_membership(&mut self) {
        let Some(leader) = self.leader().filter(|l| self.up().contains(l)) else {
            return;
        };
        let conf = self.member(leader).status().conf;
        let members: Vec<u64> = conf.voters.iter().chain(&conf.learners).copied().collect();
        let change = if let Some(&id) = conf.learners.first() {
            if self.random.permille(900) {
                Change::Promote { id }
            } else {
                Change::Remove { id }
            }
        } else if conf.voters.len() > 3 && self.random.permille(500) || conf.voters.len() >= 5 {
            let Some(id) = self.random.pick(&members) else {
                return;
            };
            Change::Remove { id }
        } else {
            let Some(id) = (1..=7).find(|id| !members.contains(id)) else {
                return;
            };
            Change::AddLearner {
                id,
                address: format!("n{id}:1"),
            }
        };
        if let Change::Promote { id } = change
            && self.shaky(id)
        {
            // Whoever lost its volume since the leader heard of it would be one voter too few from the start.
            return;
        }
        let mut proposed = None;
        self.on(leader, |m| {
            m.propose(change.clone()).map(|p| proposed = Some(p))
        });
        if !matches!(proposed, Some(Ok(_))) {
            return;
        }
        self.say(|_| format!("n{leader} proposes {change:?}"));
        self.count.changes += 1;
        if let Change::AddLearner { id, .. } = change {
            // A new pod: nothing runs under this id, and its volume is new.
            if self.nodes.get(&id).is_some_and(|n| n.member.is_some()) {
                self.stop(id, |_, disk| disk.base.index);
            }
            if let Some(node) = self.nodes.get_mut(&id) {
                *node.disk.borrow_mut() = Disk::default();
                node.unclean = false;
            }
            self.start(id);
        }
    }

    /// Records per segment, for cases that count.
    pub(crate) fn fill_segments(&mut self, id: u64, segments: u64) {
        let end = self.nodes[&id].disk.borrow().place(1) + segments * SEGMENT;
        while self.nodes[&id].disk.borrow().place(1) < end {
            self.send_to(id);
            self.on(id, SimMember::pump);
            self.for_ms(5);
        }
    }
}
