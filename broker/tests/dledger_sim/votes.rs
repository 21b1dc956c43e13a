//! Votes that were forgotten with a volume, message by message: too rare for chance.

use std::collections::VecDeque;
use std::sync::Arc;

use broker::dledger::core::{ELECTION_TICKS, Member, Role, Settings};
use broker::dledger::entry::{Conf, Standing};
use broker::dledger::gate::Gate;
use broker::dledger::message::{PeerMessage, Type};

use crate::measure::{Descriptors, Nowhere};

type One = Member<Descriptors, Nowhere>;

struct Group {
    members: Vec<One>,
    /// On their way.
    messages: VecDeque<PeerMessage>,
}

fn member(id: u64, of: u64, life: u64) -> One {
    let settings = Settings {
        id,
        conf: Conf::of_voters((1..=of).map(|id| (id, format!("n{id}:1")))),
        preferred: None,
        unclean: false,
        tables: 0,
        now_ms: life,
        seed: 11,
    };
    let gate = Arc::new(Gate::new(u64::MAX / 2));
    Member::new(settings, None, Descriptors::default(), Nowhere, gate).unwrap()
}

impl Group {
    fn new(of: u64) -> Self {
        Self {
            members: (1..=of).map(|id| member(id, of, 1)).collect(),
            messages: VecDeque::new(),
        }
    }

    fn at(&mut self, id: u64) -> &mut One {
        &mut self.members[id as usize - 1]
    }

    fn tick(&mut self, id: u64, times: usize) {
        for _ in 0..times {
            self.at(id).tick().unwrap();
        }
        let out = self.at(id).take_output();
        self.messages.extend(out.messages);
    }

    fn step(&mut self, m: PeerMessage) {
        let to = m.to;
        let frames = vec![0; m.frames_len() as usize];
        self.at(to).step(m, &frames).unwrap();
        let out = self.at(to).take_output();
        self.messages.extend(out.messages);
    }

    /// Delivers what passes, until nothing does; the rest stays on its way.
    fn deliver(&mut self, passes: impl Fn(&PeerMessage) -> bool) {
        let mut kept = VecDeque::new();
        while let Some(m) = self.messages.pop_front() {
            if passes(&m) {
                self.step(m);
            } else {
                kept.push_back(m);
            }
        }
        self.messages = kept;
    }

    /// All hear of each other until one leads and everybody's word counts.
    fn settle(&mut self) -> u64 {
        for _ in 0..500 {
            for id in 1..=self.members.len() as u64 {
                self.tick(id, 1);
            }
            self.deliver(|_| true);
            let sound = |m: &One| m.hard_state().standing == Standing::Sound;
            let leads = |m: &One| m.role().role == Role::Leading;
            if self.members.iter().all(sound)
                && let Some(leader) = self.members.iter().position(leads)
            {
                return leader as u64 + 1;
            }
        }
        panic!("nobody leads");
    }

    fn elected(&mut self, id: u64) -> Option<u64> {
        let role = self.at(id).role();
        matches!(role.role, Role::Elected | Role::Leading).then_some(role.term)
    }
}

/// A candidate holds the vote of a member that then loses its volume and joins the leader of the term before. Were it to
/// vote again in the candidate's term, that term could have two leaders.
#[test]
fn a_vote_that_was_lost_with_its_volume_is_not_given_twice() {
    let mut group = Group::new(5);
    let leader = group.settle();
    let term = group.at(leader).role().term;
    let rest: Vec<u64> = (1..=5).filter(|&id| id != leader).collect();
    let [early, forgetful, x, late] = rest[..] else {
        panic!()
    };
    // Nothing is heard of the leader for a while.
    group.messages.clear();
    for id in [forgetful, x, late] {
        group.tick(id, ELECTION_TICKS);
    }
    group.messages.clear();
    group.tick(early, 2 * ELECTION_TICKS - 1);
    let among = |m: &PeerMessage, ids: &[u64]| ids.contains(&m.from) && ids.contains(&m.to);
    group.deliver(|m| {
        let pre = matches!(m.kind, Type::PreVote | Type::PreVoteResponse);
        pre && among(m, &[early, forgetful, x])
    });
    let question = group
        .messages
        .iter()
        .find(|m| m.kind == Type::Vote && m.to == x)
        .cloned()
        .expect("a candidate asks for votes");
    assert_eq!(question.term, term + 1);
    group.deliver(|m| among(m, &[early, forgetful]));
    assert_eq!(group.at(forgetful).hard_state().vote, early);
    group.messages.clear();

    // It loses its volume; the leader was only slow, and it joins it again.
    *group.at(forgetful) = member(forgetful, 5, 2);
    let connected = [leader, forgetful, x, late];
    for _ in 0..60 {
        group.tick(leader, 1);
        group.tick(forgetful, 1);
        group.deliver(|m| among(m, &connected));
        group.messages.clear();
    }
    assert_eq!(group.at(leader).role().term, term);
    assert_eq!(group.at(forgetful).hard_state().standing, Standing::Sound);

    // The leader is gone; the old question arrives, and another candidate asks too.
    group.tick(x, ELECTION_TICKS);
    group.messages.clear();
    group.step(question);
    group.deliver(|m| among(m, &[early, x]));
    group.messages.clear();
    group.tick(forgetful, ELECTION_TICKS);
    // A leader needs two looks to see that it hears of nobody.
    group.tick(leader, 2 * ELECTION_TICKS);
    group.messages.clear();
    group.tick(late, 2 * ELECTION_TICKS - 1);
    group.deliver(|m| among(m, &[late, forgetful, leader]));
    let first = group.elected(early);
    let second = group.elected(late);
    assert!(second.is_some(), "the others go on");
    assert_ne!(first, second, "two leaders in one term");
}

/// An old question may be older than a vote that was forgotten.
#[test]
fn an_empty_member_gives_no_vote_to_who_asked_its_earlier_life() {
    let mut group = Group::new(3);
    let leader = group.settle();
    let asked = leader % 3 + 1;
    group.messages.clear();
    *group.at(asked) = member(asked, 3, 2);
    let mut question = PeerMessage::new(Type::Vote, leader, asked);
    (question.term, question.index, question.log_term) = (9, 50, 8);
    question.session = 1;
    for (life, granted) in [(0, false), (1, false), (2, true)] {
        question.to_session = life;
        group.step(question.clone());
        let answer = group.messages.pop_back();
        let given = answer.is_some_and(|m| m.kind == Type::VoteResponse && !m.reject && m.unsure);
        assert_eq!(given, granted, "asked in life {life}");
    }
}
