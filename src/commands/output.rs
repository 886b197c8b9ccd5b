//! What goes to stdout.

use std::io::Write;

use anyhow::Context;

/// `println!` would panic where the reader of a pipe has gone.
///
/// # Errors
/// Where it has.
pub fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().lock().write_all(text.as_bytes()).context("stdout")
}
