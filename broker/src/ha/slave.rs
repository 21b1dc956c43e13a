//! The slave's end of a replication connection: finds its master, agrees with it on a common history, copies its log.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use store::{PutError, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::history::{self, Comparison, Other, blocking};
use super::peer::{self, PeerInfo};
use super::protocol::{ChunkReader, Piece, Start};
use super::{Node, TICK};
use crate::role::{Role, RoleNow};

/// A master that cannot be reached is tried again after this, twice as long each time. Upstream waits 5 s; but until its
/// slave is back, a synchronous master answers SLAVE_NOT_AVAILABLE.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// With a replication address only, the main address is waited for this long: without it one of ours cannot be told.
const MAIN_ADDRESS_PATIENCE: Duration = Duration::from_secs(5);
/// How often a slave asks for the end of its master's log, to know how far behind it is.
const ASK_END_EVERY: Duration = Duration::from_secs(1);
/// Bytes read from the socket at once.
const READ: usize = 256 << 10;
/// A write or a flush that takes longer holds up the connect.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// A store that takes nothing at the moment is asked again after this at the latest.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Where the master is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    main: Option<String>,
    replication: Option<String>,
}

impl Target {
    fn of(node: &Node, role: &RoleNow) -> Option<Self> {
        if role.role != Role::Slave {
            return None;
        }
        let configured = &node.broker.settings.raw.ha_master_address;
        let replication = match configured.is_empty() {
            true => role.master.ha_address.clone(),
            false => Some(configured.clone()),
        };
        let main = role.master.address.clone();
        (main.is_some() || replication.is_some()).then_some(Self { main, replication })
    }

    /// Whether a stream that began with `other` may go on: a name server that does not know the master at the moment is no
    /// reason to leave it.
    fn agrees_with(&self, other: &Self) -> bool {
        let agree = |a: &Option<String>, b: &Option<String>| match (a, b) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        agree(&self.main, &other.main) && agree(&self.replication, &other.replication)
    }
}

/// Follows the master for as long as this broker is a slave.
pub(super) async fn run(node: &Node) {
    let broker = &node.broker;
    let mut role = broker.role.subscribe();
    let (mut retry, mut waited) = (FIRST_RETRY, false);
    loop {
        let target = Target::of(node, &role.borrow_and_update());
        let Some(target) = target else {
            broker
                .ha
                .link
                .down("no name server told where the master is".to_owned());
            if role.changed().await.is_err() {
                return;
            }
            continue;
        };
        let asks = !broker.settings.raw.namesrv_addr.is_empty();
        if target.main.is_none() && asks && !waited {
            waited = true;
            let _ = timeout(MAIN_ADDRESS_PATIENCE, role.changed()).await;
            continue;
        }
        let had = broker.store.appended();
        let begun = Instant::now();
        let ended = {
            let mut follow = pin!(follow(node, &target));
            loop {
                tokio::select! {
                    ended = follow.as_mut() => break Some(ended),
                    changed = role.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        let now = Target::of(node, &role.borrow_and_update());
                        if !now.is_some_and(|now| now.agrees_with(&target)) {
                            break None;
                        }
                    }
                }
            }
        };
        let Some(ended) = ended else {
            broker
                .ha
                .link
                .down("the master is somewhere else now".to_owned());
            continue;
        };
        let reason = match ended {
            Ok(()) => "the master closed the connection".to_owned(),
            Err(reason) => reason,
        };
        if broker.ha.link.now().problem.as_ref() != Some(&reason) {
            tracing::warn!(
                master = target.replication.as_deref().or(target.main.as_deref()),
                reason,
                "not following the master"
            );
        }
        broker.ha.link.down(reason);
        // A connection that served, or just stood, says that the master is there: the next attempt comes soon.
        if broker.store.appended() > had || begun.elapsed() > LAST_RETRY {
            retry = FIRST_RETRY;
        }
        waited = false;
        let _ = timeout(retry, role.changed()).await;
        retry = (retry * 2).min(LAST_RETRY);
    }
}

/// One connection, from the comparison of the histories to its end.
async fn follow(node: &Node, target: &Target) -> Result<(), String> {
    let store = &node.broker.store;
    quiet(node).await?;
    let mut address = target.replication.clone();
    let mut native = false;
    let main = match &target.main {
        Some(main) => Some(main.clone()),
        None => guess_main(node, target).await,
    };
    if let Some(main) = &main {
        match peer::ask_info(&node.client, main).await? {
            Some(info) => {
                native = true;
                if info.is_undecided() {
                    return Err(format!("{main} does not serve as master yet"));
                }
                // An old address: its log may be shorter than the own, which would be cut back to it.
                if info.is_slave() {
                    return Err(format!("{main} is a slave itself"));
                }
                check_identity(node, main, &info)?;
                align(node, main, &info).await?;
                // Also when that is less than was heard before: it lost its end, or is another one.
                node.broker
                    .ha
                    .link
                    .update(|link| link.master_end = Some(info.written));
                address.get_or_insert(info.ha_address);
            }
            None => {
                let size = peer::ask_stock_segment_size(&node.client, main).await;
                if let Some(size) = size.filter(|size| *size != store.segment_size()) {
                    return Err(sizes_differ(main, size, store.segment_size()));
                }
            }
        }
    }
    node.broker
        .ha
        .link
        .update(|link| link.refused = Some(false));
    let Some(address) = address else {
        return Err("no name server told the master's replication address".to_owned());
    };
    let start = match (native, store.appended()) {
        (true, end) => Start::Exactly(end),
        (false, 0) => match &main {
            Some(main) => oldest_of_stock(node, main).await?,
            None => Start::LastFile,
        },
        (false, end) => Start::At(end),
    };
    let mut stream = connect(node, &address).await?;
    node.broker.ha.link.update(|link| {
        link.master = Some(address.clone());
        link.native = native;
        link.connects += 1;
        link.connected = true;
        link.problem = None;
    });
    tracing::info!(
        master = address,
        native,
        from = store.appended(),
        "following the master"
    );
    let watch = watch_end(node, main.as_deref(), native);
    tokio::select! {
        ended = copy(node, &mut stream, start, None) => ended,
        () = watch => Ok(()),
    }
}

/// The begin of a stock master's log, where an empty slave of ours begins; a stock slave begins with the last file. It has to be
/// asked for by position, and position 0 is how a stock slave asks for the last file. So the first byte is not asked for: it is
/// the highest one of a record's length, which is 0, and a longer record would not get through anybody's frames.
async fn oldest_of_stock(node: &Node, main: &str) -> Result<Start, String> {
    let store = &node.broker.store;
    match peer::ask_stock_range(&node.client, main).await {
        Some((0, end)) if end > 0 => {
            store.append_raw(0, &[0]).map_err(|e| e.to_string())?;
            store.drive();
            Ok(Start::At(1))
        }
        Some((min, end)) if min > 0 && end > min => {
            begin_at(store, min).await?;
            Ok(Start::At(min))
        }
        _ => Ok(Start::LastFile),
    }
}

/// Without a name server only the replication address is known. Its port is one above the main port, unless somebody chose
/// otherwise; so one of ours answers there.
async fn guess_main(node: &Node, target: &Target) -> Option<String> {
    let (host, port) = target.replication.as_ref()?.rsplit_once(':')?;
    let main = format!("{host}:{}", port.parse::<u16>().ok()?.checked_sub(1)?);
    let info = peer::ask_info(&node.client, &main).await.ok()??;
    check_identity(node, &main, &info).ok().map(|()| main)
}

fn sizes_differ(address: &str, theirs: u64, ours: u64) -> String {
    format!(
        "log files of {address} have {theirs} bytes and ours {ours}: a slave needs the same mappedFileSizeCommitLog as its master; it counts for an empty store"
    )
}

fn check_identity(node: &Node, address: &str, info: &PeerInfo) -> Result<(), String> {
    let own = &node.broker.settings.raw;
    if info.broker_name != own.broker_name || info.cluster_name != own.broker_cluster_name {
        return Err(format!(
            "{address} is {} of {}, not the master of {} of {}",
            info.broker_name, info.cluster_name, own.broker_name, own.broker_cluster_name
        ));
    }
    let size = node.broker.store.segment_size();
    if info.segment_size != size {
        return Err(sizes_differ(address, info.segment_size, size));
    }
    Ok(())
}

pub(super) async fn connect(node: &Node, address: &str) -> Result<TcpStream, String> {
    let attempt = async {
        let mut last = format!("{address} has no address");
        let found = node.resolver.lookup(address).await;
        for target in found.map_err(|error| format!("{address}: {error}"))? {
            match TcpStream::connect(target).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = format!("{target}: {error}"),
            }
        }
        Err(last)
    };
    let stream = timeout(CONNECT_TIMEOUT, attempt)
        .await
        .map_err(|_| format!("{address} does not answer"))??;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Waits until all that was taken is written, and on disk where that is what this slave acknowledges.
async fn quiet(node: &Node) -> Result<(), String> {
    let store = &node.broker.store;
    store.drive();
    let written = async {
        while store.written() < store.appended() {
            let ready = || store.written() >= store.appended();
            let _ = timeout(BUSY_PAUSE, node.broker.ha.wake.moved_unless(ready)).await;
            store.drive();
        }
    };
    timeout(SETTLE_TIMEOUT, written)
        .await
        .map_err(|_| "the own log cannot be written".to_owned())?;
    if node.broker.settings.raw.ha_slave_ack_after_flush {
        let flushing = Arc::clone(store);
        let flushed =
            blocking(move || flushing.wait_flushed(flushing.written(), SETTLE_TIMEOUT)).await?;
        if !flushed {
            return Err("the own log cannot be flushed".to_owned());
        }
    }
    Ok(())
}

/// Makes the own log a begin of the master's: cuts off what the master does not have, or begins anew.
async fn align(node: &Node, address: &str, info: &PeerInfo) -> Result<(), String> {
    let store = &node.broker.store;
    let (min, end) = (store.min_phy_offset(), store.written());
    if min == end {
        return begin_at(store, info.min).await;
    }
    if info.is_empty() {
        node.broker.ha.link.update(|link| link.refused = Some(true));
        return Err(format!(
            "the log of {address} is empty and this slave holds {} bytes: it keeps them until somebody empties its folder",
            end - min
        ));
    }
    let other = Other {
        client: &node.client,
        address,
    };
    let cut_at = match history::compare(store, &other, info).await? {
        Comparison::Same if end <= info.written => return Ok(()),
        Comparison::Same => info.written,
        Comparison::Until(common) => common,
        // Less than one whole record, where a stream was torn, is nothing to keep.
        Comparison::Nothing if info.min < end && store.confirm_offset() > min => {
            node.broker.ha.link.update(|link| link.refused = Some(true));
            return Err(format!(
                "the log here ({min} to {end}) and that of {address} ({} to {}) have nothing in common, and the master's does not go on after this one: it is kept, and this slave's folder must be emptied by hand if the master's log is the right one",
                info.min, info.written
            ));
        }
        // Retention went on there while this slave was away, or the first record never came whole.
        Comparison::Nothing => {
            tracing::warn!(
                own = ?(min, end),
                master = ?(info.min, info.written),
                "nothing in common with the master's log: copying all of it"
            );
            node.broker.ha.link.update(|link| link.cut += end - min);
            let cutting = Arc::clone(store);
            blocking(move || cutting.truncate_to(min))
                .await?
                .map_err(|error| error.to_string())?;
            return begin_at(store, info.min).await;
        }
    };
    tracing::warn!(
        at = cut_at,
        bytes = end - cut_at,
        "cutting off what the master does not have"
    );
    node.broker.ha.link.update(|link| link.cut += end - cut_at);
    let cutting = Arc::clone(store);
    blocking(move || cutting.truncate_to(cut_at))
        .await?
        .map_err(|error| error.to_string())
}

/// An empty store begins here.
pub(super) async fn begin_at(store: &Arc<Store>, position: u64) -> Result<(), String> {
    if store.written() == position {
        return Ok(());
    }
    let store = Arc::clone(store);
    blocking(move || store.start_at(position))
        .await?
        .map_err(|error| error.to_string())
}

/// Asks again and again for the end of the master's log; never ends.
async fn watch_end(node: &Node, main: Option<&str>, native: bool) {
    let Some(main) = main else {
        return std::future::pending().await;
    };
    loop {
        let end = match native {
            true => peer::ask_info(&node.client, main)
                .await
                .ok()
                .flatten()
                .map(|info| info.written),
            false => peer::ask_stock_range(&node.client, main)
                .await
                .map(|(_, end)| end),
        };
        if let Some(end) = end {
            node.broker.ha.link.heard_of(end);
        }
        tokio::time::sleep(ASK_END_EVERY).await;
    }
}

/// Copies what comes until the stream ends, or the log reaches `until`.
pub(super) async fn copy(
    node: &Node,
    stream: &mut TcpStream,
    start: Start,
    until: Option<u64>,
) -> Result<(), String> {
    let broker = &node.broker;
    let store = &broker.store;
    let config = broker.config();
    let heartbeat = milliseconds(config.ha_send_heartbeat_interval);
    let silence = milliseconds(config.ha_housekeeping_interval);
    let after_flush = broker.settings.raw.ha_slave_ack_after_flush;
    // What this slave may say that it has.
    let has = || match after_flush {
        true => store.flushed().min(store.written()),
        false => store.written(),
    };
    let (mut reader, mut writer) = stream.split();
    writer
        .write_all(&start.report())
        .await
        .map_err(|e| e.to_string())?;
    let (mut heard_at, mut wrote_at) = (Instant::now(), Instant::now());
    let mut copier = Copier::new(node);
    let mut reported = has();
    let mut input = vec![0; READ];
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut meter = Meter::default();
    loop {
        if until.is_some_and(|until| store.written() >= until) {
            return Ok(());
        }
        let behind = reported < store.appended();
        let moved = broker.ha.wake.moved_unless(|| has() > reported);
        let mut say = None;
        tokio::select! {
            read = reader.read(&mut input) => match read {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    heard_at = Instant::now();
                    let bytes = copier.take(&input[..n]).await?;
                    meter.count(node, bytes);
                    if after_flush {
                        store.request_flush();
                    }
                    if has() > reported {
                        say = Some(has());
                    }
                }
                Err(error) => return Err(error.to_string()),
            },
            () = moved, if behind => {
                if has() > reported {
                    say = Some(has());
                } else {
                    // Somebody else's write is under way, or the flush.
                    store.drive();
                }
            }
            _ = tick.tick() => {
                if heard_at.elapsed() > silence {
                    return Err(format!("nothing heard for {silence:?}"));
                }
                if after_flush && behind {
                    store.request_flush();
                }
                meter.tick(node);
                if wrote_at.elapsed() >= heartbeat {
                    say = Some(has());
                }
            }
        }
        if let Some(end) = say {
            writer
                .write_all(&end.to_be_bytes())
                .await
                .map_err(|e| e.to_string())?;
            reported = end;
            wrote_at = Instant::now();
            let now_ms = broker.clock.now_ms();
            broker.ha.link.update(|link| link.last_write_ms = now_ms);
        }
    }
}

fn milliseconds(value: i32) -> Duration {
    Duration::from_millis(u64::try_from(value).unwrap_or(0))
}

/// Puts a master's stream into the store.
struct Copier<'a> {
    node: &'a Node,
    chunks: ChunkReader,
    /// Something of this stream is in the store.
    begun: bool,
}

impl<'a> Copier<'a> {
    fn new(node: &'a Node) -> Self {
        Self {
            node,
            chunks: ChunkReader::default(),
            begun: false,
        }
    }

    /// Takes what a read gave; returns how many bytes of the log were in it.
    async fn take(&mut self, mut input: &[u8]) -> Result<u64, String> {
        let store = &self.node.broker.store;
        let link = &self.node.broker.ha.link;
        let mut bytes_of_log = 0;
        while let Some(piece) = self.chunks.next(&mut input).map_err(|e| e.to_string())? {
            match piece {
                Piece::Heartbeat(position) => {
                    let end = store.appended();
                    if end != 0 && position != end {
                        return Err(mismatch(position, end));
                    }
                    link.heard_of(position);
                }
                Piece::Begin { position, size } => {
                    let end = store.appended();
                    if end == 0 && position != 0 {
                        begin_at(store, position).await.map_err(|why| {
                            format!("cannot begin where the master's last file does: {why}")
                        })?;
                    } else if position != end {
                        return Err(mismatch(position, end));
                    }
                    link.heard_of(position + u64::from(size));
                }
                Piece::Data {
                    position, bytes, ..
                } => {
                    if !std::mem::replace(&mut self.begun, true)
                        && position == store.confirm_offset()
                        && !may_begin_record(bytes, position)
                    {
                        return Err(format!(
                            "the master's log has no record at {position}, where the log here ends: they have different histories, and this slave must be emptied to copy anew"
                        ));
                    }
                    self.append(position, bytes).await?;
                    bytes_of_log += bytes.len() as u64;
                }
            }
        }
        store.drive();
        Ok(bytes_of_log)
    }

    async fn append(&self, position: u64, bytes: &[u8]) -> Result<(), String> {
        let store = &self.node.broker.store;
        loop {
            match store.append_raw(position, bytes) {
                Ok(_) => return Ok(()),
                Err(PutError::Busy(_)) => {
                    store.drive();
                    let moved = self.node.broker.ha.wake.moved_unless(|| false);
                    let _ = timeout(BUSY_PAUSE, moved).await;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// Whether these bytes of a log can be the begin of a record, or of the blank one at the end of a file, at this position. A
/// stock master sends from any position it is asked for, so this is all that tells another history from the own one.
fn may_begin_record(bytes: &[u8], position: u64) -> bool {
    const MAGIC_AT: usize = 4;
    const POSITION_AT: usize = 28;
    const RECORDS: [u32; 2] = [0xDAA3_20A7, 0xDAA3_20AB];
    const BLANK: u32 = 0xCBD4_3194;
    let magic = bytes.get(MAGIC_AT..).and_then(|b| b.first_chunk::<4>());
    let own = bytes.get(POSITION_AT..).and_then(|b| b.first_chunk::<8>());
    match magic.map(|magic| u32::from_be_bytes(*magic)) {
        // The rest is still on its way.
        None | Some(BLANK) => true,
        Some(magic) if RECORDS.contains(&magic) => {
            own.is_none_or(|own| u64::from_be_bytes(*own) == position)
        }
        Some(_) => false,
    }
}

fn mismatch(position: u64, end: u64) -> String {
    format!("the master goes on at {position}, but the log ends at {end} here")
}

/// Counts what comes, and tells the link once in a while.
#[derive(Default)]
struct Meter {
    bytes: u64,
    /// Bytes of the last seconds, tick by tick.
    recent: VecDeque<(Instant, u64)>,
    heard: bool,
}

impl Meter {
    fn count(&mut self, node: &Node, bytes: u64) {
        self.bytes += bytes;
        self.heard = true;
        if self.recent.is_empty() {
            // The first sign of life is told at once.
            self.tick(node);
        }
    }

    fn tick(&mut self, node: &Node) {
        const SECOND: Duration = Duration::from_secs(1);
        let now = Instant::now();
        let bytes = std::mem::take(&mut self.bytes);
        self.recent.push_back((now, bytes));
        while self
            .recent
            .front()
            .is_some_and(|(at, _)| now - *at > SECOND)
        {
            self.recent.pop_front();
        }
        let per_second = self.recent.iter().map(|(_, bytes)| bytes).sum();
        let heard = std::mem::take(&mut self.heard);
        let now_ms = node.broker.clock.now_ms();
        node.broker.ha.link.update(|link| {
            link.received += bytes;
            link.per_second = per_second;
            if heard {
                link.last_read_ms = now_ms;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_begin_of_a_record_is_known_by_its_magic_and_its_own_position() {
        let mut record = [0u8; 40];
        record[4..8].copy_from_slice(&0xDAA3_20A7u32.to_be_bytes());
        record[28..36].copy_from_slice(&1_000u64.to_be_bytes());
        assert!(may_begin_record(&record, 1_000));
        assert!(!may_begin_record(&record, 1_001));
        assert!(may_begin_record(&record[..20], 1_001), "more is to come");
        assert!(may_begin_record(&record[..3], 1_001));
        record[4] = 0;
        assert!(!may_begin_record(&record, 1_000));
        record[4..8].copy_from_slice(&0xCBD4_3194u32.to_be_bytes());
        assert!(may_begin_record(&record, 1_000));
    }
}
