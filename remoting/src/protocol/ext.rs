//! Ext fields: a header struct as a flat map of strings, in both directions.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::de::value::MapDeserializer;
use serde::de::{self, DeserializeOwned, IntoDeserializer, Visitor};
use serde::{Serialize, forward_to_deserialize_any};

/// The custom header of a frame: every value a string, sorted so that encoding is deterministic.
pub type ExtFields = BTreeMap<String, String>;

/// A header that lacks a field or holds an unusable one. The text goes to the client as a remark.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("the custom field <{field}> is null")]
    Missing { field: String },
    #[error("the custom field <{field}> has the unusable value {value:?}")]
    Invalid { field: String, value: String },
    #[error("unusable header: {0}")]
    Malformed(String),
}

impl HeaderError {
    pub fn missing(field: &str) -> Self {
        Self::Missing {
            field: field.to_owned(),
        }
    }
}

impl de::Error for HeaderError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Malformed(message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::missing(field)
    }
}

/// Decimal text, with a sign, surrounding blanks or a fraction (which is cut) tolerated.
pub(crate) fn parse_int(text: &[u8]) -> Option<i64> {
    let digits = match text {
        [b'-', digits @ ..] => digits,
        digits => digits,
    };
    if digits.is_empty() || digits.len() > 18 {
        return parse_odd_int(text);
    }
    let mut value = 0i64;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return parse_odd_int(text);
        }
        value = value * 10 + i64::from(digit);
    }
    Some(if text.len() == digits.len() {
        value
    } else {
        -value
    })
}

#[cold]
fn parse_odd_int(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.trim();
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    if text.starts_with(|first: char| first.is_ascii_digit() || first == '-') {
        let number: f64 = text.parse().ok()?;
        return (number.is_finite() && number.abs() < 9e18).then_some(number as i64);
    }
    None
}

/// As Java's `Boolean.parseBoolean`: everything but "true" is false.
pub(crate) fn parse_bool(text: &[u8]) -> bool {
    text.eq_ignore_ascii_case(b"true")
}

/// A header struct as ext fields. Nulls are left out; numbers and booleans become text.
pub fn to_fields<H: Serialize>(header: &H) -> ExtFields {
    let Ok(serde_json::Value::Object(members)) = serde_json::to_value(header) else {
        debug_assert!(false, "a header is a struct of plain fields");
        return ExtFields::new();
    };
    members
        .into_iter()
        .filter_map(|(key, value)| match value {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some((key, text)),
            other => Some((key, other.to_string())),
        })
        .collect()
}

/// A header struct from ext fields; unknown ones are ignored.
pub fn from_fields<'a, H: DeserializeOwned>(
    fields: impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)>,
) -> Result<H, HeaderError> {
    // The last of two equal names holds, as in a Java map.
    let fields: BTreeMap<_, _> = fields.collect();
    H::deserialize(MapDeserializer::new(fields.into_iter().map(
        |(field, value)| {
            let value = FieldValue {
                field: field.clone(),
                value,
            };
            (FieldName(field), value)
        },
    )))
}

struct FieldName<'a>(Cow<'a, str>);

impl<'de> IntoDeserializer<'de, HeaderError> for FieldName<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> de::Deserializer<'de> for FieldName<'_> {
    type Error = HeaderError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HeaderError> {
        visitor.visit_str(&self.0)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct FieldValue<'a> {
    field: Cow<'a, str>,
    value: Cow<'a, str>,
}

impl FieldValue<'_> {
    fn invalid(&self) -> HeaderError {
        HeaderError::Invalid {
            field: self.field.clone().into_owned(),
            value: self.value.clone().into_owned(),
        }
    }

    fn int<T: TryFrom<i64>>(&self) -> Result<T, HeaderError> {
        parse_int(self.value.as_bytes())
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| self.invalid())
    }
}

impl<'de> IntoDeserializer<'de, HeaderError> for FieldValue<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! ints {
    ($($method:ident $visit:ident),*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HeaderError> {
            visitor.$visit(self.int()?)
        })*
    };
}

impl<'de> de::Deserializer<'de> for FieldValue<'_> {
    type Error = HeaderError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HeaderError> {
        visitor.visit_string(self.value.into_owned())
    }

    ints! { deserialize_i32 visit_i32, deserialize_i64 visit_i64, deserialize_u32 visit_u32, deserialize_u64 visit_u64 }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HeaderError> {
        visitor.visit_bool(parse_bool(self.value.as_bytes()))
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HeaderError> {
        let number = self.value.trim().parse().map_err(|_| self.invalid())?;
        visitor.visit_f64(number)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HeaderError> {
        visitor.visit_some(self)
    }

    forward_to_deserialize_any! {
        i8 i16 u8 u16 f32 char str string bytes byte_buf unit unit_struct newtype_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}
