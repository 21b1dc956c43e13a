//! What a RocketCluster is, and everything about it that can be decided without touching a cluster.
//!
//! [`api`] holds the types users write, [`validate`] turns a spec into a [`ValidatedCluster`](validate::ValidatedCluster) that cannot be wrong,
//! [`build`] makes every Kubernetes object of it, [`plan`] says what may be done now and why the rest may not, [`status`] tells it to the user.
//! All of it is pure: no client, no clock, no async. The operator carries a plan out on Kubernetes, `rocketctl` carries the very same objects out
//! as processes on one computer.

pub mod api;
pub mod build;
#[cfg(test)]
mod fixtures;
pub mod keys;
pub mod plan;
pub mod status;
pub mod validate;
