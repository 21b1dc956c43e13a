//! Published faults of Raft libraries, and promises of ours, each by its name.

use broker::dledger::core::{Refused, Role};
use broker::dledger::entry::{Change, EntryLog, Standing};

use crate::world::{Plan, World};

pub(crate) fn group(voters: u64, sync: bool) -> (World, u64) {
    let mut world = World::new(Plan::quiet(voters, sync), false);
    let leads = |w: &World| w.leader().is_some() && w.all_sound() && w.acknowledged.len() > 10;
    assert!(world.until(10_000, leads), "no leader");
    let leader = world.leader().unwrap();
    (world, leader)
}

pub(crate) fn others(world: &World, leader: u64) -> Vec<u64> {
    world
        .nodes
        .keys()
        .copied()
        .filter(|&id| id != leader)
        .collect()
}

#[test]
fn a_new_group_elects_a_leader_and_takes_records() {
    for voters in [1, 2, 3, 5] {
        let (mut world, _) = group(voters, true);
        world.heal();
    }
}

/// openraft 0.9 draws its election time-out once a process: two survivors that drew alike tie for ever.
#[test]
fn two_survivors_never_tie_for_ever() {
    for seed in 0..40 {
        let mut plan = Plan::quiet(3, true);
        plan.seed = seed;
        plan.max_delay = 60;
        let mut world = World::new(plan, false);
        assert!(world.until(20_000, |w| w.leader().is_some()));
        world.for_ms(2_000);
        let leader = world.leader().unwrap();
        world.kill(leader);
        assert!(world.until(6_000, |w| w.leader().is_some()), "seed {seed}");
    }
}

/// openraft 0.10 alpha (2118): a new leader's tail counted as flushed while its append was in flight.
#[test]
fn an_unflushed_tail_does_not_count_as_flushed() {
    let (mut world, leader) = group(3, true);
    world.resting = true;
    world.for_ms(200);
    for id in others(&world, leader) {
        world.stall_disk(id, 2_000);
    }
    let before = world.acknowledged.len();
    assert!(world.send_to(leader));
    world.on(leader, |m| m.pump());
    world.for_ms(400);
    let has = |w: &World, id: u64| w.nodes[&id].disk.borrow().adopted;
    for id in others(&world, leader) {
        assert_eq!(has(&world, id), has(&world, leader), "the record came");
    }
    assert_eq!(world.acknowledged.len(), before, "only one disk has it");
    assert!(world.until(4_000, |w| w.acknowledged.len() == before + 1));
}

#[test]
fn the_leader_is_not_needed_among_those_whose_disk_has_a_record() {
    let (mut world, leader) = group(3, true);
    world.resting = true;
    world.for_ms(200);
    world.stall_disk(leader, 3_000);
    let before = world.acknowledged.len();
    assert!(world.send_to(leader));
    world.on(leader, |m| m.pump());
    assert!(world.until(1_000, |w| w.acknowledged.len() == before + 1));
    let disk = world.nodes[&leader].disk.borrow();
    assert!(disk.flushed < disk.adopted);
}

/// openraft 0.10.0-alpha.2: a raised vote counted as a granted one; the old leader went on, and data was lost.
#[test]
fn a_leader_that_was_cut_off_is_not_followed_and_what_it_took_is_cut() {
    let (mut world, old) = group(3, true);
    world.resting = true;
    world.for_ms(200);
    world.isolate(old);
    let before = world.acknowledged.len();
    for _ in 0..5 {
        assert!(world.send_to(old));
    }
    world.on(old, |m| m.pump());
    let other = move |w: &World| w.leader().is_some_and(|now| now != old);
    assert!(world.until(5_000, other));
    assert_eq!(world.acknowledged.len(), before);
    world.reconnect();
    world.heal();
    let status = world.member(old).status();
    assert_eq!(status.role.role, Role::Following);
}

/// raft-rs keeps in `unstable` what is not written (tikv 19593 saw 20 GB); ours hands it on at once.
#[test]
fn a_disk_that_stalls_leaves_nothing_in_the_librarys_memory() {
    let (mut world, leader) = group(3, true);
    world.resting = true;
    for id in 1..=3 {
        world.stall_disk(id, 5_000);
    }
    let mut taken = 0;
    while world.send_to(leader) {
        taken += 1;
        world.on(leader, |m| m.pump());
        assert_eq!(world.member(leader).unstable(), 0);
    }
    assert!(
        taken > 100,
        "the gate says when it is enough, after {taken}"
    );
    world.heal();
}

/// raft-rs looks through everything that is not applied when it stands for election (tikv 15770).
#[test]
fn an_election_does_not_read_the_log_again() {
    let (mut world, leader) = group(3, true);
    world.fill_segments(leader, 20);
    world.resting = true;
    world.for_ms(500);
    world.kill(leader);
    let looked = |w: &World, id: u64| w.nodes[&id].disk.borrow().looked.get();
    let survivors = others(&world, leader);
    let before: Vec<u64> = survivors.iter().map(|&id| looked(&world, id)).collect();
    assert!(world.until(5_000, |w| w.leader().is_some()));
    for (&id, before) in survivors.iter().zip(before) {
        let cost = looked(&world, id) - before;
        assert!(
            cost < 100,
            "n{id} looked up {cost} of {} entries",
            world.nodes[&id].disk.borrow().adopted
        );
    }
}

#[test]
fn a_stopped_leaders_late_writes_are_refused() {
    let (mut world, old) = group(3, true);
    world.resting = true;
    world.for_ms(200);
    world.freeze(old, 3_000);
    assert!(world.until(2_900, move |w| w.leader().is_some_and(|now| now != old)));
    let before = world.acknowledged.len();
    // It wakes, and a sender is quicker than its first tick.
    for _ in 0..3 {
        world.send_to(old);
    }
    world.for_ms(3_000);
    assert_eq!(world.acknowledged.len(), before);
    let role = world.member(old).status().role.role;
    assert_eq!(role, Role::Following);
    assert!(!world.send_to(old), "its gate is closed");
    world.heal();
}

#[test]
fn an_empty_volume_rejoins_and_its_word_counts_only_once_it_has_caught_up() {
    let (mut world, leader) = group(3, true);
    world.fill_segments(leader, 6);
    for id in 1..=3 {
        world.compact(id);
    }
    assert!(world.nodes[&leader].disk.borrow().base.index > 0);
    let lost = others(&world, leader)[0];
    let third = others(&world, leader)[1];
    world.resting = true;
    world.for_ms(300);
    world.empty(lost);
    world.isolate(lost);
    world.start(lost);
    // Without the leader, the two that are left are a quorum by number only.
    world.kill(leader);
    world.reconnect();
    world.for_ms(5_000);
    assert_eq!(world.leader(), None, "one of two has nothing");
    assert_eq!(world.member(lost).hard_state().standing, Standing::Blank);
    world.start(leader);
    assert!(world.until(10_000, move |w| {
        let member = w.nodes[&lost].member.as_ref().unwrap();
        member.hard_state().standing == Standing::Sound
    }));
    assert_eq!(
        world.nodes[&lost].disk.borrow().base.index,
        world.nodes[&third].disk.borrow().base.index
    );
    // Now it is one of a quorum.
    world.kill(third);
    world.resting = false;
    let before = world.acknowledged.len();
    assert!(world.until(10_000, |w| w.acknowledged.len() > before + 5));
    world.heal();
}

#[test]
fn a_machine_that_went_down_under_async_flush_does_not_vote_until_it_has_caught_up() {
    let (mut world, leader) = group(3, false);
    let [lost, third] = others(&world, leader)[..] else {
        panic!()
    };
    // The third has nothing of what comes now; the first two acknowledge it from their page caches.
    world.isolate(third);
    for id in [leader, lost] {
        let mut disk = world.nodes[&id].disk.borrow_mut();
        disk.flushed = disk.written.min(1);
        drop(disk);
        world.stall_disk(id, 0);
    }
    let before = world.acknowledged.len();
    world.fill_segments(leader, 1);
    assert!(world.acknowledged.len() > before);
    world.resting = true;
    world.for_ms(100);
    world.isolate(lost);
    world.power_cut(lost);
    world.nodes[&lost].disk.borrow_mut().crash(3);
    world.start(lost);
    assert_eq!(world.member(lost).hard_state().standing, Standing::Behind);
    // The leader's process is gone too, for a while. Whoever voted for the third now would lose records.
    world.kill(leader);
    world.reconnect();
    world.for_ms(5_000);
    assert_eq!(world.leader(), None);
    world.start(leader);
    world.heal();
    assert_eq!(world.member(lost).hard_state().standing, Standing::Sound);
}

#[test]
fn a_group_that_lost_power_as_a_whole_under_async_flush_is_led_by_who_has_most() {
    let (mut world, _) = group(3, false);
    world.resting = true;
    world.for_ms(300);
    world.acknowledged.clear();
    for id in 1..=3 {
        world.power_cut(id);
    }
    let most = (1..=3)
        .map(|id| world.nodes[&id].disk.borrow().adopted)
        .max()
        .unwrap();
    for id in 1..=2 {
        world.start(id);
    }
    world.for_ms(5_000);
    assert_eq!(
        world.leader(),
        None,
        "the third may have more than these two"
    );
    world.start(3);
    assert!(world.until(10_000, |w| w.leader().is_some()));
    let leader = world.leader().unwrap();
    assert!(world.nodes[&leader].disk.borrow().adopted >= most);
    world.heal();
}

#[test]
fn a_follower_behind_the_logs_beginning_begins_there() {
    let (mut world, leader) = group(3, true);
    let late = others(&world, leader)[0];
    world.kill(late);
    world.fill_segments(leader, 6);
    world.compact(leader);
    let base = world.nodes[&leader].disk.borrow().base;
    assert!(base.index > world.nodes[&late].disk.borrow().adopted);
    world.start(late);
    world.heal();
    assert_eq!(world.nodes[&late].disk.borrow().base, base);
}

#[test]
fn a_group_grows_to_five_and_shrinks_to_three_one_step_at_a_time() {
    let (mut world, leader) = group(3, true);
    world.fill_segments(leader, 4);
    world.compact(leader);
    let whole = |w: &World, voters: usize| {
        w.leader().is_some_and(|l| {
            let status = w.nodes[&l].member.as_ref().unwrap().status();
            status.conf.voters.len() == voters && status.conf.learners.is_empty()
        })
    };
    for id in [4, 5] {
        let add = Change::AddLearner {
            id,
            address: format!("n{id}:1"),
        };
        assert!(world.member(leader).propose(add.clone()).unwrap().is_ok());
        assert_eq!(
            world.member(leader).propose(add).unwrap(),
            Err(Refused::Busy)
        );
        world.on(leader, |m| m.pump());
        world.start(id);
        let promoted = |w: &mut World| {
            let done = w
                .member(leader)
                .propose(Change::Promote { id })
                .unwrap()
                .is_ok();
            w.on(leader, |m| m.pump());
            done
        };
        // Refused while it copies and while its word does not count.
        assert!(!promoted(&mut world));
        let tries = 200;
        assert!((0..tries).any(|_| {
            world.for_ms(50);
            promoted(&mut world)
        }));
        assert!(world.until(2_000, |w| whole(w, id as usize)));
    }
    for id in others(&world, leader)
        .into_iter()
        .filter(|&id| id != 5)
        .take(2)
    {
        let tries = 200;
        assert!((0..tries).any(|_| {
            world.for_ms(50);
            let done = world
                .member(leader)
                .propose(Change::Remove { id })
                .unwrap()
                .is_ok();
            world.on(leader, |m| m.pump());
            done
        }));
        world.for_ms(500);
        world.kill(id);
    }
    assert!(world.until(2_000, |w| whole(w, 3)));
    world.heal();
    assert_eq!(
        world
            .member(leader)
            .propose(Change::Remove { id: leader })
            .unwrap(),
        Err(Refused::Member(leader))
    );
}

#[test]
fn a_removal_that_would_leave_no_quorum_is_refused_with_its_numbers() {
    let (mut world, leader) = group(3, true);
    let [dead, alive] = others(&world, leader)[..] else {
        panic!()
    };
    world.kill(dead);
    world.for_ms(1_500);
    let refused = world
        .member(leader)
        .propose(Change::Remove { id: alive })
        .unwrap();
    assert_eq!(
        refused,
        Err(Refused::Quorum {
            active: 1,
            voters: 2
        })
    );
}

#[test]
fn a_planned_hand_over_leaves_no_record_in_doubt() {
    let (mut world, leader) = group(3, true);
    world.for_ms(500);
    let doubtful = world.count.doubtful;
    let to = world.member(leader).successor().unwrap();
    let begin = world.now;
    assert_eq!(world.member(leader).transfer(to), Ok(()));
    assert!(!world.send_to(leader));
    world.on(leader, |m| m.pump());
    assert!(world.until(1_000, move |w| w.leader() == Some(to)));
    assert!(world.now - begin <= 200, "took {} ms", world.now - begin);
    assert_eq!(world.count.doubtful, doubtful);
    world.heal();
}

#[test]
fn a_hand_over_to_who_does_not_answer_is_given_up() {
    let (mut world, leader) = group(3, true);
    let to = others(&world, leader)[0];
    // As soon as the leader has heard that it is ready.
    assert!((0..100).any(|_| {
        world.for_ms(20);
        world.member(leader).transfer(to).is_ok()
    }));
    world.isolate(to);
    world.on(leader, |m| m.pump());
    let before = world.acknowledged.len();
    assert!(world.until(3_000, |w| w.acknowledged.len() > before + 3));
    assert_eq!(world.leader(), Some(leader));
}

#[test]
fn the_preferred_member_takes_the_leadership_back_when_it_has_caught_up() {
    let mut plan = Plan::quiet(3, true);
    plan.preferred = Some(2);
    let mut world = World::new(plan, false);
    assert!(world.until(5_000, |w| w.leader() == Some(2) && w.all_sound()));
    world.kill(2);
    assert!(world.until(5_000, |w| w.leader().is_some()));
    world.for_ms(500);
    world.start(2);
    assert!(world.until(30_000, |w| w.leader() == Some(2)));
    world.heal();
}

/// With the library's priorities a preferred member refused a shorter log that was newer, and nobody was elected.
#[test]
fn a_preferred_member_does_not_stand_in_the_way_of_a_newer_log() {
    let mut plan = Plan::quiet(3, true);
    plan.preferred = Some(1);
    let mut world = World::new(plan, false);
    assert!(world.until(30_000, |w| w.leader() == Some(1) && w.all_sound()));
    // It takes records that nobody else has; the others elect one of themselves.
    world.isolate(1);
    for _ in 0..40 {
        world.send_to(1);
    }
    world.on(1, |m| m.pump());
    assert!(world.until(5_000, |w| w.leader().is_some_and(|l| l != 1)));
    world.resting = true;
    let newer = world.leader().unwrap();
    let third = 5 - newer;
    world.kill(third);
    world.kill(newer);
    world.start(newer);
    assert!(world.member(1).log().last_index() > world.member(newer).log().last_index());
    world.reconnect();
    assert!(world.until(5_000, |w| w.leader().is_some()));
    world.start(third);
    world.heal();
}

#[test]
fn who_loses_the_leaders_connection_asks_for_an_election_at_once() {
    let (mut world, leader) = group(3, true);
    world.resting = true;
    world.for_ms(200);
    world.kill(leader);
    let begin = world.now;
    for id in others(&world, leader) {
        world.member(id).peer_lost(leader);
    }
    assert!(world.until(2_000, |w| w.leader().is_some()));
    assert!(world.now - begin <= 400, "took {} ms", world.now - begin);
}

/// A member with an empty volume does not know where the log begins, and refuses what comes before it was told.
#[test]
fn where_to_begin_is_told_again_when_it_was_lost() {
    let (mut world, leader) = group(3, true);
    world.fill_segments(leader, 6);
    world.compact(leader);
    let late = others(&world, leader)[0];
    world.empty(late);
    world.plan.loss = 700;
    world.start(late);
    world.for_ms(3_000);
    world.heal();
}

/// Its earlier life began, by its clock, later than this one; those who heard of that one did not listen to a leader any more.
#[test]
fn a_member_whose_volume_was_lost_and_whose_clock_went_back_is_listened_to() {
    let mut plan = Plan::quiet(3, true);
    plan.preferred = Some(1);
    let mut world = World::new(plan, false);
    world.now = 1_000_000;
    assert!(world.until(10_000, |w| w.leader() == Some(1) && w.all_sound()));
    world.kill(1);
    world.start(1);
    assert!(world.until(30_000, |w| w.leader() == Some(1)));
    world.empty(1);
    world.late = 500_000;
    world.start(1);
    assert!(world.until(30_000, |w| w.leader() == Some(1)));
    world.heal();
}
