//! One binary for all tests that need more than the library: real Envoys, real processes, real files.

mod document;
mod e2e;
mod envoy_config;
mod lifecycle;
mod settings;
mod sources;
#[path = "../stack/mod.rs"]
mod stack;
mod stream;
mod world;
