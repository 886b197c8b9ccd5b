//! The generated code of the gRPC contracts.

#![allow(missing_docs, clippy::all, reason = "generated; the proto files are documented")]

tonic::include_proto!("envoy_cimd.choreographer.v1");
