//! The laptop runner: carries out the objects that the operator would apply to a Kubernetes as processes, files and folders of one computer.
//!
//! [`manifest`] reads and checks the YAML, [`plan`] turns StatefulSets, ConfigMaps and Services into pods and a hosts file (pure), [`supervisor`] is
//! the kubelet: one task a pod ([`pod`]) that starts it, probes it, starts it again when it dies. [`state`] is what the supervisor tells the other
//! commands; what only the brokers know, they are asked for ([`standing`]).

pub(crate) mod commands;
mod manifest;
mod members;
mod network;
mod plan;
mod pod;
mod standing;
pub(crate) mod state;
mod supervisor;
