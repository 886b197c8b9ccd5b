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
    // A `'` in a query is well-formed, and three bytes long once it is parsed.
    url.filter(|url| url.as_str().len() <= MAX_URL)
        .filter(|url| !mended.get() && url.username().is_empty() && url.password().is_none())
        .ok_or(Problem::NotUrl(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_long_as_it_is_written_and_no_longer() {
        let longest = format!("https://a.example/{}", "x".repeat(MAX_URL - 18));
        let grows = format!("https://a.example/?{}", "'".repeat(MAX_URL - 19));
        for (text, is_good) in [
            (longest.as_str(), true),
            (&format!("{longest}x"), false),
            ("https://a.example/?it's", true),
            (&grows, false),
            ("https://a.example", true),
            ("https://a.example/a b", false),
            ("https://user@a.example/", false),
            ("https:a.example", false),
            ("https://ä.example/", false),
        ] {
            assert_eq!(strangers_url("issuer", text).is_ok(), is_good, "{text}");
        }
    }
}
