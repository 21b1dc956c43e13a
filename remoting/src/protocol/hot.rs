//! The hot path: headers read without a map and answers written straight into the output buffer.
//!
//! [`HeaderView`] borrows the frame and walks its ext fields in place; [`SendHeader`] and
//! [`PullHeader`] pick their fields out of it. Nothing allocates unless an escape in a JSON string
//! forces it. The reader is as lenient as upstream's decoder: unknown keys, numbers and booleans as
//! ext values, any order, white space, `null`, and bytes that are no UTF-8 (read with replacement).

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use serde::de::DeserializeOwned;

use super::command::{
    DecodeError, FLAG_ONEWAY, FLAG_RESPONSE, SerializeType, begin_frame, end_frame,
};
use super::ext::{HeaderError, from_fields, parse_bool, parse_int};
use super::{LanguageCode, VERSION, request_code};

/// Size of a ROCKETMQ header without remark and ext fields.
const BINARY_FIXED: usize = 21;

/// A piece of text inside a header, as it stands there: JSON escapes not yet resolved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawText<'a> {
    bytes: &'a [u8],
    escaped: bool,
}

impl<'a> RawText<'a> {
    /// Text that needs no unescaping.
    pub fn plain(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            escaped: false,
        }
    }

    pub(crate) fn new(bytes: &'a [u8], escaped: bool) -> Self {
        Self { bytes, escaped }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// An upper bound of the length after unescaping.
    pub fn max_len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the text is exactly `other`, without allocating for the usual unescaped case.
    pub fn eq_bytes(&self, other: &[u8]) -> bool {
        if self.escaped {
            self.to_cow().as_bytes() == other
        } else {
            self.bytes == other
        }
    }

    /// The text; borrowed when it holds no escape and is UTF-8.
    pub fn to_cow(&self) -> Cow<'a, str> {
        if !self.escaped {
            // Checked in bulk first: the lossy reader goes character by character.
            return match std::str::from_utf8(self.bytes) {
                Ok(text) => Cow::Borrowed(text),
                Err(_) => String::from_utf8_lossy(self.bytes),
            };
        }
        let mut out = Vec::with_capacity(self.bytes.len());
        unescape(self.bytes, &mut out);
        Cow::Owned(match String::from_utf8(out) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })
    }

    /// Appends the unescaped UTF-8 text; allocates only through `out`.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        let start = out.len();
        if self.escaped {
            unescape(self.bytes, out);
        } else {
            out.extend_from_slice(self.bytes);
        }
        if std::str::from_utf8(&out[start..]).is_err() {
            let text = String::from_utf8_lossy(&out[start..]).into_owned();
            out.truncate(start);
            out.extend_from_slice(text.as_bytes());
        }
    }
}

/// Resolves JSON escapes. An escape that means nothing stands for the escaped byte itself, half a
/// surrogate pair for U+FFFD.
fn unescape(mut bytes: &[u8], out: &mut Vec<u8>) {
    while let Some(at) = stop(bytes, 0) {
        out.extend_from_slice(&bytes[..at]);
        if bytes[at] == b'"' {
            // Text that stood between other quotes.
            out.push(b'"');
            bytes = &bytes[at + 1..];
            continue;
        }
        let Some(&kind) = bytes.get(at + 1) else {
            return;
        };
        bytes = &bytes[at + 2..];
        match kind {
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => {
                // The separators of properties, all over every send.
                if let Some(&[b'0', b'0', b'0', digit @ b'0'..=b'9']) = bytes.first_chunk() {
                    out.push(digit - b'0');
                    bytes = &bytes[4..];
                    continue;
                }
                let unit = hex4(bytes);
                bytes = bytes.get(4..).unwrap_or_default();
                let mut scalar = unit;
                if (0xD800..0xDC00).contains(&unit) && bytes.starts_with(b"\\u") {
                    let low = hex4(&bytes[2..]);
                    if (0xDC00..0xE000).contains(&low) {
                        scalar = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
                        bytes = &bytes[6..];
                    }
                }
                match scalar {
                    0..=0x7F => out.push(scalar as u8),
                    _ => {
                        let text = char::from_u32(scalar).unwrap_or(char::REPLACEMENT_CHARACTER);
                        out.extend_from_slice(text.encode_utf8(&mut [0; 4]).as_bytes());
                    }
                }
            }
            other => out.push(other),
        }
    }
    out.extend_from_slice(bytes);
}

/// Four hex digits, or a lone surrogate (which reads as U+FFFD) when they are not.
fn hex4(bytes: &[u8]) -> u32 {
    let mut value = 0;
    for index in 0..4 {
        match bytes
            .get(index)
            .and_then(|&byte| (byte as char).to_digit(16))
        {
            Some(digit) => value = value << 4 | digit,
            None => return 0xDFFF,
        }
    }
    value
}

/// Fields of a JSON header whose places are remembered, so that it is scanned once. A send has 14.
const INDEXED: usize = 16;

/// Headers up to this length have their fields' places remembered.
const INDEXED_HEADER: usize = i16::MAX as usize;

/// Where a text stands in the header, and whether it holds escapes. Small, because a view is moved several times; right
/// only in headers of at most [`INDEXED_HEADER`] bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    start: u16,
    /// The highest bit says that the text holds escapes.
    len: u16,
}

impl Span {
    const ESCAPED: u16 = 1 << 15;

    #[inline]
    fn new(start: usize, end: usize, escaped: bool) -> Self {
        Self {
            start: start as u16,
            len: (end - start) as u16 & !Self::ESCAPED | if escaped { Self::ESCAPED } else { 0 },
        }
    }

    fn of(text: RawText<'_>, end: usize) -> Self {
        Self::new(end - text.bytes.len(), end, text.escaped)
    }

    #[inline]
    fn text<'a>(&self, header: &'a [u8]) -> Option<RawText<'a>> {
        let start = usize::from(self.start);
        let bytes = header.get(start..start + usize::from(self.len & !Self::ESCAPED))?;
        Some(RawText::new(bytes, self.len & Self::ESCAPED != 0))
    }
}

#[derive(Clone, Copy, Debug)]
enum ExtArea<'a> {
    /// The whole header, and the fields in it.
    Indexed {
        header: &'a [u8],
        used: usize,
        fields: [[Span; 2]; INDEXED],
    },
    /// The inside of a JSON object with more fields than that.
    Json(&'a [u8]),
    Binary(&'a [u8]),
}

/// A frame's header, borrowed. The ext area has been checked by [`HeaderView::parse`], so walking
/// it cannot fail.
#[derive(Clone, Copy, Debug)]
pub struct HeaderView<'a> {
    pub code: i32,
    pub language: LanguageCode,
    pub version: i32,
    pub opaque: i32,
    pub flag: i32,
    remark: Option<RawText<'a>>,
    ext: ExtArea<'a>,
}

impl<'a> HeaderView<'a> {
    pub fn parse(serialize_type: SerializeType, header: &'a [u8]) -> Result<Self, DecodeError> {
        match serialize_type {
            SerializeType::Json => Self::parse_json(header),
            SerializeType::RocketMq => Self::parse_binary(header),
        }
    }

    pub fn is_response(&self) -> bool {
        self.flag & FLAG_RESPONSE != 0
    }

    pub fn is_oneway(&self) -> bool {
        self.flag & FLAG_ONEWAY != 0
    }

    pub fn remark(&self) -> Option<Cow<'a, str>> {
        self.remark.map(|text| text.to_cow())
    }

    /// The ext fields in the order they were sent; a field whose value is null is left out.
    pub fn ext(&self) -> ExtIter<'_, 'a> {
        ExtIter {
            area: &self.ext,
            at: 0,
        }
    }

    /// The last value sent under `key`.
    pub fn ext_get(&self, key: &str) -> Option<Cow<'a, str>> {
        self.ext()
            .filter(|(name, _)| name.eq_bytes(key.as_bytes()))
            .last()
            .map(|(_, value)| value.to_cow())
    }

    /// Reads the ext fields into a header struct of [`super::header`].
    pub fn header<H: DeserializeOwned>(&self) -> Result<H, HeaderError> {
        from_fields(
            self.ext()
                .map(|(name, value)| (name.to_cow(), value.to_cow())),
        )
    }

    fn parse_json(header: &'a [u8]) -> Result<Self, DecodeError> {
        let mut view = HeaderView {
            code: 0,
            language: LanguageCode::Other,
            version: 0,
            opaque: 0,
            flag: 0,
            remark: None,
            ext: ExtArea::Json(&[]),
        };
        let mut scan = Scan {
            input: header,
            at: 0,
        };
        scan.expect(b'{')?;
        if !scan.closes(b'}') {
            loop {
                let key = scan.key()?;
                match key.bytes {
                    b"code" => view.code = scan.int()?,
                    b"opaque" => view.opaque = scan.int()?,
                    b"flag" => view.flag = scan.int()?,
                    b"version" => view.version = scan.int()?,
                    b"language" => {
                        view.language = match scan.value()? {
                            Value::Text(name) => LanguageCode::from_name_bytes(name.bytes),
                            Value::Literal(number) => {
                                LanguageCode::from_number(parse_int(number).unwrap_or(-1))
                            }
                            Value::Null => LanguageCode::Other,
                        }
                    }
                    b"remark" => {
                        view.remark = match scan.value()? {
                            Value::Text(text) => Some(text),
                            Value::Literal(raw) => Some(RawText::plain(raw)),
                            Value::Null => None,
                        }
                    }
                    b"extFields" => view.ext = scan.ext()?,
                    _ => {
                        scan.value()?;
                    }
                }
                if !scan.more(b'}')? {
                    break;
                }
            }
        }
        scan.blanks();
        if scan.at != header.len() {
            return Err(scan.error());
        }
        Ok(view)
    }

    fn parse_binary(header: &'a [u8]) -> Result<Self, DecodeError> {
        let Some((fixed, rest)) = header.split_at_checked(BINARY_FIXED - 8) else {
            return Err(DecodeError::Truncated);
        };
        let int = |at: usize| {
            i32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]])
        };
        let short = |at: usize| i16::from_be_bytes([fixed[at], fixed[at + 1]]);
        let (remark, rest) = take_long(rest)?;
        let (ext, _) = take_long(rest)?;
        let mut entries = ext;
        while !entries.is_empty() {
            let (_, after_key) = take_short(entries)?;
            (_, entries) = take_long(after_key)?;
        }
        Ok(HeaderView {
            code: short(0).into(),
            language: LanguageCode::from_number(fixed[2].into()),
            version: short(3).into(),
            opaque: int(5),
            flag: int(9),
            remark: (!remark.is_empty()).then_some(RawText::plain(remark)),
            ext: ExtArea::Binary(ext),
        })
    }
}

/// A string with a four-byte length, and what follows it.
fn take_long(bytes: &[u8]) -> Result<(&[u8], &[u8]), DecodeError> {
    let (length, rest) = bytes.split_first_chunk().ok_or(DecodeError::Truncated)?;
    usize::try_from(i32::from_be_bytes(*length))
        .ok()
        .and_then(|length| rest.split_at_checked(length))
        .ok_or(DecodeError::Truncated)
}

/// A string with a two-byte length, and what follows it.
fn take_short(bytes: &[u8]) -> Result<(&[u8], &[u8]), DecodeError> {
    let (length, rest) = bytes.split_first_chunk().ok_or(DecodeError::Truncated)?;
    usize::try_from(i16::from_be_bytes(*length))
        .ok()
        .and_then(|length| rest.split_at_checked(length))
        .ok_or(DecodeError::Truncated)
}

/// Walks the ext fields of a [`HeaderView`].
#[derive(Clone, Debug)]
pub struct ExtIter<'v, 'a> {
    area: &'v ExtArea<'a>,
    at: usize,
}

impl<'a> Iterator for ExtIter<'_, 'a> {
    type Item = (RawText<'a>, RawText<'a>);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        match *self.area {
            ExtArea::Indexed {
                header,
                used,
                ref fields,
            } => {
                let [key, value] = fields.get(..used)?.get(self.at)?;
                self.at += 1;
                Some((key.text(header)?, value.text(header)?))
            }
            ExtArea::Json(input) => {
                let mut scan = Scan { input, at: self.at };
                loop {
                    scan.blanks();
                    if scan.peek() == Some(b',') {
                        scan.at += 1;
                    }
                    let key = scan.key().ok()?;
                    let value = scan.value().ok()?;
                    self.at = scan.at;
                    match value {
                        Value::Text(text) => return Some((key, text)),
                        Value::Literal(raw) => return Some((key, RawText::plain(raw))),
                        Value::Null => {}
                    }
                }
            }
            ExtArea::Binary(input) => {
                let rest = input.get(self.at..).filter(|rest| !rest.is_empty())?;
                let (key, rest) = take_short(rest).ok()?;
                let (value, rest) = take_long(rest).ok()?;
                self.at = input.len() - rest.len();
                Some((RawText::plain(key), RawText::plain(value)))
            }
        }
    }
}

enum Value<'a> {
    Text(RawText<'a>),
    /// A number or a boolean, or the raw text of an object or array.
    Literal(&'a [u8]),
    Null,
}

/// Where the first quote or backslash at or behind `at` stands.
#[inline]
fn stop(input: &[u8], mut at: usize) -> Option<usize> {
    const QUOTE: u64 = u64::from_ne_bytes([b'"'; 8]);
    const SLASH: u64 = u64::from_ne_bytes([b'\\'; 8]);
    const LOW: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    let mut rest = input.get(at..)?;
    // Eight bytes at a time; the lowest marked byte is exact.
    while let Some((chunk, after)) = rest.split_first_chunk() {
        let word = u64::from_le_bytes(*chunk);
        let (quote, slash) = (word ^ QUOTE, word ^ SLASH);
        let hit = (quote.wrapping_sub(LOW) & !quote | slash.wrapping_sub(LOW) & !slash) & HIGH;
        if hit != 0 {
            return Some(at + (hit.trailing_zeros() / 8) as usize);
        }
        at += 8;
        rest = after;
    }
    let found = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    Some(at + found)
}

/// A cursor over JSON text that builds nothing.
struct Scan<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    fn error(&self) -> DecodeError {
        if self.at >= self.input.len() {
            DecodeError::Truncated
        } else {
            DecodeError::Json { at: self.at }
        }
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.input.get(self.at).copied()
    }

    #[inline]
    fn blanks(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Result<(), DecodeError> {
        self.blanks();
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            Err(self.error())
        }
    }

    /// Consumes `close` if it comes next.
    fn closes(&mut self, close: u8) -> bool {
        self.blanks();
        let found = self.peek() == Some(close);
        self.at += usize::from(found);
        found
    }

    /// After a member: true for a comma, false for `close`.
    #[inline]
    fn more(&mut self, close: u8) -> Result<bool, DecodeError> {
        self.blanks();
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(self.error()),
        }
    }

    #[inline]
    fn key(&mut self) -> Result<RawText<'a>, DecodeError> {
        self.expect(b'"')?;
        let key = self.string()?;
        self.expect(b':')?;
        Ok(key)
    }

    /// The rest of a string whose opening quote has been read.
    #[inline]
    fn string(&mut self) -> Result<RawText<'a>, DecodeError> {
        let start = self.at;
        let mut escaped = false;
        loop {
            let at = stop(self.input, self.at).ok_or(DecodeError::Truncated)?;
            if self.input[at] == b'"' {
                self.at = at + 1;
                return Ok(RawText {
                    bytes: &self.input[start..at],
                    escaped,
                });
            }
            escaped = true;
            self.at = at + 2;
        }
    }

    /// One ext member in the form that every client writes, `"key":"value"` without blanks or escapes in the key.
    /// `None` leaves the cursor where it was: the member is read the long way.
    #[inline]
    fn compact_member(&mut self) -> Option<[Span; 2]> {
        let input = self.input;
        if self.peek() != Some(b'"') {
            return None;
        }
        let key = self.at + 1;
        let key_end = stop(input, key)?;
        if input.get(key_end..)?.first_chunk() != Some(b"\":\"") {
            return None;
        }
        let value = key_end + 3;
        let mut end = stop(input, value)?;
        let mut escaped = false;
        while input[end] == b'\\' {
            escaped = true;
            end = stop(input, end + 2)?;
        }
        self.at = end + 1;
        Some([
            Span::new(key, key_end, false),
            Span::new(value, end, escaped),
        ])
    }

    #[inline]
    fn value(&mut self) -> Result<Value<'a>, DecodeError> {
        self.blanks();
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                Ok(Value::Text(self.string()?))
            }
            Some(b'{' | b'[') => self.skip_nested().map(Value::Literal),
            Some(_) => {
                let start = self.at;
                while let Some(b'+' | b'-' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') =
                    self.peek()
                {
                    self.at += 1;
                }
                match &self.input[start..self.at] {
                    b"" => Err(self.error()),
                    b"null" => Ok(Value::Null),
                    literal => Ok(Value::Literal(literal)),
                }
            }
            None => Err(DecodeError::Truncated),
        }
    }

    /// An object or an array, by counting brackets outside strings; no recursion, so no depth limit.
    fn skip_nested(&mut self) -> Result<&'a [u8], DecodeError> {
        let start = self.at;
        let mut depth = 0usize;
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b'"' => {
                    self.string()?;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        return Ok(&self.input[start..self.at]);
                    }
                }
                _ => {}
            }
        }
        Err(DecodeError::Truncated)
    }

    #[inline]
    fn int(&mut self) -> Result<i32, DecodeError> {
        /// So many digits fit an i32 whatever they are.
        const SHORT: usize = 9;
        let at = self.at;
        let mut number = 0;
        for (index, byte) in self.input.iter().skip(at).take(SHORT + 1).enumerate() {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                if index > 0 && matches!(byte, b',' | b'}') {
                    self.at = at + index;
                    return Ok(number);
                }
                break;
            }
            if index < SHORT {
                number = number * 10 + i32::from(digit);
            }
        }
        self.odd_int(at)
    }

    /// A number of more digits, with a sign or a fraction, or in quotes.
    #[cold]
    fn odd_int(&mut self, at: usize) -> Result<i32, DecodeError> {
        let number = match self.value()? {
            Value::Literal(text) => parse_int(text),
            Value::Text(text) => parse_int(text.bytes),
            Value::Null => Some(0),
        };
        number
            .and_then(|number| i32::try_from(number).ok())
            .ok_or(DecodeError::Json { at })
    }

    /// The ext object, checked member by member.
    fn ext(&mut self) -> Result<ExtArea<'a>, DecodeError> {
        self.blanks();
        if self.peek() != Some(b'{') {
            return match self.value()? {
                Value::Null => Ok(ExtArea::Json(&[])),
                _ => Err(self.error()),
            };
        }
        self.at += 1;
        let start = self.at;
        let mut fields = [[Span::default(); 2]; INDEXED];
        let mut used = 0;
        if !self.closes(b'}') {
            loop {
                if let Some(member) = self.compact_member() {
                    if let Some(field) = fields.get_mut(used) {
                        *field = member;
                    }
                    used += 1;
                    if self.more(b'}')? {
                        continue;
                    }
                    break;
                }
                self.expect(b'"')?;
                let key = self.string()?;
                // The end of a text is known best right after it: behind its closing quote.
                let key = Span::of(key, self.at - 1);
                self.expect(b':')?;
                let value = match self.value()? {
                    Value::Text(text) => Some(Span::of(text, self.at - 1)),
                    Value::Literal(raw) => Some(Span::of(RawText::plain(raw), self.at)),
                    Value::Null => None,
                };
                if let Some(value) = value {
                    if let Some(field) = fields.get_mut(used) {
                        *field = [key, value];
                    }
                    used += 1;
                }
                if !self.more(b'}')? {
                    break;
                }
            }
        }
        if used <= INDEXED && self.input.len() <= INDEXED_HEADER {
            return Ok(ExtArea::Indexed {
                header: self.input,
                used,
                fields,
            });
        }
        Ok(ExtArea::Json(&self.input[start..self.at - 1]))
    }
}

fn int_field<T: TryFrom<i64>>(name: &'static str, value: RawText<'_>) -> Result<T, HeaderError> {
    parse_int(value.bytes)
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| HeaderError::Invalid {
            field: name.to_owned(),
            value: value.to_cow().into_owned(),
        })
}

/// Header of a send: 310, 320 and 325 name their fields by letters, 10 and 324 in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendHeader<'a> {
    pub producer_group: RawText<'a>,
    pub topic: Cow<'a, str>,
    pub default_topic: RawText<'a>,
    pub default_topic_queue_nums: i32,
    pub queue_id: i32,
    pub sys_flag: i32,
    pub born_timestamp: i64,
    pub flag: i32,
    /// Left raw: [`RawText::append_to`] puts it where the record is built.
    pub properties: RawText<'a>,
    pub reconsume_times: i32,
    pub unit_mode: bool,
    pub max_reconsume_times: Option<i32>,
    pub batch: bool,
    pub broker_name: Option<Cow<'a, str>>,
}

impl<'a> SendHeader<'a> {
    /// Only `topic` and `queueId` are indispensable; what else is missing reads as zero or empty.
    pub fn parse(view: &HeaderView<'a>) -> Result<Self, HeaderError> {
        let letters = matches!(
            view.code,
            request_code::SEND_MESSAGE_V2
                | request_code::SEND_BATCH_MESSAGE
                | request_code::SEND_REPLY_MESSAGE_V2
        );
        let mut header = SendHeader {
            producer_group: RawText::default(),
            topic: Cow::Borrowed(""),
            default_topic: RawText::default(),
            default_topic_queue_nums: 0,
            queue_id: 0,
            sys_flag: 0,
            born_timestamp: 0,
            flag: 0,
            properties: RawText::default(),
            reconsume_times: 0,
            unit_mode: false,
            max_reconsume_times: None,
            batch: false,
            broker_name: None,
        };
        let (mut topic, mut queue_id) = (None, None);
        for (key, value) in view.ext() {
            let letter = match (letters, key.bytes) {
                (true, [letter]) => *letter,
                (true, _) => continue,
                (false, name) => match name {
                    b"producerGroup" => b'a',
                    b"topic" => b'b',
                    b"defaultTopic" => b'c',
                    b"defaultTopicQueueNums" => b'd',
                    b"queueId" => b'e',
                    b"sysFlag" => b'f',
                    b"bornTimestamp" => b'g',
                    b"flag" => b'h',
                    b"properties" => b'i',
                    b"reconsumeTimes" => b'j',
                    b"unitMode" => b'k',
                    b"maxReconsumeTimes" => b'l',
                    b"batch" => b'm',
                    b"brokerName" => b'n',
                    _ => continue,
                },
            };
            match letter {
                b'a' => header.producer_group = value,
                b'b' => topic = Some(value.to_cow()),
                b'c' => header.default_topic = value,
                b'd' => {
                    header.default_topic_queue_nums = int_field("defaultTopicQueueNums", value)?
                }
                b'e' => queue_id = Some(int_field("queueId", value)?),
                b'f' => header.sys_flag = int_field("sysFlag", value)?,
                b'g' => header.born_timestamp = int_field("bornTimestamp", value)?,
                b'h' => header.flag = int_field("flag", value)?,
                b'i' => header.properties = value,
                b'j' => header.reconsume_times = int_field("reconsumeTimes", value)?,
                b'k' => header.unit_mode = parse_bool(value.bytes),
                b'l' => header.max_reconsume_times = Some(int_field("maxReconsumeTimes", value)?),
                b'm' => header.batch = parse_bool(value.bytes),
                b'n' => header.broker_name = Some(value.to_cow()),
                _ => {}
            }
        }
        header.topic = topic.ok_or_else(|| HeaderError::missing("topic"))?;
        header.queue_id = queue_id.ok_or_else(|| HeaderError::missing("queueId"))?;
        Ok(header)
    }
}

/// Header of a pull, 11 and 361.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullHeader<'a> {
    pub consumer_group: Cow<'a, str>,
    pub topic: Cow<'a, str>,
    pub queue_id: i32,
    pub queue_offset: i64,
    pub max_msg_nums: i32,
    pub sys_flag: i32,
    pub commit_offset: i64,
    pub suspend_timeout_millis: i64,
    pub subscription: Option<Cow<'a, str>>,
    pub sub_version: i64,
    pub expression_type: Option<Cow<'a, str>>,
    pub max_msg_bytes: Option<i32>,
    pub broker_name: Option<Cow<'a, str>>,
}

impl<'a> PullHeader<'a> {
    /// Group, topic, queue and offset are indispensable; what else is missing reads as zero.
    pub fn parse(view: &HeaderView<'a>) -> Result<Self, HeaderError> {
        let mut header = PullHeader {
            consumer_group: Cow::Borrowed(""),
            topic: Cow::Borrowed(""),
            queue_id: 0,
            queue_offset: 0,
            max_msg_nums: 0,
            sys_flag: 0,
            commit_offset: 0,
            suspend_timeout_millis: 0,
            subscription: None,
            sub_version: 0,
            expression_type: None,
            max_msg_bytes: None,
            broker_name: None,
        };
        let (mut group, mut topic, mut queue_id, mut queue_offset) = (None, None, None, None);
        for (key, value) in view.ext() {
            match key.bytes {
                b"consumerGroup" => group = Some(value.to_cow()),
                b"topic" => topic = Some(value.to_cow()),
                b"queueId" => queue_id = Some(int_field("queueId", value)?),
                b"queueOffset" => queue_offset = Some(int_field("queueOffset", value)?),
                b"maxMsgNums" => header.max_msg_nums = int_field("maxMsgNums", value)?,
                b"sysFlag" => header.sys_flag = int_field("sysFlag", value)?,
                b"commitOffset" => header.commit_offset = int_field("commitOffset", value)?,
                b"suspendTimeoutMillis" => {
                    header.suspend_timeout_millis = int_field("suspendTimeoutMillis", value)?;
                }
                b"subscription" => header.subscription = Some(value.to_cow()),
                b"subVersion" => header.sub_version = int_field("subVersion", value)?,
                b"expressionType" => header.expression_type = Some(value.to_cow()),
                b"maxMsgBytes" => header.max_msg_bytes = Some(int_field("maxMsgBytes", value)?),
                b"bname" => header.broker_name = Some(value.to_cow()),
                _ => {}
            }
        }
        header.consumer_group = group.ok_or_else(|| HeaderError::missing("consumerGroup"))?;
        header.topic = topic.ok_or_else(|| HeaderError::missing("topic"))?;
        header.queue_id = queue_id.ok_or_else(|| HeaderError::missing("queueId"))?;
        header.queue_offset = queue_offset.ok_or_else(|| HeaderError::missing("queueOffset"))?;
        Ok(header)
    }
}

/// Writes a JSON string with its quotes.
pub(crate) fn put_json_str(out: &mut BytesMut, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.put_u8(b'"');
    let bytes = text.as_bytes();
    let mut plain = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.put_slice(&bytes[plain..at]);
        plain = at + 1;
        match byte {
            b'"' => out.put_slice(b"\\\""),
            b'\\' => out.put_slice(b"\\\\"),
            b'\n' => out.put_slice(b"\\n"),
            b'\r' => out.put_slice(b"\\r"),
            b'\t' => out.put_slice(b"\\t"),
            _ => out.put_slice(&[
                b'\\',
                b'u',
                b'0',
                b'0',
                HEX[usize::from(byte >> 4)],
                HEX[usize::from(byte & 15)],
            ]),
        }
    }
    out.put_slice(&bytes[plain..]);
    out.put_u8(b'"');
}

#[inline]
fn put_int(out: &mut BytesMut, number: impl itoa::Integer) {
    out.put_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// One frame written field by field, in either form. Field order is the caller's.
pub(crate) struct FrameWriter<'o> {
    out: &'o mut BytesMut,
    start: usize,
    serialize_type: SerializeType,
    ext_start: usize,
    fields: usize,
}

/// The fixed header fields of a frame.
pub(crate) struct Fixed<'a> {
    pub code: i32,
    pub language: LanguageCode,
    pub version: i32,
    pub opaque: i32,
    pub flag: i32,
    pub remark: Option<&'a str>,
}

impl<'o> FrameWriter<'o> {
    pub(crate) fn begin(
        out: &'o mut BytesMut,
        serialize_type: SerializeType,
        fixed: &Fixed<'_>,
    ) -> Self {
        let start = begin_frame(out);
        match serialize_type {
            SerializeType::Json => {
                out.put_slice(b"{\"code\":");
                put_int(out, fixed.code);
                out.put_slice(b",\"flag\":");
                put_int(out, fixed.flag);
                out.put_slice(b",\"language\":\"");
                out.put_slice(fixed.language.name().as_bytes());
                out.put_slice(b"\",\"opaque\":");
                put_int(out, fixed.opaque);
                if let Some(remark) = fixed.remark {
                    out.put_slice(b",\"remark\":");
                    put_json_str(out, remark);
                }
                out.put_slice(b",\"serializeTypeCurrentRPC\":\"JSON\",\"version\":");
                put_int(out, fixed.version);
            }
            SerializeType::RocketMq => {
                out.put_i16(fixed.code as i16);
                out.put_u8(fixed.language as u8);
                out.put_i16(fixed.version as i16);
                out.put_i32(fixed.opaque);
                out.put_i32(fixed.flag);
                let remark = fixed.remark.unwrap_or_default();
                out.put_i32(remark.len() as i32);
                out.put_slice(remark.as_bytes());
                out.put_i32(0);
            }
        }
        let ext_start = out.len();
        FrameWriter {
            out,
            start,
            serialize_type,
            ext_start,
            fields: 0,
        }
    }

    fn open(&mut self, key: &str) {
        match self.serialize_type {
            SerializeType::Json => {
                self.out.put_slice(if self.fields == 0 {
                    b",\"extFields\":{"
                } else {
                    b","
                });
                put_json_str(self.out, key);
                self.out.put_u8(b':');
            }
            SerializeType::RocketMq => {
                self.out.put_i16(key.len() as i16);
                self.out.put_slice(key.as_bytes());
            }
        }
        self.fields += 1;
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) {
        self.open(key);
        match self.serialize_type {
            SerializeType::Json => put_json_str(self.out, value),
            SerializeType::RocketMq => {
                self.out.put_i32(value.len() as i32);
                self.out.put_slice(value.as_bytes());
            }
        }
    }

    fn int(&mut self, key: &str, value: impl itoa::Integer) {
        self.text(key, itoa::Buffer::new().format(value));
    }

    /// Closes the header for a body of `body_len` bytes that the caller appends right after.
    pub(crate) fn end(self, body_len: usize) {
        match self.serialize_type {
            SerializeType::Json => {
                self.out
                    .put_slice(if self.fields == 0 { b"}" } else { b"}}" });
            }
            SerializeType::RocketMq => {
                let length = (self.out.len() - self.ext_start) as u32;
                self.out[self.ext_start - 4..self.ext_start].copy_from_slice(&length.to_be_bytes());
            }
        }
        end_frame(self.out, self.start, self.serialize_type, body_len);
    }
}

/// The answer to a send.
#[derive(Clone, Copy, Debug)]
pub struct SendResponse<'a> {
    pub opaque: i32,
    pub serialize_type: SerializeType,
    pub code: i32,
    pub remark: Option<&'a str>,
    pub msg_id: &'a str,
    pub queue_id: i32,
    pub queue_offset: i64,
    pub transaction_id: Option<&'a str>,
    pub region: &'a str,
    pub trace_on: bool,
}

/// Appends the answer to a send. The region and the trace switch are always there: Java clients
/// dereference them.
pub fn encode_send_response(out: &mut BytesMut, response: &SendResponse<'_>) {
    let mut frame = FrameWriter::begin(
        out,
        response.serialize_type,
        &Fixed {
            code: response.code,
            language: LanguageCode::Java,
            version: VERSION,
            opaque: response.opaque,
            flag: FLAG_RESPONSE,
            remark: response.remark,
        },
    );
    frame.text("MSG_REGION", response.region);
    frame.text("TRACE_ON", if response.trace_on { "true" } else { "false" });
    frame.text("msgId", response.msg_id);
    frame.int("queueId", response.queue_id);
    frame.int("queueOffset", response.queue_offset);
    if let Some(id) = response.transaction_id {
        frame.text("transactionId", id);
    }
    frame.end(0);
}

/// The answer nearly every send gets, success of one message in JSON: what is the same in all answers of a broker is
/// encoded once.
#[derive(Clone, Debug)]
pub struct SendResponseTemplate {
    before_opaque: Vec<u8>,
    before_offset: Vec<u8>,
}

impl SendResponseTemplate {
    /// `host` is what every message id of the broker begins with: its address and port in upper-case hex.
    pub fn new(host: &str, region: &str, trace_on: bool) -> Self {
        let mut middle = BytesMut::new();
        middle.put_slice(b",\"serializeTypeCurrentRPC\":\"JSON\",\"version\":");
        put_int(&mut middle, VERSION);
        middle.put_slice(b",\"extFields\":{\"MSG_REGION\":");
        put_json_str(&mut middle, region);
        middle.put_slice(b",\"TRACE_ON\":");
        put_json_str(&mut middle, if trace_on { "true" } else { "false" });
        middle.put_slice(b",\"msgId\":\"");
        middle.put_slice(host.as_bytes());
        Self {
            before_opaque: b"{\"code\":0,\"flag\":1,\"language\":\"JAVA\",\"opaque\":".to_vec(),
            before_offset: middle.to_vec(),
        }
    }

    /// Appends the answer for the message at `phy_offset`.
    pub fn encode(
        &self,
        out: &mut BytesMut,
        opaque: i32,
        phy_offset: u64,
        queue_id: i32,
        queue_offset: i64,
    ) {
        const HEX: &[u8; 16] = b"0123456789ABCDEF";
        let start = begin_frame(out);
        out.put_slice(&self.before_opaque);
        put_int(out, opaque);
        out.put_slice(&self.before_offset);
        let digit = |at: usize| HEX[(phy_offset >> (60 - 4 * at)) as usize & 15];
        out.put_slice(&std::array::from_fn::<u8, 16, _>(digit));
        out.put_slice(b"\",\"queueId\":\"");
        put_int(out, queue_id);
        out.put_slice(b"\",\"queueOffset\":\"");
        put_int(out, queue_offset);
        out.put_slice(b"\"}}");
        end_frame(out, start, SerializeType::Json, 0);
    }
}

/// The answer to a pull, without its body.
#[derive(Clone, Copy, Debug)]
pub struct PullResponse<'a> {
    pub opaque: i32,
    pub serialize_type: SerializeType,
    pub code: i32,
    /// Upstream puts the name of the store's status here (`FOUND`, `OFFSET_RESET`, …).
    pub remark: Option<&'a str>,
    pub suggest_which_broker_id: i64,
    pub next_begin_offset: i64,
    pub min_offset: i64,
    pub max_offset: i64,
    pub topic_sys_flag: i32,
    pub group_sys_flag: i32,
}

/// Appends the answer to a pull up to its body; the caller appends exactly `body_len` bytes of
/// records right after.
pub fn encode_pull_response(out: &mut BytesMut, response: &PullResponse<'_>, body_len: usize) {
    let mut frame = FrameWriter::begin(
        out,
        response.serialize_type,
        &Fixed {
            code: response.code,
            language: LanguageCode::Java,
            version: VERSION,
            opaque: response.opaque,
            flag: FLAG_RESPONSE,
            remark: response.remark,
        },
    );
    frame.int("groupSysFlag", response.group_sys_flag);
    frame.int("maxOffset", response.max_offset);
    frame.int("minOffset", response.min_offset);
    frame.int("nextBeginOffset", response.next_begin_offset);
    frame.int("suggestWhichBrokerId", response.suggest_which_broker_id);
    frame.int("topicSysFlag", response.topic_sys_flag);
    frame.end(body_len);
}

#[cfg(test)]
mod tests;
