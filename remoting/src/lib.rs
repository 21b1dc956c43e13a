//! What crosses the wire, and the connection that carries it.
//!
//! [`protocol`] is pure: frames, headers, bodies and the record layout as functions over bytes, with
//! no clock and no socket. [`server`] and [`client`] run that protocol over tokio; [`admin`] is the
//! client with typed calls; [`resolver`] turns names into addresses; [`http`] serves probes and
//! metrics beside it.

pub mod properties;
pub mod protocol;

pub use protocol::RemotingCommand;
