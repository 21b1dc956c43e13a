//! Who is connected: producers and consumers by group, and the connections behind them.
//!
//! The two managers are plain tables keyed by connection id. They never send anything: they answer *whom to tell*, and
//! [`Connections`] turns ids into sockets. Hence they are tested without a network, and with any clock.

mod consumer;
mod producer;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::RwLock;
use remoting::Connection;
use remoting::protocol::LanguageCode;

pub use consumer::{ConsumerGroup, ConsumerManager, Registration};
pub use producer::ProducerManager;

/// One client behind one connection, as its last heartbeat described it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientChannelInfo {
    pub connection: u64,
    pub peer: SocketAddr,
    pub client_id: Arc<str>,
    pub language: LanguageCode,
    pub version: i32,
    pub last_update_ms: i64,
}

impl ClientChannelInfo {
    /// Whether the last heartbeat came before `oldest_ms`.
    pub(crate) fn is_expired(&self, oldest_ms: i64) -> bool {
        self.last_update_ms < oldest_ms
    }
}

/// The open connections that have sent a heartbeat.
#[derive(Debug, Default)]
pub struct Connections {
    open: RwLock<HashMap<u64, Arc<Connection>>>,
}

impl Connections {
    pub fn insert(&self, connection: &Arc<Connection>) {
        if !self.open.read().contains_key(&connection.id()) {
            self.open
                .write()
                .insert(connection.id(), Arc::clone(connection));
        }
    }

    pub fn get(&self, id: u64) -> Option<Arc<Connection>> {
        self.open.read().get(&id).cloned()
    }

    pub fn remove(&self, id: u64) {
        self.open.write().remove(&id);
    }

    pub fn len(&self) -> usize {
        self.open.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
