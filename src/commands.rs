//! The program: its settings, and what each command does.

pub mod check;
pub mod choreographer;
pub mod config_file;
pub mod envoy_config;
pub mod probe;
pub mod running;
pub mod serve;
pub mod settings;
pub mod tokens_listener;
