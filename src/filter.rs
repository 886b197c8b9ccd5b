//! What a request gets: the document, the connect page, the redirect endpoint, or a refusal.

pub mod browser;
pub(crate) mod callback;
pub(crate) mod calls;
pub(crate) mod disconnect;
pub(crate) mod document;
pub mod endpoint;
pub mod outcome;
pub(crate) mod pages;
pub mod query;
pub(crate) mod recent;
pub(crate) mod refusal;
pub(crate) mod refusal_log;
pub mod reply;
pub mod request;
pub(crate) mod start;
pub mod state;
pub mod traffic;
pub mod verdict;
pub(crate) mod visit;
