//! The group in `/metrics` and in the runtime information.

use std::fmt::Write as _;

use remoting::protocol::body::DLedgerState;

use super::service::Group;
use crate::http::{header, value};

impl Group {
    /// Rows beside those of the store.
    pub(crate) fn write_metrics(&self, out: &mut String) {
        let report = self.report();
        header(
            out,
            "rocketmq_dledger_state",
            "1 for what this member of its group is now",
            "gauge",
        );
        for state in [
            DLedgerState::Follower,
            DLedgerState::Candidate,
            DLedgerState::Leader,
            DLedgerState::Learner,
            DLedgerState::Removed,
        ] {
            let now = u8::from(state == report.state);
            let state = state.to_string().to_lowercase();
            let _ = writeln!(out, "rocketmq_dledger_state{{state=\"{state}\"}} {now}");
        }
        for (name, help, figure) in [
            (
                "term",
                "the group's term as this member knows it",
                report.term,
            ),
            (
                "last_index",
                "last entry of this member's log",
                report.last_index,
            ),
            (
                "commit_index",
                "last entry that is known to be committed",
                report.commit_index,
            ),
            (
                "applied_index",
                "last entry that took effect",
                report.applied_index,
            ),
        ] {
            value(
                out,
                &format!("rocketmq_dledger_{name}"),
                help,
                "gauge",
                figure,
            );
        }
        value(
            out,
            "rocketmq_dledger_has_leader",
            "1 while this member knows who leads",
            "gauge",
            u8::from(!report.leader_id.is_empty()),
        );
        if report.state != DLedgerState::Leader {
            return;
        }
        for (name, help, figure) in [
            (
                "member_lag_bytes",
                "bytes of the leader's log that a member has not got",
                (|m| m.lag_bytes) as fn(&remoting::protocol::body::DLedgerMember) -> i64,
            ),
            (
                "member_active",
                "1 when the leader heard of the member within an election time-out",
                |m| i64::from(m.recently_active),
            ),
            ("member_voter", "1 for voters, 0 for learners", |m| {
                i64::from(m.voter)
            }),
            ("member_sure", "1 when the member's word counts", |m| {
                i64::from(m.sure)
            }),
            (
                "member_may_lead",
                "1 when the leadership may be handed to the member",
                |m| i64::from(m.may_lead),
            ),
        ] {
            let name = format!("rocketmq_dledger_{name}");
            header(out, &name, help, "gauge");
            for member in &report.members {
                let _ = writeln!(out, "{name}{{member=\"{}\"}} {}", member.id, figure(member));
            }
        }
    }

    /// Rows of the runtime information that only members of a group have.
    pub(crate) fn runtime_rows(&self) -> [(&'static str, String); 5] {
        let report = self.report();
        [
            ("dLegerSelfId", report.self_id),
            ("dLegerState", report.state.to_string()),
            ("dLegerLeaderId", report.leader_id),
            ("dLegerTerm", report.term.to_string()),
            ("dLegerCommitIndex", report.commit_index.to_string()),
        ]
    }
}
