//! Envoy's protocol: messages in, answers out.

pub mod codec;
pub mod conversation;
pub mod ext_proc;
pub mod read;
pub mod roles;
pub mod server;
pub mod tags;
mod write;
