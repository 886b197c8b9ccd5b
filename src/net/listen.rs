//! Where the process listens: a TCP address or a Unix socket.

use std::{
    fmt,
    fs::Permissions,
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use rustix::{fs::Mode, process::umask};
use tokio::net::{TcpListener, UnixListener, UnixStream, lookup_host};

/// `host:port` or `unix:/path`.
#[derive(Clone, Debug, PartialEq)]
pub enum ListenAddr {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

impl FromStr for ListenAddr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = unix_path(text) {
            return path.map(Self::Unix);
        }
        let (host, port) = text.rsplit_once(':').ok_or("is written `host:port` or `unix:/path`")?;
        if host.is_empty() {
            return Err("has no host before the port");
        }
        let port = port.parse().map_err(|_| "has a port that is not a number from 0 to 65535")?;
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl ListenAddr {
    /// Whether only this machine can reach it.
    ///
    /// # Errors
    /// Where the host's name cannot be resolved.
    pub async fn is_local(&self) -> io::Result<bool> {
        Ok(match self {
            Self::Tcp { host, port } => {
                lookup_host(format!("{host}:{port}")).await?.all(|addr| addr.ip().is_loopback())
            }
            Self::Unix(_) => true,
        })
    }

    /// # Errors
    /// Where the address is taken, or not to be had.
    pub async fn bind(&self, mode: SocketMode) -> io::Result<Listener> {
        match self {
            Self::Tcp { host, port } => TcpListener::bind(format!("{host}:{port}")).await.map(Listener::Tcp),
            Self::Unix(path) => {
                remove_stale_socket(path).await?;
                let listener = Listener::Unix(bind_for_us_alone(path)?, SocketFile(path.clone()));
                std::fs::set_permissions(path, Permissions::from_mode(mode.0))?;
                Ok(listener)
            }
        }
    }
}

/// Binds a socket that nobody but this process's user can connect to until it is given another mode: who connects
/// before is waiting in its queue, whatever mode comes then.
///
/// The umask is the whole process's. One that lets the owner do everything does no harm to what another thread makes
/// meanwhile, but two threads here at once would each put back the other's.
fn bind_for_us_alone(path: &Path) -> io::Result<UnixListener> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let usual = umask(Mode::RWXG | Mode::RWXO);
    let bound = UnixListener::bind(path);
    umask(usual);
    bound
}

/// The path of `unix:/path`; none where the text is no Unix socket's.
pub fn unix_path(text: &str) -> Option<Result<PathBuf, &'static str>> {
    let path = text.strip_prefix("unix:")?;
    let absolute = path.starts_with('/').then(|| path.into());
    Some(absolute.ok_or("a Unix socket is written `unix:/path`, with an absolute path"))
}

/// A host as sockets take it: an IPv6 address without the brackets that it has in URLs.
pub fn bare_host(host: &str) -> &str {
    host.trim_matches(['[', ']'])
}

/// The permissions of a Unix socket's file: who may write to it may connect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SocketMode(u32);

impl SocketMode {
    /// Whether every account of the machine may connect, whose folder it may reach.
    pub fn lets_everybody_in(self) -> bool {
        self.0 & 0o002 != 0
    }
}

/// The owner and the group.
impl Default for SocketMode {
    fn default() -> Self {
        Self(0o660)
    }
}

impl FromStr for SocketMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match u32::from_str_radix(text, 8) {
            // Who can neither read nor write cannot connect.
            Ok(mode) if mode <= 0o777 && mode & 0o222 != 0 => Ok(Self(mode)),
            _ => Err("is octal permissions such as 660"),
        }
    }
}

/// A bound listener.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

impl Listener {
    /// The bound address in the spelling of [`ListenAddr`], with the real port where 0 was asked for.
    ///
    /// # Errors
    /// Where the system does not tell.
    pub fn address(&self) -> io::Result<String> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(|addr| addr.to_string()),
            Self::Unix(_, SocketFile(path)) => Ok(format!("unix:{}", path.display())),
        }
    }
}

/// A socket's file, which goes with its listener.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nobody can be told, and the next start removes it as stale.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A killed process leaves its socket behind, which nobody answers: that one may go. A living one stays, and so does
/// what is no socket; binding then fails.
async fn remove_stale_socket(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    match UnixStream::connect(path).await {
        Err(error) if is_socket && error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Ok(_) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["127.0.0.1:9001", "[::1]:0", "localhost:65535", "unix:/run/envoy-cimd.sock"] {
            assert_eq!(good.parse::<ListenAddr>().expect(good).to_string(), good);
        }
        for (bad, error) in [
            ("9001", "is written `host:port` or `unix:/path`"),
            (":9001", "has no host before the port"),
            ("localhost:70000", "has a port that is not a number from 0 to 65535"),
            ("localhost:", "has a port that is not a number from 0 to 65535"),
            ("unix:run", "a Unix socket is written `unix:/path`, with an absolute path"),
        ] {
            assert_eq!(bad.parse::<ListenAddr>(), Err(error), "{bad}");
        }
    }

    /// The umask is the whole process's.
    static UMASK: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    /// Under a umask that lets everybody in, as a container or a unit may set it.
    #[tokio::test]
    async fn nobody_is_let_in_before_the_mode_is_set() {
        let dir = tempfile::tempdir().expect("a folder");
        let _alone = UMASK.lock().await;
        let usual = umask(Mode::empty());
        let path = dir.path().join("s");
        let bound = bind_for_us_alone(&path);
        let after = umask(usual);
        let mode = std::fs::metadata(&path).expect("the socket").permissions().mode() & 0o777;
        assert_eq!((bound.is_ok(), mode), (true, 0o700));
        assert_eq!(after, Mode::empty(), "the umask is as it was");
    }

    #[tokio::test]
    async fn only_a_stale_socket_is_replaced() {
        let _alone = UMASK.lock().await;
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("s");
        let address = ListenAddr::Unix(path.clone());
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
        let living = address.bind(SocketMode(0o600)).await.expect("the stale socket is replaced");
        assert_eq!(
            address.bind(SocketMode(0o600)).await.expect_err("a living one is not").kind(),
            io::ErrorKind::AddrInUse
        );
        assert_eq!(std::fs::metadata(&path).expect("the socket").permissions().mode() & 0o777, 0o600);
        drop(living);
        assert!(!path.exists(), "the file goes with the listener");
        std::fs::write(&path, "a file of somebody's").expect("write");
        assert!(address.bind(SocketMode(0o600)).await.is_err(), "what is no socket is left alone");
        assert!(path.exists());
    }
}
