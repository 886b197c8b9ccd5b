//! The seam between filter and exchange: the traits of the two services, their errors, and both sides of their gRPC.

pub(crate) mod calling;
pub mod choreographer;
pub mod client;
pub mod connection;
pub mod error;
pub mod proto;
pub mod service;
pub(crate) mod timed;
pub mod tokens;
pub mod tokens_client;
pub mod tokens_service;
pub(crate) mod traced;
mod wire;
