//! What a request gets: the document, the connect page, the redirect endpoint, or a refusal.

pub mod browser;
pub mod callback;
pub mod document;
pub mod endpoint;
pub mod outcome;
pub mod pages;
pub mod query;
pub mod recent;
pub mod refusal;
pub mod refusal_log;
pub mod reply;
pub mod request;
pub mod start;
pub mod state;
pub mod visit;
