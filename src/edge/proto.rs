//! The generated code of Envoy's side, as much as there is use for.

#![allow(missing_docs, clippy::all, reason = "generated; the proto file is documented")]

tonic::include_proto!("envoy.service.ext_proc.v3");
