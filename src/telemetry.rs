//! What operators see: metrics, the log, traces, the audit log; the files that are read again, and those that are secret.

pub mod audit;
pub mod directives;
pub mod exposition;
pub mod exposure;
pub mod lines;
pub mod log;
pub mod metrics;
pub mod reload;
pub mod throttle;
pub mod traces;
