//! Plain values that every room speaks of.

pub mod brand;
pub mod challenge;
pub mod client;
pub mod clock;
pub mod flow;
pub mod issuer;
pub mod joined;
pub(crate) mod loopback;
pub mod origin;
pub mod page_origin;
pub mod paths;
pub mod prompt;
pub mod public_url;
pub mod resource;
pub mod return_to;
pub mod route;
pub mod route_table;
pub mod scope;
pub mod seal;
pub mod secret;
pub mod shares;
pub mod trace;
pub mod upstream;
pub mod user;
pub mod words;
