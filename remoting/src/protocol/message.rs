//! Messages as bytes: the record of the CommitLog, which is also what a pull answer carries, the
//! properties string, ids, hashes and the body of a batch.
//!
//! The functions work on borrowed bytes and never trust a length: what does not fit is an error.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::DecodeError;

/// Magic of a record whose topic length takes one byte.
pub const MAGIC_V1: i32 = 0xDAA3_20A7_u32 as i32;
/// Magic of a record whose topic length takes two bytes.
pub const MAGIC_V2: i32 = 0xDAA3_20AB_u32 as i32;
/// Magic of the blank that ends a file.
pub const MAGIC_BLANK: i32 = 0xCBD4_3194_u32 as i32;

/// Longest topic that a V1 record can hold: its length is a signed byte.
pub const MAX_V1_TOPIC: usize = 127;
/// Longest properties string of a record: its length is a signed 16-bit number.
pub const MAX_PROPERTIES: usize = i16::MAX as usize;

/// Bits of `sysFlag`.
pub mod sys_flag {
    pub const COMPRESSED: i32 = 0x1;
    pub const MULTI_TAGS: i32 = 0x2;
    pub const TRANSACTION_PREPARED: i32 = 0x4;
    pub const TRANSACTION_COMMIT: i32 = 0x8;
    pub const TRANSACTION_ROLLBACK: i32 = 0xC;
    /// Both transaction bits; 0 means no transaction.
    pub const TRANSACTION_MASK: i32 = 0xC;
    pub const BORN_HOST_V6: i32 = 0x10;
    pub const STORE_HOST_V6: i32 = 0x20;
    pub const NEED_UNWRAP: i32 = 0x40;
    pub const INNER_BATCH: i32 = 0x80;
    /// Compression type: 1 LZ4, 2 ZSTD, 3 ZLIB; 0 on a compressed body is ZLIB from an old client.
    pub const COMPRESSION_MASK: i32 = 0x700;
}

/// Bits of a pull's `sysFlag`.
pub mod pull_sys_flag {
    pub const COMMIT_OFFSET: i32 = 1;
    pub const SUSPEND: i32 = 2;
    pub const SUBSCRIPTION: i32 = 4;
    pub const CLASS_FILTER: i32 = 8;
    pub const LITE_PULL: i32 = 16;
}

/// Names of message properties.
pub mod property {
    pub const KEYS: &str = "KEYS";
    pub const TAGS: &str = "TAGS";
    pub const WAIT: &str = "WAIT";
    pub const DELAY: &str = "DELAY";
    pub const RETRY_TOPIC: &str = "RETRY_TOPIC";
    pub const REAL_TOPIC: &str = "REAL_TOPIC";
    pub const REAL_QID: &str = "REAL_QID";
    pub const TRAN_MSG: &str = "TRAN_MSG";
    pub const PGROUP: &str = "PGROUP";
    pub const MIN_OFFSET: &str = "MIN_OFFSET";
    pub const MAX_OFFSET: &str = "MAX_OFFSET";
    pub const BUYER_ID: &str = "BUYER_ID";
    pub const ORIGIN_MESSAGE_ID: &str = "ORIGIN_MESSAGE_ID";
    pub const TRANSFER_FLAG: &str = "TRANSFER_FLAG";
    pub const CORRECTION_FLAG: &str = "CORRECTION_FLAG";
    pub const MQ2_FLAG: &str = "MQ2_FLAG";
    pub const RECONSUME_TIME: &str = "RECONSUME_TIME";
    pub const MSG_REGION: &str = "MSG_REGION";
    pub const TRACE_ON: &str = "TRACE_ON";
    pub const UNIQ_KEY: &str = "UNIQ_KEY";
    pub const MAX_RECONSUME_TIMES: &str = "MAX_RECONSUME_TIMES";
    pub const CONSUME_START_TIME: &str = "CONSUME_START_TIME";
    pub const TRAN_PREPARED_QUEUE_OFFSET: &str = "TRAN_PREPARED_QUEUE_OFFSET";
    pub const TRANSACTION_CHECK_TIMES: &str = "TRANSACTION_CHECK_TIMES";
    pub const CHECK_IMMUNITY_TIME_IN_SECONDS: &str = "CHECK_IMMUNITY_TIME_IN_SECONDS";
    pub const INSTANCE_ID: &str = "INSTANCE_ID";
    pub const CORRELATION_ID: &str = "CORRELATION_ID";
    pub const MESSAGE_REPLY_TO_CLIENT: &str = "REPLY_TO_CLIENT";
    pub const MESSAGE_TTL: &str = "TTL";
    pub const PUSH_REPLY_TIME: &str = "PUSH_REPLY_TIME";
    pub const CLUSTER: &str = "CLUSTER";
    pub const MESSAGE_TYPE: &str = "MSG_TYPE";
    pub const POP_CK: &str = "POP_CK";
    pub const SHARDING_KEY: &str = "__SHARDINGKEY";
    pub const CRC32: &str = "__CRC32#";
    pub const INNER_NUM: &str = "INNER_NUM";
    pub const INNER_BASE: &str = "INNER_BASE";
    pub const TIMER_DELIVER_MS: &str = "TIMER_DELIVER_MS";
    pub const TIMER_DELAY_SEC: &str = "TIMER_DELAY_SEC";
    pub const TIMER_DELAY_MS: &str = "TIMER_DELAY_MS";
    pub const DLQ_ORIGIN_TOPIC: &str = "DLQ_ORIGIN_TOPIC";
    pub const DLQ_ORIGIN_MESSAGE_ID: &str = "DLQ_ORIGIN_MESSAGE_ID";
}

/// A record, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordView<'a> {
    pub magic: i32,
    pub body_crc: i32,
    pub queue_id: i32,
    pub flag: i32,
    pub queue_offset: i64,
    pub physical_offset: i64,
    pub sys_flag: i32,
    pub born_timestamp: i64,
    pub born_host: SocketAddr,
    pub store_timestamp: i64,
    pub store_host: SocketAddr,
    pub reconsume_times: i32,
    pub prepared_transaction_offset: i64,
    pub body: &'a [u8],
    pub topic: &'a [u8],
    pub properties: &'a [u8],
    /// Length of the whole record.
    pub size: usize,
}

/// Reads big-endian fields off the front of a slice.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (value, rest) = self.0.split_first_chunk().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(*value)
    }

    fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_be_bytes)
    }

    fn bytes(&mut self, length: Option<usize>) -> Result<&'a [u8], DecodeError> {
        let (value, rest) = length
            .and_then(|length| self.0.split_at_checked(length))
            .ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(value)
    }

    fn host(&mut self, v6: bool) -> Result<SocketAddr, DecodeError> {
        let ip = if v6 {
            IpAddr::V6(Ipv6Addr::from(self.array::<16>()?))
        } else {
            IpAddr::V4(Ipv4Addr::from(self.array::<4>()?))
        };
        // Four bytes hold the port; real ones fit two, and what does not is cut as Java's cast does.
        Ok(SocketAddr::new(ip, self.i32()? as u16))
    }
}

impl<'a> RecordView<'a> {
    /// Reads the record at the start of `bytes`. Its CRC is not checked: see [`RecordView::crc_ok`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let size = usize::try_from(Fields(bytes).i32()?).map_err(|_| DecodeError::Truncated)?;
        let mut fields = Fields(bytes.get(4..size).ok_or(DecodeError::Truncated)?);
        let magic = fields.i32()?;
        if magic != MAGIC_V1 && magic != MAGIC_V2 {
            return Err(DecodeError::Magic(magic));
        }
        let body_crc = fields.i32()?;
        let queue_id = fields.i32()?;
        let flag = fields.i32()?;
        let queue_offset = fields.i64()?;
        let physical_offset = fields.i64()?;
        let sys_flag = fields.i32()?;
        let born_timestamp = fields.i64()?;
        let born_host = fields.host(sys_flag & sys_flag::BORN_HOST_V6 != 0)?;
        let store_timestamp = fields.i64()?;
        let store_host = fields.host(sys_flag & sys_flag::STORE_HOST_V6 != 0)?;
        let reconsume_times = fields.i32()?;
        let prepared_transaction_offset = fields.i64()?;
        let body_length = usize::try_from(fields.i32()?).ok();
        let body = fields.bytes(body_length)?;
        let topic_length = if magic == MAGIC_V1 {
            usize::from(fields.array::<1>()?[0])
        } else {
            usize::from(u16::from_be_bytes(fields.array()?))
        };
        let topic = fields.bytes(Some(topic_length))?;
        let properties_length = usize::try_from(i16::from_be_bytes(fields.array()?)).ok();
        let properties = fields.bytes(properties_length)?;
        if !fields.0.is_empty() {
            return Err(DecodeError::RecordSize(size));
        }
        Ok(Self {
            magic,
            body_crc,
            queue_id,
            flag,
            queue_offset,
            physical_offset,
            sys_flag,
            born_timestamp,
            born_host,
            store_timestamp,
            store_host,
            reconsume_times,
            prepared_transaction_offset,
            body,
            topic,
            properties,
            size,
        })
    }

    pub fn crc_ok(&self) -> bool {
        self.body_crc == body_crc(self.body)
    }

    pub fn topic_str(&self) -> std::borrow::Cow<'a, str> {
        String::from_utf8_lossy(self.topic)
    }

    /// The value of a property.
    pub fn property(&self, name: &str) -> Option<&'a [u8]> {
        find_property(self.properties, name)
    }

    /// The offset message id.
    pub fn message_id(&self) -> MessageId {
        MessageId {
            host: self.store_host,
            offset: self.physical_offset,
        }
    }
}

/// The records of a pull answer, back to back. Ends after the first that is malformed.
pub fn records(bytes: &[u8]) -> impl Iterator<Item = Result<RecordView<'_>, DecodeError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let record = RecordView::parse(rest);
        rest = match &record {
            Ok(record) => &rest[record.size..],
            Err(_) => &[],
        };
        Some(record)
    })
}

/// What a record is encoded from. The host widths in `sys_flag`, the sizes and the CRC are computed.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub queue_id: i32,
    pub flag: i32,
    pub queue_offset: i64,
    pub physical_offset: i64,
    pub sys_flag: i32,
    pub born_timestamp: i64,
    pub born_host: SocketAddr,
    pub store_timestamp: i64,
    pub store_host: SocketAddr,
    pub reconsume_times: i32,
    pub prepared_transaction_offset: i64,
    pub body: &'a [u8],
    pub topic: &'a [u8],
    pub properties: &'a [u8],
}

/// A message that no record can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("topic of {0} bytes is too long")]
    Topic(usize),
    #[error("properties of {0} bytes are too long")]
    Properties(usize),
    #[error("body of {0} bytes is too long")]
    Body(usize),
}

fn host_len(host: SocketAddr) -> usize {
    if host.is_ipv4() { 8 } else { 20 }
}

impl Record<'_> {
    /// Length of the encoded record.
    pub fn encoded_len(&self) -> usize {
        let topic_width = if self.topic.len() > MAX_V1_TOPIC {
            2
        } else {
            1
        };
        74 + host_len(self.born_host)
            + host_len(self.store_host)
            + self.body.len()
            + topic_width
            + self.topic.len()
            + self.properties.len()
    }

    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), RecordError> {
        if self.topic.len() > usize::from(u16::MAX) {
            return Err(RecordError::Topic(self.topic.len()));
        }
        if self.properties.len() > MAX_PROPERTIES {
            return Err(RecordError::Properties(self.properties.len()));
        }
        let size =
            i32::try_from(self.encoded_len()).map_err(|_| RecordError::Body(self.body.len()))?;
        let long_topic = self.topic.len() > MAX_V1_TOPIC;
        let mut flags = self.sys_flag & !(sys_flag::BORN_HOST_V6 | sys_flag::STORE_HOST_V6);
        if self.born_host.is_ipv6() {
            flags |= sys_flag::BORN_HOST_V6;
        }
        if self.store_host.is_ipv6() {
            flags |= sys_flag::STORE_HOST_V6;
        }
        out.reserve(size as usize);
        out.extend_from_slice(&size.to_be_bytes());
        let magic = if long_topic { MAGIC_V2 } else { MAGIC_V1 };
        out.extend_from_slice(&magic.to_be_bytes());
        out.extend_from_slice(&body_crc(self.body).to_be_bytes());
        out.extend_from_slice(&self.queue_id.to_be_bytes());
        out.extend_from_slice(&self.flag.to_be_bytes());
        out.extend_from_slice(&self.queue_offset.to_be_bytes());
        out.extend_from_slice(&self.physical_offset.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&self.born_timestamp.to_be_bytes());
        put_host(out, self.born_host);
        out.extend_from_slice(&self.store_timestamp.to_be_bytes());
        put_host(out, self.store_host);
        out.extend_from_slice(&self.reconsume_times.to_be_bytes());
        out.extend_from_slice(&self.prepared_transaction_offset.to_be_bytes());
        out.extend_from_slice(&(self.body.len() as i32).to_be_bytes());
        out.extend_from_slice(self.body);
        if long_topic {
            out.extend_from_slice(&(self.topic.len() as u16).to_be_bytes());
        } else {
            out.push(self.topic.len() as u8);
        }
        out.extend_from_slice(self.topic);
        out.extend_from_slice(&(self.properties.len() as u16).to_be_bytes());
        out.extend_from_slice(self.properties);
        Ok(())
    }
}

fn put_host(out: &mut Vec<u8>, host: SocketAddr) {
    match host.ip() {
        IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
    }
    out.extend_from_slice(&i32::from(host.port()).to_be_bytes());
}

/// CRC of a body as records and registrations carry it: 31 bits.
pub fn body_crc(body: &[u8]) -> i32 {
    (crc32fast::hash(body) & 0x7FFF_FFFF) as i32
}

/// Separates a property's name from its value.
pub const NAME_VALUE_SEPARATOR: u8 = 1;
/// Ends a property; the last one may lack it.
pub const PROPERTY_SEPARATOR: u8 = 2;

/// The properties in a string, in order. Entries without a separator or with an empty value are
/// left out, as upstream does.
pub fn properties(text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    text.split(|&byte| byte == PROPERTY_SEPARATOR)
        .filter_map(|entry| {
            let at = memchr::memchr(NAME_VALUE_SEPARATOR, entry)?;
            let value = &entry[at + 1..];
            (!value.is_empty()).then_some((&entry[..at], value))
        })
}

/// The value of one property; the last one if there are several, as in a Java map.
pub fn find_property<'a>(text: &'a [u8], name: &str) -> Option<&'a [u8]> {
    properties(text)
        .filter(|(found, _)| *found == name.as_bytes())
        .last()
        .map(|(_, value)| value)
}

/// Appends one property, with the separator that a preceding entry may lack. An empty value is not
/// written, since no reader would see it.
pub fn push_property(text: &mut Vec<u8>, name: &str, value: &[u8]) {
    if value.is_empty() {
        return;
    }
    if text.last().is_some_and(|&last| last != PROPERTY_SEPARATOR) {
        text.push(PROPERTY_SEPARATOR);
    }
    text.extend_from_slice(name.as_bytes());
    text.push(NAME_VALUE_SEPARATOR);
    text.extend_from_slice(value);
    text.push(PROPERTY_SEPARATOR);
}

/// Removes every entry of that name, keeping the others as they are.
pub fn remove_property(text: &mut Vec<u8>, name: &str) {
    if find_property(text, name).is_none() {
        return;
    }
    let kept: Vec<u8> = text
        .split(|&byte| byte == PROPERTY_SEPARATOR)
        .filter(|entry| {
            !entry.is_empty()
                && entry.split(|&byte| byte == NAME_VALUE_SEPARATOR).next() != Some(name.as_bytes())
        })
        .flat_map(|entry| entry.iter().copied().chain([PROPERTY_SEPARATOR]))
        .collect();
    *text = kept;
}

/// Sets a property, whether or not it was there.
pub fn set_property(text: &mut Vec<u8>, name: &str, value: &[u8]) {
    remove_property(text, name);
    push_property(text, name, value);
}

/// Java's `String.hashCode`: over UTF-16 code units.
pub fn java_string_hash(text: &str) -> i32 {
    if text.is_ascii() {
        return text.bytes().fold(0i32, |hash, byte| {
            hash.wrapping_mul(31).wrapping_add(byte.into())
        });
    }
    text.encode_utf16().fold(0i32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(unit.into())
    })
}

/// The tags code of a ConsumeQueue entry: hash of the TAGS value, 0 without tags.
pub fn tags_code(tags: Option<&[u8]>) -> i64 {
    match tags {
        Some(tags) if !tags.is_empty() => java_string_hash(&String::from_utf8_lossy(tags)).into(),
        _ => 0,
    }
}

/// An offset message id: where a record lies, and on which broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId {
    pub host: SocketAddr,
    pub offset: i64,
}

/// Room for any id in text form.
pub type MessageIdBuffer = [u8; 56];

impl MessageId {
    /// The text form, without allocating: 32 or 56 upper-case hex digits.
    pub fn format(self, buffer: &mut MessageIdBuffer) -> &str {
        const HEX: &[u8; 16] = b"0123456789ABCDEF";
        let mut used = 0;
        let mut put = |bytes: &[u8]| {
            for byte in bytes {
                buffer[used] = HEX[usize::from(byte >> 4)];
                buffer[used + 1] = HEX[usize::from(byte & 15)];
                used += 2;
            }
        };
        match self.host.ip() {
            IpAddr::V4(ip) => put(&ip.octets()),
            IpAddr::V6(ip) => put(&ip.octets()),
        }
        put(&i32::from(self.host.port()).to_be_bytes());
        put(&self.offset.to_be_bytes());
        std::str::from_utf8(&buffer[..used]).unwrap_or_default()
    }

    /// Reads the text form; either case is accepted.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        let mut bytes = [0; 28];
        let used = match digits.len() {
            32 => 16,
            56 => 28,
            _ => return None,
        };
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let high = (pair[0] as char).to_digit(16)?;
            let low = (pair[1] as char).to_digit(16)?;
            *byte = (high << 4 | low) as u8;
        }
        let mut fields = Fields(&bytes[..used]);
        Some(Self {
            host: fields.host(used == 28).ok()?,
            offset: fields.i64().ok()?,
        })
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.format(&mut [0; 56]))
    }
}

/// One message of a batch body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchMessage<'a> {
    pub flag: i32,
    pub body: &'a [u8],
    pub properties: &'a [u8],
}

/// The messages of a batch body (320). Ends after the first that is malformed. The sizes inside an
/// entry count, not its total: upstream reads it so, and some clients write a wrong total.
pub fn batch_messages(body: &[u8]) -> impl Iterator<Item = Result<BatchMessage<'_>, DecodeError>> {
    let mut fields = Fields(body);
    std::iter::from_fn(move || {
        if fields.0.is_empty() {
            return None;
        }
        let message = batch_message(&mut fields);
        if message.is_err() {
            fields.0 = &[];
        }
        Some(message)
    })
}

fn batch_message<'a>(fields: &mut Fields<'a>) -> Result<BatchMessage<'a>, DecodeError> {
    let _total_size = fields.i32()?;
    let _magic = fields.i32()?;
    let _crc = fields.i32()?;
    let flag = fields.i32()?;
    let body_length = usize::try_from(fields.i32()?).ok();
    let body = fields.bytes(body_length)?;
    let properties_length = usize::try_from(i16::from_be_bytes(fields.array()?)).ok();
    let properties = fields.bytes(properties_length)?;
    Ok(BatchMessage {
        flag,
        body,
        properties,
    })
}

/// Appends one message to a batch body.
pub fn push_batch_message(
    out: &mut Vec<u8>,
    message: &BatchMessage<'_>,
) -> Result<(), RecordError> {
    if message.properties.len() > MAX_PROPERTIES {
        return Err(RecordError::Properties(message.properties.len()));
    }
    let size = i32::try_from(22 + message.body.len() + message.properties.len())
        .map_err(|_| RecordError::Body(message.body.len()))?;
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&message.flag.to_be_bytes());
    out.extend_from_slice(&(message.body.len() as i32).to_be_bytes());
    out.extend_from_slice(message.body);
    out.extend_from_slice(&(message.properties.len() as u16).to_be_bytes());
    out.extend_from_slice(message.properties);
    Ok(())
}

#[cfg(test)]
mod tests;
