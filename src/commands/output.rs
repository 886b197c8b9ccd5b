//! What goes to stdout, and the last words on stderr.

use std::{io::Write, sync::mpsc, thread, time::Duration};

use anyhow::Context;

/// `println!` would panic where the reader of a pipe has gone.
///
/// # Errors
/// Where it has.
pub fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().lock().write_all(text.as_bytes()).context("stdout")
}

/// How long an error is waited for until it is read.
const LAST: Duration = Duration::from_secs(1);

/// Says why the program ends, though not for ever where nobody reads: it must end then too.
pub fn complain(text: String) {
    let (said, end) = mpsc::channel();
    thread::spawn(move || {
        // Nobody is left to be told that stderr has gone.
        let _ = std::io::stderr().write_all(text.as_bytes());
        let _ = said.send(());
    });
    let _ = end.recv_timeout(LAST);
}
