//! Compiles the gRPC contracts, without a `protoc`.

#![forbid(unsafe_code)]

use std::error::Error;

const CHOREOGRAPHER: &str = "envoy_cimd/choreographer/v1/choreographer.proto";
const EXT_PROC: &str = "envoy/service/ext_proc/v3/external_processor.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    tonic_prost_build::configure().compile_fds(protox::compile([CHOREOGRAPHER], ["proto"])?)?;
    // Every request pays for what these do.
    tonic_prost_build::configure()
        .build_client(false)
        .bytes(".")
        .codec_path("crate::edge::codec::Codec")
        .compile_fds(protox::compile([EXT_PROC], ["proto"])?)?;
    Ok(())
}
