//! The MCP requests that wait, and what is left for others: each holds a stream.

use super::refusal::Refusal;
use crate::model::{
    shares::{Share, ShareLimits, Shares, UsedUp},
    user::User,
};

/// How many requests of one user may wait for a token: more than an honest client has at once.
const FOR_TOKEN: usize = 100;
/// How many may wait for their bodies, which an honest client sends with the headers.
const FOR_BODY: usize = 8;

/// How many calls may be held while their person connects: each of a client that waits for nothing else.
const HELD: usize = 8;

/// The requests that wait, in three kinds that take nothing from each other. It is of no account at which server they wait.
#[derive(Clone, Debug)]
pub struct Waits {
    for_token: Shares,
    for_body: Shares,
    held: Shares,
}

impl Waits {
    /// `in_all` is for each kind.
    pub fn new(in_all: usize) -> Self {
        let [for_token, for_body, held] = [FOR_TOKEN, FOR_BODY, HELD]
            .map(|of_user| Shares::new(ShareLimits { in_all, of_user, of_server: usize::MAX }));
        Self { for_token, for_body, held }
    }

    /// A place for a request that waits for a token, whoever began to look it up.
    ///
    /// # Errors
    /// Where there is none left.
    pub fn for_token(&self, user: &User) -> Result<Share, Refusal> {
        self.for_token.take(Some(user), ()).map_err(|used_up| Refusal::TooManyCalls(limit(used_up, FOR_TOKEN).into()))
    }

    /// A place for a request that waits for its body.
    ///
    /// # Errors
    /// Where there is none left.
    pub fn for_body(&self, user: &User) -> Result<Share, Refusal> {
        self.for_body.take(Some(user), ()).map_err(|used_up| Refusal::TooManyBodies(limit(used_up, FOR_BODY).into()))
    }

    /// A place for a call that is held while its person connects.
    ///
    /// # Errors
    /// Where there is none left.
    pub fn for_hold(&self, user: &User) -> Result<Share, Refusal> {
        self.held.take(Some(user), ()).map_err(|used_up| Refusal::TooManyHolds(limit(used_up, HELD).into()))
    }
}

/// Which limit it was, for the log, and not whose.
fn limit(used_up: UsedUp, of_user: usize) -> String {
    match used_up {
        UsedUp::InAll | UsedUp::OfServer => "as many MCP requests wait as --max-holds allows".to_owned(),
        UsedUp::OfUser => format!("as many MCP requests of one user wait as may: {of_user}"),
    }
}
