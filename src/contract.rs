//! The seam between filter and exchange: the traits, and both sides of their gRPC.

pub mod choreographer;
pub mod client;
pub mod proto;
pub mod service;
pub mod tokens_service;
