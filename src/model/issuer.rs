//! When two spellings are one issuer.

/// The form in which issuers are compared and stored under: without the slash of an empty path, which is the one thing
/// that servers and operators spell in two ways. It is for our own use: `iss` is compared as it stands (RFC 9207, section
/// 2.4), and what is sent and shown is what the server's metadata says.
pub fn canonical(issuer: &str) -> &str {
    let bare = issuer.strip_suffix('/').filter(|bare| {
        bare.split_once("://").is_some_and(|(_, rest)| !rest.is_empty() && !rest.contains(['/', '?', '#']))
    });
    bare.unwrap_or(issuer)
}

/// Whether two spellings are one issuer.
pub fn is_same(one: &str, other: &str) -> bool {
    canonical(one) == canonical(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slash_of_an_empty_path_and_nothing_else() {
        for (one, other, same) in [
            ("https://as.example", "https://as.example", true),
            ("https://as.example/", "https://as.example", true),
            ("https://as.example:8443/", "https://as.example:8443", true),
            ("https://as.example//", "https://as.example", false),
            ("https://as.example/t", "https://as.example/t/", false),
            ("https://as.example/?", "https://as.example/?/", false),
            ("https://as.example?/", "https://as.example?", false),
            ("https://as.example:443", "https://as.example", false),
            ("https://AS.example", "https://as.example", false),
            ("https://", "https:///", false),
            ("as.example/", "as.example", false),
            ("/", "", false),
        ] {
            assert_eq!(is_same(one, other), same, "{one} {other}");
            assert_eq!(is_same(other, one), same, "{other} {one}");
        }
    }
}
