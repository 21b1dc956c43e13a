//! What begins a connection between two members: who calls, what for, and what of its settings must fit.
//!
//! `RCDL`, a version, the length of the rest (2), then facts: `what (1) length (1) value`. A fact that is not known here is
//! passed over, so that later members can tell more; who tells less than is asked for here is no member.

use super::message::Type;

const MAGIC: &[u8; 4] = b"RCDL";
const VERSION: u8 = 2;
/// Magic, version and length.
pub(super) const HEAD: usize = 7;
/// Bytes of the facts: far more than there are.
pub(super) const MAX_FACTS: usize = 4096;

const ID: u8 = 1;
const GROUP: u8 = 2;
const ADDRESS: u8 = 3;
const SEGMENT_SIZE: u8 = 4;
const SYNC_FLUSH: u8 = 5;
const LANE: u8 = 6;

/// Who a member is, and what it tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its id.
    pub id: u64,
    /// `dLegerGroup`.
    pub group: String,
    /// `ip:port` of its main port.
    pub address: String,
    /// `mappedFileSizeCommitLog`. Where a frame lies follows from it, so it is the same on all members.
    pub segment_size: u64,
    /// Whether an acknowledgement of this member's means that its disk has it.
    pub sync_flush: bool,
}

/// What a connection is for: entries may be on their way for long, and nothing small waits behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// All that has no frames: heartbeats, votes, answers.
    Words,
    /// Entries, and what is only understood in their order.
    Entries,
}

impl Lane {
    pub(super) const ALL: [Self; 2] = [Self::Words, Self::Entries];

    pub(super) fn of(kind: Type) -> Self {
        match kind {
            Type::Append | Type::Snapshot => Self::Entries,
            _ => Self::Words,
        }
    }
}

/// The first bytes of a connection.
pub(super) fn encode(identity: &Identity, lane: Lane) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    out.extend_from_slice(&[0; 2]);
    let mut fact = |what: u8, value: &[u8]| {
        let value = &value[..value.len().min(usize::from(u8::MAX))];
        out.extend_from_slice(&[what, value.len() as u8]);
        out.extend_from_slice(value);
    };
    fact(ID, &identity.id.to_be_bytes());
    fact(GROUP, identity.group.as_bytes());
    fact(ADDRESS, identity.address.as_bytes());
    fact(SEGMENT_SIZE, &identity.segment_size.to_be_bytes());
    fact(SYNC_FLUSH, &[identity.sync_flush.into()]);
    fact(LANE, &[lane as u8]);
    let length = (out.len() - HEAD) as u16;
    out[HEAD - 2..HEAD].copy_from_slice(&length.to_be_bytes());
    out
}

/// How many bytes of facts follow this head; an error says what it is instead.
pub(super) fn length(head: [u8; HEAD]) -> Result<usize, &'static str> {
    let length = usize::from(u16::from_be_bytes([head[5], head[6]]));
    match head {
        _ if !head.starts_with(MAGIC) => Err("it does not begin as a member's does"),
        [.., version, _, _] if version != VERSION => {
            Err("it speaks another version of the members' protocol")
        }
        _ if length > MAX_FACTS => Err("its greeting is too long"),
        _ => Ok(length),
    }
}

/// Who calls, and what for. `None` when a fact is missing or is none.
pub(super) fn decode(mut facts: &[u8]) -> Option<(Identity, Lane)> {
    let (mut id, mut group, mut address, mut segment_size, mut sync_flush, mut lane) =
        (None, None, None, None, None, None);
    let number = |value: &[u8]| Some(u64::from_be_bytes(value.try_into().ok()?));
    let word = |value: &[u8]| String::from_utf8(value.to_vec()).ok();
    while let [what, length, rest @ ..] = facts {
        let (value, behind) = rest.split_at_checked(usize::from(*length))?;
        facts = behind;
        match *what {
            ID => id = number(value),
            GROUP => group = word(value),
            ADDRESS => address = word(value),
            SEGMENT_SIZE => segment_size = number(value),
            SYNC_FLUSH => sync_flush = Some(value == [1]),
            LANE => lane = Lane::ALL.into_iter().find(|lane| value == [*lane as u8]),
            _ => {}
        }
    }
    let identity = Identity {
        id: id.filter(|id| *id != 0)?,
        group: group?,
        address: address?,
        segment_size: segment_size?,
        sync_flush: sync_flush?,
    };
    facts.is_empty().then_some((identity, lane?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity() -> Identity {
        Identity {
            id: 3,
            group: "group".into(),
            address: "10.0.0.3:10911".into(),
            segment_size: 1 << 30,
            sync_flush: true,
        }
    }

    fn read(bytes: &[u8]) -> Option<(Identity, Lane)> {
        let (head, facts) = bytes.split_at_checked(HEAD)?;
        let length = length(head.try_into().ok()?).ok()?;
        decode(facts.get(..length)?)
    }

    #[test]
    fn greetings_survive_the_wire() {
        for lane in Lane::ALL {
            let mut bytes = encode(&identity(), lane);
            assert_eq!(read(&bytes), Some((identity(), lane)));
            bytes.push(0);
            assert_eq!(read(&bytes), Some((identity(), lane)), "what follows");
        }
    }

    #[test]
    fn a_fact_that_nobody_knows_yet_is_passed_over_and_a_missing_one_is_not() {
        let bytes = encode(&identity(), Lane::Words);
        let facts = &bytes[HEAD..];
        let more = [facts, &[200, 3, 1, 2, 3]].concat();
        assert_eq!(decode(&more), Some((identity(), Lane::Words)));
        let lane = facts.len() - 3;
        assert_eq!(decode(&facts[..lane]), None);
        assert_eq!(decode(&facts[10..]), None, "no id");
    }

    #[test]
    fn what_is_no_member_is_told_by_its_first_bytes() {
        let head = |bytes: &[u8]| length(bytes[..HEAD].try_into().unwrap());
        assert!(head(b"GET / HTTP/1.1").is_err());
        let mut bytes = encode(&identity(), Lane::Words);
        assert!(head(&bytes).is_ok());
        bytes[5] = 0xff;
        assert!(head(&bytes).is_err(), "too long");
        bytes[5] = 0;
        bytes[4] += 1;
        assert!(head(&bytes).is_err(), "another version");
    }

    proptest! {
        #[test]
        fn bytes_of_the_network_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            at in 0_usize..100,
            with in any::<u8>(),
        ) {
            let _ = read(&bytes);
            let _ = decode(&bytes);
            let mut good = encode(&identity(), Lane::Entries);
            let at = at % good.len();
            good[at] = with;
            let _ = read(&good);
            let _ = decode(&good[HEAD..at.max(HEAD)]);
        }
    }
}
