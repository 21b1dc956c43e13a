//! JSON as fastjson writes it: integer and object keys without quotes, `{"$ref":…}`, nulls.
//!
//! Reading turns the dialect into a [`Value`]: an integer key becomes its text, an object key the
//! compact JSON text of the object, a member that is `null` is dropped (absent and null mean the
//! same), and a reference is replaced by what it points to. Depth is bounded.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

use super::LanguageCode;

/// Deepest nesting read. Real bodies nest six levels; the stack holds this many easily.
const MAX_DEPTH: usize = 64;

/// A body that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("malformed JSON at byte {at}: {expected}")]
    Syntax { at: usize, expected: &'static str },
    #[error("unexpected JSON: {0}")]
    Shape(#[from] serde_json::Error),
    #[error("{0}")]
    Body(String),
}

/// How maps keyed by message queues are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyStyle {
    /// `{{"brokerName":…}:v}`: what Java writes; Java and Go read it, strict parsers do not.
    Raw,
    /// `{"{\"brokerName\":…}":v}`: strict JSON, which Java reads as well.
    Escaped,
}

impl KeyStyle {
    /// The style for an answer to a program of this language.
    pub fn for_language(language: LanguageCode) -> Self {
        match language {
            LanguageCode::Java | LanguageCode::Go => Self::Raw,
            _ => Self::Escaped,
        }
    }
}

/// Reads a body in the dialect.
pub fn from_slice<T: DeserializeOwned>(text: &[u8]) -> Result<T, Error> {
    Ok(serde_json::from_value(parse(text)?)?)
}

/// Reads any value in the dialect.
pub fn parse(text: &[u8]) -> Result<Value, Error> {
    let mut reader = Reader {
        text,
        at: 0,
        references: false,
        in_key: false,
    };
    let mut value = reader.value(0)?;
    reader.blanks();
    if reader.at != text.len() {
        return Err(reader.error("end of text"));
    }
    if reader.references {
        let root = value.clone();
        resolve(&root, &mut value, &mut MAX_REFERENCED.clone());
    }
    Ok(value)
}

/// Writes compact JSON. Integer keys are quoted, keys of message-queue maps as `style` says.
pub fn to_vec<T: Serialize>(body: &T, style: KeyStyle) -> Vec<u8> {
    let written = match style {
        KeyStyle::Escaped => serde_json::to_vec(body),
        KeyStyle::Raw => serde_json::to_value(body).map(|value| {
            let mut out = Vec::new();
            write_raw(&value, &mut out);
            out
        }),
    };
    // Our bodies are structs of plain data, which always serialize.
    written.unwrap_or_else(|error| {
        debug_assert!(false, "body does not serialize: {error}");
        Vec::new()
    })
}

/// Writes compact JSON with object keys in raw form.
fn write_raw(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(members) => {
            out.push(b'{');
            for (index, (key, member)) in members.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                let is_object =
                    key.starts_with('{') && serde_json::from_str::<Map<String, Value>>(key).is_ok();
                if is_object {
                    out.extend_from_slice(key.as_bytes());
                } else {
                    write_plain(key, out);
                }
                out.push(b':');
                write_raw(member, out);
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_raw(item, out);
            }
            out.push(b']');
        }
        other => write_plain(other, out),
    }
}

fn write_plain<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    // Writing a scalar to memory cannot fail.
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok());
}

/// Bytes that references may add to one document: a body full of references to its largest part
/// would otherwise grow with the square of its size.
const MAX_REFERENCED: usize = 16 * 1024 * 1024;

/// Replaces references. One that points nowhere, or for which the budget is spent, stays as it is:
/// the field then fails or is ignored like any other unexpected value.
fn resolve(root: &Value, value: &mut Value, budget: &mut usize) {
    match value {
        Value::Object(members) => {
            if members.len() == 1
                && let Some(Value::String(path)) = members.get("$ref")
                && let Some(target) = lookup(root, path)
                && let Some(left) = budget.checked_sub(weight(target))
            {
                *budget = left;
                *value = target.clone();
                return;
            }
            for member in members.values_mut() {
                resolve(root, member, budget);
            }
        }
        Value::Array(items) => {
            for item in items {
                resolve(root, item, budget);
            }
        }
        _ => {}
    }
}

/// Roughly the memory a copy takes.
fn weight(value: &Value) -> usize {
    const NODE: usize = 64;
    NODE + match value {
        Value::Object(members) => members
            .iter()
            .map(|(key, member)| key.len() + weight(member))
            .sum(),
        Value::Array(items) => items.iter().map(weight).sum(),
        Value::String(text) => text.len(),
        _ => 0,
    }
}

/// Follows a path such as `$.a.b[0]`.
fn lookup<'v>(root: &'v Value, path: &str) -> Option<&'v Value> {
    let mut value = root;
    let mut rest = path.strip_prefix('$')?;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            value = value.get(&after[..end])?;
            rest = &after[end..];
        } else {
            let (index, after) = rest.strip_prefix('[')?.split_once(']')?;
            value = match index.parse::<usize>() {
                Ok(index) => value.get(index)?,
                Err(_) => value.get(index.trim_matches(['"', '\'']))?,
            };
            rest = after;
        }
    }
    Some(value)
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    references: bool,
    /// Inside an object that is a key.
    in_key: bool,
}

impl Reader<'_> {
    fn error(&self, expected: &'static str) -> Error {
        Error::Syntax {
            at: self.at,
            expected,
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn blanks(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, Error> {
        self.blanks();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"' | b'\'') => Ok(Value::String(self.string()?)),
            Some(_) => self.literal(),
            None => Err(self.error("a value")),
        }
    }

    /// Steps into an object or an array.
    fn enter(&mut self, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(self.error("less nesting"));
        }
        self.at += 1;
        Ok(())
    }

    fn object(&mut self, depth: usize) -> Result<Value, Error> {
        self.enter(depth)?;
        let mut members = Map::new();
        self.blanks();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(members));
        }
        loop {
            self.blanks();
            let key = match self.peek() {
                Some(b'"' | b'\'') => self.string()?,
                Some(b'{') => self.object_key(depth + 1)?,
                _ => self.bare_key()?,
            };
            self.blanks();
            if self.peek() != Some(b':') {
                return Err(self.error("a colon"));
            }
            self.at += 1;
            let value = self.value(depth + 1)?;
            self.references |= key == "$ref";
            if !value.is_null() {
                members.insert(key, value);
            }
            self.blanks();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Value::Object(members));
                }
                _ => return Err(self.error("a comma or the end of an object")),
            }
        }
    }

    /// An object key as text. It holds no object keys of its own: each level would double the
    /// backslashes of the one inside.
    fn object_key(&mut self, depth: usize) -> Result<String, Error> {
        if std::mem::replace(&mut self.in_key, true) {
            return Err(self.error("a plain key"));
        }
        let key = self.object(depth)?.to_string();
        self.in_key = false;
        Ok(key)
    }

    fn array(&mut self, depth: usize) -> Result<Value, Error> {
        self.enter(depth)?;
        let mut items = Vec::new();
        self.blanks();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.blanks();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::Array(items));
                }
                _ => return Err(self.error("a comma or the end of an array")),
            }
        }
    }

    /// An unquoted key: a number, a name, a boolean.
    fn bare_key(&mut self) -> Result<String, Error> {
        let start = self.at;
        while let Some(b'-' | b'.' | b'_' | b'$' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') =
            self.peek()
        {
            self.at += 1;
        }
        if start == self.at {
            return Err(self.error("a key"));
        }
        Ok(String::from_utf8_lossy(&self.text[start..self.at]).into_owned())
    }

    fn literal(&mut self) -> Result<Value, Error> {
        let start = self.at;
        while let Some(b'+' | b'-' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') = self.peek() {
            self.at += 1;
        }
        let number = |number: Option<Number>| number.map(Value::Number);
        let parsed = match &self.text[start..self.at] {
            b"null" => Some(Value::Null),
            b"true" => Some(Value::Bool(true)),
            b"false" => Some(Value::Bool(false)),
            // What fastjson writes for a double that is no number reads as zero, as Java tools show it.
            b"NaN" | b"Infinity" | b"-Infinity" => number(Number::from_f64(0.0)),
            digits => std::str::from_utf8(digits).ok().and_then(|digits| {
                digits
                    .parse::<i64>()
                    .map(Number::from)
                    .or_else(|_| digits.parse::<u64>().map(Number::from))
                    .ok()
                    .or_else(|| {
                        let numeric = digits.starts_with(|first: char| {
                            first.is_ascii_digit() || first == '-' || first == '.'
                        });
                        // Java types: `12L`, `1.5D`.
                        let digits = digits.trim_end_matches(['L', 'D', 'F', 'S', 'B']);
                        match digits.parse::<i64>() {
                            Ok(whole) if numeric => Some(Number::from(whole)),
                            _ if numeric => digits.parse().ok().and_then(Number::from_f64),
                            _ => None,
                        }
                    })
                    .map(Value::Number)
            }),
        };
        parsed.ok_or(Error::Syntax {
            at: start,
            expected: "a value",
        })
    }

    fn string(&mut self) -> Result<String, Error> {
        let quote = self.text[self.at];
        self.at += 1;
        let start = self.at;
        let mut escaped = false;
        loop {
            match self.peek() {
                Some(b'\\') => {
                    escaped = true;
                    self.at += 2;
                }
                Some(byte) if byte == quote => break,
                Some(_) => self.at += 1,
                None => return Err(self.error("the end of a string")),
            }
        }
        let raw = super::hot::RawText::new(&self.text[start..self.at], escaped);
        self.at += 1;
        Ok(raw.to_cow().into_owned())
    }
}

#[cfg(test)]
mod tests;
