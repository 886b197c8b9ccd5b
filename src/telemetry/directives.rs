//! What `--log` and `/log` take: levels, for all or for what a part of the program says.

use std::{fmt, str::FromStr};

use tracing_subscriber::filter::{LevelFilter, Targets};

/// The longest filter.
pub const LONGEST: usize = 1024;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A filter of the log: directives with commas between them, each a level, a target, or `target=level`. There are none
/// that look into a line: what they cost, and which lines they reach, is not for whoever may change a filter to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Directives {
    text: String,
    pub targets: Targets,
}

/// Why a text is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectivesError {
    #[error("a filter has at most {LONGEST} bytes")]
    TooLong,
    #[error("a directive is empty")]
    Empty,
    #[error("`{0}`: a level is one of {levels}", levels = LEVELS.join(", "))]
    Level(String),
    #[error("`{0}`: a directive is a level, a target such as `envoy_cimd`, or `target=level`")]
    Directive(String),
}

impl FromStr for Directives {
    type Err = DirectivesError;

    fn from_str(text: &str) -> Result<Self, DirectivesError> {
        if text.len() > LONGEST {
            return Err(DirectivesError::TooLong);
        }
        let mut targets = Targets::new();
        for directive in text.split(',').map(str::trim) {
            targets = match directive.split_once('=') {
                _ if directive.is_empty() => return Err(DirectivesError::Empty),
                Some((target, _)) if !is_target(target) => {
                    return Err(DirectivesError::Directive(directive.to_owned()));
                }
                Some((target, name)) => {
                    let level = level(name).ok_or_else(|| DirectivesError::Level(directive.to_owned()))?;
                    targets.with_target(target, level)
                }
                None => match level(directive) {
                    Some(level) => targets.with_default(level),
                    None if is_target(directive) => targets.with_target(directive, LevelFilter::TRACE),
                    None => return Err(DirectivesError::Directive(directive.to_owned())),
                },
            };
        }
        Ok(Self { text: text.to_owned(), targets })
    }
}

impl fmt::Display for Directives {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// By name alone: to the library, an empty text and some numbers are levels too.
fn level(name: &str) -> Option<LevelFilter> {
    LEVELS.iter().find(|level| level.eq_ignore_ascii_case(name))?.parse().ok()
}

fn is_target(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-:./".contains(&byte))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn levels_and_targets() {
        for (text, ours, others) in [
            ("info", Some(Level::INFO), Some(Level::INFO)),
            ("WARN", Some(Level::WARN), Some(Level::WARN)),
            ("off", None, None),
            ("envoy_cimd=debug,warn", Some(Level::DEBUG), Some(Level::WARN)),
            ("warn, envoy_cimd::telemetry=trace", Some(Level::WARN), Some(Level::WARN)),
            ("envoy_cimd=off,trace", None, Some(Level::TRACE)),
            ("envoy_cimd", Some(Level::TRACE), None),
            ("error,info", Some(Level::INFO), Some(Level::INFO)),
        ] {
            let directives: Directives = text.parse().expect(text);
            assert_eq!(directives.to_string(), text);
            let most = |target: &str| {
                let levels = [Level::TRACE, Level::DEBUG, Level::INFO, Level::WARN, Level::ERROR];
                levels.into_iter().find(|level| directives.targets.would_enable(target, level))
            };
            assert_eq!((most("envoy_cimd::filter"), most("h2")), (ours, others), "{text}");
        }
    }

    #[test]
    fn what_is_no_filter_is_named() {
        for (text, error) in [
            ("", "a directive is empty"),
            ("info,", "a directive is empty"),
            ("a=b=c", "`a=b=c`: a level is"),
            ("envoy_cimd=loud", "`envoy_cimd=loud`: a level is one of off, error, warn, info, debug, trace"),
            ("info,h2=", "`h2=`: a level is"),
            ("h2=3", "`h2=3`: a level is"),
            ("=info", "`=info`: a directive is"),
            ("very loud", "`very loud`: a directive is"),
            ("info,audit[{event}]=off", "`audit[{event}]=off`: a directive is"),
            ("error,audit[{user_subject}]=off", "`audit[{user_subject}]=off`: a directive is"),
            ("info,[{x=(0|1)*1(0|1){9}}]=debug", "`[{x=(0|1)*1(0|1){9}}]=debug`: a directive is"),
            ("[span]", "`[span]`: a directive is"),
            ("inf\u{f6}", "`inf\u{f6}`: a directive is"),
        ] {
            let refused = text.parse::<Directives>().expect_err(text).to_string();
            assert!(refused.starts_with(error), "{text}: {refused}");
        }
        let long = "h2=info,".repeat(LONGEST / 8);
        assert!(long.trim_end_matches(',').parse::<Directives>().is_ok());
        assert_eq!(format!("{long}info").parse::<Directives>(), Err(DirectivesError::TooLong));
    }
}
