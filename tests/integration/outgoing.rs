//! Fetches from real servers, most of which mean no good.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use envoy_cimd::net::outgoing::{
    Config, Outgoing,
    error::{DEADLINE, FetchError, MAX_BODY, UrlFault},
    packed,
    resolver::Resolver,
};
use futures_util::future::join_all;
use http::{Request, header::CONTENT_ENCODING};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;
use url::Url;

use crate::stack::Certificates;

const PATIENCE: Duration = Duration::from_secs(20);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
/// More than any buffer on the way can hold.
const FLOOD: usize = 200 << 20;

#[tokio::test]
async fn an_answer_comes_whole() {
    let world = World::new();
    let server = world.https(say("HTTP/1.1 418 I'm a teapot\r\nx-a: 1\r\ncontent-length: 5\r\n\r\nhello")).await;
    let outgoing = world.outgoing(&["as.example"], Names::fixed(&[LOOPBACK]));
    let request = Request::post(server.url("as.example", "/token?a=b"))
        .header("accept", "application/json")
        .body(b"code=secret".to_vec())
        .expect("a request");
    let answer = outgoing.send(request, None).await.expect("an answer");
    assert_eq!((answer.status().as_u16(), &answer.headers()["x-a"]), (418, &"1".parse().expect("a value")));
    assert_eq!(answer.body(), b"hello");
    let [request] = &server.requests()[..] else { panic!("one request") };
    assert!(request.starts_with("POST /token?a=b HTTP/1.1\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\ncode=secret"), "{request}");
    let mut headers: Vec<&str> = request.lines().filter_map(|line| Some(line.split_once(": ")?.0)).collect();
    headers.sort_unstable();
    assert_eq!(
        headers,
        ["accept", "accept-encoding", "content-length", "host", "user-agent"],
        "nothing but what is needed"
    );
    assert!(request.contains("\r\naccept-encoding: identity\r\n"), "{request}");
    let agent = concat!("\r\nuser-agent: envoy-cimd/", env!("CARGO_PKG_VERSION"), "\r\n");
    assert!(request.contains(agent), "{request}");
}

#[tokio::test]
async fn over_http_2_too() {
    let world = World::new();
    let server = world.http_2(|stream| [headers_frame(stream), frame(0, 1, stream, b"hello")].concat()).await;
    let outgoing = world.outgoing(&["as.example"], Names::fixed(&[LOOPBACK]));
    let answer = outgoing.send(get(&server, "as.example"), None).await.expect("an answer");
    assert_eq!((answer.version(), &answer.body()[..]), (http::Version::HTTP_2, &b"hello"[..]));
}

/// The variables are the process's, so this runs the first test again in one of its own.
#[tokio::test]
async fn no_proxy_is_asked() {
    let proxy = std::net::TcpListener::bind((LOOPBACK, 0)).expect("a port");
    proxy.set_nonblocking(true).expect("a socket");
    let address = format!("http://{}", proxy.local_addr().expect("an address"));
    let mut child = Command::new(std::env::current_exe().expect("this program"));
    child.args(["--exact", "outgoing::an_answer_comes_whole"]).env_remove("NO_PROXY").env_remove("no_proxy");
    for variable in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        child.env(variable, &address);
    }
    let output = tokio::task::spawn_blocking(move || child.output()).await.expect("a thread").expect("a process");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    assert_eq!(proxy.accept().expect_err("nobody came").kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_not_followed() {
    let world = World::new();
    let target = world.https(say(HELLO)).await;
    for status in [301, 302, 303, 307, 308] {
        let location = target.url("as.example", "/");
        let text = format!("HTTP/1.1 {status} Away\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
        let server = world.https(say(&text)).await;
        let outgoing = world.outgoing(&["as.example"], Names::fixed(&[LOOPBACK]));
        let answer = outgoing.send(get(&server, "as.example"), None).await.expect("an answer");
        assert_eq!((answer.status().as_u16(), answer.headers()["location"].as_bytes()), (status, location.as_bytes()));
    }
    assert_eq!(target.connections(), 0);
}

#[tokio::test]
async fn an_answer_is_not_unpacked() {
    let world = World::new();
    let server = world.https(say("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 5\r\n\r\nhello")).await;
    let outgoing = world.outgoing(&["as.example"], Names::fixed(&[LOOPBACK]));
    let answer = outgoing.send(get(&server, "as.example"), None).await.expect("an answer");
    assert_eq!(answer.body(), b"hello");
}

#[test]
fn what_an_answer_is_packed_with_is_named() {
    for (coding, named) in [
        (None, None),
        (Some("identity"), None),
        (Some("Identity"), None),
        (Some("gzip"), Some("gzip")),
        (Some(" br "), Some("br")),
        (Some("<secret>"), Some("…")),
        (Some("a-coding-of-more-than-20"), Some("…")),
    ] {
        let headers = coding.map(|coding| (CONTENT_ENCODING, coding.parse().expect("a value"))).into_iter().collect();
        let words =
            named.map(|named| format!("it is packed (`content-encoding: {named}`), though nobody asked for that"));
        assert_eq!(packed(&headers), words, "{coding:?}");
    }
}

/// A body that never ends is nothing to whoever wants the headers.
#[tokio::test]
async fn headers_are_there_before_the_body() {
    let world = World::new();
    let outgoing = world.outgoing(&["as.example"], Names::fixed(&[LOOPBACK]));
    let http_1 = world
        .https(async |mut connection: Connection| {
            connection.request().await?;
            connection.write_all(b"HTTP/1.1 401 No\r\nx-a: 1\r\ncontent-length: 5\r\n\r\nhe").await?;
            std::future::pending().await
        })
        .await;
    let http_2 = world.http_2(|stream| [headers_frame(stream), frame(0, 0, stream, b"he")].concat()).await;
    for (server, status, header) in [(http_1, 401, Some("1")), (http_2, 200, None)] {
        let answer = outgoing.send_for_headers(get(&server, "as.example"), None).await.expect("an answer");
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(answer.headers().get("x-a").map(|value| value.to_str().expect("text")), header);
        assert!(answer.body().is_empty());
    }
    let error = outgoing.send_for_headers(Request::get("http://as.example").body(Vec::new()).expect("a request"), None);
    assert!(matches!(error.await, Err(FetchError::Url { .. })), "the same rules");
}

#[tokio::test]
async fn large_bodies_are_cut() {
    let world = World::new();
    let outgoing = world.outgoing(&["as.example"], Names::fixed(&[LOOPBACK]));
    let chunk = [b"1000\r\n".to_vec(), vec![b'a'; 0x1000], b"\r\n".to_vec()].concat();
    let plain = vec![b'a'; 0x1000];
    for (head, repeated, body) in [
        ("content-length: 209715200", &plain, None),
        ("content-length: 1048577", &plain, None),
        ("content-length: 9223372036854775807", &plain, None),
        ("transfer-encoding: chunked", &chunk, None),
        ("connection: close", &plain, None),
        ("content-length: 1048576", &plain, Some(MAX_BODY)),
        ("content-length: 5", &plain, Some(5)),
    ] {
        let sent = Arc::new(AtomicUsize::new(0));
        let (head, repeated, count) = (format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n"), repeated.clone(), sent.clone());
        let server = world
            .https(move |mut connection: Connection| {
                let (head, repeated, sent) = (head.clone(), repeated.clone(), count.clone());
                async move {
                    connection.request().await?;
                    connection.write_all(head.as_bytes()).await?;
                    while sent.load(Ordering::SeqCst) < FLOOD {
                        connection.write_all(&repeated).await?;
                        sent.fetch_add(repeated.len(), Ordering::SeqCst);
                    }
                    Ok(())
                }
            })
            .await;
        let outcome = outgoing.send(get(&server, "as.example"), None).await;
        match body {
            Some(length) => assert_eq!(outcome.expect("an answer").body().len(), length),
            None => {
                let error = outcome.expect_err("too large");
                assert_eq!(error, FetchError::TooLarge { url: server.url("as.example", "/") });
                assert!(error.may_have_arrived() && !error.is_timeout());
            }
        }
        server.ended(1).await;
        assert!(sent.load(Ordering::SeqCst) < FLOOD, "the server was told to stop");
    }
}

#[tokio::test]
async fn the_deadline_holds_for_everything() {
    let world = World::new();
    let silent = world.plain(|mut connection: Connection| async move { connection.until_closed().await }).await;
    let mute = world.https(|mut connection: Connection| async move {
        connection.request().await?;
        connection.until_closed().await
    });
    let (mute, slow_head, slow_body) = (
        mute.await,
        world.https(drip("HTTP/1.1 200 OK\r\n", "x-a: 1\r\n")).await,
        world.https(drip("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "1\r\na\r\n")).await,
    );
    let fixed = world.outgoing(&["as.example"], Names::fixed(&[LOOPBACK]));
    let nameless = world.outgoing(&["as.example"], Arc::new(NoAnswer));
    let cases = [
        ("the name", &nameless, &silent, false),
        ("the handshake", &fixed, &silent, false),
        ("the answer", &fixed, &mute, true),
        ("the headers", &fixed, &slow_head, true),
        ("the body", &fixed, &slow_body, true),
    ];
    join_all(cases.map(|(waits_for, outgoing, server, arrived)| async move {
        let start = Instant::now();
        let sent = tokio::time::timeout(PATIENCE, outgoing.send(get(server, "as.example"), None)).await;
        let error = sent.expect("an outcome").expect_err(waits_for);
        assert!(start.elapsed() >= DEADLINE, "{waits_for}");
        assert_eq!(error, FetchError::Timeout { url: server.url("as.example", "/"), connected: arrived, seconds: 3 });
        assert_eq!((error.is_timeout(), error.may_have_arrived()), (true, arrived), "{waits_for}");
    }))
    .await;
    for server in [&silent, &mute, &slow_head, &slow_body] {
        server.ended(1).await;
    }
}

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

#[tokio::test]
async fn who_cannot_prove_its_name_gets_no_request() {
    let world = World::new();
    let https = world.https(say(HELLO)).await;
    let http = world.plain(|mut connection: Connection| async move {
        connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await?;
        connection.until_closed().await
    });
    let http = http.await;
    let hasty = world.plain(|_| std::future::ready(Ok(()))).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((LOOPBACK, 0).into()).expect("a port");
    let closed = Server::unused(socket.local_addr().expect("an address"));
    let none = Config { allow_hosts: vec!["as.example".parse().expect("a host")], ..Config::default() };
    let distrustful = Outgoing::with_resolver(&none, Names::fixed(&[LOOPBACK])).expect("settings");
    let trusting = world.outgoing(&["as.example", "unnamed.example"], Names::fixed(&[LOOPBACK]));
    for (server, outgoing, host, message) in [
        (
            &https,
            &distrustful,
            "as.example",
            "its certificate is of an authority that is not trusted here; --extra-ca would add one",
        ),
        (
            &https,
            &trusting,
            "unnamed.example",
            "invalid peer certificate: certificate not valid for name \"unnamed.example\"",
        ),
        (&http, &trusting, "as.example", "received corrupt message"),
        // What was not read of the request makes it a reset.
        (&hasty, &trusting, "as.example", ""),
        (&closed, &trusting, "as.example", "Connection refused"),
    ] {
        let request = Request::post(server.url(host, "/token?secret")).body(b"secret".to_vec()).expect("a request");
        let error = outgoing.send(request, None).await.expect_err("no answer");
        let start = format!("{}: no connection could be made: {message}", server.url(host, "/token"));
        assert!(error.to_string().starts_with(&start), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(!error.may_have_arrived() && !error.is_timeout(), "{error}");
        assert_eq!(server.requests(), [""; 0]);
    }
}

#[tokio::test]
async fn nothing_is_sent_twice() {
    const REFUSED_STREAM: u32 = 7;
    let world = World::new();
    let goaway = [0u32.to_be_bytes(), 0u32.to_be_bytes()].concat();
    let servers = [
        ("closed", world.https(say("")).await),
        ("cut off", world.https(say("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello")).await),
        ("no HTTP", world.https(say("SSH-2.0-secret\r\n")).await),
        ("refused", world.http_2(|stream| frame(3, 0, stream, &REFUSED_STREAM.to_be_bytes())).await),
        ("going away", world.http_2(move |_| frame(7, 0, 0, &[&goaway[..], b"secret"].concat())).await),
    ];
    for (what, server) in &servers {
        let outgoing = world.outgoing(&["as.example"], Names::fixed(&[LOOPBACK]));
        let request = Request::post(server.url("as.example", "/?secret")).body(b"secret".to_vec()).expect("a request");
        let error = outgoing.send(request, None).await.expect_err(what);
        assert!(matches!(error, FetchError::Broken { .. }), "{what}: {error}");
        assert!(error.may_have_arrived() && !error.is_timeout(), "{what}: {error}");
        assert!(!format!("{error} {error:?}").contains("secret"), "{what}: {error}");
        server.ended(1).await;
        assert_eq!((server.connections(), server.requests().len()), (1, 1), "{what}");
    }
}

/// A certificate authority that the fetches trust, with a certificate for the hosts of the tests.
struct World {
    dir: TempDir,
    certificates: Certificates,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let certificates = Certificates::make(dir.path(), &["as.example", "as.localhost", "127.0.0.1"]);
        Self { dir, certificates }
    }

    fn outgoing(&self, allow_hosts: &[&str], resolver: Arc<dyn Resolver>) -> Outgoing {
        assert!(self.certificates.ca.starts_with(self.dir.path()));
        let allow_hosts = allow_hosts.iter().map(|host| host.parse().expect(host)).collect();
        let settings = Config { allow_hosts, extra_ca: Some(self.certificates.ca.clone()), ..Config::default() };
        Outgoing::with_resolver(&settings, resolver).expect("settings")
    }

    async fn https<F>(&self, behave: impl Fn(Connection) -> F + Send + Sync + 'static) -> Server
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        Server::start(bind(LOOPBACK).await, Some(self.acceptor(&[])), behave)
    }

    async fn plain<F>(&self, behave: impl Fn(Connection) -> F + Send + Sync + 'static) -> Server
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        Server::start(bind(LOOPBACK).await, None, behave)
    }

    /// A server that answers each request of an HTTP/2 connection with the frames for its stream.
    async fn http_2(&self, answer: impl Fn(u32) -> Vec<u8> + Clone + Send + Sync + 'static) -> Server {
        Server::start(bind(LOOPBACK).await, Some(self.acceptor(&[b"h2"])), move |connection| {
            talk_http_2(connection, answer.clone())
        })
    }

    /// Two addresses of this machine, one port.
    async fn two_servers_on_one_port(&self) -> (Server, Server) {
        loop {
            let one = bind(IpAddr::from([127, 0, 0, 2])).await;
            let port = one.local_addr().expect("an address").port();
            // Somebody may have this port on the other address.
            if let Ok(other) = TcpListener::bind((LOOPBACK, port)).await {
                let acceptor = self.acceptor(&[]);
                return (
                    Server::start(one, Some(acceptor.clone()), say(HELLO)),
                    Server::start(other, Some(acceptor), say(HELLO)),
                );
            }
        }
    }

    fn acceptor(&self, protocols: &[&[u8]]) -> TlsAcceptor {
        let certificate = |path: &Path| CertificateDer::from_pem_file(path).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(&self.certificates.key).expect("a key");
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate(&self.certificates.cert)], key)
            .expect("a certificate");
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config).into()
    }
}

async fn bind(ip: IpAddr) -> TcpListener {
    TcpListener::bind((ip, 0)).await.expect("a port")
}

fn get(server: &Server, host: &str) -> Request<Vec<u8>> {
    Request::get(server.url(host, "/")).body(Vec::new()).expect("a request")
}

/// A server that treats each connection as it is told, and remembers what it saw.
struct Server {
    address: SocketAddr,
    seen: Arc<Seen>,
    ended: watch::Receiver<usize>,
    task: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: Mutex<Vec<String>>,
}

impl Server {
    fn start<F>(
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        behave: impl Fn(Connection) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let mut server = Self::unused(listener.local_addr().expect("an address"));
        let (seen, behave) = (server.seen.clone(), Arc::new(behave));
        let (tell, ended) = watch::channel(0);
        let tell = Arc::new(tell);
        server.ended = ended;
        server.task = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                seen.connections.fetch_add(1, Ordering::SeqCst);
                let (tls, seen, behave, tell) = (tls.clone(), seen.clone(), behave.clone(), tell.clone());
                tokio::spawn(async move {
                    let stream: io::Result<Box<dyn Stream>> = match tls {
                        Some(tls) => tls.accept(stream).await.map(|stream| Box::new(stream) as Box<dyn Stream>),
                        None => Ok(Box::new(stream)),
                    };
                    if let Ok(stream) = stream {
                        // That the other side goes away is what many tests are about.
                        let _ = behave(Connection { stream, seen }).await;
                    }
                    tell.send_modify(|ended| *ended += 1);
                });
            }
        }));
        server
    }

    /// An address at which nobody listens.
    fn unused(address: SocketAddr) -> Self {
        Self { address, seen: Arc::default(), ended: watch::channel(0).1, task: None }
    }

    fn url(&self, host: &str, path: &str) -> String {
        format!("https://{host}:{}{path}", self.address.port())
    }

    fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    fn requests(&self) -> Vec<String> {
        self.seen.requests.lock().expect("requests").clone()
    }

    /// Waits until this many connections are over.
    async fn ended(&self, count: usize) {
        let mut ended = self.ended.clone();
        let waited = tokio::time::timeout(PATIENCE, ended.wait_for(|ended| *ended >= count)).await;
        waited.expect("the connection ends").expect("the server lives");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

struct Connection {
    stream: Box<dyn Stream>,
    seen: Arc<Seen>,
}

impl Connection {
    /// Reads a request of HTTP/1.1, whose body has the length that it says.
    async fn request(&mut self) -> io::Result<()> {
        let mut text = String::new();
        while !text.ends_with("\r\n\r\n") {
            text.push(self.stream.read_u8().await?.into());
        }
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        self.stream.read_exact(&mut body).await?;
        text.push_str(std::str::from_utf8(&body).expect("text"));
        self.seen.requests.lock().expect("requests").push(text);
        Ok(())
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    async fn until_closed(&mut self) -> io::Result<()> {
        tokio::io::copy(&mut self.stream, &mut tokio::io::sink()).await.map(|_| ())
    }
}

/// Answers with this text, and closes.
fn say(text: &str) -> impl Fn(Connection) -> futures_util::future::BoxFuture<'static, io::Result<()>> + use<> {
    let text = text.to_owned();
    move |mut connection| {
        let text = text.clone();
        Box::pin(async move {
            connection.request().await?;
            connection.write_all(text.as_bytes()).await?;
            connection.stream.shutdown().await
        })
    }
}

/// Answers with the one text, and then with the other, again and again and slowly.
fn drip(
    first: &'static str,
    then: &'static str,
) -> impl Fn(Connection) -> futures_util::future::BoxFuture<'static, io::Result<()>> {
    move |mut connection| {
        Box::pin(async move {
            connection.request().await?;
            connection.write_all(first.as_bytes()).await?;
            let mut pace = tokio::time::interval(Duration::from_millis(100));
            loop {
                pace.tick().await;
                connection.write_all(then.as_bytes()).await?;
            }
        })
    }
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a length").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The header `:status: 200`, from HPACK's static table.
fn headers_frame(stream: u32) -> Vec<u8> {
    frame(1, 4, stream, &[0x88])
}

async fn talk_http_2(mut connection: Connection, answer: impl Fn(u32) -> Vec<u8>) -> io::Result<()> {
    let mut preface = [0; 24];
    connection.stream.read_exact(&mut preface).await?;
    connection.write_all(&frame(4, 0, 0, &[])).await?;
    loop {
        let mut head = [0; 9];
        connection.stream.read_exact(&mut head).await?;
        let [_, a, b, kind, flags, stream @ ..] =
            [0, head[0], head[1], head[3], head[4], head[5], head[6], head[7], head[8]];
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        connection.stream.read_exact(&mut payload).await?;
        match (kind, flags) {
            (1, _) => {
                connection.seen.requests.lock().expect("requests").push("HTTP/2".to_owned());
                connection.write_all(&answer(u32::from_be_bytes(stream))).await?;
            }
            (4, 0) => connection.write_all(&frame(4, 1, 0, &[])).await?,
            _ => {}
        }
    }
}

/// Answers one question after the other; the last answer stays.
struct Names {
    answers: Mutex<VecDeque<Vec<IpAddr>>>,
    asked: AtomicUsize,
}

impl Names {
    fn new(answers: &[&[IpAddr]]) -> Arc<Self> {
        let answers = answers.iter().map(|answer| answer.to_vec()).collect();
        Arc::new(Self { answers: Mutex::new(answers), asked: AtomicUsize::new(0) })
    }

    fn fixed(addresses: &[IpAddr]) -> Arc<Self> {
        Self::new(&[addresses])
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.answers.lock().expect("answers");
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        answer.ok_or_else(|| io::Error::other("there is no such name"))
    }
}

/// A name server that is never heard of.
struct NoAnswer;

#[async_trait]
impl Resolver for NoAnswer {
    async fn resolve(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        std::future::pending().await
    }
}
