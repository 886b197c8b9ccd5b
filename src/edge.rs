//! Envoy's protocol: messages in, answers out.

pub(crate) mod codec;
pub mod ext_proc;
pub mod proto;
