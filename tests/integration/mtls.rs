//! Encryption between the parts: who proves nothing, or the wrong thing, gets nowhere.

use std::path::Path;

use envoy_cimd::{
    contract::tokens::{Missing, TokenError, UpstreamTokens},
    model::{trace::Trace, user::User},
    net::tls::client,
};
use http::Version;

use crate::{
    flow::press,
    stack::{
        Authority, Call, Certificates, Choreographer, Cimd, Client, Envoy, in_process::owner, key_file, metric,
        ready_address,
    },
    tokens_client::client_of,
    world::{DOCUMENT, HOSTS, Upstream, Wish, envoy_config, executable},
};

const NOTES: &str = "notes.localhost";
/// What the certificate of our Envoy says.
const ENVOY: &[&str] = &["envoy.mesh.example", "spiffe://mesh.example/ns/edge/sa/envoy"];
const OTHER: &[&str] = &["other.mesh.example", "spiffe://mesh.example/ns/edge/sa/other"];
/// And that of envoy-cimd, which is called by its address.
const CIMD: &[&str] = &["127.0.0.1", "localhost", "spiffe://mesh.example/ns/edge/sa/cimd"];

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// The flags of a listener with mTLS.
fn listener(files: &Certificates) -> Vec<&str> {
    vec!["--tls-cert", text(&files.cert), "--tls-key", text(&files.key), "--client-ca", text(&files.ca)]
}

/// What `envoy-config` is told of envoy-cimd.
fn processor<'a>(ca: &'a Path, identity: Option<&'a Certificates>) -> Vec<&'a str> {
    let mut flags = vec!["--processor-ca", text(ca)];
    if let Some(files) = identity {
        flags.extend(["--processor-cert", text(&files.cert), "--processor-key", text(&files.key)]);
    }
    flags
}

/// Asks for a document and presses the button of the connect page through a real Envoy with these flags.
async fn through_envoy(cimd: &Cimd, flags: &[&str]) -> (u16, u16) {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Certificates::make(dir.path(), HOSTS);
    let upstream = Upstream::start().await;
    let wish = Wish { routes: &["from=https://notes.localhost"], envoy_config: flags, ..Wish::default() };
    let envoy = Envoy::start(dir.path(), &envoy_config(&front, &cimd.ext_proc, &upstream.url, &wish)).await;
    let client = Client::tls(envoy.https, &front.ca);
    let status = async |call| client.send(Version::HTTP_2, call).await.expect("an answer").status;
    (status(Call::get(NOTES, DOCUMENT)).await, status(press(NOTES, "")).await)
}

async fn document_through_envoy(cimd: &Cimd, flags: &[&str]) -> u16 {
    through_envoy(cimd, flags).await.0
}

#[tokio::test]
async fn envoy_and_we_prove_who_we_are() {
    let (ours, others) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let authority = Authority::make(ours.path());
    let stranger = Authority::make(others.path());
    let server = authority.issue("cimd", CIMD);
    let envoy = authority.issue("envoy", ENVOY);
    let other = authority.issue("other", OTHER);
    let forged = stranger.issue("envoy", ENVOY);
    let by_name = "--allow-peer=envoy.mesh.example";
    let by_id = "--allow-peer=spiffe://mesh.example/ns/edge/sa/envoy,spiffe://mesh.example/ns/edge/sa/second";
    let cimd_id = "--processor-san=spiffe://mesh.example/ns/edge/sa/cimd";
    for (allowed, identity, ca, more, good) in [
        (None, Some(&envoy), &authority.ca, None, true),
        (None, Some(&other), &authority.ca, None, true),
        (None, None, &authority.ca, None, false),
        (None, Some(&forged), &authority.ca, None, false),
        (None, Some(&envoy), &stranger.ca, None, false),
        (None, Some(&envoy), &authority.ca, Some(cimd_id), true),
        (None, Some(&envoy), &authority.ca, Some("--processor-san=another.mesh.example"), false),
        (Some(by_name), Some(&envoy), &authority.ca, None, true),
        (Some(by_name), Some(&other), &authority.ca, None, false),
        (Some(by_id), Some(&envoy), &authority.ca, None, true),
        (Some(by_id), Some(&other), &authority.ca, None, false),
        (Some(by_id), Some(&forged), &authority.ca, None, false),
    ] {
        let case = format!("{allowed:?} {identity:?} {ca:?} {more:?}");
        let flags: Vec<&str> = listener(&server).into_iter().chain(allowed).collect();
        let mut cimd = Cimd::start(&executable(), &flags).await;
        let flags: Vec<&str> = processor(ca, identity).into_iter().chain(more).collect();
        let status = document_through_envoy(&cimd, &flags).await;
        assert_eq!(status, if good { 200 } else { 503 }, "{case}");
        if !good {
            // Envoy answers as soon as it refuses us, which is before we hear of it.
            cimd.process.line(|line| line.contains("no TLS with a caller").then_some(())).await;
        }
        let said = cimd.process.output();
        assert_eq!(said.contains("no TLS with a caller"), !good, "{case}: {said}");
        if allowed.is_some() && identity.is_some_and(|identity| std::ptr::eq(identity, &other)) {
            assert!(
                said.contains(
                    "no name of the certificate is allowed; it has: other.mesh.example spiffe://mesh.example"
                ),
                "{said}"
            );
        }
        let served = "envoy_cimd_requests_total{endpoint=\"document\",outcome=\"served\"}";
        assert_eq!(metric(&cimd.admin, served).await, Some(u64::from(good)), "{case}");
    }
    // Without any TLS, to a listener that wants it.
    let cimd = Cimd::start(&executable(), &listener(&server)).await;
    assert_eq!(document_through_envoy(&cimd, &[]).await, 503);
}

/// Waits until the files were read again, with this result.
async fn reloaded(admin: &str, file: &str, result: &str, times: u64) {
    let counter = format!("envoy_cimd_reloads_total{{file=\"{file}\",result=\"{result}\"}}");
    while metric(admin, &counter).await < Some(times) {
        tokio::task::yield_now().await;
    }
}

fn replace(old: &Certificates, new: &Certificates) {
    for (to, from) in [(&old.ca, &new.ca), (&old.cert, &new.cert), (&old.key, &new.key)] {
        std::fs::copy(from, to).expect("copied");
    }
}

/// A new authority with new certificates takes effect without a restart; what cannot be used changes nothing.
#[tokio::test]
async fn certificates_are_read_again() {
    let (first, second) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (old, new) = (Authority::make(first.path()), Authority::make(second.path()));
    let (old_envoy, new_envoy) = (old.issue("envoy", ENVOY), new.issue("envoy", ENVOY));
    let (old_ca, new_ca) = (first.path().join("old.pem"), &new.ca);
    std::fs::copy(&old.ca, &old_ca).expect("copied");
    let server = old.issue("cimd", CIMD);
    let mut cimd = Cimd::start(&executable(), &listener(&server)).await;
    let with_old = processor(&old_ca, Some(&old_envoy));
    let with_new = processor(new_ca, Some(&new_envoy));
    assert_eq!(document_through_envoy(&cimd, &with_old).await, 200);
    assert_eq!(document_through_envoy(&cimd, &with_new).await, 503);

    // A certificate whose key has not come yet.
    std::fs::copy(&new.issue("cimd", CIMD).cert, &server.cert).expect("copied");
    reloaded(&cimd.admin, "tls", "failed", 1).await;
    std::fs::write(&server.ca, "no certificate").expect("written");
    reloaded(&cimd.admin, "tls", "failed", 2).await;
    let said = format!("--client-ca {}: has no certificate", text(&server.ca));
    cimd.process.line(|line| line.contains(&said).then_some(())).await;
    assert_eq!(document_through_envoy(&cimd, &with_old).await, 200, "the last good ones stay");

    replace(&server, &new.issue("cimd", CIMD));
    reloaded(&cimd.admin, "tls", "ok", 1).await;
    assert_eq!(document_through_envoy(&cimd, &with_new).await, 200);
    assert_eq!(document_through_envoy(&cimd, &with_old).await, 503);
}

/// The outcome of a start's POST that got through to a choreographer, where the upstream has no authorization server.
const THROUGH: u16 = 502;

/// The same between the filter and the choreographer, all three parts being the real ones.
#[tokio::test]
async fn the_choreographer_and_we_prove_who_we_are() {
    let (ours, others) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let authority = Authority::make(ours.path());
    let stranger = Authority::make(others.path());
    let server = authority.issue("choreographer", &["localhost", "spiffe://mesh.example/choreographer"]);
    let cimd = authority.issue("cimd", CIMD);
    let other = authority.issue("other", OTHER);
    let keys = key_file(ours.path());
    let allow = "--allow-peer=spiffe://mesh.example/ns/edge/sa/cimd";
    let flags = [listener(&server), vec![allow]].concat();
    let choreographer = Choreographer::start(&executable(), &flags).await;
    let url = choreographer.address.replace("127.0.0.1", "https://localhost");
    let by_address = format!("https://{}", choreographer.address);
    for (url, ca, identity, peer, good) in [
        (&url, &authority.ca, Some(&cimd), None, true),
        (&by_address, &authority.ca, Some(&cimd), None, false),
        (&by_address, &authority.ca, Some(&cimd), Some("spiffe://mesh.example/choreographer"), true),
        (&url, &authority.ca, Some(&cimd), Some("spiffe://mesh.example/other"), false),
        (&by_address, &stranger.ca, Some(&cimd), Some("spiffe://mesh.example/choreographer"), false),
        (&url, &stranger.ca, Some(&cimd), None, false),
        (&url, &authority.ca, Some(&other), None, false),
        (&url, &authority.ca, None, None, false),
    ] {
        let mut flags = vec!["--single-user", "--state-keys", text(&keys), "--choreographer", url];
        flags.extend(["--choreographer-ca", text(ca)]);
        if let Some(files) = identity {
            flags.extend(["--choreographer-cert", text(&files.cert), "--choreographer-key", text(&files.key)]);
        }
        flags.extend(peer.map(|peer| ["--choreographer-peer", peer]).into_iter().flatten());
        let filter = Cimd::start(&executable(), &flags).await;
        let (_, begun) = through_envoy(&filter, &[]).await;
        let unusable = "envoy_cimd_requests_total{endpoint=\"start\",outcome=\"authorization_server_unusable\"}";
        assert_eq!(metric(&filter.admin, unusable).await, Some(u64::from(good)), "{flags:?} {begun}");
    }
}

/// Who asks for tokens proves who they are, and so does who hands them out; else there is none.
#[tokio::test]
async fn who_hands_out_tokens_and_who_asks_prove_who_they_are() {
    let (ours, others) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let authority = Authority::make(ours.path());
    let stranger = Authority::make(others.path());
    let server = authority.issue("choreographer", &["localhost", "spiffe://mesh.example/choreographer"]);
    let (cimd, other) = (authority.issue("cimd", CIMD), authority.issue("other", OTHER));
    let state = ours.path().join("state");
    let names = ["--allow-peer", OTHER[0], "--tokens-allow-peer", "spiffe://mesh.example/ns/edge/sa/cimd"];
    let listens = ["--tokens-listen", "127.0.0.1:0", "--state-dir", text(&state)];
    let flags = [&listener(&server)[..], &names, &listens].concat();
    let mut choreographer = Choreographer::start(&executable(), &flags).await;
    let address = choreographer.process.line(|line| ready_address(line, "tokens")).await;
    let url = address.replace("127.0.0.1", "https://localhost");
    let by_address = format!("https://{address}");
    let spiffe = Some("spiffe://mesh.example/choreographer");
    let owner = || owner(User::Single, "https://notes.localhost/document", "https://upstream.example/mcp");
    for (url, ca, identity, peer, good) in [
        (&url, &authority.ca, &cimd, None, true),
        (&by_address, &authority.ca, &cimd, spiffe, true),
        (&by_address, &authority.ca, &cimd, None, false),
        (&url, &authority.ca, &cimd, Some("spiffe://mesh.example/other"), false),
        (&url, &stranger.ca, &cimd, None, false),
        // May begin flows, and have no token.
        (&url, &authority.ca, &other, None, false),
        (&url, &authority.ca, &stranger.issue("cimd", CIMD), None, false),
    ] {
        let tls = client::Config {
            ca: Some(ca.clone()),
            cert: Some(identity.cert.clone()),
            key: Some(identity.key.clone()),
            peer: peer.map(|peer| peer.parse().expect("a name")),
        };
        let answer = client_of(url, &tls).await.upstream_token(owner(), &Trace::default()).await;
        match answer.expect_err("nobody connected") {
            TokenError::NotFound(missing) => assert!(good && missing == Missing::Never, "{url} {tls:?}"),
            TokenError::Unavailable(cause) => assert!(!good, "{url} {tls:?}: {cause}"),
        }
    }
}

/// With `--tokens` as with the choreographer: its TLS is the choreographer's unless it has its own, and is read again.
#[tokio::test]
async fn certificates_of_the_tokens_are_read_again() {
    let (first, second) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (old, new) = (Authority::make(first.path()), Authority::make(second.path()));
    let (cimd, own) = (old.issue("cimd", CIMD), old.issue("own", CIMD));
    let keys = key_file(first.path());
    let socket = format!("unix:{}", first.path().join("cimd.sock").display());
    let flags = ["--state-keys", text(&keys), "--listen", &socket, "--choreographer", "https://localhost:1"];
    let tls = ["--choreographer-ca", text(&cimd.ca), "--choreographer-cert", text(&cimd.cert)];
    let key = ["--choreographer-key", text(&cimd.key), "--tokens", "https://localhost:2"];
    let shared = [&flags[..], &tls, &key].concat();
    let own_files = ["--tokens-cert", text(&own.cert), "--tokens-key", text(&own.key)];
    for (flags, changed, own) in [(shared.clone(), &cimd, false), ([&shared[..], &own_files].concat(), &own, true)] {
        let filter = Cimd::start(&executable(), &flags).await;
        let output = filter.process.output();
        assert!(output.contains("\"roles\":\"endpoints, traffic, refused\""), "{output}");
        let fresh = new.issue("fresh", CIMD);
        for (to, from) in [(&changed.cert, &fresh.cert), (&changed.key, &fresh.key)] {
            std::fs::copy(from, to).expect("copied");
        }
        reloaded(&filter.admin, "tokens_client_tls", "ok", 1).await;
        let choreographers = "envoy_cimd_reloads_total{file=\"choreographer_tls\",result=\"ok\"}";
        if own {
            assert_eq!(metric(&filter.admin, choreographers).await, Some(0));
        } else {
            reloaded(&filter.admin, "choreographer_tls", "ok", 1).await;
        }
    }
}

/// Both ends of the choreographer's connection follow their files.
#[tokio::test]
async fn certificates_of_the_choreographer_are_read_again() {
    let (first, second) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (old, new) = (Authority::make(first.path()), Authority::make(second.path()));
    let server = old.issue("choreographer", &["localhost"]);
    let cimd = old.issue("cimd", CIMD);
    let keys = key_file(first.path());
    let mut choreographer = Choreographer::start(&executable(), &listener(&server)).await;
    let url = choreographer.address.replace("127.0.0.1", "https://localhost");
    let flags = ["--single-user", "--state-keys", text(&keys), "--choreographer", &url];
    let tls = ["--choreographer-ca", text(&cimd.ca), "--choreographer-cert", text(&cimd.cert)];
    let key = ["--choreographer-key", text(&cimd.key)];
    let filter = Cimd::start(&executable(), &[&flags[..], &tls, &key].concat()).await;
    assert_eq!(through_envoy(&filter, &[]).await.1, THROUGH);

    // Old and new authority share the file; the rest is new.
    replace(&server, &new.issue("choreographer", &["localhost"]));
    replace(&cimd, &new.issue("cimd", CIMD));
    reloaded(&choreographer.admin, "tls", "ok", 1).await;
    reloaded(&filter.admin, "choreographer_tls", "ok", 1).await;
    assert_eq!(through_envoy(&filter, &[]).await.1, THROUGH, "the open connection goes on");
    choreographer.process.signal("-KILL");
    choreographer.process.ended().await;
    let again = [&listener(&server)[..], &["--listen", &choreographer.address]].concat();
    let _choreographer = Choreographer::start(&executable(), &again).await;
    assert_eq!(through_envoy(&filter, &[]).await.1, THROUGH, "a new one is made with the new files");
}

/// A certificate that was good once does not let its owner in again without a look at it.
#[tokio::test]
async fn no_session_is_resumed() {
    use rustls::{
        HandshakeKind,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
        version::{TLS12, TLS13},
    };
    use tokio::io::AsyncReadExt;
    let dir = tempfile::tempdir().expect("a folder");
    let authority = Authority::make(dir.path());
    let (server, envoy) = (authority.issue("cimd", CIMD), authority.issue("envoy", ENVOY));
    let cimd = Cimd::start(&executable(), &listener(&server)).await;
    for version in [&TLS12, &TLS13] {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&authority.ca).expect("a certificate")).expect("a CA");
        let chain = vec![CertificateDer::from_pem_file(&envoy.cert).expect("a certificate")];
        let key = PrivateKeyDer::from_pem_file(&envoy.key).expect("a key");
        let mut config = rustls::ClientConfig::builder_with_provider(envoy_cimd::net::tls::provider::provider())
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .expect("a certificate and its key");
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        for _ in 0..2 {
            let stream = tokio::net::TcpStream::connect(&cimd.ext_proc).await.expect("a connection");
            let name = ServerName::try_from("localhost").expect("a name");
            let mut stream = connector.connect(name, stream).await.expect("it is let in");
            // Its first words; what else it had to say of the session came before them.
            stream.read_u8().await.expect("HTTP/2");
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full), "{version:?}");
        }
    }
}
