//! The generated code of the choreographer's contract.

#![allow(missing_docs, clippy::all, reason = "generated; the proto file is documented")]

tonic::include_proto!("envoy_cimd.choreographer.v1");
