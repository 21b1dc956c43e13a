//! Topics and consumer groups as entries of the group's log: every leader knows what an earlier one acknowledged.
//!
//! A leader's broker shows a change at once and appends it ([`GroupTables`]): a record of a new topic lies behind
//! the topic, and its commit is that of both. Who asked for a change is answered when it is applied. Every member applies
//! what is committed in the order of the log, on a thread of its own, and shows no record behind a change that it has not
//! applied; what a lost leader showed and the group never agreed on is taken back.
//!
//! A change says what a row is from now on, or that it is gone, so applying one again does no harm. Hence `topics.json` and
//! `subscriptionGroup.json` may be newer than the index saved behind them, and what was committed since then is read again.
//! No member sends tables beside the log: **applied to empty tables, the retained log gives the tables**. Each row knows
//! its last entry ([`Tables`]), retention leaves that entry alone, and the leader appends a row anew before it holds up much.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use remoting::protocol::body::{SubscriptionGroupConfig, TopicConfig};
use serde::{Deserialize, Serialize};
use store::{FRAME_HEADER, PutError, Store};
use tokio::sync::watch;

use super::entry::Kind;
use crate::broker::Broker;
use crate::config_file;
use crate::topic::validate_name;

const VERSION: u8 = 1;
/// Bytes of one entry, give or take a row: about what one message between members carries in any case.
const MAX_PIECE: u64 = 256 * 1024;
/// A segment holds several entries of tables.
const PIECES_A_SEGMENT: u64 = 8;
/// Bytes of rows that are appended anew at a time.
const RENEWED_AT_ONCE: u64 = 4 * MAX_PIECE;
/// Rows are appended anew when so many times the bytes of all of them were appended behind one, or a whole segment.
const RENEW_BEHIND: u64 = 16;
/// A change that is not applied by then is in doubt: clients wait 3 s.
const AGREED_WITHIN: Duration = Duration::from_secs(3);
/// How often tables that changed are saved, and rows looked for that are to be appended anew.
const UPKEEP_EVERY: Duration = Duration::from_millis(500);
/// How often, and after how many entries, the index is saved while the tables stay as they are: what a restart looks through
/// again.
const INDEX_EVERY: Duration = Duration::from_secs(5);
const INDEX_ENTRIES: u64 = 65_536;
/// The log's flush is waited for that long before tables are saved.
const FLUSHED_WITHIN: Duration = Duration::from_secs(5);
/// A look at a mark of the store that moved without a word.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// One consumer group: its settings, and by topic what a 5.x tool (353) forbade it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The settings.
    pub config: SubscriptionGroupConfig,
    /// Bits by topic.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub forbidden: BTreeMap<String, i32>,
}

/// A group that is deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedGroup {
    /// Its name.
    pub name: String,
    /// Whether its consumer offsets go too.
    pub offsets: bool,
}

/// What one entry says: rows as they are from now on, and rows that are gone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Changes {
    /// Topics as they are now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<TopicConfig>,
    /// Topics that are gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deleted_topics: Vec<String>,
    /// Groups as they are now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// Groups that are gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deleted_groups: Vec<DeletedGroup>,
    /// With this entry the log holds every row: what a member had before the group kept tables in its log is gone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
}

fn weight(row: &impl Serialize) -> u64 {
    serde_json::to_vec(row).map_or(0, |text| text.len() as u64)
}

impl Changes {
    /// These topics as they are now.
    pub fn of_topics(topics: impl IntoIterator<Item = TopicConfig>) -> Self {
        Self {
            topics: topics.into_iter().collect(),
            ..Self::default()
        }
    }

    /// These groups as they are now.
    pub fn of_groups(groups: impl IntoIterator<Item = Group>) -> Self {
        Self {
            groups: groups.into_iter().collect(),
            ..Self::default()
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it says anything of topics.
    pub(crate) fn touches_topics(&self) -> bool {
        !self.topics.is_empty() || !self.deleted_topics.is_empty()
    }

    /// Whether it says anything of groups.
    pub(crate) fn touches_groups(&self) -> bool {
        !self.groups.is_empty() || !self.deleted_groups.is_empty()
    }

    /// A byte for the version, then JSON.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        if let Err(error) = serde_json::to_writer(&mut out, self) {
            // Text and numbers always have a JSON form.
            debug_assert!(false, "{error}");
        }
        out
    }

    /// `None` for anything that [`Changes::encode`] of this version does not write. Topics whose names cannot be those of
    /// folders are left out.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&VERSION, text) = bytes.split_first()? else {
            return None;
        };
        let mut changes: Self = serde_json::from_slice(text).ok()?;
        changes
            .topics
            .retain(|topic| validate_name(&topic.topic_name).is_ok());
        Some(changes)
    }

    /// The same in entries of at most `limit` bytes, or of one row.
    fn pieces(self, limit: u64) -> Vec<Self> {
        let mut pieces = vec![Self::default()];
        let mut used = 0;
        let mut place = |bytes: u64| {
            if used > 0 && used + bytes > limit {
                pieces.push(Self::default());
                used = 0;
            }
            used += bytes;
            pieces.len() - 1
        };
        let topics: Vec<usize> = self.topics.iter().map(|t| place(weight(t))).collect();
        let gone: Vec<usize> = self
            .deleted_topics
            .iter()
            .map(|t| place(weight(t)))
            .collect();
        let groups: Vec<usize> = self.groups.iter().map(|g| place(weight(g))).collect();
        let left: Vec<usize> = self
            .deleted_groups
            .iter()
            .map(|g| place(weight(g)))
            .collect();
        for (at, topic) in topics.into_iter().zip(self.topics) {
            pieces[at].topics.push(topic);
        }
        for (at, topic) in gone.into_iter().zip(self.deleted_topics) {
            pieces[at].deleted_topics.push(topic);
        }
        for (at, group) in groups.into_iter().zip(self.groups) {
            pieces[at].groups.push(group);
        }
        for (at, group) in left.into_iter().zip(self.deleted_groups) {
            pieces[at].deleted_groups.push(group);
        }
        if let Some(last) = pieces.last_mut() {
            last.whole = self.whole;
        }
        pieces
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    Topic(String),
    Group(String),
}

#[derive(Clone, Debug)]
struct Row<T> {
    value: T,
    /// The entry that said so last; 0 for a row that came from no entry.
    index: u64,
    bytes: u64,
}

/// Both tables as they follow from the log up to some index. Equal when their rows are, however old.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    topics: BTreeMap<String, Row<TopicConfig>>,
    groups: BTreeMap<String, Row<Group>>,
    by_age: BTreeSet<(u64, Key)>,
    bytes: u64,
}

impl PartialEq for Tables {
    fn eq(&self, other: &Self) -> bool {
        self.topics().eq(other.topics()) && self.groups().eq(other.groups())
    }
}

impl Tables {
    /// These rows, all of which an entry at `index` or later says; 0 for rows that came from no entry.
    pub fn of(
        index: u64,
        topics: impl IntoIterator<Item = TopicConfig>,
        groups: impl IntoIterator<Item = Group>,
    ) -> Self {
        let mut tables = Self::default();
        topics.into_iter().for_each(|t| tables.put_topic(index, t));
        groups.into_iter().for_each(|g| tables.put_group(index, g));
        tables
    }

    /// The topics, by name.
    pub fn topics(&self) -> impl Iterator<Item = &TopicConfig> {
        self.topics.values().map(|row| &row.value)
    }

    /// The groups, by name.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values().map(|row| &row.value)
    }

    /// Whether there is such a topic.
    pub fn has_topic(&self, name: &str) -> bool {
        self.topics.contains_key(name)
    }

    /// The last entry of the row that has not been appended for longest; `None` when no row came from an entry.
    pub fn oldest(&self) -> Option<u64> {
        let first = (1, Key::Topic(String::new()));
        self.by_age.range(first..).next().map(|(index, _)| *index)
    }

    /// Applies what the entry at `index` says.
    pub fn apply(&mut self, index: u64, changes: &Changes) {
        for topic in &changes.topics {
            self.put_topic(index, topic.clone());
        }
        for name in &changes.deleted_topics {
            self.remove(&Key::Topic(name.clone()));
        }
        for group in &changes.groups {
            self.put_group(index, group.clone());
        }
        for group in &changes.deleted_groups {
            self.remove(&Key::Group(group.name.clone()));
        }
        if changes.whole {
            for key in self.before(1) {
                self.remove(&key);
            }
        }
    }

    fn put_topic(&mut self, index: u64, value: TopicConfig) {
        let name = value.topic_name.clone();
        self.remove(&Key::Topic(name.clone()));
        self.by_age.insert((index, Key::Topic(name.clone())));
        let bytes = weight(&value);
        self.bytes += bytes;
        self.topics.insert(
            name,
            Row {
                value,
                index,
                bytes,
            },
        );
    }

    fn put_group(&mut self, index: u64, value: Group) {
        let name = value.config.group_name.clone();
        self.remove(&Key::Group(name.clone()));
        self.by_age.insert((index, Key::Group(name.clone())));
        let bytes = weight(&value);
        self.bytes += bytes;
        self.groups.insert(
            name,
            Row {
                value,
                index,
                bytes,
            },
        );
    }

    fn remove(&mut self, key: &Key) {
        let gone = match key {
            Key::Topic(name) => self.topics.remove(name).map(|row| (row.index, row.bytes)),
            Key::Group(name) => self.groups.remove(name).map(|row| (row.index, row.bytes)),
        };
        if let Some((index, bytes)) = gone {
            self.by_age.remove(&(index, key.clone()));
            self.bytes -= bytes;
        }
    }

    /// Rows whose last entry lies before `index`, the oldest first.
    fn before(&self, index: u64) -> Vec<Key> {
        let older = self.by_age.iter().take_while(|(at, _)| *at < index);
        older.map(|(_, key)| key.clone()).collect()
    }
}

/// A change that this member appended as leader and that is not applied yet.
#[derive(Clone, Debug)]
struct Proposed {
    index: u64,
    position: u64,
    changes: Changes,
    /// Whether the broker shows it already.
    shown: bool,
}

/// What a member knows of the tables: what the group agreed on, and what this member appended beyond it.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Shared with whoever writes it down.
    agreed: Arc<Tables>,
    applied: u64,
    /// The log holds every row: [`Changes::whole`].
    complete: bool,
    proposed: VecDeque<Proposed>,
}

impl Ledger {
    /// Tables as they were saved.
    pub fn new(agreed: Tables, applied: u64, complete: bool) -> Self {
        Self {
            agreed: Arc::new(agreed),
            applied,
            complete,
            proposed: VecDeque::new(),
        }
    }

    /// What the group agreed on.
    pub fn agreed(&self) -> &Arc<Tables> {
        &self.agreed
    }

    /// The last entry whose changes are among it.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Whether all of it follows from the log.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// What a leader shows: what is agreed on, and its own changes.
    pub fn shown(&self) -> Tables {
        let mut tables = Tables::clone(&self.agreed);
        for proposed in &self.proposed {
            tables.apply(proposed.index, &proposed.changes);
        }
        tables
    }

    /// Why such changes must wait: a topic that is being deleted is not made anew before its queues are gone.
    pub fn refuses(&self, changes: &Changes) -> Option<&'static str> {
        let goes = |name: &String| {
            let mut proposed = self.proposed.iter();
            proposed.any(|p| p.changes.deleted_topics.contains(name))
        };
        let comes = changes.topics.iter().any(|t| goes(&t.topic_name));
        comes.then_some("the topic is being deleted")
    }

    /// This member appended a change; the broker does not show it before [`Ledger::show`].
    pub fn propose(&mut self, index: u64, position: u64, changes: Changes) {
        debug_assert!(self.proposed.back().is_none_or(|p| p.index < index));
        self.proposed.push_back(Proposed {
            index,
            position,
            changes,
            shown: false,
        });
    }

    /// The broker shows the changes that were appended last, so many.
    pub fn show(&mut self, count: usize) {
        for proposed in self.proposed.iter_mut().rev().take(count) {
            proposed.shown = true;
        }
    }

    /// Whether there is something that is not agreed on.
    pub fn waits(&self) -> bool {
        !self.proposed.is_empty()
    }

    /// The newest change of this member's own.
    pub fn newest(&self) -> u64 {
        self.proposed.back().map_or(self.applied, |p| p.index)
    }

    /// The group agreed on the entry at `index`. Whether the broker has yet to show it.
    pub fn agree(&mut self, index: u64, changes: &Changes) -> bool {
        if index <= self.applied {
            return false;
        }
        Arc::make_mut(&mut self.agreed).apply(index, changes);
        self.applied = index;
        self.complete |= changes.whole;
        let mut shown = false;
        while let Some(own) = self.proposed.front().filter(|p| p.index <= index) {
            shown = own.index == index && own.shown;
            self.proposed.pop_front();
        }
        !shown
    }

    /// Entries from this position on are gone, or, with 0, everything that is not agreed on is another leader's affair now.
    /// Gives back what the broker may still show of it.
    pub fn cut(&mut self, position: u64) -> Vec<Changes> {
        let keep = self.proposed.partition_point(|p| p.position < position);
        self.proposed.drain(keep..).map(|p| p.changes).collect()
    }

    /// The log begins anew behind this index; what comes says everything again.
    pub fn begin_anew(&mut self, index: u64) {
        *self = Self::new(Tables::default(), index, true);
    }

    /// What is to be appended anew: rows whose last entry lies before `index`, about `limit` bytes of them, but for those
    /// that a change of this member's own is about; before everything else the rows that came from no entry.
    pub fn due(&self, index: u64, limit: u64) -> Changes {
        let mut touched = HashSet::new();
        for Proposed { changes, .. } in &self.proposed {
            if changes.whole && !self.complete {
                return Changes::default();
            }
            let topics = changes.topics.iter().map(|t| &t.topic_name);
            let topics = topics.chain(&changes.deleted_topics);
            touched.extend(topics.cloned().map(Key::Topic));
            let groups = changes.groups.iter().map(|g| &g.config.group_name);
            let groups = groups.chain(changes.deleted_groups.iter().map(|g| &g.name));
            touched.extend(groups.cloned().map(Key::Group));
        }
        let (index, limit) = match self.complete {
            true => (index, limit),
            false => (1, u64::MAX),
        };
        let mut due = Changes {
            whole: !self.complete,
            ..Changes::default()
        };
        let mut bytes = 0;
        for key in self.agreed.before(index) {
            if touched.contains(&key) || bytes >= limit {
                continue;
            }
            match key {
                Key::Topic(name) => {
                    if let Some(row) = self.agreed.topics.get(&name) {
                        bytes += row.bytes;
                        due.topics.push(row.value.clone());
                    }
                }
                Key::Group(name) => {
                    if let Some(row) = self.agreed.groups.get(&name) {
                        bytes += row.bytes;
                        due.groups.push(row.value.clone());
                    }
                }
            }
        }
        due
    }
}

/// `<folder of the log>/tables`, saved behind the two files of the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Saved {
    /// The tables hold what entries up to this index say, or more.
    pub index: u64,
    /// No row's last entry lies before this one; 0 when there is no such row.
    pub oldest: u64,
    /// [`Ledger::is_complete`].
    pub complete: bool,
    /// Checksums that the file of the topics may have: as it was before and as it is after it is written.
    pub topics: [u32; 2],
    /// The same of the groups.
    pub groups: [u32; 2],
}

/// Where the tables are saved.
#[derive(Clone, Debug)]
pub struct Files {
    /// The folder of the log: [`Saved`].
    pub folder: PathBuf,
    /// `topics.json`.
    pub topics: PathBuf,
    /// `subscriptionGroup.json`.
    pub groups: PathBuf,
}

impl Files {
    /// Whether they are the ones that were saved with this: not lost, nor an older state that somebody put back.
    fn fit(&self, saved: &Saved) -> bool {
        let fits = |path: &Path, sums: &[u32; 2]| sum_of(path).is_some_and(|s| sums.contains(&s));
        fits(&self.topics, &saved.topics) && fits(&self.groups, &saved.groups)
    }
}

fn sum_of(path: &Path) -> Option<u32> {
    Some(crc32fast::hash(&std::fs::read(path).ok()?))
}

impl Saved {
    fn path(folder: &Path) -> PathBuf {
        folder.join("tables")
    }

    /// What the folder of the log says; nothing where the group never kept tables in it.
    pub fn load(folder: &Path) -> Result<Option<Self>, config_file::Error> {
        config_file::read(&Self::path(folder))
    }

    /// Retention leaves entries from here on: a restart reads what is behind the index, and who joins learns every row.
    pub fn keep_from(&self) -> u64 {
        match self.oldest {
            0 => self.index + 1,
            oldest => oldest.min(self.index + 1),
        }
    }
}

/// How far this member is, for those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    applied: u64,
    /// Counts how often changes of this member's own came to be in doubt.
    era: u64,
}

/// A committed entry of the log that holds changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Committed {
    pub(super) index: u64,
    /// Where it ends.
    pub(super) end: u64,
}

enum Job {
    Apply(Vec<Committed>),
    Anew(u64),
    Stop,
}

/// The tables of a member's broker, between its managers and the log.
pub struct GroupTables {
    store: Arc<Store>,
    files: Files,
    piece: u64,
    starts_empty: bool,
    /// What was known at the start.
    began: Saved,
    ledger: Mutex<Ledger>,
    progress: watch::Sender<Progress>,
    /// Everything that the log says of tables up to this index is applied.
    reached: AtomicU64,
    /// Jobs given to the applier, and done by it.
    given: AtomicU64,
    done: AtomicU64,
    /// [`Saved::keep_from`].
    kept_from: AtomicU64,
    jobs: mpsc::Sender<Job>,
    threads: Mutex<Threads>,
    /// Since the files were written.
    topics_changed: AtomicBool,
    groups_changed: AtomicBool,
    failure: Mutex<Option<String>>,
    failed: AtomicBool,
    /// Somebody waits for the store to show more.
    looks: AtomicBool,
    look: Mutex<()>,
    moved: Condvar,
    stopping: AtomicBool,
}

enum Threads {
    Not(mpsc::Receiver<Job>),
    Run {
        applier: JoinHandle<()>,
        keeper: JoinHandle<()>,
        /// Dropped, it ends the keeper.
        stop: mpsc::Sender<()>,
    },
    Ended,
}

/// A moment to which a later one is compared: [`GroupTables::agreed`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    era: u64,
}

/// It is not known what became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the group changes its leader, or too few of its members answer: it is not known whether this change is made"
)]
pub struct InDoubt;

/// Why a change is not made, or not known to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The log does not take it; nothing is changed.
    #[error(transparent)]
    NotTaken(#[from] PutError),
    /// It may or may not be made.
    #[error(transparent)]
    InDoubt(#[from] InDoubt),
}

/// From where a member's tables begin.
fn begin_from(
    saved: Option<&Saved>,
    base: u64,
    last: u64,
    files_fit: impl FnOnce(&Saved) -> bool,
) -> Saved {
    let from_base = Saved {
        index: base,
        ..Saved::default()
    };
    match saved {
        // What the files hold beyond the log is said again by the first leader; what they hold of the log is read again.
        None => from_base,
        Some(saved) if !saved.complete && saved.index >= base => Saved {
            topics: saved.topics,
            groups: saved.groups,
            ..from_base
        },
        Some(saved) if saved.complete && saved.index >= base && files_fit(saved) => Saved {
            index: saved.index.min(last),
            ..*saved
        },
        // The log began anew and nobody came to say so of the tables, or the files are others: the log says all of it.
        Some(_) => Saved {
            complete: true,
            ..from_base
        },
    }
}

impl GroupTables {
    /// For the store of a member; `saved` is what [`Saved::load`] found in the folder of its log.
    pub fn new(store: Arc<Store>, files: Files, saved: Option<Saved>) -> Arc<Self> {
        let (base, last) = (store.compacted_entry().index, store.last_entry().index);
        let began = begin_from(saved.as_ref(), base, last, |saved| files.fit(saved));
        // In either case the log says all that is to be known.
        let starts_empty = began.complete && began.oldest == 0 && began.index == base;
        if starts_empty && saved.is_some_and(|s| s.index > base) {
            tracing::warn!(
                "the files of topics and groups are not those that were saved: the log is read instead"
            );
        }
        let (jobs, receiver) = mpsc::channel();
        let ledger = Ledger::new(Tables::default(), began.index, began.complete);
        let tables = Arc::new(Self {
            piece: MAX_PIECE.min(store.segment_size() / PIECES_A_SEGMENT),
            files,
            starts_empty,
            began,
            ledger: Mutex::new(ledger),
            progress: watch::Sender::new(Progress {
                applied: began.index,
                era: 0,
            }),
            reached: AtomicU64::new(began.index),
            given: AtomicU64::new(0),
            done: AtomicU64::new(0),
            kept_from: AtomicU64::new(began.keep_from()),
            jobs,
            threads: Mutex::new(Threads::Not(receiver)),
            topics_changed: AtomicBool::new(true),
            groups_changed: AtomicBool::new(true),
            failure: Mutex::default(),
            failed: AtomicBool::new(false),
            looks: AtomicBool::new(false),
            look: Mutex::default(),
            moved: Condvar::new(),
            stopping: AtomicBool::new(false),
            store,
        });
        let looking = Arc::downgrade(&tables);
        tables.store.on_watermark(Box::new(move |_| {
            if let Some(tables) = looking.upgrade()
                && tables.looks.load(Ordering::SeqCst)
            {
                let _guard = tables.look.lock();
                tables.moved.notify_all();
            }
        }));
        tables
    }

    /// Whether the files of the tables are not to be read: the log that they came from was given up, or they are others.
    pub(crate) fn starts_empty(&self) -> bool {
        self.starts_empty
    }

    /// The rows that were read from the files of the tables.
    pub(crate) fn begin_with(
        &self,
        topics: impl IntoIterator<Item = TopicConfig>,
        groups: impl IntoIterator<Item = Group>,
    ) {
        let tables = Tables::of(self.began.oldest, topics, groups);
        self.ledger.lock().agreed = Arc::new(tables);
    }

    /// The index at which the tables stand.
    pub(super) fn applied(&self) -> u64 {
        self.progress.borrow().applied
    }

    /// What the group agreed on, as far as this member has applied it.
    pub fn agreed_on(&self) -> Arc<Tables> {
        Arc::clone(self.ledger.lock().agreed())
    }

    /// What a broker of this member shows.
    pub(crate) fn shown(&self) -> Tables {
        self.ledger.lock().shown()
    }

    /// Appends changes. The caller shows them before it lets go the lock of its table, and drives the store or leaves that to
    /// the group's thread.
    pub(crate) fn propose(&self, changes: Changes) -> Result<(), Refusal> {
        let mut ledger = self.ledger.lock();
        if let Some(why) = ledger.refuses(&changes) {
            return Err(PutError::Busy(why).into());
        }
        // Who still holds the topic appends nothing behind its deletion: what is made anew begins at nothing.
        self.refuse(&changes.deleted_topics, true);
        let deleted = changes.deleted_topics.clone();
        let appended = self.append(&mut ledger, changes);
        if appended.is_err() {
            self.refuse(&deleted, false);
        }
        appended
    }

    fn refuse(&self, topics: &[String], refused: bool) {
        for topic in topics {
            self.store.refuse_topic(topic, refused);
        }
    }

    /// All or nothing is shown; where a later entry is refused, the earlier ones are shown when they are agreed on.
    fn append(&self, ledger: &mut Ledger, changes: Changes) -> Result<(), Refusal> {
        let pieces = changes.pieces(self.piece);
        let count = pieces.len();
        for (nth, piece) in pieces.into_iter().enumerate() {
            let bytes = piece.encode();
            match self.store.append_counted(Kind::Tables as u32, &bytes) {
                Ok(frame) => ledger.propose(frame.index, frame.position, piece),
                Err(error) if nth == 0 => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(%error, entries = nth, of = count, "a part of a change is appended");
                    return Err(InDoubt.into());
                }
            }
        }
        ledger.show(count);
        Ok(())
    }

    /// Now, for [`GroupTables::agreed`].
    pub(crate) fn now(&self) -> Moment {
        Moment {
            era: self.progress.borrow().era,
        }
    }

    /// Whether nothing waits to be agreed on, nor did since then.
    pub(crate) fn is_agreed(&self, since: Moment) -> bool {
        let ledger = self.ledger.lock();
        !ledger.waits() && self.progress.borrow().era == since.era
    }

    /// Waits until the group agreed on all changes so far, if none of them came to be in doubt since then.
    pub(crate) async fn agreed(&self, since: Moment) -> Result<(), InDoubt> {
        let newest = self.ledger.lock().newest();
        let mut progress = self.progress.subscribe();
        let done = progress.wait_for(|p| p.era != since.era || p.applied >= newest);
        match tokio::time::timeout(AGREED_WITHIN, done).await {
            Ok(Ok(progress)) if progress.era == since.era => Ok(()),
            _ => Err(InDoubt),
        }
    }

    /// Why the tables cannot go on.
    pub(super) fn failure(&self) -> Option<String> {
        match self.failed.load(Ordering::Acquire) {
            true => self.failure.lock().clone(),
            false => None,
        }
    }

    fn fail(&self, reason: String, wake: &dyn Fn()) {
        tracing::error!(reason, "the group's tables cannot go on");
        *self.failure.lock() = Some(reason);
        self.failed.store(true, Ordering::Release);
        wake();
    }

    /// These entries are committed, in their order. `applied` moves when they are applied.
    pub(super) fn committed(&self, entries: Vec<Committed>) {
        self.give(Job::Apply(entries));
    }

    fn give(&self, job: Job) {
        self.given.fetch_add(1, Ordering::AcqRel);
        let _ = self.jobs.send(job);
    }

    /// The log is committed up to this index, and all that it says of tables was given: what nobody works on is applied.
    pub(super) fn reached(&self, index: u64) {
        if self.done.load(Ordering::Acquire) == self.given.load(Ordering::Acquire) {
            self.reached.fetch_max(index, Ordering::AcqRel);
        }
    }

    /// Retention leaves entries from here on.
    pub(super) fn kept_from(&self) -> u64 {
        self.kept_from.load(Ordering::Acquire)
    }

    /// The log begins anew behind this index.
    pub(super) fn begin_anew(&self, index: u64) {
        self.give(Job::Anew(index));
    }

    /// Entries from this position on are gone; with 0 this member leads no more.
    pub(super) fn cut(&self, broker: &Broker, position: u64) {
        let dropped = {
            let mut ledger = self.ledger.lock();
            let dropped = ledger.cut(position);
            for changes in &dropped {
                self.refuse(&changes.deleted_topics, false);
            }
            if !dropped.is_empty() {
                self.progress.send_modify(|p| p.era += 1);
            }
            dropped
        };
        if !dropped.is_empty() {
            tracing::info!("changes of topics and groups are taken back: nobody agreed on them");
            self.restore(broker);
        }
    }

    /// The files of these are outdated. Under the ledger's lock, before it changes.
    fn changed(&self, topics: bool, groups: bool) {
        self.topics_changed.fetch_or(topics, Ordering::SeqCst);
        self.groups_changed.fetch_or(groups, Ordering::SeqCst);
    }

    /// The broker shows what is agreed on, and what this member appended.
    fn restore(&self, broker: &Broker) {
        broker.topics.restore(self);
        broker.groups.restore(self);
    }

    fn read(&self, index: u64) -> Result<Option<Changes>, String> {
        let mut bytes = Vec::new();
        let read = match self.store.frame(index) {
            Ok(Some(frame)) => self.store.read_frame(&frame, &mut bytes).map(|()| true),
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
        match read {
            Ok(true) => {}
            // The log began anew behind it in the meantime; word of that is on its way.
            _ if self.store.compacted_entry().index >= index => return Ok(None),
            Ok(false) => return Err(format!("entry {index} is not in the log")),
            Err(error) => return Err(format!("entry {index} cannot be read: {error}")),
        }
        let changes = bytes.get(FRAME_HEADER..).and_then(Changes::decode);
        let unknown =
            || format!("entry {index} changes topics in a way that this version does not know");
        changes.map(Some).ok_or_else(unknown)
    }

    /// What was committed in an earlier life and is not in the files of the tables, before the broker serves.
    pub(super) fn replay(&self, broker: &Broker, entries: &[u64]) -> Result<(), String> {
        let mut gone = Vec::new();
        let mut left = Vec::new();
        for &index in entries {
            if let Some(changes) = self.read(index)? {
                self.ledger.lock().agree(index, &changes);
                self.progress.send_modify(|p| p.applied = index);
                gone.extend(changes.deleted_topics);
                left.extend(changes.deleted_groups);
            }
        }
        self.restore(broker);
        let agreed = self.agreed_on();
        // What was made anew since then keeps its queues: their records tell where they begin.
        for topic in gone.iter().filter(|t| !agreed.has_topic(t)) {
            broker.forget_topic(topic).map_err(|e| e.to_string())?;
        }
        for group in left {
            if !agreed.groups.contains_key(&group.name) {
                broker.forget_group(&group.name, group.offsets);
            }
        }
        Ok(())
    }

    /// Starts the threads that apply and save; `wake` is called when [`GroupTables::applied`] moved.
    pub(super) fn start(
        self: &Arc<Self>,
        broker: &Arc<Broker>,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> std::io::Result<()> {
        let mut threads = self.threads.lock();
        let Threads::Not(jobs) = std::mem::replace(&mut *threads, Threads::Ended) else {
            return Ok(());
        };
        let applier = Applier {
            tables: Arc::clone(self),
            broker: Arc::downgrade(broker),
            wake: Arc::clone(&wake),
        };
        let mut keeper = Keeper {
            tables: Arc::clone(self),
            broker: Arc::downgrade(broker),
            saved: self.began,
            new: true,
            saved_at: Instant::now(),
            looked_at: 0,
        };
        let (stop, stopped) = mpsc::channel();
        let keeper = self.spawn("dledger-keeper", Arc::clone(&wake), move || {
            keeper.run(&stopped);
            Ok(())
        })?;
        // Without the other one the keeper ends as `stop` goes.
        let applier = self.spawn("dledger-tables", wake, move || applier.run(&jobs))?;
        *threads = Threads::Run {
            applier,
            keeper,
            stop,
        };
        Ok(())
    }

    /// A thread whose end but by a stop, a panic too, is that of the member.
    fn spawn(
        self: &Arc<Self>,
        name: &str,
        wake: Arc<dyn Fn() + Send + Sync>,
        work: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let tables = Arc::clone(self);
        let guarded = move || {
            let work = std::panic::AssertUnwindSafe(work);
            let reason = match std::panic::catch_unwind(work) {
                Ok(Ok(())) => return,
                Ok(Err(reason)) => reason,
                Err(_) => "a thread of the group's tables panicked; see the log".to_owned(),
            };
            tables.fail(reason, &*wake);
        };
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(guarded)
    }

    /// Saves for the last time and ends the threads. Blocks.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = self.jobs.send(Job::Stop);
        let threads = std::mem::replace(&mut *self.threads.lock(), Threads::Ended);
        if let Threads::Run {
            applier,
            keeper,
            stop,
        } = threads
        {
            // Neither panics: see `spawn`.
            let _ = applier.join();
            drop(stop);
            let _ = keeper.join();
        }
    }

    /// Waits until everything before this position is in its queues, and nothing behind it; false when the member stops.
    fn wait_shown(&self, position: u64) -> bool {
        self.looks.store(true, Ordering::SeqCst);
        let mut guard = self.look.lock();
        let shown = loop {
            if self.store.confirm_offset() >= position {
                break true;
            }
            if self.stopping.load(Ordering::SeqCst) || self.store.poisoned().is_some() {
                break false;
            }
            self.moved.wait_for(&mut guard, LOOK_EVERY);
        };
        self.looks.store(false, Ordering::SeqCst);
        shown
    }
}

impl std::fmt::Debug for GroupTables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupTables")
            .field("progress", &*self.progress.borrow())
            .finish_non_exhaustive()
    }
}

/// The thread that applies: nothing it does waits for a disk to sync, since what is behind a change is not shown before.
struct Applier {
    tables: Arc<GroupTables>,
    broker: Weak<Broker>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Applier {
    fn run(&self, jobs: &mpsc::Receiver<Job>) -> Result<(), String> {
        while let Ok(job) = jobs.recv() {
            let Some(broker) = self.broker.upgrade() else {
                break;
            };
            match job {
                Job::Apply(entries) => self.apply(&broker, &entries)?,
                Job::Anew(index) => self.begin_anew(&broker, index),
                Job::Stop => break,
            }
            self.tables.done.fetch_add(1, Ordering::AcqRel);
            (self.wake)();
        }
        Ok(())
    }

    fn apply(&self, broker: &Broker, entries: &[Committed]) -> Result<(), String> {
        let tables = Arc::clone(&self.tables);
        // Agreed on, and not shown by the broker yet.
        let mut behind = Vec::new();
        let mut last = tables.applied();
        for entry in entries {
            if entry.index <= last {
                continue;
            }
            let Some(changes) = tables.read(entry.index)? else {
                break;
            };
            if !changes.deleted_topics.is_empty() {
                self.show(broker, &mut behind, last);
                if !tables.wait_shown(entry.end) {
                    return Ok(());
                }
                for topic in &changes.deleted_topics {
                    if let Err(error) = broker.forget_topic(topic) {
                        tracing::error!(topic, %error, "the queues of a deleted topic stay");
                    }
                }
                // Those that stayed; the others are gone with it.
                tables.refuse(&changes.deleted_topics, false);
            }
            for group in &changes.deleted_groups {
                broker.forget_group(&group.name, group.offsets);
            }
            let topics = changes.whole || changes.touches_topics();
            let groups = changes.whole || changes.touches_groups();
            let mut ledger = tables.ledger.lock();
            tables.changed(topics, groups);
            let shown = !ledger.agree(entry.index, &changes);
            drop(ledger);
            if !shown {
                behind.push(changes);
            }
            last = entry.index;
        }
        self.show(broker, &mut behind, last);
        Ok(())
    }

    /// The broker shows these changes, and with them everything up to this entry.
    fn show(&self, broker: &Broker, changes: &mut Vec<Changes>, applied: u64) {
        let tables = &self.tables;
        if !changes.is_empty() {
            broker.topics.agree(changes);
            broker.groups.agree(changes);
            if changes.iter().any(|c| c.whole) || tables.ledger.lock().waits() {
                tables.restore(broker);
            }
            changes.clear();
        }
        tables.progress.send_modify(|p| p.applied = applied);
        (self.wake)();
    }

    fn begin_anew(&self, broker: &Broker, index: u64) {
        let tables = &self.tables;
        let mut ledger = tables.ledger.lock();
        tables.changed(true, true);
        ledger.begin_anew(index);
        drop(ledger);
        tables.restore(broker);
        tables.progress.send_modify(|p| p.applied = index);
    }
}

/// The thread that writes the tables down, and appends rows anew.
struct Keeper {
    tables: Arc<GroupTables>,
    broker: Weak<Broker>,
    saved: Saved,
    /// Nothing was saved since the start.
    new: bool,
    saved_at: Instant,
    /// How long the log was when rows were last looked for that hold up retention.
    looked_at: u64,
}

impl Keeper {
    fn run(&mut self, stopped: &mpsc::Receiver<()>) {
        loop {
            let stops = !matches!(
                stopped.recv_timeout(UPKEEP_EVERY),
                Err(mpsc::RecvTimeoutError::Timeout)
            );
            let Some(broker) = self.broker.upgrade() else {
                return;
            };
            self.save(&broker, if stops { Duration::ZERO } else { INDEX_EVERY });
            if stops {
                return;
            }
            self.renew();
        }
    }

    /// Writes down what changed, once the log holds it whatever happens; the index alone every so often.
    fn save(&mut self, broker: &Broker, every: Duration) {
        let tables = Arc::clone(&self.tables);
        let store = &tables.store;
        // Before the tables: they hold that much or more.
        let reached = tables.reached.load(Ordering::Acquire);
        let (agreed, [topics, groups], mut saved) = {
            let ledger = tables.ledger.lock();
            let changed = [&tables.topics_changed, &tables.groups_changed];
            let changed = changed.map(|c| c.swap(false, Ordering::SeqCst));
            let saved = Saved {
                index: ledger.applied(),
                oldest: ledger.agreed().oldest().unwrap_or(0),
                complete: ledger.is_complete(),
                ..self.saved
            };
            (Arc::clone(ledger.agreed()), changed, saved)
        };
        let wanted = topics || groups || self.new;
        let far = reached >= self.saved.index + INDEX_ENTRIES;
        if !wanted && !far && self.saved_at.elapsed() < every {
            return;
        }
        // Tables that a power cut leaves while it takes their entries would be this member's alone.
        let end = store.entry_end(saved.index).ok().flatten().unwrap_or(0);
        let written = store.wait_flushed(end, FLUSHED_WITHIN)
            && store.entry_below(store.flushed()).is_ok_and(|flushed| {
                saved.index = saved.index.max(reached.min(flushed));
                (!wanted && self.saved == saved)
                    || self.write(broker, &agreed, saved, topics, groups)
            });
        if !written {
            tables.changed(topics, groups);
        }
    }

    fn write(
        &mut self,
        broker: &Broker,
        agreed: &Tables,
        mut saved: Saved,
        topics: bool,
        groups: bool,
    ) -> bool {
        let files = &self.tables.files;
        let index = Saved::path(&files.folder);
        let encode = |saved: &Saved| serde_json::to_string(saved).unwrap_or_default();
        let topics = topics.then(|| broker.topics.text_of(agreed));
        let groups = groups.then(|| broker.groups.text_of(agreed));
        // A crash before the last of the files may find either state of the other two, and the index of before.
        let mut between = self.saved;
        for (text, before, after) in [
            (&topics, &mut between.topics, &mut saved.topics),
            (&groups, &mut between.groups, &mut saved.groups),
        ] {
            if let Some(text) = text {
                let sum = crc32fast::hash(text.as_bytes());
                *before = [before[1], sum];
                *after = [sum; 2];
            }
        }
        let announced = (topics.is_some() || groups.is_some()).then(|| encode(&between));
        let steps = [
            (&index, announced),
            (&files.topics, topics),
            (&files.groups, groups),
            (&index, Some(encode(&saved))),
        ];
        for (path, text) in steps {
            if let Some(text) = text
                && let Err(error) = config_file::write(path, &text)
            {
                tracing::error!(file = %path.display(), %error, "cannot save; will try again");
                return false;
            }
        }
        let kept_from = saved.keep_from();
        self.tables.kept_from.store(kept_from, Ordering::Release);
        (self.saved, self.saved_at, self.new) = (saved, Instant::now(), false);
        true
    }

    /// A leader appends rows anew whose last entry would hold up retention, and at first what no entry says.
    fn renew(&mut self) {
        let tables = &self.tables;
        let store = &tables.store;
        if !store.gate_is_open() {
            return;
        }
        let end = store.written();
        let (complete, bytes) = {
            let ledger = tables.ledger.lock();
            (ledger.is_complete(), ledger.agreed().bytes)
        };
        let behind = store.segment_size().max(RENEW_BEHIND * bytes);
        let next = self.looked_at + behind / RENEW_BEHIND;
        if complete && end < next.max(store.min_phy_offset() + behind) {
            return;
        }
        let Ok(below) = store.entry_below(end.saturating_sub(behind).max(store.min_phy_offset()))
        else {
            return;
        };
        let mut ledger = tables.ledger.lock();
        let due = ledger.due(below + 1, RENEWED_AT_ONCE);
        if due.is_empty() {
            self.looked_at = end;
            return;
        }
        if let Err(error) = tables.append(&mut ledger, due) {
            tracing::debug!(%error, "rows of the tables are appended anew later");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic(name: &str, queues: i32) -> TopicConfig {
        TopicConfig::new(name, queues, 6)
    }

    fn group(name: &str, retries: i32) -> Group {
        Group {
            config: SubscriptionGroupConfig {
                retry_max_times: retries,
                ..SubscriptionGroupConfig::new(name)
            },
            forbidden: BTreeMap::new(),
        }
    }

    fn without(topic: &str) -> Changes {
        Changes {
            deleted_topics: vec![topic.to_owned()],
            ..Changes::default()
        }
    }

    fn names(tables: &Tables) -> Vec<&str> {
        tables.topics().map(|t| t.topic_name.as_str()).collect()
    }

    #[test]
    fn changes_are_read_back_and_those_of_another_version_are_not() {
        let changes = Changes {
            topics: vec![topic("T", 4)],
            deleted_topics: vec!["U".to_owned()],
            groups: vec![Group {
                forbidden: BTreeMap::from([("T".to_owned(), 4)]),
                ..group("g", 3)
            }],
            deleted_groups: vec![DeletedGroup {
                name: "h".to_owned(),
                offsets: true,
            }],
            whole: true,
        };
        let mut bytes = changes.encode();
        assert_eq!(Changes::decode(&bytes), Some(changes));
        assert_eq!(Changes::decode(&bytes[..bytes.len() - 1]), None);
        bytes[0] += 1;
        assert_eq!(Changes::decode(&bytes), None);
        assert_eq!(Changes::decode(&[]), None);
        let outside = Changes::of_topics([topic("../T", 4), topic("T", 4)]);
        assert_eq!(
            Changes::decode(&outside.encode()),
            Some(Changes::of_topics([topic("T", 4)]))
        );
        assert_eq!(
            Changes::default().encode(),
            [&[VERSION], &b"{}"[..]].concat()
        );
    }

    #[test]
    fn many_rows_are_several_entries_and_the_last_one_makes_them_whole() {
        let changes = Changes {
            groups: vec![group("g", 1)],
            whole: true,
            ..Changes::of_topics((0..50).map(|n| topic(&format!("T{n}"), 4)))
        };
        let pieces = changes.clone().pieces(1_000);
        assert!(pieces.len() > 5);
        assert!(pieces.iter().all(|p| p.encode().len() < 1_200));
        let whole: Vec<bool> = pieces.iter().map(|p| p.whole).collect();
        assert!(whole.iter().rev().skip(1).all(|w| !w) && whole.last() == Some(&true));
        let mut one = Tables::default();
        one.apply(1, &changes);
        let mut many = Tables::default();
        pieces.iter().for_each(|piece| many.apply(1, piece));
        assert_eq!(one, many);
        assert_eq!(Changes::default().pieces(10), [Changes::default()]);
    }

    #[test]
    fn what_a_leader_shows_is_not_shown_again_and_what_others_said_is() {
        let mut ledger = Ledger::default();
        let (own, other) = (
            Changes::of_topics([topic("T", 4)]),
            Changes::of_topics([topic("U", 8)]),
        );
        ledger.propose(5, 500, own.clone());
        ledger.show(1);
        assert_eq!(names(&ledger.shown()), ["T"]);
        assert_eq!(names(ledger.agreed()), [""; 0]);
        assert!(!ledger.agree(5, &own));
        assert!(!ledger.waits());
        assert!(ledger.agree(6, &other));
        assert!(!ledger.agree(6, &other), "known by now");
        assert_eq!(names(ledger.agreed()), ["T", "U"]);
        assert_eq!(ledger.applied(), 6);
    }

    #[test]
    fn an_entry_of_several_that_was_not_shown_is_shown_when_it_is_agreed_on() {
        let mut ledger = Ledger::default();
        let changes = Changes::of_topics([topic("T", 4)]);
        ledger.propose(5, 500, changes.clone());
        ledger.propose(6, 600, Changes::of_topics([topic("U", 4)]));
        ledger.show(1);
        assert!(ledger.agree(5, &changes));
    }

    #[test]
    fn what_is_cut_off_the_log_is_taken_back() {
        let mut ledger = Ledger::default();
        for (index, position, name) in [(5, 500, "T"), (6, 600, "U"), (7, 700, "V")] {
            ledger.propose(index, position, Changes::of_topics([topic(name, 4)]));
        }
        ledger.show(3);
        assert_eq!(ledger.cut(800), []);
        assert_eq!(ledger.cut(600).len(), 2);
        assert_eq!(names(&ledger.shown()), ["T"]);
        assert_eq!(ledger.newest(), 5);
        assert_eq!(ledger.cut(0).len(), 1);
        assert_eq!(names(&ledger.shown()), [""; 0]);
        assert_eq!(ledger.cut(0), []);
    }

    #[test]
    fn a_topic_is_not_made_anew_before_its_queues_are_gone() {
        let mut ledger = Ledger::default();
        let make = Changes::of_topics([topic("T", 4)]);
        ledger.agree(1, &make);
        ledger.propose(2, 200, without("T"));
        ledger.show(1);
        assert!(ledger.refuses(&make).is_some());
        assert_eq!(ledger.refuses(&Changes::of_topics([topic("U", 4)])), None);
        assert_eq!(ledger.refuses(&without("T")), None);
        ledger.agree(2, &without("T"));
        assert_eq!(ledger.refuses(&make), None);
    }

    #[test]
    fn what_came_from_no_entry_is_said_by_the_first_leader_and_is_nothing_to_the_others() {
        let rows = Tables::of(0, [topic("Old", 4)], [group("old", 1)]);
        let mut leader = Ledger::new(rows.clone(), 9, false);
        leader.agree(10, &Changes::of_topics([topic("New", 4)]));
        assert_eq!(leader.agreed().oldest(), Some(10));
        let due = leader.due(1, 1);
        assert_eq!(
            (due.topics.len(), due.groups.len(), due.whole),
            (1, 1, true)
        );
        leader.propose(11, 1_100, due.clone());
        assert_eq!(leader.due(1, 1), Changes::default(), "it is on its way");
        leader.agree(11, &due);
        assert!(leader.is_complete());
        assert_eq!(leader.due(1, 1), Changes::default());
        let left = Tables::of(0, [topic("Mine", 4), topic("Old", 8)], []);
        let mut follower = Ledger::new(left, 9, false);
        follower.agree(10, &Changes::of_topics([topic("New", 4)]));
        assert_eq!(names(follower.agreed()), ["Mine", "New", "Old"]);
        follower.agree(11, &due);
        assert_eq!(follower.agreed(), leader.agreed());
    }

    #[test]
    fn rows_whose_entry_is_old_are_said_again_but_never_against_a_newer_change() {
        let mut ledger = Ledger::new(Tables::default(), 0, true);
        for (index, name) in [(1, "A"), (2, "B"), (3, "C"), (4, "D")] {
            ledger.agree(index, &Changes::of_topics([topic(name, 4)]));
        }
        ledger.propose(5, 500, Changes::of_topics([topic("B", 8)]));
        let due = ledger.due(4, u64::MAX);
        let names: Vec<&str> = due.topics.iter().map(|t| t.topic_name.as_str()).collect();
        assert_eq!((names, due.whole), (vec!["A", "C"], false));
        assert_eq!(ledger.due(4, 1).topics.len(), 1);
        ledger.agree(6, &due);
        assert_eq!(ledger.agreed().oldest(), Some(2));
    }

    #[test]
    fn retention_leaves_the_last_entry_of_every_row_and_what_is_not_saved() {
        let saved = |index, oldest| Saved {
            index,
            oldest,
            complete: true,
            ..Saved::default()
        };
        assert_eq!(saved(7, 0).keep_from(), 8);
        assert_eq!(saved(7, 3).keep_from(), 3);
        assert_eq!(saved(7, 9).keep_from(), 8);
        assert_eq!(Saved::default().keep_from(), 1);
    }

    #[test]
    fn files_that_are_not_those_that_were_saved_are_not_believed() {
        let saved = Saved {
            index: 20,
            oldest: 12,
            complete: true,
            topics: [3, 4],
            groups: [5, 5],
        };
        let from = |saved: &Saved, base, fit| begin_from(Some(saved), base, 100, |_| fit);
        assert_eq!(from(&saved, 10, true), saved);
        assert_eq!(begin_from(Some(&saved), 10, 15, |_| true).index, 15);
        let read_again = Saved {
            index: 10,
            complete: true,
            ..Saved::default()
        };
        assert_eq!(from(&saved, 10, false), read_again);
        let anew = from(&saved, 21, true);
        assert_eq!((anew.index, anew.oldest, anew.complete), (21, 0, true));
        // Of rows that may have come from no entry it is not known which did: all are read again.
        let incomplete = Saved {
            complete: false,
            ..saved
        };
        for fit in [true, false] {
            let again = from(&incomplete, 10, fit);
            assert_eq!((again.index, again.oldest, again.complete), (10, 0, false));
        }
        let first = begin_from(None, 7, 9, |_| true);
        assert_eq!((first.index, first.complete), (7, false));
    }

    #[test]
    fn files_fit_as_they_were_before_or_after_a_save_and_not_when_one_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files {
            folder: dir.path().to_owned(),
            topics: dir.path().join("topics.json"),
            groups: dir.path().join("groups.json"),
        };
        let sum = |text: &str| crc32fast::hash(text.as_bytes());
        let saved = Saved {
            topics: [sum("before"), sum("after")],
            groups: [sum("groups"); 2],
            ..Saved::default()
        };
        std::fs::write(&files.groups, "groups").unwrap();
        assert!(!files.fit(&saved));
        for (text, fits) in [("before", true), ("after", true), ("long before", false)] {
            std::fs::write(&files.topics, text).unwrap();
            assert_eq!(files.fit(&saved), fits, "{text}");
        }
    }

    /// A log that is led, and takes so many entries.
    struct Takes(u64);

    impl store::FrameStamp for Takes {
        fn stamp(&self, entry: store::EntryId, _: u32, _: u64, _: u32) -> Result<(), PutError> {
            match entry.index <= self.0 {
                true => Ok(()),
                false => Err(PutError::Busy("enough")),
            }
        }
    }

    fn tables_of_a_leader(dir: &Path, takes: u64) -> Arc<GroupTables> {
        let mut config = store::StoreConfig::new(dir);
        config.commit_log_path = Some(dir.join("log"));
        config.segment_size = 16 * 1024;
        config.max_message_size = 4 * 1024;
        config.frames = Some(store::FrameConfig::default());
        let store = Store::open(config, Arc::new(store::SystemClock)).unwrap();
        store.set_frame_stamp(Arc::new(Takes(takes)));
        store.open_gate(1).unwrap();
        let files = Files {
            folder: dir.join("log"),
            topics: dir.join("topics.json"),
            groups: dir.join("groups.json"),
        };
        GroupTables::new(store, files, None)
    }

    #[test]
    fn a_change_of_which_only_a_part_is_taken_is_in_doubt_and_one_that_is_refused_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let tables = tables_of_a_leader(dir.path(), 2);
        let many = Changes::of_topics((0..60).map(|n| topic(&format!("T{n}"), 4)));
        assert!(many.clone().pieces(tables.piece).len() > 2);
        assert_eq!(tables.propose(many), Err(Refusal::InDoubt(InDoubt)));
        let one = tables.propose(Changes::of_topics([topic("U", 4)]));
        assert_eq!(one, Err(Refusal::NotTaken(PutError::Busy("enough"))));
    }

    #[test]
    fn nothing_counts_as_applied_while_the_log_s_new_beginning_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let tables = tables_of_a_leader(dir.path(), 0);
        tables.reached(5);
        assert_eq!(tables.reached.load(Ordering::SeqCst), 5);
        tables.begin_anew(9);
        tables.reached(12);
        assert_eq!(tables.reached.load(Ordering::SeqCst), 5);
        tables.done.fetch_add(1, Ordering::SeqCst);
        tables.reached(12);
        assert_eq!(tables.reached.load(Ordering::SeqCst), 12);
    }

    #[test]
    fn a_panic_of_one_of_the_threads_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let tables = tables_of_a_leader(dir.path(), 0);
        let told = Arc::new(AtomicBool::new(false));
        let wake = {
            let told = Arc::clone(&told);
            Arc::new(move || told.store(true, Ordering::SeqCst))
        };
        let thread = tables.spawn("test", wake, || panic!("on purpose"));
        thread.unwrap().join().unwrap();
        assert!(told.load(Ordering::SeqCst));
        assert!(
            tables
                .failure()
                .is_some_and(|reason| reason.contains("panicked"))
        );
    }

    fn some_changes() -> impl Strategy<Value = Changes> {
        (0..4, 0..5_u8, 1..9).prop_map(|(what, name, number)| match what {
            0 | 1 => Changes::of_topics([topic(&format!("t{name}"), number)]),
            2 => Changes::of_groups([group(&format!("g{name}"), number)]),
            _ => without(&format!("t{name}")),
        })
    }

    proptest! {
        #[test]
        fn the_retained_log_alone_gives_the_tables(
            steps in proptest::collection::vec((some_changes(), 0..8_u64), 1..60),
        ) {
            let mut ledger = Ledger::new(Tables::default(), 0, true);
            let mut log: Vec<(u64, Changes)> = Vec::new();
            let mut say = |ledger: &mut Ledger, changes: Changes| {
                let index = log.len() as u64 + 1;
                ledger.agree(index, &changes);
                log.push((index, changes));
                let keep_from = Saved {
                    index: ledger.applied(),
                    oldest: ledger.agreed().oldest().unwrap_or(0),
                    complete: true,
                    ..Saved::default()
                }
                .keep_from();
                let mut retained = Tables::default();
                for (index, changes) in &log[keep_from as usize - 1..] {
                    retained.apply(*index, changes);
                }
                retained == **ledger.agreed()
            };
            for (changes, back) in steps {
                prop_assert!(say(&mut ledger, changes));
                let due = ledger.due(ledger.applied().saturating_sub(back), 300);
                prop_assert!(due.is_empty() || say(&mut ledger, due));
            }
        }

        #[test]
        fn applying_entries_again_changes_nothing(
            all in proptest::collection::vec(some_changes(), 1..40),
            from in 0..40_usize,
        ) {
            let mut once = Tables::default();
            all.iter().enumerate().for_each(|(i, c)| once.apply(i as u64 + 1, c));
            let mut again = once.clone();
            let rest = all.iter().enumerate().skip(from);
            rest.for_each(|(i, c)| again.apply(i as u64 + 1, c));
            prop_assert_eq!(once, again);
        }

        #[test]
        fn bytes_of_the_log_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Changes::decode(&bytes);
        }
    }
}
