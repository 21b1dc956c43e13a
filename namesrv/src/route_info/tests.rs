use super::*;

const NOW: i64 = 1_000_000;

struct Broker(Registration);

/// A broker with a whole table: the self-test topic and the given ones.
fn broker(name: &str, id: i64, addr: &str, topics: &[&str]) -> Broker {
    let mut r = Registration {
        cluster: "c".to_owned(),
        broker_name: name.to_owned(),
        broker_addr: addr.to_owned(),
        broker_id: id,
        ha_server_addr: format!("{addr}-ha"),
        connection: addr.bytes().map(u64::from).sum(),
        data_version: DataVersion {
            state_version: 0,
            timestamp: 5,
            counter: 1,
        },
        ..Registration::default()
    };
    for topic in topics.iter().chain(&[SELF_TEST_TOPIC]) {
        r.topics.insert((*topic).to_owned(), config(topic, 6));
    }
    Broker(r)
}

fn config(topic: &str, perm: i32) -> TopicConfig {
    TopicConfig {
        topic_name: topic.to_owned(),
        read_queue_nums: 4,
        write_queue_nums: 4,
        perm,
        ..TopicConfig::default()
    }
}

impl Broker {
    fn version(mut self, counter: i64) -> Self {
        self.0.data_version.counter = counter;
        self
    }
    fn state_version(mut self, state_version: i64) -> Self {
        self.0.data_version.state_version = state_version;
        self
    }
    fn acting(mut self) -> Self {
        self.0.enable_acting_master = Some(true);
        self
    }
    fn only(mut self, topic: &str) -> Self {
        self.0.topics.retain(|t, _| t == topic);
        self
    }
    fn perm(mut self, topic: &str, perm: i32) -> Self {
        self.0.topics.insert(topic.to_owned(), config(topic, perm));
        self
    }
    fn connection(mut self, id: ConnectionId) -> Self {
        self.0.connection = id;
        self
    }
    fn timeout(mut self, ms: i64) -> Self {
        self.0.heartbeat_timeout_ms = Some(ms);
        self
    }
    fn into(self, routes: &mut RouteInfoManager) -> Result<Registered, Refused> {
        self.into_with(routes, Options::default())
    }
    fn into_with(
        self,
        routes: &mut RouteInfoManager,
        options: Options,
    ) -> Result<Registered, Refused> {
        let result = routes.register(self.0, options, NOW);
        routes.check_invariants();
        result
    }
}

fn leave(
    routes: &mut RouteInfoManager,
    name: &str,
    id: i64,
    addr: &str,
) -> Vec<MinBrokerIdChanged> {
    let u = Unregistration {
        cluster: "c".to_owned(),
        broker_name: name.to_owned(),
        broker_addr: addr.to_owned(),
        broker_id: id,
        owner: None,
    };
    let notices = routes.unregister(&[u]);
    routes.check_invariants();
    notices
}

fn route(routes: &RouteInfoManager, topic: &str) -> Option<TopicRouteData> {
    routes.pickup_topic_route_data(topic, Options::default())
}

fn addrs(routes: &RouteInfoManager, name: &str) -> Vec<(i64, String)> {
    routes.broker_member_group(name).into_iter().collect()
}

fn perm(routes: &RouteInfoManager, topic: &str) -> i32 {
    route(routes, topic).unwrap().queue_datas[0].perm
}

#[test]
fn a_master_brings_its_topics_and_a_slave_learns_its_master() {
    let mut routes = RouteInfoManager::default();
    assert_eq!(
        broker("b", 0, "1:1", &["T"]).into(&mut routes),
        Ok(Registered::default())
    );
    let slave = broker("b", 1, "2:1", &["T", "slave only"])
        .into(&mut routes)
        .unwrap();
    assert_eq!(
        (
            slave.master_addr.as_deref(),
            slave.ha_server_addr.as_deref()
        ),
        (Some("1:1"), Some("1:1-ha"))
    );
    let found = route(&routes, "T").unwrap();
    assert_eq!(found.queue_datas.len(), 1);
    assert_eq!(
        found.broker_datas[0].broker_addrs,
        BTreeMap::from([(0, "1:1".to_owned()), (1, "2:1".to_owned())])
    );
    assert!(
        route(&routes, "slave only").is_none(),
        "topics come from the master"
    );
    assert_eq!(
        routes.sizes(),
        Sizes {
            brokers: 2,
            broker_names: 1,
            topics: 2
        }
    );
}

#[test]
fn a_node_that_changes_role_keeps_only_its_new_id() {
    let mut routes = RouteInfoManager::default();
    broker("b", 1, "1:1", &["T"]).into(&mut routes).unwrap();
    broker("b", 0, "1:1", &["T"]).into(&mut routes).unwrap();
    assert_eq!(addrs(&routes, "b"), vec![(0, "1:1".to_owned())]);
}

#[test]
fn an_id_held_with_a_greater_state_version_is_not_taken_over() {
    let mut routes = RouteInfoManager::default();
    broker("b", 0, "new:1", &["T"])
        .state_version(3)
        .into(&mut routes)
        .unwrap();
    assert_eq!(
        broker("b", 0, "old:1", &["U"])
            .state_version(2)
            .into(&mut routes),
        Ok(Registered::default())
    );
    assert_eq!(addrs(&routes, "b"), vec![(0, "new:1".to_owned())]);
    assert!(route(&routes, "U").is_none());
    assert_eq!(routes.data_version("c", "old:1"), None);
    broker("b", 0, "old:1", &["T"])
        .state_version(3)
        .into(&mut routes)
        .unwrap();
    assert_eq!(
        addrs(&routes, "b"),
        vec![(0, "old:1".to_owned())],
        "an equal one takes over"
    );
}

#[test]
fn a_lone_topic_of_an_unknown_broker_is_refused_and_of_a_known_one_taken() {
    let mut routes = RouteInfoManager::default();
    assert_eq!(
        broker("b", 0, "1:1", &["T"]).only("T").into(&mut routes),
        Err(Refused)
    );
    assert_eq!(
        routes.sizes(),
        Sizes {
            brokers: 0,
            broker_names: 0,
            topics: 0
        }
    );
    assert!(routes.cluster_info().cluster_addr_table.is_empty());
    broker("b", 0, "1:1", &[])
        .perm("X", 6)
        .into(&mut routes)
        .unwrap();
    broker("b", 0, "1:1", &["T"])
        .only("T")
        .version(2)
        .into(&mut routes)
        .unwrap();
    assert!(route(&routes, "T").is_some() && route(&routes, "X").is_some());
}

#[test]
fn entries_change_only_with_the_data_version_or_when_unknown() {
    let mut routes = RouteInfoManager::default();
    broker("b", 0, "1:1", &["T"]).into(&mut routes).unwrap();
    assert_eq!(routes.wipe_write_perm("b"), 2);
    broker("b", 0, "1:1", &["T"]).into(&mut routes).unwrap();
    assert_eq!(
        perm(&routes, "T"),
        4,
        "an unchanged version does not bring the permission back"
    );
    broker("b", 0, "1:1", &["T", "U"])
        .into(&mut routes)
        .unwrap();
    assert_eq!(
        (perm(&routes, "T"), perm(&routes, "U")),
        (4, 6),
        "an unknown topic is taken all the same"
    );
    broker("b", 0, "1:1", &["T", "U"])
        .version(2)
        .into(&mut routes)
        .unwrap();
    assert_eq!(perm(&routes, "T"), 6);
    routes.wipe_write_perm("b");
    assert_eq!(routes.add_write_perm("b"), 3);
    assert_eq!(perm(&routes, "T"), 6);
    assert_eq!(
        (
            routes.wipe_write_perm("nobody"),
            routes.add_write_perm("nobody")
        ),
        (0, 0)
    );
}

#[test]
fn only_a_whole_table_deletes_topics_and_only_when_asked() {
    let delete = Options {
        delete_topic_with_registration: true,
        ..Options::default()
    };
    let mut routes = RouteInfoManager::default();
    broker("a", 0, "1:1", &["T", "U"])
        .into_with(&mut routes, delete)
        .unwrap();
    broker("b", 0, "2:1", &["T"])
        .into_with(&mut routes, delete)
        .unwrap();
    broker("a", 0, "1:1", &["V"])
        .only("V")
        .version(2)
        .into_with(&mut routes, delete)
        .unwrap();
    assert!(
        route(&routes, "U").is_some(),
        "an increment deletes nothing"
    );
    broker("a", 0, "1:1", &["V"])
        .version(3)
        .into(&mut routes)
        .unwrap();
    assert!(route(&routes, "U").is_some(), "switched off");
    broker("a", 0, "1:1", &["V"])
        .version(4)
        .into_with(&mut routes, delete)
        .unwrap();
    assert!(route(&routes, "U").is_none());
    assert_eq!(
        route(&routes, "T").unwrap().queue_datas.len(),
        1,
        "the other broker keeps it"
    );
}

#[test]
fn the_last_address_takes_the_broker_its_cluster_and_its_topics_along() {
    let mut routes = RouteInfoManager::default();
    broker("b", 0, "1:1", &["T"]).into(&mut routes).unwrap();
    broker("b", 1, "2:1", &["T"]).into(&mut routes).unwrap();
    leave(&mut routes, "b", 0, "1:1");
    assert_eq!(
        route(&routes, "T").unwrap().broker_datas[0]
            .broker_addrs
            .len(),
        1
    );
    assert_eq!(
        perm(&routes, "T"),
        6,
        "without acting master the permission stays"
    );
    leave(&mut routes, "b", 1, "2:1");
    assert!(route(&routes, "T").is_none());
    assert_eq!(routes.cluster_info(), ClusterInfo::default());
    assert!(
        leave(&mut routes, "b", 1, "2:1").is_empty(),
        "twice is harmless"
    );
}

#[test]
fn a_batch_that_empties_a_group_leaves_nothing_behind() {
    let mut routes = RouteInfoManager::default();
    for (id, addr) in [(0, "1:1"), (1, "2:1")] {
        broker("b", id, addr, &["T"])
            .acting()
            .into(&mut routes)
            .unwrap();
    }
    let all: Vec<_> = [(0, "1:1"), (1, "2:1")]
        .map(|(id, addr)| Unregistration {
            cluster: "c".into(),
            broker_name: "b".into(),
            broker_addr: addr.into(),
            broker_id: id,
            owner: None,
        })
        .to_vec();
    assert_eq!(routes.unregister(&all), vec![]);
    routes.check_invariants();
    assert_eq!(
        routes.sizes(),
        Sizes {
            brokers: 0,
            broker_names: 0,
            topics: 0
        }
    );
}

#[test]
fn an_acting_master_may_be_read_from_but_not_written_to() {
    let show = Options {
        support_acting_master: true,
        ..Options::default()
    };
    let mut routes = RouteInfoManager::default();
    broker("b", 0, "1:1", &["T", "rmq_sys_SYNC_BROKER_MEMBER_b"])
        .acting()
        .into(&mut routes)
        .unwrap();
    broker("b", 1, "2:1", &["T"])
        .acting()
        .into(&mut routes)
        .unwrap();
    leave(&mut routes, "b", 0, "1:1");
    assert_eq!(perm(&routes, "T"), 4);
    let shown = routes.pickup_topic_route_data("T", show).unwrap();
    assert_eq!(
        shown.broker_datas[0].broker_addrs,
        BTreeMap::from([(0, "2:1".to_owned())])
    );
    assert_eq!(
        route(&routes, "T").unwrap().broker_datas[0].broker_addrs,
        BTreeMap::from([(1, "2:1".to_owned())])
    );
    let hidden = routes
        .pickup_topic_route_data("rmq_sys_SYNC_BROKER_MEMBER_b", show)
        .unwrap();
    assert_eq!(
        hidden.broker_datas[0].broker_addrs,
        BTreeMap::from([(1, "2:1".to_owned())])
    );
    broker("b", 1, "2:1", &["T", "U"])
        .acting()
        .version(9)
        .into(&mut routes)
        .unwrap();
    assert_eq!(
        perm(&routes, "U"),
        4,
        "what a prime slave brings is not writable"
    );
}

#[test]
fn an_old_slave_alone_brings_no_topics() {
    let mut routes = RouteInfoManager::default();
    broker("b", 1, "2:1", &["T"]).into(&mut routes).unwrap();
    assert!(route(&routes, "T").is_none());
    broker("b", 2, "3:1", &["T"])
        .acting()
        .into(&mut routes)
        .unwrap();
    assert!(route(&routes, "T").is_none(), "not the smallest id");
}

#[test]
fn entries_expire_by_their_own_timeout_and_with_their_connection() {
    let mut routes = RouteInfoManager::default();
    broker("a", 0, "1:1", &[])
        .perm("T", 6)
        .connection(1)
        .into(&mut routes)
        .unwrap();
    broker("b", 0, "2:1", &[])
        .perm("T", 6)
        .connection(2)
        .timeout(10_000)
        .into(&mut routes)
        .unwrap();
    let names = |list: Vec<Unregistration>| {
        list.into_iter()
            .map(|u| (u.owner.unwrap(), u.broker_name))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(routes.expired(NOW + 10_000)), vec![]);
    assert_eq!(
        names(routes.expired(NOW + 10_001)),
        vec![(2, "b".to_owned())]
    );
    routes.touch("c", "2:1", NOW + 10_000);
    assert_eq!(names(routes.expired(NOW + 10_001)), vec![]);
    assert_eq!(routes.expired(NOW + DEFAULT_BROKER_EXPIRED_MS + 1).len(), 2);
    routes.touch("c", "nobody", NOW);

    broker("a", 0, "1:1", &[])
        .perm("T", 6)
        .connection(3)
        .into(&mut routes)
        .unwrap();
    assert_eq!(
        routes.registered_by(1),
        vec![],
        "the entry moved to the newer connection"
    );
    let gone = routes.registered_by(3);
    routes.unregister(&gone);
    routes.check_invariants();
    assert_eq!(routes.sizes().broker_names, 1);
}

#[test]
fn a_connection_that_closes_late_leaves_a_newer_registration_alone() {
    let mut routes = RouteInfoManager::default();
    broker("b", 0, "1:1", &["T"])
        .connection(1)
        .into(&mut routes)
        .unwrap();
    let closed = routes.registered_by(1);
    broker("b", 0, "1:1", &["T"])
        .connection(2)
        .into(&mut routes)
        .unwrap();
    routes.unregister(&closed);
    assert!(route(&routes, "T").is_some());
    // A goodbye of the broker itself counts whatever it came through.
    leave(&mut routes, "b", 0, "1:1");
    assert!(route(&routes, "T").is_none());
}

#[test]
fn a_changed_smallest_id_is_told_to_the_others() {
    let mut routes = RouteInfoManager::default();
    broker("b", 1, "2:1", &["T"])
        .connection(2)
        .into(&mut routes)
        .unwrap();
    broker("b", 2, "3:1", &["T"])
        .connection(3)
        .into(&mut routes)
        .unwrap();
    let came = broker("b", 0, "1:1", &["T"])
        .connection(1)
        .into(&mut routes)
        .unwrap()
        .notice
        .unwrap();
    assert_eq!(
        (
            came.min_broker_id,
            came.min_broker_addr.as_str(),
            came.tell.as_slice()
        ),
        (0, "1:1", &[2, 3][..])
    );
    assert_eq!(came.ha_broker_addr.as_deref(), Some("1:1-ha"));
    assert!(leave(&mut routes, "b", 2, "3:1").is_empty());
    let left = leave(&mut routes, "b", 0, "1:1").pop().unwrap();
    assert_eq!(
        (
            left.min_broker_id,
            left.offline_broker_addr.as_deref(),
            left.tell.as_slice()
        ),
        (1, Some("1:1"), &[2][..])
    );
}

#[test]
fn topic_lists() {
    let mut routes = RouteInfoManager::default();
    let mut a = broker("a", 0, "1:1", &["T"]);
    for (topic, flag) in [("unit", 1), ("sub", 2), ("both", 3)] {
        a.0.topics.insert(
            topic.to_owned(),
            TopicConfig {
                topic_sys_flag: flag,
                ..config(topic, 6)
            },
        );
    }
    a.into(&mut routes).unwrap();
    let mut b = broker("b", 0, "2:1", &["other"]);
    b.0.cluster = "d".to_owned();
    b.into(&mut routes).unwrap();
    let list = |topics: BTreeSet<String>| topics.into_iter().collect::<Vec<_>>().join(" ");
    assert_eq!(
        list(routes.all_topics()),
        "SELF_TEST_TOPIC T both other sub unit"
    );
    assert_eq!(list(routes.topics_of_cluster("d")), "SELF_TEST_TOPIC other");
    assert_eq!(list(routes.topics_of_cluster("nobody")), "");
    let (system, addr) = routes.system_topics();
    assert_eq!(
        (list(system).as_str(), addr.as_deref()),
        ("a b c d", Some("1:1"))
    );
    assert_eq!(list(routes.unit_topics()), "both unit");
    assert_eq!(list(routes.unit_sub_topics()), "both sub");
    assert_eq!(list(routes.unit_sub_un_unit_topics()), "sub");
    routes.delete_topic("SELF_TEST_TOPIC", Some("d"));
    assert_eq!(
        route(&routes, "SELF_TEST_TOPIC").unwrap().queue_datas.len(),
        1
    );
    routes.delete_topic("SELF_TEST_TOPIC", None);
    assert!(route(&routes, "SELF_TEST_TOPIC").is_none());
}

#[test]
fn a_single_topic_registration_takes_only_known_brokers() {
    let mut routes = RouteInfoManager::default();
    broker("b", 0, "1:1", &["T"]).into(&mut routes).unwrap();
    let queue = |name: &str| QueueData {
        broker_name: name.to_owned(),
        perm: 6,
        ..QueueData::default()
    };
    routes.register_topic("N", vec![queue("b"), queue("nobody")]);
    routes.register_topic("M", vec![queue("nobody")]);
    routes.check_invariants();
    assert_eq!(route(&routes, "N").unwrap().queue_datas.len(), 1);
    assert!(route(&routes, "M").is_none());
}

#[test]
fn filter_servers_and_static_mappings_are_kept() {
    let mut routes = RouteInfoManager::default();
    let mut b = broker("b", 0, "1:1", &["T"]);
    b.0.filter_servers = vec!["f:1".to_owned()];
    b.0.mappings.insert(
        "T".to_owned(),
        TopicQueueMappingInfo {
            bname: "b".to_owned(),
            ..TopicQueueMappingInfo::default()
        },
    );
    b.into(&mut routes).unwrap();
    let found = route(&routes, "T").unwrap();
    assert_eq!(
        found.filter_server_table.get("1:1"),
        Some(&vec!["f:1".to_owned()])
    );
    assert!(found.topic_queue_mapping_by_broker.is_some());
    leave(&mut routes, "b", 0, "1:1");
    broker("b", 0, "1:1", &["T"]).into(&mut routes).unwrap();
    assert!(route(&routes, "T").unwrap().filter_server_table.is_empty());
    assert!(
        route(&routes, "T")
            .unwrap()
            .topic_queue_mapping_by_broker
            .is_none()
    );
}

proptest::proptest! {
    /// Whatever brokers do, and in whatever order, the tables agree with each other.
    #[test]
    fn any_sequence_keeps_the_invariants(steps in proptest::collection::vec((0..4u8, 0..3usize, 0..3i64, 0..4usize, 0..3i64, proptest::bool::ANY), 0..60)) {
        let mut routes = RouteInfoManager::default();
        for (kind, name, id, addr, version, acting) in steps {
            let (name, addr) = (["a", "b", "c"][name], ["1:1", "2:1", "3:1", "4:1"][addr]);
            // A real address serves one broker name.
            let addr = format!("{name}-{addr}");
            let mut b = broker(name, id, &addr, &["T", "U"]).version(version).state_version(version);
            if acting { b = b.acting(); }
            match kind {
                0 => drop(b.into(&mut routes)),
                1 => drop(b.only("T").into(&mut routes)),
                2 => drop(leave(&mut routes, name, id, &addr)),
                _ => {
                    let gone = routes.registered_by(b.0.connection);
                    routes.unregister(&gone);
                    routes.check_invariants();
                }
            }
        }
    }
}
