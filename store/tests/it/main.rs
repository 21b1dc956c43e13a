//! The store from outside: files in a temporary folder, real threads.

#![allow(clippy::unwrap_used, reason = "tests")]

mod basic;
mod common;
mod damage;
mod faults;
mod fixtures;
mod frames;
mod group_model;
mod logs;
mod many;
mod model;
mod power;
