//! Brokers in this process, name servers beside them, real bytes between them.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a panic is how a test fails

mod admin;

mod ha;
mod messages;
mod support;
