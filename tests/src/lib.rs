//! What several tests share: [`proxy`] is a network that misbehaves.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod proxy;
