//! The seam between filter and exchange: the traits of the two services, their errors, and both sides of their gRPC.

pub mod choreographer;
pub mod client;
pub mod error;
pub mod proto;
pub mod service;
pub mod tokens;
pub(crate) mod tokens_service;
pub(crate) mod traced;
mod wire;
