//! Java properties text, as `broker.conf` and `namesrv.conf` are written: `key = value`, `#` and `!` comments, `\` escapes, lines continued by a
//! trailing `\`.
//!
//! One deliberate difference from Java: blanks at the end of a value are dropped, because no key of ours means anything by them and they are the
//! usual cause of "not a number". Bytes that are not UTF-8 are read as ISO-8859-1, which is what Java's own loader assumes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One `key = value` with the line it started on (counted from 1), so that a complaint about it can say where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    pub key: String,
    pub value: String,
    pub line: usize,
}

/// What cannot be read at all. Java fails on the same input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ParseError {
    pub line: usize,
    pub reason: &'static str,
}

/// The properties of a text, in the order in which they stand. Of a key written twice, the last one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    entries: Vec<Property>,
}

impl Properties {
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => bytes.iter().map(|&b| char::from(b)).collect(),
        };
        let mut entries: Vec<Property> = Vec::new();
        let mut lines = text
            .split('\n')
            .map(|l| l.strip_suffix('\r').unwrap_or(l))
            .enumerate();
        while let Some((index, first)) = lines.next() {
            let line = index + 1;
            let first = first.trim_start_matches(is_blank);
            if first.is_empty() || first.starts_with(['#', '!']) {
                continue;
            }
            let mut logical = first.to_owned();
            while ends_with_odd_backslashes(&logical) {
                logical.pop();
                match lines.next() {
                    Some((_, next)) => logical.push_str(next.trim_start_matches(is_blank)),
                    None => break,
                }
            }
            let property = split(&logical, line)?;
            entries.retain(|p| p.key != property.key);
            entries.push(property);
        }
        Ok(Self { entries })
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.entries
            .iter()
            .find(|p| p.key == key)
            .map(|p| p.value.as_str())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Property> {
        self.entries.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\x0c')
}

fn ends_with_odd_backslashes(line: &str) -> bool {
    line.bytes().rev().take_while(|&b| b == b'\\').count() % 2 == 1
}

fn split(logical: &str, line: usize) -> Result<Property, ParseError> {
    let mut key_end = logical.len();
    let mut escaped = false;
    for (at, c) in logical.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if is_blank(c) || c == '=' || c == ':' {
            key_end = at;
            break;
        }
    }
    let (key, rest) = logical.split_at(key_end);
    let rest = rest.trim_start_matches(is_blank);
    let rest = rest
        .strip_prefix(['=', ':'])
        .unwrap_or(rest)
        .trim_start_matches(is_blank);
    Ok(Property {
        key: unescape(key, line)?,
        value: unescape(rest.trim_end_matches(is_blank), line)?,
        line,
    })
}

fn unescape(text: &str, line: usize) -> Result<String, ParseError> {
    if !text.contains('\\') {
        return Ok(text.to_owned());
    }
    // \u escapes are UTF-16 code units, so a character outside the basic plane comes as two of them.
    let mut units: Vec<u16> = Vec::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let c = if c == '\\' {
            match chars.next() {
                Some('t') => '\t',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('f') => '\x0c',
                Some('u') => {
                    let digits: String = chars.by_ref().take(4).collect();
                    let unit = (digits.len() == 4)
                        .then(|| u16::from_str_radix(&digits, 16).ok())
                        .flatten();
                    units.push(unit.ok_or(ParseError {
                        line,
                        reason: "\\u is not followed by four hexadecimal digits",
                    })?);
                    continue;
                }
                Some(other) => other,
                None => break,
            }
        } else {
            c
        };
        units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
    }
    Ok(String::from_utf16_lossy(&units))
}

/// Text that [`Properties::parse`] and Java's loader read back as the same pairs.
pub fn write<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (key, value) in pairs {
        escape_into(&mut out, key, true);
        out.push('=');
        escape_into(&mut out, value, false);
        out.push('\n');
    }
    out
}

fn escape_into(out: &mut String, text: &str, key: bool) {
    for (at, c) in text.char_indices() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0c' => out.push_str("\\f"),
            ' ' if key || at == 0 => out.push_str("\\ "),
            '=' | ':' if key => {
                out.push('\\');
                out.push(c);
            }
            '#' | '!' if key && at == 0 => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_ascii() && !c.is_ascii_control() => out.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04X}");
                }
            }
        }
    }
}

/// A line of just this in a file: the keys below it can be changed while the server runs, so a change of them is no reason for a restart.
pub const DYNAMIC_MARK: &str = "# dynamic";

/// What a server reports as `configHash`: FNV-1a of 64 bits over the bytes of the file it started with, up to a line [`DYNAMIC_MARK`] if there is
/// one, as 16 hexadecimal digits. It only answers "is this the text that was rendered, as far as it counts at the start?"; the operator computes the
/// same over what it rendered (`operator_core::build::config_hash`).
pub fn config_hash(file: &[u8]) -> String {
    let mut counts = 0;
    for line in file.split_inclusive(|&byte| byte == b'\n') {
        if line.trim_ascii_end() == DYNAMIC_MARK.as_bytes() {
            break;
        }
        counts += line.len();
    }
    let hash = file[..counts]
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    format!("{hash:016x}")
}

/// The known key that looks most like `key`, for "did you mean"; none when nothing is near.
pub fn nearest<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = key.to_ascii_lowercase();
    let limit = (wanted.len() / 3).clamp(1, 4);
    known
        .into_iter()
        .map(|k| (distance(&wanted, &k.to_ascii_lowercase()), k))
        .filter(|(d, _)| *d <= limit)
        .min()
        .map(|(_, k)| k)
}

/// Edit distance in bytes: keys are ASCII.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The environment variable that overrides a key: `bindAddress` → `ROCKETMQ_BIND_ADDRESS`, `brokerIP1` → `ROCKETMQ_BROKER_IP1`.
pub fn environment_name(key: &str) -> String {
    let chars: Vec<char> = key.chars().collect();
    let mut out = String::from("ROCKETMQ_");
    for (i, &c) in chars.iter().enumerate() {
        let after_lower = i > 0 && !chars[i - 1].is_ascii_uppercase();
        let ends_acronym = i > 0 && chars.get(i + 1).is_some_and(char::is_ascii_lowercase);
        if c.is_ascii_uppercase() && i > 0 && (after_lower || ends_acronym) {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}

/// The overrides that an environment holds for the known keys.
pub fn from_environment<'a>(
    known: impl IntoIterator<Item = &'a str>,
    environment: impl Fn(&str) -> Option<String>,
) -> BTreeMap<&'a str, String> {
    known
        .into_iter()
        .filter_map(|key| Some((key, environment(&environment_name(key))?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String, usize)> {
        Properties::parse(text.as_bytes())
            .unwrap()
            .iter()
            .map(|p| (p.key.clone(), p.value.clone(), p.line))
            .collect()
    }

    fn pair(key: &str, value: &str, line: usize) -> (String, String, usize) {
        (key.to_owned(), value.to_owned(), line)
    }

    #[test]
    fn reads_what_java_reads() {
        let text = "# comment\r\n! other\n\nbrokerName=broker-a\n  brokerId = 0  \nnamesrvAddr : a:9876;b:9876\nflag\nempty=\nlong=one,\\\n   two\nkey\\ with\\=signs=v\nu=\\u00e9\\ud83d\\ude00\nlast = x\\";
        assert_eq!(
            pairs(text),
            vec![
                pair("brokerName", "broker-a", 4),
                pair("brokerId", "0", 5),
                pair("namesrvAddr", "a:9876;b:9876", 6),
                pair("flag", "", 7),
                pair("empty", "", 8),
                pair("long", "one,two", 9),
                pair("key with=signs", "v", 11),
                pair("u", "é😀", 12),
                pair("last", "x", 13),
            ]
        );
    }

    #[test]
    fn the_last_of_equal_keys_counts() {
        assert_eq!(
            pairs("a=1\nb=2\na=3"),
            vec![pair("b", "2", 2), pair("a", "3", 3)]
        );
    }

    #[test]
    fn bytes_that_are_not_utf8_are_latin_1() {
        assert_eq!(
            Properties::parse(b"name=caf\xe9").unwrap().get("name"),
            Some("café")
        );
    }

    #[test]
    fn a_broken_escape_names_its_line() {
        assert_eq!(
            Properties::parse(b"a=1\nb=\\u12").unwrap_err().to_string(),
            "line 2: \\u is not followed by four hexadecimal digits"
        );
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(config_hash(b""), "cbf29ce484222325");
        assert_eq!(config_hash(b"foobar"), "85944171f73967e8");
        assert_eq!(
            config_hash(b"foobar\n# dynamic\nx=1\n"),
            config_hash(b"foobar\n")
        );
        assert_ne!(
            config_hash(b"foobar\n# dynamics\n"),
            config_hash(b"foobar\n")
        );
    }

    #[test]
    fn nearest_and_environment_names() {
        assert_eq!(
            nearest("listenport", ["listenPort", "bindAddress"]),
            Some("listenPort")
        );
        assert_eq!(
            nearest("bindAdress", ["listenPort", "bindAddress"]),
            Some("bindAddress")
        );
        assert_eq!(nearest("zzz", ["listenPort", "bindAddress"]), None);
        assert_eq!(environment_name("bindAddress"), "ROCKETMQ_BIND_ADDRESS");
        assert_eq!(environment_name("brokerIP1"), "ROCKETMQ_BROKER_IP1");
        assert_eq!(
            environment_name("enableDLegerCommitLog"),
            "ROCKETMQ_ENABLE_D_LEGER_COMMIT_LOG"
        );
        assert_eq!(environment_name("haListenPort"), "ROCKETMQ_HA_LISTEN_PORT");
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read_back(map in proptest::collection::btree_map("\\PC{1,12}", "\\PC{0,20}", 0..8)) {
            let map: BTreeMap<String, String> = map.into_iter().map(|(k, v)| (k, v.trim_end().to_owned())).collect();
            let text = write(map.iter().map(|(k, v)| (k.as_str(), v.as_str())));
            let read: BTreeMap<String, String> = Properties::parse(text.as_bytes()).unwrap().iter().map(|p| (p.key.clone(), p.value.clone())).collect();
            proptest::prop_assert_eq!(map, read);
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = Properties::parse(&bytes);
        }
    }
}
