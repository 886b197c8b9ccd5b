//! What the targets share.

use std::net::IpAddr;

use url::{Host, Url};

/// How long a long input is, in bytes: what takes a time quadratic in it does not end before `-timeout`.
const LONG: usize = 1 << 17;

/// Runs a check on an input, and of some short inputs on one that repeats them.
pub fn at_both_sizes(text: &str, check: impl Fn(&str)) {
    check(text);
    // Few of them, and always the same ones.
    let sum: usize = text.bytes().map(usize::from).sum();
    if (1..=16).contains(&text.len()) && sum.is_multiple_of(32) {
        check(&text.repeat(LONG / text.len()));
    }
}

/// What a browser makes of a text before it reads it as a URL.
pub fn as_a_browser_reads(text: &str) -> String {
    text.trim_matches(|c: char| c <= ' ').replace(['\t', '\n', '\r'], "").replace('\\', "/")
}

/// Whether a text, in a `location`, keeps a browser on the page's origin: an absolute path, and no host.
pub fn is_local(text: &str) -> bool {
    let read = as_a_browser_reads(text);
    read.starts_with('/') && !read.starts_with("//")
}

/// Whether this URL is one that a stranger may have us fetch, as far as it can be told without a name look-up.
pub fn is_public(url: &Url) -> bool {
    let public = match url.host() {
        Some(Host::Domain(name)) => name != "localhost" && !name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => is_public_address(address.into()),
        Some(Host::Ipv6(address)) => is_public_address(address.into()),
        None => false,
    };
    public
        && url.scheme() == "https"
        && url.username().is_empty()
        && url.password().is_none()
        && url.fragment().is_none()
}

fn is_public_address(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            !(v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.is_unspecified() || v4.is_multicast())
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.is_multicast())
        }
    }
}
