//! Groups that elect their own master, as processes of their own: what was acknowledged is there whoever dies.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a panic is how a test fails

#[path = "../common/mod.rs"]
mod common;
mod consumers;
mod disks;
mod files;
mod group;
#[cfg(target_os = "linux")]
mod history;
mod leaders;
mod lost;
mod members;
mod names;
// Needs all of 127.0.0.0/8.
#[cfg(target_os = "linux")]
mod partitions;
mod room;
mod settings;
mod stopped;
mod tables;
