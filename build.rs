//! Compiles the gRPC contracts, without a `protoc`.

#![forbid(unsafe_code)]

use std::error::Error;

const CHOREOGRAPHER: &str = "envoy_cimd/choreographer/v1/choreographer.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    tonic_prost_build::configure().compile_fds(protox::compile([CHOREOGRAPHER], ["proto"])?)?;
    Ok(())
}
