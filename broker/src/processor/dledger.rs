//! Requests about the group that elects its own master: what it looks like, who leads, who belongs to it. Codes of our own.

use std::sync::Arc;

use remoting::protocol::header::{
    DLedgerAddMemberRequestHeader, DLedgerRemoveMemberRequestHeader,
    DLedgerTransferLeadershipRequestHeader,
};
use remoting::protocol::{RemotingCommand, response_code};

use super::answer::{Answer, Refused, ok, ok_json};
use crate::broker::Broker;
use crate::dledger::core::{self, Role};
use crate::dledger::entry::{Change, Conf};
use crate::dledger::service::{Group, id_of, name_of};

fn group(broker: &Broker) -> Result<&Group, Refused> {
    broker.group.get().ok_or_else(|| {
        Refused::new(
            response_code::REQUEST_CODE_NOT_SUPPORTED,
            "this broker is no member of a dledger group (enableDLegerCommitLog=false)",
        )
    })
}

fn member(name: &str) -> Result<u64, Refused> {
    id_of(name).ok_or_else(|| Refused::system_error(format!("{name} is no member's name: nK is")))
}

fn refused(group: &Group, why: &core::Refused) -> Refused {
    if *why != core::Refused::NotLeader {
        return Refused::system_error(why.to_string());
    }
    let leader = group.status().and_then(|s| s.role.leader);
    let leader = leader.map_or_else(|| "nobody".to_owned(), name_of);
    Refused::new(
        response_code::SERVICE_NOT_AVAILABLE,
        format!("{why}: {leader} does"),
    )
}

/// The group's membership as its leader has it.
fn conf(group: &Group) -> Result<Conf, Refused> {
    group
        .status()
        .filter(|s| s.role.role == Role::Leading)
        .map(|s| s.conf)
        .ok_or_else(|| refused(group, &core::Refused::NotLeader))
}

/// 20101.
pub(crate) fn get_status(broker: &Arc<Broker>, _request: &RemotingCommand) -> Answer {
    ok_json(&group(broker)?.report())
}

/// 20102: answered when the hand-over has begun.
pub(crate) fn transfer_leadership(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let group = group(broker)?;
    let header: DLedgerTransferLeadershipRequestHeader = request.header()?;
    let target = header.target_id.as_deref().map(member).transpose()?;
    group.transfer(target).map_err(|why| refused(group, &why))?;
    ok()
}

/// 20103: answered when the change is proposed.
pub(crate) fn add_member(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let group = group(broker)?;
    let header: DLedgerAddMemberRequestHeader = request.header()?;
    let id = member(&header.id)?;
    if conf(group)?.contains(id) {
        return ok();
    }
    let address = header.address;
    group
        .change(Change::AddLearner { id, address })
        .map_err(|why| refused(group, &why))?;
    ok()
}

/// 20104: answered when the change is proposed.
pub(crate) fn remove_member(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let group = group(broker)?;
    let header: DLedgerRemoveMemberRequestHeader = request.header()?;
    let id = member(&header.id)?;
    if !conf(group)?.contains(id) {
        return ok();
    }
    group
        .change(Change::Remove { id })
        .map_err(|why| refused(group, &why))?;
    ok()
}
