//! What one worker thread does between two sleeps: the sends of all connections it served share one write to the log.
//!
//! With many connections and one request in flight on each, every socket read holds one message. Written read by read,
//! each costs a `pwrite`, a dispatch and a round of the locks; here they are kept until the thread has nothing else to
//! do, which tokio tells right before it parks a worker ([`install`]), and no longer than the bounds below. Then one
//! drive writes them all and their answers go out from this thread. Nobody is woken for it and no timer runs: a
//! message that comes alone is written at once, because its thread is about to sleep.
//!
//! On threads without the hook (tests, other runtimes) there is no turn and each read is ended on the spot.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::BytesMut;
use remoting::Connection;

use crate::ack::{Pending, Round};
use crate::broker::Broker;

/// Socket reads that may wait for the end of the turn: a thread that always has work still ends its turns.
const MAX_READS: usize = 64;
/// The same in bytes of messages: what one round writes should still be in the cache that it was just read into.
const MAX_BYTES: usize = 128 * 1024;

thread_local! {
    /// This thread is a worker that tells before it sleeps.
    static TELLS: Cell<bool> = const { Cell::new(false) };
    static TURN: RefCell<Turn> = RefCell::default();
}

#[derive(Default)]
struct Turn {
    /// Whose log has to be driven; none while nothing was appended.
    broker: Option<Arc<Broker>>,
    /// Whose answers they are, and how many of them follow one another.
    connections: Vec<(Arc<Connection>, usize)>,
    answers: Vec<Pending>,
    reads: usize,
    bytes: usize,
    out: BytesMut,
    ids: String,
}

/// Makes the workers of a runtime end their turns before they sleep.
pub fn install(runtime: &mut tokio::runtime::Builder) -> &mut tokio::runtime::Builder {
    runtime.on_thread_park(|| {
        TELLS.set(true);
        end();
    })
}

/// Whether this thread is a worker of such a runtime, that is one whose sleep costs the connections nothing.
pub fn is_worker() -> bool {
    TELLS.get()
}

/// Keeps what one socket read appended, and its answers, for the end of this thread's turn. False where there are no
/// turns: then the caller drives the log itself.
pub fn keep(
    broker: &Arc<Broker>,
    connection: &Arc<Connection>,
    answers: &mut Vec<Pending>,
) -> bool {
    if !TELLS.get() {
        return false;
    }
    let another = |turn: &Turn| {
        turn.broker
            .as_ref()
            .is_some_and(|b| !Arc::ptr_eq(b, broker))
    };
    if TURN.with_borrow(another) {
        end();
    }
    let full = TURN.with_borrow_mut(|turn| {
        turn.broker.get_or_insert_with(|| Arc::clone(broker));
        turn.reads += 1;
        if !answers.is_empty() {
            turn.bytes += answers.iter().map(|one| one.answer.bytes).sum::<usize>();
            turn.connections
                .push((Arc::clone(connection), answers.len()));
            turn.answers.append(answers);
        }
        turn.reads >= MAX_READS || turn.bytes >= MAX_BYTES
    });
    if full {
        end();
    }
    true
}

/// Writes what this thread appended and gives the answers.
pub fn end() {
    let Some(mut turn) = TURN
        .try_with(|turn| {
            let mut turn = turn.borrow_mut();
            turn.broker.is_some().then(|| std::mem::take(&mut *turn))
        })
        .ok()
        .flatten()
    else {
        return;
    };
    // Nothing catches a panic around the hook; a worker must not be lost to one.
    if catch_unwind(AssertUnwindSafe(|| turn.run())).is_err() {
        tracing::error!("writing and answering a round of sends failed");
        turn = Turn::default();
    }
    TURN.set(turn);
}

impl Turn {
    fn run(&mut self) {
        (self.reads, self.bytes) = (0, 0);
        let Some(broker) = self.broker.take() else {
            return;
        };
        broker.store.drive();
        let mut round = Round::new(&broker);
        let mut answers = self.answers.drain(..);
        for (connection, count) in self.connections.drain(..) {
            self.out.clear();
            let these = answers.by_ref().take(count);
            round.answer(&connection, these, &mut self.out, &mut self.ids);
            if !self.out.is_empty() {
                connection.send_encoded(&self.out);
            }
        }
        round.end();
    }
}
