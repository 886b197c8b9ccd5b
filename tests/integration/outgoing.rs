//! Fetches from real servers, most of which mean no good.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use envoy_cimd::net::outgoing::{Config, Outgoing, error::FetchError, resolver::Resolver};
use http::Request;
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

use crate::stack::Certificates;

mod addresses;
mod answers;

const PATIENCE: Duration = Duration::from_secs(20);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

/// More than any buffer on the way can hold.
const FLOOD: usize = 200 << 20;

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
