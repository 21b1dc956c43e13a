//! One file that is a whole distribution: the laptop runner (`up`, `down`, `status`, `logs`), mqadmin's commands, a small producer and consumer, a load
//! generator, and the servers themselves, which it becomes by its name or first argument.
//!
//! `local` runs a RocketCluster on this computer, `admin` asks servers, `message` sends and consumes, `bench` measures.

#[macro_use]
mod output;

mod admin;
#[cfg(target_os = "linux")] // epoll and /proc
mod bench;
mod cli;
mod local;
mod message;
mod servers;

pub use cli::main;
