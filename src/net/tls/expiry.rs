//! When certificates end, said before they do.

use std::collections::HashMap;

use rustls::pki_types::CertificateDer;
use x509_parser::parse_x509_certificate;

use crate::{model::clock::UnixTime, telemetry::metrics::Metrics};

const DAY: u64 = 24 * 3600;

/// From when on a certificate is good, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Validity {
    not_before: UnixTime,
    not_after: UnixTime,
}

impl Validity {
    /// That of the certificate which ends first; none where none can be read.
    pub fn first_to_end(certificates: &[CertificateDer<'_>]) -> Option<Self> {
        certificates.iter().filter_map(Self::of).min_by_key(|validity| validity.not_after)
    }

    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = parse_x509_certificate(certificate).ok()?;
        let validity = certificate.validity();
        let time = |seconds: i64| UnixTime::from_secs(u64::try_from(seconds).unwrap_or(0));
        Some(Self {
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        })
    }

    /// How near the end is: those that live for a year are replaced by hand, those that live for an hour by a program.
    fn stage(self, now: UnixTime) -> Stage {
        let life = self.not_after.since(self.not_before);
        match self.not_after.since(now) {
            0 => Stage::Over,
            left if left <= (life / 20).min(DAY) => Stage::Last,
            left if left <= (life / 5).min(14 * DAY) => Stage::Near,
            _ => Stage::Far,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Far,
    Near,
    Last,
    Over,
}

/// What was said of certificates so far, each by what it is and its validity.
#[derive(Debug, Default)]
pub struct Said(HashMap<(&'static str, Validity), Stage>);

impl Said {
    /// Shows when certificates end, and warns once at each stage. `file` is what metrics and log lines call the files that
    /// they are in.
    pub fn note(
        &mut self,
        file: &'static str,
        certificates: &[(&'static str, Validity)],
        now: UnixTime,
        metrics: &Metrics,
    ) {
        self.0.retain(|known, _| certificates.contains(known));
        for &(of, validity) in certificates {
            metrics.certificate_ends(file, of, validity.not_after);
            let stage = validity.stage(now);
            let before = self.0.insert((of, validity), stage).unwrap_or(Stage::Far);
            if stage <= before {
                continue;
            }
            let hours_left = validity.not_after.since(now) / 3600;
            let not_after = validity.not_after.secs();
            if stage == Stage::Over {
                tracing::warn!(file, of, not_after, "a certificate has ended");
            } else {
                tracing::warn!(file, of, not_after, hours_left, "a certificate ends soon, and was not replaced");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_follow_how_long_it_lives() {
        const HOUR: u64 = 3600;
        let validity = |life| Validity {
            not_before: UnixTime::from_secs(1000 * DAY),
            not_after: UnixTime::from_secs(1000 * DAY + life),
        };
        for (life, left, stage) in [
            (365 * DAY, 15 * DAY, Stage::Far),
            (365 * DAY, 14 * DAY, Stage::Near),
            (365 * DAY, DAY + 1, Stage::Near),
            (365 * DAY, DAY, Stage::Last),
            (365 * DAY, 0, Stage::Over),
            (20 * HOUR, 5 * HOUR, Stage::Far),
            (20 * HOUR, 4 * HOUR, Stage::Near),
            (20 * HOUR, HOUR, Stage::Last),
            (0, 0, Stage::Over),
        ] {
            let validity = validity(life);
            assert_eq!(validity.stage(validity.not_after - left), stage, "{life} {left}");
        }
        let past = validity(DAY);
        assert_eq!(past.stage(past.not_after + DAY), Stage::Over);
    }

    #[test]
    fn the_first_of_a_chain_counts() {
        let made = |year| {
            let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).expect("names");
            params.not_after = rcgen::date_time_ymd(year, 1, 2);
            let key = rcgen::KeyPair::generate().expect("a key");
            params.self_signed(&key).expect("a certificate").der().clone()
        };
        let first = Validity::first_to_end(&[made(2050), made(2040), made(2060)]).expect("a validity");
        assert_eq!(first.not_after.secs(), 2_209_075_200);
        let broken = CertificateDer::from(vec![0x30, 0x01]);
        assert_eq!(Validity::first_to_end(&[broken.clone(), made(2040)]), Some(first));
        assert_eq!(Validity::first_to_end(&[broken]), None);
    }
}
