//! What members say to each other, as bytes of our own: fixed fields, bounded lists, no decoder of the library's.
//!
//! The frames of the entries are not in here. They follow the message, one after the other, each as long as its
//! descriptor says: [`PeerMessage::frames_len`].

use super::entry::{Base, Conf, Descriptor, Kind, Reader};

/// Entries of one message. What fits into [`super::core::APPEND_BYTES`] is mostly far less.
pub const MAX_ENTRIES: usize = 16 * 1024;
/// Bytes of the words that are handed back as they came.
pub const MAX_CONTEXT: usize = 32;
/// Bytes of all frames of one message: one frame may be larger than [`super::core::APPEND_BYTES`], not larger than this.
pub const MAX_FRAMES: u64 = 64 * 1024 * 1024;
/// Bytes of an encoded message without its frames.
pub const MAX_ENCODED: usize = 1024 * 1024;

const VERSION: u8 = 1;
const ENTRY_BYTES: usize = 21;

/// What a message is; the library's own messages that never leave a member have no place here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Type {
    /// Entries, and how far is committed.
    Append = 1,
    /// Up to where the log agrees and is persisted, or where to try next.
    AppendResponse = 2,
    /// A candidate asks for a vote.
    Vote = 3,
    /// Its answer.
    VoteResponse = 4,
    /// A leader's log begins too late for a follower: begin there.
    Snapshot = 5,
    /// A leader is there.
    Heartbeat = 6,
    /// Heard.
    HeartbeatResponse = 7,
    /// Take over the leadership now.
    TimeoutNow = 8,
    /// A member whose word does not count tells so, and asks how far is committed.
    Rejoin = 9,
    /// How far was committed when it asked.
    RejoinResponse = 10,
    /// Would you vote for me?
    PreVote = 11,
    /// Its answer.
    PreVoteResponse = 12,
}

impl Type {
    fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Append,
            2 => Self::AppendResponse,
            3 => Self::Vote,
            4 => Self::VoteResponse,
            5 => Self::Snapshot,
            6 => Self::Heartbeat,
            7 => Self::HeartbeatResponse,
            8 => Self::TimeoutNow,
            9 => Self::Rejoin,
            10 => Self::RejoinResponse,
            11 => Self::PreVote,
            12 => Self::PreVoteResponse,
            _ => return None,
        })
    }
}

/// Where a follower begins anew: the log's base, and who belonged to the group there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What lies before the leader's first entry.
    pub base: Base,
    /// The configuration in force there.
    pub conf: Conf,
}

/// One message. Fields that a type does not use are zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerMessage {
    /// What it is.
    pub kind: Type,
    /// Who says it.
    pub from: u64,
    /// To whom.
    pub to: u64,
    /// In which of its lives the sender says it.
    pub session: u64,
    /// The recipient's life, as far as the sender knows; 0 when it never heard of it.
    pub to_session: u64,
    /// The sender's term, or the one it would campaign for.
    pub term: u64,
    /// Term of the entry at `index`.
    pub log_term: u64,
    /// The entry before `entries`; the last one that agrees; a candidate's last.
    pub index: u64,
    /// How far is committed.
    pub commit: u64,
    /// Term of that entry.
    pub commit_term: u64,
    /// Refused.
    pub reject: bool,
    /// After a refusal: try here.
    pub reject_hint: u64,
    /// The leader was elected by every voter.
    pub all_voted: bool,
    /// The sender's word does not count ([`super::entry::Standing`]).
    pub unsure: bool,
    /// Nor its word on terms: it began with an empty volume.
    pub blank: bool,
    /// The sender must not lead now ([`super::core::Unfit`]).
    pub unfit: bool,
    /// Handed back as it came; at most [`MAX_CONTEXT`] bytes.
    pub context: Vec<u8>,
    /// Only of [`Type::Snapshot`].
    pub snapshot: Option<Box<Snapshot>>,
    /// Consecutive, from `index + 1` on.
    pub entries: Vec<Descriptor>,
}

impl PeerMessage {
    /// A message with nothing in it.
    pub fn new(kind: Type, from: u64, to: u64) -> Self {
        Self {
            kind,
            from,
            to,
            session: 0,
            to_session: 0,
            term: 0,
            log_term: 0,
            index: 0,
            commit: 0,
            commit_term: 0,
            reject: false,
            reject_hint: 0,
            all_voted: false,
            unsure: false,
            blank: false,
            unfit: false,
            context: Vec::new(),
            snapshot: None,
            entries: Vec::new(),
        }
    }

    /// Bytes of the frames that follow the message.
    pub fn frames_len(&self) -> u64 {
        self.entries.iter().map(|e| u64::from(e.len)).sum()
    }

    /// `version type flags from to session to_session term log_term index commit commit_term reject_hint
    /// context(1 + n) [base(24) conf] count(4) (term(8) position(8) len(4) kind(1))*`, big-endian.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let flags = u8::from(self.reject)
            | u8::from(self.all_voted) << 1
            | u8::from(self.unsure) << 2
            | u8::from(self.blank) << 3
            | u8::from(self.snapshot.is_some()) << 4
            | u8::from(self.unfit) << 5;
        out.extend_from_slice(&[VERSION, self.kind as u8, flags]);
        for n in [
            self.from,
            self.to,
            self.session,
            self.to_session,
            self.term,
            self.log_term,
            self.index,
            self.commit,
            self.commit_term,
            self.reject_hint,
        ] {
            out.extend_from_slice(&n.to_be_bytes());
        }
        out.push(self.context.len() as u8);
        out.extend_from_slice(&self.context);
        if let Some(snapshot) = &self.snapshot {
            for n in [
                snapshot.base.index,
                snapshot.base.term,
                snapshot.base.position,
            ] {
                out.extend_from_slice(&n.to_be_bytes());
            }
            snapshot.conf.put(out);
        }
        out.extend_from_slice(&(self.entries.len() as u32).to_be_bytes());
        for e in &self.entries {
            out.extend_from_slice(&e.term.to_be_bytes());
            out.extend_from_slice(&e.position.to_be_bytes());
            out.extend_from_slice(&e.len.to_be_bytes());
            out.push(e.kind as u8);
        }
    }

    /// `None` for anything that no member says: unknown versions and types, lists beyond their bounds, entries whose
    /// terms or positions go back, bytes left over.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader(bytes);
        if r.u8()? != VERSION {
            return None;
        }
        let kind = Type::from_u8(r.u8()?)?;
        let flags = r.u8()?;
        if flags >= 1 << 6 {
            return None;
        }
        let mut m = Self::new(kind, r.u64()?, r.u64()?);
        m.session = r.u64()?;
        m.to_session = r.u64()?;
        m.term = r.u64()?;
        m.log_term = r.u64()?;
        m.index = r.u64()?;
        m.commit = r.u64()?;
        m.commit_term = r.u64()?;
        m.reject_hint = r.u64()?;
        m.reject = flags & 1 != 0;
        m.all_voted = flags & 2 != 0;
        m.unsure = flags & 4 != 0;
        m.blank = flags & 8 != 0;
        m.unfit = flags & 32 != 0;
        let context = r.u8()? as usize;
        if m.from == 0 || m.to == 0 || m.term == 0 || context > MAX_CONTEXT {
            return None;
        }
        m.context = r.bytes(context)?.to_vec();
        let has_snapshot = flags & 16 != 0;
        if has_snapshot != (kind == Type::Snapshot) {
            return None;
        }
        if has_snapshot {
            let base = Base {
                index: r.u64()?,
                term: r.u64()?,
                position: r.u64()?,
            };
            let conf = Conf::take(&mut r)?;
            m.snapshot = Some(Box::new(Snapshot { base, conf }));
        }
        let count = r.u32()? as usize;
        if count > MAX_ENTRIES || (count > 0 && kind != Type::Append) {
            return None;
        }
        if r.0.len() != count * ENTRY_BYTES {
            return None;
        }
        m.index.checked_add(count as u64 + 1)?;
        m.entries.reserve_exact(count);
        let (mut term, mut end, mut total) = (m.log_term, 0, 0_u64);
        for i in 0..count {
            let entry = Descriptor {
                index: m.index + 1 + i as u64,
                term: r.u64()?,
                position: r.u64()?,
                len: r.u32()?,
                kind: Kind::from_u8(r.u8()?)?,
            };
            total += u64::from(entry.len);
            if entry.term < term
                || entry.term > m.term
                || entry.len == 0
                || entry.position < end
                || entry.position.checked_add(u64::from(entry.len)).is_none()
                || total > MAX_FRAMES
            {
                return None;
            }
            (term, end) = (entry.term, entry.end());
            m.entries.push(entry);
        }
        Some(m)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> PeerMessage {
        let mut m = PeerMessage::new(Type::Append, 1, 2);
        (m.session, m.term, m.log_term, m.index, m.commit) = (5, 9, 3, 100, 90);
        (m.all_voted, m.unfit) = (true, true);
        m.context = b"abc".to_vec();
        m.entries = (0..3)
            .map(|i| Descriptor {
                index: 101 + i,
                term: 3 + i,
                position: 1000 * i,
                len: 100,
                kind: Kind::Records,
            })
            .collect();
        m
    }

    fn encoded(m: &PeerMessage) -> Vec<u8> {
        let mut out = Vec::new();
        m.encode(&mut out);
        out
    }

    #[test]
    fn messages_survive_the_wire() {
        assert_eq!(PeerMessage::decode(&encoded(&message())), Some(message()));
        let mut m = PeerMessage::new(Type::Snapshot, 1, 2);
        m.term = 4;
        m.snapshot = Some(Box::new(Snapshot {
            base: Base {
                index: 9,
                term: 3,
                position: 4096,
            },
            conf: Conf::of_voters([(1, "a:1".into()), (2, "b:2".into())]),
        }));
        assert_eq!(PeerMessage::decode(&encoded(&m)), Some(m));
    }

    #[test]
    fn terms_and_positions_that_go_back_are_no_message() {
        let mut m = message();
        m.entries[1].term = 2;
        assert_eq!(PeerMessage::decode(&encoded(&m)), None);
        let mut m = message();
        m.entries[2].position = 1050;
        assert_eq!(PeerMessage::decode(&encoded(&m)), None);
        let mut m = message();
        m.entries[2].term = 10;
        assert_eq!(PeerMessage::decode(&encoded(&m)), None);
        let mut m = message();
        m.index = u64::MAX - 1;
        assert_eq!(PeerMessage::decode(&encoded(&m)), None);
    }

    proptest! {
        #[test]
        fn bytes_of_the_network_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
            at in 0_usize..200,
            with in any::<u8>(),
        ) {
            let _ = PeerMessage::decode(&bytes);
            let good = encoded(&message());
            bytes.splice(..0, good.iter().copied());
            let _ = PeerMessage::decode(&bytes);
            bytes.truncate(good.len());
            let at = at % bytes.len();
            bytes[at] = with;
            if let Some(m) = PeerMessage::decode(&bytes) {
                prop_assert_eq!(encoded(&m), bytes);
            }
        }
    }
}
