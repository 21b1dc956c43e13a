//! Topics and groups among the entries: what the group agreed on, every later leader knows, and all members alike.

use std::collections::BTreeMap;

use broker::dledger::core::{Role, RoleNow};
use broker::dledger::entry::{Descriptor, Kind};
use broker::dledger::tables::{Changes, DeletedGroup, Group, Ledger, Saved, Tables};
use remoting::protocol::body::{SubscriptionGroupConfig, TopicConfig};

use crate::disk;
use crate::world::World;

/// Topics and groups that changes are about.
const NAMES: u64 = 6;
/// A row is appended anew when so many bytes came behind it.
const BEHIND: u64 = 4 * disk::SEGMENT;
/// Bytes of rows that are appended anew at a time.
const AT_ONCE: u64 = 600;

/// What lies on a member's disk beside its log.
#[derive(Clone, Debug)]
pub(crate) struct OnDisk {
    saved: Saved,
    tables: Tables,
}

/// A member's tables.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) ledger: Ledger,
    /// The log began anew: rows are still to come.
    partial: bool,
    /// Changes that somebody waits for.
    waiting: Vec<u64>,
}

/// Rows by name, as one number each: what the tables must come to, worked out without them.
type Model = BTreeMap<String, i32>;

fn apply(model: &mut Model, changes: &Changes) {
    for t in &changes.topics {
        model.insert(t.topic_name.clone(), t.read_queue_nums);
    }
    for g in &changes.groups {
        model.insert(g.config.group_name.clone(), g.config.retry_max_times);
    }
    for name in &changes.deleted_topics {
        model.remove(name);
    }
    for group in &changes.deleted_groups {
        model.remove(&group.name);
    }
}

fn model_of(tables: &Tables) -> Model {
    let topics = tables
        .topics()
        .map(|t| (t.topic_name.clone(), t.read_queue_nums));
    let groups = tables.groups();
    let groups = groups.map(|g| (g.config.group_name.clone(), g.config.retry_max_times));
    topics.chain(groups).collect()
}

/// All that was ever agreed on, by the index of its entry.
#[derive(Default)]
pub(crate) struct Agreed {
    changes: BTreeMap<u64, Changes>,
    /// Those whose sender was told so.
    acknowledged: Vec<u64>,
}

impl Agreed {
    /// The tables after this entry.
    fn at(&self, index: u64) -> Model {
        let mut model = Model::new();
        for (_, changes) in self.changes.range(..=index) {
            apply(&mut model, changes);
        }
        model
    }
}

impl World {
    /// The tables as a start finds them; the index at which they stand.
    pub(crate) fn load_tables(&mut self, id: u64) -> u64 {
        let node = self.node(id);
        let disk = node.disk.borrow();
        let (base, last) = (disk.base.index, disk.appended());
        let ledger = match &disk.tables {
            Some(OnDisk { saved, tables }) if saved.index >= base => {
                let (topics, groups) = (tables.topics().cloned(), tables.groups().cloned());
                let tables = Tables::of(saved.oldest, topics, groups);
                Ledger::new(tables, saved.index.min(last), saved.complete)
            }
            Some(_) => Ledger::new(Tables::default(), base, true),
            None => Ledger::new(Tables::default(), base, false),
        };
        drop(disk);
        let partial = base > 0 && ledger.applied() == base;
        let applied = ledger.applied();
        node.known = Known {
            ledger,
            partial,
            waiting: Vec::new(),
        };
        applied
    }

    /// Writes the tables down, once the log holds what they came from.
    pub(crate) fn save_tables(&mut self, id: u64) {
        let node = self.node(id);
        let ledger = &node.known.ledger;
        let mut disk = node.disk.borrow_mut();
        if node.member.is_none() || disk.broken || disk.flushed < ledger.applied() {
            return;
        }
        let saved = Saved {
            // What is told and flushed is applied, entries of tables or not.
            index: ledger.applied().max(node.told.index.min(disk.flushed)),
            oldest: ledger.agreed().oldest().unwrap_or(0),
            complete: ledger.is_complete(),
            ..Saved::default()
        };
        let tables = Tables::clone(ledger.agreed());
        disk.tables = Some(OnDisk { saved, tables });
    }

    /// Retention leaves entries from here on.
    pub(crate) fn kept_from(&self, id: u64) -> u64 {
        let disk = self.nodes[&id].disk.borrow();
        disk.tables.as_ref().map_or(1, |t| t.saved.keep_from())
    }

    /// Somebody changes a topic or a group on whoever takes it, and a leader does what it owes the tables.
    pub(crate) fn change_tables(&mut self) {
        let up = self.up();
        for id in &up {
            if self.random.permille(300) {
                self.save_tables(*id);
            }
        }
        let Some(any) = self.random.pick(&up) else {
            return;
        };
        let id = self.leader().filter(|l| up.contains(l)).unwrap_or(any);
        self.renew(id);
        for _ in 0..=self.random.below(3) {
            let changes = self.some_changes();
            if self.append_changes(id, changes) {
                let known = &mut self.node(id).known;
                known.waiting.push(known.ledger.newest());
            }
        }
        let (life, wait) = (self.nodes[&id].life, self.random.below(3));
        self.pump_in(id, life, wait);
    }

    fn some_changes(&mut self) -> Changes {
        let name = self.random.below(NAMES);
        let number = self.random.below(1 << 20) as i32;
        match self.random.below(10) {
            0..5 => Changes::of_topics([TopicConfig {
                read_queue_nums: number,
                ..TopicConfig::new(format!("t{name}"), 4, 6)
            }]),
            5..8 => Changes::of_groups([Group {
                config: SubscriptionGroupConfig {
                    retry_max_times: number,
                    ..SubscriptionGroupConfig::new(format!("g{name}"))
                },
                forbidden: BTreeMap::new(),
            }]),
            8 => Changes {
                deleted_topics: vec![format!("t{name}")],
                ..Changes::default()
            },
            _ => Changes {
                deleted_groups: vec![DeletedGroup {
                    name: format!("g{name}"),
                    offsets: false,
                }],
                ..Changes::default()
            },
        }
    }

    /// As a leader's broker does from time to time.
    fn renew(&mut self, id: u64) {
        let due = {
            let node = &self.nodes[&id];
            let disk = node.disk.borrow();
            let end = disk.frames.last().map_or(0, |(d, _)| d.end());
            let old = disk
                .frames
                .iter()
                .take_while(|(d, _)| d.end() + BEHIND < end);
            let below = old.last().map_or(disk.base.index, |(d, _)| d.index);
            node.known.ledger.due(below + 1, AT_ONCE)
        };
        if due != Changes::default() && self.append_changes(id, due) {
            self.count.renewed += 1;
        }
    }

    /// Appends a change through the gate, as the send path does.
    pub(crate) fn append_changes(&mut self, id: u64, changes: Changes) -> bool {
        let node = self.node(id);
        if node.member.is_none()
            || node.disk.borrow().full
            || node.known.ledger.refuses(&changes).is_some()
        {
            return false;
        }
        let payload = changes.encode();
        let len = disk::frame_len(&payload);
        if u64::from(len) > disk::SEGMENT / 2 {
            return false;
        }
        let mut disk = node.disk.borrow_mut();
        let position = disk.place(len.into());
        if disk.broken {
            return false;
        }
        let Ok(stamp) = node.gate.stamp(Kind::Tables, position, len) else {
            return false;
        };
        let d = Descriptor {
            index: stamp.index,
            term: stamp.term,
            position,
            len,
            kind: Kind::Tables,
        };
        disk.push(d, disk::frame(d.index, d.term, position, d.kind, &payload));
        drop(disk);
        node.known.ledger.propose(d.index, position, changes);
        node.known.ledger.show(1);
        self.check_shown(id);
        self.schedule_write(id);
        true
    }

    /// What the member shows is what is agreed on and what its own log holds beyond, neither more nor less.
    fn check_shown(&self, id: u64) {
        let node = &self.nodes[&id];
        let ledger = &node.known.ledger;
        let mut model = model_of(ledger.agreed());
        for (d, frame) in &node.disk.borrow().frames {
            if d.kind == Kind::Tables && d.index > ledger.applied() {
                let changes = Changes::decode(disk::payload(frame)).expect("a change");
                apply(&mut model, &changes);
            }
        }
        assert_eq!(model_of(&ledger.shown()), model, "n{id} shows other tables");
    }

    /// The effects of a member's call on its tables, in the order in which a broker takes them.
    pub(crate) fn settle_tables(
        &mut self,
        id: u64,
        cut: Option<u64>,
        role: Option<RoleNow>,
        anew: Option<u64>,
        told: &[u64],
    ) {
        let node = self.nodes.get_mut(&id).expect("a known member");
        let known = &mut node.known;
        let doubt = |known: &mut Known, position: u64| {
            known.waiting.clear();
            u64::from(!known.ledger.cut(position).is_empty())
        };
        if let Some(position) = cut {
            self.count.taken_back += doubt(known, position);
        }
        if role.is_some_and(|now| now.role != Role::Leading) {
            self.count.taken_back += doubt(known, 0);
        }
        if let Some(index) = anew {
            known.ledger.begin_anew(index);
            known.partial = true;
        }
        for &index in told {
            let disk = node.disk.borrow();
            let (_, frame) = disk.frame(index).expect("what is told is in the log");
            let changes = Changes::decode(disk::payload(frame)).expect("a change");
            drop(disk);
            known.ledger.agree(index, &changes);
            let before = self
                .agreed
                .changes
                .entry(index)
                .or_insert_with(|| changes.clone());
            assert_eq!(
                *before, changes,
                "n{id}: a change that was agreed on is another"
            );
        }
        let applied = known.ledger.applied();
        let done = known.waiting.extract_if(.., |w| *w <= applied);
        self.agreed.acknowledged.extend(done);
        self.count.tables = self.agreed.acknowledged.len() as u64;
        if !told.is_empty() || anew.is_some() {
            self.check_tables(id);
        }
        if cut.is_some() && self.nodes[&id].known.ledger.waits() {
            self.check_shown(id);
        }
    }

    /// At the same index all members have the same tables; one whose log began anew has them once its rows have come.
    fn check_tables(&mut self, id: u64) {
        let known = &self.nodes[&id].known;
        let wanted = self.agreed.at(known.ledger.applied());
        let same = model_of(known.ledger.agreed()) == wanted;
        assert!(
            same || known.partial,
            "n{id}: {:?} instead of {wanted:?}",
            model_of(known.ledger.agreed())
        );
        self.node(id).known.partial &= !same;
    }

    /// A member that leads knows all that earlier leaders said was done, and all of the tables.
    pub(crate) fn check_leads_tables(&self, id: u64) {
        let known = &self.nodes[&id].known;
        let applied = known.ledger.applied();
        let term = |index: u64| self.committed[index as usize - 1].0;
        let now = self.nodes[&id].role.map_or(0, |r| r.term);
        for &index in &self.agreed.acknowledged {
            assert!(
                index <= applied || term(index) >= now,
                "n{id} leads and does not know of entry {index}"
            );
        }
        assert_eq!(
            model_of(known.ledger.agreed()),
            self.agreed.at(applied),
            "n{id} leads with other tables"
        );
    }

    /// After everything works again.
    pub(crate) fn check_all_tables(&self, ids: &[u64]) {
        let all = self.agreed.at(u64::MAX);
        for id in ids {
            let ledger = &self.nodes[id].known.ledger;
            assert!(!ledger.waits(), "n{id} waits for what is agreed on");
            assert_eq!(model_of(ledger.agreed()), all, "n{id} has other tables");
        }
    }
}
