//! Listening, TLS, and the one way out.

pub(crate) mod admin;
pub mod callee;
pub mod dial;
pub mod grpc;
pub mod listen;
pub mod outgoing;
pub mod tls;
