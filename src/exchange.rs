//! The choreographer: discovery, flows, tokens, OAuth.

pub mod clients;
pub mod deadlines;
pub mod discovery;
pub mod embedded;
pub mod oauth;
pub mod records;
pub mod step_up;
pub mod token_answer;
pub mod tokens;
