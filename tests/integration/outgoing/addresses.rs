//! Which addresses may be connected to.

use std::net::IpAddr;

use envoy_cimd::net::outgoing::error::{FetchError, UrlFault};
use http::Request;
use url::Url;

use super::{HELLO, LOOPBACK, Names, World, get, say};

/// DNS rebinding: the name's owner answers differently when asked again.
#[tokio::test]
async fn the_checked_address_is_the_one_connected_to() {
    let world = World::new();
    let (checked, other) = world.two_servers_on_one_port().await;
    let names = Names::new(&[&[checked.address.ip()], &[other.address.ip()]]);
    let outgoing = world.outgoing(&["as.example"], names.clone());
    outgoing.send(get(&checked, "as.example"), None).await.expect("an answer");
    assert_eq!((names.asked(), checked.connections(), other.connections()), (1, 1, 0));
    // The next fetch asks and checks anew, and finds no connection of the last.
    outgoing.send(get(&checked, "as.example"), None).await.expect("an answer");
    assert_eq!((names.asked(), checked.connections(), other.connections()), (2, 1, 1));
}

#[tokio::test]
async fn a_special_use_address_is_not_connected_to() {
    let world = World::new();
    let server = world.https(say(HELLO)).await;
    let public = IpAddr::from([192, 0, 1, 1]);
    let mapped = "::ffff:127.0.0.1".parse().expect("an address");
    for addresses in [&[LOOPBACK][..], &[public, LOOPBACK], &[mapped]] {
        let names = Names::fixed(addresses);
        let outgoing = world.outgoing(&[], names.clone());
        let error = outgoing.send(get(&server, "as.example"), None).await.expect_err("refused");
        assert!(matches!(error, FetchError::Address { .. }) && !error.may_have_arrived(), "{error}");
        assert!(
            error.to_string().ends_with(
                "--allow-host as.example:{port} would allow it"
                    .replace("{port}", &server.address.port().to_string())
                    .as_str()
            ),
            "{error}"
        );
        assert_eq!(names.asked(), 1);
    }
    for (host, resolved) in [("as.localhost", LOOPBACK), ("127.0.0.1", LOOPBACK), ("[::ffff:127.0.0.1]", mapped)] {
        let names = Names::fixed(&[public]);
        let error = world.outgoing(&[], names.clone()).send(get(&server, host), None).await.expect_err("refused");
        assert!(matches!(error, FetchError::Address { address, .. } if address == resolved), "{error}");
        assert_eq!(names.asked(), 0, "{host} needs no look-up");
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn names_that_lead_nowhere() {
    let world = World::new();
    let server = world.https(say(HELLO)).await;
    let url = server.url("as.example", "/");
    for (names, reason) in [(Names::new(&[]), "there is no such name"), (Names::fixed(&[]), "it has no address")] {
        let error = world.outgoing(&[], names).send(get(&server, "as.example"), None).await.expect_err("no address");
        assert_eq!(error, FetchError::Resolve { url: url.clone(), reason: reason.to_owned() });
        assert!(!error.may_have_arrived() && !error.is_timeout());
    }
}

#[tokio::test]
async fn allowed_hosts_are_reached() {
    let world = World::new();
    let server = world.https(say(HELLO)).await;
    let port = server.address.port();
    let other = if port == 8443 { 8444 } else { 8443 };
    for (allowed, host, reached) in [
        ("as.example".to_owned(), "as.example", true),
        (format!("as.example:{port}"), "as.example", true),
        (format!("as.example:{other}"), "as.example", false),
        ("other.example".to_owned(), "as.example", false),
        ("as.localhost".to_owned(), "as.localhost", true),
        ("localhost".to_owned(), "as.localhost", false),
        ("127.0.0.1".to_owned(), "127.0.0.1", true),
        ("127.0.0.1".to_owned(), "as.example", false),
    ] {
        let before = server.connections();
        let outcome = world.outgoing(&[&allowed], Names::fixed(&[LOOPBACK])).send(get(&server, host), None).await;
        match reached {
            true => assert_eq!(outcome.expect("an answer").body(), b"hello"),
            false => assert!(matches!(outcome, Err(FetchError::Address { .. })), "{allowed} {host}: {outcome:?}"),
        }
        assert_eq!(server.connections() - before, usize::from(reached), "{allowed} {host}");
    }
    // Never link-local, in whatever spelling, nor beside a good address.
    for addresses in [&["169.254.169.254"][..], &["127.0.0.1", "fe80::1"], &["64:ff9b::169.254.169.254"]] {
        let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().expect("an address")).collect();
        let outgoing = world.outgoing(&["as.example"], Names::fixed(&addresses));
        let error = outgoing.send(get(&server, "as.example"), None).await.expect_err("refused");
        assert!(error.to_string().ends_with(" is a link-local address, which no setting allows"), "{error}");
    }
}

#[tokio::test]
async fn the_operators_own_origin_may_be_http_and_private() {
    let world = World::new();
    let server = world.plain(say(HELLO)).await;
    let names = Names::fixed(&[LOOPBACK]);
    let outgoing = world.outgoing(&[], names);
    for host in ["127.0.0.1", "notes.localhost", "mcp.example"] {
        let url = format!("http://{host}:{}/.well-known/oauth-protected-resource", server.address.port());
        let request = || Request::get(&url).body(Vec::new()).expect("a request");
        let trusted = format!("http://{host}:{}/mcp", server.address.port()).parse().expect("a URL");
        let before = server.connections();
        outgoing.send(request(), Some(&trusted)).await.expect(host);
        // What is trusted for one upstream is not for another, and no connection is left that would do.
        let another = "http://another.example/mcp".parse().expect("a URL");
        for trusted in [None, Some(&another)] {
            let error = outgoing.send(request(), trusted).await.expect_err(host);
            assert_eq!(error, FetchError::Url { url: url.clone(), fault: UrlFault::NotHttps });
        }
        assert_eq!(server.connections() - before, 1, "{host}");
        outgoing.send(request(), Some(&trusted)).await.expect(host);
        assert_eq!(server.connections() - before, 2, "{host}");
    }
    let server = world.https(say(HELLO)).await;
    let trusted: Url = server.url("as.example", "/mcp").parse().expect("a URL");
    outgoing.send(get(&server, "as.example"), Some(&trusted)).await.expect("an answer");
    let error = outgoing.send(get(&server, "as.example"), None).await.expect_err("another's");
    assert!(matches!(error, FetchError::Address { .. }), "{error}");
    assert_eq!(server.connections(), 1);
    let outgoing = world.outgoing(&[], Names::fixed(&["169.254.169.254".parse().expect("an address")]));
    let error = outgoing.send(get(&server, "as.example"), Some(&trusted)).await.expect_err("link-local");
    assert!(error.to_string().ends_with("which no setting allows"), "{error}");
}
