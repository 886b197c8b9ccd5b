//! Which hosts are this machine by definition.

use url::Host;

/// Whether a host is loopback without being looked up: an address of loopback, `localhost`, or a name below it
/// (RFC 6761, section 6.3).
pub fn is_loopback<S: AsRef<str>>(host: &Host<S>) -> bool {
    match host {
        Host::Domain(name) => {
            let name = name.as_ref();
            let name = name.strip_suffix('.').unwrap_or(name);
            name == "localhost" || name.ends_with(".localhost")
        }
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback() {
        for (host, expected) in [
            ("localhost", true),
            ("localhost.", true),
            ("as.localhost", true),
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("[::1]", true),
            ("notlocalhost", false),
            ("localhost.example", false),
            ("127.0.0.1.evil.example", false),
            ("10.0.0.1", false),
            ("[::ffff:127.0.0.1]", false),
        ] {
            assert_eq!(is_loopback(&Host::parse(host).expect(host)), expected, "{host}");
        }
    }
}
