//! How long the parts of the exchange may take.

use std::time::Duration;

use anyhow::bail;

/// What a claim on a token outlasts the refresh that it is for, at least.
const MARGIN: Duration = Duration::from_secs(5);

/// How long the parts of the exchange may take. A request to a token endpoint that was sent is waited for however few
/// are left that want its answer: by then the code is used up, and a server that rotates tokens has rotated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deadlines {
    /// The longest that an answer of a token endpoint is waited for.
    pub token_endpoint: Duration,
    /// The longest that a caller waits for an exchange or a refresh.
    pub patience: Duration,
    /// How long one attempt to refresh keeps the other processes from it, at most.
    pub claim: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            token_endpoint: Duration::from_secs(30),
            patience: Duration::from_secs(8),
            claim: Duration::from_secs(35),
        }
    }
}

impl Deadlines {
    /// # Errors
    /// Where they do not fit each other: a second refresh of a token would begin while the first is under way.
    pub fn check(&self) -> anyhow::Result<()> {
        let Self { token_endpoint, patience, claim } = self;
        if *claim < *token_endpoint + MARGIN {
            bail!(
                "--refresh-claim must be at least {} seconds longer than --token-endpoint-timeout: the next refresh \
                 would begin while the last is still waited for",
                MARGIN.as_secs()
            );
        }
        if patience > token_endpoint {
            bail!("--patience must not be longer than --token-endpoint-timeout: nobody waits for what was given up");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_fit_each_other() {
        let seconds = |token_endpoint, patience, claim| {
            let [token_endpoint, patience, claim] = [token_endpoint, patience, claim].map(Duration::from_secs);
            Deadlines { token_endpoint, patience, claim }
        };
        assert!(Deadlines::default().check().is_ok());
        for (deadlines, named) in [
            (seconds(30, 8, 34), Some("--refresh-claim")),
            (seconds(30, 8, 35), None),
            (seconds(5, 6, 60), Some("--patience")),
            (seconds(5, 5, 10), None),
        ] {
            let error = deadlines.check().err().map(|error| error.to_string());
            assert_eq!(error.as_deref().and_then(|error| error.split(' ').next()), named, "{deadlines:?}");
        }
    }
}
