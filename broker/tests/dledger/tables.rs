//! Topics and groups: what was acknowledged of them, every later leader knows, and every member alike.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use remoting::admin::{Admin, Error};
use remoting::client::RemotingClient;
use remoting::protocol::body::{CreateTopicListRequestBody, SubscriptionGroupConfig, TopicConfig};
use remoting::protocol::{RemotingCommand, request_code, response_code};

use crate::common::load::{Acknowledged, CALL_LIMIT, TOPIC, message, place};
use crate::common::until;
use crate::group::{Cluster, Node, SENDERS};

/// Rows that changes are about.
const NAMES: u64 = 6;

/// A change, with the number that the row shows afterwards.
#[derive(Clone, Debug)]
enum Change {
    Topic(String, i32),
    NoTopic(String),
    Group(String, i32),
    NoGroup(String),
}

impl Change {
    fn some(random: &mut u64) -> Self {
        let mut below = |n: u64| {
            *random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (*random >> 33) % n
        };
        let (what, name, number) = (below(10), below(NAMES), 1 + below(200) as i32);
        match what {
            0..4 => Self::Topic(format!("topic-{name}"), number),
            4..6 => Self::NoTopic(format!("topic-{name}")),
            6..9 => Self::Group(format!("group-{name}"), number),
            _ => Self::NoGroup(format!("group-{name}")),
        }
    }

    fn row(&self) -> (String, Option<i32>) {
        match self.clone() {
            Self::Topic(name, number) | Self::Group(name, number) => (name, Some(number)),
            Self::NoTopic(name) | Self::NoGroup(name) => (name, None),
        }
    }

    async fn ask(&self, admin: &Admin, address: &str) -> Result<(), Error> {
        match self {
            Self::Topic(name, number) => {
                let topic = TopicConfig::new(name, *number, 6);
                admin.create_topic(address, &topic).await
            }
            Self::NoTopic(name) => admin.delete_topic_in_broker(address, name).await,
            Self::Group(name, number) => {
                let group = SubscriptionGroupConfig {
                    retry_max_times: *number,
                    ..SubscriptionGroupConfig::new(name)
                };
                admin.create_subscription_group(address, &group).await
            }
            Self::NoGroup(name) => admin.delete_subscription_group(address, name, true).await,
        }
    }
}

type Rows = BTreeMap<String, i32>;

/// The tables of a broker, but for what it makes by itself.
async fn rows(admin: &Admin, address: &str) -> Option<Rows> {
    let topics = admin.topic_configs(address).await.ok()?;
    let groups = admin.subscription_groups(address).await.ok()?;
    let topics = topics.topic_config_table.into_iter();
    let topics = topics.map(|(name, t)| (name, t.write_queue_nums));
    let groups = groups.subscription_group_table.into_iter();
    let groups = groups.map(|(name, g)| (name, g.retry_max_times));
    let ours = |name: &str| name.starts_with("topic-") || name.starts_with("group-");
    Some(
        topics
            .chain(groups)
            .filter(|(name, _)| ours(name))
            .collect(),
    )
}

/// What each row may be: as it was acknowledged last, or as a change in doubt since then would make it.
#[derive(Default)]
struct Known(BTreeMap<String, Vec<Option<i32>>>);

impl Known {
    fn note(&mut self, change: &Change, acknowledged: bool) {
        let (name, number) = change.row();
        let may_be = self.0.entry(name).or_insert_with(|| vec![None]);
        if acknowledged {
            may_be.clear();
        }
        may_be.push(number);
    }

    fn check(&mut self, who: &str, rows: &Rows) {
        for (name, may_be) in &mut self.0 {
            let is = rows.get(name).copied();
            assert!(
                may_be.contains(&is),
                "{who}: {name} is {is:?}, not {may_be:?}"
            );
            *may_be = vec![is];
        }
    }
}

impl Cluster {
    fn others(&self, than: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|at| *at != than).collect()
    }

    /// A leader that takes changes, and has just taken one.
    pub(crate) async fn taking(&self) -> usize {
        let probe = Change::Group("probe".to_owned(), 1);
        let mut leader = 0;
        until("a leader takes changes", async || {
            leader = self.leader(|_| true).await;
            probe
                .ask(&self.admin, &self.nodes[leader].address)
                .await
                .is_ok()
        })
        .await;
        leader
    }

    /// Waits until all members that run have the tables of this one.
    async fn all_alike(&self, as_this: usize) -> Rows {
        let mut rows_there = None;
        until("all members have the same tables", async || {
            rows_there = rows(&self.admin, &self.nodes[as_this].address).await;
            let mut alike = rows_there.is_some();
            for node in self.nodes.iter().filter(|n| n.runs()) {
                alike &= rows(&self.admin, &node.address).await == rows_there;
            }
            alike
        })
        .await;
        rows_there.unwrap()
    }
}

async fn leaders_die_at_once(flush: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3, flush, "").await;
    cluster.all_sure().await;
    let mut random = 7;
    let mut known = Known::default();
    for round in 0..5 {
        let leader = cluster.taking().await;
        let address = cluster.nodes[leader].address.clone();
        let tables = rows(&cluster.admin, &address).await.unwrap();
        known.check(&format!("round {round}"), &tables);
        for _ in 0..8 {
            let change = Change::some(&mut random);
            let done = change.ask(&cluster.admin, &address).await;
            known.note(&change, done.is_ok());
        }
        // One more on its way, and the leader is gone.
        let last = Change::some(&mut random);
        let client = Admin::new(RemotingClient::default(), "");
        let asked = tokio::spawn({
            let (last, address) = (last.clone(), address.clone());
            async move { last.ask(&client, &address).await.is_ok() }
        });
        cluster.nodes[leader].kill();
        known.note(&last, asked.await.unwrap());
        let next = cluster.taking().await;
        let tables = rows(&cluster.admin, &cluster.nodes[next].address).await;
        known.check(
            &format!("round {round}, {}", cluster.nodes[next].name),
            &tables.unwrap(),
        );
        cluster.nodes[leader].start();
        cluster.all_sure().await;
    }
    let leader = cluster.taking().await;
    let tables = cluster.all_alike(leader).await;
    known.check("all", &tables);
    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    let leader = cluster.taking().await;
    assert_eq!(cluster.all_alike(leader).await, tables);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_change_is_forgotten_when_leaders_die_at_once_with_synced_disks() {
    leaders_die_at_once("SYNC_FLUSH").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_change_is_forgotten_when_leaders_die_at_once_without_synced_disks() {
    leaders_die_at_once("ASYNC_FLUSH").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_a_send_made_outlives_its_leader_with_the_message() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", "").await;
    cluster.all_sure().await;
    let client = RemotingClient::default();
    for n in 0..3 {
        let leader = cluster.taking().await;
        let topic = format!("topic-sent-{n}");
        let mut message = message("hello");
        for (field, value) in [("topic", topic.as_str()), ("queueId", "2")] {
            message
                .ext_fields
                .insert(field.to_owned(), value.to_owned());
        }
        let address = cluster.nodes[leader].address.clone();
        let answer = client.invoke(&address, message, CALL_LIMIT).await.unwrap();
        assert_eq!(place(&answer), Some((2, 0)), "{:?}", answer.remark);
        cluster.nodes[leader].kill();
        let next = cluster.taking().await;
        let address = &cluster.nodes[next].address;
        let known = cluster.admin.topic_config(address, &topic).await.unwrap();
        assert_eq!(known.map(|t| t.write_queue_nums), Some(4));
        let (found, _) = cluster.admin.pull(address, &topic, 2, 0, 32).await.unwrap();
        let bodies: Vec<_> = found.iter().map(|m| m.body.as_slice()).collect();
        assert_eq!(bodies, [b"hello"]);
        cluster.nodes[leader].start();
        cluster.all_sure().await;
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_the_others_never_heard_of_is_in_doubt_and_then_gone_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", "").await;
    cluster.all_sure().await;
    let leader = cluster.taking().await;
    let address = cluster.nodes[leader].address.clone();
    for change in [
        Change::Topic("topic-kept".into(), 3),
        Change::Topic("topic-left".into(), 3),
        Change::Group("group-left".into(), 3),
    ] {
        change.ask(&cluster.admin, &address).await.unwrap();
    }
    let before = cluster.all_alike(leader).await;
    let others = cluster.others(leader);
    for at in &others {
        cluster.nodes[*at].kill();
    }
    let changes = [
        Change::Topic("topic-new".into(), 8),
        Change::Topic("topic-kept".into(), 8),
        Change::NoTopic("topic-left".into()),
        Change::Group("group-new".into(), 8),
        Change::NoGroup("group-left".into()),
    ];
    let asked = Instant::now();
    let admin = &cluster.admin;
    let answers = at_once(changes.iter().map(|c| c.ask(admin, &address))).await;
    let mut in_doubt = 0;
    for (answer, change) in answers.into_iter().zip(&changes) {
        let refused = answer.expect_err("nobody else heard of it");
        let code = refused.code().unwrap_or_default();
        let unknown =
            code == response_code::SYSTEM_ERROR && refused.to_string().contains("not known");
        assert!(
            unknown || code == response_code::SERVICE_NOT_AVAILABLE,
            "{change:?}: {refused}"
        );
        in_doubt += usize::from(unknown);
    }
    assert!(in_doubt > 0, "the leader was gone before it was asked");
    assert!(asked.elapsed() < Duration::from_secs(10));
    // The others go on without it.
    cluster.nodes[leader].signal("-STOP");
    for at in &others {
        cluster.nodes[*at].start();
    }
    until("the others go on", async || {
        let mut found = false;
        for at in &others {
            let address = &cluster.nodes[*at].address;
            let probe = Change::Group("probe".to_owned(), 2);
            found |= probe.ask(&cluster.admin, address).await.is_ok();
        }
        found
    })
    .await;
    cluster.nodes[leader].signal("-CONT");
    cluster.all_sure().await;
    let now = cluster.taking().await;
    assert_eq!(cluster.all_alike(now).await, before);
    cluster.end().await;
}

/// All of them at once.
async fn at_once<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    let mut done: Vec<Option<T>> = all.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, done) in all.iter_mut().zip(&mut done) {
            if done.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *done = Some(value);
            }
        }
        match done.iter().all(Option::is_some) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

fn create_all(topics: Vec<TopicConfig>) -> RemotingCommand {
    RemotingCommand::request(request_code::UPDATE_AND_CREATE_TOPIC_LIST).json_body(
        &CreateTopicListRequestBody {
            topic_config_list: topics,
        },
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_topics_made_at_once_are_there_after_the_leader_s_death() {
    const TOPICS: i32 = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", "").await;
    cluster.all_sure().await;
    let leader = cluster.taking().await;
    let address = cluster.nodes[leader].address.clone();
    let topic = |n: i32| TopicConfig::new(format!("topic-{n}"), 1 + n % 7, 6);
    let began = Instant::now();
    let request = create_all((0..TOPICS).map(topic).collect());
    cluster.admin.call(&address, request).await.unwrap();
    println!("{TOPICS} topics in one request: {:?}", began.elapsed());
    cluster.nodes[leader].kill();
    let next = cluster.taking().await;
    let wanted: Rows = (0..TOPICS)
        .map(|n| (format!("topic-{n}"), 1 + n % 7))
        .collect();
    let known = rows(&cluster.admin, &cluster.nodes[next].address).await;
    assert_eq!(known.unwrap(), wanted);
    cluster.nodes[leader].start();
    assert_eq!(cluster.all_alike(next).await, wanted);
    cluster.end().await;
}

/// As if every file of the log had been written long ago.
fn expire_log(node: &Node) {
    let long_ago = SystemTime::now() - Duration::from_secs(2 * 3_600);
    for file in fs::read_dir(node.store.join(format!("dledger-{}", node.name))).unwrap() {
        let path = file.unwrap().path();
        let opened = File::options().write(true).open(&path);
        // Retention may be quicker.
        if let Ok(file) = opened {
            file.set_modified(long_ago).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_or_lost_its_volume_learns_all_rows_though_their_first_entries_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let more = "fileReservedTime=1\ncleanResourceInterval=50\n";
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", more).await;
    cluster.all_sure().await;
    let leader = cluster.taking().await;
    let address = cluster.nodes[leader].address.clone();
    let before = (0..20).map(|n| TopicConfig::new(format!("topic-{n}"), 2, 6));
    cluster
        .admin
        .call(&address, create_all(before.collect()))
        .await
        .unwrap();
    let gone = Change::Group("group-gone".into(), 4);
    gone.ask(&cluster.admin, &address).await.unwrap();
    cluster.all_alike(leader).await;
    let away = cluster.others(leader)[0];
    cluster.nodes[away].kill();
    for change in [
        Change::NoTopic("topic-3".into()),
        Change::Topic("topic-4".into(), 9),
        Change::NoGroup("group-gone".into()),
        Change::Group("group-new".into(), 5),
        Change::Topic("topic-new".into(), 6),
    ] {
        change.ask(&cluster.admin, &address).await.unwrap();
    }
    let wanted = rows(&cluster.admin, &address).await.unwrap();
    let end = cluster.status(leader).await.unwrap().last_offset;
    // Until both that are left hold nothing any more of what the third has.
    let client = RemotingClient::default();
    let body = "x".repeat(60_000);
    let others = cluster.others(away);
    until("what the third has is deleted", async || {
        for _ in 0..4 {
            let answer = client.invoke(&address, message(&body), CALL_LIMIT).await;
            assert!(answer.is_ok_and(|a| place(&a).is_some()));
        }
        let mut deleted = true;
        for at in &others {
            expire_log(&cluster.nodes[*at]);
            let address = &cluster.nodes[*at].address;
            cluster
                .admin
                .delete_expired_commit_log(address)
                .await
                .unwrap();
            let info = cluster.admin.broker_runtime_info(address).await.unwrap();
            deleted &= info["commitLogMinOffset"].parse::<i64>().unwrap() > end;
        }
        deleted
    })
    .await;
    cluster.nodes[away].start();
    cluster.all_sure().await;
    assert_eq!(cluster.all_alike(leader).await, wanted);
    // Another one loses everything.
    let lost = others.into_iter().find(|at| *at != leader).unwrap();
    cluster.nodes[lost].kill();
    fs::remove_dir_all(&cluster.nodes[lost].store).unwrap();
    cluster.nodes[lost].start();
    cluster.all_sure().await;
    assert_eq!(cluster.all_alike(leader).await, wanted);
    // What they learnt is as good as what they were told at first.
    cluster.nodes[leader].kill();
    let next = cluster.taking().await;
    assert_eq!(
        rows(&cluster.admin, &cluster.nodes[next].address)
            .await
            .unwrap(),
        wanted
    );
    for node in &mut cluster.nodes {
        node.kill();
        node.start();
    }
    let next = cluster.taking().await;
    assert_eq!(cluster.all_alike(next).await, wanted);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_knows_topics_groups_and_offsets_and_delivers_what_was_delayed_once() {
    const DELAYED: usize = 8;
    const GROUP: &str = "readers";
    let dir = tempfile::tempdir().unwrap();
    let more = "messageDelayLevel=2s\nslaveSyncIntervalMs=100\n";
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", more).await;
    let leader = cluster.all_level().await;
    let address = cluster.nodes[leader].address.clone();
    for name in [TOPIC, "Made"] {
        let topic = TopicConfig {
            topic_name: name.into(),
            read_queue_nums: 3,
            write_queue_nums: 3,
            perm: 6,
            ..TopicConfig::default()
        };
        cluster.admin.create_topic(&address, &topic).await.unwrap();
    }
    let group = SubscriptionGroupConfig::new(GROUP);
    let made = cluster.admin.create_subscription_group(&address, &group);
    made.await.unwrap();
    let moved = cluster
        .admin
        .update_consumer_offset(&address, GROUP, "Made", 1, 7);
    moved.await.unwrap();
    let followers: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    for at in &followers {
        let (admin, address) = (&cluster.admin, &cluster.nodes[*at].address);
        until("a follower copies the tables", async || {
            let topic = admin.topic_config(address, "Made").await;
            let groups = admin.subscription_groups(address).await;
            let offset = admin.consumer_offset(address, GROUP, "Made", 1).await;
            matches!(topic, Ok(Some(t)) if t.read_queue_nums == 3)
                && groups.is_ok_and(|g| g.subscription_group_table.contains_key(GROUP))
                && matches!(offset, Ok(Some(7)))
        })
        .await;
    }
    let client = RemotingClient::default();
    for n in 0..DELAYED {
        let mut message = message(&format!("delayed {n}"));
        for (key, value) in [("queueId", "0"), ("properties", "DELAY\u{1}1\u{2}")] {
            message.ext_fields.insert(key.to_owned(), value.to_owned());
        }
        let answer = client.invoke(&address, message, CALL_LIMIT).await.unwrap();
        assert!(place(&answer).is_some(), "{:?}", answer.remark);
    }
    cluster.nodes[leader].kill();
    let new = cluster.leader(|_| true).await;
    cluster.nodes[leader].start();
    let (admin, address) = (&cluster.admin, &cluster.nodes[new].address);
    let known = admin.topic_config(address, "Made").await.unwrap();
    assert_eq!(known.map(|t| t.read_queue_nums), Some(3));
    let offset = admin.consumer_offset(address, GROUP, "Made", 1).await;
    assert_eq!(offset.unwrap(), Some(7));
    let delivered = DELAYED as i64;
    until("what was delayed is delivered", async || {
        let end = admin.max_offset(address, TOPIC, 0).await;
        end.is_ok_and(|end| end >= delivered)
    })
    .await;
    cluster.all_level().await;
    for (at, node) in cluster.nodes.iter().enumerate() {
        cluster.shows_all(at).await;
        let pulled = cluster.admin.pull(&node.address, TOPIC, 0, 0, 32);
        let (messages, _) = pulled.await.unwrap();
        let bodies: Vec<_> = messages.iter().map(|m| m.body.clone()).collect();
        let wanted: Vec<_> = (0..DELAYED)
            .map(|n| format!("delayed {n}").into_bytes())
            .collect();
        assert_eq!(bodies, wanted, "on {}", node.name);
    }
    cluster.end().await;
}

fn to_queue_0(topic: &str, body: &str) -> RemotingCommand {
    let mut message = message(body);
    for (field, value) in [("topic", topic), ("queueId", "0")] {
        let (field, value) = (field.to_owned(), value.to_owned());
        message.ext_fields.insert(field, value);
    }
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_and_made_anew_begins_at_nothing_on_every_member() {
    const NAME: &str = "topic-anew";
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", "").await;
    cluster.all_sure().await;
    let client = RemotingClient::default();
    for round in 0..3 {
        let leader = cluster.taking().await;
        let address = cluster.nodes[leader].address.clone();
        let make = Change::Topic(NAME.into(), 1 + round);
        make.ask(&cluster.admin, &address).await.unwrap();
        for offset in 0..5 {
            let send = to_queue_0(NAME, &format!("old {round}"));
            let answer = client.invoke(&address, send, CALL_LIMIT).await.unwrap();
            assert_eq!(place(&answer), Some((0, offset)), "{:?}", answer.remark);
        }
        cluster
            .admin
            .delete_topic_in_broker(&address, NAME)
            .await
            .unwrap();
        assert_eq!(
            cluster.admin.topic_config(&address, NAME).await.unwrap(),
            None
        );
        if round == 1 {
            // Whoever leads next makes it anew.
            cluster.nodes[leader].kill();
        }
        let next = cluster.taking().await;
        let address = cluster.nodes[next].address.clone();
        make.ask(&cluster.admin, &address).await.unwrap();
        let new = format!("new {round}");
        let answer = client
            .invoke(&address, to_queue_0(NAME, &new), CALL_LIMIT)
            .await
            .unwrap();
        assert_eq!(place(&answer), Some((0, 0)), "{:?}", answer.remark);
        if round == 1 {
            cluster.nodes[leader].start();
        }
        cluster.all_level().await;
        for node in &cluster.nodes {
            let mut bodies = Vec::new();
            until("the new message is shown", async || {
                let pulled = cluster.admin.pull(&node.address, NAME, 0, 0, 32).await;
                let found = pulled.map_or(Vec::new(), |(found, _)| found);
                bodies = found.into_iter().map(|m| m.body).collect();
                bodies.last().map(Vec::as_slice) == Some(new.as_bytes())
            })
            .await;
            assert_eq!(bodies.len(), 1, "on {} in round {round}", node.name);
        }
        cluster
            .admin
            .delete_topic_in_broker(&address, NAME)
            .await
            .unwrap();
    }
    cluster.end().await;
}

/// The newest message of each sender that was acknowledged: bodies begin with `<sender>-<number>`.
fn newest(acknowledged: &Acknowledged) -> BTreeMap<u64, u64> {
    let mut newest = BTreeMap::new();
    for body in acknowledged.keys() {
        let (sender, rest) = body.split_once('-').unwrap();
        let number: u64 = rest.split(' ').next().unwrap().parse().unwrap();
        let newest: &mut u64 = newest.entry(sender.parse().unwrap()).or_default();
        *newest = number.max(*newest);
    }
    newest
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_under_load_takes_nothing_of_what_comes_after() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", "").await;
    cluster.all_sure().await;
    let load = cluster.load();
    let mut gone = load.so_far();
    for _ in 0..5 {
        load.acknowledged(100).await;
        let leader = cluster.leader(|_| true).await;
        let address = &cluster.nodes[leader].address;
        cluster
            .admin
            .delete_topic_in_broker(address, TOPIC)
            .await
            .unwrap();
        // What each sender had on its way may have been taken before.
        let before = newest(&load.so_far());
        until("every sender has sent another one", async || {
            gone = load.so_far();
            let now = newest(&gone);
            (0..SENDERS).all(|sender| now.get(&sender) > before.get(&sender))
        })
        .await;
    }
    load.acknowledged(100).await;
    let leader = cluster.leader(|_| true).await;
    cluster.nodes[leader].kill();
    load.acknowledged(100).await;
    cluster.nodes[leader].start();
    let mut acknowledged = load.stop().await;
    acknowledged.retain(|body, _| !gone.contains_key(body));
    assert!(acknowledged.len() > 100);
    cluster.all_level().await;
    cluster.check(0..3, &acknowledged).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_lost_or_put_back_from_before_do_not_change_what_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", "").await;
    cluster.all_sure().await;
    let leader = cluster.taking().await;
    let address = cluster.nodes[leader].address.clone();
    for change in [
        Change::Topic("topic-early".into(), 2),
        Change::Topic("topic-gone".into(), 2),
        Change::Group("group-early".into(), 2),
    ] {
        change.ask(&cluster.admin, &address).await.unwrap();
    }
    let config: Vec<PathBuf> = cluster
        .nodes
        .iter()
        .map(|n| n.store.join("config"))
        .collect();
    let files = ["topics.json", "subscriptionGroup.json"];
    let read = |at: usize| files.map(|name| fs::read_to_string(config[at].join(name)).ok());
    until("it is saved", async || {
        (0..3).all(|at| {
            let [topics, groups] = read(at);
            topics.is_some_and(|t| t.contains("topic-gone"))
                && groups.is_some_and(|g| g.contains("group-early"))
        })
    })
    .await;
    let before: Vec<_> = (0..3).map(read).collect();
    for change in [
        Change::NoTopic("topic-gone".into()),
        Change::Topic("topic-late".into(), 3),
        Change::Group("group-early".into(), 5),
    ] {
        change.ask(&cluster.admin, &address).await.unwrap();
    }
    let wanted = cluster.all_alike(leader).await;
    until("it is saved again", async || {
        (0..3).all(|at| {
            read(at)[0]
                .as_ref()
                .is_some_and(|t| t.contains("topic-late"))
        })
    })
    .await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    fs::remove_dir_all(&config[0]).unwrap();
    for (name, text) in files.iter().zip(&before[1]) {
        fs::write(config[1].join(name), text.as_ref().unwrap()).unwrap();
    }
    fs::remove_file(config[2].join(files[0])).unwrap();
    for node in &mut cluster.nodes {
        node.start();
    }
    let next = cluster.taking().await;
    assert_eq!(
        rows(&cluster.admin, &cluster.nodes[next].address)
            .await
            .unwrap(),
        wanted
    );
    assert_eq!(cluster.all_alike(next).await, wanted);
    cluster.end().await;
}

/// Of a broker of another mode whose folder this was.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_files_said_before_the_first_start_is_known_to_the_whole_group() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::prepare(dir.path(), 3, "ASYNC_FLUSH", "").await;
    let topics = r#"{"dataVersion":{"counter":4,"timestamp":1},"topicConfigTable":{
        "topic-old":{"order":false,"perm":6,"readQueueNums":5,"topicFilterType":"SINGLE_TAG","topicName":"topic-old","topicSysFlag":0,"writeQueueNums":5}}}"#;
    let groups = r#"{"dataVersion":{"counter":2,"timestamp":1},"subscriptionGroupTable":{
        "group-old":{"groupName":"group-old","retryMaxTimes":7,"retryQueueNums":1}}}"#;
    for node in &mut cluster.nodes {
        let config = node.store.join("config");
        fs::create_dir_all(&config).unwrap();
        fs::write(config.join("topics.json"), topics).unwrap();
        fs::write(config.join("subscriptionGroup.json"), groups).unwrap();
        node.start();
    }
    cluster.all_sure().await;
    let wanted: Rows = [("group-old", 7), ("topic-old", 5)]
        .map(|(name, number)| (name.to_owned(), number))
        .into();
    let leader = cluster.taking().await;
    assert_eq!(cluster.all_alike(leader).await, wanted);
    // It is in the log by now: who had nothing, or loses it, has it from there.
    let lost = cluster.others(leader)[0];
    cluster.nodes[lost].kill();
    fs::remove_dir_all(&cluster.nodes[lost].store).unwrap();
    cluster.nodes[lost].start();
    assert_eq!(cluster.all_alike(leader).await, wanted);
    let gone = Change::NoTopic("topic-old".into());
    gone.ask(&cluster.admin, &cluster.nodes[leader].address)
        .await
        .unwrap();
    for node in &mut cluster.nodes {
        node.kill();
        node.start();
    }
    let leader = cluster.taking().await;
    let left: Rows = [("group-old".to_owned(), 7)].into();
    assert_eq!(cluster.all_alike(leader).await, left);
    cluster.end().await;
}
