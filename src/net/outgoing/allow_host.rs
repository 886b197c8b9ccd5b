//! Hosts that an operator exempts from the address rules.

use std::{fmt, net::IpAddr, str::FromStr};

use url::{Host, Url};

use crate::{
    model::public_url::{PublicUrl, PublicUrlError},
    net::outgoing::address,
};

/// `--allow-host HOST[:PORT][=FROM]`: a URL may name this host though its address is special-use. One host, as a URL
/// names it: neither what is below it nor another name for its address. Without a port, any port. With a `from`, only
/// what is fetched on behalf of that route may.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AllowHost {
    host: Host,
    port: Option<u16>,
    from: Option<PublicUrl>,
}

/// Why a text is not an [`AllowHost`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllowHostError {
    #[error("{0}")]
    Host(&'static str),
    #[error("names the route of a `from`, which {0}")]
    From(PublicUrlError),
}

impl AllowHost {
    /// The one route that it is for; none where it is for every route.
    pub fn from(&self) -> Option<&PublicUrl> {
        self.from.as_ref()
    }

    /// Whether a URL names this host, and this port if there is one.
    pub fn covers(&self, url: &Url) -> bool {
        let named = match (url.host(), &self.host) {
            (Some(Host::Domain(name)), Host::Domain(own)) => relative(name) == own,
            (Some(Host::Ipv4(address)), Host::Ipv4(own)) => address == *own,
            (Some(Host::Ipv6(address)), Host::Ipv6(own)) => address == *own,
            _ => false,
        };
        named && (self.port.is_none() || self.port == url.port_or_known_default())
    }
}

impl FromStr for AllowHost {
    type Err = AllowHostError;

    fn from_str(text: &str) -> Result<Self, AllowHostError> {
        let (host, from) = match text.split_once('=') {
            Some((host, from)) => (host, Some(from.parse().map_err(AllowHostError::From)?)),
            None => (text, None),
        };
        let (host, port) = host_and_port(host).map_err(AllowHostError::Host)?;
        Ok(Self { host, port, from })
    }
}

fn host_and_port(text: &str) -> Result<(Host, Option<u16>), &'static str> {
    if text.contains('/') {
        return Err("names a host, `HOST`, `HOST:PORT` or either with `=FROM`, not a URL or a network");
    }
    if text.contains('*') {
        return Err("names one host, without a wildcard");
    }
    if !text.starts_with('[') && text.matches(':').count() > 1 {
        return Err("has an IPv6 address that is not in brackets, as in `[fd00::1]`");
    }
    let (host, port) = match text.rsplit_once(':') {
        // A colon within the brackets is the address's.
        Some((host, port)) if !port.ends_with(']') => {
            let port = port.parse().ok().filter(|port| *port != 0);
            (host, Some(port.ok_or("has a port that is not a number from 1 to 65535")?))
        }
        _ => (text, None),
    };
    if host.is_empty() {
        return Err("has no host");
    }
    let host = match Host::parse(host).map_err(|_| "has a host that is neither a DNS name nor an address")? {
        Host::Domain(name) => Host::Domain(relative(&name).to_owned()),
        address => address,
    };
    let literal: Option<IpAddr> = match &host {
        Host::Domain(_) => None,
        Host::Ipv4(address) => Some((*address).into()),
        Host::Ipv6(address) => Some((*address).into()),
    };
    if literal.and_then(address::special_use).is_some_and(address::SpecialUse::is_link_local) {
        return Err("is a link-local address, which is never allowed");
    }
    Ok((host, port))
}

impl fmt::Display for AllowHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        if let Some(from) = &self.from {
            write!(f, "={from}")?;
        }
        Ok(())
    }
}

/// A name without the dot that says that it is whole: `as.example.` is `as.example`.
fn relative(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling() {
        for (text, canonical) in [
            ("as.example", "as.example"),
            ("AS.Example.:8443", "as.example:8443"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("as", "as"),
            ("a_b.example:1", "a_b.example:1"),
            ("10.0.0.5", "10.0.0.5"),
            ("0x0a.5:443", "10.0.0.5:443"),
            ("[fd00::1]", "[fd00::1]"),
            ("[FD00:0::1]:8443", "[fd00::1]:8443"),
            ("as.example=https://MCP.example.com:443", "as.example=https://mcp.example.com"),
            ("[fd00::1]:8443=https://mcp.example.com:8443/", "[fd00::1]:8443=https://mcp.example.com:8443"),
        ] {
            let allowed: AllowHost = text.parse().expect(text);
            assert_eq!(allowed.to_string(), canonical);
            assert_eq!(canonical.parse(), Ok(allowed));
        }
    }

    #[test]
    fn bad_ones_are_named() {
        const URL: &str = "names a host, `HOST`, `HOST:PORT` or either with `=FROM`, not a URL or a network";
        const PORT: &str = "has a port that is not a number from 1 to 65535";
        const HOST: &str = "has a host that is neither a DNS name nor an address";
        const BRACKETS: &str = "has an IPv6 address that is not in brackets, as in `[fd00::1]`";
        const LINK_LOCAL: &str = "is a link-local address, which is never allowed";
        for (text, error) in [
            ("https://as.example", URL),
            ("as.example/", URL),
            ("10.0.0.0/8", URL),
            ("*.example", "names one host, without a wildcard"),
            ("", "has no host"),
            (":8443", "has no host"),
            ("as.example:", PORT),
            ("as.example:0", PORT),
            ("as.example:65536", PORT),
            ("as.example:https", PORT),
            ("[fd00::1]:", PORT),
            ("as example", HOST),
            ("user@as.example", HOST),
            ("[fd00::1", HOST),
            ("[fd00::g]", HOST),
            ("[fe80::1%25eth0]", HOST),
            ("10.0.0.256", HOST),
            ("fd00::1", BRACKETS),
            ("::1", BRACKETS),
            ("169.254.169.254", LINK_LOCAL),
            ("[fe80::1]:443", LINK_LOCAL),
            ("[::ffff:169.254.169.254]", LINK_LOCAL),
            ("[64:ff9b::a9fe:a9fe]", LINK_LOCAL),
            ("169.254.169.254=https://mcp.example.com", LINK_LOCAL),
            ("=https://mcp.example.com", "has no host"),
            ("https://as.example=https://mcp.example.com", URL),
            (
                "as.example=mcp.example.com",
                "names the route of a `from`, which is not a URL: relative URL without a base",
            ),
            ("as.example=http://mcp.example.com", "names the route of a `from`, which must be https"),
            ("as.example=", "names the route of a `from`, which is not a URL: relative URL without a base"),
        ] {
            let found = text.parse::<AllowHost>().expect_err(text).to_string();
            assert_eq!(found, error, "{text}");
        }
    }
}
