//! MCP's messages (JSON-RPC 2.0; MCP 2026-07-28, Base Protocol): what is read of a request's body, and the answers in
//! the upstream's place.

pub mod answers;
mod cut;
pub mod digest;
pub mod message;
