//! The bytes that the load generator sends, and the little it must understand of the answers.
//!
//! Frames are built once for every slot (a slot is one request in flight); only the counter inside the unique key and, for pulls, the offset change per request.

/// Body properties of every message: a tag and a unique key, as a stock producer sends them.
const UNIQ_KEY_PREFIX: &str = "7F00000100002A139A5518B4AAC2";

/// One request frame whose variable parts have fixed widths.
pub(super) struct Template {
    bytes: Vec<u8>,
    counter_at: Option<usize>,
    offset_at: Option<usize>,
    born_at: Option<usize>,
    /// Where the queue stands that changes with each message, and how many there are.
    queues: Option<(usize, u32)>,
}

/// Digits of a queue that changes with each message; Java reads leading zeros too.
const QUEUE_DIGITS: usize = 5;

fn frame(header: String, body: &[u8]) -> (Vec<u8>, usize) {
    let header_len = header.len();
    let mut bytes = Vec::with_capacity(8 + header_len + body.len());
    bytes.extend_from_slice(&((4 + header_len + body.len()) as u32).to_be_bytes());
    bytes.extend_from_slice(&(header_len as u32).to_be_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(body);
    (bytes, 8)
}

/// Slots count from here, so that every opaque has the same number of digits.
pub(super) const FIRST_OPAQUE: u32 = 1_000_000;

impl Template {
    /// SEND_MESSAGE_V2 (310) to `topic`/`queue`.
    pub(super) fn send(topic: &str, queue: u32, slot: u32, body: &[u8]) -> Self {
        Self::send_to(topic, &queue.to_string(), slot, body)
    }

    /// The same to each of so many queues in turn.
    pub(super) fn send_around(topic: &str, queues: u32, slot: u32, body: &[u8]) -> Self {
        let zeros = "0".repeat(QUEUE_DIGITS);
        let template = Self::send_to(topic, &zeros, slot, body);
        let needle = format!(r#""e":"{zeros}""#);
        let at = template
            .bytes
            .windows(needle.len())
            .position(|part| part == needle.as_bytes())
            .map(|at| (at + 5, queues));
        Template {
            queues: at,
            ..template
        }
    }

    fn send_to(topic: &str, queue: &str, slot: u32, body: &[u8]) -> Self {
        let head = r#"{"code":310,"extFields":{"a":"bench","b":""#;
        let before_born =
            format!(r#"{head}{topic}","c":"TBW102","d":"4","e":"{queue}","f":"0","g":""#);
        let before_key = format!(
            r#"{before_born}0000000000000","h":"0","i":"TAGS\u0001TagA\u0002UNIQ_KEY\u0001{UNIQ_KEY_PREFIX}"#
        );
        let header = format!(
            r#"{before_key}00000000\u0002WAIT\u0001true","j":"0","k":"false","m":"false"}},"flag":0,"language":"JAVA","opaque":{},"serializeTypeCurrentRPC":"JSON","version":409}}"#,
            FIRST_OPAQUE + slot
        );
        let (bytes, at) = frame(header, body);
        Template {
            bytes,
            counter_at: Some(at + before_key.len()),
            offset_at: None,
            born_at: Some(at + before_born.len()),
            queues: None,
        }
    }

    /// PULL_MESSAGE (11) of up to `count` messages, no suspension, subscription `*` in the request.
    pub(super) fn pull(topic: &str, queue: u32, slot: u32, count: u32) -> Self {
        let before_offset = format!(
            r#"{{"code":11,"extFields":{{"commitOffset":"0","consumerGroup":"bench","expressionType":"TAG","maxMsgNums":"{count}","queueId":"{queue}","queueOffset":""#
        );
        // An offset of fixed width: leading zeros are fine inside a JSON string.
        let header = format!(
            r#"{before_offset}000000000000","subVersion":"0","subscription":"*","suspendTimeoutMillis":"0","sysFlag":"4","topic":"{topic}"}},"flag":0,"language":"JAVA","opaque":{},"serializeTypeCurrentRPC":"JSON","version":409}}"#,
            FIRST_OPAQUE + slot
        );
        let (bytes, at) = frame(header, &[]);
        Template {
            bytes,
            counter_at: None,
            offset_at: Some(at + before_offset.len()),
            born_at: None,
            queues: None,
        }
    }

    /// Appends the frame to `out` with the variable parts filled in.
    pub(super) fn write(&mut self, counter: u64, offset: u64, now_ms: u64, out: &mut Vec<u8>) {
        if let Some(at) = self.counter_at {
            hex(&mut self.bytes[at..at + 8], counter);
        }
        if let Some((at, queues)) = self.queues {
            let queue = counter % u64::from(queues);
            decimal(&mut self.bytes[at..at + QUEUE_DIGITS], queue);
        }
        if let Some(at) = self.offset_at {
            decimal(&mut self.bytes[at..at + 12], offset);
        }
        if let Some(at) = self.born_at {
            decimal(&mut self.bytes[at..at + 13], now_ms);
        }
        out.extend_from_slice(&self.bytes);
    }
}

fn hex(into: &mut [u8], mut value: u64) {
    for b in into.iter_mut().rev() {
        *b = b"0123456789ABCDEF"[(value & 15) as usize];
        value >>= 4;
    }
}

fn decimal(into: &mut [u8], mut value: u64) {
    for b in into.iter_mut().rev() {
        *b = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// What is read of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer<'a> {
    pub(super) code: i32,
    pub(super) slot: u32,
    header: &'a [u8],
    pub(super) body: &'a [u8],
}

impl<'a> Answer<'a> {
    /// Takes one answer off the front of `bytes`: the answer and its length, or nothing when it is not there in full.
    pub(super) fn take(bytes: &'a [u8]) -> anyhow::Result<Option<(Self, usize)>> {
        let Some(length) = bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        anyhow::ensure!(
            (4..=64 << 20).contains(&length),
            "an answer claims {length} bytes"
        );
        let Some(frame) = bytes.get(4..4 + length) else {
            return Ok(None);
        };
        let header_len = u32::from_be_bytes([0, frame[1], frame[2], frame[3]]) as usize;
        anyhow::ensure!(frame[0] == 0, "the answer is not JSON-headed");
        let Some(header) = frame.get(4..4 + header_len) else {
            anyhow::bail!("an answer's header exceeds its frame")
        };
        let code = number(header, b"\"code\":").unwrap_or(-1) as i32;
        let opaque = number(header, b"\"opaque\":").unwrap_or(0);
        let slot = u32::try_from(opaque)
            .ok()
            .and_then(|o| o.checked_sub(FIRST_OPAQUE));
        let Some(slot) = slot else {
            anyhow::bail!("an answer to nothing we asked: opaque {opaque}")
        };
        Ok(Some((
            Answer {
                code,
                slot,
                header,
                body: &frame[4 + header_len..],
            },
            4 + length,
        )))
    }

    pub(super) fn field(&self, name: &str) -> Option<i64> {
        number(self.header, format!("\"{name}\":\"").as_bytes())
    }

    /// Number of whole records in the body of a pull.
    pub(super) fn records(&self) -> u64 {
        let (mut n, mut rest) = (0, self.body);
        while let Some(size) = rest.first_chunk::<4>() {
            let size = u32::from_be_bytes(*size) as usize;
            if size < 4 || size > rest.len() {
                break;
            }
            n += 1;
            rest = &rest[size..];
        }
        n
    }

    pub(super) fn remark(&self) -> String {
        String::from_utf8_lossy(self.header).into_owned()
    }
}

fn number(header: &[u8], key: &[u8]) -> Option<i64> {
    let at = header.windows(key.len()).position(|w| w == key)? + key.len();
    let rest = &header[at..];
    let (negative, rest) = match rest.first() {
        Some(b'-') => (true, &rest[1..]),
        _ => (false, rest),
    };
    let mut value: i64 = 0;
    let mut digits = 0;
    for b in rest.iter().take_while(|b| b.is_ascii_digit()) {
        value = value.checked_mul(10)?.checked_add(i64::from(b - b'0'))?;
        digits += 1;
    }
    (digits > 0).then_some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(template: &mut Template, counter: u64, offset: u64) -> (serde_json::Value, Vec<u8>) {
        let mut out = Vec::new();
        template.write(counter, offset, 1_700_000_000_123, &mut out);
        let length = u32::from_be_bytes(out[..4].try_into().unwrap()) as usize;
        assert_eq!(length + 4, out.len());
        let header = u32::from_be_bytes(out[4..8].try_into().unwrap()) as usize;
        (
            serde_json::from_slice(&out[8..8 + header]).unwrap(),
            out[8 + header..].to_vec(),
        )
    }

    #[test]
    fn a_send_frame_is_a_v2_send_with_its_own_key() {
        let (header, body) = parsed(&mut Template::send("T", 3, 7, b"hello"), 0xBEEF, 0);
        assert_eq!(body, b"hello");
        assert_eq!(header["code"], 310);
        assert_eq!(header["opaque"], FIRST_OPAQUE + 7);
        assert_eq!(header["extFields"]["e"], "3");
        assert_eq!(header["extFields"]["g"], "1700000000123");
        let properties = header["extFields"]["i"].as_str().unwrap();
        assert!(
            properties.contains(&format!("UNIQ_KEY\u{1}{UNIQ_KEY_PREFIX}0000BEEF\u{2}")),
            "{properties:?}"
        );
    }

    #[test]
    fn a_send_goes_around_its_queues() {
        let mut template = Template::send_around("T", 10_000, 0, b"hello");
        for (counter, queue) in [(1, "00001"), (9_999, "09999"), (10_000, "00000")] {
            let (header, _) = parsed(&mut template, counter, 0);
            assert_eq!(header["extFields"]["e"], queue);
        }
    }

    #[test]
    fn a_pull_frame_carries_its_offset() {
        let (header, body) = parsed(&mut Template::pull("T", 1, 0, 32), 0, 98765);
        assert!(body.is_empty());
        assert_eq!(
            header["extFields"]["queueOffset"]
                .as_str()
                .unwrap()
                .parse::<u64>()
                .unwrap(),
            98765
        );
    }

    #[test]
    fn an_answer_is_read_when_it_is_whole() {
        let header = format!(
            r#"{{"code":0,"extFields":{{"nextBeginOffset":"42"}},"opaque":{}}}"#,
            FIRST_OPAQUE + 5
        );
        let body = [0, 0, 0, 8, 1, 2, 3, 4, 0, 0, 0, 4];
        let (bytes, _) = frame(header, &body);
        assert_eq!(Answer::take(&bytes[..bytes.len() - 1]).unwrap(), None);
        let (answer, used) = Answer::take(&bytes).unwrap().unwrap();
        assert_eq!((answer.code, answer.slot, used), (0, 5, bytes.len()));
        assert_eq!(answer.field("nextBeginOffset"), Some(42));
        assert_eq!(answer.records(), 2);
    }

    #[test]
    fn a_lying_answer_is_an_error() {
        assert!(Answer::take(&[0, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(Answer::take(&[0, 0, 0, 8, 0, 0, 0, 99, 1, 2, 3, 4]).is_err());
    }
}
