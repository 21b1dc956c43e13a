//! The broker: keeps messages, serves producers and consumers, and tells the name servers what it has.
//!
//! A request runs to completion on its connection's task ([`processor`]); what must wait for the disk is answered from
//! [`ack`], what waits for messages from [`longpolling`]. Nothing on a connection's task blocks.

pub mod broker;
pub mod cli;
pub mod config;
pub mod role;

pub mod dledger;

pub mod processor;

pub mod ack;
pub mod ha;
pub mod longpolling;
pub mod turn;

pub mod client;
pub mod offset;
pub mod rebalance_lock;
pub mod subscription;
pub mod topic;

pub mod config_file;
pub mod schedule;
pub mod stats;

pub mod http;
pub mod registration;
pub mod request_mode;
pub mod slave;

pub use broker::{Broker, StartError};
pub use config::{BrokerConfig, Settings};
