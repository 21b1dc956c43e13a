//! The store from outside: files in a temporary folder, real threads.

#![allow(clippy::unwrap_used, reason = "tests")]

mod basic;
mod common;
mod faults;
mod fixtures;
mod logs;
mod model;
