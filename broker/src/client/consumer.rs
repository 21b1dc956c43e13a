use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;
use remoting::protocol::body::{
    ConsumeFromWhere, ConsumeType, ConsumerData, MessageModel, SubscriptionData,
};

use super::ClientChannelInfo;

/// Consumer groups: members, subscriptions, models; a model of a name that we do not know counts as clustering (upstream `ConsumerManager` and `ConsumerGroupInfo`).
#[derive(Debug, Default)]
pub struct ConsumerManager {
    groups: RwLock<HashMap<Box<str>, Arc<ConsumerGroup>>>,
}

#[derive(Debug, Default)]
pub struct ConsumerGroup {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    consume_type: ConsumeType,
    message_model: MessageModel,
    consume_from_where: ConsumeFromWhere,
    subscriptions: BTreeMap<String, Arc<SubscriptionData>>,
    members: HashMap<u64, ClientChannelInfo>,
    /// Set under the write lock when the last member left: whoever still holds the group must look it up again.
    removed: bool,
}

/// What a heartbeat changed in one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registration {
    /// A new member, or another set of topics: the members must rebalance (40).
    pub changed: bool,
    pub is_new_member: bool,
}

impl ConsumerManager {
    pub fn group(&self, group: &str) -> Option<Arc<ConsumerGroup>> {
        self.groups.read().get(group).cloned()
    }

    /// Takes over one group of a heartbeat.
    pub fn register(&self, data: &ConsumerData, info: ClientChannelInfo) -> Registration {
        loop {
            let group = match self.group(&data.group_name) {
                Some(group) => group,
                None => Arc::clone(
                    self.groups
                        .write()
                        .entry(data.group_name.as_str().into())
                        .or_default(),
                ),
            };
            if let Some(registration) = group.register(data, &info) {
                return registration;
            }
        }
    }

    /// Removes a member; answers whether it was one.
    pub fn unregister(&self, group: &str, connection: u64) -> bool {
        let Some(entry) = self.group(group) else {
            return false;
        };
        let removed = entry.state.write().members.remove(&connection).is_some();
        self.drop_if_empty(group);
        removed
    }

    /// Removes the connection everywhere; answers the groups whose remaining members must be told.
    pub fn connection_closed(&self, connection: u64) -> Vec<String> {
        let all: Vec<(Box<str>, Arc<ConsumerGroup>)> = self
            .groups
            .read()
            .iter()
            .map(|(name, group)| (name.clone(), Arc::clone(group)))
            .collect();
        let mut left = Vec::new();
        for (name, group) in all {
            if group.contains_connection(connection)
                && group.state.write().members.remove(&connection).is_some()
            {
                tracing::info!(group = %name, connection, "a consumer left");
                self.drop_if_empty(&name);
                left.push(name.into());
            }
        }
        left
    }

    /// Removes members whose last heartbeat came before `oldest_ms`; answers the groups to tell and the connections to close.
    pub fn expire(&self, oldest_ms: i64) -> (Vec<String>, Vec<u64>) {
        let mut groups = Vec::new();
        let mut connections = BTreeSet::new();
        for (name, group) in self.all() {
            let mut state = group.state.write();
            let before = state.members.len();
            state.members.retain(|connection, info| {
                let keep = !info.is_expired(oldest_ms);
                if !keep {
                    tracing::warn!(group = name, client = %info.client_id, peer = %info.peer, "a consumer went silent");
                    connections.insert(*connection);
                }
                keep
            });
            let changed = state.members.len() != before;
            drop(state);
            if changed {
                self.drop_if_empty(&name);
                groups.push(name);
            }
        }
        (groups, connections.into_iter().collect())
    }

    /// All groups by name.
    pub fn all(&self) -> BTreeMap<String, Arc<ConsumerGroup>> {
        self.groups
            .read()
            .iter()
            .map(|(name, group)| (name.to_string(), Arc::clone(group)))
            .collect()
    }

    /// Groups of which at least one member is subscribed to the topic.
    pub fn groups_of_topic(&self, topic: &str) -> BTreeSet<String> {
        self.all()
            .into_iter()
            .filter(|(_, group)| group.state.read().subscriptions.contains_key(topic))
            .map(|(name, _)| name)
            .collect()
    }

    pub fn count(&self) -> usize {
        self.groups
            .read()
            .values()
            .map(|group| group.state.read().members.len())
            .sum()
    }

    fn drop_if_empty(&self, group: &str) {
        let mut groups = self.groups.write();
        if let Some(entry) = groups.get(group) {
            let mut state = entry.state.write();
            if state.members.is_empty() {
                state.removed = true;
                drop(state);
                groups.remove(group);
            }
        }
    }
}

impl ConsumerGroup {
    fn register(&self, data: &ConsumerData, info: &ClientChannelInfo) -> Option<Registration> {
        let mut state = self.state.write();
        if state.removed {
            return None;
        }
        state.consume_type = data.consume_type;
        state.message_model = data.message_model;
        state.consume_from_where = data.consume_from_where;
        let is_new_member = state
            .members
            .insert(info.connection, info.clone())
            .is_none();
        if is_new_member {
            tracing::info!(group = data.group_name, client = %info.client_id, peer = %info.peer, "a consumer joined");
        }
        let subscriptions_changed =
            state.update_subscriptions(&data.group_name, &data.subscription_data_set);
        Some(Registration {
            changed: is_new_member || subscriptions_changed,
            is_new_member,
        })
    }

    /// What the group wants of the topic.
    pub fn subscription(&self, topic: &str) -> Option<Arc<SubscriptionData>> {
        self.state.read().subscriptions.get(topic).cloned()
    }

    pub fn subscriptions(&self) -> BTreeMap<String, Arc<SubscriptionData>> {
        self.state.read().subscriptions.clone()
    }

    pub fn is_broadcasting(&self) -> bool {
        self.state.read().message_model == MessageModel::Broadcasting
    }

    pub fn is_pull(&self) -> bool {
        self.state.read().consume_type == ConsumeType::ConsumeActively
    }

    pub fn consume_type(&self) -> ConsumeType {
        self.state.read().consume_type
    }

    pub fn message_model(&self) -> MessageModel {
        self.state.read().message_model
    }

    pub fn consume_from_where(&self) -> ConsumeFromWhere {
        self.state.read().consume_from_where
    }

    pub fn contains_connection(&self, connection: u64) -> bool {
        self.state.read().members.contains_key(&connection)
    }

    /// The client ids, each once (a client that reconnected may stand here twice until its old connection is gone).
    pub fn client_ids(&self) -> Vec<Arc<str>> {
        let ids: BTreeSet<Arc<str>> = self
            .state
            .read()
            .members
            .values()
            .map(|info| Arc::clone(&info.client_id))
            .collect();
        ids.into_iter().collect()
    }

    /// The members in the order in which they connected.
    pub fn members(&self) -> Vec<ClientChannelInfo> {
        let mut members: Vec<_> = self.state.read().members.values().cloned().collect();
        members.sort_by_key(|info| info.connection);
        members
    }

    /// The newest connection of a client, for relays (307, 309, 221).
    pub fn find(&self, client_id: &str) -> Option<ClientChannelInfo> {
        let state = self.state.read();
        state
            .members
            .values()
            .filter(|info| &*info.client_id == client_id)
            .max_by_key(|info| info.connection)
            .cloned()
    }
}

impl State {
    /// Upstream `ConsumerGroupInfo.updateSubscription`: a newer version replaces, topics not named any more go.
    fn update_subscriptions(&mut self, group: &str, latest: &[SubscriptionData]) -> bool {
        let mut changed = false;
        for data in latest {
            match self.subscriptions.get_mut(&data.topic) {
                None => {
                    tracing::info!(
                        group,
                        topic = data.topic,
                        expression = data.sub_string,
                        "a new subscription"
                    );
                    self.subscriptions
                        .insert(data.topic.clone(), Arc::new(data.clone()));
                    changed = true;
                }
                Some(known) if data.sub_version > known.sub_version => {
                    if data.sub_string != known.sub_string {
                        tracing::info!(
                            group,
                            topic = data.topic,
                            from = known.sub_string,
                            to = data.sub_string,
                            "a subscription changed"
                        );
                    }
                    *known = Arc::new(data.clone());
                }
                Some(_) => {}
            }
        }
        self.subscriptions.retain(|topic, _| {
            let keep = latest.iter().any(|data| data.topic == *topic);
            if !keep {
                tracing::warn!(
                    group,
                    topic,
                    "a subscription is gone from the latest heartbeat"
                );
                changed = true;
            }
            keep
        });
        changed
    }
}

#[cfg(test)]
pub(super) mod tests {
    use remoting::protocol::LanguageCode;

    use super::*;

    pub(in crate::client) fn client(
        connection: u64,
        id: &str,
        last_update_ms: i64,
    ) -> ClientChannelInfo {
        ClientChannelInfo {
            connection,
            peer: ([127, 0, 0, 1], 4000).into(),
            client_id: id.into(),
            language: LanguageCode::Java,
            version: 409,
            last_update_ms,
        }
    }

    fn data(topics: &[(&str, &str, i64)]) -> ConsumerData {
        ConsumerData {
            group_name: "G".into(),
            consume_type: ConsumeType::ConsumePassively,
            message_model: MessageModel::Unknown,
            subscription_data_set: topics
                .iter()
                .map(|(topic, expression, version)| SubscriptionData {
                    topic: (*topic).into(),
                    sub_string: (*expression).into(),
                    sub_version: *version,
                    ..SubscriptionData::default()
                })
                .collect(),
            ..ConsumerData::default()
        }
    }

    #[test]
    fn members_are_told_about_joins_and_changed_topics_only() {
        let consumers = ConsumerManager::default();
        assert!(
            consumers
                .register(&data(&[("T", "*", 1)]), client(1, "c1", 0))
                .changed
        );
        assert!(
            !consumers
                .register(&data(&[("T", "*", 1)]), client(1, "c1", 10))
                .changed
        );
        assert!(
            !consumers
                .register(&data(&[("T", "A", 2)]), client(1, "c1", 10))
                .changed
        );
        assert!(
            consumers
                .register(&data(&[("T", "A", 2)]), client(2, "c2", 10))
                .changed
        );
        assert!(
            consumers
                .register(&data(&[("T", "A", 2), ("U", "*", 2)]), client(2, "c2", 10))
                .changed
        );
        assert!(
            consumers
                .register(&data(&[("U", "*", 2)]), client(2, "c2", 10))
                .changed
        );
        let group = consumers.group("G").unwrap();
        assert_eq!(group.client_ids(), ["c1".into(), "c2".into()]);
        assert!(group.subscription("T").is_none());
        assert!(!group.is_broadcasting());
    }

    #[test]
    fn an_older_subscription_does_not_replace_a_newer_one() {
        let consumers = ConsumerManager::default();
        consumers.register(&data(&[("T", "new", 5)]), client(1, "c1", 0));
        consumers.register(&data(&[("T", "old", 4)]), client(2, "c2", 0));
        assert_eq!(
            consumers
                .group("G")
                .unwrap()
                .subscription("T")
                .unwrap()
                .sub_string,
            "new"
        );
        assert_eq!(
            consumers.groups_of_topic("T"),
            BTreeSet::from(["G".to_owned()])
        );
    }

    #[test]
    fn a_closed_connection_or_silence_removes_the_member_and_the_last_one_the_group() {
        let consumers = ConsumerManager::default();
        consumers.register(&data(&[("T", "*", 1)]), client(1, "c1", 0));
        consumers.register(&data(&[("T", "*", 1)]), client(2, "c2", 60_000));
        consumers.register(&data(&[("T", "*", 1)]), client(3, "c3", 60_000));
        assert_eq!(consumers.connection_closed(2), ["G"]);
        assert!(consumers.connection_closed(2).is_empty());
        assert_eq!(consumers.expire(1), (vec!["G".to_owned()], vec![1]));
        assert!(consumers.unregister("G", 3));
        assert!(consumers.group("G").is_none());
        assert!(!consumers.unregister("G", 3));
    }

    #[test]
    fn a_client_that_reconnected_is_listed_once_and_found_at_its_new_connection() {
        let consumers = ConsumerManager::default();
        consumers.register(&data(&[("T", "*", 1)]), client(1, "c1", 0));
        consumers.register(&data(&[("T", "*", 1)]), client(7, "c1", 0));
        let group = consumers.group("G").unwrap();
        assert_eq!(group.client_ids().len(), 1);
        assert_eq!(group.find("c1").unwrap().connection, 7);
        assert!(group.find("c2").is_none());
    }
}
