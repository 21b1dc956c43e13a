//! One member's decisions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType, Message, MessageType};
use raft::{RawNode, SnapshotStatus, StateRole};

use super::entry::{
    Change, Conf, Descriptor, EntryLog, HardState, Kind, MAX_ADDRESS, MAX_MEMBERS, Standing,
    StateFile,
};
use super::gate::{Closed, Gate};
use super::message::{MAX_ENTRIES, PeerMessage, Snapshot, Type};
use super::storage::{Storage, to_conf_state, to_entry};

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
    /// Who leads when it can (`preferredLeaderId`): the leadership is handed to it. Not by the library's priorities: a
    /// preferred member refuses a better log that is shorter, and where it cannot be elected itself nobody is.
    pub preferred: Option<u64>,
    /// What the log acknowledged may be gone ([`Saved::may_have_lost`](super::log::Saved::may_have_lost)).
    pub unclean: bool,
    /// The index at which the tables of topics and groups stand: changes behind it are told again.
    pub tables: u64,
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
    /// Does not belong to the group, as far as its log tells: it was removed, or what adds it is still to come.
    Removed,
}

/// Why a member must not lead now, whatever its log holds. The others learn it with whatever it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// For good: what comes next is its stop.
    #[error("it is about to stop")]
    Retired,
    /// Of late its log took nothing: mostly because the disk is full.
    #[error("its log has no room")]
    NoRoom,
    /// Something waits to be persisted, and nothing was for [`STALL_TICKS`].
    #[error("its disk does not answer")]
    Stalled,
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
    /// Entries of the kind [`Kind::Tables`] that are committed, in order: their changes are to be applied before anything
    /// behind them is shown. No index is told twice.
    pub tables: Vec<u64>,
    /// The log begins anew behind this index, and tables with it: what is known of them came from entries that are gone.
    pub anew: Option<u64>,
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
    /// Whether it may lead ([`Unfit`]).
    pub fit: bool,
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
    /// Why it must not lead, if it must not.
    pub unfit: Option<Unfit>,
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

/// Ticks without any progress after which a disk counts as one that does not answer: 3 s. A disk that is only slow returns
/// sooner from what one round of writes gives it.
pub const STALL_TICKS: u64 = 150;
/// Ticks for which a log must have had room before its member counts as one that may lead again: 2 s.
const ROOM_TICKS: u64 = 100;
/// Ticks that a member without room waits beyond its election time-out, so that one with room is elected if there is one:
/// 2 s. Where all are only too full to take sends one of them leads all the same, so that what is there can be read. One
/// that could not write what it has does not stand: only a log that is persisted does.
const NO_ROOM_PATIENCE_TICKS: usize = 100;
/// Ticks after which a leader that must not lead, and found nobody to take over, just steps down: 2 s.
const LEAVE_TICKS: u64 = 100;
/// Ticks within which a hand-over must be done: an election time-out.
const TRANSFER_TICKS: u64 = ELECTION_TICKS as u64;
/// Ticks until the leadership is offered to the preferred member: for the first time, after it was not ready for it,
/// and after it did not take it: 1 s, 140 ms, 10 s.
const FIRST_OFFER_TICKS: u64 = 50;
const OFFER_TICKS: u64 = 7;
const PREFER_TICKS: u64 = 500;
/// Ticks after which a leader among members whose words do not count gives all of them a vote: 1 s.
const UNSURE_TICKS: u64 = 2 * ELECTION_TICKS as u64;
/// Ticks within which those who lost their leader's connection stand for election: no two at once, mostly.
const LOST_TICKS: u64 = 5;
/// The leadership is only offered to, and only who is this close is promoted: entries.
const CLOSE_ENTRIES: u64 = 4096;
/// The state is saved anew after so many committed entries: what a restart reads again.
const SAVE_ENTRIES: u64 = 65_536;
/// Weight of entries that the library lets wait for their commit. A frame weighs a small part of its length, so the gate's
/// limit is met long before.
const MAX_UNCOMMITTED_WEIGHT: u64 = 64 * 1024 * 1024;
/// Weight of the entries of one message and of one round of applying.
const MAX_MESSAGE_WEIGHT: u64 = 64 * 1024;
const MAX_COMMITTED_WEIGHT: u64 = 4 * 1024 * 1024;

/// Why a member cannot go on, or begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Log or state file failed.
    #[error("the log of the group failed")]
    Io(#[from] io::Error),
    /// The state is gone or does not fit the log.
    #[error("{0}")]
    State(&'static str),
    /// The library refused what it must not refuse.
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
}

/// Why something was not done; the member goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another member leads, or nobody.
    #[error("this member does not lead the group")]
    NotLeader,
    /// One thing at a time.
    #[error("another change of the group is on its way")]
    Busy,
    /// Not such a member, or one already.
    #[error("member {0} is not one for this")]
    Member(u64),
    /// It would fall out of the quorum, or hold up the group.
    #[error("member {id} is {lag} entries behind")]
    Lagging {
        /// Which.
        id: u64,
        /// How far.
        lag: u64,
    },
    /// It must not lead now ([`Unfit`]).
    #[error("member {0} cannot lead now: its disk takes nothing, or it is about to stop")]
    Unfit(u64),
    /// Too few of the others are heard of.
    #[error("{active} of {voters} voters would be left to be heard of")]
    Quorum {
        /// Heard of.
        active: usize,
        /// Voters after the change.
        voters: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transfer {
    /// The gate is closed; what was appended is still to be committed.
    Draining { to: u64, until: u64 },
    /// The other was asked to take over.
    Asked { until: u64 },
}

/// The votes of one election of this member's.
#[derive(Debug, Default)]
struct Ballot {
    term: u64,
    kind: Option<Type>,
    granted: BTreeSet<u64>,
    withheld: Vec<Message>,
}

/// One member of the group: the library's state machine, and the rules that it does not know.
///
/// Called by one thread. After each call [`Member::take_output`] tells what is to be done; the log and the state file
/// were written already.
pub struct Member<L: EntryLog, F> {
    id: u64,
    raw: RawNode<Storage<L>>,
    file: F,
    gate: Arc<Gate>,
    out: Output,
    preferred: Option<u64>,
    /// Ticks since the start.
    ticks: u64,
    /// The state as it is on disk, as far as it decides whether it must be saved.
    saved_commit: u64,
    /// Readies whose entries are not persisted: number, last index.
    unpersisted: VecDeque<(u64, u64)>,
    /// Acknowledgements that wait for their entries to be persisted.
    held: VecDeque<PeerMessage>,
    /// Frames taken from the gate, and those proposed but not yet adopted.
    taken: Vec<Descriptor>,
    proposed: VecDeque<Descriptor>,
    /// The change that is being proposed: its payload is written when the library gives it an index.
    changing: Option<Change>,
    /// Term of this member's leadership, and the index of its first entry.
    leading: Option<(u64, u64)>,
    /// Whether the gate is open or paused, in this leadership.
    opened: bool,
    transfer: Option<Transfer>,
    offer_at: u64,
    told_role: RoleNow,
    told_commit: Watermark,
    ballot: Ballot,
    /// The term in which every voter voted for the leader.
    all_voted: Option<u64>,
    /// The term in which this member granted its vote, in this life, and whom.
    granted: Option<(u64, u64)>,
    /// Whether a member with an empty volume was told where to begin.
    placed: bool,
    /// A commit index that was read after this member's start, and the term in which; of an empty volume: an entry
    /// that was written after its start.
    read: Option<(u64, u64)>,
    asked_at: u64,
    /// When each other member was heard of for the last time, in ticks.
    heard: BTreeMap<u64, u64>,
    /// When enough words counted for the last time, in ticks.
    sure_at: u64,
    /// The newest life of each other member.
    sessions: BTreeMap<u64, u64>,
    /// Lives of followers whose progress was forgotten already.
    rejoined: BTreeMap<u64, u64>,
    /// For members with an empty volume: of which life, and an entry that is younger.
    barriers: BTreeMap<u64, (u64, u64)>,
    /// Followers that told that their word does not count.
    unsure: BTreeSet<u64>,
    /// Others that told that they must not lead.
    unfit_others: BTreeSet<u64>,
    /// It is about to stop.
    retired: bool,
    /// Its log counts as one without room before this tick.
    room_at: u64,
    /// What was persisted, and in which tick that was last seen to move or to be all there is.
    progress: (u64, u64),
    /// The tick since which it must not lead.
    unfit_at: Option<u64>,
    /// Length of the running election time-out, and what it was drawn for.
    draw: usize,
    drawn_for: (u64, StateRole),
    random: u64,
}

impl<L: EntryLog, F: StateFile> Member<L, F> {
    /// A member over its log. `saved` is what its state file held; a member without one begins as [`Standing::Blank`].
    pub fn new(
        settings: Settings,
        saved: Option<HardState>,
        log: L,
        mut file: F,
        gate: Arc<Gate>,
    ) -> Result<Self, Error> {
        let base = log.base();
        let mut hard = match saved {
            Some(saved) => saved,
            None if log.last_index() == 0 => HardState {
                term: 0,
                vote: 0,
                commit: 0,
                standing: Standing::Blank,
                session: 0,
                confs: vec![(0, settings.conf.clone())],
            },
            None => {
                return Err(Error::State(
                    "the log has entries but its state file is gone: empty the volume, and the member rejoins",
                ));
            }
        };
        if hard.conf_at(base.index).is_none() {
            return Err(Error::State(
                "the state file is older than the log's beginning",
            ));
        }
        if settings.unclean || hard.commit > log.last_index() {
            hard.standing = hard.standing.max(Standing::Behind);
        }
        // A new life, also when the clock was set back.
        hard.session = hard.session.saturating_add(1).max(settings.now_ms);
        hard.commit = hard.commit.clamp(base.index, log.last_index());
        if log
            .term(log.last_index())
            .is_none_or(|last| last > hard.term)
        {
            return Err(Error::State("the log is newer than its state file"));
        }
        file.save(&hard)?;
        let config = raft::Config {
            id: settings.id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: hard.commit,
            max_size_per_msg: MAX_MESSAGE_WEIGHT,
            max_inflight_msgs: MAX_INFLIGHT,
            check_quorum: true,
            pre_vote: true,
            skip_bcast_commit: true,
            max_uncommitted_size: MAX_UNCOMMITTED_WEIGHT,
            max_committed_size_per_ready: MAX_COMMITTED_WEIGHT,
            ..raft::Config::default()
        };
        let placed = hard.standing != Standing::Blank || log.last_index() > 0;
        let told_commit = watermark(&log, hard.commit);
        let (saved_commit, term) = (hard.commit, hard.term);
        gate.close(Closed::NotLeader);
        // Committed in an earlier life.
        let tables = (settings.tables.max(base.index) + 1..=hard.commit)
            .filter(|&i| log.entry(i).is_some_and(|d| d.kind == Kind::Tables))
            .collect();
        let storage = Storage::new(log, hard);
        let mut member = Self {
            id: settings.id,
            raw: RawNode::new(&config, storage, &logger())?,
            file,
            gate,
            out: Output {
                tables,
                ..Output::default()
            },
            preferred: settings.preferred,
            ticks: 0,
            saved_commit,
            unpersisted: VecDeque::new(),
            held: VecDeque::new(),
            taken: Vec::new(),
            proposed: VecDeque::new(),
            changing: None,
            leading: None,
            opened: false,
            transfer: None,
            offer_at: 0,
            told_role: RoleNow {
                role: Role::Seeking,
                term,
                leader: None,
            },
            told_commit,
            ballot: Ballot::default(),
            all_voted: None,
            granted: None,
            placed,
            read: None,
            asked_at: 0,
            heard: BTreeMap::new(),
            sure_at: 0,
            sessions: BTreeMap::new(),
            rejoined: BTreeMap::new(),
            barriers: BTreeMap::new(),
            unsure: BTreeSet::new(),
            unfit_others: BTreeSet::new(),
            retired: false,
            room_at: 0,
            progress: (0, 0),
            unfit_at: None,
            draw: 0,
            drawn_for: (0, StateRole::Leader),
            random: settings.seed ^ settings.id.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        };
        member.redraw(false);
        Ok(member)
    }

    /// What is to be done since the last time.
    pub fn take_output(&mut self) -> Output {
        std::mem::take(&mut self.out)
    }

    /// The log.
    pub fn log(&self) -> &L {
        &self.raw.store().log
    }

    /// The log, for its retention: after its base moved, call [`Member::compacted`].
    pub fn log_mut(&mut self) -> &mut L {
        &mut self.raw.mut_store().log
    }

    /// The state that must not be forgotten.
    pub fn hard_state(&self) -> &HardState {
        &self.raw.store().hard
    }

    /// Segments may be deleted while the first entry behind them is up to this index: it will not be cut and written anew
    /// elsewhere.
    pub fn compactable(&self) -> u64 {
        self.raw.raft.raft_log.applied.min(self.log().persisted())
    }

    /// The log begins later than it did: configurations from before are not needed any more.
    pub fn compacted(&mut self) -> Result<(), Error> {
        let base = self.log().base().index;
        debug_assert!(base <= self.raw.raft.raft_log.applied);
        let hard = &mut self.raw.mut_store().hard;
        let needed = hard
            .confs
            .partition_point(|(from, _)| *from <= base)
            .saturating_sub(1);
        if needed > 0 {
            hard.confs.drain(..needed);
            self.save()?;
        }
        Ok(())
    }

    /// Time passes: [`TICK_MS`].
    pub fn tick(&mut self) -> Result<(), Error> {
        self.ticks += 1;
        self.watch_progress();
        let held_back = self.is_held_back();
        let raft = &mut self.raw.raft;
        let leads = raft.state == StateRole::Leader;
        let about_to_campaign = !leads && raft.election_elapsed + 1 >= self.draw;
        let fired = if about_to_campaign && held_back {
            // The lease of the old leader ends all the same.
            raft.election_elapsed += 1;
            false
        } else {
            self.raw.tick() && !leads
        };
        self.redraw(fired);
        self.advance(None)?;
        self.step_down_among_unsure()?;
        self.step_down_unfit()?;
        self.follow_up()?;
        if self.raw.raft.raft_log.applied >= self.saved_commit + SAVE_ENTRIES {
            self.save()?;
        }
        Ok(())
    }

    /// A message came, and the frames of its entries behind each other. What no member would say is refused without a
    /// trace, as if it had been lost.
    pub fn step(&mut self, mut m: PeerMessage, frames: &[u8]) -> Result<(), Error> {
        if m.to == self.id && m.from != self.id && m.to_session > self.session() {
            self.outlive(m.to_session)?;
        }
        if !self.admit(&mut m, frames) {
            return Ok(());
        }
        match m.kind {
            Type::Rejoin => self.rejoin(&m)?,
            Type::RejoinResponse => {
                if m.context == self.rejoin_context() && m.term == self.raw.raft.term {
                    self.read = Some((m.index, m.term));
                }
            }
            Type::Snapshot if m.snapshot.as_ref().is_some_and(|s| s.base.index == 0) => {
                self.place(&m)?;
            }
            Type::VoteResponse | Type::PreVoteResponse if !m.reject => self.count(m)?,
            _ => {
                let staged = std::mem::take(&mut m.entries);
                let heard = m.kind == Type::Heartbeat || m.kind == Type::Append;
                let (from, term, all_voted) = (m.from, m.term, m.all_voted);
                let snapshot = m.snapshot.take();
                self.step_raft(to_raft(m, &staged, snapshot.as_deref()))?;
                if heard && all_voted && term == self.raw.raft.term {
                    self.all_voted = Some(term);
                }
                self.advance(Some(Staged {
                    entries: &staged,
                    frames,
                    snapshot: snapshot.as_deref(),
                }))?;
                if heard && from == self.raw.raft.leader_id {
                    self.ask_to_rejoin();
                }
            }
        }
        self.redraw(false);
        self.advance(None)?;
        self.follow_up()
    }

    /// Takes the frames that the send path appended, and proposes them.
    pub fn pump(&mut self) -> Result<(), Error> {
        if self.leading.is_none() {
            return Ok(());
        }
        self.propose_frames()?;
        self.follow_up()
    }

    /// The log's [`EntryLog::persisted`] may have moved.
    pub fn persisted(&mut self) -> Result<(), Error> {
        self.advance(None)?;
        self.follow_up()
    }

    /// The connection to a member broke. If it led: whoever hears nothing else of it asks for an election soon.
    pub fn peer_lost(&mut self, id: u64) {
        let jitter = 1 + self.random() % LOST_TICKS;
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader {
            self.raw.report_unreachable(id);
        } else if raft.leader_id == id && raft.election_elapsed < ELECTION_TICKS {
            raft.election_elapsed = ELECTION_TICKS;
            self.draw = ELECTION_TICKS + jitter as usize;
            raft.set_randomized_election_timeout(self.draw);
        }
    }

    /// It is about to stop: it does not lead from now on, and hands over what leadership it has.
    pub fn retire(&mut self) -> Result<(), Error> {
        self.retired = true;
        self.note_fitness();
        self.follow_up()
    }

    /// Whether the log takes anything. To be told again and again, with each tick.
    pub fn set_room(&mut self, room: bool) {
        if !room {
            self.room_at = self.ticks + ROOM_TICKS;
        }
        self.note_fitness();
    }

    /// Why it must not lead now.
    pub fn unfit(&self) -> Option<Unfit> {
        if self.retired {
            Some(Unfit::Retired)
        } else if self.ticks < self.room_at {
            Some(Unfit::NoRoom)
        } else if self.ticks >= self.progress.1 + STALL_TICKS {
            Some(Unfit::Stalled)
        } else {
            None
        }
    }

    /// Hands the leadership over: pauses, waits for everything to be committed, asks the other. Given up after an
    /// election time-out. [`Output::role`] tells when it is done.
    pub fn transfer(&mut self, to: u64) -> Result<(), Refused> {
        if self.leading.is_none() || !self.opened {
            return Err(Refused::NotLeader);
        }
        if self.transfer.is_some() {
            return Err(Refused::Busy);
        }
        let raft = &self.raw.raft;
        let progress = raft
            .prs()
            .get(to)
            .filter(|_| raft.prs().conf().voters().contains(to) && to != self.id);
        let Some(progress) = progress else {
            return Err(Refused::Member(to));
        };
        if self.unfit_others.contains(&to) {
            return Err(Refused::Unfit(to));
        }
        let lag = raft.raft_log.last_index() - progress.matched;
        if !self.active(to) || lag > CLOSE_ENTRIES || self.unsure.contains(&to) {
            return Err(Refused::Lagging { id: to, lag });
        }
        self.gate.close(Closed::Paused);
        self.transfer = Some(Transfer::Draining {
            to,
            until: self.ticks + TRANSFER_TICKS,
        });
        Ok(())
    }

    /// The member to hand the leadership to when it matters little to whom: who has most, of several the preferred one.
    pub fn successor(&self) -> Option<u64> {
        let raft = &self.raw.raft;
        let voters = raft.prs().conf().voters();
        raft.prs()
            .iter()
            .filter(|&(&id, _)| id != self.id && voters.contains(id) && self.may_lead(id))
            .max_by_key(|&(&id, p)| (p.matched, Some(id) == self.preferred, id))
            .map(|(&id, _)| id)
    }

    /// Proposes one change of the membership; returns its index. It took effect when [`Output::conf`] shows it.
    pub fn propose(&mut self, change: Change) -> Result<Result<u64, Refused>, Error> {
        if let Err(refused) = self.allowed(&change) {
            return Ok(Err(refused));
        }
        // What was stamped before comes before it; the gate opens again behind it.
        self.gate.close(Closed::Paused);
        self.propose_frames()?;
        if self.leading.is_none() {
            return Ok(Err(Refused::NotLeader));
        }
        let index = self.raw.raft.raft_log.last_index() + 1;
        let mut proposal = ConfChange::default();
        proposal.set_node_id(change.id());
        proposal.set_change_type(change_type(&change));
        self.changing = Some(change);
        let proposed = self.raw.propose_conf_change(Vec::new(), proposal);
        self.advance(None)?;
        self.changing = None;
        if self.leading.is_some() && self.opened {
            self.open_gate();
        }
        self.follow_up()?;
        Ok(proposed.map(|()| index).map_err(|_| Refused::Busy))
    }

    /// For people, metrics and the operator.
    pub fn status(&self) -> Status {
        let raft = &self.raw.raft;
        let store = self.raw.store();
        let mut members: Vec<MemberStatus> = Vec::new();
        if self.leading.is_some() {
            members.extend(
                raft.prs()
                    .iter()
                    .filter(|&(&id, _)| id != self.id)
                    .map(|(&id, p)| MemberStatus {
                        id,
                        voter: raft.prs().conf().voters().contains(id),
                        matched: p.matched,
                        active: self.active(id),
                        sure: !self.unsure.contains(&id),
                        fit: !self.unfit_others.contains(&id),
                    }),
            );
            members.sort_unstable_by_key(|m| m.id);
        }
        Status {
            id: self.id,
            role: self.role(),
            standing: store.hard.standing,
            unfit: self.unfit(),
            first: store.log.base().index + 1,
            last: store.log.last_index(),
            persisted: store.log.persisted(),
            committed: raft.raft_log.committed,
            applied: raft.raft_log.applied,
            conf: self.conf().clone(),
            members,
        }
    }

    /// Entries and bytes that the library holds beside the log: bounded, whatever the disk does.
    pub fn unstable(&self) -> usize {
        self.raw.raft.raft_log.unstable.entries.len()
    }

    fn conf(&self) -> &Conf {
        static NOBODY: Conf = Conf {
            voters: Vec::new(),
            learners: Vec::new(),
            addresses: BTreeMap::new(),
        };
        self.raw
            .store()
            .hard
            .conf()
            .map_or(&NOBODY, |(_, conf)| conf)
    }

    /// What it is, and who leads.
    pub fn role(&self) -> RoleNow {
        let raft = &self.raw.raft;
        let leader = (raft.leader_id != 0).then_some(raft.leader_id);
        let role = match (self.leading, leader) {
            (Some(_), _) if self.opened => Role::Leading,
            (Some(_), _) => Role::Elected,
            _ if self.placed && !self.conf().contains(self.id) => Role::Removed,
            (None, Some(_)) => Role::Following,
            (None, None) => Role::Seeking,
        };
        RoleNow {
            role,
            term: raft.term,
            leader,
        }
    }

    /// Heard of within an election time-out.
    fn active(&self, id: u64) -> bool {
        let since = self.ticks.saturating_sub(ELECTION_TICKS as u64);
        self.heard.get(&id).is_some_and(|&at| at >= since)
    }

    /// Whether another voter could take over, as far as this member knows.
    fn may_lead(&self, id: u64) -> bool {
        self.active(id) && !self.unsure.contains(&id) && !self.unfit_others.contains(&id)
    }

    fn watch_progress(&mut self) {
        let (persisted, last) = (self.log().persisted(), self.log().last_index());
        if persisted >= last || persisted != self.progress.0 {
            self.progress = (persisted, self.ticks);
        }
        self.note_fitness();
    }

    fn note_fitness(&mut self) {
        match (self.unfit(), self.unfit_at) {
            (Some(_), None) => {
                self.unfit_at = Some(self.ticks);
                self.offer_at = self.ticks;
            }
            (None, Some(_)) => self.unfit_at = None,
            _ => {}
        }
    }

    /// Whether it lets its election time-out pass.
    fn is_held_back(&self) -> bool {
        let raft = &self.raw.raft;
        // Only a log that is persisted stands for election.
        raft.raft_log.persisted < raft.raft_log.last_index()
            || match self.unfit() {
                None => false,
                Some(Unfit::NoRoom) => {
                    raft.election_elapsed + 1 < self.draw + NO_ROOM_PATIENCE_TICKS
                }
                Some(Unfit::Retired | Unfit::Stalled) => true,
            }
    }

    fn standing(&self) -> Standing {
        self.raw.store().hard.standing
    }

    fn sound(&self) -> bool {
        self.standing() == Standing::Sound
    }

    /// Saves the state. Everything it says is then durable.
    fn save(&mut self) -> Result<(), Error> {
        let raft = &self.raw.raft;
        let (term, vote, applied) = (raft.term, raft.vote, raft.raft_log.applied);
        let hard = &mut self.raw.mut_store().hard;
        hard.term = term;
        hard.vote = vote;
        hard.commit = hard.commit.max(applied);
        self.saved_commit = hard.commit;
        self.file.save(hard)?;
        Ok(())
    }

    /// From now on this member's word counts.
    fn recover(&mut self) -> Result<(), Error> {
        let raft = &mut self.raw.raft;
        if raft.vote == 0 && raft.leader_id != 0 {
            // What it may have voted in this term before its volume was emptied must not be voted again.
            raft.vote = raft.leader_id;
        }
        self.raw.mut_store().hard.standing = Standing::Sound;
        self.placed = true;
        self.save()
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The library draws its time-outs from a generator that nobody can seed, and not for each campaign: ours is drawn
    /// anew whenever role or term change and whenever a campaign began.
    fn redraw(&mut self, fired: bool) {
        let now = (self.raw.raft.term, self.raw.raft.state);
        if fired || now != self.drawn_for {
            self.drawn_for = now;
            self.draw = ELECTION_TICKS + (self.random() % ELECTION_TICKS as u64) as usize;
        }
        self.raw.raft.set_randomized_election_timeout(self.draw);
    }

    /// Whether the message may be seen by the library, which panics on what no member would say.
    fn admit(&mut self, m: &mut PeerMessage, frames: &[u8]) -> bool {
        if m.to != self.id || m.from == self.id || m.frames_len() != frames.len() as u64 {
            return false;
        }
        // Of an earlier life of the sender, whose log had more than it has now, or may have had.
        let known = self.sessions.get(&m.from).copied().unwrap_or(0);
        if m.session < known {
            return false;
        }
        if self.sessions.len() < 4 * MAX_MEMBERS || known > 0 {
            self.sessions.insert(m.from, m.session);
        }
        if self.conf().contains(m.from) {
            self.heard.insert(m.from, self.ticks);
        }
        if m.unsure && self.conf().contains(m.from) {
            self.unsure.insert(m.from);
        } else {
            self.unsure.remove(&m.from);
        }
        if m.unfit && self.conf().contains(m.from) {
            self.unfit_others.insert(m.from);
        } else {
            self.unfit_others.remove(&m.from);
        }
        // Followers learn what is committed with the next entries or the next heartbeat, which costs half the messages.
        // Those whose word does not count take it from entries only.
        self.raw.skip_bcast_commit(self.unsure.is_empty());
        let raft = &self.raw.raft;
        let log = &raft.raft_log;
        let (last, committed) = (log.last_index(), log.committed);
        match m.kind {
            Type::Append => {
                if !self.placed || m.log_term > m.term {
                    return false;
                }
                // Whoever leads has what is committed here, so its terms there are not older.
                if m.index >= committed && m.log_term < log.term(committed).unwrap_or(0) {
                    return false;
                }
                let mut rest = frames;
                let whole = m.entries.iter().all(|e| {
                    let (frame, behind) = rest.split_at(e.len as usize);
                    rest = behind;
                    self.log().verify(e, frame)
                });
                whole && (frames.is_empty() || self.log_mut().has_room(frames.len() as u64))
            }
            Type::Heartbeat => {
                // Who lost a tail must not take the leader's word for what its log holds.
                if !self.sound() || m.commit > last {
                    m.commit = 0;
                }
                true
            }
            Type::AppendResponse => m.index <= last && m.reject_hint <= last,
            Type::Snapshot => m.snapshot.as_ref().is_some_and(|s| {
                !s.conf.voters.is_empty()
                    && s.base.term <= m.term
                    && (s.base.index == 0) == (s.base.term == 0)
            }),
            Type::TimeoutNow => {
                m.from == raft.leader_id
                    && m.term == raft.term
                    && log.persisted == last
                    && self.sound()
                    && self.unfit().is_none()
            }
            // Whoever has forgotten its votes grants one only when it was asked in this life: an old question may be
            // older than a vote that it has forgotten.
            Type::Vote if self.standing() == Standing::Blank && m.to_session != self.session() => {
                false
            }
            Type::Vote | Type::PreVote => m.commit_term <= m.term && m.log_term <= m.term,
            _ => true,
        }
    }

    /// The library answers some messages with an error that only says that they were dropped.
    fn step_raft(&mut self, m: Message) -> Result<(), Error> {
        match self.raw.step(m) {
            Ok(()) | Err(raft::Error::StepPeerNotFound | raft::Error::ProposalDropped) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// A vote was granted. It counts at once if the words of both count, else only when all voters have granted.
    fn count(&mut self, m: PeerMessage) -> Result<(), Error> {
        let raft = &self.raw.raft;
        // A pre-vote is for the next term.
        let current = match m.kind {
            Type::PreVoteResponse => {
                raft.state == StateRole::PreCandidate && m.term == raft.term + 1
            }
            _ => {
                raft.term == m.term
                    && matches!(raft.state, StateRole::Candidate | StateRole::Leader)
            }
        };
        if !current || !raft.prs().conf().voters().contains(m.from) {
            // Only a newer term can matter; a grant has none that was not asked for.
            return Ok(());
        }
        if (self.ballot.term, self.ballot.kind) != (m.term, Some(m.kind)) {
            self.ballot = Ballot {
                term: m.term,
                kind: Some(m.kind),
                ..Ballot::default()
            };
        }
        let counts = self.sound() && !m.unsure;
        self.ballot.granted.insert(m.from);
        let all = raft
            .prs()
            .conf()
            .voters()
            .ids()
            .iter()
            .all(|id| id == self.id || self.ballot.granted.contains(&id));
        let (kind, term) = (m.kind, m.term);
        let m = to_raft(m, &[], None);
        if all && kind == Type::VoteResponse {
            self.all_voted = Some(term);
        }
        if counts || all {
            let withheld = if all {
                std::mem::take(&mut self.ballot.withheld)
            } else {
                Vec::new()
            };
            for m in withheld.into_iter().chain([m]) {
                self.step_raft(m)?;
            }
        } else {
            self.ballot.withheld.push(m);
        }
        Ok(())
    }

    fn session(&self) -> u64 {
        self.raw.store().hard.session
    }

    /// An earlier life of this member, before its volume was emptied, has a later begin: the clock was set back. To those who
    /// heard of it, all that this one says would be older.
    fn outlive(&mut self, session: u64) -> Result<(), Error> {
        self.raw.mut_store().hard.session = session.saturating_add(1);
        self.save()
    }

    fn rejoin_context(&self) -> Vec<u8> {
        let mut context = self.id.to_be_bytes().to_vec();
        context.extend_from_slice(&self.session().to_be_bytes());
        context
    }

    /// Where too few words count, a leader can commit nothing, and nobody's word will count again under it. An election in
    /// which all vote can: whoever leads then has what anybody has.
    fn step_down_among_unsure(&mut self) -> Result<(), Error> {
        let voters = &self.conf().voters;
        let sure = voters.iter().filter(|id| !self.unsure.contains(id)).count();
        if self.leading.is_none() || sure >= raft::majority(voters.len()) {
            self.sure_at = self.ticks;
        } else if self.ticks >= self.sure_at + UNSURE_TICKS {
            self.sure_at = self.ticks;
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
            self.advance(None)?;
        }
        Ok(())
    }

    /// A leader that must not lead and could not hand over goes, when the others are enough to elect one of themselves.
    fn step_down_unfit(&mut self) -> Result<(), Error> {
        let Some((_, since)) = self.leading.zip(self.unfit_at) else {
            return Ok(());
        };
        let voters = &self.conf().voters;
        let able = voters
            .iter()
            .filter(|&&id| id != self.id && self.may_lead(id));
        if able.count() < raft::majority(voters.len()) || self.ticks < since + LEAVE_TICKS {
            return Ok(());
        }
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, raft::INVALID_ID);
        self.advance(None)
    }

    /// Tells the leader that this member lost something, and asks how far is committed.
    fn ask_to_rejoin(&mut self) {
        let answered = self.placed
            && self
                .read
                .is_some_and(|(_, term)| term == self.raw.raft.term);
        // Not with each heartbeat: the answer begins with heartbeats.
        if self.sound() || answered || self.ticks < self.asked_at + HEARTBEAT_TICKS as u64 {
            return;
        }
        self.asked_at = self.ticks;
        let mut m = PeerMessage::new(Type::Rejoin, self.id, self.raw.raft.leader_id);
        m.term = self.raw.raft.term;
        m.index = if self.placed {
            self.log().last_index()
        } else {
            0
        };
        m.context = self.rejoin_context();
        self.say(m);
    }

    /// A follower lost something: what it once acknowledged counts no more, and it learns how far is committed.
    fn rejoin(&mut self, m: &PeerMessage) -> Result<(), Error> {
        let from = m.from;
        if self.leading.is_none() || m.term != self.raw.raft.term || m.context.is_empty() {
            return Ok(());
        }
        let raft = &mut self.raw.raft;
        let last = raft.raft_log.last_index();
        let Some(progress) = raft.mut_prs().get_mut(from) else {
            return Ok(());
        };
        progress.recent_active = true;
        // Where to begin was told and got lost, or it would not ask from nothing.
        let lost = m.blank && m.index == 0 && progress.matched == 0;
        let base = self.raw.store().log.base();
        if m.blank && m.index == 0 && base.index == 0 {
            let hard = &self.raw.store().hard;
            if let Some(conf) = hard.conf_at(0).cloned() {
                let mut place = PeerMessage::new(Type::Snapshot, self.id, from);
                place.term = self.raw.raft.term;
                place.snapshot = Some(Box::new(Snapshot { base, conf }));
                self.say(place);
            }
        }
        if lost || self.rejoined.get(&from) != Some(&m.session) {
            self.rejoined.insert(from, m.session);
            if let Some(progress) = self.raw.raft.mut_prs().get_mut(from) {
                progress.matched = 0;
                progress.become_probe();
                progress.next_idx = m.index.min(last) + 1;
            }
            self.raw.raft.send_append(from);
        }
        if m.blank {
            return self.answer_blank(m);
        }
        let mut read = Message::default();
        read.set_msg_type(MessageType::MsgReadIndex);
        read.from = from;
        read.set_entries(
            vec![Entry {
                data: m.context.clone().into(),
                ..Entry::default()
            }]
            .into(),
        );
        self.step_raft(read)
    }

    /// A member that has forgotten its votes may have given one to a candidate of a later term, who still counts on it.
    /// Once an entry that was written after its start is committed without it, that candidate can win no more: its log
    /// lacks the entry, and a quorum has it.
    fn answer_blank(&mut self, m: &PeerMessage) -> Result<(), Error> {
        if !self.opened || self.transfer.is_some() {
            return Ok(());
        }
        let index = match self.barriers.get(&m.from) {
            Some(&(session, index)) if session == m.session => index,
            _ => {
                self.gate.close(Closed::Paused);
                self.propose_frames()?;
                let index = self.raw.raft.raft_log.last_index() + 1;
                let mut proposal = Message::default();
                proposal.set_msg_type(MessageType::MsgPropose);
                proposal.from = self.id;
                proposal.set_entries(vec![Entry::default()].into());
                let proposed = self.raw.raft.step(proposal);
                self.advance(None)?;
                if self.leading.is_some() && self.opened {
                    self.open_gate();
                }
                if proposed.is_err() {
                    return Ok(());
                }
                self.barriers.insert(m.from, (m.session, index));
                index
            }
        };
        let mut answer = PeerMessage::new(Type::RejoinResponse, self.id, m.from);
        answer.term = self.raw.raft.term;
        answer.index = index;
        answer.context = m.context.clone();
        self.say(answer);
        Ok(())
    }

    /// An empty member learns with whom the group began.
    fn place(&mut self, m: &PeerMessage) -> Result<(), Error> {
        let Some(snapshot) = m.snapshot.as_ref() else {
            return Ok(());
        };
        let raft = &self.raw.raft;
        let empty = self.log().last_index() == 0 && raft.raft_log.committed == 0;
        if self.placed || !empty || m.term != raft.term || m.from != raft.leader_id {
            return Ok(());
        }
        let now = self.conf().clone();
        let learners = snapshot
            .conf
            .learners
            .iter()
            .map(|&id| (id, ConfChangeType::AddLearnerNode));
        let voters = snapshot
            .conf
            .voters
            .iter()
            .map(|&id| (id, ConfChangeType::AddNode));
        let gone = now
            .voters
            .iter()
            .chain(&now.learners)
            .filter(|&&id| !snapshot.conf.contains(id))
            .map(|&id| (id, ConfChangeType::RemoveNode));
        for (id, kind) in voters.chain(learners).chain(gone) {
            let mut change = ConfChange::default();
            change.set_node_id(id);
            change.set_change_type(kind);
            self.raw.apply_conf_change(&change)?;
        }
        self.raw.mut_store().hard.confs = vec![(0, snapshot.conf.clone())];
        self.placed = true;
        self.out.conf = Some(snapshot.conf.clone());
        self.save()
    }

    fn allowed(&self, change: &Change) -> Result<(), Refused> {
        if self.leading.is_none() || !self.opened {
            return Err(Refused::NotLeader);
        }
        let raft = &self.raw.raft;
        if self.transfer.is_some() || raft.has_pending_conf() {
            return Err(Refused::Busy);
        }
        let conf = self.conf();
        let id = change.id();
        let next = conf.after(change);
        match change {
            Change::AddLearner { address, .. } => {
                let room = next.voters.len() + next.learners.len() <= MAX_MEMBERS;
                if conf.contains(id) || id == 0 || !room || address.len() > MAX_ADDRESS {
                    return Err(Refused::Member(id));
                }
            }
            Change::Promote { .. } => {
                let Some(progress) = raft.prs().get(id).filter(|_| conf.learners.contains(&id))
                else {
                    return Err(Refused::Member(id));
                };
                let lag = raft.raft_log.last_index().saturating_sub(progress.matched);
                if lag > CLOSE_ENTRIES || !self.active(id) || self.unsure.contains(&id) {
                    return Err(Refused::Lagging { id, lag });
                }
            }
            Change::Remove { .. } => {
                if !conf.contains(id) || id == self.id {
                    return Err(Refused::Member(id));
                }
                let active = next
                    .voters
                    .iter()
                    .filter(|&&v| v == self.id || self.active(v))
                    .count();
                if active < raft::majority(next.voters.len()) {
                    return Err(Refused::Quorum {
                        active,
                        voters: next.voters.len(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Proposes what was stamped, in pieces of about one message each, so that the library holds no more than that.
    fn propose_frames(&mut self) -> Result<(), Error> {
        let mut frames = std::mem::take(&mut self.taken);
        self.gate.take(&mut frames);
        let mut rest = &frames[..];
        while let Some(first) = rest.first() {
            let mut bytes = 0;
            let fit = rest
                .iter()
                .take(MAX_ENTRIES)
                .take_while(|d| {
                    bytes += u64::from(d.len);
                    bytes <= APPEND_BYTES
                })
                .count()
                .max(1);
            let (piece, behind) = rest.split_at(fit);
            let leads = self.leading.is_some_and(|(term, _)| term == first.term);
            let mut proposal = Message::default();
            proposal.set_msg_type(MessageType::MsgPropose);
            proposal.from = self.id;
            proposal.set_entries(piece.iter().map(to_entry).collect::<Vec<_>>().into());
            if !leads
                || self.raw.raft.raft_log.last_index() + 1 != first.index
                || self.raw.raft.step(proposal).is_err()
            {
                // Refused: these frames, and whatever was stamped behind them, never become entries.
                self.gate.close(Closed::Paused);
                self.drop_frames(rest)?;
                if self.leading.is_some() && self.opened && self.transfer.is_none() {
                    self.open_gate();
                }
                break;
            }
            self.proposed.extend(piece);
            self.advance(None)?;
            rest = behind;
        }
        frames.clear();
        self.taken = frames;
        Ok(())
    }

    /// Cuts frames off the log that were stamped and will not be entries. The gate is closed.
    fn drop_frames(&mut self, first: &[Descriptor]) -> Result<(), Error> {
        let mut behind = Vec::new();
        self.gate.take(&mut behind);
        let log = &mut self.raw.mut_store().log;
        let mut from = None;
        for frame in first.iter().chain(&behind) {
            if frame.index == log.last_index() + 1 {
                log.adopt(frame)?;
                from.get_or_insert(*frame);
            }
        }
        if let Some(from) = from {
            log.truncate_from(from.index)?;
            self.tell_cut(from.position);
        }
        Ok(())
    }

    fn tell_cut(&mut self, position: u64) {
        let cut = self.out.cut.unwrap_or(u64::MAX).min(position);
        self.out.cut = Some(cut);
    }

    fn open_gate(&mut self) {
        let next = self.log().last_index() + 1;
        self.gate.committed(self.told_commit.position);
        self.gate.open(self.raw.raft.term, next);
    }

    /// Everything that the library has ready is done, in the order that keeps promises: state, log, then messages.
    fn advance(&mut self, mut staged: Option<Staged<'_>>) -> Result<(), Error> {
        self.settle();
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            self.redraw(false);
            self.check_leadership()?;
            if let Some(hard) = ready.hs() {
                let saved = &self.raw.store().hard;
                if hard.term != saved.term || hard.vote != saved.vote {
                    self.save()?;
                }
            }
            let began_anew = !ready.snapshot().is_empty();
            if began_anew {
                let snapshot = staged
                    .as_ref()
                    .and_then(|s| s.snapshot)
                    .ok_or(Error::State("a snapshot came from nowhere"))?;
                self.begin_anew(snapshot)?;
            }
            let entries = ready.take_entries();
            if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
                self.write(first.index, &entries, staged.take())?;
                self.unpersisted.push_back((ready.number(), last.index));
            } else {
                self.unpersisted.push_back((ready.number(), 0));
            }
            let mut messages = ready.take_messages();
            messages.append(&mut ready.take_persisted_messages());
            let committed = ready.take_committed_entries();
            self.raw.advance_append_async(ready);
            if began_anew {
                self.settle();
                let base = self.log().base().index;
                self.raw.advance_apply_to(base);
            }
            self.check_standing()?;
            for m in messages {
                self.send(m);
            }
            self.apply(&committed)?;
            self.settle();
        }
        self.tell();
        Ok(())
    }

    /// Tells the library which readies are persisted, and lets go the acknowledgements that waited for it.
    fn settle(&mut self) {
        let persisted = self.log().persisted();
        let mut number = None;
        while let Some(&(n, last)) = self.unpersisted.front() {
            if last > persisted {
                break;
            }
            number = Some(n);
            self.unpersisted.pop_front();
        }
        if let Some(number) = number {
            self.raw.on_persist_ready(number);
        }
        // Acknowledged in the order of their indices, mostly; who waits for a later one waits in vain no longer than it.
        while self.held.front().is_some_and(|m| m.index <= persisted) {
            if let Some(m) = self.held.pop_front() {
                self.say(m);
            }
        }
    }

    /// The gate is only ever open to the leader of the term.
    fn check_leadership(&mut self) -> Result<(), Error> {
        let raft = &self.raw.raft;
        let leads = raft.state == StateRole::Leader;
        if let Some((term, _)) = self.leading
            && (!leads || raft.term != term)
        {
            self.leading = None;
            self.opened = false;
            self.transfer = None;
            self.rejoined.clear();
            self.barriers.clear();
            self.gate.close(Closed::NotLeader);
            let proposed: Vec<Descriptor> = self.proposed.drain(..).collect();
            self.drop_frames(&proposed)?;
        }
        if leads && self.leading.is_none() {
            // Its first entry is the one behind everything that is persisted.
            self.leading = Some((self.raw.raft.term, self.log().last_index() + 1));
            (self.offer_at, self.unfit_at) = match self.unfit_at {
                None => (self.ticks + FIRST_OFFER_TICKS, None),
                // It leads all the same: mostly because there was nobody else.
                Some(_) => (self.ticks, Some(self.ticks)),
            };
            if self.raw.raft.prs().is_singleton() {
                self.all_voted = Some(self.raw.raft.term);
            }
            if !self.sound() {
                // All voters voted for it, or it would not lead: nobody has more.
                self.recover()?;
            }
        }
        Ok(())
    }

    fn begin_anew(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        self.held.clear();
        for record in &mut self.unpersisted {
            record.1 = 0;
        }
        let store = self.raw.mut_store();
        let cut = store
            .log
            .entry(store.log.base().index + 1)
            .map(|d| d.position);
        // Durable before the log begins there: a crash in between must not find it with who belonged to the group long before.
        store
            .hard
            .confs
            .push((snapshot.base.index, snapshot.conf.clone()));
        self.save()?;
        let store = self.raw.mut_store();
        store.log.reset(snapshot.base)?;
        store.changes.clear();
        store.tables.clear();
        store.hard.confs = vec![(snapshot.base.index, snapshot.conf.clone())];
        store.hard.commit = snapshot.base.index;
        if let Some(cut) = cut {
            self.tell_cut(cut);
        }
        self.placed = true;
        self.out.tables.clear();
        self.out.anew = Some(snapshot.base.index);
        self.out.conf = Some(snapshot.conf.clone());
        self.save()
    }

    /// New entries: a leader's lie in the log already, a follower's came with the message.
    fn write(
        &mut self,
        first: u64,
        entries: &[Entry],
        staged: Option<Staged<'_>>,
    ) -> Result<(), Error> {
        let store = self.raw.mut_store();
        if first <= store.log.last_index() {
            let cut = store.log.entry(first).map(|d| d.position);
            store.log.truncate_from(first)?;
            store.changes.split_off(&first);
            store.tables.split_off(&first);
            for record in &mut self.unpersisted {
                record.1 = record.1.min(first - 1);
            }
            self.held.retain(|m| m.index < first);
            if let Some(cut) = cut {
                self.tell_cut(cut);
            }
        }
        let store = self.raw.mut_store();
        if self.leading.is_some() {
            for entry in entries {
                let own = |log: &mut L, kind, payload: &[u8]| {
                    log.append_own(entry.index, entry.term, kind, payload)
                };
                match self.proposed.pop_front() {
                    Some(frame) if frame.index == entry.index && frame.term == entry.term => {
                        store.log.adopt(&frame)?;
                        if frame.kind == Kind::Tables {
                            store.tables.insert(frame.index);
                        }
                    }
                    Some(_) => return Err(Error::State("an entry is not the frame it was")),
                    None => match self.changing.take() {
                        Some(change) if entry.get_entry_type() == EntryType::EntryConfChange => {
                            own(&mut store.log, Kind::Change, &change.encode())?;
                            store.changes.insert(entry.index);
                        }
                        _ => {
                            own(&mut store.log, Kind::Empty, &[])?;
                        }
                    },
                }
            }
            return Ok(());
        }
        let staged = staged.ok_or(Error::State("entries came from nowhere"))?;
        let mut rest = staged.frames;
        for d in staged.entries {
            let (frame, behind) = rest.split_at(d.len as usize);
            rest = behind;
            if d.index < first {
                continue;
            }
            store.log.append(d, frame)?;
            match d.kind {
                Kind::Change => store.changes.insert(d.index),
                Kind::Tables => store.tables.insert(d.index),
                Kind::Records | Kind::Empty => false,
            };
        }
        debug_assert_eq!(
            entries.last().map(|e| e.index),
            Some(store.log.last_index())
        );
        Ok(())
    }

    /// Committed and persisted here: changes of the membership take effect.
    fn apply(&mut self, committed: &[Entry]) -> Result<(), Error> {
        let Some(last) = committed.last() else {
            return Ok(());
        };
        for entry in committed {
            let known = self.raw.store().hard.conf().map_or(0, |(from, _)| *from);
            if entry.get_entry_type() != EntryType::EntryConfChange || entry.index <= known {
                continue;
            }
            let log = self.log();
            let payload = match log.entry(entry.index) {
                Some(d) => log.payload(&d)?,
                None => return Err(Error::State("a change of the membership cannot be read")),
            };
            let change = Change::decode(&payload)
                .ok_or(Error::State("a change of the membership is none"))?;
            let mut applied = ConfChange::default();
            applied.set_node_id(change.id());
            applied.set_change_type(change_type(&change));
            self.raw.apply_conf_change(&applied)?;
            let next = self.conf().after(&change);
            let store = self.raw.mut_store();
            store.changes.remove(&entry.index);
            store.hard.confs.push((entry.index, next.clone()));
            store.hard.commit = store.hard.commit.max(entry.index);
            if matches!(change, Change::Remove { .. }) {
                self.rejoined.remove(&change.id());
                self.barriers.remove(&change.id());
                self.unsure.remove(&change.id());
            }
            self.out.conf = Some(next);
            self.save()?;
        }
        self.raw.advance_apply_to(last.index);
        if self.leading.is_some() && !self.conf().contains(self.id) {
            // An earlier leader proposed to remove this one. The library would leave it the leadership, and take nothing.
            if let Some(to) = self.successor() {
                self.raw.raft.send_timeout_now(to);
            }
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
        Ok(())
    }

    /// Whether this member has caught up with what it may have lost.
    fn check_standing(&mut self) -> Result<(), Error> {
        if self.sound() || !self.placed {
            return Ok(());
        }
        let raft = &self.raw.raft;
        let log = self.log();
        let blank = self.standing() == Standing::Blank;
        let read = self.read.is_some_and(|(index, term)| {
            index <= raft.raft_log.committed
                && index <= log.persisted()
                && (!blank || log.term(index.max(log.base().index)) == Some(term))
        });
        // Everybody voted for the leader, this member too and in this life: nobody has more than that one had, and an
        // entry of its term is only accepted behind all of them.
        let elected_by_all = raft.leader_id != 0
            && self.all_voted == Some(raft.term)
            && self.granted == Some((raft.term, raft.leader_id))
            && log.term(log.last_index()) == Some(raft.term);
        if read || elected_by_all {
            self.recover()?;
        }
        Ok(())
    }

    /// The rest of a call: standing, gate, hand-over.
    fn follow_up(&mut self) -> Result<(), Error> {
        self.check_standing()?;
        let Some((_, first)) = self.leading else {
            self.tell();
            return Ok(());
        };
        let committed = self.raw.raft.raft_log.committed;
        if !self.opened && committed >= first {
            self.opened = true;
            self.tell();
            self.open_gate();
        }
        match self.transfer {
            Some(Transfer::Draining { to, until }) => {
                // What was stamped before the gate closed.
                self.propose_frames()?;
                let last = self.raw.raft.raft_log.last_index();
                let matched = self.raw.raft.prs().get(to).map_or(0, |p| p.matched);
                let committed = self.raw.raft.raft_log.committed;
                if self.leading.is_some() && committed == last && matched == last {
                    self.raw.transfer_leader(to);
                    self.transfer = Some(Transfer::Asked { until });
                    self.advance(None)?;
                } else if self.ticks >= until {
                    self.end_transfer();
                }
            }
            Some(Transfer::Asked { until }) if self.ticks >= until => self.end_transfer(),
            Some(Transfer::Asked { .. }) => {}
            None => {
                let due = self.opened && self.ticks >= self.offer_at;
                if let Some(to) = self.heir().filter(|_| due) {
                    let taken = self.transfer(to).is_ok();
                    let again = match taken && self.unfit_at.is_none() {
                        true => PREFER_TICKS,
                        false => OFFER_TICKS,
                    };
                    self.offer_at = self.ticks + again;
                    if taken {
                        return self.follow_up();
                    }
                }
            }
        }
        self.tell();
        Ok(())
    }

    /// To whom a leader offers the leadership of its own accord: the preferred member, or, when it must not lead itself,
    /// whoever can.
    fn heir(&self) -> Option<u64> {
        match self.unfit_at {
            Some(_) => self.successor(),
            None => self.preferred.filter(|&to| to != self.id),
        }
    }

    fn end_transfer(&mut self) {
        self.transfer = None;
        self.raw.raft.abort_leader_transfer();
        if self.opened {
            self.open_gate();
        }
    }

    /// Role and commit, when they changed.
    fn tell(&mut self) {
        let role = self.role();
        if role != self.told_role {
            self.told_role = role;
            self.out.role = Some(role);
        }
        let committed = self.raw.raft.raft_log.committed;
        if committed > self.told_commit.index {
            let now = watermark(self.log(), committed);
            if now.index == committed {
                debug_assert!(now.position >= self.told_commit.position);
                self.told_commit = now;
                self.out.commit = Some(now);
                let tables = &mut self.raw.mut_store().tables;
                let later = tables.split_off(&(committed + 1));
                self.out.tables.extend(std::mem::replace(tables, later));
                self.gate.committed(now.position);
            }
        }
    }

    /// A message of the library's, as one of ours; entries are told by where their frames lie.
    fn send(&mut self, mut m: Message) {
        let Some(kind) = to_kind(m.get_msg_type()) else {
            return;
        };
        let mut ours = PeerMessage::new(kind, self.id, m.to);
        ours.term = m.term;
        ours.log_term = m.log_term;
        ours.index = m.index;
        ours.commit = m.commit;
        ours.commit_term = m.commit_term;
        ours.reject = m.reject;
        ours.reject_hint = m.reject_hint;
        ours.context = m.context.to_vec();
        match kind {
            Type::Append => return self.send_entries(ours, &m.entries),
            Type::Snapshot => {
                let store = self.raw.store();
                let base = store.log.base();
                let conf = store.hard.conf_at(base.index).cloned();
                // It is small and it either comes or does not: the probe behind it finds out.
                self.raw.report_snapshot(m.to, SnapshotStatus::Finish);
                let Some(conf) =
                    conf.filter(|_| base.index == m.get_snapshot().get_metadata().index)
                else {
                    return;
                };
                ours.snapshot = Some(Box::new(Snapshot { base, conf }));
            }
            Type::RejoinResponse => {
                if let Some(entry) = m.take_entries().first() {
                    ours.context = entry.data.to_vec();
                }
            }
            Type::Vote | Type::PreVote if !self.placed && self.log().last_index() > 0 => return,
            Type::VoteResponse if !m.reject => self.granted = Some((m.term, m.to)),
            Type::HeartbeatResponse if self.standing() == Standing::Blank => ours.context.clear(),
            Type::AppendResponse if !m.reject => {
                if !self.sound() {
                    // What is committed already is all that its word adds nothing to.
                    ours.index = ours.index.min(self.raw.raft.raft_log.committed);
                }
                if ours.index > self.log().persisted() {
                    self.held.push_back(ours);
                    return;
                }
            }
            _ => {}
        }
        self.say(ours);
    }

    /// One message of the library's may be several: each carries about [`APPEND_BYTES`] of frames.
    fn send_entries(&mut self, head: PeerMessage, entries: &[Entry]) {
        let mut now = head.clone();
        let mut bytes = 0;
        for entry in entries {
            let Some(d) = self
                .log()
                .entry(entry.index)
                .filter(|d| d.term == entry.term)
            else {
                // Cut or compacted meanwhile; the library asks again.
                break;
            };
            bytes += u64::from(d.len);
            if !now.entries.is_empty() && (bytes > APPEND_BYTES || now.entries.len() == MAX_ENTRIES)
            {
                let mut next = head.clone();
                (next.index, next.log_term) =
                    (d.index - 1, now.entries.last().map_or(0, |e| e.term));
                bytes = u64::from(d.len);
                let full = std::mem::replace(&mut now, next);
                self.say(full);
            }
            now.entries.push(d);
        }
        if entries.is_empty() || !now.entries.is_empty() {
            self.say(now);
        }
    }

    fn say(&mut self, mut m: PeerMessage) {
        let unfit = self.unfit_at.is_some();
        let hard = &self.raw.store().hard;
        m.session = hard.session;
        m.to_session = self.sessions.get(&m.to).copied().unwrap_or(0);
        m.unsure = hard.standing != Standing::Sound;
        m.blank = hard.standing == Standing::Blank;
        m.unfit = unfit;
        m.all_voted = self.leading.is_some() && self.all_voted == Some(self.raw.raft.term);
        self.out.messages.push(m);
    }
}

/// What came with a message and is not yet in the log.
struct Staged<'a> {
    entries: &'a [Descriptor],
    frames: &'a [u8],
    snapshot: Option<&'a Snapshot>,
}

/// Where the committed part of the log ends.
fn watermark(log: &impl EntryLog, committed: u64) -> Watermark {
    let base = log.base();
    let position = if committed <= base.index {
        Some(base.position)
    } else {
        log.entry(committed).map(|d| d.end())
    };
    position.map_or(Watermark::default(), |position| Watermark {
        index: committed,
        position,
    })
}

fn change_type(change: &Change) -> ConfChangeType {
    match change {
        Change::AddLearner { .. } => ConfChangeType::AddLearnerNode,
        Change::Promote { .. } => ConfChangeType::AddNode,
        Change::Remove { .. } => ConfChangeType::RemoveNode,
    }
}

fn to_kind(kind: MessageType) -> Option<Type> {
    Some(match kind {
        MessageType::MsgAppend => Type::Append,
        MessageType::MsgAppendResponse => Type::AppendResponse,
        MessageType::MsgRequestVote => Type::Vote,
        MessageType::MsgRequestVoteResponse => Type::VoteResponse,
        MessageType::MsgSnapshot => Type::Snapshot,
        MessageType::MsgHeartbeat => Type::Heartbeat,
        MessageType::MsgHeartbeatResponse => Type::HeartbeatResponse,
        MessageType::MsgTimeoutNow => Type::TimeoutNow,
        MessageType::MsgReadIndexResp => Type::RejoinResponse,
        MessageType::MsgRequestPreVote => Type::PreVote,
        MessageType::MsgRequestPreVoteResponse => Type::PreVoteResponse,
        _ => return None,
    })
}

fn to_raft(m: PeerMessage, entries: &[Descriptor], snapshot: Option<&Snapshot>) -> Message {
    let mut to = Message::default();
    to.set_msg_type(match m.kind {
        Type::Append => MessageType::MsgAppend,
        Type::AppendResponse => MessageType::MsgAppendResponse,
        Type::Vote => MessageType::MsgRequestVote,
        Type::VoteResponse => MessageType::MsgRequestVoteResponse,
        Type::Snapshot => MessageType::MsgSnapshot,
        Type::Heartbeat => MessageType::MsgHeartbeat,
        Type::HeartbeatResponse => MessageType::MsgHeartbeatResponse,
        Type::TimeoutNow => MessageType::MsgTimeoutNow,
        Type::Rejoin => MessageType::MsgReadIndex,
        Type::RejoinResponse => MessageType::MsgReadIndexResp,
        Type::PreVote => MessageType::MsgRequestPreVote,
        Type::PreVoteResponse => MessageType::MsgRequestPreVoteResponse,
    });
    to.from = m.from;
    to.to = m.to;
    to.term = m.term;
    to.log_term = m.log_term;
    to.index = m.index;
    to.commit = m.commit;
    to.commit_term = m.commit_term;
    to.reject = m.reject;
    to.reject_hint = m.reject_hint;
    to.context = m.context.into();
    if !entries.is_empty() {
        to.set_entries(entries.iter().map(to_entry).collect::<Vec<_>>().into());
    }
    if let Some(snapshot) = snapshot {
        let metadata = to.mut_snapshot().mut_metadata();
        metadata.index = snapshot.base.index;
        metadata.term = snapshot.base.term;
        let mut conf = to_conf_state(&snapshot.conf);
        if !snapshot.conf.contains(m.to) {
            // It was added later than the log begins, and will read so; until then it copies.
            conf.mut_learners().push(m.to);
        }
        metadata.set_conf_state(conf);
    }
    to
}

/// The library tells its elections; they go where the broker's other events go.
struct Events;

impl slog::Drain for Events {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        if record.level().is_at_least(slog::Level::Warning) {
            tracing::warn!("raft: {}", record.msg());
        } else {
            tracing::debug!("raft: {}", record.msg());
        }
        Ok(())
    }

    fn is_enabled(&self, level: slog::Level) -> bool {
        level.is_at_least(slog::Level::Info)
    }
}

fn logger() -> slog::Logger {
    slog::Logger::root(Events, slog::o!())
}
