//! Envoy's protocol: messages in, answers out.

pub mod codec;
pub mod ext_proc;
pub mod proto;
