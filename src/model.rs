//! Plain values that every room speaks of.

pub mod origin;
pub mod return_to;
pub mod route;
pub mod secret;
pub mod user;
