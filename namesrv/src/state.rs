//! What all connections of a name server share, and the two things that happen without a request: removal of brokers in batches, and the search
//! for silent ones.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use remoting::Connection;
use remoting::properties::Properties;
use remoting::protocol::{RemotingCommand, request_code as request, response_code as response};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::{NamesrvConfig, UpdateError};
use crate::kv_config::{KvConfigManager, write_atomically};
use crate::metrics::Metrics;
use crate::route_info::{
    ConnectionId, MinBrokerIdChanged, Options, Refused, Registered, Registration, RouteInfoManager,
    Unregistration,
};

/// `NamesrvController`: the first search for silent brokers comes so long after the start.
const FIRST_SCAN: Duration = Duration::from_secs(5);
/// Without a registration a name server calls itself ready after this time: perhaps there are no brokers yet.
const READY_WITHOUT_BROKERS: Duration = Duration::from_secs(5);

pub(crate) struct State {
    pub(crate) config: ArcSwap<NamesrvConfig>,
    /// Held for one look-up or one registration, never while encoding.
    pub(crate) routes: RwLock<RouteInfoManager>,
    pub(crate) kv: RwLock<KvConfigManager>,
    pub(crate) metrics: Metrics,
    /// Connections through which brokers registered: to close those of the silent, and to tell members (905).
    brokers: Mutex<HashMap<ConnectionId, Weak<Connection>>>,
    unregistrations: mpsc::Sender<Unregistration>,
    registered_once: AtomicBool,
    started: Instant,
}

impl State {
    pub(crate) fn new(
        config: NamesrvConfig,
        kv: KvConfigManager,
    ) -> (Arc<Self>, mpsc::Receiver<Unregistration>) {
        let capacity = usize::try_from(config.un_register_broker_queue_capacity)
            .unwrap_or(usize::MAX)
            .clamp(1, 1 << 20);
        let (unregistrations, receiver) = mpsc::channel(capacity);
        let state = Self {
            config: ArcSwap::from_pointee(config),
            routes: RwLock::default(),
            kv: RwLock::new(kv),
            metrics: Metrics::default(),
            brokers: Mutex::default(),
            unregistrations,
            registered_once: AtomicBool::new(false),
            started: Instant::now(),
        };
        (Arc::new(state), receiver)
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Monotonic, so that a stepped wall clock expires nobody.
    pub(crate) fn now_ms(&self) -> i64 {
        i64::try_from(self.uptime().as_millis()).unwrap_or(i64::MAX)
    }

    pub(crate) fn options(&self, config: &NamesrvConfig) -> Options {
        Options {
            support_acting_master: config.support_acting_master,
            delete_topic_with_registration: config.delete_topic_with_broker_registration,
        }
    }

    pub(crate) fn register(
        &self,
        registration: Registration,
        connection: &Arc<Connection>,
        config: &NamesrvConfig,
    ) -> Result<Registered, Refused> {
        // Known before the entry exists: whoever finds the entry also finds the connection.
        self.brokers
            .lock()
            .insert(connection.id(), Arc::downgrade(connection));
        let mut registered =
            self.routes
                .write()
                .register(registration, self.options(config), self.now_ms())?;
        self.registered_once.store(true, Ordering::Release);
        self.tell(registered.notice.take());
        Ok(registered)
    }

    /// `false` when too many are waiting.
    pub(crate) fn submit(&self, unregistration: Unregistration) -> bool {
        self.unregistrations.try_send(unregistration).is_ok()
    }

    pub(crate) fn connection_closed(&self, connection: ConnectionId) {
        self.brokers.lock().remove(&connection);
        let gone = self.routes.read().registered_by(connection);
        if gone.is_empty() {
            return;
        }
        // A full queue must not keep a dead broker in the routes.
        let overflow: Vec<_> = gone
            .into_iter()
            .filter(|u| !self.submit(u.clone()))
            .collect();
        if !overflow.is_empty() {
            self.unregister(&overflow);
        }
    }

    fn unregister(&self, batch: &[Unregistration]) {
        for u in batch {
            tracing::info!(
                "broker left: {} {} {}",
                u.broker_name,
                u.broker_id,
                u.broker_addr
            );
        }
        let notices = self.routes.write().unregister(batch);
        self.tell(notices);
    }

    fn tell(&self, notices: impl IntoIterator<Item = MinBrokerIdChanged>) {
        if !self.config.load().notify_min_broker_id_changed {
            return;
        }
        for notice in notices {
            let mut command = RemotingCommand::request(request::NOTIFY_MIN_BROKER_ID_CHANGE)
                .with_ext("minBrokerId", notice.min_broker_id.to_string())
                .with_ext("brokerName", notice.broker_name)
                .with_ext("minBrokerAddr", notice.min_broker_addr);
            if let Some(addr) = notice.offline_broker_addr {
                command = command.with_ext("offlineBrokerAddr", addr);
            }
            if let Some(addr) = notice.ha_broker_addr {
                command = command.with_ext("haBrokerAddr", addr);
            }
            let brokers = self.brokers.lock();
            for connection in notice
                .tell
                .iter()
                .filter_map(|id| brokers.get(id)?.upgrade())
            {
                connection.oneway(command.clone());
            }
        }
    }

    /// Removes who has been silent for longer than promised at `now_ms`, and closes their connections.
    pub(crate) fn expire(&self, now_ms: i64) {
        if self.routes.read().expired(now_ms).is_empty() {
            return;
        }
        // Found and removed under one lock: who registers in between is not lost.
        let (expired, notices) = {
            let mut routes = self.routes.write();
            let expired = routes.expired(now_ms);
            let notices = routes.unregister(&expired);
            (expired, notices)
        };
        for u in &expired {
            tracing::warn!(
                "broker silent for too long: {} {} {}",
                u.broker_name,
                u.broker_id,
                u.broker_addr
            );
            let connection = u
                .owner
                .and_then(|id| self.brokers.lock().get(&id)?.upgrade());
            if let Some(connection) = connection {
                connection.close();
            }
        }
        self.tell(notices);
    }

    /// Applies unregistrations as they come, all that wait at once.
    pub(crate) async fn run_unregistrations(
        self: Arc<Self>,
        mut waiting: mpsc::Receiver<Unregistration>,
        shutdown: CancellationToken,
    ) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                received = waiting.recv_many(&mut batch, waiting.max_capacity()) => {
                    if received == 0 {
                        return;
                    }
                }
                () = shutdown.cancelled() => return,
            }
            self.unregister(&batch);
            batch.clear();
        }
    }

    pub(crate) async fn run_scan(self: Arc<Self>, shutdown: CancellationToken) {
        let mut pause = FIRST_SCAN;
        while shutdown
            .run_until_cancelled(tokio::time::sleep(pause))
            .await
            .is_some()
        {
            self.expire(self.now_ms());
            pause =
                Duration::from_millis(self.config.load().scan_not_active_broker_interval.max(1));
        }
    }

    /// 318. A file that cannot be written keeps the change in memory only, and the answer says so.
    pub(crate) fn update_config(&self, properties: &Properties) -> RemotingCommand {
        let (next, warnings) = match self.config.load().updated(properties) {
            Ok(updated) => updated,
            Err(e @ UpdateError::BlackListed) => {
                return RemotingCommand::error(response::NO_PERMISSION, e.to_string());
            }
            Err(e) => return RemotingCommand::error(response::SYSTEM_ERROR, e.to_string()),
        };
        let stored = write_atomically(&next.config_store_path, next.to_properties().as_bytes());
        let path = next.config_store_path.clone();
        self.config.store(Arc::new(next));
        let mut remarks: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        if let Err(e) = stored {
            remarks.push(format!(
                "changed in memory only: cannot write {}: {e}",
                path.display()
            ));
        }
        for remark in &remarks {
            tracing::warn!("{remark}");
        }
        let mut reply = RemotingCommand::response(response::SUCCESS);
        reply.remark = (!remarks.is_empty()).then(|| remarks.join("; "));
        reply
    }

    pub(crate) fn ready(&self) -> Result<(), String> {
        if self.registered_once.load(Ordering::Acquire) || self.uptime() >= READY_WITHOUT_BROKERS {
            return Ok(());
        }
        Err("no broker has registered yet".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use remoting::protocol::body::TopicConfig;

    use super::*;
    use crate::route_info::DEFAULT_BROKER_EXPIRED_MS;

    fn state() -> (
        Arc<State>,
        mpsc::Receiver<Unregistration>,
        tempfile::TempDir,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let config = NamesrvConfig {
            un_register_broker_queue_capacity: 1,
            ..NamesrvConfig::default()
        };
        let kv = KvConfigManager::load(&folder.path().join("kv.json")).unwrap();
        let (state, waiting) = State::new(config, kv);
        (state, waiting, folder)
    }

    fn register(state: &State, name: &str) -> Arc<Connection> {
        let address = "127.0.0.1:1".parse().unwrap();
        let connection = Connection::detached(address, address);
        let registration = Registration {
            cluster: "c".to_owned(),
            broker_name: name.to_owned(),
            broker_addr: format!("{name}:1"),
            topics: ["T", "U"]
                .map(|t| (t.to_owned(), TopicConfig::new(t, 4, 6)))
                .into(),
            connection: connection.id(),
            ..Registration::default()
        };
        let config = state.config.load();
        state.register(registration, &connection, &config).unwrap();
        connection
    }

    #[test]
    fn the_silent_are_removed_and_their_connection_closed() {
        let (state, _waiting, _folder) = state();
        let connection = register(&state, "b");
        state.expire(state.now_ms());
        assert!(connection.is_open() && state.routes.read().sizes().brokers == 1);
        state.expire(state.now_ms() + DEFAULT_BROKER_EXPIRED_MS + 1);
        assert!(!connection.is_open());
        assert_eq!(state.routes.read().sizes().broker_names, 0);
    }

    #[test]
    fn a_full_queue_keeps_no_dead_broker_in_the_routes() {
        let (state, mut waiting, _folder) = state();
        let (first, second) = (register(&state, "a"), register(&state, "b"));
        assert!(state.ready().is_ok());
        state.connection_closed(first.id());
        state.connection_closed(second.id());
        assert_eq!(
            waiting.try_recv().unwrap().broker_name,
            "a",
            "waits for its batch"
        );
        assert_eq!(
            state.routes.read().sizes().broker_names,
            1,
            "the second found the queue full and left at once"
        );
        assert!(state.brokers.lock().is_empty());
    }

    #[tokio::test]
    async fn unregistrations_are_applied_by_their_task_until_shutdown() {
        let (state, waiting, _folder) = state();
        let connection = register(&state, "b");
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(state.clone().run_unregistrations(waiting, shutdown.clone()));
        state.connection_closed(connection.id());
        while state.routes.read().sizes().brokers > 0 {
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
        task.await.unwrap();
    }
}
