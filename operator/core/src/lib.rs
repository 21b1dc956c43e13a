//! What a RocketCluster is, and everything about it that can be decided without touching a cluster.
//!
//! [`api`] holds the types users write, [`validate`] turns a spec into a [`ValidatedCluster`](validate::ValidatedCluster) that cannot be wrong,
//! [`build`] makes every Kubernetes object of it. All of it is pure: no client, no clock, no async. The operator carries the objects out on
//! Kubernetes, `rocketctl` carries the very same objects out as processes on one computer.

pub mod api;
pub mod build;
pub mod validate;
