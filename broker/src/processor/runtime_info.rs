//! GET_BROKER_RUNTIME_INFO (28): what `clusterList`, `brokerStatus` and the dashboard show.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use remoting::protocol::body::KVTable;
use remoting::protocol::{RemotingCommand, VERSION};

use super::answer::{Answer, ok_json};
use crate::broker::Broker;
use crate::http::Latency;

/// Text of the version in [`VERSION`], which tools print.
const VERSION_DESC: &str = "V4_9_8";
/// Upstream reports its queues' capacities; there are no queues here, and these are their defaults.
const CAPACITIES: [(&str, &str); 6] = [
    ("sendThreadPoolQueueCapacity", "10000"),
    ("pullThreadPoolQueueCapacity", "100000"),
    ("litePullThreadPoolQueueCapacity", "100000"),
    ("queryThreadPoolQueueCapacity", "20000"),
    ("ackThreadPoolQueueCapacity", "100000"),
    ("EndTransactionThreadPoolQueueCapacity", "100000"),
];
/// Figures of parts that this broker does not have; tools expect them to be there.
const ZEROS: [&str; 17] = [
    "dispatchMaxBuffer",
    "pageCacheLockTimeMills",
    "sendThreadPoolQueueHeadWaitTimeMills",
    "pullThreadPoolQueueHeadWaitTimeMills",
    "litePullThreadPoolQueueSize",
    "litePullThreadPoolQueueHeadWaitTimeMills",
    "queryThreadPoolQueueSize",
    "queryThreadPoolQueueHeadWaitTimeMills",
    "ackThreadPoolQueueSize",
    "ackThreadPoolQueueHeadWaitTimeMills",
    "EndTransactionQueueSize",
    "timerReadBehind",
    "timerOffsetBehind",
    "timerCongestNum",
    "sendThreadPoolQueueSize",
    "pullThreadPoolQueueSize",
    "startAcceptSendRequestTimeStamp",
];
/// Upstream's figure when there is no pool of transient buffers.
const NO_TRANSIENT_POOL: &str = "2147483647";

pub(crate) fn get_broker_runtime_info(broker: &Arc<Broker>, _request: &RemotingCommand) -> Answer {
    ok_json(&KVTable {
        table: table(broker),
    })
}

fn table(broker: &Broker) -> BTreeMap<String, String> {
    let mut table = BTreeMap::new();
    let mut put = |key: &str, value: String| {
        table.insert(key.to_owned(), value);
    };
    let (stats, store, figures) = (&broker.stats, &broker.store, broker.store.runtime_figures());
    for key in ZEROS {
        put(key, "0".to_owned());
    }
    for (key, capacity) in CAPACITIES {
        put(key, capacity.to_owned());
    }
    put("timerEnqueueTps", "0.0".to_owned());
    put("timerDequeueTps", "0.0".to_owned());

    put("bootTimestamp", figures.boot_timestamp.to_string());
    put(
        "runtime",
        runtime_text(broker.clock.now_ms() - figures.boot_timestamp),
    );
    put("brokerVersion", VERSION.to_string());
    put("brokerVersionDesc", VERSION_DESC.to_owned());
    put("brokerActive", broker.is_master().to_string());

    // Ours: what `/readyz` says, for those who can ask here only.
    if let Err(reason) = remoting::http::Health::ready(&*broker.status) {
        put("notReady", reason);
    }
    if let Some(group) = broker.group.get() {
        for (key, text) in group.runtime_rows() {
            put(key, text);
        }
    }

    put("putTps", stats.put_tps().to_string());
    put("getFoundTps", stats.get_found_tps().to_string());
    put("getMissTps", stats.get_miss_tps().to_string());
    put("getTotalTps", stats.get_total_tps().to_string());
    // 5.x tools read the first spelling; 4.9 tools read the second and fail without it.
    put("getTransferredTps", stats.get_transferred_tps().to_string());
    put("getTransferedTps", stats.get_transferred_tps().to_string());

    let (times, bytes) = (stats.put_total(), stats.put_size_total());
    put("putMessageTimesTotal", times.to_string());
    put("putMessageSizeTotal", bytes.to_string());
    put(
        "putMessageAverageSize",
        format!(
            "{:?}",
            if times > 0 {
                bytes as f64 / times as f64
            } else {
                0.0
            }
        ),
    );
    put(
        "putMessageFailedTimes",
        stats.put_failed_total().to_string(),
    );
    let latency = &broker.metrics.put_latency;
    put("putMessageEntireTimeMax", latency.max_ms().to_string());
    put("putMessageDistributeTime", put_time_distribution(latency));
    put("putLatency99", format!("{:.2}", latency.quantile_ms(0.99)));
    put(
        "putLatency999",
        format!("{:.2}", latency.quantile_ms(0.999)),
    );
    put(
        "getMessageEntireTimeMax",
        stats.get_time_max_ms().to_string(),
    );

    let mornings = stats.mornings();
    put(
        "msgPutTotalYesterdayMorning",
        mornings.put_yesterday.to_string(),
    );
    put("msgPutTotalTodayMorning", mornings.put_today.to_string());
    put("msgPutTotalTodayNow", times.to_string());
    put(
        "msgGetTotalYesterdayMorning",
        mornings.get_yesterday.to_string(),
    );
    put("msgGetTotalTodayMorning", mornings.get_today.to_string());
    put("msgGetTotalTodayNow", stats.get_total().to_string());

    let commit_log_ratio = format!("{:.2}", figures.commit_log_disk_ratio);
    put(
        &format!(
            "commitLogDiskRatio_{}",
            broker.settings.commit_log_folder().display()
        ),
        commit_log_ratio.clone(),
    );
    put("commitLogDiskRatio", commit_log_ratio);
    put(
        "consumeQueueDiskRatio",
        format!("{:.2}", figures.consume_queue_disk_ratio),
    );
    put(
        "commitLogDirCapacity",
        format!(
            "Total : {}, Free : {}.",
            byte_text(figures.disk_total_bytes),
            byte_text(figures.disk_free_bytes)
        ),
    );
    let (min, max) = (store.min_phy_offset(), store.confirm_offset());
    put(
        "commitLogMinOffset",
        if max == 0 {
            "-1".to_owned()
        } else {
            min.to_string()
        },
    );
    put("commitLogMaxOffset", max.to_string());
    put(
        "earliestMessageTimeStamp",
        store.earliest_message_time().to_string(),
    );
    put(
        "dispatchBehindBytes",
        figures.dispatch_behind_bytes.to_string(),
    );
    put(
        "remainTransientStoreBufferNumbs",
        NO_TRANSIENT_POOL.to_owned(),
    );
    put("remainHowManyDataToCommit", byte_text(0));
    put(
        "remainHowManyDataToFlush",
        byte_text(figures.unflushed_bytes),
    );

    for (level, delivered, max) in broker.schedule.progress() {
        put(
            &format!("scheduleMessageOffset_{level}"),
            format!("{delivered},{max}"),
        );
    }
    table
}

/// Upstream's classes of the time of a put, with their upper bounds in microseconds
/// (`PUT_MESSAGE_ENTIRE_TIME_MAX_DESC`). Its clock counts milliseconds, so the first class is "below one".
const PUT_TIME_CLASSES: [(&str, u64); 13] = [
    ("[<=0ms]", 1_000),
    ("[0~10ms]", 10_000),
    ("[10~50ms]", 50_000),
    ("[50~100ms]", 100_000),
    ("[100~200ms]", 200_000),
    ("[200~500ms]", 500_000),
    ("[500ms~1s]", 1_000_000),
    ("[1~2s]", 2_000_000),
    ("[2~3s]", 3_000_000),
    ("[3~4s]", 4_000_000),
    ("[4~5s]", 5_000_000),
    ("[5~10s]", 10_000_000),
    ("[10s~]", u64::MAX),
];

fn put_time_distribution(latency: &Latency) -> String {
    let mut out = String::new();
    let mut from = 0;
    for (name, to) in PUT_TIME_CLASSES {
        let _ = write!(out, "{name}:{} ", latency.count_between(from, to));
        from = to;
    }
    out
}

/// `[ 0 days, 1 hours, 2 minutes, 3 seconds ]`.
fn runtime_text(millis: i64) -> String {
    let seconds = (millis / 1000).max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    format!(
        "[ {days} days, {hours} hours, {minutes} minutes, {} seconds ]",
        seconds % 60
    )
}

/// `0 B`, `252.0 GiB` (upstream `UtilAll.humanReadableByteCount` with binary units).
fn byte_text(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn put_times_fall_into_their_classes() {
        let latency = Latency::default();
        for _ in 0..98 {
            latency.record(Duration::from_micros(300));
        }
        latency.record(Duration::from_millis(7));
        latency.record(Duration::from_secs(20));
        let text = put_time_distribution(&latency);
        assert!(
            text.starts_with("[<=0ms]:98 [0~10ms]:1 [10~50ms]:0 "),
            "{text}"
        );
        assert!(text.ends_with("[10s~]:1 "), "{text}");
        assert_eq!(
            (latency.quantile_ms(0.99), latency.max_ms()),
            (10.0, 20_000)
        );
    }

    #[test]
    fn texts_as_upstream_writes_them() {
        assert_eq!(
            runtime_text(167_400),
            "[ 0 days, 0 hours, 2 minutes, 47 seconds ]"
        );
        assert_eq!(
            runtime_text(90_061_000),
            "[ 1 days, 1 hours, 1 minutes, 1 seconds ]"
        );
        assert_eq!(byte_text(0), "0 B");
        assert_eq!(byte_text(252 << 30), "252.0 GiB");
        assert_eq!(byte_text(1536), "1.5 KiB");
    }
}
