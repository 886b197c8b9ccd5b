//! gRPC to another process of ours.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tonic::transport::{Channel, Endpoint};

use super::{
    listen::{ListenAddr, bare_host, unix_path},
    tls::client::ClientTls,
};

/// The longest that a connection may take to be made.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// After a failed connection the next is not tried for this long, doubling up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// `http://host:port`, `https://host:port` or `unix:/path`.
#[derive(Clone, Debug, PartialEq)]
pub enum GrpcUrl {
    Tcp { tls: bool, host: String, port: u16 },
    Unix(PathBuf),
}

impl FromStr for GrpcUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "is written `http://host:port`, `https://host:port` or `unix:/path`";
        if let Some(path) = unix_path(text) {
            return path.map(Self::Unix);
        }
        let url = url::Url::parse(text).map_err(|_| FORM)?;
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && !text.contains('@');
        match (url.scheme(), url.host_str(), url.port_or_known_default()) {
            (scheme @ ("http" | "https"), Some(host), Some(port)) if bare => {
                Ok(Self::Tcp { tls: scheme == "https", host: host.to_owned(), port })
            }
            _ => Err(FORM),
        }
    }
}

impl GrpcUrl {
    /// The address that would be called without encryption; none on a Unix socket, and with https.
    pub fn plain(&self) -> Option<ListenAddr> {
        match self {
            Self::Tcp { tls: false, host, port } => Some(ListenAddr::Tcp { host: host.clone(), port: *port }),
            Self::Tcp { tls: true, .. } | Self::Unix(_) => None,
        }
    }
}

/// A connection that is made when it is first needed, and made again when it breaks; `tls` goes with an https URL.
///
/// # Errors
/// Where the URL is none that can be called.
pub fn channel(url: GrpcUrl, tls: Option<ClientTls>) -> anyhow::Result<Channel> {
    let origin = match &url {
        GrpcUrl::Tcp { host, port, .. } => format!("http://{host}:{port}"),
        GrpcUrl::Unix(_) => "http://choreographer".to_owned(),
    };
    let connector = Connector { url: Arc::new(url), tls, pause: Arc::default() };
    // The connector does the TLS, so that its files can change: to the channel, the URL is a plain one.
    let endpoint = Endpoint::from_shared(origin)?;
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| connector.clone().connect())))
}

/// Makes connections, and pauses between failures, so that a choreographer that comes back is not overrun.
#[derive(Clone)]
struct Connector {
    url: Arc<GrpcUrl>,
    tls: Option<ClientTls>,
    pause: Arc<Mutex<Pause>>,
}

#[derive(Debug, Default)]
struct Pause {
    length: Duration,
    /// When the next connection may be tried, and why the last one failed.
    until: Option<(Instant, String)>,
}

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

impl Connector {
    async fn connect(self) -> io::Result<TokioIo<Pin<Box<dyn Io>>>> {
        if let Some((until, error)) = &self.pause.lock().unwrap_or_else(PoisonError::into_inner).until
            && Instant::now() < *until
        {
            return Err(io::Error::other(error.clone()));
        }
        let made = timeout(CONNECT_DEADLINE, self.dial()).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let mut pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        let (shortest, longest) = BACKOFF;
        *pause = match &made {
            Ok(_) => Pause::default(),
            Err(error) => {
                let length = (pause.length * 2).clamp(shortest, longest);
                tracing::warn!(%error, pause_ms = length.as_millis(), "no connection to the choreographer");
                Pause { length, until: Some((Instant::now() + length, error.to_string())) }
            }
        };
        made.map(TokioIo::new)
    }

    async fn dial(&self) -> io::Result<Pin<Box<dyn Io>>> {
        let (host, port) = match &*self.url {
            GrpcUrl::Unix(path) => return Ok(Box::pin(UnixStream::connect(path).await?)),
            GrpcUrl::Tcp { host, port, .. } => (bare_host(host), *port),
        };
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            Some(tls) => Box::pin(tls.connect(stream).await?),
            None => Box::pin(stream),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let tcp = |tls, host: &str, port| GrpcUrl::Tcp { tls, host: host.to_owned(), port };
        for (text, url) in [
            ("http://127.0.0.1:9003", tcp(false, "127.0.0.1", 9003)),
            ("https://choreographer.mesh", tcp(true, "choreographer.mesh", 443)),
            ("http://[::1]:9003/", tcp(false, "[::1]", 9003)),
            ("unix:/run/c.sock", GrpcUrl::Unix("/run/c.sock".into())),
        ] {
            assert_eq!(text.parse(), Ok(url));
        }
        for bad in ["", "127.0.0.1:9003", "unix:c.sock", "ftp://a", "http://a/b", "http://a?b", "http://u@a"] {
            assert!(bad.parse::<GrpcUrl>().is_err(), "{bad}");
        }
    }
}
