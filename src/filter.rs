//! What a request gets: the document, the connect page, the redirect endpoint, or a refusal; of MCP traffic, a token.

pub mod browser;
pub(crate) mod callback;
pub(crate) mod calls;
pub(crate) mod checks;
pub(crate) mod disconnect;
pub(crate) mod document;
pub mod endpoint;
pub mod json_rpc;
pub mod outcome;
pub(crate) mod pages;
pub mod query;
pub(crate) mod recent;
pub(crate) mod refusal;
pub(crate) mod refusal_log;
pub mod reply;
pub mod request;
pub mod routes;
pub(crate) mod start;
pub mod state;
pub mod token_cache;
pub mod traffic;
pub mod verdict;
pub(crate) mod visit;
pub(crate) mod waits;
