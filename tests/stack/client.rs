//! A client that sends exactly what it is told to.

use std::{net::SocketAddr, path::Path, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{io::AsyncRead, net::TcpStream};
use tokio_rustls::client::TlsStream;
use url::{Position, Url};

use super::PATIENCE;

/// A request, sent as it stands: the path is not mended, the authority need not be the name that TLS asks for.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: &'static str,
    /// The name for TLS.
    pub host: String,
    pub authority: String,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Call {
    pub fn get(host: &str, path: &str) -> Self {
        Self {
            method: "GET",
            host: host.to_owned(),
            authority: host.to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            body: String::new(),
        }
    }

    /// A GET of a URL, as most programs send it.
    pub fn url(url: &Url) -> Self {
        let authority = &url[Position::BeforeHost..Position::AfterPort];
        let path = &url[Position::BeforePath..Position::AfterQuery];
        Self::get(url.host_str().unwrap_or_default(), path).authority(authority)
    }

    pub fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    pub fn authority(mut self, authority: impl Into<String>) -> Self {
        self.authority = authority.into();
        self
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self
    }
}

#[derive(Debug)]
pub struct Answered {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answered {
    /// All values of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|value| value.to_str().expect("text")).collect()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}

/// Sends requests, each on a connection of its own, to one address whatever host they name.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    roots: Option<Arc<rustls::RootCertStore>>,
}

impl Client {
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, roots: None }
    }

    pub fn tls(address: SocketAddr, ca: &Path) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).expect("a certificate")).expect("a CA");
        Self { address, roots: Some(Arc::new(roots)) }
    }

    /// The same client for another address.
    pub fn at(&self, address: SocketAddr) -> Self {
        Self { address, ..self.clone() }
    }

    pub async fn send(&self, version: http::Version, call: Call) -> Result<Answered, String> {
        tokio::time::timeout(PATIENCE, self.exchange(version, call))
            .await
            .map_err(|_| "no answer in time".to_owned())?
    }

    async fn exchange(&self, version: http::Version, call: Call) -> Result<Answered, String> {
        match self.roots {
            None => talk(self.tcp().await?, version, "http", call).await,
            Some(_) => talk(self.connect(version, &call.host).await?, version, "https", call).await,
        }
    }

    async fn tcp(&self) -> Result<TcpStream, String> {
        let stream = TcpStream::connect(self.address).await.map_err(|error| error.to_string())?;
        // As programs set it that speak HTTP/2: without it, each full window waits for a delayed ACK.
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(stream)
    }

    /// A connection of a TLS client, to say anything on.
    pub async fn connect(&self, version: http::Version, host: &str) -> Result<TlsStream<TcpStream>, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let roots = self.roots.as_ref().expect("a TLS client");
        let stream = self.tcp().await?;
        let mut config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(|error| text(&error))?
                .with_root_certificates(Arc::clone(roots))
                .with_no_client_auth();
        let protocol: &[u8] = if version == http::Version::HTTP_2 { b"h2" } else { b"http/1.1" };
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::try_from(host.to_owned()).map_err(|error| text(&error))?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let stream = stream.map_err(|error| text(&error))?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol), "the protocol that was asked for");
        Ok(stream)
    }
}

async fn talk<S>(stream: S, version: http::Version, scheme: &str, call: Call) -> Result<Answered, String>
where
    S: AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut request = http::Request::builder().method(call.method).version(version);
    for (name, value) in &call.headers {
        request = request.header(*name, value);
    }
    let body = Full::new(Bytes::from(call.body));
    let io = TokioIo::new(stream);
    let response = if version == http::Version::HTTP_2 {
        let request = request.uri(format!("{scheme}://{}{}", call.authority, call.path));
        let request = request.body(body).map_err(|error| text(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.map_err(|error| text(&error))?;
        tokio::spawn(connection);
        sender.send_request(request).await
    } else {
        let request = request.uri(&call.path).header("host", &call.authority);
        let request = request.body(body).map_err(|error| text(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(|error| text(&error))?;
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    let (head, body) = response.map_err(|error| text(&error))?.into_parts();
    let body = body.collect().await.map_err(|error| text(&error))?.to_bytes();
    Ok(Answered { status: head.status.as_u16(), headers: head.headers, body })
}
