//! What crosses the wire, and the connection that carries it.
//!
//! [`protocol`] is pure: frames, headers, bodies and the record layout as functions over bytes, with
//! no clock and no socket. [`server`] and [`client`] run that protocol over tokio; [`admin`] is the
//! client with typed calls; [`resolver`] turns names into addresses; [`http`] serves probes and
//! metrics beside it; [`properties`] reads the text of configuration bodies.

pub mod admin;
pub mod client;
pub mod connection;
pub mod http;
pub mod properties;
pub mod protocol;
pub mod resolver;
pub mod server;

pub use admin::Admin;
pub use client::{ClientConfig, RemotingClient};
pub use connection::{Connection, InvokeError, Request};
pub use protocol::RemotingCommand;
pub use resolver::Resolver;
pub use server::{ServerConfig, Service, serve};
