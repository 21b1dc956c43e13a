//! Masters and slaves in this process, real bytes between them.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a panic is how a test fails

mod catch_up;
mod histories;
mod returning;
mod stream;
mod support;
mod sync;
mod tables;
