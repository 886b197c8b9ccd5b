//! gRPC to another process of ours.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::bail;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tonic::transport::{Channel, Endpoint};

use super::{
    callee::Callee,
    listen::{ListenAddr, bare_host, unix_path},
    tls::client::{self, ClientTls},
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
    pub fn is_https(&self) -> bool {
        matches!(self, Self::Tcp { tls: true, .. })
    }

    /// The address that would be called without encryption; none on a Unix socket, and with https.
    fn plain(&self) -> Option<ListenAddr> {
        match self {
            Self::Tcp { tls: false, host, port } => Some(ListenAddr::Tcp { host: host.clone(), port: *port }),
            Self::Tcp { tls: true, .. } | Self::Unix(_) => None,
        }
    }
}

/// Where a process may be called besides a Unix socket and over https.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Plain {
    Anywhere,
    OnLoopback,
    /// Nowhere, and over https with a certificate of ours alone: what comes from there is every user's token.
    Nowhere,
}

/// A connection that is made when it is first needed, and made again when it breaks.
pub struct Connection {
    pub channel: Channel,
    /// What it is made with, where it is encrypted: its files are to be watched.
    pub tls: Option<ClientTls>,
}

/// The connection that the settings ask for; none where they name no address.
///
/// # Errors
/// Where they say how, but not where; where the address may not be called; where a part of TLS is missing, is without
/// use, or cannot be used. Each names the setting.
pub async fn connect(
    callee: &'static Callee,
    url: Option<&GrpcUrl>,
    tls: &client::Config,
    plain: Plain,
) -> anyhow::Result<Option<Connection>> {
    let flag = callee.flag;
    let without_use =
        |needed: &str| format!("--{flag}-ca, --{flag}-cert, --{flag}-key and --{flag}-peer need {needed}");
    let Some(url) = url else {
        // What is kept there would be kept here, and nobody would notice.
        if tls.is_given() {
            bail!(without_use(&format!("--{flag}")));
        }
        return Ok(None);
    };
    if let Some(address) = url.plain() {
        match plain {
            Plain::Anywhere => {}
            // A name that cannot be resolved yet may be one of the mesh's: not this machine's.
            Plain::OnLoopback if address.is_local().await.unwrap_or(false) => {}
            Plain::OnLoopback => bail!(
                "--{flag} http://{address}: codes and users would cross the network in the clear; \
                 use https://, a Unix socket or loopback, or say --insecure-grpc"
            ),
            Plain::Nowhere => bail!(
                "--{flag} http://{address}: what comes from there is every user's token, and whoever can listen there \
                 could give others; it is a Unix socket (unix:/path), or https:// with --{flag}-ca, --{flag}-cert and \
                 --{flag}-key"
            ),
        }
    }
    let tls = match url {
        GrpcUrl::Tcp { tls: true, host, .. } => {
            if plain == Plain::Nowhere && tls.cert.is_none() && tls.key.is_none() {
                bail!("an https:// --{flag} needs --{flag}-cert and --{flag}-key: nobody else is given a token");
            }
            Some(ClientTls::new(callee, bare_host(host), tls)?)
        }
        _ if tls.is_given() => bail!(without_use(&format!("an https:// --{flag}"))),
        _ => None,
    };
    let origin = match url {
        GrpcUrl::Tcp { host, port, .. } => format!("http://{host}:{port}"),
        GrpcUrl::Unix(_) => format!("http://{flag}"),
    };
    let connector = Connector { callee, url: Arc::new(url.clone()), tls: tls.clone(), pause: Arc::default() };
    // The connector does the TLS, so that its files can change: to the channel, the URL is a plain one.
    let endpoint = Endpoint::from_shared(origin)?;
    let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_| connector.clone().connect()));
    Ok(Some(Connection { channel, tls }))
}

/// Makes connections, and pauses between failures, so that a process that comes back is not overrun.
#[derive(Clone)]
struct Connector {
    callee: &'static Callee,
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
                let name = self.callee.name;
                tracing::warn!(%error, pause_ms = length.as_millis(), "no connection to {name}");
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
