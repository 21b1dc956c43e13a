//! The protocol as data: no socket, no clock, no task.

pub mod body;
pub mod command;
pub mod ext;
pub mod header;
pub mod hot;
pub mod json;
pub mod language;
pub mod message;
pub mod request_code;
pub mod response_code;

pub use command::{
    DecodeError, FLAG_ONEWAY, FLAG_RESPONSE, MAX_FRAME, RemotingCommand, SerializeType,
};
pub use ext::{ExtFields, HeaderError};
pub use hot::HeaderView;
pub use language::LanguageCode;

/// The version ordinal put into every frame: V4_9_8. Clients remember it per broker and switch
/// features by it, so it names the feature set served here, not our own release.
pub const VERSION: i32 = 409;
