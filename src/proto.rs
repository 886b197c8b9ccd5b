//! The generated code of the gRPC contracts.

#![allow(missing_docs, clippy::all, reason = "generated; the proto files are documented")]

tonic::include_proto!("envoy_cimd.choreographer.v1");

/// Envoy's side, as much as there is use for.
pub mod ext_proc {
    tonic::include_proto!("envoy.service.ext_proc.v3");
}
