use super::*;
use crate::fixtures::Fake;

fn held_by(holder: &str, renewals: i64) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        lease_duration_seconds: Some(15),
        renew_time: Some(MicroTime(Timestamp::from_second(renewals).unwrap())),
        ..LeaseSpec::default()
    }
}

#[test]
fn a_lease_is_taken_over_only_after_it_was_seen_unchanged_for_its_duration() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut watch = Watch::default();
    // The time written in the Lease is decades old, and counts for nothing.
    assert_eq!(watch.next(&held_by("other", 1), "me", at(0)), Next::Wait);
    assert_eq!(watch.next(&held_by("other", 1), "me", at(14)), Next::Wait);
    // Renewed: the wait begins again.
    assert_eq!(watch.next(&held_by("other", 2), "me", at(14)), Next::Wait);
    assert_eq!(watch.next(&held_by("other", 2), "me", at(28)), Next::Wait);
    assert_eq!(watch.next(&held_by("other", 2), "me", at(29)), Next::Take);
}

#[test]
fn a_lease_that_is_ours_or_given_back_is_taken_at_once() {
    let mut watch = Watch::default();
    assert_eq!(
        watch.next(&held_by("me", 1), "me", Instant::now()),
        Next::Take
    );
    assert_eq!(
        watch.next(&held_by("", 1), "me", Instant::now()),
        Next::Take
    );
    assert_eq!(
        watch.next(&LeaseSpec::default(), "me", Instant::now()),
        Next::Take
    );
}

fn elector(fake: &Fake, identity: &str) -> Elector {
    Elector::new(fake.context().client.clone(), "shop", "operator", identity)
}

#[tokio::test]
async fn one_leads_the_other_follows_when_it_is_given_back() {
    let fake = Fake::default();
    let (mut first, mut second) = (elector(&fake, "first"), elector(&fake, "second"));
    assert!(first.try_once().await);
    assert!(!second.try_once().await);
    assert!(first.try_once().await, "renewed");
    assert!(!second.try_once().await);
    first.release().await;
    assert!(second.try_once().await);
    assert!(!first.try_once().await);
    let lease = fake.get("leases", "operator").unwrap();
    assert_eq!(
        (
            lease["spec"]["holderIdentity"].as_str(),
            lease["spec"]["leaseTransitions"].as_i64()
        ),
        (Some("second"), Some(2))
    );
}

#[tokio::test]
async fn work_ends_with_the_shutdown_and_the_lease_is_given_back() {
    let fake = Fake::default();
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let lost = elector(&fake, "first")
        .lead(shutdown, |term| async move {
            stop.cancel();
            term.cancelled().await;
        })
        .await;
    assert!(!lost);
    assert!(fake.get("leases", "operator").unwrap()["spec"]["holderIdentity"].is_null());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops() {
    let fake = Fake::default();
    let elector = elector(&fake, "first");
    let thief = fake.clone();
    let work = |term: CancellationToken| async move {
        thief.edit("leases", "operator", |lease| {
            lease["spec"]["holderIdentity"] = "thief".into()
        });
        term.cancelled().await;
    };
    let _ = tokio::time::timeout(
        Duration::from_secs(60),
        elector.lead(CancellationToken::new(), work),
    )
    .await;
    assert_eq!(
        fake.get("leases", "operator").unwrap()["spec"]["holderIdentity"],
        "thief"
    );
}
