//! The CommitLog record: one layout, its encoder, its reader, what makes it valid.
//!
//! | field | size | | field | size |
//! |---|---|---|---|---|
//! | totalSize | 4 | | bornTimestamp | 8 |
//! | magicCode | 4 | | bornHost | 8 or 20 (sysFlag 0x10) |
//! | bodyCRC | 4 | | storeTimestamp | 8 |
//! | queueId | 4 | | storeHost | 8 or 20 (sysFlag 0x20) |
//! | flag | 4 | | reconsumeTimes | 4 |
//! | queueOffset | 8 | | preparedTransactionOffset | 8 |
//! | physicalOffset | 8 | | body | 4 + n |
//! | sysFlag | 4 | | topic, properties | 1 (V2: 2) + n, 2 + n |
//!
//! All integers are big-endian. The store needs a reader and writer of its own: it must not see `remoting`.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

pub(crate) const MAGIC_V1: i32 = -626_843_481;
/// Two-byte topic length, used only when the topic has more than 127 bytes.
pub(crate) const MAGIC_V2: i32 = -626_843_477;
/// Fills a segment whose rest is too short for the next record.
pub(crate) const BLANK_MAGIC: i32 = -875_286_124;
/// A record needs this much room after it, for the blank record.
pub(crate) const END_FILE_MIN_BLANK: u64 = 8;

pub(crate) const BORN_HOST_V6: i32 = 0x10;
pub(crate) const STORE_HOST_V6: i32 = 0x20;
const TRANSACTION_MASK: i32 = 0xC;
const TRANSACTION_PREPARED: i32 = 0x4;
const TRANSACTION_ROLLBACK: i32 = 0xC;

const MAX_TOPIC_V1: usize = 127;
pub(crate) const MAX_TOPIC: usize = 255;
pub(crate) const MAX_PROPERTIES: usize = 32_767;
/// Everything up to the body's bytes, with both hosts IPv6.
pub(crate) const MAX_HEAD: usize = 88 + 24;
/// Shortest record there can be: empty body, topic and properties.
const MIN_RECORD: usize = 88 + 1 + 2;
/// A record may exceed the bound of the body by this (upstream 5.x `MessageExtEncoder`).
pub(crate) const RECORD_OVERHEAD: usize = 64 << 10;

pub(crate) const QUEUE_OFFSET_AT: usize = 20;
pub(crate) const PHY_OFFSET_AT: usize = 28;
const SYS_FLAG_AT: usize = 36;
const BORN_HOST_AT: usize = 48;

pub(crate) const SCHEDULE_TOPIC: &str = "SCHEDULE_TOPIC_XXXX";
/// Upstream's delay for a level that the table does not hold.
const UNKNOWN_LEVEL_DELAY_MS: i64 = 1_000;

pub(crate) fn enters_queue(sys_flag: i32) -> bool {
    !matches!(
        sys_flag & TRANSACTION_MASK,
        TRANSACTION_PREPARED | TRANSACTION_ROLLBACK
    )
}

pub(crate) fn is_indexed(sys_flag: i32) -> bool {
    sys_flag & TRANSACTION_MASK != TRANSACTION_ROLLBACK
}

pub(crate) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn i64_at(bytes: &[u8], at: usize) -> Option<i64> {
    Some(i64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn store_time_at(sys_flag: i32) -> usize {
    BORN_HOST_AT + if sys_flag & BORN_HOST_V6 != 0 { 20 } else { 8 }
}

/// A record with everything filled in but what is only known under the append lock.
pub(crate) struct Encoded<'a> {
    head: [u8; MAX_HEAD],
    head_len: usize,
    body: &'a [u8],
    topic: &'a [u8],
    v2: bool,
    properties: &'a [u8],
    store_time_at: usize,
    pub(crate) size: usize,
    pub(crate) in_queue: bool,
    pub(crate) indexed: bool,
}

pub(crate) struct Fields<'a> {
    pub(crate) topic: &'a str,
    pub(crate) queue_id: i32,
    pub(crate) flag: i32,
    pub(crate) sys_flag: i32,
    pub(crate) born_timestamp: i64,
    pub(crate) born_host: SocketAddr,
    pub(crate) store_host: SocketAddr,
    pub(crate) reconsume_times: i32,
    pub(crate) prepared_transaction_offset: i64,
    pub(crate) body: &'a [u8],
    pub(crate) properties: &'a [u8],
}

struct Head {
    bytes: [u8; MAX_HEAD],
    len: usize,
}

impl Head {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn put_host(&mut self, host: SocketAddr) {
        match host.ip() {
            IpAddr::V4(ip) => self.put(&ip.octets()),
            IpAddr::V6(ip) => self.put(&ip.octets()),
        }
        self.put(&i32::from(host.port()).to_be_bytes());
    }
}

impl<'a> Encoded<'a> {
    /// The caller has checked the lengths of topic and properties, and that the record fits an i32.
    pub(crate) fn new(fields: &Fields<'a>) -> Self {
        let mut sys_flag = fields.sys_flag;
        if fields.born_host.is_ipv6() {
            sys_flag |= BORN_HOST_V6;
        }
        if fields.store_host.is_ipv6() {
            sys_flag |= STORE_HOST_V6;
        }
        let topic = fields.topic.as_bytes();
        let v2 = topic.len() > MAX_TOPIC_V1;
        let head_len = 88
            + if sys_flag & BORN_HOST_V6 != 0 { 12 } else { 0 }
            + if sys_flag & STORE_HOST_V6 != 0 { 12 } else { 0 };
        let size = head_len
            + fields.body.len()
            + 1
            + usize::from(v2)
            + topic.len()
            + 2
            + fields.properties.len();
        let mut head = Head {
            bytes: [0; MAX_HEAD],
            len: 0,
        };
        head.put(&(size as i32).to_be_bytes());
        head.put(&if v2 { MAGIC_V2 } else { MAGIC_V1 }.to_be_bytes());
        head.put(&(crc32fast::hash(fields.body) & 0x7fff_ffff).to_be_bytes());
        head.put(&fields.queue_id.to_be_bytes());
        head.put(&fields.flag.to_be_bytes());
        head.put(&[0; 16]); // queue offset, physical offset
        head.put(&sys_flag.to_be_bytes());
        head.put(&fields.born_timestamp.to_be_bytes());
        head.put_host(fields.born_host);
        head.put(&[0; 8]); // store timestamp
        head.put_host(fields.store_host);
        head.put(&fields.reconsume_times.to_be_bytes());
        head.put(&fields.prepared_transaction_offset.to_be_bytes());
        head.put(&(fields.body.len() as i32).to_be_bytes());
        debug_assert_eq!(head.len, head_len);
        Self {
            head: head.bytes,
            head_len,
            body: fields.body,
            topic,
            v2,
            properties: fields.properties,
            store_time_at: store_time_at(sys_flag),
            size,
            in_queue: enters_queue(sys_flag),
            indexed: is_indexed(sys_flag),
        }
    }

    /// Fills in the three late fields and hands the record out piece by piece.
    pub(crate) fn write(
        &mut self,
        queue_offset: i64,
        phy_offset: u64,
        store_timestamp: i64,
        mut put: impl FnMut(&[u8]),
    ) {
        self.head[QUEUE_OFFSET_AT..PHY_OFFSET_AT].copy_from_slice(&queue_offset.to_be_bytes());
        self.head[PHY_OFFSET_AT..SYS_FLAG_AT].copy_from_slice(&phy_offset.to_be_bytes());
        self.head[self.store_time_at..self.store_time_at + 8]
            .copy_from_slice(&store_timestamp.to_be_bytes());
        put(&self.head[..self.head_len]);
        put(self.body);
        let mut topic = [0u8; 2 + MAX_TOPIC + 2];
        let prefix = if self.v2 {
            topic[..2].copy_from_slice(&(self.topic.len() as u16).to_be_bytes());
            2
        } else {
            topic[0] = self.topic.len() as u8;
            1
        };
        let end = prefix + self.topic.len();
        topic[prefix..end].copy_from_slice(self.topic);
        topic[end..end + 2].copy_from_slice(&(self.properties.len() as u16).to_be_bytes());
        put(&topic[..end + 2]);
        put(self.properties);
    }
}

/// What stands at a position of the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Peek {
    Record {
        size: usize,
    },
    Blank {
        size: usize,
    },
    /// Zeros, or anything that no broker writes there.
    Nothing,
}

/// Looks at the first 8 bytes of a record.
pub(crate) fn peek(bytes: &[u8]) -> Peek {
    let (Some(size), Some(magic)) = (i32_at(bytes, 0), i32_at(bytes, 4)) else {
        return Peek::Nothing;
    };
    let Ok(size) = usize::try_from(size) else {
        return Peek::Nothing;
    };
    match magic {
        MAGIC_V1 | MAGIC_V2 if size >= MIN_RECORD => Peek::Record { size },
        BLANK_MAGIC if size >= END_FILE_MIN_BLANK as usize => Peek::Blank { size },
        _ => Peek::Nothing,
    }
}

/// A record read back, borrowed from its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    pub(crate) size: usize,
    pub(crate) queue_id: i32,
    pub(crate) queue_offset: i64,
    pub(crate) phy_offset: u64,
    pub(crate) sys_flag: i32,
    pub(crate) store_timestamp: i64,
    pub(crate) topic: &'a str,
    pub(crate) properties: &'a [u8],
}

impl<'a> Record<'a> {
    /// None unless magic, all lengths and (when asked) the body's CRC agree. `bytes` may be longer than the record.
    pub(crate) fn parse(bytes: &'a [u8], check_crc: bool) -> Option<Self> {
        let Peek::Record { size } = peek(bytes) else {
            return None;
        };
        let bytes = bytes.get(..size)?;
        let magic = i32_at(bytes, 4)?;
        let sys_flag = i32_at(bytes, SYS_FLAG_AT)?;
        let store_time_at = store_time_at(sys_flag);
        let store_host = if sys_flag & STORE_HOST_V6 != 0 { 20 } else { 8 };
        let body_len_at = store_time_at + 8 + store_host + 12;
        let body_len = usize::try_from(i32_at(bytes, body_len_at)?).ok()?;
        let body_at = body_len_at + 4;
        let topic_len_at = body_at.checked_add(body_len)?;
        let body = bytes.get(body_at..topic_len_at)?;
        let (topic_at, topic_len) = if magic == MAGIC_V2 {
            let len = bytes.get(topic_len_at..topic_len_at + 2)?;
            (
                topic_len_at + 2,
                usize::from(u16::from_be_bytes([len[0], len[1]])),
            )
        } else {
            (topic_len_at + 1, usize::from(*bytes.get(topic_len_at)?))
        };
        let topic = std::str::from_utf8(bytes.get(topic_at..topic_at + topic_len)?).ok()?;
        let properties_at = topic_at + topic_len + 2;
        let len = bytes.get(properties_at - 2..properties_at)?;
        let properties_len = usize::from(u16::from_be_bytes([len[0], len[1]]));
        if properties_at + properties_len != size {
            return None;
        }
        if check_crc && crc32fast::hash(body) & 0x7fff_ffff != i32_at(bytes, 8)? as u32 {
            return None;
        }
        Some(Self {
            size,
            queue_id: i32_at(bytes, 12)?,
            queue_offset: i64_at(bytes, QUEUE_OFFSET_AT)?,
            phy_offset: u64::try_from(i64_at(bytes, PHY_OFFSET_AT)?).ok()?,
            sys_flag,
            store_timestamp: i64_at(bytes, store_time_at)?,
            topic,
            properties: &bytes[properties_at..],
        })
    }

    /// Entries without a separator or with an empty value do not exist, as in upstream's parser.
    pub(crate) fn property(&self, name: &str) -> Option<Cow<'a, str>> {
        self.properties.split(|b| *b == 2).find_map(|entry| {
            let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(&[1])?;
            (!value.is_empty()).then(|| String::from_utf8_lossy(value))
        })
    }

    /// Upstream `CommitLog.checkMessageAndReturnSize`: the hash of TAGS, or the due time of a delayed message.
    pub(crate) fn tags_code(&self, delay_levels_ms: &[i64]) -> i64 {
        let tags = self
            .property("TAGS")
            .map_or(0, |tags| i64::from(java_hash(0, &tags)));
        if self.topic != SCHEDULE_TOPIC {
            return tags;
        }
        let Some(level) = self.property("DELAY").and_then(|v| v.parse::<i64>().ok()) else {
            return tags;
        };
        if level <= 0 {
            return tags;
        }
        let index = usize::try_from(level - 1)
            .unwrap_or(usize::MAX)
            .min(delay_levels_ms.len().saturating_sub(1));
        self.store_timestamp
            + delay_levels_ms
                .get(index)
                .copied()
                .unwrap_or(UNKNOWN_LEVEL_DELAY_MS)
    }
}

/// Store timestamp from the first bytes of a record (76 are enough).
pub(crate) fn store_timestamp(head: &[u8]) -> Option<i64> {
    let Peek::Record { .. } = peek(head) else {
        return None;
    };
    i64_at(head, store_time_at(i32_at(head, SYS_FLAG_AT)?))
}
/// How much `store_timestamp` needs.
pub(crate) const STORE_TIMESTAMP_HEAD: usize = 76;

/// Java's `String.hashCode`, continued from `seed`.
pub(crate) fn java_hash(seed: i32, text: &str) -> i32 {
    if text.is_ascii() {
        return text
            .bytes()
            .fold(seed, |h, b| h.wrapping_mul(31).wrapping_add(i32::from(b)));
    }
    text.encode_utf16().fold(seed, |h, unit| {
        h.wrapping_mul(31).wrapping_add(i32::from(unit))
    })
}

/// Hash of an index key, given the hash of `topic#`.
pub(crate) fn index_hash(topic_prefix: i32, key: &str) -> i32 {
    java_hash(topic_prefix, key).checked_abs().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields<'a>(topic: &'a str, body: &'a [u8], properties: &'a [u8], host: &str) -> Fields<'a> {
        Fields {
            topic,
            queue_id: 3,
            flag: 7,
            sys_flag: 1,
            born_timestamp: 11,
            born_host: host.parse().unwrap(),
            store_host: host.parse().unwrap(),
            reconsume_times: 2,
            prepared_transaction_offset: 5,
            body,
            properties,
        }
    }

    fn encode(fields: &Fields<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoded = Encoded::new(fields);
        encoded.write(42, 4096, 1234, |piece| out.extend_from_slice(piece));
        assert_eq!(out.len(), encoded.size);
        out
    }

    #[test]
    fn a_record_reads_back_as_written() {
        let long = "t".repeat(200);
        for topic in ["topic", long.as_str()] {
            for host in ["10.0.0.1:10911", "[2001:db8::1]:10911"] {
                let bytes = encode(&fields(
                    topic,
                    b"hello",
                    b"TAGS\x01TagA\x02KEYS\x01a b\x02",
                    host,
                ));
                let record = Record::parse(&bytes, true).unwrap();
                assert_eq!(
                    (record.topic, record.queue_id, record.queue_offset),
                    (topic, 3, 42)
                );
                assert_eq!(
                    (record.phy_offset, record.store_timestamp, record.size),
                    (4096, 1234, bytes.len())
                );
                assert_eq!(record.property("KEYS").as_deref(), Some("a b"));
                assert_eq!(record.tags_code(&[]), 2_598_919);
                assert_eq!(store_timestamp(&bytes[..STORE_TIMESTAMP_HEAD]), Some(1234));
            }
        }
    }

    #[test]
    fn every_cut_or_flipped_body_byte_is_refused() {
        let bytes = encode(&fields("topic", b"some body", b"", "10.0.0.1:1"));
        for cut in 0..bytes.len() {
            assert!(Record::parse(&bytes[..cut], true).is_none());
        }
        let mut flipped = bytes;
        flipped[90] ^= 1;
        assert!(Record::parse(&flipped, true).is_none());
        assert!(Record::parse(&flipped, false).is_some());
    }

    #[test]
    fn hashes_are_java_s() {
        assert_eq!(java_hash(0, "TagA"), 2_598_919);
        assert_eq!(java_hash(0, "Aa"), java_hash(0, "BB"));
        assert_eq!(java_hash(0, "中文"), 646_394);
        assert_eq!(
            java_hash(java_hash(0, "topic#"), "key"),
            java_hash(0, "topic#key")
        );
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), v2: bool, size in 0i32..400) {
            let mut bytes = bytes;
            if bytes.len() >= 8 {
                bytes[..4].copy_from_slice(&size.to_be_bytes());
                bytes[4..8].copy_from_slice(&if v2 { MAGIC_V2 } else { MAGIC_V1 }.to_be_bytes());
            }
            let _ = Record::parse(&bytes, true);
            let _ = store_timestamp(&bytes);
        }
    }
}
