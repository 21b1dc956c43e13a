//! One member's decisions.

use super::entry::{Conf, Standing};
use super::message::PeerMessage;

/// Milliseconds between two ticks.
pub const TICK_MS: u64 = 20;
/// Ticks between two heartbeats: 100 ms.
pub const HEARTBEAT_TICKS: usize = 5;
/// Ticks without a word of the leader before a member may stand for election: 500 ms; drawn anew, up to twice this, each
/// time it does.
pub const ELECTION_TICKS: usize = 25;
/// Bytes of frames in one message, one frame at least.
pub const APPEND_BYTES: u64 = 1024 * 1024;
/// Messages with entries on their way to one follower.
pub const MAX_INFLIGHT: usize = 128;

/// What a member is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its id: K + 1 for `nK`. Never 0.
    pub id: u64,
    /// The group as configured (`dLegerPeers`); counts only until the group has one of its own.
    pub conf: Conf,
    /// Who leads when it can (`preferredLeaderId`).
    pub preferred: Option<u64>,
    /// What the log acknowledged may be gone: ASYNC_FLUSH, `abort` was there, and the machine was started since.
    pub unclean: bool,
    /// Wall clock at the start: tells one life of a member from another.
    pub now_ms: u64,
    /// For the lengths of election time-outs.
    pub seed: u64,
}

/// What a member is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nobody leads, as far as it knows.
    Seeking,
    /// Copies the leader's log.
    Following,
    /// Was elected, and does not take frames yet: what earlier leaders left is not committed.
    Elected,
    /// Leads; the gate is open, or paused for a moment.
    Leading,
    /// Was removed from the group.
    Removed,
}

/// What a member is now, and who leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleNow {
    /// What it is.
    pub role: Role,
    /// In which term.
    pub term: u64,
    /// Who leads, when that is known.
    pub leader: Option<u64>,
}

/// How far the group's log can not change any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Watermark {
    /// The last committed index that this member has.
    pub index: u64,
    /// Where its frame ends: what the store may show.
    pub position: u64,
}

/// What is to be done after a call. Only what changed is there.
#[derive(Debug, Default)]
pub struct Output {
    /// To be sent, each to its `to`, with the frames of its entries behind it. May be lost, doubled or late.
    pub messages: Vec<PeerMessage>,
    /// It moved forward.
    pub commit: Option<Watermark>,
    /// Something about it changed. Whoever waits for an answer in an earlier term learns that it is unknown.
    pub role: Option<RoleNow>,
    /// Frames from this position on were dropped from the log; whoever waits for them learns that they are gone or in doubt.
    pub cut: Option<u64>,
    /// The group changed: connect, disconnect.
    pub conf: Option<Conf>,
}

/// A member as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Which.
    pub id: u64,
    /// Whether it votes.
    pub voter: bool,
    /// Up to where its log is known to agree and to be persisted.
    pub matched: u64,
    /// Whether it was heard of within an election time-out.
    pub active: bool,
    /// Whether its word counts.
    pub sure: bool,
}

/// For people, metrics and the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This member.
    pub id: u64,
    /// What it is.
    pub role: RoleNow,
    /// Whether its word counts.
    pub standing: Standing,
    /// First index in the log.
    pub first: u64,
    /// Last index in the log.
    pub last: u64,
    /// Last persisted index.
    pub persisted: u64,
    /// Last committed index.
    pub committed: u64,
    /// Last index whose change of the membership, if it is one, took effect.
    pub applied: u64,
    /// The group.
    pub conf: Conf,
    /// The others, when this member leads.
    pub members: Vec<MemberStatus>,
}
