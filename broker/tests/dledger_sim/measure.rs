//! What the core costs by itself: no socket, no disk, no bytes of messages.

use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::dledger::core::{Member, Role, Settings};
use broker::dledger::entry::{Base, Conf, Descriptor, EntryLog, HardState, Kind, StateFile};
use broker::dledger::gate::Gate;
use rustix::time::{ClockId, clock_gettime};

const FRAME: u32 = 1200;
const SECONDS: f64 = 2.0;

/// Descriptors in memory, persisted as soon as they are there.
#[derive(Default)]
pub(crate) struct Descriptors(Vec<Descriptor>);

impl Descriptors {
    fn end(&self) -> u64 {
        self.0.last().map_or(0, Descriptor::end)
    }
}

impl EntryLog for Descriptors {
    fn base(&self) -> Base {
        Base::default()
    }

    fn last_index(&self) -> u64 {
        self.0.len() as u64
    }

    fn term(&self, index: u64) -> Option<u64> {
        match index {
            0 => Some(0),
            _ => self.entry(index).map(|d| d.term),
        }
    }

    fn entry(&self, index: u64) -> Option<Descriptor> {
        self.0.get(index.checked_sub(1)? as usize).copied()
    }

    fn read(&self, _: &Descriptor, _: &mut Vec<u8>) -> std::io::Result<()> {
        Ok(())
    }

    fn payload(&self, _: &Descriptor) -> std::io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn verify(&self, _: &Descriptor, _: &[u8]) -> bool {
        true
    }

    fn has_room(&mut self, _bytes: u64) -> bool {
        true
    }

    fn append(&mut self, entry: &Descriptor, _: &[u8]) -> std::io::Result<()> {
        self.0.push(*entry);
        Ok(())
    }

    fn append_own(
        &mut self,
        index: u64,
        term: u64,
        kind: Kind,
        payload: &[u8],
    ) -> std::io::Result<Descriptor> {
        let d = Descriptor {
            index,
            term,
            position: self.end(),
            len: 48 + payload.len() as u32,
            kind,
        };
        self.0.push(d);
        Ok(d)
    }

    fn adopt(&mut self, entry: &Descriptor) -> std::io::Result<()> {
        self.0.push(*entry);
        Ok(())
    }

    fn truncate_from(&mut self, index: u64) -> std::io::Result<()> {
        self.0.truncate(index as usize - 1);
        Ok(())
    }

    fn reset(&mut self, _: Base) -> std::io::Result<()> {
        self.0.clear();
        Ok(())
    }

    fn persisted(&self) -> u64 {
        self.last_index()
    }
}

/// Time of this thread on a processor, whatever else runs on the machine.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

pub(crate) struct Nowhere;

impl StateFile for Nowhere {
    fn save(&mut self, _: &HardState) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
#[ignore = "a measurement: cargo test --release -p broker --test dledger_sim -- --ignored --nocapture core"]
fn what_the_core_costs_an_entry() {
    for batch in [1, 4, 16, 64, 256] {
        let conf = Conf::of_voters((1..=3).map(|id| (id, format!("n{id}:1"))));
        let gates: Vec<Arc<Gate>> = (0..3).map(|_| Arc::new(Gate::new(u64::MAX / 2))).collect();
        let mut members: Vec<Member<Descriptors, Nowhere>> = (1..=3)
            .map(|id| {
                let settings = Settings {
                    id,
                    conf: conf.clone(),
                    preferred: None,
                    unclean: false,
                    tables: 0,
                    now_ms: 1,
                    seed: 7,
                };
                let gate = Arc::clone(&gates[id as usize - 1]);
                Member::new(settings, None, Descriptors::default(), Nowhere, gate).unwrap()
            })
            .collect();
        // Only what the leader spends: the followers are driven outside the watch.
        let mut lead = Duration::ZERO;
        let mut messages = 0_u64;
        let frames = vec![0; 64 * 1024 * 1024];
        let deliver = |members: &mut Vec<Member<Descriptors, Nowhere>>,
                       lead: &mut Duration,
                       messages: &mut u64| {
            loop {
                let mut quiet = true;
                for at in 0..3 {
                    for m in members[at].take_output().messages {
                        quiet = false;
                        *messages += 1;
                        let to = m.to as usize - 1;
                        let len = m.frames_len() as usize;
                        let begin = cpu();
                        let leads = members[to].role().role == Role::Leading;
                        members[to].step(m, &frames[..len]).unwrap();
                        if leads {
                            *lead += cpu() - begin;
                        }
                    }
                }
                if quiet {
                    break;
                }
            }
        };
        let leader = loop {
            for m in &mut members {
                m.tick().unwrap();
            }
            deliver(&mut members, &mut lead, &mut messages);
            if let Some(at) = members.iter().position(|m| m.role().role == Role::Leading) {
                break at;
            }
        };
        (lead, messages) = Default::default();
        let mut position = members[leader].log().end();
        let (begin, used, mut entries) = (Instant::now(), cpu(), 0_u64);
        while begin.elapsed().as_secs_f64() < SECONDS {
            let own = cpu();
            for _ in 0..batch {
                gates[leader].stamp(Kind::Records, position, FRAME).unwrap();
                position += u64::from(FRAME);
            }
            members[leader].pump().unwrap();
            lead += cpu() - own;
            entries += batch;
            deliver(&mut members, &mut lead, &mut messages);
        }
        let used = cpu() - used;
        let committed = members[leader].status().committed;
        assert_eq!(committed, members[leader].log().last_index());
        println!(
            "{batch:>4} frames a turn: {:>5.0} ns of CPU an entry for all three members, {:>5.0} ns of it the leader's, {:.2} messages",
            used.as_nanos() as f64 / entries as f64,
            lead.as_nanos() as f64 / entries as f64,
            messages as f64 / entries as f64,
        );
    }
}
