//! The operator: keeps every RocketCluster of a Kubernetes as its owner asked.
//!
//! [`controller`] reads the cluster, lets `operator_core` decide, and carries the decision out; it is written so that it may die at any line and
//! start again. [`lease`] elects one of several replicas, [`inspect`] asks brokers and name servers over the wire how they are. Nothing here sees
//! the broker's or the name server's code: the wire and the Kubernetes API are all it knows.

pub mod config;
pub mod context;
pub mod controller;
pub mod error;
pub mod inspect;
pub mod lease;
pub mod metrics;
pub mod run;

#[cfg(test)]
mod fixtures;
