//! What each group has consumed: `group → topic → queue → offset`, `config/consumerOffset.json`.
//!
//! Beside the committed offsets live two tables that exist in memory only: how far each group has *pulled*, and the
//! targets of a server-side reset (222), each given to the next pull of its queue exactly once. While such a target
//! waits, commits for that queue are ignored.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use remoting::protocol::body::{ConsumerOffsetSerializeWrapper, DataVersion};
use store::Clock;

use crate::config_file::{self, Saver};
use crate::slave::merge::{self, OffsetTable};

/// Upstream `consumerOffsetUpdateVersionStep`: commits between two steps of the data version.
const COMMITS_PER_VERSION: u64 = 500;

/// Between topic and group in the keys of the file (upstream `TOPIC_GROUP_SEPARATOR`).
const TOPIC_GROUP_SEPARATOR: char = '@';

/// Offsets of one topic and group by queue id.
pub type QueueOffsets = BTreeMap<i32, i64>;

static NO_OFFSETS: QueueOffsets = QueueOffsets::new();

type Topics = HashMap<Box<str>, Arc<Cell>>;

/// The offsets of one (group, topic) pair. Found once by two `&str` look-ups, then changed under its own small lock.
#[derive(Debug, Default)]
struct Cell {
    offsets: Mutex<CellOffsets>,
}

#[derive(Debug, Default, Clone)]
struct CellOffsets {
    committed: QueueOffsets,
    pulled: QueueOffsets,
    reset: QueueOffsets,
}

pub struct ConsumerOffsetManager {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    groups: RwLock<HashMap<Box<str>, Topics>>,
    data_version: Mutex<DataVersion>,
    commits: AtomicU64,
    dirty: AtomicBool,
}

/// The outcome of a commit (15, or bit 1 of a pull).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    Stored,
    /// A reset waits for this queue's next pull; the value was ignored.
    ResetPending,
}

impl ConsumerOffsetManager {
    pub fn load(path: PathBuf, clock: Arc<dyn Clock>) -> Result<Self, config_file::Error> {
        let wrapper: Option<ConsumerOffsetSerializeWrapper> = config_file::read(&path)?;
        let manager = Self {
            path,
            clock,
            groups: RwLock::default(),
            data_version: Mutex::new(DataVersion::default()),
            commits: AtomicU64::new(0),
            dirty: AtomicBool::new(false),
        };
        if let Some(wrapper) = wrapper {
            manager.replace(wrapper);
        }
        manager.dirty.store(false, Ordering::Relaxed);
        Ok(manager)
    }

    /// Puts the table of a file or of a master (43) in place of the current one.
    pub fn replace(&self, wrapper: ConsumerOffsetSerializeWrapper) {
        let mut table: HashMap<Box<str>, Topics> = HashMap::new();
        for (key, offsets) in wrapper.offset_table {
            let Some((topic, group)) = key.split_once(TOPIC_GROUP_SEPARATOR) else {
                tracing::warn!(
                    key,
                    "a key of consumerOffset.json is not topic@group; left out"
                );
                continue;
            };
            let cell = Cell {
                offsets: Mutex::new(CellOffsets {
                    committed: offsets,
                    ..CellOffsets::default()
                }),
            };
            table
                .entry(group.into())
                .or_default()
                .insert(topic.into(), Arc::new(cell));
        }
        *self.groups.write() = table;
        if let Some(version) = wrapper.data_version {
            *self.data_version.lock() = version;
        }
        self.dirty.store(true, Ordering::Relaxed);
    }

    /// Makes of this table what a slave keeps of its master's (43); `seen` is what the master said before ([`merge::offsets`]).
    /// What the group pulled here stays known.
    pub fn follow(&self, seen: Option<&OffsetTable>, master: &ConsumerOffsetSerializeWrapper) {
        let mut changed = false;
        let mut kept: HashMap<&str, BTreeSet<&str>> = HashMap::new();
        for (key, told) in &master.offset_table {
            let Some((topic, group)) = key.split_once(TOPIC_GROUP_SEPARATOR) else {
                continue;
            };
            kept.entry(group).or_default().insert(topic);
            let cell = self.cell_or_insert(group, topic);
            let mut offsets = cell.offsets.lock();
            let before = seen.map(|seen| seen.get(key).unwrap_or(&NO_OFFSETS));
            let merged = merge::offsets(&offsets.committed, before, told);
            if merged != offsets.committed {
                offsets.committed = merged;
                changed = true;
            }
        }
        self.groups.write().retain(|group, topics| {
            let kept = kept.get(&**group);
            topics.retain(|topic, cell| {
                let known = kept.is_some_and(|kept| kept.contains(&**topic));
                // Committed here while the master was away, or dropped there.
                let ours = seen.is_some_and(|seen| {
                    !seen.contains_key(&format!("{topic}{TOPIC_GROUP_SEPARATOR}{group}"))
                });
                let stays = known || ours || cell.offsets.lock().committed.is_empty();
                changed |= !stays;
                stays
            });
            !topics.is_empty()
        });
        if let Some(version) = master.data_version {
            *self.data_version.lock() = version;
        }
        if changed {
            self.dirty.store(true, Ordering::Relaxed);
        }
    }

    /// Takes back what a slave kept of this table (43): the larger offset counts, and what only this broker knows stays.
    pub fn take_back(&self, slave: &ConsumerOffsetSerializeWrapper) {
        for (key, told) in &slave.offset_table {
            let Some((topic, group)) = key.split_once(TOPIC_GROUP_SEPARATOR) else {
                continue;
            };
            let cell = self.cell_or_insert(group, topic);
            let mut offsets = cell.offsets.lock();
            for (queue, told) in told {
                let own = offsets.committed.entry(*queue).or_insert(*told);
                *own = (*own).max(*told);
            }
        }
        let mut version = self.data_version.lock();
        if let Some(theirs) = slave.data_version
            && theirs.counter > version.counter
        {
            *version = theirs;
        }
        self.dirty.store(true, Ordering::Relaxed);
    }

    pub fn commit(&self, group: &str, topic: &str, queue_id: i32, offset: i64) -> Commit {
        let cell = self.cell_or_insert(group, topic);
        let mut offsets = cell.offsets.lock();
        if offsets.reset.contains_key(&queue_id) {
            return Commit::ResetPending;
        }
        let previous = offsets.committed.insert(queue_id, offset);
        drop(offsets);
        if let Some(previous) = previous
            && previous > offset
        {
            tracing::debug!(
                group,
                topic,
                queue_id,
                previous,
                offset,
                "a consumer committed less than before"
            );
        }
        if previous != Some(offset) {
            self.changed();
        }
        Commit::Stored
    }

    /// The committed offset, `None` when the group never committed on this queue.
    pub fn query(&self, group: &str, topic: &str, queue_id: i32) -> Option<i64> {
        let offset = self
            .cell(group, topic)?
            .offsets
            .lock()
            .committed
            .get(&queue_id)
            .copied()?;
        (offset >= 0).then_some(offset)
    }

    pub fn commit_pull_offset(&self, group: &str, topic: &str, queue_id: i32, offset: i64) {
        self.cell_or_insert(group, topic)
            .offsets
            .lock()
            .pulled
            .insert(queue_id, offset);
    }

    pub fn query_pull_offset(&self, group: &str, topic: &str, queue_id: i32) -> Option<i64> {
        self.cell(group, topic)?
            .offsets
            .lock()
            .pulled
            .get(&queue_id)
            .copied()
    }

    /// Sets the target of a server-side reset: the next pull gets it, and it is the committed offset from now on.
    pub fn assign_reset(&self, group: &str, topic: &str, queue_id: i32, offset: i64) {
        let cell = self.cell_or_insert(group, topic);
        let mut offsets = cell.offsets.lock();
        offsets.reset.insert(queue_id, offset);
        offsets.committed.insert(queue_id, offset);
        drop(offsets);
        self.changed();
    }

    /// The waiting target of a reset, removed.
    pub fn take_reset(&self, group: &str, topic: &str, queue_id: i32) -> Option<i64> {
        self.cell(group, topic)?
            .offsets
            .lock()
            .reset
            .remove(&queue_id)
    }

    /// All committed offsets of a group on a topic.
    pub fn offsets(&self, group: &str, topic: &str) -> Option<QueueOffsets> {
        let offsets = self.cell(group, topic)?.offsets.lock().committed.clone();
        (!offsets.is_empty()).then_some(offsets)
    }

    /// Topics on which the group has committed.
    pub fn topics_of_group(&self, group: &str) -> BTreeSet<String> {
        let groups = self.groups.read();
        let topics = groups.get(group).into_iter().flatten();
        topics
            .filter(|(_, cell)| !cell.offsets.lock().committed.is_empty())
            .map(|(topic, _)| topic.to_string())
            .collect()
    }

    /// Groups that have committed on the topic.
    pub fn groups_of_topic(&self, topic: &str) -> BTreeSet<String> {
        let groups = self.groups.read();
        let hit = groups.iter().filter(|(_, topics)| {
            topics
                .get(topic)
                .is_some_and(|cell| !cell.offsets.lock().committed.is_empty())
        });
        hit.map(|(group, _)| group.to_string()).collect()
    }

    /// Copies the committed offsets of one group on a topic to another (314).
    pub fn clone_offset(&self, source: &str, destination: &str, topic: &str) {
        if let Some(offsets) = self.offsets(source, topic) {
            self.cell_or_insert(destination, topic)
                .offsets
                .lock()
                .committed = offsets;
            self.changed();
        }
    }

    pub fn remove_group(&self, group: &str) {
        if self.groups.write().remove(group).is_some() {
            self.changed();
        }
    }

    pub fn remove_topic(&self, topic: &str) {
        let mut removed = false;
        self.groups.write().retain(|_, topics| {
            removed |= topics.remove(topic).is_some();
            !topics.is_empty()
        });
        if removed {
            self.changed();
        }
    }

    /// The JSON of the file and of 43. Queue ids are bare integers, as fastjson writes them.
    pub fn encode(&self) -> String {
        let mut table: BTreeMap<String, QueueOffsets> = BTreeMap::new();
        let mut topics_of_group: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (group, topics) in self.groups.read().iter() {
            for (topic, cell) in topics {
                let offsets = cell.offsets.lock().committed.clone();
                if !offsets.is_empty() {
                    table.insert(format!("{topic}{TOPIC_GROUP_SEPARATOR}{group}"), offsets);
                    topics_of_group
                        .entry(group.to_string())
                        .or_default()
                        .insert(topic.to_string());
                }
            }
        }
        let mut out = String::with_capacity(64 + table.len() * 64);
        out.push_str("{\"dataVersion\":");
        out.push_str(&json(&*self.data_version.lock()));
        out.push_str(",\"groupTopicMap\":");
        out.push_str(&json(&topics_of_group));
        out.push_str(",\"offsetTable\":{");
        for (position, (key, offsets)) in table.iter().enumerate() {
            if position > 0 {
                out.push(',');
            }
            out.push_str(&json(key));
            out.push(':');
            push_integer_map(&mut out, offsets);
        }
        out.push_str("}}");
        out
    }

    /// Hands the table to the saver when it changed since the last time.
    pub fn persist(&self, saver: &Saver) {
        if self.dirty.swap(false, Ordering::Relaxed) {
            saver.save(self.path.clone(), self.encode());
        }
    }

    fn cell(&self, group: &str, topic: &str) -> Option<Arc<Cell>> {
        self.groups.read().get(group)?.get(topic).cloned()
    }

    fn cell_or_insert(&self, group: &str, topic: &str) -> Arc<Cell> {
        if let Some(cell) = self.cell(group, topic) {
            return cell;
        }
        let mut groups = self.groups.write();
        Arc::clone(
            groups
                .entry(group.into())
                .or_default()
                .entry(topic.into())
                .or_default(),
        )
    }

    fn changed(&self) {
        self.dirty.store(true, Ordering::Relaxed);
        if self.commits.fetch_add(1, Ordering::Relaxed) % COMMITS_PER_VERSION
            == COMMITS_PER_VERSION - 1
        {
            self.data_version.lock().next_version(self.clock.now_ms());
        }
    }
}

fn json<T: serde::Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

/// `{0:5,1:7}`: integer keys without quotes, as every RocketMQ config file has them.
pub(crate) fn push_integer_map(out: &mut String, map: &BTreeMap<i32, i64>) {
    use std::fmt::Write as _;
    out.push('{');
    for (position, (key, value)) in map.iter().enumerate() {
        let comma = if position > 0 { "," } else { "" };
        let _ = write!(out, "{comma}{key}:{value}");
    }
    out.push('}');
}

#[cfg(test)]
mod tests {
    use store::SystemClock;

    use super::*;

    fn manager() -> (tempfile::TempDir, ConsumerOffsetManager) {
        let folder = tempfile::tempdir().unwrap();
        let manager = ConsumerOffsetManager::load(
            folder.path().join("config/consumerOffset.json"),
            Arc::new(SystemClock),
        )
        .unwrap();
        (folder, manager)
    }

    #[test]
    fn what_was_committed_is_answered_and_survives_a_restart() {
        let (folder, manager) = manager();
        assert_eq!(manager.query("G", "T", 0), None);
        assert_eq!(manager.commit("G", "T", 0, 5), Commit::Stored);
        manager.commit("G", "T", 1, 7);
        manager.commit("G", "%RETRY%G", 0, 1);
        manager.commit("H", "T", 0, 9);
        assert_eq!(manager.query("G", "T", 1), Some(7));
        assert_eq!(
            manager.groups_of_topic("T"),
            BTreeSet::from(["G".to_owned(), "H".to_owned()])
        );
        let saver = Saver::start().unwrap();
        manager.persist(&saver);
        assert!(saver.flush());
        let again = ConsumerOffsetManager::load(
            folder.path().join("config/consumerOffset.json"),
            Arc::new(SystemClock),
        )
        .unwrap();
        assert_eq!(
            again.offsets("G", "T"),
            Some(QueueOffsets::from([(0, 5), (1, 7)]))
        );
        assert_eq!(
            again.topics_of_group("G"),
            BTreeSet::from(["%RETRY%G".to_owned(), "T".to_owned()])
        );
    }

    #[test]
    fn what_a_slave_kept_comes_back_and_what_is_newer_here_stays() {
        let (_folder, manager) = manager();
        manager.commit("G", "T", 0, 5);
        manager.commit("G", "T", 1, 7);
        manager.commit("H", "T", 0, 2);
        let kept = [(0, 9), (1, 3), (2, 4)].into();
        manager.take_back(&ConsumerOffsetSerializeWrapper {
            offset_table: [("T@G".to_owned(), kept)].into(),
            ..ConsumerOffsetSerializeWrapper::default()
        });
        assert_eq!(
            manager.offsets("G", "T"),
            Some(QueueOffsets::from([(0, 9), (1, 7), (2, 4)]))
        );
        assert_eq!(manager.query("H", "T", 0), Some(2));
    }

    #[test]
    fn the_shape_is_that_of_5_3_3_with_bare_integer_keys() {
        let (_folder, manager) = manager();
        manager.commit("G", "T", 0, 5);
        manager.commit("G", "T", 1, 7);
        let text = manager.encode();
        let tail = r#","groupTopicMap":{"G":["T"]},"offsetTable":{"T@G":{0:5,1:7}}}"#;
        assert!(
            text.starts_with(r#"{"dataVersion":{"counter":"#) && text.ends_with(tail),
            "{text}"
        );
    }

    #[test]
    fn a_file_of_4_9_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("consumerOffset.json");
        std::fs::write(
            &path,
            "{\n\t\"offsetTable\":{\n\t\t\"T@G\":{0:5,1:7\n\t\t},\"odd\":{0:1}\n\t}\n}",
        )
        .unwrap();
        let manager = ConsumerOffsetManager::load(path, Arc::new(SystemClock)).unwrap();
        assert_eq!(
            manager.offsets("G", "T"),
            Some(QueueOffsets::from([(0, 5), (1, 7)]))
        );
    }

    #[test]
    fn a_reset_is_given_once_and_holds_off_commits_until_then() {
        let (_folder, manager) = manager();
        manager.commit("G", "T", 0, 50);
        manager.assign_reset("G", "T", 0, 3);
        assert_eq!(manager.commit("G", "T", 0, 51), Commit::ResetPending);
        assert_eq!(manager.query("G", "T", 0), Some(3));
        assert_eq!(manager.take_reset("G", "T", 0), Some(3));
        assert_eq!(manager.take_reset("G", "T", 0), None);
        assert_eq!(manager.commit("G", "T", 0, 4), Commit::Stored);
    }

    #[test]
    fn removing_and_cloning() {
        let (_folder, manager) = manager();
        manager.commit("G", "T", 0, 5);
        manager.clone_offset("G", "H", "T");
        assert_eq!(manager.query("H", "T", 0), Some(5));
        manager.remove_group("G");
        assert_eq!(manager.query("G", "T", 0), None);
        manager.remove_topic("T");
        assert!(manager.topics_of_group("H").is_empty());
    }
}
