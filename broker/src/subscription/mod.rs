//! Settings of consumer groups, `config/subscriptionGroup.json`.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use remoting::protocol::body::{DataVersion, SubscriptionGroupConfig, SubscriptionGroupWrapper};
use store::Clock;

use crate::config_file::{self, Saver};

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
    ) -> Result<Self, config_file::Error> {
        let mut tables =
            Tables::from(config_file::read::<SubscriptionGroupWrapper>(&path)?.unwrap_or_default());
        for name in SYSTEM_GROUPS {
            tables
                .groups
                .entry(name.to_owned())
                .or_insert_with(|| Arc::new(SubscriptionGroupConfig::new(name)));
        }
        Ok(Self {
            path,
            saver,
            clock,
            inner: RwLock::new(tables),
        })
    }

    pub fn find(&self, group: &str) -> Option<Arc<SubscriptionGroupConfig>> {
        self.inner.read().groups.get(group).cloned()
    }

    /// The group's settings; an unknown group is created when `auto_create` is set or the name belongs to the system
    /// (upstream `findSubscriptionGroupConfig`).
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
        tracing::info!(group, "auto-created the consumer group");
        let config = Arc::new(SubscriptionGroupConfig::new(group));
        inner.groups.insert(group.to_owned(), Arc::clone(&config));
        self.changed(&mut inner);
        Some(config)
    }

    /// Creates or replaces groups in one step (200, 225).
    pub fn update(&self, configs: impl IntoIterator<Item = SubscriptionGroupConfig>) {
        let mut inner = self.inner.write();
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

    /// Removes a group's settings; false when it was not there.
    pub fn delete(&self, group: &str) -> bool {
        let mut inner = self.inner.write();
        let removed = inner.groups.remove(group).is_some();
        inner.forbidden.remove(group);
        if removed {
            tracing::info!(group, "deleted the consumer group");
            self.changed(&mut inner);
        }
        removed
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
        match serde_json::to_string_pretty(&inner.wrapper()) {
            Ok(text) => self.saver.save(self.path.clone(), text),
            Err(error) => tracing::error!(%error, "cannot encode the consumer groups"),
        }
    }
}

impl Tables {
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
        assert!(first.delete("CID_RMQ_SYS_x"));
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
