//! The administrative requests, over real sockets against a broker in this process. Shapes of bodies are compared with
//! bodies recorded from the original (`fixtures/`, one per request code).

mod clients;
mod config;
mod delays;
mod limits;
mod offsets;
mod support;
mod takeover;
mod topics;
