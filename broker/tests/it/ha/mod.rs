//! Masters and slaves in this process, real bytes between them.

mod catch_up;
mod histories;
mod returning;
mod stream;
mod support;
mod sync;
mod tables;
