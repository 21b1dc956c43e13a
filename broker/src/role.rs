//! What the broker is within its group now: configuration decides it once (master, slave), or an election decides it again and again (dledger).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::watch;

use crate::config::{BrokerConfig, BrokerRole};

/// Whether the broker takes writes, copies them from somebody, or does not know yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// Takes sends; the others of its group copy from it.
    Master = 0,
    /// Copies a master's log; refuses sends.
    Slave = 1,
    /// An election has not ended: serves neither sends nor pulls of its own accord, and is not registered.
    Undecided = 2,
}

impl Role {
    /// As metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Slave => "slave",
            Self::Undecided => "undecided",
        }
    }
}

/// Where a slave's master is; each part is unknown until a name server or an election told it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MasterAddress {
    /// `ip:port` of its main port, for the tables that a slave copies.
    pub address: Option<String>,
    /// `ip:port` of its replication port.
    pub ha_address: Option<String>,
}

/// One role, as everything in the broker sees it until the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleNow {
    /// Master, slave, or undecided.
    pub role: Role,
    /// The id to register with: 0 for a master, 1 and up for a slave; -1 while undecided, when nothing is registered.
    pub broker_id: i64,
    /// Whether a master's acknowledgement promises a copy elsewhere (`SYNC_MASTER`).
    pub sync: bool,
    /// A slave's master.
    pub master: MasterAddress,
    /// Grows with each election; 0 where nobody elects.
    pub term: u64,
}

impl RoleNow {
    /// The role that a configuration gives.
    pub fn configured(config: &BrokerConfig) -> Self {
        if config.enable_dleger_commit_log {
            return Self {
                role: Role::Undecided,
                broker_id: -1,
                sync: true,
                master: MasterAddress::default(),
                term: 1,
            };
        }
        let role = match config.broker_role {
            BrokerRole::Slave => Role::Slave,
            BrokerRole::AsyncMaster | BrokerRole::SyncMaster => Role::Master,
        };
        Self {
            role,
            broker_id: match role {
                Role::Slave => config.broker_id,
                _ => 0,
            },
            sync: config.broker_role == BrokerRole::SyncMaster,
            master: MasterAddress::default(),
            term: 0,
        }
    }
}

/// The role of now, and word of every change.
#[derive(Debug)]
pub struct RoleHolder {
    now: watch::Sender<Arc<RoleNow>>,
    /// [`RoleNow::role`] again, for those who ask with every request.
    role: AtomicU8,
}

impl RoleHolder {
    /// Begins as this.
    pub fn new(first: RoleNow) -> Self {
        Self {
            role: AtomicU8::new(first.role as u8),
            now: watch::Sender::new(Arc::new(first)),
        }
    }

    /// What the broker is now.
    pub fn now(&self) -> Arc<RoleNow> {
        Arc::clone(&self.now.borrow())
    }

    /// The role alone, without a lock.
    pub fn role(&self) -> Role {
        match self.role.load(Ordering::Acquire) {
            0 => Role::Master,
            1 => Role::Slave,
            _ => Role::Undecided,
        }
    }

    /// The broker is something else from now on; who subscribed is told, unless nothing changed.
    pub fn set(&self, next: RoleNow) {
        self.update(|now| *now = next);
    }

    /// Changes a part of the role under the holder's lock.
    pub fn update(&self, change: impl FnOnce(&mut RoleNow)) {
        self.now.send_if_modified(|now| {
            let mut next = RoleNow::clone(now);
            change(&mut next);
            let changed = **now != next;
            if changed {
                self.role.store(next.role as u8, Ordering::Release);
                *now = Arc::new(next);
            }
            changed
        });
    }

    /// Told of every change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<RoleNow>> {
        self.now.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_change_is_told() {
        let slave = RoleNow {
            role: Role::Slave,
            broker_id: 1,
            sync: false,
            master: MasterAddress::default(),
            term: 0,
        };
        let holder = RoleHolder::new(slave.clone());
        let mut told = holder.subscribe();
        holder.set(slave);
        assert!(!told.has_changed().unwrap());
        holder.update(|now| now.master.ha_address = Some("10.0.0.1:10912".into()));
        assert!(told.has_changed().unwrap());
        assert_eq!(
            told.borrow_and_update().master.ha_address.as_deref(),
            Some("10.0.0.1:10912")
        );
        assert_eq!(holder.role(), Role::Slave);
        holder.update(|now| now.role = Role::Undecided);
        assert_eq!(holder.role(), Role::Undecided);
    }
}
