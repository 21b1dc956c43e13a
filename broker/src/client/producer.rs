use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;

use super::ClientChannelInfo;

/// Producer groups and their connections (upstream `ProducerManager`).
#[derive(Debug, Default)]
pub struct ProducerManager {
    tables: RwLock<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    groups: HashMap<String, HashMap<u64, ClientChannelInfo>>,
    /// For request-reply: the newest connection of each client id.
    connection_of_client: HashMap<Arc<str>, u64>,
}

impl ProducerManager {
    pub fn register(&self, group: &str, info: ClientChannelInfo) {
        let mut tables = self.tables.write();
        let Tables {
            groups,
            connection_of_client,
        } = &mut *tables;
        let members = match groups.get_mut(group) {
            Some(members) => members,
            None => groups.entry(group.to_owned()).or_default(),
        };
        if !members.contains_key(&info.connection) {
            tracing::info!(group, client = %info.client_id, peer = %info.peer, "a producer joined");
        }
        connection_of_client.insert(Arc::clone(&info.client_id), info.connection);
        members.insert(info.connection, info);
    }

    pub fn unregister(&self, group: &str, connection: u64) {
        let mut tables = self.tables.write();
        if let Some(members) = tables.groups.get_mut(group) {
            members.remove(&connection);
            if members.is_empty() {
                tables.groups.remove(group);
            }
        }
        tables.forget_unused(connection);
    }

    pub fn connection_closed(&self, connection: u64) {
        let mut tables = self.tables.write();
        tables.groups.retain(|_, members| {
            members.remove(&connection);
            !members.is_empty()
        });
        tables.forget_unused(connection);
    }

    /// Removes clients whose last heartbeat came before `oldest_ms`; answers their connections, to be closed.
    pub fn expire(&self, oldest_ms: i64) -> Vec<u64> {
        let mut tables = self.tables.write();
        let mut expired = Vec::new();
        tables.groups.retain(|group, members| {
            members.retain(|connection, info| {
                let keep = !info.is_expired(oldest_ms);
                if !keep {
                    tracing::warn!(group, client = %info.client_id, peer = %info.peer, "a producer went silent");
                    expired.push(*connection);
                }
                keep
            });
            !members.is_empty()
        });
        for connection in &expired {
            tables.forget_unused(*connection);
        }
        expired
    }

    /// The members of a group; empty when the group is unknown.
    pub fn members(&self, group: &str) -> Vec<ClientChannelInfo> {
        let tables = self.tables.read();
        let mut members: Vec<_> = tables
            .groups
            .get(group)
            .into_iter()
            .flat_map(HashMap::values)
            .cloned()
            .collect();
        members.sort_by_key(|info| info.connection);
        members
    }

    /// Every group with its members (328).
    pub fn all(&self) -> BTreeMap<String, Vec<ClientChannelInfo>> {
        let tables = self.tables.read();
        tables
            .groups
            .iter()
            .map(|(group, members)| (group.clone(), members.values().cloned().collect()))
            .collect()
    }

    /// The connection of the producer with this client id (request-reply, 5.9).
    pub fn connection_of_client(&self, client_id: &str) -> Option<u64> {
        self.tables
            .read()
            .connection_of_client
            .get(client_id)
            .copied()
    }

    pub fn group_online(&self, group: &str) -> bool {
        self.tables.read().groups.contains_key(group)
    }

    pub fn count(&self) -> usize {
        self.tables.read().groups.values().map(HashMap::len).sum()
    }
}

impl Tables {
    fn forget_unused(&mut self, connection: u64) {
        if !self
            .groups
            .values()
            .any(|members| members.contains_key(&connection))
        {
            self.connection_of_client
                .retain(|_, used| *used != connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::consumer::tests::client;
    use super::*;

    #[test]
    fn a_producer_leaves_by_unregister_close_or_silence() {
        let producers = ProducerManager::default();
        producers.register("A", client(1, "p1", 0));
        producers.register("B", client(1, "p1", 0));
        producers.register("A", client(2, "p2", 50_000));
        assert_eq!(producers.connection_of_client("p1"), Some(1));
        producers.unregister("B", 1);
        assert!(!producers.group_online("B"));
        assert_eq!(producers.connection_of_client("p1"), Some(1));
        assert_eq!(producers.expire(1), [1]);
        assert_eq!(producers.connection_of_client("p1"), None);
        assert_eq!(producers.members("A").len(), 1);
        producers.connection_closed(2);
        assert!(producers.all().is_empty());
    }
}
