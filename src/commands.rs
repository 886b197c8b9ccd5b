//! The program: its settings, and what each command does.

pub(crate) mod check;
pub(crate) mod choreographer;
pub mod config_file;
pub(crate) mod documents;
pub(crate) mod envoy_config;
mod exchange;
mod listeners;
mod notices;
pub(crate) mod output;
pub mod probe;
mod roles;
pub(crate) mod running;
pub(crate) mod serve;
pub mod settings;
mod shared_hosts;
mod trying;
mod watching;
