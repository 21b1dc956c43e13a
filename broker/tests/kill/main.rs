//! `kill -9` of brokers under load, again and again: what was acknowledged is there afterwards, at the same offsets.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a panic is how a test fails

#[path = "../common/mod.rs"]
mod common;
mod replicated;
mod single;
