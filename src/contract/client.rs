//! A choreographer in another process, called over gRPC.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::bail;
use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tonic::{
    Code, ConnectError, Status, TimeoutExpired,
    transport::{Channel, Endpoint},
};

use crate::{
    contract::{
        choreographer::{AuthorizationAnswer, Begin, Begun, Choreographer, Complete, Upstream},
        proto::{
            self, authorization_choreographer_client::AuthorizationChoreographerClient, begin_authorization_response,
            begin_refusal, complete_authorization_request, complete_authorization_response, complete_refusal, user,
        },
    },
    filter::{refusal::Refusal, request::Trace, state::FlowId},
    model::user::User,
    net::{
        listen::{ListenAddr, bare_host, unix_path},
        tls::{ClientTls, ClientTlsSettings},
    },
};

/// The longest a call may take in all. The choreographer's own limit is 8 s, Envoy's 15 s.
const DEADLINE: Duration = Duration::from_secs(10);
/// The longest that the page waits for a name that it can do without.
const DESCRIBE_DEADLINE: Duration = Duration::from_secs(2);
/// The longest that a connection may take to be made.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// After a failed connection the next is not tried for this long, doubling up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Where the choreographer is, and how to prove who is who.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientSettings {
    pub url: ChoreographerUrl,
    pub tls: ClientTlsSettings,
}

impl ClientSettings {
    /// What an `https://` choreographer is called with.
    ///
    /// # Errors
    /// As [`ClientTls::new`], and where there is a setting for it without such a choreographer.
    pub fn tls(&self) -> anyhow::Result<Option<ClientTls>> {
        match &self.url {
            ChoreographerUrl::Tcp { tls: true, host, .. } => ClientTls::new(bare_host(host), &self.tls).map(Some),
            _ if self.tls == ClientTlsSettings::default() => Ok(None),
            _ => bail!(
                "--choreographer-ca, --choreographer-cert, --choreographer-key and --choreographer-peer need an \
                 https:// --choreographer"
            ),
        }
    }
}

/// `http://host:port`, `https://host:port` or `unix:/path`.
#[derive(Clone, Debug, PartialEq)]
pub enum ChoreographerUrl {
    Tcp { tls: bool, host: String, port: u16 },
    Unix(PathBuf),
}

impl FromStr for ChoreographerUrl {
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

impl ChoreographerUrl {
    /// The address that would be called without encryption; none on a Unix socket, and with https.
    pub fn plain(&self) -> Option<ListenAddr> {
        match self {
            Self::Tcp { tls: false, host, port } => Some(ListenAddr::Tcp { host: host.clone(), port: *port }),
            Self::Tcp { tls: true, .. } | Self::Unix(_) => None,
        }
    }
}

/// A connection that is made when it is first needed, and made again when it breaks.
#[derive(Clone, Debug)]
pub struct Client {
    inner: AuthorizationChoreographerClient<Channel>,
}

impl Client {
    /// # Errors
    /// Where the URL is none that can be called.
    pub fn new(url: ChoreographerUrl, tls: Option<ClientTls>) -> anyhow::Result<Self> {
        let origin = match &url {
            ChoreographerUrl::Tcp { host, port, .. } => format!("http://{host}:{port}"),
            ChoreographerUrl::Unix(_) => "http://choreographer".to_owned(),
        };
        let connector = Connector { url: Arc::new(url), tls, pause: Arc::default() };
        // The connector does the TLS, so that its files can change: to the channel, the URL is a plain one.
        let channel = Endpoint::from_shared(origin)?
            .connect_with_connector_lazy(tower::service_fn(move |_| connector.clone().connect()));
        Ok(Self { inner: AuthorizationChoreographerClient::new(channel) })
    }

    /// Calls once, and never again: the request may have arrived whatever is heard of it.
    async fn call<Q, A, F>(
        &self,
        deadline: Duration,
        request: Q,
        trace: &Trace,
        call: impl FnOnce(AuthorizationChoreographerClient<Channel>, tonic::Request<Q>) -> F,
    ) -> Result<A, Refusal>
    where
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let mut request = tonic::Request::new(request);
        for (name, value) in [("traceparent", &trace.parent), ("tracestate", &trace.state)] {
            if let Some(value) = value.as_ref().and_then(|value| value.parse().ok()) {
                request.metadata_mut().insert(name, value);
            }
        }
        request.set_timeout(deadline);
        match timeout(deadline, call(self.inner.clone(), request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => {
                // With TLS 1.3 it shows only here that the other side does not let us in.
                let reason = anyhow::Error::from(status.clone());
                tracing::warn!("a call of the choreographer failed: {reason:#}");
                Err(refusal(&status))
            }
            Err(_) => Err(Refusal::Timeout),
        }
    }
}

#[async_trait]
impl Choreographer for Client {
    async fn describe(&self, upstream: Upstream, trace: &Trace) -> Result<Option<String>, Refusal> {
        let request = proto::DescribeUpstreamRequest {
            upstream: upstream.url,
            authorization_server: upstream.authorization_server.unwrap_or_default(),
        };
        let answer = self
            .call(DESCRIBE_DEADLINE, request, trace, |mut client, request| async move {
                client.describe_upstream(request).await
            })
            .await?;
        Ok(Some(answer.authorization_server).filter(|issuer| !issuer.is_empty()))
    }

    async fn begin(&self, begin: Begin, trace: &Trace) -> Result<Begun, Refusal> {
        use begin_authorization_response::Outcome;
        use begin_refusal::Reason;
        let request = proto::BeginAuthorizationRequest {
            client_id: begin.client_id,
            redirect_uri: begin.redirect_uri,
            upstream: begin.upstream.url,
            authorization_server: begin.upstream.authorization_server.unwrap_or_default(),
            user: Some(begin.user.into()),
            browser_hash: begin.browser_hash.to_vec(),
            return_to: begin.return_to,
        };
        let answer =
            self.call(DEADLINE, request, trace, |mut client, request| async move {
                client.begin_authorization(request).await
            })
            .await?;
        match answer.outcome {
            Some(Outcome::Begun(answer)) => begun(answer).ok_or(Refusal::ChoreographerFailed),
            Some(Outcome::Refusal(refusal)) => Err(match refusal.reason() {
                Reason::AuthorizationServerUnusable => Refusal::AuthorizationServerUnusable(refusal.message),
                Reason::TooManyFlows => Refusal::TooManyFlows,
                Reason::Unspecified => Refusal::ChoreographerFailed,
            }),
            None => Err(Refusal::ChoreographerFailed),
        }
    }

    async fn complete(&self, complete: Complete, trace: &Trace) -> Result<String, Refusal> {
        use complete_authorization_request::Answer;
        use complete_authorization_response::Outcome;
        use complete_refusal::Reason;
        let request = proto::CompleteAuthorizationRequest {
            flow_id: complete.flow_id.0.to_vec(),
            redirect_uri: complete.redirect_uri,
            user: Some(complete.user.into()),
            browser_hash: complete.browser_hash.to_vec(),
            answer: Some(match complete.answer {
                AuthorizationAnswer::Code(code) => Answer::Code(code),
                AuthorizationAnswer::Error { error, description } => Answer::Error(proto::AuthorizationError {
                    error,
                    error_description: description.unwrap_or_default(),
                }),
            }),
            iss: complete.iss,
        };
        let answer = self
            .call(DEADLINE, request, trace, |mut client, request| async move {
                client.complete_authorization(request).await
            })
            .await?;
        match answer.outcome {
            Some(Outcome::Completed(completed)) => Ok(completed.return_to),
            Some(Outcome::Refusal(refusal)) => Err(match refusal.reason() {
                Reason::WrongContext => Refusal::WrongContext,
                Reason::UnknownFlow => Refusal::UnknownFlow,
                Reason::IssuerMismatch => Refusal::IssuerMismatch,
                Reason::AuthorizationError => Refusal::AuthorizationError,
                Reason::AlreadyUsed => Refusal::AlreadyUsed { return_to: refusal.return_to },
                Reason::ExchangeFailed => Refusal::ExchangeFailed,
                Reason::Unspecified => Refusal::ChoreographerFailed,
            }),
            None => Err(Refusal::ChoreographerFailed),
        }
    }
}

/// Only a failed connection proves that nothing was sent. (A code says less: a connection that breaks is `CANCELLED`,
/// as a deadline is.)
fn refusal(status: &Status) -> Refusal {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return Refusal::ChoreographerUnavailable;
        }
        if error.is::<TimeoutExpired>() {
            return Refusal::Timeout;
        }
        source = error.source();
    }
    match status.code() {
        Code::DeadlineExceeded => Refusal::Timeout,
        _ => Refusal::ChoreographerFailed,
    }
}

/// None where the answer keeps no contract.
fn begun(begun: proto::Begun) -> Option<Begun> {
    let flow_id = FlowId(begun.flow_id.try_into().ok()?);
    let expires_at = u64::try_from(begun.expires_at?.seconds).ok()?;
    Some(Begun { flow_id, expires_at, authorization_url: begun.authorization_url })
}

impl From<User> for proto::User {
    fn from(user: User) -> Self {
        let kind = match user {
            User::Subject { issuer, subject } => user::Kind::Subject(proto::Subject { issuer, subject }),
            User::Single => user::Kind::SingleUser(proto::SingleUser {}),
        };
        Self { kind: Some(kind) }
    }
}

/// Makes connections, and pauses between failures, so that a choreographer that comes back is not overrun.
#[derive(Clone)]
struct Connector {
    url: Arc<ChoreographerUrl>,
    tls: Option<ClientTls>,
    pause: Arc<Mutex<Pause>>,
}

#[derive(Debug, Default)]
struct Pause {
    length: Duration,
    until: Option<Instant>,
}

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

impl Connector {
    async fn connect(self) -> io::Result<TokioIo<Pin<Box<dyn Io>>>> {
        let paused = |pause: &Pause| pause.until.is_some_and(|until| Instant::now() < until);
        if paused(&self.pause.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "waiting after a failed connection"));
        }
        let made = timeout(CONNECT_DEADLINE, self.dial()).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let mut pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        let (shortest, longest) = BACKOFF;
        *pause = match &made {
            Ok(_) => Pause::default(),
            Err(error) => {
                let length = (pause.length * 2).clamp(shortest, longest);
                tracing::warn!(%error, pause_ms = length.as_millis(), "no connection to the choreographer");
                Pause { length, until: Some(Instant::now() + length) }
            }
        };
        made.map(TokioIo::new)
    }

    async fn dial(&self) -> io::Result<Pin<Box<dyn Io>>> {
        let (host, port) = match &*self.url {
            ChoreographerUrl::Unix(path) => return Ok(Box::pin(UnixStream::connect(path).await?)),
            ChoreographerUrl::Tcp { host, port, .. } => (bare_host(host), *port),
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
        let tcp = |tls, host: &str, port| ChoreographerUrl::Tcp { tls, host: host.to_owned(), port };
        for (text, url) in [
            ("http://127.0.0.1:9003", tcp(false, "127.0.0.1", 9003)),
            ("https://choreographer.mesh", tcp(true, "choreographer.mesh", 443)),
            ("http://[::1]:9003/", tcp(false, "[::1]", 9003)),
            ("unix:/run/c.sock", ChoreographerUrl::Unix("/run/c.sock".into())),
        ] {
            assert_eq!(text.parse(), Ok(url));
        }
        for bad in ["", "127.0.0.1:9003", "unix:c.sock", "ftp://a", "http://a/b", "http://a?b", "http://u@a"] {
            assert!(bad.parse::<ChoreographerUrl>().is_err(), "{bad}");
        }
    }
}
