//! Start and stop, in order.

pub mod tasks;
