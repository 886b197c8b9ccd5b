//! What a person is told to do next where a request of theirs was refused.

use super::outcome::Outcome;

/// Nothing of the configuration and nothing of the request is in it. Empty for outcomes that no person sees. All of one
/// status 400 are alike (`all_400_are_alike`).
pub fn next_step(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::HeadersTooLarge => "Delete the cookies of this site in your browser, and open the address again.",
        Outcome::MisconfiguredRoute => "Tell your operator; until it is mended, nobody can connect here.",
        Outcome::HttpsRequired => "Open the same address with https:// in front of it.",
        Outcome::MisdirectedRequest => {
            "Open the link from your MCP client again. If you came by one, tell your operator that it leads here."
        }
        Outcome::MethodNotAllowed => "Start again from the page of this connection.",
        Outcome::UserUnknown => {
            "If you were signed in, sign in again and try once more. If that does not help, tell your operator."
        }
        Outcome::CrossSite => "Start again here, and only go on if it was you who wanted this.",
        Outcome::Prefetch => "Start again, and open the link yourself.",
        Outcome::AlreadyUsed => "To start again does no harm: that page says whether you are connected.",
        Outcome::ExchangeFailed => "Start again. If it fails again, tell your operator.",
        Outcome::AuthorizationServerUnusable => {
            "Until it is mended, you cannot connect here. To start again may help later."
        }
        Outcome::TooManyFlows => "Wait a few minutes, then start again.",
        Outcome::ChoreographerFailed | Outcome::Timeout => {
            "Start again: that page says whether you are connected. If it fails again, tell your operator."
        }
        Outcome::ChoreographerUnavailable => "If it still does not work in a few minutes, tell your operator.",
        Outcome::BadRequest
        | Outcome::Malformed
        | Outcome::UnknownKey
        | Outcome::BadMac
        | Outcome::Expired
        | Outcome::WrongRoute
        | Outcome::WrongBrowser
        | Outcome::WrongContext
        | Outcome::UnknownFlow
        | Outcome::IssuerMismatch
        | Outcome::AuthorizationError => {
            "Start again, and finish within ten minutes in the same browser, signed in as the same person."
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::paths::Part;

    #[test]
    fn every_refusal_that_a_person_sees_says_what_to_do() {
        let for_people = [Part::Start, Part::Callback, Part::Disconnect];
        let mut seen = 0;
        for outcome in Outcome::ALL.iter().filter(|outcome| outcome.row().status >= 400) {
            let is_seen = outcome.row().parts.iter().any(|part| for_people.contains(part));
            assert_eq!(!next_step(*outcome).is_empty(), is_seen, "{outcome:?}");
            seen += usize::from(is_seen);
        }
        assert!(seen > 20, "{seen}");
    }
}
