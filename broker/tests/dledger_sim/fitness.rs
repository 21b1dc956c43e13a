//! Members that must not lead: no room, a disk that does not answer, about to stop.

use broker::dledger::core::{Refused, Role, STALL_TICKS, TICK_MS, Unfit};
use broker::dledger::entry::Change;
use broker::dledger::message::Type;

use crate::cases::{group, others};
use crate::world::{Node, Plan, World};

const STALLED: u64 = STALL_TICKS * TICK_MS;

/// A group of three in which this member leads, as it is wished.
fn led_by(preferred: u64) -> World {
    let mut plan = Plan::quiet(3, true);
    plan.preferred = Some(preferred);
    let mut world = World::new(plan, false);
    assert!(world.until(30_000, |w| {
        w.leader() == Some(preferred) && w.all_sound()
    }));
    let taken = world.acknowledged.len();
    assert!(world.until(1_000, |w| w.acknowledged.len() > taken + 5));
    world
}

/// Who was elected, but cannot commit anything yet.
fn elected(world: &World) -> Option<u64> {
    let is = |n: &Node| n.member.is_some() && n.role.is_some_and(|r| r.role == Role::Elected);
    world.nodes.iter().find(|(_, n)| is(n)).map(|(&id, _)| id)
}

/// Nobody but `who` leads for so long.
fn never_leads(world: &mut World, who: u64, ms: u64) {
    let end = world.now + ms;
    while world.now < end {
        let left = end - world.now;
        let led = world.until(left.min(100), |w| w.leader() == Some(who));
        assert!(!led, "n{who} leads");
    }
}

#[test]
fn a_leader_without_room_hands_over_and_gets_the_leadership_back_with_the_room() {
    let mut world = led_by(2);
    world.fill_disk(2, true);
    let began = world.now;
    assert!(world.until(2_000, |w| w.leader().is_some_and(|l| l != 2)));
    assert!(world.now - began < 500, "took {} ms", world.now - began);
    assert_eq!(world.member(2).unfit(), Some(Unfit::NoRoom));
    let taken = world.acknowledged.len();
    never_leads(&mut world, 2, 25_000);
    assert!(world.acknowledged.len() > taken + 100, "the others go on");
    world.fill_disk(2, false);
    assert!(world.until(30_000, |w| w.leader() == Some(2)));
    world.heal();
}

#[test]
fn a_member_without_room_is_asked_in_vain_and_leaves_the_election_to_the_others() {
    for seed in 0..10 {
        let mut plan = Plan::quiet(3, true);
        plan.seed = seed;
        let mut world = World::new(plan, false);
        assert!(world.until(10_000, |w| w.acknowledged.len() > 5));
        let leader = world.leader().unwrap();
        let [full, third] = others(&world, leader)[..] else {
            panic!()
        };
        world.resting = true;
        world.for_ms(300);
        world.fill_disk(full, true);
        world.for_ms(300);
        assert_eq!(
            world.member(leader).transfer(full),
            Err(Refused::Unfit(full))
        );
        assert_eq!(world.member(leader).successor(), Some(third));
        world.kill(leader);
        // With one of two disks full nothing can be committed, but it is known where to look.
        let first = world
            .until(3_000, |w| elected(w).is_some())
            .then(|| elected(&world));
        assert_eq!(first, Some(Some(third)), "seed {seed}");
        world.start(leader);
        world.heal();
    }
}

/// A leader that does not know it yet may ask a member that has just become unfit.
#[test]
fn a_hand_over_to_who_must_not_lead_is_not_taken() {
    let (mut world, leader) = group(3, true);
    world.resting = true;
    world.for_ms(300);
    let to = others(&world, leader)[0];
    world.swallowed = Box::new(move |m| m.from == to && m.kind == Type::HeartbeatResponse);
    world.on(to, |m| m.retire());
    assert_eq!(world.member(leader).transfer(to), Ok(()));
    world.on(leader, |m| m.pump());
    let term = world.member(leader).role().term;
    world.for_ms(900);
    assert_eq!(world.leader(), Some(leader));
    assert_eq!(world.member(leader).role().term, term);
}

#[test]
fn where_all_are_too_full_for_senders_one_leads_all_the_same() {
    let (mut world, leader) = group(3, true);
    for id in 1..=3 {
        world.crowd_disk(id, true);
    }
    world.for_ms(5_000);
    assert_eq!(world.leader(), Some(leader), "nobody else can do better");
    world.kill(leader);
    assert!(world.until(10_000, |w| w.leader().is_some()));
    world.start(leader);
    world.heal();
}

#[test]
fn where_nothing_can_be_written_nobody_is_elected_until_a_majority_has_room() {
    let (mut world, leader) = group(3, true);
    for id in 1..=3 {
        world.fill_disk(id, true);
    }
    world.for_ms(5_000);
    assert_eq!(world.leader(), Some(leader), "nobody else can do better");
    world.kill(leader);
    world.for_ms(5_000);
    let left = others(&world, leader);
    world.fill_disk(left[0], false);
    world.for_ms(5_000);
    assert_eq!(world.leader(), None);
    world.fill_disk(left[1], false);
    assert!(world.until(10_000, |w| w.leader().is_some()));
    world.start(leader);
    world.heal();
}

#[test]
fn a_leader_whose_disk_does_not_answer_hands_over_and_does_not_get_the_leadership_back() {
    let mut world = led_by(2);
    let began = world.now;
    world.stall_disk(2, 20_000);
    assert!(world.until(6_000, |w| w.leader().is_some_and(|l| l != 2)));
    let after = world.now - began;
    assert!((STALLED..STALLED + 500).contains(&after), "took {after} ms");
    assert_eq!(world.member(2).unfit(), Some(Unfit::Stalled));
    let taken = world.acknowledged.len();
    let left = 20_000 - after;
    never_leads(&mut world, 2, left);
    assert!(world.acknowledged.len() > taken + 100, "the others go on");
    assert!(world.until(30_000, |w| w.leader() == Some(2)));
    world.heal();
}

#[test]
fn a_disk_that_is_slow_costs_nobody_the_leadership() {
    let (mut world, leader) = group(3, true);
    let term = world.member(leader).role().term;
    for _ in 0..5 {
        world.stall_disk(leader, STALLED / 2);
        world.for_ms(STALLED);
    }
    assert_eq!(world.leader(), Some(leader));
    assert_eq!(world.member(leader).role().term, term);
    world.heal();
}

#[test]
fn a_follower_whose_disk_does_not_answer_holds_nobody_up() {
    let (mut world, leader) = group(3, true);
    let follower = others(&world, leader)[0];
    world.stall_disk(follower, 10_000);
    let taken = world.acknowledged.len();
    world.for_ms(5_000);
    assert!(world.acknowledged.len() > taken + 100);
    assert_eq!(world.leader(), Some(leader));
    let status = world.member(leader).status();
    let fit = |id: u64| status.members.iter().any(|m| m.id == id && m.fit);
    assert!(!fit(follower));
    assert_eq!(status.members.iter().filter(|m| m.fit).count(), 1);
    world.heal();
}

#[test]
fn a_preferred_leader_that_retires_is_not_offered_the_leadership_again() {
    let mut world = led_by(3);
    let doubtful = world.count.doubtful;
    world.on(3, |m| m.retire());
    assert!(world.until(500, |w| w.leader().is_some_and(|l| l != 3)));
    assert_eq!(world.count.doubtful, doubtful);
    never_leads(&mut world, 3, 15_000);
    // Nor when it is alone with one of them for an election.
    let leader = world.leader().unwrap();
    world.kill(leader);
    assert!(world.until(3_000, |w| w.leader().is_some()));
    assert_ne!(world.leader(), Some(3));
    world.start(leader);
    world.kill(3);
    world.start(3);
    assert!(world.until(30_000, |w| w.leader() == Some(3)));
    world.heal();
}

#[test]
fn who_retires_hands_over_as_soon_as_somebody_can_take_over() {
    let (mut world, leader) = group(3, true);
    let [one, other] = others(&world, leader)[..] else {
        panic!()
    };
    world.isolate(one);
    world.kill(other);
    world.on(leader, |m| m.retire());
    world.for_ms(500);
    assert_eq!(world.leader(), Some(leader));
    world.start(other);
    assert!(world.until(3_000, |w| w.leader() == Some(other)));
    world.reconnect();
    world.heal();
}

#[test]
fn a_leader_that_retires_goes_when_nobody_takes_what_it_hands_over() {
    let (mut world, leader) = group(3, true);
    world.swallowed = Box::new(|m| m.kind == Type::TimeoutNow);
    world.on(leader, |m| m.retire());
    let began = world.now;
    assert!(world.until(6_000, |w| w.leader().is_some_and(|l| l != leader)));
    assert!(world.now - began > 1_000, "it hands over first");
    world.heal();
}

#[test]
fn the_only_voter_leads_until_the_end() {
    let (mut world, leader) = group(1, true);
    world.on(leader, |m| m.retire());
    let taken = world.acknowledged.len();
    world.for_ms(5_000);
    assert_eq!(world.leader(), Some(leader));
    assert!(world.acknowledged.len() > taken);
}

/// What a follower acknowledged before it lost its tail counts no more: a record must not be committed on its word of
/// before.
#[test]
fn what_a_follower_acknowledged_before_it_lost_its_tail_does_not_count() {
    let (mut world, leader) = group(3, false);
    let [loses, third] = others(&world, leader)[..] else {
        panic!()
    };
    world.resting = true;
    // A change of the membership makes every member remember how far is committed.
    let add = Change::AddLearner {
        id: 4,
        address: "n4:1".into(),
    };
    for change in [add, Change::Remove { id: 4 }] {
        world.for_ms(500);
        assert!(world.member(leader).propose(change).unwrap().is_ok());
        world.on(leader, |m| m.pump());
    }
    world.for_ms(500);
    let before = world.acknowledged.len();
    let end = world.member(leader).status().committed;
    // The record comes to the disk of one follower, and to nobody else's.
    world.stall_disk(leader, 2_500);
    let record = end + 1;
    world.swallowed =
        Box::new(move |m| m.to == third && m.entries.iter().any(|e| e.index >= record));
    assert!(world.send_to(leader));
    world.on(leader, |m| m.pump());
    let acknowledged = move |w: &World| {
        let status = w.nodes[&leader].member.as_ref().unwrap().status();
        status
            .members
            .iter()
            .any(|m| m.id == loses && m.matched == record)
    };
    assert!(world.until(1_000, acknowledged));
    // That follower loses it, and comes back without it.
    world.swallowed = Box::new(move |m| m.entries.iter().any(|e| e.index >= record));
    world.power_cut(loses);
    world.nodes[&loses].disk.borrow_mut().crash(end);
    world.start(loses);
    world.for_ms(3_500);
    assert_eq!(world.leader(), Some(leader));
    let written = world.nodes[&leader].disk.borrow().written;
    assert!(written >= record, "the leader has it at last");
    assert_eq!(world.acknowledged.len(), before, "one of three has it");
    world.swallowed = Box::new(|_| false);
    assert!(world.until(2_000, |w| w.acknowledged.len() == before + 1));
    world.heal();
}
