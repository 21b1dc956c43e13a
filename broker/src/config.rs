//! The broker's configuration: upstream's key names, one table that feeds the file reader, `-p`, the documentation and requests 25 and 26.
//!
//! Two steps: [`BrokerConfig`] is what was written (defaults < file < environment < flag), [`BrokerConfig::validate`] turns it into
//! [`Settings`], which cannot be wrong any more.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use remoting::Resolver;
use remoting::properties::{self, Properties};

/// Who this node is within its replica group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BrokerRole {
    /// Accepts writes; slaves follow at their own pace.
    #[default]
    AsyncMaster,
    /// Accepts writes; an acknowledged message is on a slave too.
    SyncMaster,
    /// Follows a master.
    Slave,
}

/// When an acknowledged message is on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlushDiskType {
    /// Acknowledged when written to the page cache, flushed in the background.
    #[default]
    AsyncFlush,
    /// Acknowledged when flushed.
    SyncFlush,
}

/// A type that a key can have.
trait Value: Sized {
    const TYPE: &'static str;
    const EXPECTED: &'static str;
    fn read(text: &str) -> Option<Self>;
    fn show(&self) -> String;
}

impl Value for bool {
    const TYPE: &'static str = "boolean";
    const EXPECTED: &'static str = "true or false";
    fn read(text: &str) -> Option<Self> {
        if text.eq_ignore_ascii_case("true") {
            Some(true)
        } else if text.eq_ignore_ascii_case("false") {
            Some(false)
        } else {
            None
        }
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for i32 {
    const TYPE: &'static str = "int";
    const EXPECTED: &'static str = "a whole number of 32 bits";
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for i64 {
    const TYPE: &'static str = "long";
    const EXPECTED: &'static str = "a whole number of 64 bits";
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for u16 {
    const TYPE: &'static str = "port";
    const EXPECTED: &'static str = "a port number (0 to 65535)";
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    const TYPE: &'static str = "string";
    const EXPECTED: &'static str = "text";
    fn read(text: &str) -> Option<Self> {
        Some(text.trim().to_owned())
    }
    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for BrokerRole {
    const TYPE: &'static str = "enum";
    const EXPECTED: &'static str = "ASYNC_MASTER, SYNC_MASTER or SLAVE";
    fn read(text: &str) -> Option<Self> {
        match text {
            "ASYNC_MASTER" => Some(Self::AsyncMaster),
            "SYNC_MASTER" => Some(Self::SyncMaster),
            "SLAVE" => Some(Self::Slave),
            _ => None,
        }
    }
    fn show(&self) -> String {
        match self {
            Self::AsyncMaster => "ASYNC_MASTER",
            Self::SyncMaster => "SYNC_MASTER",
            Self::Slave => "SLAVE",
        }
        .to_owned()
    }
}

impl Value for FlushDiskType {
    const TYPE: &'static str = "enum";
    const EXPECTED: &'static str = "ASYNC_FLUSH or SYNC_FLUSH";
    fn read(text: &str) -> Option<Self> {
        match text {
            "ASYNC_FLUSH" => Some(Self::AsyncFlush),
            "SYNC_FLUSH" => Some(Self::SyncFlush),
            _ => None,
        }
    }
    fn show(&self) -> String {
        match self {
            Self::AsyncFlush => "ASYNC_FLUSH",
            Self::SyncFlush => "SYNC_FLUSH",
        }
        .to_owned()
    }
}

/// When a change of the key takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Read once at start: a change needs a restart.
    AtStart,
    /// Request 25 changes it at once.
    Dynamic,
}

/// One row of the key table.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Upstream's name.
    pub name: &'static str,
    /// `int`, `long`, `boolean`, `string`, `enum`, `port`.
    pub type_name: &'static str,
    /// What a value must look like.
    pub expected: &'static str,
    /// When a change takes effect.
    pub change: Change,
    /// Shown by `-m`.
    pub important: bool,
    /// What it means.
    pub meaning: &'static str,
    get: fn(&BrokerConfig) -> String,
    set: fn(&mut BrokerConfig, &str) -> bool,
}

macro_rules! keys {
    ($( $change:ident $($important:ident)? $name:literal $field:ident: $type:ty = $default:expr, $meaning:literal; )*) => {
        /// What was written: every key that means something here, by upstream's name.
        #[derive(Clone, Debug, PartialEq)]
        pub struct BrokerConfig {
            $( #[doc = concat!("`", $name, "`: ", $meaning, "\n\nDefault: `", stringify!($default), "`")] pub $field: $type, )*
        }

        impl Default for BrokerConfig {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        /// Every key that means something here.
        pub const KEYS: &[Key] = &[ $( Key {
            name: $name,
            type_name: <$type as Value>::TYPE,
            expected: <$type as Value>::EXPECTED,
            change: Change::$change,
            important: false $(|| keys!(@$important))?,
            meaning: $meaning,
            get: |config| Value::show(&config.$field),
            set: |config, text| match <$type as Value>::read(text) {
                Some(value) => { config.$field = value; true }
                None => false,
            },
        }, )* ];
    };
    (@important) => { true };
}

keys! {
    AtStart important "brokerClusterName" broker_cluster_name: String = "DefaultCluster".to_owned(), "the cluster this broker belongs to; also the name of a system topic";
    AtStart important "brokerName" broker_name: String = default_broker_name(), "the replica group; brokers of one group share it";
    AtStart important "brokerId" broker_id: i64 = 0, "0 is the master of its group, slaves have 1 and up";
    AtStart important "brokerRole" broker_role: BrokerRole = BrokerRole::AsyncMaster, "ASYNC_MASTER, SYNC_MASTER or SLAVE";
    AtStart important "namesrvAddr" namesrv_addr: String = String::new(), "name servers, `host:port` separated by `;`; names are resolved again and again and every address is used";
    AtStart important "brokerIP1" broker_ip1: String = String::new(), "address given to clients and written into message ids; empty: advertisedHost, else the first suitable local address";
    AtStart important "brokerIP2" broker_ip2: String = String::new(), "address given to slaves; empty: brokerIP1";
    AtStart "advertisedHost" advertised_host: String = String::new(), "a name resolved once at start whose address becomes brokerIP1 (RocketCluster's own key)";
    AtStart important "listenPort" listen_port: u16 = 10911, "main port; the fast port, which serves everything but pulls, is two below it; 0 takes any free port and has no fast port";
    AtStart "haListenPort" ha_listen_port: u16 = 0, "port for slaves; 0: listenPort + 1 (any free port when that is 0 too)";
    AtStart "bindAddress" bind_address: String = "0.0.0.0".to_owned(), "local address that is listened on";
    AtStart "httpPort" http_port: u16 = 10913, "port of /livez, /readyz, /startupz and /metrics; 0: none (RocketCluster's own key)";
    Dynamic important "brokerPermission" broker_permission: i32 = 6, "2 write + 4 read for the whole broker; a change registers again";

    Dynamic "registerNameServerPeriod" register_name_server_period: i32 = 30_000, "ms between two registrations, 10000 to 60000";
    Dynamic "registerBrokerTimeoutMills" register_broker_timeout_mills: i32 = 6_000, "ms to wait for the answer to a registration";
    Dynamic "forceRegister" force_register: bool = true, "register in full each time; false: ask for the data version first (322)";
    AtStart "namesrvResolveIntervalMs" namesrv_resolve_interval_ms: i32 = 2_000, "ms between two look-ups of the names in namesrvAddr (RocketCluster's own key)";

    Dynamic important "defaultTopicQueueNums" default_topic_queue_nums: i32 = 8, "queues of the template topic TBW102";
    Dynamic important "autoCreateTopicEnable" auto_create_topic_enable: bool = true, "a send to an unknown topic creates it";
    Dynamic "autoCreateTopicOnAllMasters" auto_create_topic_on_all_masters: bool = true, "a topic created by a send is created on every master of the cluster at once (RocketCluster's own key)";
    Dynamic important "autoCreateSubscriptionGroup" auto_create_subscription_group: bool = true, "an unknown consumer group is created by its heartbeat";
    AtStart "clusterTopicEnable" cluster_topic_enable: bool = true, "the topic named like the cluster may be used";
    AtStart "brokerTopicEnable" broker_topic_enable: bool = true, "the topic named like the broker may be used";
    AtStart important "traceTopicEnable" trace_topic_enable: bool = false, "create the topic of message traces";
    AtStart "msgTraceTopicName" msg_trace_topic_name: String = "RMQ_SYS_TRACE_TOPIC".to_owned(), "name of the topic of message traces";
    Dynamic "validateSystemTopicWhenUpdateTopic" validate_system_topic_when_update_topic: bool = true, "refuse to create or change system topics";
    Dynamic "notifyConsumerIdsChangedEnable" notify_consumer_ids_changed_enable: bool = true, "tell consumers at once when their group changes";

    AtStart important "storePathRootDir" store_path_root_dir: String = default_store_path(), "folder of the store; one process at a time";
    AtStart important "storePathCommitLog" store_path_commit_log: String = String::new(), "folder of the log; empty: commitlog below storePathRootDir";
    AtStart "mappedFileSizeCommitLog" mapped_file_size_commit_log: i64 = 1_073_741_824, "bytes of a log file; counts for an empty store only, files that exist decide their size";
    AtStart "mappedFileSizeConsumeQueue" mapped_file_size_consume_queue: i64 = 6_000_000, "bytes of a queue file, rounded up to a multiple of 20; counts for an empty store only";
    AtStart important "flushDiskType" flush_disk_type: FlushDiskType = FlushDiskType::AsyncFlush, "SYNC_FLUSH: a send is answered when it is on disk";
    AtStart "flushIntervalCommitLog" flush_interval_commit_log: i32 = 500, "ms between two background flushes of the log";
    AtStart "flushCommitLogLeastPages" flush_commit_log_least_pages: i32 = 4, "4 KiB pages that make a background flush worth while";
    AtStart "flushCommitLogThoroughInterval" flush_commit_log_thorough_interval: i32 = 10_000, "ms after which the log is flushed whatever its size";
    Dynamic "syncFlushTimeout" sync_flush_timeout: i32 = 5_000, "ms that a send waits for its flush before it is answered FLUSH_DISK_TIMEOUT";
    Dynamic important "maxMessageSize" max_message_size: i32 = 4_194_304, "bytes of a message body";
    Dynamic important "fileReservedTime" file_reserved_time: i32 = 72, "hours that log files are kept";
    Dynamic important "deleteWhen" delete_when: String = "04".to_owned(), "hours of the day at which expired files are deleted, separated by `;`";
    Dynamic "diskMaxUsedSpaceRatio" disk_max_used_space_ratio: i32 = 75, "percent of disk use at which expired files are deleted at any hour, 10 to 95";
    Dynamic "diskSpaceWarningLevelRatio" disk_space_warning_level_ratio: i32 = 90, "percent of disk use at which sends are refused, 35 to 90";
    Dynamic "diskSpaceCleanForciblyRatio" disk_space_clean_forcibly_ratio: i32 = 85, "percent of disk use at which the oldest files are deleted though not expired, 30 to 85";
    Dynamic "cleanFileForciblyEnable" clean_file_forcibly_enable: bool = true, "allow deleting files that are not expired when the disk is full";
    AtStart "cleanResourceInterval" clean_resource_interval: i32 = 10_000, "ms between two looks for files to delete";
    AtStart "deleteFileBatchMax" delete_file_batch_max: i32 = 10, "log files deleted in one go at most";
    AtStart "messageIndexEnable" message_index_enable: bool = true, "index messages by key";
    AtStart "maxHashSlotNum" max_hash_slot_num: i32 = 5_000_000, "hash slots of an index file";
    AtStart "maxIndexNum" max_index_num: i32 = 20_000_000, "entries of an index file";
    Dynamic "maxMsgsNumBatch" max_msgs_num_batch: i32 = 64, "messages of one answer to a query at most";
    Dynamic "defaultQueryMaxNum" default_query_max_num: i32 = 32, "messages of a query by unique key at most";
    Dynamic "maxTransferBytesOnMessageInMemory" max_transfer_bytes_on_message_in_memory: i32 = 262_144, "bytes of one pull answer from memory";
    Dynamic "maxTransferCountOnMessageInMemory" max_transfer_count_on_message_in_memory: i32 = 32, "messages of one pull answer from memory";
    Dynamic "maxTransferBytesOnMessageInDisk" max_transfer_bytes_on_message_in_disk: i32 = 65_536, "bytes of one pull answer from disk";
    Dynamic "maxTransferCountOnMessageInDisk" max_transfer_count_on_message_in_disk: i32 = 8, "messages of one pull answer from disk";
    Dynamic "accessMessageInMemoryMaxRatio" access_message_in_memory_max_ratio: i32 = 40, "percent of memory behind the end of the log beyond which a reader counts as slow";
    AtStart "tailRingBytes" tail_ring_bytes: i64 = 33_554_432, "bytes of the newest records kept in memory (RocketCluster's own key)";
    AtStart "messageDelayLevel" message_delay_level: String = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h".to_owned(), "delays of the levels 1 and up, units s, m, h, d";
    AtStart "timerWheelEnable" timer_wheel_enable: bool = false, "messages with a delivery time of their own; not served yet, such sends are refused";

    AtStart "haMasterAddress" ha_master_address: String = String::new(), "`host:haListenPort` of a slave's master; empty: what the name servers say";
    Dynamic "haSendHeartbeatInterval" ha_send_heartbeat_interval: i32 = 5_000, "ms of silence after which either end of a replication connection says that it is there";
    Dynamic "haHousekeepingInterval" ha_housekeeping_interval: i32 = 20_000, "ms of silence after which either end closes a replication connection";
    Dynamic "haTransferBatchSize" ha_transfer_batch_size: i32 = 32_768, "bytes of the log in one chunk to a slave at most";
    Dynamic "haMaxGapNotInSync" ha_max_gap_not_in_sync: i64 = 268_435_456, "bytes behind the master beyond which a slave counts for no acknowledgement (4.9: haSlaveFallbehindMax)";
    Dynamic "haCatchUpBytesPerSecond" ha_catch_up_bytes_per_second: i64 = 67_108_864, "bytes a second that slaves further behind than haMaxGapNotInSync are sent from disk, all together, but at least twice what the log grows by; 0: as fast as they take them (RocketCluster's own key)";
    AtStart "haSlaveAckAfterFlush" ha_slave_ack_after_flush: bool = false, "a slave acknowledges only what is on its disk, so that a synchronous acknowledgement survives the power loss of all (RocketCluster's own key)";
    Dynamic "haReadyMaxLagBytes" ha_ready_max_lag_bytes: i64 = 8_388_608, "bytes behind its master up to which a slave says that it is ready (RocketCluster's own key)";
    Dynamic "slaveTimeout" slave_timeout: i32 = 3_000, "ms that a send waits for slaves before it is answered FLUSH_SLAVE_TIMEOUT";
    Dynamic "inSyncReplicas" in_sync_replicas: i32 = 1, "copies, the master's own included, that a SYNC_MASTER waits for; it always waits for one slave at least";
    Dynamic "minInSyncReplicas" min_in_sync_replicas: i32 = 1, "copies that must be in sync, or a SYNC_MASTER answers SLAVE_NOT_AVAILABLE; the lower bound with enableAutoInSyncReplicas";
    Dynamic "allAckInSyncStateSet" all_ack_in_sync_state_set: bool = false, "a SYNC_MASTER waits for every slave that is in sync";
    Dynamic "enableAutoInSyncReplicas" enable_auto_in_sync_replicas: bool = false, "a SYNC_MASTER asks for no more copies than there are in sync, but for minInSyncReplicas";
    AtStart "masterCatchUpTimeoutMs" master_catch_up_timeout_ms: i32 = 30_000, "ms that a SYNC_MASTER which lost power waits for a slave to ask for the end of the log that it may have lost; then it stays unregistered (RocketCluster's own key)";
    AtStart "masterCatchUpGoOn" master_catch_up_go_on: bool = false, "after masterCatchUpTimeoutMs serve without having asked any slave (RocketCluster's own key)";

    Dynamic "longPollingEnable" long_polling_enable: bool = true, "a pull that finds nothing waits for new messages";
    Dynamic "shortPollingTimeMills" short_polling_time_mills: i64 = 1_000, "ms that such a pull waits when longPollingEnable is false";
    Dynamic "maxLongPolls" max_long_polls: i32 = 200_000, "pulls that may wait at the same time; others are answered at once (RocketCluster's own key)";
    Dynamic "slaveReadEnable" slave_read_enable: bool = false, "let a slow consumer read from a slave; a slave serves pulls only when it is set there too";
    Dynamic "offsetCheckInSlave" offset_check_in_slave: bool = false, "a slave tells a consumer that reads outside its queue where to go on; false: its master may know better";
    Dynamic "slaveSyncIntervalMs" slave_sync_interval_ms: i32 = 1_000, "ms between two copies of its master's offsets by a slave; topics and groups are copied every third time, in a dledger group they are in its log (RocketCluster's own key)";
    Dynamic "litePullMessageEnable" lite_pull_message_enable: bool = true, "serve request 361";
    Dynamic "enablePropertyFilter" enable_property_filter: bool = false, "SQL92 expressions; not served yet, such subscriptions are refused";
    Dynamic "rejectPullConsumerEnable" reject_pull_consumer_enable: bool = false, "refuse pulls of connections that did not register as a consumer";
    Dynamic "useServerSideResetOffset" use_server_side_reset_offset: bool = true, "reset offsets on the broker rather than through the clients";
    Dynamic "flushConsumerOffsetInterval" flush_consumer_offset_interval: i32 = 5_000, "ms between two writes of the consumer offsets";
    AtStart "flushDelayOffsetInterval" flush_delay_offset_interval: i32 = 10_000, "ms between two writes of the delay offsets";

    Dynamic "regionId" region_id: String = "DefaultRegion".to_owned(), "property MSG_REGION of every message";
    Dynamic "traceOn" trace_on: bool = true, "property TRACE_ON of every message";
    Dynamic "startAcceptSendRequestTimeStamp" start_accept_send_request_time_stamp: i64 = 0, "ms since 1970 before which sends are refused";
    Dynamic "rejectTransactionMessage" reject_transaction_message: bool = false, "refuse transaction messages";
    Dynamic "channelExpiredTimeout" channel_expired_timeout: i64 = 120_000, "ms of silence after which a client counts as gone";
    AtStart "serverChannelMaxIdleTimeSeconds" server_channel_max_idle_time_seconds: i32 = 120, "seconds after which an idle connection is closed";
    AtStart "maxConnections" max_connections: i32 = 16_384, "client connections at most (RocketCluster's own key)";
    AtStart "maxInFlightBytesPerConnection" max_in_flight_bytes_per_connection: i64 = 67_108_864, "the same for the sends of one connection (RocketCluster's own key)";
    AtStart "maxInFlightBytes" max_in_flight_bytes: i64 = 268_435_456, "bytes of sends not yet answered beyond which further sends are answered SYSTEM_BUSY (RocketCluster's own key)";
    AtStart "workerThreads" worker_threads: i32 = 0, "threads that serve connections; 0: one a core (RocketCluster's own key)";
    AtStart "shutdownDrainMs" shutdown_drain_ms: i32 = 2_000, "ms for which pulls are served after the broker left its name servers (RocketCluster's own key)";
    AtStart "configBlackList" config_black_list: String = "configBlackList;brokerConfigPath".to_owned(), "keys that request 25 refuses";

    AtStart "enableDLegerCommitLog" enable_dleger_commit_log: bool = false, "the broker is a member of a group that elects its master; its log is a Raft log, and brokerRole, brokerId and storePathCommitLog are without effect";
    AtStart "dLegerGroup" d_leger_group: String = String::new(), "name of the group; empty: brokerName";
    AtStart "dLegerPeers" d_leger_peers: String = String::new(), "members of the group at its first start, `n0-host:port;n1-host:port;…`; later the group's own membership counts";
    AtStart "dLegerSelfId" d_leger_self_id: String = String::new(), "which of dLegerPeers this broker is, `nK`";
    AtStart "storePathDLedgerCommitLog" store_path_dledger_commit_log: String = String::new(), "folder of the log of a group that elects its master, and of the member's state; empty: dledger-nK below storePathRootDir";
    AtStart "preferredLeaderId" preferred_leader_id: String = String::new(), "the member that leads whenever it can, `nK`";
    AtStart "enableControllerMode" enable_controller_mode: bool = false, "not served; see enableDLegerCommitLog";
    AtStart "aclEnable" acl_enable: bool = false, "access control; not served yet";
    AtStart "authenticationEnabled" authentication_enabled: bool = false, "access control of 5.3; not served yet";
    AtStart "authorizationEnabled" authorization_enabled: bool = false, "access control of 5.3; not served yet";
}

/// Keys with two spellings: `(historic, current)`.
const HISTORIC: &[(&str, &str)] = &[
    ("mapedFileSizeCommitLog", "mappedFileSizeCommitLog"),
    ("mapedFileSizeConsumeQueue", "mappedFileSizeConsumeQueue"),
    ("haSlaveFallbehindMax", "haMaxGapNotInSync"),
];

/// Upstream's keys that have no effect here, and why. They are accepted without a warning, so that files of the original work unchanged.
pub const NOT_APPLICABLE: &[(&str, &str)] = &[
    (
        "storePathConsumeQueue",
        "not a property of any broker; derived from storePathRootDir",
    ),
    (
        "storePathIndex",
        "not a property of any broker; derived from storePathRootDir",
    ),
    (
        "storeCheckpoint",
        "not a property of any broker; derived from storePathRootDir",
    ),
    (
        "abortFile",
        "not a property of any broker; derived from storePathRootDir",
    ),
    (
        "checkTransactionMessageEnable",
        "not a property of any broker",
    ),
    (
        "enableBatchPush",
        "entries of a group always travel many at a time",
    ),
    (
        "isEnableBatchPush",
        "entries of a group always travel many at a time",
    ),
    (
        "compressedRegister",
        "registrations are sent as plain JSON, as 5.x does",
    ),
    ("rocketmqHome", "no folder of programs is needed"),
    ("destroyMapedFileIntervalForcibly", "files are not mapped"),
    ("redeleteHangedFileInterval", "files are not mapped"),
    ("warmMapedFileEnable", "files are not mapped"),
    ("useReentrantLockWhenPutMessage", "there is one short lock"),
    (
        "osPageCacheBusyTimeOutMills",
        "no lock is held over a write",
    ),
    ("transferMsgByHeap", "records are always copied from memory"),
    (
        "flushIntervalConsumeQueue",
        "queues are written in the background and flushed before the checkpoint",
    ),
    (
        "flushConsumeQueueLeastPages",
        "see flushIntervalConsumeQueue",
    ),
    (
        "flushConsumeQueueThoroughInterval",
        "see flushIntervalConsumeQueue",
    ),
    ("deleteCommitLogFilesInterval", "deletions are 100 ms apart"),
    (
        "deleteConsumeQueueFilesInterval",
        "queue files go together with the log file they point into",
    ),
    (
        "messageIndexSafe",
        "what the index lacks after a crash is read from the log again",
    ),
    (
        "filterSupportRetry",
        "helps SQL92 filters, which are not served yet",
    ),
    ("disableConsumeIfConsumerReadSlowly", "not served yet"),
    (
        "consumerFallbehindThreshold",
        "see disableConsumeIfConsumerReadSlowly",
    ),
    ("transientStorePoolEnable", "the tail ring does its work"),
    ("transientStorePoolSize", "the tail ring does its work"),
    (
        "fastFailIfNoBufferInStorePool",
        "the tail ring does its work",
    ),
    ("commitIntervalCommitLog", "the tail ring does its work"),
    ("commitCommitLogLeastPages", "the tail ring does its work"),
    (
        "commitCommitLogThoroughInterval",
        "the tail ring does its work",
    ),
    (
        "sendMessageThreadPoolNums",
        "there are no pools; see workerThreads",
    ),
    ("putMessageFutureThreadPoolNums", "there are no pools"),
    (
        "pullMessageThreadPoolNums",
        "there are no pools; see workerThreads",
    ),
    ("litePullMessageThreadPoolNums", "there are no pools"),
    ("queryMessageThreadPoolNums", "there are no pools"),
    ("adminBrokerThreadPoolNums", "there are no pools"),
    ("clientManageThreadPoolNums", "there are no pools"),
    ("consumerManageThreadPoolNums", "there are no pools"),
    ("heartbeatThreadPoolNums", "there are no pools"),
    ("endTransactionThreadPoolNums", "there are no pools"),
    ("ackMessageThreadPoolNums", "there are no pools"),
    ("processReplyMessageThreadPoolNums", "there are no pools"),
    (
        "sendThreadPoolQueueCapacity",
        "there are no queues; see maxInFlightBytes",
    ),
    ("putThreadPoolQueueCapacity", "there are no queues"),
    (
        "pullThreadPoolQueueCapacity",
        "there are no queues; see maxLongPolls",
    ),
    ("litePullThreadPoolQueueCapacity", "there are no queues"),
    ("queryThreadPoolQueueCapacity", "there are no queues"),
    (
        "clientManagerThreadPoolQueueCapacity",
        "there are no queues",
    ),
    (
        "consumerManagerThreadPoolQueueCapacity",
        "there are no queues",
    ),
    ("heartbeatThreadPoolQueueCapacity", "there are no queues"),
    ("endTransactionPoolQueueCapacity", "there are no queues"),
    ("ackThreadPoolQueueCapacity", "there are no queues"),
    ("adminBrokerThreadPoolQueueCapacity", "there are no queues"),
    ("replyThreadPoolQueueCapacity", "there are no queues"),
    ("brokerFastFailureEnable", "requests do not queue"),
    ("waitTimeMillsInSendQueue", "requests do not queue"),
    ("waitTimeMillsInPullQueue", "requests do not queue"),
    ("waitTimeMillsInLitePullQueue", "requests do not queue"),
    ("waitTimeMillsInHeartbeatQueue", "requests do not queue"),
    ("waitTimeMillsInTransactionQueue", "requests do not queue"),
    ("waitTimeMillsInAckQueue", "requests do not queue"),
    ("waitTimeMillsInAdminBrokerQueue", "requests do not queue"),
    ("serverWorkerThreads", "see workerThreads"),
    ("serverSelectorThreads", "see workerThreads"),
    ("serverCallbackExecutorThreads", "see workerThreads"),
    (
        "serverOnewaySemaphoreValue",
        "oneway requests are bounded by each connection's output",
    ),
    (
        "serverAsyncSemaphoreValue",
        "calls to clients are bounded by each connection's output",
    ),
    ("serverSocketSndBufSize", "the system decides"),
    ("serverSocketRcvBufSize", "the system decides"),
    ("serverPooledByteBufAllocatorEnable", "Java only"),
    ("useEpollNativeSelector", "Java only"),
    ("clientWorkerThreads", "Java only"),
    ("connectTimeoutMillis", "the calls' own timeouts count"),
    (
        "clientChannelMaxIdleTimeSeconds",
        "connections to name servers stay open",
    ),
    (
        "clientCloseSocketIfTimeout",
        "the calls' own timeouts count",
    ),
    ("useTLS", "not served yet"),
    (
        "fetchNamesrvAddrByAddressServer",
        "names in namesrvAddr are resolved again and again",
    ),
    (
        "fetchNameSrvAddrByDnsLookup",
        "names in namesrvAddr are resolved again and again",
    ),
    ("subscriptionExpiredTimeout", "not served yet"),
    ("storeReplyMessageEnable", "request-reply is not served yet"),
    (
        "enableCalcFilterBitMap",
        "helps SQL92 filters, which are not served yet",
    ),
    (
        "enableConsumeQueueExt",
        "helps SQL92 filters, which are not served yet",
    ),
    (
        "transactionTimeOut",
        "transaction messages are not served yet",
    ),
    (
        "transactionCheckMax",
        "transaction messages are not served yet",
    ),
    (
        "transactionCheckInterval",
        "transaction messages are not served yet",
    ),
    (
        "recallMessageEnable",
        "messages with a delivery time are not served yet",
    ),
    (
        "timerPrecisionMs",
        "messages with a delivery time are not served yet",
    ),
    (
        "timerRollWindowSlot",
        "messages with a delivery time are not served yet",
    ),
    (
        "timerMaxDelaySec",
        "messages with a delivery time are not served yet",
    ),
    (
        "timerCongestNumEachSlot",
        "messages with a delivery time are not served yet",
    ),
    ("timerInterceptDelayLevel", "read by no broker"),
    ("lockInStrictMode", "a queue is locked on its master"),
    ("enableSlaveActingMaster", "acting masters are not served"),
    ("enableRemoteEscape", "acting masters are not served"),
    ("brokerHeartbeatInterval", "acting masters are not served"),
    (
        "brokerNotActiveTimeoutMillis",
        "acting masters are not served",
    ),
    ("duplicationEnable", "read by no released broker"),
    ("totalReplicas", "the slaves that are connected count"),
    (
        "haFlowControlEnable",
        "catching up is always bounded; see haCatchUpBytesPerSecond",
    ),
    ("maxHaTransferByteInSecond", "see haCatchUpBytesPerSecond"),
    ("controllerAddr", "see enableControllerMode"),
    (
        "autoDeleteUnusedStats",
        "unused statistics cost nothing here",
    ),
    ("metricsExporterType", "see httpPort"),
    ("metricsPromExporterPort", "see httpPort"),
    ("popPollingSize", "pop consumption is not served yet"),
    ("reviveQueueNum", "pop consumption is not served yet"),
    ("enablePopBufferMerge", "pop consumption is not served yet"),
    ("enableRetryTopicV2", "pop consumption is not served yet"),
    (
        "popConsumerKVServiceEnable",
        "pop consumption is not served yet",
    ),
    (
        "defaultMessageRequestMode",
        "pop consumption is not served yet",
    ),
    (
        "serverLoadBalancerEnable",
        "pop consumption is not served yet",
    ),
    ("storeType", "there is one kind of store"),
    ("enableMultiDispatch", "light queues are not served"),
    ("enableLmq", "light queues are not served"),
    ("brokerConfigPath", "the file given with -c"),
];

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A line of a file.
    File(PathBuf, usize),
    /// An environment variable.
    Environment(String),
    /// An option of the command line.
    Flag(&'static str),
    /// The body of request 25.
    Request,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => write!(f, "option {flag}"),
            Self::Request => f.write_str("request"),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The file is not properties text.
    #[error("{path}: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line and reason.
        source: properties::ParseError,
    },
    /// A value is not of the key's type.
    #[error("{from}: {key}={value}: expected {expected}")]
    Value {
        /// Where it was written.
        from: Source,
        /// The key.
        key: String,
        /// What was written.
        value: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// A key that nobody knows, where that is an error.
    #[error("{0}")]
    Unknown(Warning),
    /// Well formed, but it cannot be.
    #[error("{key}={value}: {reason}")]
    Refused {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// Why not.
        reason: String,
    },
}

/// Something in a configuration that the user should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where it was written.
    pub from: Source,
    /// The key as written.
    pub key: String,
    /// The known key that it resembles.
    pub nearest: Option<&'static str>,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: unknown key, ignored", self.from, self.key)?;
        match self.nearest {
            Some(nearest) => write!(f, "; did you mean {nearest}?"),
            None => Ok(()),
        }
    }
}

/// What became of one `key = value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Set; the row of the key.
    Set(&'static str),
    /// Known upstream, without effect here.
    NotApplicable,
    /// Nobody knows it.
    Unknown,
}

/// The row of a key, historic spellings included.
pub fn find_key(name: &str) -> Option<&'static Key> {
    let name = HISTORIC
        .iter()
        .find(|(old, _)| *old == name)
        .map_or(name, |(_, new)| new);
    KEYS.iter().find(|k| k.name == name)
}

/// The line of a properties text that sets this key, historic spellings included; the last one counts.
pub fn line_of(text: &[u8], key: &str) -> Option<usize> {
    let properties = Properties::parse(text).ok()?;
    properties
        .iter()
        .filter(|property| find_key(&property.key).is_some_and(|found| found.name == key))
        .map(|property| property.line)
        .last()
}

impl Key {
    /// The value in force, as text.
    pub fn value(&self, config: &BrokerConfig) -> String {
        (self.get)(config)
    }
}

impl BrokerConfig {
    /// Sets one key from text.
    pub fn set(&mut self, from: Source, name: &str, value: &str) -> Result<Applied, Error> {
        let Some(key) = find_key(name) else {
            let known = NOT_APPLICABLE.iter().any(|(k, _)| *k == name);
            return Ok(if known {
                Applied::NotApplicable
            } else {
                Applied::Unknown
            });
        };
        if (key.set)(self, value.trim()) {
            Ok(Applied::Set(key.name))
        } else {
            Err(Error::Value {
                from,
                key: name.to_owned(),
                value: value.to_owned(),
                expected: key.expected,
            })
        }
    }

    /// Applies a file's text; returns what the user should look at.
    pub fn apply_file(&mut self, path: &Path, bytes: &[u8]) -> Result<Vec<Warning>, Error> {
        let properties = Properties::parse(bytes).map_err(|source| Error::Syntax {
            path: path.to_owned(),
            source,
        })?;
        let mut warnings = Vec::new();
        for property in properties.iter() {
            let from = Source::File(path.to_owned(), property.line);
            if self.set(from.clone(), &property.key, &property.value)? == Applied::Unknown {
                let known = KEYS
                    .iter()
                    .map(|k| k.name)
                    .chain(NOT_APPLICABLE.iter().map(|(k, _)| *k));
                warnings.push(Warning {
                    from,
                    key: property.key.clone(),
                    nearest: properties::nearest(&property.key, known),
                });
            }
        }
        Ok(warnings)
    }

    /// Applies `ROCKETMQ_<KEY>` variables.
    pub fn apply_environment(
        &mut self,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<(), Error> {
        for (name, value) in properties::from_environment(KEYS.iter().map(|k| k.name), environment)
        {
            let from = Source::Environment(properties::environment_name(name));
            self.set(from, name, &value)?;
        }
        Ok(())
    }

    /// Every key with the value in force, sorted by name.
    pub fn values(&self) -> BTreeMap<&'static str, String> {
        KEYS.iter().map(|k| (k.name, k.value(self))).collect()
    }

    /// Properties text of every key, as request 26 and `-p` answer it.
    pub fn to_properties(&self) -> String {
        let values = self.values();
        properties::write(values.iter().map(|(k, v)| (*k, v.as_str())))
    }

    /// Values that upstream bends into their range; `-p` and request 26 show what counts.
    pub(crate) fn clamp(&mut self) {
        let bend = |value: &mut i32, low, high| *value = (*value).clamp(low, high);
        bend(&mut self.disk_max_used_space_ratio, 10, 95);
        bend(&mut self.disk_space_clean_forcibly_ratio, 30, 85);
        bend(&mut self.disk_space_warning_level_ratio, 35, 90);
    }

    /// Checks what single values cannot tell and derives what is used.
    pub fn validate(mut self) -> Result<Settings, Error> {
        fn refuse<T>(
            key: &'static str,
            value: impl ToString,
            reason: impl Into<String>,
        ) -> Result<T, Error> {
            Err(Error::Refused {
                key,
                value: value.to_string(),
                reason: reason.into(),
            })
        }
        fn within(key: &'static str, value: i64, low: i64, high: i64) -> Result<(), Error> {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            refuse(key, value, format!("must lie between {low} and {high}"))
        }
        for (key, on, reason) in [
            (
                "enableControllerMode",
                self.enable_controller_mode,
                "the controller mode is not served; brokers fail over with enableDLegerCommitLog",
            ),
            (
                "aclEnable",
                self.acl_enable,
                "access control is not served yet; starting without it would leave the broker open",
            ),
            (
                "authenticationEnabled",
                self.authentication_enabled,
                "access control is not served yet; starting without it would leave the broker open",
            ),
            (
                "authorizationEnabled",
                self.authorization_enabled,
                "access control is not served yet; starting without it would leave the broker open",
            ),
            (
                "timerWheelEnable",
                self.timer_wheel_enable,
                "messages with a delivery time of their own are not served yet; delay levels are",
            ),
            (
                "enablePropertyFilter",
                self.enable_property_filter,
                "SQL92 filters are not served yet; tags are",
            ),
        ] {
            if on {
                return refuse(key, true, reason);
            }
        }
        match self.broker_role {
            BrokerRole::Slave if self.broker_id <= 0 => {
                return refuse(
                    "brokerId",
                    self.broker_id,
                    "a slave has an id of 1 or above; 0 is its master's",
                );
            }
            BrokerRole::Slave => {}
            // Upstream `BrokerStartup`: a master has id 0, whatever was written.
            BrokerRole::AsyncMaster | BrokerRole::SyncMaster => self.broker_id = 0,
        }
        for (key, value) in [
            ("brokerClusterName", &self.broker_cluster_name),
            ("brokerName", &self.broker_name),
        ] {
            let good = !value.is_empty()
                && value.len() <= MAX_NAME_BYTES
                && value.bytes().all(|b| {
                    b.is_ascii_alphanumeric() || matches!(b, b'%' | b'|' | b'_' | b'-' | b'.')
                });
            if !good {
                return refuse(
                    key,
                    value,
                    format!("must be 1 to {MAX_NAME_BYTES} letters, digits or `%|_-.`"),
                );
            }
        }
        within(
            "defaultTopicQueueNums",
            self.default_topic_queue_nums.into(),
            1,
            MAX_QUEUES_PER_TOPIC,
        )?;
        within("brokerPermission", self.broker_permission.into(), 0, 6)?;
        within(
            "maxMessageSize",
            self.max_message_size.into(),
            1024,
            i64::from(MAX_FRAME_BYTES) - 65_536,
        )?;
        within(
            "mappedFileSizeCommitLog",
            self.mapped_file_size_commit_log,
            64 * 1024,
            1 << 31,
        )?;
        within(
            "mappedFileSizeConsumeQueue",
            self.mapped_file_size_consume_queue,
            20,
            1 << 31,
        )?;
        within("tailRingBytes", self.tail_ring_bytes, 1 << 20, 1 << 34)?;
        within(
            "fileReservedTime",
            self.file_reserved_time.into(),
            1,
            i64::from(i32::MAX),
        )?;
        within("maxConnections", self.max_connections.into(), 1, 1_000_000)?;
        within("maxLongPolls", self.max_long_polls.into(), 0, 10_000_000)?;
        within(
            "maxInFlightBytes",
            self.max_in_flight_bytes,
            1 << 20,
            1 << 40,
        )?;
        within(
            "maxInFlightBytesPerConnection",
            self.max_in_flight_bytes_per_connection,
            1 << 16,
            1 << 40,
        )?;
        within("workerThreads", self.worker_threads.into(), 0, 1024)?;
        within("shutdownDrainMs", self.shutdown_drain_ms.into(), 0, 600_000)?;
        within(
            "haTransferBatchSize",
            self.ha_transfer_batch_size.into(),
            1024,
            // A stock slave reads into a buffer of 4 MiB.
            i64::from(crate::ha::MAX_CHUNK),
        )?;
        within("haMaxGapNotInSync", self.ha_max_gap_not_in_sync, 1, 1 << 50)?;
        within(
            "haCatchUpBytesPerSecond",
            self.ha_catch_up_bytes_per_second,
            0,
            1 << 50,
        )?;
        within(
            "haReadyMaxLagBytes",
            self.ha_ready_max_lag_bytes,
            0,
            1 << 50,
        )?;
        for (key, value) in [
            ("inSyncReplicas", self.in_sync_replicas),
            ("minInSyncReplicas", self.min_in_sync_replicas),
        ] {
            within(key, value.into(), 1, 64)?;
        }
        within(
            "serverChannelMaxIdleTimeSeconds",
            self.server_channel_max_idle_time_seconds.into(),
            1,
            86_400,
        )?;
        within(
            "namesrvResolveIntervalMs",
            self.namesrv_resolve_interval_ms.into(),
            100,
            600_000,
        )?;
        within(
            "maxHashSlotNum",
            self.max_hash_slot_num.into(),
            1,
            i64::from(i32::MAX / 4),
        )?;
        within(
            "maxIndexNum",
            self.max_index_num.into(),
            2,
            i64::from(i32::MAX / 20),
        )?;
        for (key, value) in [
            (
                "registerBrokerTimeoutMills",
                self.register_broker_timeout_mills,
            ),
            ("registerNameServerPeriod", self.register_name_server_period),
            ("flushIntervalCommitLog", self.flush_interval_commit_log),
            ("syncFlushTimeout", self.sync_flush_timeout),
            ("cleanResourceInterval", self.clean_resource_interval),
            (
                "flushConsumerOffsetInterval",
                self.flush_consumer_offset_interval,
            ),
            ("flushDelayOffsetInterval", self.flush_delay_offset_interval),
            ("haSendHeartbeatInterval", self.ha_send_heartbeat_interval),
            ("slaveSyncIntervalMs", self.slave_sync_interval_ms),
            ("haHousekeepingInterval", self.ha_housekeeping_interval),
            ("slaveTimeout", self.slave_timeout),
            ("masterCatchUpTimeoutMs", self.master_catch_up_timeout_ms),
        ] {
            within(key, value.into(), 1, i64::from(i32::MAX))?;
        }
        let delay_levels = match parse_delay_levels(&self.message_delay_level) {
            Some(levels) => levels,
            None => {
                return refuse(
                    "messageDelayLevel",
                    &self.message_delay_level,
                    "expected delays such as `1s 5s 1m 2h 1d` separated by blanks",
                );
            }
        };
        let Some(delete_when) = parse_delete_when(&self.delete_when) else {
            return refuse(
                "deleteWhen",
                &self.delete_when,
                "expected hours 00 to 23 separated by `;`",
            );
        };
        let bind_address: IpAddr = match self.bind_address.parse() {
            Ok(address) => address,
            Err(_) => {
                return refuse(
                    "bindAddress",
                    &self.bind_address,
                    "expected an IP address of this machine, or 0.0.0.0",
                );
            }
        };
        if matches!(self.listen_port, 1 | 2) {
            return refuse(
                "listenPort",
                self.listen_port,
                "the fast port would be below 1",
            );
        }
        let advertised: IpAddr = if !self.broker_ip1.is_empty() {
            match self.broker_ip1.parse() {
                Ok(address) => address,
                Err(_) => {
                    return refuse(
                        "brokerIP1",
                        &self.broker_ip1,
                        "expected an IP address; a name goes into advertisedHost",
                    );
                }
            }
        } else if !bind_address.is_unspecified() {
            bind_address
        } else {
            local_address()
        };
        let root: PathBuf = self.store_path_root_dir.clone().into();
        if self.store_path_root_dir.is_empty() {
            return refuse("storePathRootDir", "", "the store needs a folder");
        }
        for (key, folders) in [
            ("storePathCommitLog", &self.store_path_commit_log),
            (
                "storePathDLedgerCommitLog",
                &self.store_path_dledger_commit_log,
            ),
        ] {
            if folders.contains(',') {
                return refuse(key, folders, "several log folders are not served");
            }
        }
        self.clamp();
        let dledger = self.dledger()?;
        if let Some(group) = &dledger {
            // Upstream: only the group knows who is master.
            self.broker_role = BrokerRole::SyncMaster;
            self.broker_id = 0;
            self.store_path_commit_log = match self.store_path_dledger_commit_log.as_str() {
                "" => root
                    .join(format!("dledger-{}", self.d_leger_self_id))
                    .to_string_lossy()
                    .into_owned(),
                folder => folder.to_owned(),
            };
            tracing::debug!(group = group.group, "a member of a group");
        }
        Ok(Settings {
            dledger,
            commit_log_path: (!self.store_path_commit_log.is_empty())
                .then(|| self.store_path_commit_log.clone().into()),
            root,
            bind_address,
            advertised,
            delay_levels,
            delete_when,
            shutdown_drain: Duration::from_millis(
                u64::try_from(self.shutdown_drain_ms).unwrap_or(0),
            ),
            config_hash: String::new(),
            config_path: None,
            raw: self,
        })
    }
}

/// A member of a group that elects its own master (`enableDLegerCommitLog`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DLedgerConfig {
    /// `dLegerGroup`.
    pub group: String,
    /// K + 1 for `dLegerSelfId=nK`.
    pub id: u64,
    /// `host:port` of each member, by id.
    pub peers: BTreeMap<u64, String>,
    /// The port of its own address.
    pub port: u16,
    /// `preferredLeaderId`.
    pub preferred: Option<u64>,
}

impl BrokerConfig {
    fn dledger(&self) -> Result<Option<DLedgerConfig>, Error> {
        use crate::dledger::service::id_of;
        if !self.enable_dleger_commit_log {
            return Ok(None);
        }
        let refuse = |key: &'static str, value: &str, reason: String| Error::Refused {
            key,
            value: value.to_owned(),
            reason,
        };
        let me = &self.d_leger_self_id;
        let id = id_of(me).ok_or_else(|| {
            refuse(
                "dLegerSelfId",
                me,
                "must be nK, K a number from 0".to_owned(),
            )
        })?;
        let list = &self.d_leger_peers;
        let mut peers = BTreeMap::new();
        for entry in list.split(';').map(str::trim).filter(|e| !e.is_empty()) {
            let parsed = entry.split_once('-').and_then(|(name, address)| {
                let (host, port) = address.rsplit_once(':')?;
                let port: u16 = port.parse().ok()?;
                (!host.is_empty()).then_some((id_of(name)?, address.to_owned(), port))
            });
            let Some((peer, address, _)) = parsed else {
                return Err(refuse(
                    "dLegerPeers",
                    list,
                    format!("{entry} is not nK-host:port"),
                ));
            };
            if peers.insert(peer, address).is_some() {
                return Err(refuse(
                    "dLegerPeers",
                    list,
                    format!("{entry} is not the only one of its id"),
                ));
            }
        }
        if peers.len() > crate::dledger::entry::MAX_MEMBERS {
            let most = crate::dledger::entry::MAX_MEMBERS;
            return Err(refuse(
                "dLegerPeers",
                list,
                format!("a group has {most} members at most"),
            ));
        }
        let port = peers
            .get(&id)
            .and_then(|a| a.rsplit_once(':')?.1.parse().ok())
            .ok_or_else(|| {
                refuse(
                    "dLegerPeers",
                    list,
                    format!("{me} (dLegerSelfId) is not among them"),
                )
            })?;
        let preferred = match self.preferred_leader_id.as_str() {
            "" => None,
            name => Some(
                id_of(name)
                    .filter(|id| peers.contains_key(id))
                    .ok_or_else(|| {
                        refuse(
                            "preferredLeaderId",
                            name,
                            "is not one of dLegerPeers".to_owned(),
                        )
                    })?,
            ),
        };
        let group = match self.d_leger_group.as_str() {
            "" => self.broker_name.clone(),
            name => name.to_owned(),
        };
        Ok(Some(DLedgerConfig {
            group,
            id,
            peers,
            port,
            preferred,
        }))
    }
}

/// Longest cluster or broker name; upstream's bound for topic names, because both are topics too.
const MAX_NAME_BYTES: usize = 127;
/// Largest frame of the protocol.
const MAX_FRAME_BYTES: i32 = 16 * 1024 * 1024;
/// How long a name in advertisedHost may stay unknown at the start, and how often it is looked up meanwhile.
const ADVERTISED_HOST_PATIENCE: Duration = Duration::from_secs(20);
const ADVERTISED_HOST_PAUSE: Duration = Duration::from_millis(500);
/// More queues than a topic can use to any end.
pub const MAX_QUEUES_PER_TOPIC: i64 = 65_536;

/// What is used: validated, with everything derived that needed the machine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The values as written.
    pub raw: BrokerConfig,
    /// The group that this broker is a member of, if it elects its own master.
    pub dledger: Option<DLedgerConfig>,
    /// Folder of the store.
    pub root: PathBuf,
    /// Folder of the log, when it is not below the root.
    pub commit_log_path: Option<PathBuf>,
    /// Address that is listened on.
    pub bind_address: IpAddr,
    /// Address given to clients and written into message ids (`brokerIP1`).
    pub advertised: IpAddr,
    /// Delays of level 1 and up.
    pub delay_levels: Vec<Duration>,
    /// Hours at which expired files are deleted.
    pub delete_when: Vec<u8>,
    /// How long pulls are served after leaving the name servers.
    pub shutdown_drain: Duration,
    /// Hash of the file this process started with; empty without a file.
    pub config_hash: String,
    /// The file given with `-c`.
    pub config_path: Option<PathBuf>,
}

impl Settings {
    /// The configuration with what follows from the machine and from other keys filled in.
    pub fn in_force(&self) -> BrokerConfig {
        let mut config = self.raw.clone();
        if config.advertised_host.is_empty() {
            config.broker_ip1 = self.advertised.to_string();
            if config.broker_ip2.is_empty() {
                config.broker_ip2.clone_from(&config.broker_ip1);
            }
        }
        if config.ha_listen_port == 0 && config.listen_port > 0 {
            config.ha_listen_port = config.listen_port.saturating_add(1);
        }
        config.store_path_root_dir = self.root.to_string_lossy().into_owned();
        if config.store_path_commit_log.is_empty() {
            let path = self.root.join("commitlog");
            config.store_path_commit_log = path.to_string_lossy().into_owned();
        }
        config
    }

    /// Looks up `advertisedHost`, unless brokerIP1 is given. The name of a Service that was just made may need a moment.
    pub(crate) async fn resolve_advertised(&mut self) -> Result<(), Error> {
        let name = &self.raw.advertised_host;
        if name.is_empty() || !self.raw.broker_ip1.is_empty() {
            return Ok(());
        }
        let resolver = Resolver::from_env();
        let address = format!("{name}:{}", self.raw.listen_port);
        let deadline = Instant::now() + ADVERTISED_HOST_PATIENCE;
        loop {
            match resolver.lookup(&address).await {
                Ok(found) if !found.is_empty() => {
                    // A name may have addresses of both kinds; clients reach the kind that is listened on.
                    let same_kind = |a: &&SocketAddr| a.is_ipv4() == self.bind_address.is_ipv4();
                    let chosen = found.iter().find(same_kind).unwrap_or(&found[0]);
                    self.advertised = chosen.ip();
                    return Ok(());
                }
                Err(error) if Instant::now() >= deadline => {
                    return Err(Error::Refused {
                        key: "advertisedHost",
                        value: name.clone(),
                        reason: format!("cannot be resolved: {error}"),
                    });
                }
                _ => tokio::time::sleep(ADVERTISED_HOST_PAUSE).await,
            }
        }
    }

    /// Folder of the log.
    pub fn commit_log_folder(&self) -> PathBuf {
        self.commit_log_path
            .clone()
            .unwrap_or_else(|| self.root.join("commitlog"))
    }
}

/// `04;16` → hours of the day.
pub fn parse_delete_when(text: &str) -> Option<Vec<u8>> {
    let hours = text
        .split(';')
        .map(str::trim)
        .filter(|hour| !hour.is_empty());
    hours
        .map(|hour| hour.parse().ok().filter(|hour| *hour < 24))
        .collect()
}

/// `1s 5s 1m 2h 1d` → delays.
pub fn parse_delay_levels(text: &str) -> Option<Vec<Duration>> {
    let levels: Option<Vec<Duration>> = text
        .split_ascii_whitespace()
        .map(|level| {
            let unit = level.chars().last()?;
            let seconds: u64 = match unit {
                's' => 1,
                'm' => 60,
                'h' => 3_600,
                'd' => 86_400,
                _ => return None,
            };
            let number: u64 = level[..level.len() - 1].parse().ok()?;
            Some(Duration::from_secs(number.checked_mul(seconds)?))
        })
        .collect();
    levels.filter(|l| !l.is_empty())
}

/// The text of a file with some keys changed: known lines are replaced where the key stands last, other lines and comments stay.
pub(crate) fn merge_file<'a>(
    text: &[u8],
    changes: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<String, properties::ParseError> {
    let written = Properties::parse(text)?;
    let mut lines: Vec<String> = match std::str::from_utf8(text) {
        Ok(text) => text.lines().map(str::to_owned).collect(),
        // What Java reads as ISO-8859-1 is written back as escapes, which mean the same in either reading.
        Err(_) => properties::write(written.iter().map(|p| (p.key.as_str(), p.value.as_str())))
            .lines()
            .map(str::to_owned)
            .collect(),
    };
    let written = Properties::parse(lines.join("\n").as_bytes())?;
    for (key, value) in changes {
        let line = properties::write([(key, value)]).trim_end().to_owned();
        let same = |name: &str| {
            name == key
                || HISTORIC
                    .iter()
                    .any(|(old, new)| *old == name && *new == key)
        };
        match written.iter().filter(|p| same(&p.key)).last() {
            Some(property) => {
                let at = property.line - 1;
                // A value that went on over several lines: its continuation lines become empty.
                let mut last = at;
                while last + 1 < lines.len()
                    && lines[last]
                        .bytes()
                        .rev()
                        .take_while(|b| *b == b'\\')
                        .count()
                        % 2
                        == 1
                {
                    last += 1;
                }
                for continuation in &mut lines[at + 1..=last] {
                    continuation.clear();
                }
                lines[at] = line;
            }
            None => lines.push(line),
        }
    }
    let mut merged = lines.join("\n");
    merged.push('\n');
    Ok(merged)
}

fn default_broker_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    if name.is_empty() {
        "DEFAULT_BROKER".to_owned()
    } else {
        name
    }
}

fn default_store_path() -> String {
    match std::env::var("HOME") {
        Ok(home) if !home.is_empty() => format!("{}/store", home.trim_end_matches('/')),
        _ => "store".to_owned(),
    }
}

/// The local address that packets to other machines would carry; nothing is sent. Loopback when the machine has no route.
fn local_address() -> IpAddr {
    let probe = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // An address of the documentation range: connecting a datagram socket only asks the routing table.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    probe().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (BrokerConfig, Vec<String>) {
        let mut config = BrokerConfig::default();
        let warnings = config
            .apply_file(Path::new("broker.conf"), text.as_bytes())
            .unwrap();
        (config, warnings.iter().map(ToString::to_string).collect())
    }

    fn refusal(text: &str) -> String {
        let mut config = BrokerConfig::default();
        match config.apply_file(Path::new("broker.conf"), text.as_bytes()) {
            Err(error) => error.to_string(),
            Ok(_) => config.validate().unwrap_err().to_string(),
        }
    }

    #[test]
    fn files_as_users_have_them_are_applied_whole() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/conf");
        let mut seen = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let mut config = BrokerConfig::default();
            let warnings = config
                .apply_file(&path, &std::fs::read(&path).unwrap())
                .unwrap();
            assert_eq!(
                config.mapped_file_size_consume_queue, 50_000_000,
                "{path:?}: historic spelling"
            );
            assert_eq!(config.max_message_size, 65_536, "{path:?}");
            assert_eq!(config.file_reserved_time, 120, "{path:?}");
            assert!(
                config.broker_cluster_name.starts_with("rocketmq-"),
                "{path:?}"
            );
            assert!(!config.broker_cluster_name.ends_with('\r'), "{path:?}");
            for warning in &warnings {
                assert_eq!(warning.key, "flushDiskTyp", "{path:?}");
                assert_eq!(warning.nearest, Some("flushDiskType"), "{path:?}");
            }
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name == "2m-2s-async-a.properties" {
                assert_eq!(
                    config.broker_role,
                    BrokerRole::AsyncMaster,
                    "blanks around ="
                );
                assert!(warnings.is_empty());
            }
            let settings = config.validate().unwrap();
            assert_eq!(settings.delete_when, [4]);
            let elected = name
                .strip_prefix("dledger-")
                .and_then(|rest| rest.strip_suffix(".properties"));
            assert_eq!(settings.dledger.is_some(), elected.is_some(), "{path:?}");
            if let (Some(member), Some(group)) = (elected, settings.dledger) {
                assert_eq!(
                    settings.root,
                    Path::new("data/store/dledger"),
                    "the last value of a repeated key counts"
                );
                assert_eq!(
                    settings.commit_log_path,
                    Some(settings.root.join(format!("dledger-{member}")))
                );
                assert_eq!(group.group, "broker-m1");
                assert_eq!(crate::dledger::service::name_of(group.id), member);
                let peers: Vec<&str> = group.peers.values().map(String::as_str).collect();
                assert_eq!(
                    peers,
                    ["127.0.0.1:40911", "127.0.0.2:40911", "127.0.0.3:40911"]
                );
                assert_eq!((group.port, group.preferred), (40_911, None));
            }
            seen += 1;
        }
        assert_eq!(seen, 14);
    }

    #[test]
    fn an_unknown_key_is_one_warning_with_the_nearest_known_key() {
        let (_, warnings) =
            read("brokerName=b\n\nflushDiskTyp=ASYNC_FLUSH\nstoreCheckpoint=x\nzzz=1\n");
        assert_eq!(
            warnings,
            [
                "broker.conf:3: flushDiskTyp: unknown key, ignored; did you mean flushDiskType?",
                "broker.conf:5: zzz: unknown key, ignored",
            ]
        );
    }

    #[test]
    fn a_value_that_cannot_be_read_names_file_line_key_and_what_was_expected() {
        assert_eq!(
            refusal("# c\nlistenPort=ten\n"),
            "broker.conf:2: listenPort=ten: expected a port number (0 to 65535)"
        );
        assert_eq!(
            refusal("flushDiskType=SYNC\n"),
            "broker.conf:1: flushDiskType=SYNC: expected ASYNC_FLUSH or SYNC_FLUSH"
        );
        assert_eq!(
            refusal("maxMessageSize=1024*1024\n"),
            "broker.conf:1: maxMessageSize=1024*1024: expected a whole number of 32 bits"
        );
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_a_sentence() {
        for (text, beginning) in [
            (
                "brokerRole=SLAVE\n",
                "brokerId=0: a slave has an id of 1 or above",
            ),
            ("enableDLegerCommitLog=true\n", "dLegerSelfId=: must be nK"),
            (
                "enableDLegerCommitLog=true\ndLegerSelfId=n1\ndLegerPeers=n0-a:1\n",
                "dLegerPeers=n0-a:1: n1 (dLegerSelfId) is not among them",
            ),
            (
                "enableDLegerCommitLog=true\ndLegerSelfId=n0\ndLegerPeers=n0-a\n",
                "dLegerPeers=n0-a: n0-a is not nK-host:port",
            ),
            ("aclEnable=true\n", "aclEnable=true: access control"),
            (
                "enablePropertyFilter=true\n",
                "enablePropertyFilter=true: SQL92",
            ),
            (
                "messageDelayLevel=1s 5x\n",
                "messageDelayLevel=1s 5x: expected delays",
            ),
            ("deleteWhen=4;25\n", "deleteWhen=4;25: expected hours"),
            ("brokerIP1=host\n", "brokerIP1=host: expected an IP address"),
            (
                "defaultTopicQueueNums=0\n",
                "defaultTopicQueueNums=0: must lie between 1 and 65536",
            ),
            ("brokerName=a b\n", "brokerName=a b: must be"),
        ] {
            let refusal = refusal(text);
            assert!(refusal.starts_with(beginning), "{refusal}");
        }
    }

    #[test]
    fn the_line_of_a_refused_value_is_found() {
        let text = b"deleteWhen=4\n# c\nmapedFileSizeCommitLog=1\ndeleteWhen=25\n";
        assert_eq!(line_of(text, "deleteWhen"), Some(4));
        assert_eq!(line_of(text, "mappedFileSizeCommitLog"), Some(3));
        assert_eq!(line_of(text, "brokerName"), None);
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let (mut config, _) = read("brokerName=from-file\nlistenPort=1111\nbrokerIP1=10.0.0.1\n");
        config
            .apply_environment(|name| match name {
                "ROCKETMQ_BROKER_NAME" => Some("from-environment".to_owned()),
                "ROCKETMQ_BROKER_IP1" => Some("10.0.0.2".to_owned()),
                _ => None,
            })
            .unwrap();
        assert_eq!(config.broker_name, "from-environment");
        assert_eq!(config.broker_ip1, "10.0.0.2");
        assert_eq!(config.listen_port, 1111);
        let bad = config
            .apply_environment(|name| (name == "ROCKETMQ_LISTEN_PORT").then(|| "x".to_owned()));
        assert!(
            bad.unwrap_err()
                .to_string()
                .starts_with("environment ROCKETMQ_LISTEN_PORT: listenPort=x: expected")
        );
    }

    #[test]
    fn what_is_printed_reads_back_as_the_same() {
        let (config, _) = read(
            "brokerName=b\nnamesrvAddr=a:1;b:2\nmessageDelayLevel=1s 2s\nbrokerRole=SYNC_MASTER\n",
        );
        let (again, warnings) = read(&config.to_properties());
        assert_eq!(again, config);
        assert!(warnings.is_empty());
    }

    #[test]
    fn what_is_in_force_is_filled_in_and_bent_into_its_range() {
        let (config, _) = read(
            "storePathRootDir=/data/store\nlistenPort=20911\nbrokerIP1=10.0.0.7\ndiskSpaceWarningLevelRatio=99\ndiskMaxUsedSpaceRatio=1\n",
        );
        let config = config.validate().unwrap().in_force();
        assert_eq!(config.store_path_commit_log, "/data/store/commitlog");
        assert_eq!(
            (config.ha_listen_port, &*config.broker_ip2),
            (20_912, "10.0.0.7")
        );
        let ratios = (
            config.disk_space_warning_level_ratio,
            config.disk_max_used_space_ratio,
        );
        assert_eq!(ratios, (90, 10));
    }

    #[test]
    fn a_key_changed_by_request_changes_its_line_and_leaves_the_rest() {
        let text = "# mine\nbrokerName = a\nmapedFileSizeCommitLog=1\nlist=x,\\\n  y\n";
        let merged = merge_file(
            text.as_bytes(),
            [
                ("brokerName", "b"),
                ("mappedFileSizeCommitLog", "2"),
                ("list", "z"),
                ("new", "1"),
            ],
        )
        .unwrap();
        assert_eq!(
            merged,
            "# mine\nbrokerName=b\nmappedFileSizeCommitLog=2\nlist=z\n\nnew=1\n"
        );
    }

    #[test]
    fn no_key_stands_twice() {
        let mut names: Vec<&str> = KEYS
            .iter()
            .map(|k| k.name)
            .chain(NOT_APPLICABLE.iter().map(|(k, _)| *k))
            .collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn delay_levels() {
        let seconds = |text: &str| {
            parse_delay_levels(text).map(|l| l.iter().map(Duration::as_secs).collect::<Vec<_>>())
        };
        assert_eq!(seconds("1s 2m 3h 1d"), Some(vec![1, 120, 10_800, 86_400]));
        assert_eq!(seconds(""), None);
        assert_eq!(seconds("1"), None);
        assert_eq!(seconds("s"), None);
        assert_eq!(seconds("1s \u{e9}"), None);
    }
}
