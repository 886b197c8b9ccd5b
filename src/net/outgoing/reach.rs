//! Which URLs and addresses may be fetched from.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use url::{Host, Url};

use super::{
    address,
    allow_host::AllowHost,
    error::{self, FetchError, UrlFault, redacted},
};
use crate::model::{loopback::is_loopback, public_url::PublicUrl};

/// The hosts that are exempt from the address rules.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reach(Arc<[AllowHost]>);

impl Reach {
    /// What is exempt of these hosts, where those that are for one route count only if `is_its` says so of its `from`.
    pub(super) fn new(allow_hosts: &[AllowHost], is_its: impl Fn(&PublicUrl) -> bool) -> Self {
        Self(allow_hosts.iter().filter(|allowed| allowed.from().is_none_or(&is_its)).cloned().collect())
    }

    /// The rules, as far as they need no name look-up: for a URL that is kept for later, or given to a browser.
    ///
    /// # Errors
    /// Where the URL is not allowed. That it is allowed here does not mean that its host's addresses are.
    pub fn check_url(&self, url: &Url, trusted: Option<&Url>) -> Result<(), FetchError> {
        let fault = match url.scheme() {
            "https" => None,
            "http" if is_origin_of(url, trusted) => None,
            _ => Some(UrlFault::NotHttps),
        };
        let has_userinfo = !url.username().is_empty() || url.password().is_some();
        let fault = fault
            .or(has_userinfo.then_some(UrlFault::Userinfo))
            .or(url.fragment().is_some().then_some(UrlFault::Fragment));
        if let Some(fault) = fault {
            return Err(FetchError::Url { url: redacted(url), fault });
        }
        self.check_addresses(url, trusted, &known_addresses(url).unwrap_or_default())
    }

    /// One bad address spoils them all. To go on with the others would leave it to the name's owner which one is
    /// tried, and hide from the operator what the name says.
    pub(super) fn check_addresses(
        &self,
        url: &Url,
        trusted: Option<&Url>,
        addresses: &[IpAddr],
    ) -> Result<(), FetchError> {
        let exempt = is_origin_of(url, trusted) || self.0.iter().any(|allowed| allowed.covers(url));
        for address in addresses {
            match address::special_use(*address) {
                Some(special_use) if special_use.is_link_local() || !exempt => {
                    let remedy = (!special_use.is_link_local()).then(|| error::authority(url));
                    let url = redacted(url);
                    return Err(FetchError::Address { url, address: *address, special_use, remedy });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_origin_of(url: &Url, trusted: Option<&Url>) -> bool {
    trusted.is_some_and(|trusted| trusted.origin() == url.origin())
}

/// The addresses that need no look-up: a literal is its own address and reaches no resolver, and `localhost` and what
/// is below it are loopback by definition (RFC 6761, section 6.3), though many systems cannot resolve the latter.
pub(crate) fn known_addresses(url: &Url) -> Option<Vec<IpAddr>> {
    match url.host()? {
        Host::Ipv4(address) => Some(vec![address.into()]),
        Host::Ipv6(address) => Some(vec![address.into()]),
        Host::Domain(name) => {
            is_loopback(&Host::Domain(name)).then(|| vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(allow_hosts: &[&str]) -> Reach {
        let allow_hosts: Vec<AllowHost> = allow_hosts.iter().map(|host| host.parse().expect(host)).collect();
        Reach::new(&allow_hosts, |_| false)
    }

    fn check(reach: &Reach, url: &str, trusted: Option<&str>) -> String {
        let parse = |url: &str| Url::parse(url).expect("a URL");
        let checked = reach.check_url(&parse(url), trusted.map(parse).as_ref());
        checked.map_or_else(|error| error.to_string(), |()| "allowed".to_owned())
    }

    #[test]
    fn urls_of_strangers() {
        let reach = reach(&[]);
        for (url, outcome) in [
            ("https://as.example/token", "allowed"),
            ("https://as.example:8443/token?a=b", "allowed"),
            ("https://as.example./", "allowed"),
            ("https://192.0.1.1/", "allowed"),
            ("https://[2606:4700::1]/", "allowed"),
            ("https://[::ffff:192.0.1.1]/", "allowed"),
            ("https://localhost.example/", "allowed"),
            ("https://notlocalhost/", "allowed"),
            ("http://as.example/token?code=secret", "http://as.example/token: must be https"),
            ("http://127.0.0.1/", "http://127.0.0.1/: must be https"),
            ("ftp://as.example/", "ftp:…: must be https"),
            ("file:///etc/passwd", "file:…: must be https"),
            ("data:text/plain,secret", "data:…: must be https"),
            ("https://user@as.example/", "https://as.example/: must not have a user name or password"),
            ("https://:pw@as.example/", "https://as.example/: must not have a user name or password"),
            ("https://as.example/#secret", "https://as.example/: must not have a fragment"),
            (
                "https://10.0.0.5/token",
                "https://10.0.0.5/token: 10.0.0.5 is a private address; --allow-host 10.0.0.5 would allow it",
            ),
            (
                "https://10.0.0.5:8443/",
                "https://10.0.0.5:8443/: 10.0.0.5 is a private address; --allow-host 10.0.0.5:8443 would allow it",
            ),
            (
                "https://169.254.169.254/latest",
                "https://169.254.169.254/latest: 169.254.169.254 is a link-local address, which no setting allows",
            ),
            (
                "https://[fd00:ec2::254]/",
                "https://[fd00:ec2::254]/: fd00:ec2::254 is a unique local address; --allow-host [fd00:ec2::254] would \
                 allow it",
            ),
            (
                "https://as.localhost/",
                "https://as.localhost/: 127.0.0.1 is a loopback address; --allow-host as.localhost would allow it",
            ),
        ] {
            assert_eq!(check(&reach, url, None), outcome, "{url}");
        }
    }

    /// Other spellings of loopback, private and link-local hosts, which must not slip past the table above.
    #[test]
    fn spellings_of_literals() {
        let reach = reach(&[]);
        for host in [
            "2130706433",
            "0x7f000001",
            "017700000001",
            "0x7f.1",
            "127.1",
            "127.0.0.1.",
            "127。0。0。1",
            "１２７.0.0.1",
            "%31%32%37.0.0.1",
            "0",
            "0x0a000005",
            "3232235521",
            "[::1]",
            "[::]",
            "[::127.0.0.1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[0:0:0:0:0:ffff:a9fe:a9fe]",
            "[::ffff:169.254.169.254]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b::169.254.169.254]",
            "[2002:7f00:1::]",
            "[2001:db8::1]",
            "[fe80::1]",
            "[fec0::1]",
            "localhost",
            "LOCALHOST",
            "localhost.",
            "a.b.localhost",
            "a.localhost.",
            "LocalHo\u{17f}t",
        ] {
            let outcome = check(&reach, &format!("https://{host}/"), None);
            assert!(outcome.contains(" address"), "{host}: {outcome}");
        }
    }

    #[test]
    fn allowed_hosts() {
        let reach =
            reach(&["10.0.0.5", "[fd00::1]:8443", "as.localhost:8443", "metadata.example", "[::ffff:10.0.0.6]"]);
        for (url, allowed) in [
            ("https://10.0.0.5/", true),
            ("https://10.0.0.5:8443/", true),
            ("https://0x0a000005/", true),
            ("https://[::ffff:10.0.0.6]/", true),
            ("https://10.0.0.6/", false),
            ("https://[::ffff:10.0.0.5]/", false),
            ("https://[fd00::1]:8443/", true),
            ("https://[fd00::1]/", false),
            ("https://as.localhost:8443/", true),
            ("https://AS.localhost.:8443/", true),
            ("https://as.localhost/", false),
            ("https://evil.as.localhost:8443/", false),
            ("http://10.0.0.5/", false),
            ("https://user@10.0.0.5/", false),
        ] {
            assert_eq!(check(&reach, url, None) == "allowed", allowed, "{url}");
        }
    }

    #[test]
    fn the_operators_own_origin() {
        let reach = reach(&[]);
        for (url, trusted, allowed) in [
            ("http://10.0.0.5/.well-known/oauth-authorization-server", "http://10.0.0.5/mcp", true),
            ("http://10.0.0.5:80/", "http://10.0.0.5/mcp", true),
            ("https://10.0.0.5/", "https://10.0.0.5:443/mcp", true),
            ("http://notes.localhost:8080/", "http://notes.localhost:8080/mcp", true),
            ("http://mcp.example/", "http://mcp.example/mcp", true),
            ("http://10.0.0.5:8080/", "http://10.0.0.5/mcp", false),
            ("https://10.0.0.5/", "http://10.0.0.5/mcp", false),
            ("http://10.0.0.5/", "https://10.0.0.5/mcp", false),
            ("http://10.0.0.6/", "http://10.0.0.5/mcp", false),
            ("http://mcp.example/", "http://as.example/mcp", false),
            ("http://user@10.0.0.5/", "http://user@10.0.0.5/mcp", false),
            ("http://169.254.169.254/", "http://169.254.169.254/", false),
            ("http://[fe80::1]/", "http://[fe80::1]/", false),
            ("http://[::ffff:169.254.169.254]/", "http://[::ffff:169.254.169.254]/", false),
            ("data:a", "data:a", false),
        ] {
            assert_eq!(check(&reach, url, Some(trusted)) == "allowed", allowed, "{url} of {trusted}");
        }
    }

    #[test]
    fn one_bad_address_spoils_them_all() {
        let reach = reach(&["as.example"]);
        let addresses = |texts: &[&str]| -> Vec<IpAddr> { texts.iter().map(|ip| ip.parse().expect("ip")).collect() };
        for (url, resolved, allowed) in [
            ("https://x.example/", &["192.0.1.1", "2606:4700::1"][..], true),
            ("https://x.example/", &["192.0.1.1", "127.0.0.1"], false),
            ("https://x.example/", &["192.0.1.1", "64:ff9b::a00:5"], false),
            ("https://as.example/", &["192.0.1.1", "127.0.0.1"], true),
            ("https://as.example/", &["127.0.0.1", "169.254.169.254"], false),
            ("https://as.example/", &["127.0.0.1", "64:ff9b::169.254.169.254"], false),
        ] {
            let checked = reach.check_addresses(&Url::parse(url).expect("url"), None, &addresses(resolved));
            assert_eq!(checked.is_ok(), allowed, "{url} at {resolved:?}");
        }
    }
}
