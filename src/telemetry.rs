//! What operators see: metrics, the log, traces, the audit log; and the files that are read again.

pub mod audit;
pub mod log;
pub mod metrics;
pub mod reload;
pub mod throttle;
pub mod traces;
