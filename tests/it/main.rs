//! The parts of the product against each other, in one process, over loopback.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin;
mod arrows;
mod bad_input;
mod compose;
mod docs;
mod examples;
mod frames;
mod operator;
mod replication;
mod rig;
mod routes;
