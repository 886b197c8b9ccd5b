//! The calls of the choreographer that are under way, and what is left for others.

use super::refusal::Refusal;
use crate::{
    contract::error::Cause,
    model::shares::{ShareLimits, Shares, UsedUp},
};

/// Each kind apart: however many begin, those who consented can finish.
#[derive(Debug)]
pub struct Calls {
    /// For the connect page, which does without where there is no share.
    pub pages: Shares,
    pub presses: Shares,
    pub callbacks: Shares,
}

impl Calls {
    /// `limits` is for each kind.
    pub fn new(limits: ShareLimits) -> Self {
        let [pages, presses, callbacks] = [limits; 3].map(Shares::new);
        Self { pages, presses, callbacks }
    }
}

/// Where there is no share.
pub fn refusal(used_up: UsedUp) -> Refusal {
    Refusal::TooManyFlows(limit(used_up))
}

/// Which limit it was, for the log, and not whose.
pub fn limit(used_up: UsedUp) -> Cause {
    let setting = match used_up {
        UsedUp::InAll => "--max-calls",
        UsedUp::OfUser => "--max-calls-per-user",
        UsedUp::OfServer => "--max-calls-per-upstream",
    };
    format!("as many calls are under way as {setting} allows").into()
}
