//! The program: its settings, and what each command does.

pub mod check;
pub mod choreographer;
pub mod config_file;
pub mod envoy_config;
mod listeners;
pub mod output;
pub mod probe;
pub mod running;
pub mod serve;
pub mod settings;
