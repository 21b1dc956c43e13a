//! One frame: header and body, in both header forms.

use std::sync::atomic::{AtomicI32, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ext::{ExtFields, HeaderError, from_fields, to_fields};
use super::hot::{Fixed, FrameWriter, HeaderView};
use super::{LanguageCode, VERSION, response_code};

/// Largest value of a frame's length field; the original's default limit.
pub const MAX_FRAME: usize = 16 * 1024 * 1024;

/// Bit of `flag` that makes a frame a response.
pub const FLAG_RESPONSE: i32 = 1;

/// Bit of `flag` that forbids an answer. In a *response* it means "never send this": see
/// [`RemotingCommand::reply_to`].
pub const FLAG_ONEWAY: i32 = 2;

/// Longest header a frame can declare: 24 bits.
const MAX_HEADER: usize = (1 << 24) - 1;

/// Why a frame or a record cannot be read. The connection a malformed frame came on is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("frame is cut short")]
    Truncated,
    #[error("frame of {0} bytes is longer than allowed")]
    TooLong(usize),
    #[error("header length {0} exceeds its frame")]
    HeaderLength(usize),
    #[error("unknown header serialization {0}")]
    SerializeType(u8),
    #[error("malformed JSON header at byte {at}")]
    Json { at: usize },
    #[error("unknown record magic {0:#x}")]
    Magic(i32),
    #[error("record of {0} bytes has fields of another length")]
    RecordSize(usize),
}

/// How the header is written; chosen frame by frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SerializeType {
    #[default]
    Json = 0,
    RocketMq = 1,
}

impl SerializeType {
    pub fn from_byte(byte: u8) -> Result<Self, DecodeError> {
        match byte {
            0 => Ok(Self::Json),
            1 => Ok(Self::RocketMq),
            other => Err(DecodeError::SerializeType(other)),
        }
    }
}

/// Splits a frame (without its length field) into header form, header and body.
pub fn split_frame(frame: &[u8]) -> Result<(SerializeType, &[u8], &[u8]), DecodeError> {
    let (&[kind, a, b, c], rest) = frame.split_first_chunk().ok_or(DecodeError::Truncated)?;
    let serialize_type = SerializeType::from_byte(kind)?;
    let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
    let (header, body) = rest
        .split_at_checked(length)
        .ok_or(DecodeError::HeaderLength(length))?;
    Ok((serialize_type, header, body))
}

/// Leaves room for both length fields; returns where the frame starts.
pub(crate) fn begin_frame(out: &mut BytesMut) -> usize {
    let start = out.len();
    out.reserve(256);
    out.put_u64(0);
    start
}

/// Fills in the length fields of a frame whose header ends at the end of `out`.
pub(crate) fn end_frame(
    out: &mut BytesMut,
    start: usize,
    serialize_type: SerializeType,
    body_len: usize,
) {
    let header_len = out.len() - start - 8;
    debug_assert!(header_len <= MAX_HEADER);
    let length = (4 + header_len + body_len) as u32;
    let mark = (serialize_type as u32) << 24 | (header_len & MAX_HEADER) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    out[start + 4..start + 8].copy_from_slice(&mark.to_be_bytes());
}

/// What an answer must repeat of its request.
pub trait ReplyTarget {
    fn opaque(&self) -> i32;
    fn serialize_type(&self) -> SerializeType;
    fn is_oneway(&self) -> bool;
}

impl ReplyTarget for RemotingCommand {
    fn opaque(&self) -> i32 {
        self.opaque
    }

    fn serialize_type(&self) -> SerializeType {
        self.serialize_type
    }

    fn is_oneway(&self) -> bool {
        self.flag & FLAG_ONEWAY != 0
    }
}

/// The three values by themselves, for answers that are given later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyKey {
    pub opaque: i32,
    pub serialize_type: SerializeType,
    pub oneway: bool,
}

impl ReplyTarget for ReplyKey {
    fn opaque(&self) -> i32 {
        self.opaque
    }

    fn serialize_type(&self) -> SerializeType {
        self.serialize_type
    }

    fn is_oneway(&self) -> bool {
        self.oneway
    }
}

/// A frame in owned form.
#[derive(Clone, Debug, PartialEq)]
pub struct RemotingCommand {
    pub code: i32,
    pub language: LanguageCode,
    pub version: i32,
    pub opaque: i32,
    pub flag: i32,
    pub remark: Option<String>,
    pub ext_fields: ExtFields,
    pub body: Bytes,
    pub serialize_type: SerializeType,
}

impl Default for RemotingCommand {
    fn default() -> Self {
        Self {
            code: 0,
            language: LanguageCode::Java,
            version: VERSION,
            opaque: 0,
            flag: 0,
            remark: None,
            ext_fields: ExtFields::new(),
            body: Bytes::new(),
            serialize_type: SerializeType::Json,
        }
    }
}

impl RemotingCommand {
    /// A request with an opaque of its own, unique in this process until the counter wraps.
    pub fn request(code: i32) -> Self {
        static NEXT: AtomicI32 = AtomicI32::new(0);
        Self {
            code,
            opaque: NEXT.fetch_add(1, Ordering::Relaxed),
            ..Self::default()
        }
    }

    pub fn response(code: i32) -> Self {
        Self {
            code,
            flag: FLAG_RESPONSE,
            ..Self::default()
        }
    }

    pub fn error(code: i32, remark: impl Into<String>) -> Self {
        Self {
            remark: Some(remark.into()),
            ..Self::response(code)
        }
    }

    /// The answer upstream gives to a code nobody serves; the leading blank is upstream's.
    pub fn not_supported(code: i32) -> Self {
        Self::error(
            response_code::REQUEST_CODE_NOT_SUPPORTED,
            format!(" request type {code} not supported"),
        )
    }

    /// Adds the fields of a header struct; `None` is left out.
    #[must_use]
    pub fn with_header<H: Serialize>(mut self, header: &H) -> Self {
        self.ext_fields.append(&mut to_fields(header));
        self
    }

    #[must_use]
    pub fn with_body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    #[must_use]
    pub fn with_ext(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.ext_fields.insert(key.into(), value.into());
        self
    }

    #[must_use]
    pub fn with_remark(mut self, remark: impl Into<String>) -> Self {
        self.remark = Some(remark.into());
        self
    }

    /// Sets a compact JSON body. Maps keyed by message queues are written with escaped keys; for the
    /// raw form see [`super::json::to_vec`].
    #[must_use]
    pub fn json_body<T: Serialize>(self, body: &T) -> Self {
        let text = super::json::to_vec(body, super::json::KeyStyle::Escaped);
        self.with_body(text)
    }

    /// Makes this the answer to `request`: its opaque and its header form. An answer to a oneway
    /// request keeps the oneway bit, and [`crate::Connection::send`] drops it: oneways are never
    /// answered, whatever a processor returns.
    #[must_use]
    pub fn reply_to(mut self, request: &impl ReplyTarget) -> Self {
        self.opaque = request.opaque();
        self.serialize_type = request.serialize_type();
        self.flag = FLAG_RESPONSE | if request.is_oneway() { FLAG_ONEWAY } else { 0 };
        self
    }

    #[must_use]
    pub fn oneway(mut self) -> Self {
        self.flag |= FLAG_ONEWAY;
        self
    }

    pub fn is_response(&self) -> bool {
        self.flag & FLAG_RESPONSE != 0
    }

    pub fn is_oneway(&self) -> bool {
        self.flag & FLAG_ONEWAY != 0
    }

    pub fn is_success(&self) -> bool {
        self.code == response_code::SUCCESS
    }

    /// The answer to a oneway request, which must not be sent.
    pub fn is_unwanted(&self) -> bool {
        self.flag & (FLAG_RESPONSE | FLAG_ONEWAY) == FLAG_RESPONSE | FLAG_ONEWAY
    }

    pub fn ext(&self, key: &str) -> Option<&str> {
        self.ext_fields.get(key).map(String::as_str)
    }

    /// The ext fields as a header struct: text is parsed, unknown fields are ignored.
    pub fn header<H: DeserializeOwned>(&self) -> Result<H, HeaderError> {
        from_fields(
            self.ext_fields
                .iter()
                .map(|(key, value)| (key.into(), value.into())),
        )
    }

    /// The body as JSON, in fastjson's dialect too.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, super::json::Error> {
        super::json::from_slice(&self.body)
    }

    /// Decodes a frame without its length field; header and body are copied.
    pub fn decode(frame: &[u8]) -> Result<Self, DecodeError> {
        let (serialize_type, header, body) = split_frame(frame)?;
        let view = HeaderView::parse(serialize_type, header)?;
        Ok(Self::from_view(
            &view,
            serialize_type,
            Bytes::copy_from_slice(body),
        ))
    }

    pub fn from_view(view: &HeaderView<'_>, serialize_type: SerializeType, body: Bytes) -> Self {
        Self {
            code: view.code,
            language: view.language,
            version: view.version,
            opaque: view.opaque,
            flag: view.flag,
            remark: view.remark().map(std::borrow::Cow::into_owned),
            ext_fields: view
                .ext()
                .map(|(key, value)| (key.to_cow().into_owned(), value.to_cow().into_owned()))
                .collect(),
            body,
            serialize_type,
        }
    }

    /// The form this frame is written in: the binary header holds a 16-bit code and 16-bit keys, so
    /// what does not fit goes out as JSON, which every receiver reads.
    fn written_as(&self) -> SerializeType {
        let fits = i16::try_from(self.code).is_ok()
            && self
                .ext_fields
                .keys()
                .all(|key| i16::try_from(key.len()).is_ok());
        if fits {
            self.serialize_type
        } else {
            SerializeType::Json
        }
    }

    /// Appends the frame with its length field.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut frame = FrameWriter::begin(
            out,
            self.written_as(),
            &Fixed {
                code: self.code,
                language: self.language,
                version: self.version,
                opaque: self.opaque,
                flag: self.flag,
                remark: self.remark.as_deref(),
            },
        );
        for (key, value) in &self.ext_fields {
            frame.text(key, value);
        }
        frame.end(self.body.len());
        out.put_slice(&self.body);
    }

    pub fn to_frame(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(256 + self.body.len());
        self.encode(&mut out);
        out
    }
}
