//! Compiles the choreographer's contract, without a `protoc`.

#![forbid(unsafe_code)]

use std::error::Error;

const PROTO: &str = "envoy_cimd/choreographer/v1/choreographer.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile([PROTO], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
