//! The name server: brokers register here, clients ask where a topic lives. It keeps nothing but the KV tables on disk; everything else is told
//! again by the brokers every 30 seconds, and leaves with their connection.
//!
//! Name servers do not know each other. The tables and their rules are in [`route_info`], without sockets or clocks; the request codes are in
//! `processor`.

pub mod cli;
pub mod config;
pub mod kv_config;
mod metrics;
mod processor;
pub mod route_info;
mod server;
mod state;

pub use config::NamesrvConfig;
pub use server::{NameServer, StartError};
