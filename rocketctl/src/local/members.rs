//! Who belongs to an elected group: its leader is asked for one change at a time, until the members are those of the manifest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use operator_core::plan::MemberChange;
use remoting::admin::Admin;
use remoting::protocol::body::{DLedgerMember, DLedgerState, DLedgerStatus};

use super::plan::Pod;
use super::standing::admin;

/// Between two looks at a group that is not as asked.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What is to be done about a group.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Nothing,
    Wait(String),
    Ask(MemberChange),
}

/// Waits until the members of a group are those wanted, `host:port` by id, and all of them vote. `pods` are those that run, `tell` is told what is waited for.
pub(crate) async fn settle(
    pods: &[Arc<Pod>],
    wanted: &BTreeMap<String, String>,
    mut tell: impl FnMut(&str),
) {
    let admin = admin("");
    loop {
        let waits = match leader(&admin, pods).await {
            None => "the group has no leader".to_owned(),
            Some((leader, status)) => match next(&status, wanted) {
                Next::Nothing => return,
                Next::Wait(why) => why,
                Next::Ask(change) => match ask(&admin, &leader, &change).await {
                    Ok(()) => format!("{leader} {change}"),
                    Err(e) => format!("{leader} has not done it yet ({change}): {e}"),
                },
            },
        };
        tell(&waits);
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The address of the leader, and what it says; of two who believe that they lead the one of the later election.
async fn leader(admin: &Admin, pods: &[Arc<Pod>]) -> Option<(String, DLedgerStatus)> {
    let asked = pods.iter().map(async |pod| {
        let address = pod.address.to_string();
        let status = admin.dledger_status(&address).await.ok()?;
        (status.state == DLedgerState::Leader).then_some((address, status))
    });
    let leaders = join_all(asked).await.into_iter().flatten();
    leaders.max_by_key(|(_, status)| status.term)
}

async fn ask(admin: &Admin, leader: &str, change: &MemberChange) -> remoting::admin::Result<()> {
    match change {
        MemberChange::Transfer { to } => admin.dledger_transfer_leadership(leader, Some(to)).await,
        MemberChange::Add { id, address } => admin.dledger_add_member(leader, id, address).await,
        MemberChange::Remove { id } => admin.dledger_remove_member(leader, id).await,
    }
}

fn counts(member: &DLedgerMember) -> bool {
    member.voter && member.recently_active && member.sure
}

/// One step towards the members wanted, as the leader's word stands: a group grows only while it is whole, and nobody goes whom its majority needs.
fn next(status: &DLedgerStatus, wanted: &BTreeMap<String, String>) -> Next {
    let members = &status.members;
    let is_wanted = |member: &&DLedgerMember| wanted.contains_key(&member.id);
    if let Some(learner) = members.iter().filter(is_wanted).find(|m| !m.voter) {
        return Next::Wait(format!("{} copies the log", learner.id));
    }
    let missing = wanted
        .iter()
        .find(|(id, _)| members.iter().all(|m| m.id != **id));
    if let Some((id, address)) = missing {
        return match members.iter().find(|m| !counts(m)) {
            Some(away) => Next::Wait(format!("{id} joins when {} has caught up", away.id)),
            None => Next::Ask(MemberChange::Add {
                id: id.clone(),
                address: address.clone(),
            }),
        };
    }
    let Some(goes) = members.iter().rfind(|m| !is_wanted(m)) else {
        return Next::Nothing;
    };
    let others = || members.iter().filter(|m| m.id != goes.id);
    let voters = others().filter(|m| m.voter).count();
    let (left, needed) = (others().filter(|m| counts(m)).count(), voters / 2 + 1);
    if left < needed {
        return Next::Wait(format!(
            "{} is not removed: {left} of the {voters} other members are up and caught up, and {needed} are needed",
            goes.id
        ));
    }
    if goes.id != status.leader_id {
        return Next::Ask(MemberChange::Remove {
            id: goes.id.clone(),
        });
    }
    match members.iter().filter(is_wanted).find(|m| counts(m)) {
        Some(heir) => Next::Ask(MemberChange::Transfer {
            to: heir.id.clone(),
        }),
        None => Next::Wait(format!("nobody can take over from {}", goes.id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(leader: &str, members: &[&str]) -> DLedgerStatus {
        DLedgerStatus {
            leader_id: leader.to_owned(),
            members: members
                .iter()
                .map(|id| DLedgerMember {
                    id: (*id).to_owned(),
                    voter: true,
                    recently_active: true,
                    sure: true,
                    ..DLedgerMember::default()
                })
                .collect(),
            ..DLedgerStatus::default()
        }
    }

    fn wanted(ids: &[&str]) -> BTreeMap<String, String> {
        ids.iter()
            .map(|id| ((*id).to_owned(), format!("{id}-host:40911")))
            .collect()
    }

    const THREE: [&str; 3] = ["n0", "n1", "n2"];
    const FIVE: [&str; 5] = ["n0", "n1", "n2", "n3", "n4"];

    #[test]
    fn members_join_one_by_one_and_only_a_whole_group_grows() {
        let add = |id: &str| {
            Next::Ask(MemberChange::Add {
                id: id.to_owned(),
                address: format!("{id}-host:40911"),
            })
        };
        assert_eq!(next(&status("n1", &THREE), &wanted(&FIVE)), add("n3"));
        let mut four = status("n1", &FIVE[..4]);
        assert_eq!(next(&four, &wanted(&FIVE)), add("n4"));
        four.members[3].voter = false;
        assert_eq!(
            next(&four, &wanted(&FIVE)),
            Next::Wait("n3 copies the log".to_owned())
        );
        let mut short = status("n1", &THREE);
        short.members[2].recently_active = false;
        assert_eq!(
            next(&short, &wanted(&FIVE)),
            Next::Wait("n3 joins when n2 has caught up".to_owned())
        );
        assert_eq!(next(&status("n1", &FIVE), &wanted(&FIVE)), Next::Nothing);
    }

    #[test]
    fn members_go_from_the_top_after_they_handed_over_and_never_against_the_majority() {
        let remove = Next::Ask(MemberChange::Remove {
            id: "n4".to_owned(),
        });
        assert_eq!(next(&status("n3", &FIVE), &wanted(&THREE)), remove);
        let mut leads = status("n4", &FIVE);
        leads.members[0].sure = false;
        let transfer = Next::Ask(MemberChange::Transfer {
            to: "n1".to_owned(),
        });
        assert_eq!(next(&leads, &wanted(&THREE)), transfer);
        let mut short = status("n0", &FIVE);
        for member in &mut short.members[2..4] {
            member.recently_active = false;
        }
        assert_eq!(
            next(&short, &wanted(&THREE)),
            Next::Wait("n4 is not removed: 2 of the 4 other members are up and caught up, and 3 are needed".to_owned())
        );
    }
}
