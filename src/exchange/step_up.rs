//! What an upstream found missing in a person's token, and how often they were sent for more (RFC 6750, section 3.1): kept
//! beside the token, so that every replica knows, and gone with it when they disconnect.

use serde::{Deserialize, Serialize};

use crate::model::{clock::UnixTime, scope::Scope};

/// How often a person is sent for more, in so many seconds. An upstream that is never content shall not lead them in
/// circles, whatever it asks for.
const ROUNDS: usize = 3;
/// The same where it asks for nothing but what was granted: another grant of that may help once, but no more.
const ROUNDS_FOR_THE_SAME: usize = 1;
const REMEMBERED: u64 = 600;

/// What is missing, for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepUp {
    /// When each round began: with the first refusal after the person connected.
    rounds: Vec<UnixTime>,
    wanted: Option<Wanted>,
}

/// What the next authorization is to ask for, besides what there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Wanted {
    since: UnixTime,
    scope: String,
}

/// What a refusal changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// More is wanted, which is to be stored.
    More,
    /// All of it was wanted already.
    Known,
    /// It cannot be asked for: too often, or too long.
    TooMuch,
}

impl StepUp {
    /// A scope was missing in a token that has `granted`. However many say so, it is one round until the person connects.
    pub fn lacks(&mut self, scope: &Scope, granted: &Scope, now: UnixTime) -> Change {
        self.forget(now);
        let begins = self.wanted.is_none();
        let rounds = if scope.is_within(granted) { ROUNDS_FOR_THE_SAME } else { ROUNDS };
        if begins && self.rounds.len() >= rounds {
            return Change::TooMuch;
        }
        let change = self.wants(scope, granted, now);
        if begins && change == Change::More {
            self.rounds.push(now);
        }
        change
    }

    /// The upstream says what it wants of a person whose grant has ended: they have to connect in any case, and this is
    /// not a round.
    pub fn wants(&mut self, scope: &Scope, granted: &Scope, now: UnixTime) -> Change {
        self.forget(now);
        let before = self.wanted().unwrap_or_default();
        if self.wanted.is_some() && scope.is_within(&before) {
            return Change::Known;
        }
        let wanted = before.union(scope);
        if wanted.is_empty() || !granted.union(&wanted).fits() {
            return Change::TooMuch;
        }
        self.wanted = Some(Wanted { since: now, scope: wanted.to_string() });
        Change::More
    }

    /// What the next authorization asks for besides what is asked for anyway; nothing where nothing is missing.
    pub fn asks(&self, granted: &Scope, now: UnixTime) -> Scope {
        let mut current = self.clone();
        current.forget(now);
        current.wanted().map(|wanted| granted.union(&wanted)).unwrap_or_default()
    }

    /// The person connected: what was wanted was asked for. The rounds count on, or a server that grants less than it is
    /// asked for would begin anew each time.
    #[must_use]
    pub fn connected(&self, now: UnixTime) -> Self {
        let mut left = Self { wanted: None, ..self.clone() };
        left.forget(now);
        left
    }

    fn wanted(&self) -> Option<Scope> {
        self.wanted.as_ref().map(|wanted| Scope::of([wanted.scope.as_str()]))
    }

    /// A time to come is a clock that was set back, and says nothing.
    fn forget(&mut self, now: UnixTime) {
        let is_remembered = |at: UnixTime| at <= now && now.since(at) < REMEMBERED;
        self.rounds.retain(|at| is_remembered(*at));
        self.wanted.take_if(|wanted| !is_remembered(wanted.since));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::scope::MAX_SCOPE;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn scope(text: &str) -> Scope {
        Scope::of([text])
    }

    #[test]
    fn what_is_missing_adds_up_and_is_forgotten() {
        let granted = scope("read");
        let mut step_up = StepUp::default();
        assert_eq!(step_up.asks(&granted, NOW), Scope::default(), "nothing is missing");
        assert_eq!(step_up.lacks(&scope("write"), &granted, NOW), Change::More);
        assert_eq!(step_up.lacks(&scope("write"), &granted, NOW + 1), Change::Known);
        assert_eq!(step_up.lacks(&scope("admin write"), &granted, NOW + 300), Change::More);
        assert_eq!(step_up.asks(&granted, NOW + 899), scope("read write admin"));
        assert_eq!(step_up.asks(&granted, NOW + 900), Scope::default());
        assert_eq!(step_up.asks(&granted, NOW), Scope::default(), "a clock that was set back");
        assert_eq!(step_up.rounds, [NOW], "all of that is one round");
        assert_eq!(step_up.connected(NOW + 301), StepUp { rounds: vec![NOW], wanted: None });
        assert_eq!(step_up.connected(NOW + 600), StepUp::default());
    }

    /// Whatever it asks for, and whatever was granted; ten minutes after the first, there is room for one more.
    #[test]
    fn nobody_is_led_in_circles() {
        let mut step_up = StepUp::default();
        for round in 0..3 {
            let now = NOW + round * 100;
            assert_eq!(step_up.lacks(&scope(&format!("s{round}")), &Scope::default(), now), Change::More, "{round}");
            step_up = step_up.connected(now + 50);
        }
        for (after, text) in [(300, "s2"), (301, "other"), (599, "s0")] {
            let before = step_up.clone();
            assert_eq!(step_up.lacks(&scope(text), &Scope::default(), NOW + after), Change::TooMuch, "{text}");
            assert_eq!(step_up, before, "{text}");
        }
        assert_eq!(step_up.lacks(&scope("s0"), &Scope::default(), NOW + 600), Change::More);
        step_up = step_up.connected(NOW + 601);
        assert_eq!(step_up.lacks(&scope("s0"), &Scope::default(), NOW + 602), Change::TooMuch);
    }

    /// Who has what is missing is sent for it once, and not at all where they have just been sent for it.
    #[test]
    fn nobody_is_sent_for_the_same_again_and_again() {
        let granted = scope("read write");
        for text in ["read", "write read"] {
            let mut step_up = StepUp::default();
            assert_eq!(step_up.lacks(&scope(text), &granted, NOW), Change::More, "{text}");
            assert_eq!(step_up.lacks(&scope(text), &granted, NOW + 1), Change::Known, "{text}");
            step_up = step_up.connected(NOW + 2);
            assert_eq!(step_up.lacks(&scope(text), &granted, NOW + 3), Change::TooMuch, "{text}");
            assert_eq!(step_up.lacks(&scope("admin read"), &granted, NOW + 4), Change::More, "that is another");
        }
        let mut step_up = StepUp::default();
        assert_eq!(step_up.lacks(&scope("write"), &scope("read"), NOW), Change::More);
        step_up = step_up.connected(NOW + 1);
        assert_eq!(step_up.lacks(&scope("write"), &granted, NOW + 599), Change::TooMuch);
        assert_eq!(step_up.lacks(&scope("write"), &granted, NOW + 600), Change::More);
    }

    #[test]
    fn what_does_not_fit_into_an_address_is_not_asked_for() {
        let (long, longer) = (scope(&"x".repeat(MAX_SCOPE)), scope(&"x".repeat(MAX_SCOPE + 1)));
        for (text, granted, change) in [
            (&longer, Scope::default(), Change::TooMuch),
            (&long, scope("read"), Change::TooMuch),
            (&Scope::default(), scope("read"), Change::TooMuch),
            (&long, Scope::default(), Change::More),
        ] {
            let mut step_up = StepUp::default();
            assert_eq!(step_up.lacks(text, &granted, NOW), change);
            assert_eq!(step_up == StepUp::default(), change == Change::TooMuch, "nothing is kept of it");
        }
        // What adds up is bounded, too, and what was wanted before stays.
        let mut step_up = StepUp::default();
        let half = "y".repeat(MAX_SCOPE / 2);
        assert_eq!(step_up.lacks(&scope(&half), &Scope::default(), NOW), Change::More);
        assert_eq!(step_up.lacks(&scope(&"z".repeat(MAX_SCOPE / 2)), &Scope::default(), NOW), Change::TooMuch);
        assert_eq!(step_up.asks(&Scope::default(), NOW), scope(&half));
    }

    /// Who connects anew because the grant ended is not on a round.
    #[test]
    fn what_is_wanted_of_whom_the_grant_ended_is_no_round() {
        let mut step_up = StepUp::default();
        assert_eq!(step_up.wants(&scope("write"), &Scope::default(), NOW), Change::More);
        assert_eq!((step_up.rounds.len(), step_up.asks(&scope("read"), NOW)), (0, scope("read write")));
    }
}
