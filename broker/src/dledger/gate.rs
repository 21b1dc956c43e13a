//! What the send path sees of the group: may a frame be appended now, and as which entry?

use parking_lot::Mutex;

use super::entry::{Descriptor, Kind};

/// Why a frame gets no index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// This member does not lead, or not yet.
    NotLeader,
    /// For the moment of a change of the membership, or while the leadership is handed over.
    Paused,
    /// Too much waits for the others to have it.
    Full,
}

/// The place that a frame got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The leader's term.
    pub term: u64,
    /// The entry's index.
    pub index: u64,
    /// Whether nothing else waits for the group's thread: wake it.
    pub wake: bool,
}

/// Gives indices to frames in the order in which they come to lie in the log, and hands them to the group's thread.
///
/// [`Gate::stamp`] is called under the store's append lock, so the order of indices is the order of positions. The
/// group's thread never waits for the append lock while it holds the gate's.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    max_uncommitted: u64,
}

#[derive(Debug)]
struct State {
    closed: Option<Closed>,
    term: u64,
    next: u64,
    committed: u64,
    frames: Vec<Descriptor>,
}

impl Gate {
    /// Closed. At most `max_uncommitted` bytes may wait to be committed, one frame more at most.
    pub fn new(max_uncommitted: u64) -> Self {
        Self {
            state: Mutex::new(State {
                closed: Some(Closed::NotLeader),
                term: 0,
                next: 0,
                committed: 0,
                frames: Vec::new(),
            }),
            max_uncommitted,
        }
    }

    /// The next index for a frame of `len` bytes that will lie at `position`. Under the append lock, as the last thing
    /// that can fail: once stamped, the frame must come to lie there.
    pub fn stamp(&self, kind: Kind, position: u64, len: u32) -> Result<Stamp, Closed> {
        self.stamp_if(|_, _| true, kind, position, len)
    }

    /// [`Gate::stamp`] for a log that counts its entries itself: only when it would give this index in this term.
    pub fn stamp_as(
        &self,
        term: u64,
        index: u64,
        kind: Kind,
        position: u64,
        len: u32,
    ) -> Result<Stamp, Closed> {
        self.stamp_if(|t, i| (t, i) == (term, index), kind, position, len)
    }

    fn stamp_if(
        &self,
        fits: impl FnOnce(u64, u64) -> bool,
        kind: Kind,
        position: u64,
        len: u32,
    ) -> Result<Stamp, Closed> {
        let mut state = self.state.lock();
        if let Some(why) = state.closed {
            return Err(why);
        }
        if !fits(state.term, state.next) {
            return Err(Closed::NotLeader);
        }
        if position.saturating_sub(state.committed) > self.max_uncommitted {
            return Err(Closed::Full);
        }
        let (term, index) = (state.term, state.next);
        state.next += 1;
        let wake = state.frames.is_empty();
        state.frames.push(Descriptor {
            index,
            term,
            position,
            len,
            kind,
        });
        Ok(Stamp { term, index, wake })
    }

    /// Whether a frame would get an index, for an early answer outside the append lock.
    pub fn check(&self) -> Result<(), Closed> {
        self.state.lock().closed.map_or(Ok(()), Err)
    }

    /// Whether frames wait for the group's thread.
    pub fn is_waiting(&self) -> bool {
        !self.state.lock().frames.is_empty()
    }

    /// Frames from here on are entries `next` and up of `term`.
    pub fn open(&self, term: u64, next: u64) {
        let mut state = self.state.lock();
        debug_assert!(
            state.frames.is_empty(),
            "frames of an earlier opening were not taken"
        );
        state.closed = None;
        state.term = term;
        state.next = next;
    }

    /// No frame gets an index any more. What was stamped stays to be taken.
    pub fn close(&self, why: Closed) {
        self.state.lock().closed = Some(why);
    }

    /// Takes what was stamped, in order; `into` is empty and its memory is kept in turn.
    pub fn take(&self, into: &mut Vec<Descriptor>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut self.state.lock().frames, into);
    }

    /// The log is committed up to this position.
    pub fn committed(&self, position: u64) {
        self.state.lock().committed = position;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_get_indices_in_order_while_it_is_open() {
        let gate = Gate::new(1000);
        assert_eq!(gate.stamp(Kind::Records, 0, 10), Err(Closed::NotLeader));
        gate.open(3, 8);
        let first = gate.stamp(Kind::Records, 48, 100).unwrap();
        assert_eq!((first.term, first.index, first.wake), (3, 8, true));
        assert!(!gate.stamp(Kind::Records, 148, 100).unwrap().wake);
        gate.close(Closed::Paused);
        assert_eq!(gate.stamp(Kind::Records, 248, 100), Err(Closed::Paused));
        let mut frames = Vec::new();
        gate.take(&mut frames);
        assert_eq!(frames.iter().map(|d| d.index).collect::<Vec<_>>(), [8, 9]);
        assert!(!gate.is_waiting());
    }

    #[test]
    fn what_waits_to_be_committed_is_bounded() {
        let gate = Gate::new(1000);
        gate.open(1, 2);
        assert!(gate.stamp(Kind::Records, 1000, 500).is_ok());
        assert_eq!(gate.stamp(Kind::Records, 1500, 1), Err(Closed::Full));
        gate.committed(1000);
        assert!(gate.stamp(Kind::Records, 1500, 1).is_ok());
    }
}
