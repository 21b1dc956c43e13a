//! What the other members told of themselves when they called, and whether it fits.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::entry::MAX_MEMBERS;
use super::service::name_of;
use super::transport::Identity;

/// Whoever reaches the port may call with any id.
const MAX_TOLD: usize = 4 * MAX_MEMBERS;

/// This member, and the others as they told.
pub(super) struct Peers {
    own: Identity,
    told: Mutex<BTreeMap<u64, Identity>>,
}

impl Peers {
    pub(super) fn new(own: Identity) -> Self {
        Self {
            own,
            told: Mutex::default(),
        }
    }

    /// A member called; the error says why it is not listened to.
    pub(super) fn greeted(&self, caller: &Identity) -> Result<(), String> {
        let before = {
            let mut told = self.told.lock();
            let before = told.insert(caller.id, caller.clone());
            // The ids of members are small.
            while told.len() > MAX_TOLD {
                told.pop_last();
            }
            before
        };
        if let Some(why) = self.disagrees(caller) {
            return Err(why);
        }
        let differs = caller.sync_flush != self.own.sync_flush;
        if differs && before.is_none_or(|b| b.sync_flush != caller.sync_flush) {
            tracing::warn!(
                "{} says flushDiskType={} and this member {}: what the group acknowledges may be on no disk yet, as under \
                 ASYNC_FLUSH",
                name_of(caller.id),
                flush_mode(caller),
                flush_mode(&self.own),
            );
        }
        Ok(())
    }

    fn disagrees(&self, other: &Identity) -> Option<String> {
        (other.segment_size != self.own.segment_size).then(|| {
            format!(
                "{} has mappedFileSizeCommitLog={} and this member {}: their logs cannot be the same",
                name_of(other.id),
                other.segment_size,
                self.own.segment_size
            )
        })
    }

    /// Why somebody is not listened to.
    pub(super) fn disagreement(&self) -> Option<String> {
        let told = self.told.lock();
        told.values().find_map(|other| self.disagrees(other))
    }

    /// The main port of a member.
    pub(super) fn address(&self, id: u64) -> Option<String> {
        self.told.lock().get(&id).map(|told| told.address.clone())
    }

    /// `flushDiskType` of a member, as far as it told.
    pub(super) fn flush(&self, id: u64) -> Option<&'static str> {
        if id == self.own.id {
            return Some(flush_mode(&self.own));
        }
        self.told.lock().get(&id).map(flush_mode)
    }
}

fn flush_mode(member: &Identity) -> &'static str {
    match member.sync_flush {
        true => "SYNC_FLUSH",
        false => "ASYNC_FLUSH",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, segment_size: u64, sync_flush: bool) -> Identity {
        Identity {
            id,
            group: "group".into(),
            address: format!("10.0.0.{id}:10911"),
            segment_size,
            sync_flush,
        }
    }

    #[test]
    fn who_has_segments_of_another_size_is_not_listened_to_until_they_are_alike() {
        let peers = Peers::new(member(1, 1 << 20, true));
        assert_eq!(peers.greeted(&member(2, 1 << 20, true)), Ok(()));
        assert_eq!(peers.disagreement(), None);
        let why = peers.greeted(&member(3, 1 << 21, true)).unwrap_err();
        assert_eq!(
            why,
            "n2 has mappedFileSizeCommitLog=2097152 and this member 1048576: their logs cannot be the same"
        );
        assert_eq!(peers.disagreement(), Some(why));
        assert_eq!(peers.greeted(&member(3, 1 << 20, true)), Ok(()));
        assert_eq!(peers.disagreement(), None);
    }

    #[test]
    fn of_many_who_call_the_members_are_remembered() {
        let peers = Peers::new(member(1, 1 << 20, true));
        for id in (2..5).chain(1_000..2_000) {
            assert_eq!(peers.greeted(&member(id, 1 << 20, true)), Ok(()));
        }
        assert_eq!(peers.told.lock().len(), MAX_TOLD);
        assert!((2..5).all(|id| peers.address(id).is_some()));
    }

    #[test]
    fn who_syncs_otherwise_belongs_to_the_group_all_the_same() {
        let peers = Peers::new(member(1, 1 << 20, true));
        assert_eq!(peers.greeted(&member(2, 1 << 20, false)), Ok(()));
        assert_eq!(peers.flush(1), Some("SYNC_FLUSH"));
        assert_eq!(peers.flush(2), Some("ASYNC_FLUSH"));
        assert_eq!(peers.flush(3), None);
        assert_eq!(peers.address(2).as_deref(), Some("10.0.0.2:10911"));
    }
}
