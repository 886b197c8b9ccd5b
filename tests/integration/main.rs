//! One binary for all tests that need more than the library: real Envoys, real processes, real files.

#![forbid(unsafe_code)]

mod at_the_edge;
mod audit;
mod authorization_server;
mod awaited;
mod causes;
mod chaos;
mod choreographer;
mod clients;
mod compose;
mod connection;
mod contract;
mod dashboard;
mod document;
mod documents;
mod e2e;
mod envoy_config;
mod exchange;
mod flow;
mod gateway;
mod identity_provider;
mod isolation;
mod kinds;
mod lifecycle;
mod limits;
mod log;
mod manifests;
mod mcp_upstream;
mod mtls;
mod outgoing;
mod pages;
mod paths;
mod probe;
mod quirks;
mod raw_http2;
mod recipes;
mod refusals;
mod refused;
mod refused_role;
mod rooms;
mod route_keys;
mod security;
mod settings;
mod sign_in;
mod soak;
mod sources;
mod split_horizon;
#[path = "../stack/mod.rs"]
#[expect(dead_code, reason = "the demo uses all of it")]
mod stack;
mod static_cimd;
mod store;
mod stream;
mod telemetry;
mod telling;
mod telling_role;
mod tokens;
mod tokens_client;
mod traffic;
mod traffic_faults;
mod traffic_ledger;
mod traffic_role;
mod traffic_soak;
mod verdicts;
mod world;
