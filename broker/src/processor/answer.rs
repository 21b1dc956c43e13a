//! What an administrative request is answered with, and how its ext fields are read.

use std::str::FromStr;

use remoting::protocol::{HeaderError, RemotingCommand, response_code};
use store::PutError;

use crate::dledger::tables::{InDoubt, Refusal};

/// A request that is answered with another code than 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) code: i32,
    pub(crate) remark: String,
}

pub(crate) type Answer = Result<RemotingCommand, Refused>;

impl Refused {
    pub(crate) fn new(code: i32, remark: impl Into<String>) -> Self {
        Self {
            code,
            remark: remark.into(),
        }
    }

    pub(crate) fn system_error(remark: impl Into<String>) -> Self {
        Self::new(response_code::SYSTEM_ERROR, remark)
    }

    pub(crate) fn topic_absent(topic: &str) -> Self {
        Self::new(
            response_code::TOPIC_NOT_EXIST,
            format!("topic[{topic}] not exist"),
        )
    }
}

impl From<Refused> for RemotingCommand {
    fn from(refused: Refused) -> Self {
        Self::error(refused.code, refused.remark)
    }
}

impl From<HeaderError> for Refused {
    fn from(error: HeaderError) -> Self {
        Self::system_error(error.to_string())
    }
}

/// A change of topics or groups that the log of a group did not take, or not all of it.
impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let error = match refusal {
            Refusal::NotTaken(error) => error,
            Refusal::InDoubt(doubt) => return doubt.into(),
        };
        let code = match &error {
            PutError::NotLeader | PutError::NotWritable(_) => response_code::SERVICE_NOT_AVAILABLE,
            PutError::Busy(_) => response_code::SYSTEM_BUSY,
            _ => response_code::SYSTEM_ERROR,
        };
        Self::new(code, format!("nothing is changed: {error}"))
    }
}

/// A change that may or may not be there; the code of a send in doubt (7.7).
impl From<InDoubt> for Refused {
    fn from(doubt: InDoubt) -> Self {
        Self::system_error(doubt.to_string())
    }
}

/// Success without a body.
pub(crate) fn ok() -> Answer {
    Ok(RemotingCommand::response(response_code::SUCCESS))
}

/// Success with a JSON body.
pub(crate) fn ok_json<T: serde::Serialize>(body: &T) -> Answer {
    Ok(RemotingCommand::response(response_code::SUCCESS).json_body(body))
}

/// Success with a body that is already text.
pub(crate) fn ok_text(body: String) -> Answer {
    Ok(RemotingCommand::response(response_code::SUCCESS).with_body(body))
}

/// The request's body as JSON (fastjson's dialect).
pub(crate) fn body<T: serde::de::DeserializeOwned>(
    request: &RemotingCommand,
) -> Result<T, Refused> {
    request.json().map_err(|error| {
        Refused::system_error(format!(
            "the body of request {} cannot be read: {error}",
            request.code
        ))
    })
}

/// Ext fields by name. Unknown ones are ignored, a missing one is an error only where it is asked for.
pub(crate) trait Fields {
    fn text(&self, name: &str) -> Result<&str, Refused>;
    fn text_or_blank(&self, name: &str) -> &str;
    fn number<T: FromStr>(&self, name: &str) -> Result<T, Refused>;
    fn number_or<T: FromStr>(&self, name: &str, default: T) -> T;
    fn flag(&self, name: &str) -> bool;
}

impl Fields for RemotingCommand {
    fn text(&self, name: &str) -> Result<&str, Refused> {
        match self.ext(name) {
            Some(value) if !value.trim().is_empty() => Ok(value),
            _ => Err(HeaderError::missing(name).into()),
        }
    }

    fn text_or_blank(&self, name: &str) -> &str {
        self.ext(name).unwrap_or_default()
    }

    fn number<T: FromStr>(&self, name: &str) -> Result<T, Refused> {
        let value = self.text(name)?;
        value.trim().parse().map_err(|_| {
            HeaderError::Invalid {
                field: name.to_owned(),
                value: value.to_owned(),
            }
            .into()
        })
    }

    fn number_or<T: FromStr>(&self, name: &str, default: T) -> T {
        self.ext(name)
            .and_then(|value| value.trim().parse().ok())
            .unwrap_or(default)
    }

    fn flag(&self, name: &str) -> bool {
        self.ext(name)
            .is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
    }
}
