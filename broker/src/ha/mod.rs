//! Replication of the log between a master and its slaves.
//!
//! * [`protocol`]: Apache's stream, pure.
//! * `master`: serves slaves; [`replicas`] keeps what they have and decides what counts as replicated.
//! * `slave`: follows a master; [`link`] is what others may know of it.
//! * `peer`, `history`: what our own brokers ask each other before a stream begins, and where two logs part.
//! * `metrics`: both ends for `/metrics`.
//! * `settle`: a master that comes back asks its slaves for what it may have lost before it serves.
//!
//! All of it runs on one thread with a runtime of its own, so that neither a slow disk nor busy connections ever silence
//! it. It is woken when the log moves and only while it waits for that: never once a message.

mod history;
pub mod link;
mod master;
mod metrics;
pub(crate) mod peer;
pub mod protocol;
pub mod replicas;
mod settle;
mod slave;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::time::Duration;

use parking_lot::Mutex;
use remoting::protocol::body::{HAClientRuntimeInfo, HAConnectionRuntimeInfo, HARuntimeInfo};
use remoting::{RemotingClient, Resolver};
use store::Store;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use self::link::Link;
pub use self::protocol::MAX_CHUNK;
pub use self::replicas::{Replicas, SyncRule};

use crate::broker::Broker;
use crate::config::{BrokerConfig, Settings};
use crate::role::{Role, RoleNow};

/// How often what depends on time is looked at: heartbeats, silence, sends that waited long enough.
const TICK: Duration = Duration::from_millis(100);

/// Replication's part of a broker.
#[derive(Default)]
pub struct Ha {
    /// The slaves that are connected.
    pub replicas: Replicas,
    /// A slave's connection to its master.
    pub link: Link,
    wake: Wake,
    acked: Notify,
    /// Bytes read from disk for slaves that are far behind.
    budget: Mutex<master::Budget>,
    /// Bytes by which the log grew in the last second.
    growth: AtomicU64,
    /// Why the master does not serve yet.
    unsettled: Mutex<Option<String>>,
    /// It has asked its slaves: they may follow it, though it is not registered yet.
    settled: AtomicBool,
    stop: CancellationToken,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl std::fmt::Debug for Ha {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ha")
            .field("replicas", &self.replicas)
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

/// Wakes replication when the log moved, if it waits for that.
#[derive(Default)]
struct Wake {
    parked: AtomicUsize,
    moved: Notify,
}

struct Parked<'a>(&'a AtomicUsize);

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Wake {
    fn raise(&self) {
        // Pairs with the fence below: either the watermark is seen by who is about to wait, or the waiter is seen here.
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) > 0 {
            self.moved.notify_waiters();
        }
    }

    /// Returns at once when `ready`, else after the next move of the log.
    async fn moved_unless(&self, ready: impl Fn() -> bool) {
        let mut moved = pin!(self.moved.notified());
        moved.as_mut().enable();
        self.parked.fetch_add(1, Ordering::Relaxed);
        let _parked = Parked(&self.parked);
        fence(Ordering::SeqCst);
        if !ready() {
            moved.await;
        }
    }
}

impl Ha {
    /// The store's watermarks moved.
    pub(crate) fn log_moved(&self) {
        self.wake.raise();
    }

    /// Up to here enough slaves have everything.
    pub fn replicated(&self) -> u64 {
        self.replicas.mark()
    }

    /// Whether a send that ends here may wait for slaves, or must be answered SLAVE_NOT_AVAILABLE.
    pub(crate) fn may_wait(&self, config: &BrokerConfig, end: u64) -> bool {
        let max_gap = u64::try_from(config.ha_max_gap_not_in_sync).unwrap_or(0);
        self.replicas.available(end, max_gap)
    }

    /// Waits until every connected slave has everything, but no longer than `limit`.
    pub(crate) async fn drained(&self, broker: &Broker, limit: Duration) {
        if broker.role.now().role != Role::Master {
            return;
        }
        let all = async {
            loop {
                let acked = self.acked.notified();
                let end = broker.store.written();
                let behind = |r: &Arc<replicas::Replica>| r.acked.load(Ordering::Acquire) < end;
                if !self.replicas.list().iter().any(behind) {
                    return;
                }
                acked.await;
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("a slave had not everything when the broker stopped");
        }
    }

    /// Ends the thread and waits for it: from then on nothing of a master's log comes into the store. Blocks.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }

    /// Why this broker is not ready as far as replication goes.
    pub fn ready(&self, broker: &Broker) -> Result<(), String> {
        if let Some(group) = broker.group.get() {
            return group.ready();
        }
        match broker.role.now().role {
            Role::Slave => {
                let limit = broker.config().ha_ready_max_lag_bytes;
                self.link
                    .ready(broker.store.written(), u64::try_from(limit).unwrap_or(0))
            }
            _ => match &*self.unsettled.lock() {
                Some(reason) => Err(reason.clone()),
                None => Ok(()),
            },
        }
    }

    fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// Why a master does not serve yet, while it asks its slaves for what it may have lost.
    pub fn unsettled(&self) -> Option<String> {
        self.unsettled.lock().clone()
    }

    /// The answer to GET_BROKER_HA_STATUS (907).
    pub(crate) fn status(&self, broker: &Broker) -> HARuntimeInfo {
        let long = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let end = broker.store.confirm_offset();
        if broker.role.now().role == Role::Slave {
            let link = self.link.now();
            return HARuntimeInfo {
                ha_client_runtime_info: HAClientRuntimeInfo {
                    last_read_timestamp: link.last_read_ms,
                    last_write_timestamp: link.last_write_ms,
                    master_addr: link.master,
                    master_flush_offset: 0,
                    max_offset: long(end),
                    transferred_byte_in_second: long(link.per_second),
                },
                master: false,
                ..HARuntimeInfo::default()
            };
        }
        let max_gap = SyncRule::new(&broker.config()).max_gap;
        let written = broker.store.written();
        let ha_connection_info: Vec<_> = self
            .replicas
            .list()
            .iter()
            .map(|replica| {
                let acked = replica.acked.load(Ordering::Relaxed);
                HAConnectionRuntimeInfo {
                    addr: replica.peer.to_string(),
                    diff: long(written.saturating_sub(acked)),
                    in_sync: written.saturating_sub(acked) <= max_gap,
                    slave_ack_offset: long(acked),
                    transfer_from_where: long(replica.sent.load(Ordering::Relaxed)),
                    transferred_byte_in_second: long(replica.per_second.load(Ordering::Relaxed)),
                }
            })
            .collect();
        let in_sync = ha_connection_info.iter().filter(|c| c.in_sync).count();
        HARuntimeInfo {
            ha_client_runtime_info: HAClientRuntimeInfo::default(),
            in_sync_slave_nums: i32::try_from(in_sync).unwrap_or(i32::MAX),
            ha_connection_info,
            master: true,
            master_commit_log_max_offset: long(end),
        }
    }
}

/// The role that a broker begins with: a master that may have lost something is none until it has asked.
pub(crate) fn first_role(config: &BrokerConfig, store: &Store) -> RoleNow {
    let role = RoleNow::configured(config);
    if !settle::is_needed(config, store, &role) {
        return role;
    }
    settle::note(config, store);
    RoleNow {
        role: Role::Undecided,
        broker_id: -1,
        ..role
    }
}

/// The replication port, bound before the store is opened.
pub(crate) struct Listener {
    listener: Option<std::net::TcpListener>,
    port: u16,
}

impl Listener {
    /// Upstream's rule: `haListenPort`, else one above the main port.
    pub(crate) async fn bind(
        settings: &Settings,
        main_port: u16,
    ) -> Result<Self, (SocketAddr, io::Error)> {
        let config = &settings.raw;
        let port = match (config.ha_listen_port, config.listen_port) {
            (0, 0) => 0,
            (0, _) => main_port.saturating_add(1),
            (port, _) => port,
        };
        if config.enable_dleger_commit_log {
            return Ok(Self {
                listener: None,
                port,
            });
        }
        let address = SocketAddr::new(settings.bind_address, port);
        let bound = async {
            let listener = TcpListener::bind(address).await?;
            let port = listener.local_addr()?.port();
            Ok((listener.into_std()?, port))
        };
        let (listener, port) = bound.await.map_err(|error| (address, error))?;
        Ok(Self {
            listener: Some(listener),
            port,
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

/// What the tasks of replication share.
#[derive(Clone)]
struct Node {
    broker: Arc<Broker>,
    client: RemotingClient,
    resolver: Resolver,
}

/// Starts the thread of replication; it ends with [`Ha::stop`].
pub(crate) fn start(broker: &Arc<Broker>, listener: Listener) -> io::Result<()> {
    let Some(listener) = listener.listener else {
        return Ok(());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let node = Node {
        broker: Arc::clone(broker),
        client: RemotingClient::default(),
        resolver: Resolver::from_env(),
    };
    let listener = {
        let _inside = runtime.enter();
        TcpListener::from_std(listener)?
    };
    let run = async move {
        let stop = node.broker.ha.stop.clone();
        let parts = async {
            tokio::join!(
                master::accept(&node, listener),
                master::keep_time(&node.broker),
                settle::run(&node),
                slave::run(&node),
            );
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = parts => {}
        }
    };
    let thread = std::thread::Builder::new()
        .name("replication".to_owned())
        .spawn(move || {
            runtime.block_on(run);
            // A read of a slow disk may still be under way; nobody waits for it.
            runtime.shutdown_background();
        })?;
    *broker.ha.thread.lock() = Some(thread);
    Ok(())
}
/// Whether this is one of ours that does not know yet whether it may serve.
pub(crate) async fn is_undecided(client: &RemotingClient, address: &str) -> bool {
    let info = peer::ask_info(client, address).await;
    info.is_ok_and(|info| info.is_some_and(|info| info.is_undecided()))
}
