//! `--store` on the command line.

use std::ffi::OsStr;

use clap::{Arg, Command, builder::TypedValueParser, error::ErrorKind};

use crate::store::url::{StoreUrl, StoreUrlError};

/// Parses a [`StoreUrl`] from the command line without repeating it in an error: clap would repeat a value that is
/// wrong, and a password with it.
#[derive(Clone, Copy, Debug)]
pub struct StoreUrlParser;

impl TypedValueParser for StoreUrlParser {
    type Value = StoreUrl;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<StoreUrl, clap::Error> {
        value.to_str().ok_or(StoreUrlError::Scheme).and_then(str::parse).map_err(|error: StoreUrlError| {
            let flag = arg.map_or_else(|| "--store".to_owned(), ToString::to_string);
            let message = format!("invalid value for '{flag}': {error}\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_does_not_repeat_a_password() {
        let command = Command::new("test").arg(Arg::new("store").long("store").value_parser(StoreUrlParser));
        let parse = |value: &str| command.clone().try_get_matches_from(["test", "--store", value]);
        let matches = parse("redis://:hunter2@redis").expect("a store");
        assert_eq!(matches.get_one::<StoreUrl>("store").expect("a store").to_string(), "redis://…@redis:6379/0");
        let error = parse("redis://:hunter2@redis/one").expect_err("no store");
        assert_eq!(error.exit_code(), 2);
        let error = error.to_string();
        assert!(error.contains("--store <store>") && error.contains("number of a database"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
