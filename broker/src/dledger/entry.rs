//! What an entry is, where entries are kept, and the small state that is synced before a message leaves.

use std::collections::BTreeMap;
use std::io;

/// Members of a group, learners included: bounds every table and message.
pub const MAX_MEMBERS: usize = 16;
/// Bytes of a member's address.
pub const MAX_ADDRESS: usize = 256;
/// Configurations kept by index, from the one that the log's beginning needs on. One a change; compaction drops them.
pub const MAX_CONFS: usize = 4096;

/// What a frame holds behind its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Records of messages.
    Records = 0,
    /// Nothing: the first entry of a leader's term.
    Empty = 1,
    /// One [`Change`] of the membership.
    Change = 2,
    /// [`Changes`](super::tables::Changes) of topics and groups.
    Tables = 3,
}

impl Kind {
    /// The kind of this number.
    pub fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Records),
            1 => Some(Self::Empty),
            2 => Some(Self::Change),
            3 => Some(Self::Tables),
            _ => None,
        }
    }
}

/// One entry: which, and where its frame lies. The same on every member, position included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Raft's index: 1 and up, without gaps.
    pub index: u64,
    /// The term of the leader that wrote it; never less than that of the entry before.
    pub term: u64,
    /// Where the frame (its header) begins in the CommitLog.
    pub position: u64,
    /// Length of the frame, header included.
    pub len: u32,
    /// What it holds.
    pub kind: Kind,
}

impl Descriptor {
    /// Where the frame ends. The next one begins here, or at the begin of the next segment.
    pub fn end(&self) -> u64 {
        self.position + u64::from(self.len)
    }
}

/// What lies before a log's first entry: compacted away, or never there (all zero).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// The last index that is not in the log any more.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Where the first entry's frame begins, or will: the begin of a segment.
    pub position: u64,
}

/// The CommitLog as a log of entries. All of it is called from the group's one thread; only the send path appends
/// beside it, and only while the [`gate`](super::gate::Gate) is open.
///
/// Order, always: `base().index <= persisted() <= last_index()`.
///
/// An error is final: a member whose log failed stops, and says so.
pub trait EntryLog {
    /// What lies before the first entry. Moves forward as old segments are deleted; that may only be done to segments
    /// behind which an entry is applied ([`compactable`](super::core::Member::compactable)).
    fn base(&self) -> Base;

    /// Index of the last entry that was appended or adopted; `base().index` of an empty log.
    fn last_index(&self) -> u64;

    /// Term of an entry in `base().index ..= last_index()`. Asked often: answer from memory (terms come in long runs).
    fn term(&self, index: u64) -> Option<u64>;

    /// The entry, when it is in the log.
    fn entry(&self, index: u64) -> Option<Descriptor>;

    /// Appends the entry's whole frame to `out`, from ring or file.
    fn read(&self, entry: &Descriptor, out: &mut Vec<u8>) -> io::Result<()>;

    /// What the entry's frame holds behind its header ([`Kind::Change`]).
    fn payload(&self, entry: &Descriptor) -> io::Result<Vec<u8>>;

    /// Whether `frame`, bytes from the network, is the one that `entry` tells of: length, index, term, position, kind
    /// and checksums. Asked before the entry is accepted.
    fn verify(&self, entry: &Descriptor, frame: &[u8]) -> bool;

    /// Whether frames of so many bytes find room now. Asked before the message that brings them is looked at: while the
    /// disk is full, or too far behind, it is as good as lost, and the leader sends it again. May wait for a moment.
    fn has_room(&mut self, bytes: u64) -> bool;

    /// A follower's append: `entry.index` is `last_index() + 1`; where `entry.position` is the begin of the next
    /// segment, the rest of this one is filled up as upstream fills it. There was room for it.
    fn append(&mut self, entry: &Descriptor, frame: &[u8]) -> io::Result<()>;

    /// A leader's append of an entry of Raft's own at the end, wherever that is. The gate is closed.
    fn append_own(
        &mut self,
        index: u64,
        term: u64,
        kind: Kind,
        payload: &[u8],
    ) -> io::Result<Descriptor>;

    /// The frame lies in the CommitLog already (the send path appended it): it is the entry after the last from now on.
    fn adopt(&mut self, entry: &Descriptor) -> io::Result<()>;

    /// Drops the entry at `index` and all behind it. **Durable when it returns**: what was cut must not come back after
    /// a power cut (bytes of the old entries mixed with new ones would pass for a log).
    fn truncate_from(&mut self, index: u64) -> io::Result<()>;

    /// Drops everything and begins anew behind `base`. Durable when it returns.
    fn reset(&mut self, base: Base) -> io::Result<()>;

    /// Up to which index the log survives what `flushDiskType` promises to survive: flushed under SYNC_FLUSH, written
    /// under ASYNC_FLUSH. Never more than was appended or adopted.
    fn persisted(&self) -> u64;
}

/// Where the [`HardState`] is kept.
pub trait StateFile {
    /// Replaces the state. Durable when it returns, under ASYNC_FLUSH too.
    fn save(&mut self, state: &HardState) -> io::Result<()>;
}

/// Whether a member's word counts.
///
/// A member that may have lost what it once acknowledged neither votes nor counts toward commit until it has caught up
/// to a commit index that was read after its restart, or stood behind a leader for whom **all** voters voted (nobody
/// has more than that one). Kept in the [`HardState`], or a second restart would forget it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Standing {
    /// Everything it ever acknowledged is there.
    Sound = 0,
    /// Term and vote are there, the tail of the log may not be: ASYNC_FLUSH, and the machine went down.
    Behind = 1,
    /// Nothing is known of what it once said: an empty volume. Its word does not count for reads either.
    Blank = 2,
}

/// Who belongs to the group, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conf {
    /// Those whose votes count. Ascending.
    pub voters: Vec<u64>,
    /// Those that only copy. Ascending.
    pub learners: Vec<u64>,
    /// `host:port` of each, as far as it was told with the change that added it.
    pub addresses: BTreeMap<u64, String>,
}

/// One step of a membership change; each is an entry of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new member that only copies at first.
    AddLearner {
        /// Its id.
        id: u64,
        /// `host:port` of its peer port.
        address: String,
    },
    /// The learner votes from now on.
    Promote {
        /// Its id.
        id: u64,
    },
    /// It belongs to the group no more.
    Remove {
        /// Its id.
        id: u64,
    },
}

impl Change {
    /// Whom it is about.
    pub fn id(&self) -> u64 {
        match self {
            Self::AddLearner { id, .. } | Self::Promote { id } | Self::Remove { id } => *id,
        }
    }

    /// `op(1) id(8) length(2) address`, big-endian.
    pub fn encode(&self) -> Vec<u8> {
        let (op, id, address) = match self {
            Self::AddLearner { id, address } => (1, id, address.as_str()),
            Self::Promote { id } => (2, id, ""),
            Self::Remove { id } => (3, id, ""),
        };
        let mut out = vec![op];
        out.extend_from_slice(&id.to_be_bytes());
        put_text(&mut out, address);
        out
    }

    /// `None` for anything that [`Change::encode`] does not write.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader(bytes);
        let (op, id, address) = (r.u8()?, r.u64()?, r.text()?);
        if !r.0.is_empty() || id == 0 {
            return None;
        }
        match op {
            1 => Some(Self::AddLearner { id, address }),
            2 if address.is_empty() => Some(Self::Promote { id }),
            3 if address.is_empty() => Some(Self::Remove { id }),
            _ => None,
        }
    }
}

impl Conf {
    /// These voters, no learners.
    pub fn of_voters(voters: impl IntoIterator<Item = (u64, String)>) -> Self {
        let addresses: BTreeMap<u64, String> = voters.into_iter().collect();
        Self {
            voters: addresses.keys().copied().collect(),
            learners: Vec::new(),
            addresses,
        }
    }

    /// Whether it votes or copies.
    pub fn contains(&self, id: u64) -> bool {
        self.voters.contains(&id) || self.learners.contains(&id)
    }

    /// With the change applied.
    pub fn after(&self, change: &Change) -> Self {
        let mut next = self.clone();
        let id = change.id();
        next.voters.retain(|&v| v != id);
        next.learners.retain(|&l| l != id);
        match change {
            Change::AddLearner { address, .. } => {
                next.learners.push(id);
                next.addresses.insert(id, address.clone());
            }
            Change::Promote { .. } => next.voters.push(id),
            Change::Remove { .. } => {
                next.addresses.remove(&id);
            }
        }
        next.voters.sort_unstable();
        next.learners.sort_unstable();
        next
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        for ids in [&self.voters, &self.learners] {
            out.push(ids.len() as u8);
            for id in ids {
                out.extend_from_slice(&id.to_be_bytes());
            }
        }
        out.push(self.addresses.len() as u8);
        for (id, address) in &self.addresses {
            out.extend_from_slice(&id.to_be_bytes());
            put_text(out, address);
        }
    }

    pub(super) fn take(r: &mut Reader<'_>) -> Option<Self> {
        let mut conf = Self::default();
        for ids in [&mut conf.voters, &mut conf.learners] {
            for _ in 0..r.count()? {
                let id = r.u64()?;
                if id == 0 || ids.last().is_some_and(|&last| last >= id) {
                    return None;
                }
                ids.push(id);
            }
        }
        if conf.learners.iter().any(|l| conf.voters.contains(l)) {
            return None;
        }
        for _ in 0..r.count()? {
            let id = r.u64()?;
            conf.addresses.insert(id, r.text()?);
        }
        Some(conf)
    }
}

/// What a member must not forget, beside its log. Saved before any message that rests on it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HardState {
    /// The newest term it knows of.
    pub term: u64,
    /// For whom it voted in that term; 0 for nobody.
    pub vote: u64,
    /// An index that is committed and applied: `confs` holds every change up to it.
    pub commit: u64,
    /// Whether its word counts.
    pub standing: Standing,
    /// Grows with each start: what an earlier life of the process said can be told from what this one says.
    pub session: u64,
    /// The configuration from an index on, ascending; the first one is in force at the log's base.
    pub confs: Vec<(u64, Conf)>,
}

const STATE_MAGIC: u32 = 0x5243_4453;
const STATE_VERSION: u8 = 1;

impl HardState {
    /// The configuration in force at `index`.
    pub fn conf_at(&self, index: u64) -> Option<&Conf> {
        let after = self.confs.partition_point(|(from, _)| *from <= index);
        Some(&self.confs[after.checked_sub(1)?].1)
    }

    /// The newest configuration, and the index from which on it holds.
    pub fn conf(&self) -> Option<&(u64, Conf)> {
        self.confs.last()
    }

    /// `magic(4) version(1) standing(1) term(8) vote(8) commit(8) session(8) count(4) (from(8) conf)* crc32(4)`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(&STATE_MAGIC.to_be_bytes());
        out.extend_from_slice(&[STATE_VERSION, self.standing as u8]);
        for n in [self.term, self.vote, self.commit, self.session] {
            out.extend_from_slice(&n.to_be_bytes());
        }
        out.extend_from_slice(&(self.confs.len() as u32).to_be_bytes());
        for (from, conf) in &self.confs {
            out.extend_from_slice(&from.to_be_bytes());
            conf.put(&mut out);
        }
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_be_bytes());
        out
    }

    /// `None` for anything that [`HardState::encode`] does not write: a damaged file is not a state.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        if crc32fast::hash(body).to_be_bytes() != crc {
            return None;
        }
        let mut r = Reader(body);
        if r.u32()? != STATE_MAGIC || r.u8()? != STATE_VERSION {
            return None;
        }
        let standing = match r.u8()? {
            0 => Standing::Sound,
            1 => Standing::Behind,
            2 => Standing::Blank,
            _ => return None,
        };
        let (term, vote, commit, session) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
        let count = r.u32()? as usize;
        if count == 0 || count > MAX_CONFS {
            return None;
        }
        let mut confs: Vec<(u64, Conf)> = Vec::new();
        for _ in 0..count {
            let from = r.u64()?;
            if confs.last().is_some_and(|(last, _)| *last >= from) {
                return None;
            }
            confs.push((from, Conf::take(&mut r)?));
        }
        r.0.is_empty().then_some(Self {
            term,
            vote,
            commit,
            standing,
            session,
            confs,
        })
    }
}

/// Reads big-endian fields off the front; `None` once there are not enough bytes.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.bytes(1).map(|b| b[0])
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_be_bytes)
    }

    fn count(&mut self) -> Option<usize> {
        self.u8().map(usize::from).filter(|&n| n <= MAX_MEMBERS)
    }

    fn text(&mut self) -> Option<String> {
        let len = u16::from_be_bytes(self.bytes(2)?.try_into().ok()?) as usize;
        if len > MAX_ADDRESS {
            return None;
        }
        String::from_utf8(self.bytes(len)?.to_vec()).ok()
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    debug_assert!(text.len() <= MAX_ADDRESS);
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> HardState {
        let conf = Conf::of_voters([(1, "a:1".into()), (2, "b:2".into()), (3, "c:3".into())]);
        let next = conf.after(&Change::AddLearner {
            id: 4,
            address: "d:4".into(),
        });
        HardState {
            term: 7,
            vote: 2,
            commit: 99,
            standing: Standing::Behind,
            session: 12,
            confs: vec![(0, conf), (40, next)],
        }
    }

    #[test]
    fn the_state_survives_its_file_and_damage_to_any_byte_is_seen() {
        let bytes = state().encode();
        assert_eq!(HardState::decode(&bytes), Some(state()));
        for i in 0..bytes.len() {
            assert_eq!(HardState::decode(&bytes[..i]), None);
            let mut bad = bytes.clone();
            bad[i] ^= 1;
            assert_eq!(HardState::decode(&bad), None, "byte {i}");
        }
    }

    #[test]
    fn the_configuration_of_an_index_is_the_last_one_before_it() {
        let state = state();
        assert!(!state.conf_at(39).unwrap().contains(4));
        assert!(state.conf_at(40).unwrap().contains(4));
        let promoted = state.conf().unwrap().1.after(&Change::Promote { id: 4 });
        assert_eq!((promoted.voters.len(), promoted.learners.len()), (4, 0));
        let removed = promoted.after(&Change::Remove { id: 1 });
        assert_eq!(removed.voters, [2, 3, 4]);
        assert!(!removed.addresses.contains_key(&1));
    }

    #[test]
    fn changes_survive_their_entry_and_nothing_else_is_one() {
        for change in [
            Change::AddLearner {
                id: 4,
                address: "d:4".into(),
            },
            Change::Promote { id: 4 },
            Change::Remove { id: 1 },
        ] {
            let bytes = change.encode();
            assert_eq!(Change::decode(&bytes), Some(change));
            assert_eq!(Change::decode(&bytes[..bytes.len() - 1]), None);
            assert_eq!(Change::decode(&[&bytes[..], &[0]].concat()), None);
        }
        assert_eq!(Change::decode(&[9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]), None);
    }
}
