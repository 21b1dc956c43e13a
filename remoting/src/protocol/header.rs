//! Custom headers: one struct for each request or response header, read with
//! [`super::RemotingCommand::header`] and written with [`super::RemotingCommand::with_header`].
//!
//! A field that identifies what the request is about has no default, so that its absence is an error
//! with upstream's text; everything else is an `Option` or reads as its zero value, as lenient as the
//! original. The headers of sends and pulls on the server side are in [`super::hot`].

use serde::{Deserialize, Serialize};

macro_rules! headers {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
            #[serde(rename_all = "camelCase")]
            pub struct $name { $($(#[$field_meta])* pub $field: $type),* }
        )*
    };
}

// Messages.
headers! {
    /// 10 and 324.
    SendMessageRequestHeader {
        producer_group: String,
        topic: String,
        default_topic: String,
        default_topic_queue_nums: i32,
        queue_id: i32,
        sys_flag: i32,
        born_timestamp: i64,
        flag: i32,
        properties: Option<String>,
        reconsume_times: Option<i32>,
        unit_mode: Option<bool>,
        max_reconsume_times: Option<i32>,
        batch: Option<bool>,
        #[serde(rename = "bname")]
        broker_name: Option<String>,
    }

    /// 310, 320 and 325: the same fields under letters.
    SendMessageRequestHeaderV2 {
        #[serde(rename = "a")]
        producer_group: String,
        #[serde(rename = "b")]
        topic: String,
        #[serde(rename = "c")]
        default_topic: String,
        #[serde(rename = "d")]
        default_topic_queue_nums: i32,
        #[serde(rename = "e")]
        queue_id: i32,
        #[serde(rename = "f")]
        sys_flag: i32,
        #[serde(rename = "g")]
        born_timestamp: i64,
        #[serde(rename = "h")]
        flag: i32,
        #[serde(rename = "i")]
        properties: Option<String>,
        #[serde(rename = "j")]
        reconsume_times: Option<i32>,
        #[serde(rename = "k")]
        unit_mode: Option<bool>,
        #[serde(rename = "l")]
        max_reconsume_times: Option<i32>,
        #[serde(rename = "m")]
        batch: Option<bool>,
        #[serde(rename = "n")]
        broker_name: Option<String>,
    }

    SendMessageResponseHeader {
        #[serde(default)]
        msg_id: String,
        #[serde(default)]
        queue_id: i32,
        #[serde(default)]
        queue_offset: i64,
        transaction_id: Option<String>,
        batch_uniq_id: Option<String>,
        recall_handle: Option<String>,
    }

    /// 11 and 361.
    PullMessageRequestHeader {
        consumer_group: String,
        topic: String,
        queue_id: i32,
        queue_offset: i64,
        #[serde(default)]
        max_msg_nums: i32,
        #[serde(default)]
        sys_flag: i32,
        #[serde(default)]
        commit_offset: i64,
        #[serde(default)]
        suspend_timeout_millis: i64,
        subscription: Option<String>,
        #[serde(default)]
        sub_version: i64,
        expression_type: Option<String>,
        max_msg_bytes: Option<i32>,
        request_source: Option<i32>,
        proxy_froward_client_id: Option<String>,
    }

    PullMessageResponseHeader {
        #[serde(default)]
        suggest_which_broker_id: i64,
        next_begin_offset: i64,
        min_offset: i64,
        max_offset: i64,
        offset_delta: Option<i64>,
        topic_sys_flag: Option<i32>,
        group_sys_flag: Option<i32>,
        forbidden_type: Option<i32>,
    }

    /// 36.
    ConsumerSendMsgBackRequestHeader {
        offset: i64,
        group: String,
        #[serde(default)]
        delay_level: i32,
        origin_msg_id: Option<String>,
        origin_topic: Option<String>,
        unit_mode: Option<bool>,
        max_reconsume_times: Option<i32>,
    }

    /// 37.
    EndTransactionRequestHeader {
        topic: Option<String>,
        producer_group: String,
        tran_state_table_offset: i64,
        commit_log_offset: i64,
        commit_or_rollback: i32,
        #[serde(default)]
        from_transaction_check: bool,
        #[serde(default)]
        msg_id: String,
        transaction_id: Option<String>,
    }

    /// 39, sent to a producer.
    CheckTransactionStateRequestHeader {
        topic: Option<String>,
        tran_state_table_offset: i64,
        commit_log_offset: i64,
        msg_id: Option<String>,
        transaction_id: Option<String>,
        offset_msg_id: Option<String>,
        bname: Option<String>,
    }

    /// 12. Whether only unique keys are searched is the ext field [`UNIQUE_KEY_QUERY`].
    QueryMessageRequestHeader {
        topic: String,
        key: String,
        max_num: i32,
        begin_timestamp: i64,
        end_timestamp: i64,
        #[serde(rename = "_UNIQUE_KEY_QUERY")]
        unique_key_query: Option<bool>,
    }

    QueryMessageResponseHeader {
        index_last_update_timestamp: i64,
        index_last_update_phyoffset: i64,
    }

    /// 33.
    ViewMessageRequestHeader {
        topic: Option<String>,
        offset: i64,
    }

    /// 326, sent to the requesting producer.
    ReplyMessageRequestHeader {
        producer_group: String,
        topic: String,
        default_topic: String,
        default_topic_queue_nums: i32,
        queue_id: i32,
        sys_flag: i32,
        born_timestamp: i64,
        flag: i32,
        properties: Option<String>,
        reconsume_times: Option<i32>,
        unit_mode: Option<bool>,
        born_host: String,
        store_host: String,
        store_timestamp: i64,
    }

    /// 370.
    RecallMessageRequestHeader {
        producer_group: Option<String>,
        topic: String,
        recall_handle: String,
    }

    RecallMessageResponseHeader {
        msg_id: String,
    }
}

/// Ext field of 12 that restricts the search to unique keys.
pub const UNIQUE_KEY_QUERY: &str = "_UNIQUE_KEY_QUERY";

/// Ext fields that every answer to a send carries.
pub const MSG_REGION: &str = "MSG_REGION";
pub const TRACE_ON: &str = "TRACE_ON";

// Clients, groups and offsets.
headers! {
    /// 35.
    UnregisterClientRequestHeader {
        #[serde(rename = "clientID")]
        client_id: String,
        producer_group: Option<String>,
        consumer_group: Option<String>,
    }

    /// 38.
    GetConsumerListByGroupRequestHeader {
        consumer_group: String,
    }

    /// 40, sent to consumers.
    NotifyConsumerIdsChangedRequestHeader {
        consumer_group: String,
    }

    /// 14.
    QueryConsumerOffsetRequestHeader {
        consumer_group: String,
        topic: String,
        queue_id: i32,
        set_zero_if_not_found: Option<bool>,
    }

    QueryConsumerOffsetResponseHeader {
        offset: i64,
    }

    /// 15.
    UpdateConsumerOffsetRequestHeader {
        consumer_group: String,
        topic: String,
        queue_id: i32,
        commit_offset: i64,
    }

    /// 29.
    SearchOffsetRequestHeader {
        topic: String,
        queue_id: i32,
        timestamp: i64,
        boundary_type: Option<String>,
    }

    SearchOffsetResponseHeader {
        offset: i64,
    }

    /// 30.
    GetMaxOffsetRequestHeader {
        topic: String,
        queue_id: i32,
        committed: Option<bool>,
    }

    GetMaxOffsetResponseHeader {
        offset: i64,
    }

    /// 31.
    GetMinOffsetRequestHeader {
        topic: String,
        queue_id: i32,
    }

    GetMinOffsetResponseHeader {
        offset: i64,
    }

    /// 32.
    GetEarliestMsgStoretimeRequestHeader {
        topic: String,
        queue_id: i32,
    }

    GetEarliestMsgStoretimeResponseHeader {
        timestamp: i64,
    }

    /// 307, in both directions.
    GetConsumerRunningInfoRequestHeader {
        consumer_group: String,
        client_id: String,
        jstack_enable: Option<bool>,
    }

    /// 309, in both directions.
    ConsumeMessageDirectlyResultRequestHeader {
        consumer_group: String,
        client_id: Option<String>,
        msg_id: Option<String>,
        broker_name: Option<String>,
        topic: Option<String>,
        topic_sys_flag: Option<i32>,
        group_sys_flag: Option<i32>,
    }

    /// 220 toward clients and 222 toward the broker.
    ResetOffsetRequestHeader {
        topic: String,
        group: String,
        timestamp: i64,
        #[serde(default)]
        is_force: bool,
        offset: Option<i64>,
        queue_id: Option<i32>,
    }

    /// 221 toward clients and 223 toward the broker.
    GetConsumerStatusRequestHeader {
        topic: String,
        group: String,
        client_addr: Option<String>,
    }
}

// Administration of a broker.
headers! {
    /// 17.
    CreateTopicRequestHeader {
        topic: String,
        #[serde(default)]
        default_topic: String,
        read_queue_nums: i32,
        write_queue_nums: i32,
        perm: i32,
        topic_filter_type: Option<String>,
        topic_sys_flag: Option<i32>,
        #[serde(default)]
        order: bool,
        attributes: Option<String>,
        force: Option<bool>,
    }

    /// 215.
    DeleteTopicRequestHeader {
        topic: String,
    }

    /// 21.
    GetAllTopicConfigRequestHeader {
        topic_seq: Option<i32>,
        data_version: Option<String>,
        max_topic_num: Option<i32>,
    }

    GetAllTopicConfigResponseHeader {
        total_topic_num: Option<i32>,
    }

    /// 201.
    GetAllSubscriptionGroupRequestHeader {
        group_seq: Option<i32>,
        data_version: Option<String>,
        max_group_num: Option<i32>,
    }

    GetAllSubscriptionGroupResponseHeader {
        total_group_num: Option<i32>,
    }

    /// 351.
    GetTopicConfigRequestHeader {
        topic: String,
        lo: Option<bool>,
    }

    /// 352.
    GetSubscriptionGroupConfigRequestHeader {
        group: String,
    }

    /// 26. `config_hash` is ours: the hash of the file the broker started with.
    GetBrokerConfigResponseHeader {
        #[serde(default)]
        version: String,
        config_hash: Option<String>,
    }

    /// 207; the 4.9 line calls the switch `removeOffset`, the 5.x line `cleanOffset`.
    DeleteSubscriptionGroupRequestHeader {
        group_name: String,
        clean_offset: Option<bool>,
        remove_offset: Option<bool>,
    }

    /// 202.
    GetTopicStatsInfoRequestHeader {
        topic: String,
    }

    /// 203.
    GetConsumerConnectionListRequestHeader {
        consumer_group: String,
    }

    /// 204.
    GetProducerConnectionListRequestHeader {
        producer_group: String,
    }

    /// 208.
    GetConsumeStatsRequestHeader {
        consumer_group: String,
        topic: Option<String>,
        topic_list: Option<String>,
    }

    /// 317.
    GetConsumeStatsInBrokerHeader {
        #[serde(default)]
        is_order: bool,
    }

    /// 300.
    QueryTopicConsumeByWhoRequestHeader {
        topic: String,
    }

    /// 343.
    QueryTopicsByConsumerRequestHeader {
        group: String,
    }

    /// 345.
    QuerySubscriptionByConsumerRequestHeader {
        group: String,
        topic: Option<String>,
    }

    /// 303.
    QueryConsumeTimeSpanRequestHeader {
        topic: String,
        group: String,
    }

    /// 308.
    QueryCorrectionOffsetHeader {
        filter_groups: Option<String>,
        compare_group: String,
        topic: String,
    }

    /// 314.
    CloneGroupOffsetRequestHeader {
        src_group: String,
        dest_group: String,
        topic: Option<String>,
        offline: Option<bool>,
    }

    /// 315.
    ViewBrokerStatsDataRequestHeader {
        stats_name: String,
        stats_key: String,
    }

    /// 321.
    QueryConsumeQueueRequestHeader {
        topic: String,
        queue_id: i32,
        index: i64,
        count: i32,
        consumer_group: Option<String>,
    }

    /// 323.
    ResumeCheckHalfMessageRequestHeader {
        topic: Option<String>,
        msg_id: Option<String>,
    }

    /// 353.
    UpdateGroupForbiddenRequestHeader {
        group: String,
        topic: String,
        readable: Option<bool>,
    }

    /// 906.
    ExchangeHaInfoHeader {
        master_ha_address: Option<String>,
        master_flush_offset: Option<i64>,
        master_address: Option<String>,
    }

    /// 908.
    ResetMasterFlushOffsetHeader {
        master_flush_offset: i64,
    }
}

// Name server.
headers! {
    /// 105.
    GetRouteInfoRequestHeader {
        topic: String,
        accept_standard_json_only: Option<bool>,
    }

    /// 103.
    RegisterBrokerRequestHeader {
        broker_name: String,
        broker_addr: String,
        cluster_name: String,
        #[serde(default)]
        ha_server_addr: String,
        broker_id: i64,
        heartbeat_timeout_millis: Option<i64>,
        enable_acting_master: Option<bool>,
        #[serde(default)]
        compressed: bool,
        #[serde(default)]
        body_crc32: i32,
    }

    RegisterBrokerResponseHeader {
        ha_server_addr: Option<String>,
        master_addr: Option<String>,
    }

    /// 104.
    UnRegisterBrokerRequestHeader {
        broker_name: String,
        broker_addr: String,
        cluster_name: String,
        broker_id: i64,
    }

    /// 904. The 5.3 broker sends only the first three.
    BrokerHeartbeatRequestHeader {
        cluster_name: String,
        broker_addr: String,
        broker_name: String,
        broker_id: Option<i64>,
        epoch: Option<i32>,
        max_offset: Option<i64>,
        confirm_offset: Option<i64>,
        heartbeat_timeout_mills: Option<i64>,
        election_priority: Option<i32>,
    }

    /// 322.
    QueryDataVersionRequestHeader {
        broker_name: String,
        broker_addr: String,
        cluster_name: String,
        #[serde(default)]
        broker_id: i64,
    }

    QueryDataVersionResponseHeader {
        changed: bool,
    }

    /// 224.
    GetTopicsByClusterRequestHeader {
        cluster: String,
    }

    /// 216.
    DeleteTopicFromNamesrvRequestHeader {
        topic: String,
        cluster_name: Option<String>,
    }

    /// 217.
    RegisterTopicRequestHeader {
        topic: String,
    }

    /// 205.
    WipeWritePermOfBrokerRequestHeader {
        broker_name: String,
    }

    WipeWritePermOfBrokerResponseHeader {
        wipe_topic_count: i32,
    }

    /// 327.
    AddWritePermOfBrokerRequestHeader {
        broker_name: String,
    }

    AddWritePermOfBrokerResponseHeader {
        add_topic_count: i32,
    }

    /// 100.
    PutKvConfigRequestHeader {
        namespace: String,
        key: String,
        value: String,
    }

    /// 101.
    GetKvConfigRequestHeader {
        namespace: String,
        key: String,
    }

    GetKvConfigResponseHeader {
        value: Option<String>,
    }

    /// 102.
    DeleteKvConfigRequestHeader {
        namespace: String,
        key: String,
    }

    /// 219.
    GetKvListByNamespaceRequestHeader {
        namespace: String,
    }

    /// 901.
    GetBrokerMemberGroupRequestHeader {
        cluster_name: String,
        broker_name: String,
    }

    /// 905, sent to the members of a group.
    NotifyMinBrokerIdChangeRequestHeader {
        min_broker_id: Option<i64>,
        broker_name: Option<String>,
        min_broker_addr: Option<String>,
        offline_broker_addr: Option<String>,
        ha_broker_addr: Option<String>,
    }

    /// 20102, to the leader.
    DLedgerTransferLeadershipRequestHeader {
        /// The member that shall lead; none: whichever follower is furthest.
        target_id: Option<String>,
    }

    /// 20103, to the leader. The member learns first and votes when it has caught up.
    DLedgerAddMemberRequestHeader {
        id: String,
        /// `host:port` by which its peers reach it.
        address: String,
    }

    /// 20104, to the leader.
    DLedgerRemoveMemberRequestHeader {
        id: String,
    }
}
