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

/// A client that has not sent a heartbeat for this long is dropped (`channelExpiredTimeout`).
pub const CHANNEL_EXPIRED_TIMEOUT_MS: i64 = 120_000;

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
    pub(crate) fn is_expired(&self, now_ms: i64) -> bool {
        now_ms - self.last_update_ms > CHANNEL_EXPIRED_TIMEOUT_MS
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
