//! Start and stop, in order.

pub mod readiness;
pub mod stop;
pub mod tasks;
