//! A URL as a stranger writes it.

use std::cell::Cell;

use url::Url;

use super::error::{MAX_URL, Problem};

/// What a parser would have to mend is refused, since others would mend it otherwise.
///
/// # Errors
/// Where it is not such a URL; `name` is the member or parameter that has it.
pub fn strangers_url(name: &'static str, text: &str) -> Result<Url, Problem> {
    let mended = Cell::new(false);
    let note = |_| mended.set(true);
    let url = (text.len() <= MAX_URL && text.is_ascii())
        .then(|| Url::options().syntax_violation_callback(Some(&note)).parse(text).ok())
        .flatten();
    url.filter(|url| !mended.get() && url.username().is_empty() && url.password().is_none())
        .ok_or(Problem::NotUrl(name))
}
