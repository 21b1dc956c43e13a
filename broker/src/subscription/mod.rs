//! Settings of consumer groups, `config/subscriptionGroup.json`.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use remoting::protocol::body::{DataVersion, SubscriptionGroupConfig, SubscriptionGroupWrapper};
use store::Clock;

use crate::config_file::{self, Saver};
use crate::dledger::tables::{
    Changes, DeletedGroup, Group, GroupTables, Refusal, Tables as Agreed,
};

/// Groups every broker knows from the start (5.10 of the reference; upstream `SubscriptionGroupManager.init`).
const SYSTEM_GROUPS: [&str; 8] = [
    "TOOLS_CONSUMER",
    "FILTERSRV_CONSUMER",
    "SELF_TEST_C_GROUP",
    "CID_ONS-HTTP-PROXY",
    "CID_ONSAPI_PULL",
    "CID_ONSAPI_PERMISSION",
    "CID_ONSAPI_OWNER",
    "CID_RMQ_SYS_TRANS",
];

/// Prefix of groups that belong to brokers (upstream `MixAll.CID_SYS_RMQ_TRANS` family).
const SYSTEM_GROUP_PREFIX: &str = "CID_RMQ_SYS_";

/// Longest group name (upstream `Validators.CHARACTER_MAX_LENGTH` for groups in 5.x; clients allow 120).
const GROUP_MAX_LENGTH: usize = 255;

pub struct SubscriptionGroupManager {
    path: PathBuf,
    saver: Arc<Saver>,
    clock: Arc<dyn Clock>,
    inner: RwLock<Tables>,
    /// In a group of brokers that elects its master: changes go through its log, and it is who saves the tables.
    group: Option<Arc<GroupTables>>,
}

#[derive(Debug, Default)]
struct Tables {
    data_version: DataVersion,
    /// Group → topic → bits of what is forbidden (5.x, 353). Kept as found.
    forbidden: BTreeMap<String, BTreeMap<String, i32>>,
    groups: HashMap<String, Arc<SubscriptionGroupConfig>>,
}

impl SubscriptionGroupManager {
    pub fn load(
        path: PathBuf,
        saver: Arc<Saver>,
        clock: Arc<dyn Clock>,
        group: Option<Arc<GroupTables>>,
    ) -> Result<Self, config_file::Error> {
        let stored: Option<SubscriptionGroupWrapper> = match &group {
            Some(group) if group.starts_empty() => None,
            _ => config_file::read(&path)?,
        };
        let mut tables = Tables::from(stored.unwrap_or_default());
        tables.complete();
        Ok(Self {
            path,
            saver,
            clock,
            inner: RwLock::new(tables),
            group,
        })
    }

    pub fn find(&self, group: &str) -> Option<Arc<SubscriptionGroupConfig>> {
        self.inner.read().groups.get(group).cloned()
    }

    /// The group's settings; an unknown group is created when `auto_create` is set or the name belongs to the system
    /// (upstream `findSubscriptionGroupConfig`). Where a log of the brokers does not take it now, on a follower above all, the
    /// answer is what it would be created as: the leader is asked too.
    pub fn find_or_create(
        &self,
        group: &str,
        auto_create: bool,
    ) -> Option<Arc<SubscriptionGroupConfig>> {
        if let Some(config) = self.find(group) {
            return Some(config);
        }
        if !(auto_create || is_system_group(group)) || validate_group(group).is_err() {
            return None;
        }
        let mut inner = self.inner.write();
        if let Some(config) = inner.groups.get(group) {
            return Some(Arc::clone(config));
        }
        let config = Arc::new(SubscriptionGroupConfig::new(group));
        if let Err(error) = self.propose(|| Changes::of_groups([inner.row(&config)])) {
            tracing::debug!(group, %error, "the consumer group is not created here");
            return Some(config);
        }
        tracing::info!(group, "auto-created the consumer group");
        inner.groups.insert(group.to_owned(), Arc::clone(&config));
        self.changed(&mut inner);
        Some(config)
    }

    /// Creates or replaces groups in one step (200, 225).
    pub fn update(
        &self,
        configs: impl IntoIterator<Item = SubscriptionGroupConfig>,
    ) -> Result<(), Refusal> {
        let configs: Vec<SubscriptionGroupConfig> = configs.into_iter().collect();
        let mut inner = self.inner.write();
        self.propose(|| Changes::of_groups(configs.iter().map(|config| inner.row(config))))?;
        for config in configs {
            tracing::info!(
                group = config.group_name,
                ?config,
                "the consumer group's settings change"
            );
            inner
                .groups
                .insert(config.group_name.clone(), Arc::new(config));
        }
        self.changed(&mut inner);
        Ok(())
    }

    /// A change goes into the brokers' log before it is shown, where there is one; under the lock of the tables.
    fn propose(&self, changes: impl FnOnce() -> Changes) -> Result<(), Refusal> {
        let group = self.group.as_ref();
        group.map_or(Ok(()), |group| group.propose(changes()))
    }

    /// What the brokers agreed on while others led, in place of what is shown of the same groups.
    pub(crate) fn agree(&self, changes: &[Changes]) {
        if !changes.iter().any(Changes::touches_groups) {
            return;
        }
        let mut inner = self.inner.write();
        for changes in changes {
            changes.groups.iter().for_each(|group| inner.put(group));
            for group in &changes.deleted_groups {
                inner.remove(&group.name);
            }
        }
        self.changed(&mut inner);
    }

    /// What this broker's part of the log says, in place of what is shown.
    pub(crate) fn restore(&self, group: &GroupTables) {
        let mut inner = self.inner.write();
        let mut tables = Tables {
            data_version: inner.data_version,
            ..Tables::default()
        };
        group.shown().groups().for_each(|group| tables.put(group));
        tables.complete();
        *inner = tables;
        self.changed(&mut inner);
    }

    /// All but the system groups as each broker makes them for itself.
    pub(crate) fn rows(&self) -> Vec<Group> {
        let inner = self.inner.read();
        let rows = inner.groups.values().map(|config| inner.row(config));
        rows.filter(|row| !is_as_made(row)).collect()
    }

    /// What the brokers' tables write into the file.
    pub(crate) fn text_of(&self, agreed: &Agreed) -> String {
        let mut tables = Tables {
            data_version: self.inner.read().data_version,
            ..Tables::default()
        };
        agreed.groups().for_each(|group| tables.put(group));
        tables.complete();
        serde_json::to_string_pretty(&tables.wrapper()).unwrap_or_default()
    }

    /// Puts what a master sent (201) in place of the current tables, but for system groups that only this broker knows; false
    /// when it has that version already.
    pub fn follow(&self, wrapper: SubscriptionGroupWrapper) -> bool {
        let mut inner = self.inner.write();
        if inner.data_version == wrapper.data_version {
            return false;
        }
        let mut tables = Tables::from(wrapper);
        for name in SYSTEM_GROUPS {
            if let Some(config) = inner.groups.get(name) {
                let config = Arc::clone(config);
                tables.groups.entry(name.to_owned()).or_insert(config);
            }
        }
        *inner = tables;
        self.save(&inner);
        true
    }

    /// Takes back what a slave kept of these tables (201), by the rule of [`crate::topic::TopicConfigManager::take_back`].
    pub fn take_back(&self, wrapper: SubscriptionGroupWrapper, whole: bool) {
        let mut inner = self.inner.write();
        if !whole && inner.data_version.counter >= wrapper.data_version.counter {
            return;
        }
        let theirs = Tables::from(wrapper);
        inner.forbidden.extend(theirs.forbidden);
        inner.groups.extend(theirs.groups);
        let counter = inner.data_version.counter;
        inner.data_version = theirs.data_version;
        inner.data_version.counter = inner.data_version.counter.max(counter);
        self.changed(&mut inner);
    }

    /// Removes a group's settings; false when it was not there. `offsets`: whoever agrees on it forgets its offsets, too.
    pub fn delete(&self, group: &str, offsets: bool) -> Result<bool, Refusal> {
        let mut inner = self.inner.write();
        self.propose(|| Changes {
            deleted_groups: vec![DeletedGroup {
                name: group.to_owned(),
                offsets,
            }],
            ..Changes::default()
        })?;
        let removed = inner.remove(group);
        if removed {
            tracing::info!(group, "deleted the consumer group");
            self.changed(&mut inner);
        }
        Ok(removed)
    }

    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.inner.read().groups.keys().cloned().collect();
        names.sort();
        names
    }

    /// Whether a 5.x tool (353) forbade the group something about the topic; reading is bit 2, as in permissions.
    pub fn is_forbidden(&self, group: &str, topic: &str, bit: u32) -> bool {
        let inner = self.inner.read();
        let bits = inner
            .forbidden
            .get(group)
            .and_then(|topics| topics.get(topic));
        bits.is_some_and(|bits| bits & (1 << bit) != 0)
    }

    /// The answer of 201.
    pub fn wrapper(&self) -> SubscriptionGroupWrapper {
        self.inner.read().wrapper()
    }

    pub fn persist(&self) {
        self.save(&self.inner.read());
    }

    fn changed(&self, inner: &mut Tables) {
        inner.data_version.next_version(self.clock.now_ms());
        self.save(inner);
    }

    fn save(&self, inner: &Tables) {
        if self.group.is_some() {
            return;
        }
        match serde_json::to_string_pretty(&inner.wrapper()) {
            Ok(text) => self.saver.save(self.path.clone(), text),
            Err(error) => tracing::error!(%error, "cannot encode the consumer groups"),
        }
    }
}

impl Tables {
    /// Adds the system groups that are missing.
    fn complete(&mut self) {
        for name in SYSTEM_GROUPS {
            self.groups
                .entry(name.to_owned())
                .or_insert_with(|| Arc::new(SubscriptionGroupConfig::new(name)));
        }
    }

    fn row(&self, config: &SubscriptionGroupConfig) -> Group {
        let forbidden = self.forbidden.get(&config.group_name);
        Group {
            config: config.clone(),
            forbidden: forbidden.cloned().unwrap_or_default(),
        }
    }

    fn put(&mut self, group: &Group) {
        let (name, config) = (&group.config.group_name, Arc::new(group.config.clone()));
        self.groups.insert(name.clone(), config);
        self.forbidden.remove(name);
        if !group.forbidden.is_empty() {
            self.forbidden.insert(name.clone(), group.forbidden.clone());
        }
    }

    fn remove(&mut self, name: &str) -> bool {
        self.forbidden.remove(name);
        self.groups.remove(name).is_some()
    }

    fn wrapper(&self) -> SubscriptionGroupWrapper {
        SubscriptionGroupWrapper {
            data_version: self.data_version,
            forbidden_table: self.forbidden.clone(),
            subscription_group_table: self
                .groups
                .iter()
                .map(|(name, config)| (name.clone(), (**config).clone()))
                .collect(),
        }
    }
}

impl From<SubscriptionGroupWrapper> for Tables {
    fn from(wrapper: SubscriptionGroupWrapper) -> Self {
        let group = |(name, mut config): (String, SubscriptionGroupConfig)| {
            config.group_name.clone_from(&name);
            (name, Arc::new(config))
        };
        Self {
            data_version: wrapper.data_version,
            forbidden: wrapper.forbidden_table,
            groups: wrapper
                .subscription_group_table
                .into_iter()
                .map(group)
                .collect(),
        }
    }
}

/// A system group as every broker has it from the start.
fn is_as_made(row: &Group) -> bool {
    let name = row.config.group_name.as_str();
    SYSTEM_GROUPS.contains(&name)
        && row.forbidden.is_empty()
        && row.config == SubscriptionGroupConfig::new(name)
}

pub fn is_system_group(group: &str) -> bool {
    group.starts_with(SYSTEM_GROUP_PREFIX) || SYSTEM_GROUPS.contains(&group)
}

/// Why `group` is no name for a group (upstream `TopicValidator.validateGroup`).
pub fn validate_group(group: &str) -> Result<(), String> {
    if group.trim().is_empty() {
        return Err("The specified group is blank.".to_owned());
    }
    if !group
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'%' | b'|' | b'_' | b'-'))
    {
        return Err(format!(
            "The specified group contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$: {group}"
        ));
    }
    if group.len() > GROUP_MAX_LENGTH {
        return Err(format!(
            "The specified group is longer than group max length: {GROUP_MAX_LENGTH}."
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(folder: &std::path::Path) -> SubscriptionGroupManager {
        SubscriptionGroupManager::load(
            folder.join("subscriptionGroup.json"),
            Arc::new(Saver::start().unwrap()),
            Arc::new(store::SystemClock),
            None,
        )
        .unwrap()
    }

    #[test]
    fn groups_are_created_on_demand_only_when_allowed_and_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let first = manager(folder.path());
        assert!(first.find_or_create("G", false).is_none());
        assert!(first.find_or_create("CID_RMQ_SYS_x", false).is_some());
        assert!(first.find_or_create("bad group", true).is_none());
        assert_eq!(first.find_or_create("G", true).unwrap().retry_max_times, 16);
        assert_eq!(first.delete("CID_RMQ_SYS_x", false), Ok(true));
        assert!(first.saver.flush());
        let second = manager(folder.path());
        assert!(second.find("G").is_some());
        assert!(second.find("CID_RMQ_SYS_x").is_none());
        assert!(second.find("TOOLS_CONSUMER").is_some());
        assert_eq!(second.wrapper().data_version, first.wrapper().data_version);
    }

    #[test]
    fn a_file_of_4_9_is_read_with_defaults_for_what_it_lacks() {
        let folder = tempfile::tempdir().unwrap();
        let text = "{\n\t\"dataVersion\":{\n\t\t\"counter\":3,\n\t\t\"timestamp\":1700000000000\n\t},\n\t\"subscriptionGroupTable\":{\n\t\t\"G\":{\n\t\t\t\"brokerId\":0,\n\t\t\t\"consumeBroadcastEnable\":false,\n\t\t\t\"consumeEnable\":true,\n\t\t\t\"consumeFromMinEnable\":false,\n\t\t\t\"groupName\":\"G\",\n\t\t\t\"notifyConsumerIdsChangedEnable\":true,\n\t\t\t\"retryMaxTimes\":5,\n\t\t\t\"retryQueueNums\":2,\n\t\t\t\"whichBrokerWhenConsumeSlowly\":1\n\t\t}\n\t}\n}";
        std::fs::write(folder.path().join("subscriptionGroup.json"), text).unwrap();
        let manager = manager(folder.path());
        let group = manager.find("G").unwrap();
        assert_eq!(
            (
                group.retry_max_times,
                group.retry_queue_nums,
                group.consume_broadcast_enable
            ),
            (5, 2, false)
        );
        assert_eq!(group.consume_timeout_minute, 15);
        assert_eq!(manager.wrapper().data_version.counter, 3);
    }
}
