//! Where two logs of one group part.
//!
//! Each record holds its own position, its time and its producer's key, so two logs that agree on the last bytes before a
//! position agree on everything before it. That makes "equal up to here" monotone, and a search by halves finds the end of
//! the last common record: first among the first bytes of the files, then among the records of one file.

use std::sync::Arc;

use remoting::RemotingClient;
use store::Store;

use super::peer::{self, MAX_RANGE_BYTES, PeerInfo};

/// Bytes compared at the end of what both hold, and at the begin of each file.
const WINDOW: u64 = 64 << 10;
const HEAD: u64 = 4 << 10;

/// How the own log and another's go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// Equal as far as both reach.
    Same,
    /// Equal up to here, the end of a record; then they differ.
    Until(u64),
    /// Nothing in common, or what is common is held by only one of them any more.
    Nothing,
}

/// The other broker's log, asked for checksums.
pub(super) struct Other<'a> {
    pub(super) client: &'a RemotingClient,
    pub(super) address: &'a str,
}

/// Compares the own log with the one that `info` tells of.
pub(super) async fn compare(
    store: &Arc<Store>,
    other: &Other<'_>,
    info: &PeerInfo,
) -> Result<Comparison, String> {
    let low = store.min_phy_offset().max(info.min);
    let high = store.written().min(info.written);
    if high <= low {
        return Ok(Comparison::Nothing);
    }
    // Padding is zeros in any history: what is compared must hold some of a record.
    let size = store.segment_size();
    let mut window = WINDOW;
    loop {
        let from = high.saturating_sub(window).max(low);
        if !is_zero(store, from, high).await? {
            if same(store, other, (from, high)).await? {
                return Ok(Comparison::Same);
            }
            break;
        }
        if from == low || window >= MAX_RANGE_BYTES {
            break;
        }
        window *= 2;
    }
    // The last file whose first bytes are the same.
    let heads: Vec<(u64, u64)> = (low / size..high.div_ceil(size))
        .map(|n| (n * size, (n * size + HEAD).min(high)))
        .collect();
    let (from, to) = match last_same(store, other, &heads).await? {
        Some(file) => (heads[file].0, (heads[file].0 + size).min(high)),
        // They differ within the first bytes of all, where a few records may be common all the same.
        None => heads[0],
    };
    let reader = Arc::clone(store);
    let places = blocking(move || reader.record_places(from, to))
        .await?
        .map_err(|error| error.to_string())?;
    // The head of a record holds the checksum of its body.
    let beginnings: Vec<(u64, u64)> = places
        .iter()
        .map(|&(begin, end)| (begin, end.min(begin + WINDOW)))
        .collect();
    let until = match last_same(store, other, &beginnings).await? {
        // A blank record goes on to the end of its file.
        Some(last) => match places.get(last + 1) {
            Some((next, _)) => *next,
            None if places[last].1 - places[last].0 == BLANK => to,
            None => places[last].1,
        },
        None => from,
    };
    Ok(match until {
        until if until >= high => Comparison::Same,
        until if until > low => Comparison::Until(until),
        _ => Comparison::Nothing,
    })
}

/// Bytes of a blank record's head.
const BLANK: u64 = 8;

/// The last of these ranges that is the same in both logs, given that all before it are.
async fn last_same(
    store: &Arc<Store>,
    other: &Other<'_>,
    ranges: &[(u64, u64)],
) -> Result<Option<usize>, String> {
    let (mut low, mut high) = (0, ranges.len());
    while low < high {
        let middle = (low + high) / 2;
        if same(store, other, ranges[middle]).await? {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low.checked_sub(1))
}

async fn same(
    store: &Arc<Store>,
    other: &Other<'_>,
    (from, to): (u64, u64),
) -> Result<bool, String> {
    let theirs = peer::ask_checksums(other.client, other.address, vec![(from, to)]).await?;
    let reader = Arc::clone(store);
    let ours = blocking(move || peer::checksum(&reader, from, to)).await?;
    match (ours, &theirs[..]) {
        (Some(ours), [Some(theirs)]) => Ok(ours == *theirs),
        // Retention may take a file away meanwhile: that says nothing about what was in it.
        _ => Err("one of the logs changed while they were compared".to_owned()),
    }
}

async fn is_zero(store: &Arc<Store>, from: u64, to: u64) -> Result<bool, String> {
    let store = Arc::clone(store);
    blocking(move || {
        let (mut at, mut bytes) = (from, Vec::new());
        while at < to {
            bytes.clear();
            match store.read_range(at, (to - at) as usize, &mut bytes) {
                Ok(n) if n > 0 => at += n as u64,
                _ => return false,
            }
            if bytes.iter().any(|b| *b != 0) {
                return false;
            }
        }
        true
    })
    .await
}

/// Runs work that reads the log on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| error.to_string())
}
