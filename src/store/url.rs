//! The name of a store, as `--store` gives it.

use std::{fmt, path::PathBuf, str::FromStr};

use percent_encoding::percent_decode_str;
use url::Url;
use zeroize::Zeroizing;

/// Where flows and tokens are kept. Neither `Debug` nor `Display` shows who logs in, or with what.
#[derive(Clone, PartialEq)]
pub enum StoreUrl {
    /// A file on this machine, for one process.
    File(PathBuf),
    /// Redis or Valkey, for any number of processes.
    Redis(RedisUrl),
}

/// Redis or Valkey: one server, or several.
#[derive(Clone, PartialEq)]
pub struct RedisUrl {
    pub tls: bool,
    pub servers: RedisServers,
    /// Of a cluster, 0: it has no other.
    pub database: i64,
    /// Of the servers, and of sentinels that want one.
    pub login: Option<Login>,
}

/// How the server that has a key is found.
#[derive(Clone, Debug, PartialEq)]
pub enum RedisServers {
    /// It is this one.
    One(Address),
    /// Sentinels tell where the master is that they know by this name.
    Sentinel { sentinels: Vec<Address>, master: String },
    /// Each node of a cluster knows which one has which keys. These are asked first; they need not be all.
    Cluster(Vec<Address>),
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// A name, or an address (an IPv6 address without brackets).
    pub host: String,
    pub port: u16,
}

/// Who we are to Redis. It has no `Debug`.
#[derive(Clone, PartialEq)]
pub struct Login {
    /// None is Redis's `default` user.
    pub user: Option<String>,
    pub password: Zeroizing<String>,
}

/// Why a text names no store. Nothing of it is repeated: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum StoreUrlError {
    #[error(
        "it is not one of `file:PATH`, `redis://HOST`, `redis+sentinel://HOST,HOST/MASTER` and \
         `redis+cluster://HOST,HOST` (over TLS: `rediss`)"
    )]
    Scheme,
    #[error("after `file:` comes the path of a file, such as `file:/var/lib/envoy-cimd/store.redb`")]
    Path,
    #[error("it is not a URL ({0}); in user and password, `@`, `:`, `/`, `?`, `#` and `%` are percent-encoded")]
    Url(url::ParseError),
    #[error("it names no host, or several where only sentinels and a cluster may be several")]
    Host,
    #[error("its port is not a port")]
    Port,
    #[error("what follows the host is the number of a database, such as `/0`, or nothing")]
    Database,
    #[error(
        "what follows the sentinels is the name of their master, such as `/mymaster`: letters, digits, `.`, `-`, `_`"
    )]
    Master,
    #[error("a cluster has no databases: nothing follows its hosts")]
    ClusterDatabase,
    #[error("it has a query or a fragment, and neither means anything here")]
    Surplus,
    #[error("it has a user without a password; a password alone is `redis://:PASSWORD@HOST`")]
    NoPassword,
    #[error("its user or password is not UTF-8")]
    NotUtf8,
}

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("file:") {
            return file(path).map(Self::File);
        }
        let (scheme, rest) = text.split_once("://").ok_or(StoreUrlError::Scheme)?;
        let (tls, kind) = match scheme.split_once('+').unwrap_or((scheme, "")) {
            ("redis", kind) => (false, kind),
            ("rediss", kind) => (true, kind),
            _ => return Err(StoreUrlError::Scheme),
        };
        let kind = match kind {
            "" if !scheme.contains('+') => Kind::One,
            "sentinel" => Kind::Sentinel,
            "cluster" => Kind::Cluster,
            _ => return Err(StoreUrlError::Scheme),
        };
        redis(rest, tls, kind).map(Self::Redis)
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Redis(url) => url.fmt(f),
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreUrl({self})")
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tls, servers, database, login } = self;
        let scheme = if *tls { "rediss" } else { "redis" };
        // A user's name may be a password that somebody put in the wrong place.
        let login = if login.is_some() { "…@" } else { "" };
        match servers {
            RedisServers::One(address) => write!(f, "{scheme}://{login}{address}/{database}"),
            RedisServers::Sentinel { sentinels, master } => {
                write!(f, "{scheme}+sentinel://{login}{}/{master}/{database}", list(sentinels))
            }
            RedisServers::Cluster(nodes) => write!(f, "{scheme}+cluster://{login}{}", list(nodes)),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{open}{}{close}:{}", self.host, self.port)
    }
}

fn list(addresses: &[Address]) -> String {
    addresses.iter().map(Address::to_string).collect::<Vec<_>>().join(",")
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

fn file(path: &str) -> Result<PathBuf, StoreUrlError> {
    // `file:///path` is what others write for `file:/path`; `file://path` would be a host.
    let path = match path.strip_prefix("//") {
        Some(path) if path.starts_with('/') => path,
        Some(_) => return Err(StoreUrlError::Path),
        None => path,
    };
    if path.is_empty() || path.ends_with('/') || path.contains('\0') {
        return Err(StoreUrlError::Path);
    }
    Ok(path.into())
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    One,
    Sentinel,
    Cluster,
}

/// `rest` is what follows `://`. A URL has one host, so each host is read as that of a URL of its own.
fn redis(rest: &str, tls: bool, kind: Kind) -> Result<RedisUrl, StoreUrlError> {
    let parse = |rest: &str| Url::parse(&format!("redis://{rest}")).map_err(StoreUrlError::Url);
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (login, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    let (first, others) = match hosts.split_once(',') {
        Some((first, others)) if kind != Kind::One => (first, Some(others)),
        Some(_) => return Err(StoreUrlError::Host),
        None => (hosts, None),
    };
    let url = parse(&format!("{login}{first}{path}"))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(StoreUrlError::Surplus);
    }
    let port = if kind == Kind::Sentinel { 26379 } else { 6379 };
    let mut addresses = vec![address(&url, port)?];
    for host in others.into_iter().flat_map(|others| others.split(',')) {
        addresses.push(address(&parse(host)?, port)?);
    }
    let path = url.path().trim_start_matches('/');
    let (servers, database) = match kind {
        Kind::One => {
            let [address] = <[Address; 1]>::try_from(addresses).map_err(|_| StoreUrlError::Host)?;
            (RedisServers::One(address), database(path)?)
        }
        Kind::Sentinel => {
            let (master, number) = path.split_once('/').unwrap_or((path, ""));
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
            if master.is_empty() || !master.bytes().all(is_name) {
                return Err(StoreUrlError::Master);
            }
            (RedisServers::Sentinel { sentinels: addresses, master: master.to_owned() }, database(number)?)
        }
        Kind::Cluster if path.is_empty() || path == "0" => (RedisServers::Cluster(addresses), 0),
        Kind::Cluster => return Err(StoreUrlError::ClusterDatabase),
    };
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(String::from);
    let login = match (url.username(), url.password().unwrap_or_default()) {
        ("", "") => None,
        (_, "") => return Err(StoreUrlError::NoPassword),
        (user, password) => Some(Login {
            user: (!user.is_empty()).then(|| decoded(user)).transpose().map_err(|_| StoreUrlError::NotUtf8)?,
            password: decoded(password).map(Zeroizing::new).map_err(|_| StoreUrlError::NotUtf8)?,
        }),
    };
    Ok(RedisUrl { tls, servers, database, login })
}

fn address(url: &Url, default_port: u16) -> Result<Address, StoreUrlError> {
    let host = match url.host() {
        Some(url::Host::Domain(host)) if !host.is_empty() && !host.contains('%') => host.to_owned(),
        Some(url::Host::Ipv4(address)) => address.to_string(),
        Some(url::Host::Ipv6(address)) => address.to_string(),
        Some(url::Host::Domain(_)) | None => return Err(StoreUrlError::Host),
    };
    match url.port().unwrap_or(default_port) {
        0 => Err(StoreUrlError::Port),
        port => Ok(Address { host, port }),
    }
}

fn database(number: &str) -> Result<i64, StoreUrlError> {
    match number {
        "" => Ok(0),
        number if number.bytes().all(|byte| byte.is_ascii_digit()) => {
            number.parse().map_err(|_| StoreUrlError::Database)
        }
        _ => Err(StoreUrlError::Database),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_have_names() {
        for (text, shown) in [
            ("file:/var/lib/store.redb", "file:/var/lib/store.redb"),
            ("file:store.redb", "file:store.redb"),
            ("file:./a b/store.redb", "file:./a b/store.redb"),
            ("file:///var/lib/store.redb", "file:/var/lib/store.redb"),
            ("redis://redis", "redis://redis:6379/0"),
            ("redis://redis:7000/3", "redis://redis:7000/3"),
            ("redis://127.0.0.1/", "redis://127.0.0.1:6379/0"),
            ("rediss://[::1]:7000", "rediss://[::1]:7000/0"),
            ("redis://:hunter2@redis", "redis://…@redis:6379/0"),
            ("rediss://ann:hunter2@redis.example/1", "rediss://…@redis.example:6379/1"),
            ("redis+sentinel://one/mymaster", "redis+sentinel://one:26379/mymaster/0"),
            (
                "rediss+sentinel://ann:hunter2@one,two:7000,[::1]/my_master.1-a/3",
                "rediss+sentinel://…@one:26379,two:7000,[::1]:26379/my_master.1-a/3",
            ),
            ("redis+cluster://one,127.0.0.1:7000", "redis+cluster://one:6379,127.0.0.1:7000"),
            ("rediss+cluster://:hunter2@one/0", "rediss+cluster://…@one:6379"),
        ] {
            let url: StoreUrl = text.parse().expect(text);
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), format!("StoreUrl({shown})"));
        }
        let Ok(StoreUrl::Redis(url)) = "redis://ann:p%40ss%2Fword@redis".parse() else { panic!("a URL") };
        let login = url.login.as_ref().expect("a login");
        assert_eq!((login.user.as_deref(), login.password.as_str()), (Some("ann"), "p@ss/word"));
        assert_eq!(format!("{url:?}"), "RedisUrl(redis://…@redis:6379/0)");
        let Ok(StoreUrl::Redis(url)) = "redis+cluster://ann:p%40ss%2Cword@one,two".parse() else { panic!("a URL") };
        let login = url.login.as_ref().expect("a login");
        assert_eq!((login.user.as_deref(), login.password.as_str()), (Some("ann"), "p@ss,word"));
    }

    #[test]
    fn each_mistake_has_its_error() {
        for (text, error) in [
            ("", StoreUrlError::Scheme),
            ("hunter2", StoreUrlError::Scheme),
            ("/var/lib/store.redb", StoreUrlError::Scheme),
            ("redis:hunter2", StoreUrlError::Scheme),
            ("http://hunter2", StoreUrlError::Scheme),
            ("unix:///hunter2", StoreUrlError::Scheme),
            ("file:", StoreUrlError::Path),
            ("file:/hunter2/", StoreUrlError::Path),
            ("file://hunter2", StoreUrlError::Path),
            ("redis://", StoreUrlError::Host),
            ("redis:///0", StoreUrlError::Host),
            ("redis://%68unter2", StoreUrlError::Host),
            ("redis://one,hunter2", StoreUrlError::Host),
            ("redis+://redis", StoreUrlError::Scheme),
            ("redis+hunter2://redis", StoreUrlError::Scheme),
            ("file+sentinel://hunter2", StoreUrlError::Scheme),
            ("redis+sentinel://one,/mymaster", StoreUrlError::Host),
            ("redis+sentinel://one,two:0/mymaster", StoreUrlError::Port),
            ("redis+sentinel://one,two:hunter2/mymaster", StoreUrlError::Url(url::ParseError::InvalidPort)),
            ("redis+sentinel://one,two", StoreUrlError::Master),
            ("redis+sentinel://one/hunter%32", StoreUrlError::Master),
            ("redis+sentinel://one/mymaster/hunter2", StoreUrlError::Database),
            ("redis+sentinel://one/mymaster?password=hunter2", StoreUrlError::Surplus),
            ("redis+cluster://one,two/1", StoreUrlError::ClusterDatabase),
            ("redis+cluster://hunter2@one,two", StoreUrlError::NoPassword),
            ("redis://redis:0", StoreUrlError::Port),
            ("redis://redis:hunter2", StoreUrlError::Url(url::ParseError::InvalidPort)),
            ("redis://:hunter/2@redis", StoreUrlError::Url(url::ParseError::EmptyHost)),
            ("redis://:hunter2@", StoreUrlError::Url(url::ParseError::EmptyHost)),
            ("redis://redis/hunter2", StoreUrlError::Database),
            ("redis://redis/-1", StoreUrlError::Database),
            ("redis://redis/99999999999999999999", StoreUrlError::Database),
            ("redis://redis/?password=hunter2", StoreUrlError::Surplus),
            ("rediss://redis/#insecure", StoreUrlError::Surplus),
            ("redis://hunter2@redis", StoreUrlError::NoPassword),
            ("redis://hunter2:@redis", StoreUrlError::NoPassword),
            ("redis://:hunter2%ff@redis", StoreUrlError::NotUtf8),
        ] {
            let found = text.parse::<StoreUrl>().expect_err(text);
            assert_eq!(found, error, "{text}");
            assert!(!found.to_string().contains("hunter"), "{text}");
        }
    }
}
