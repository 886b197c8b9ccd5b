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
    /// A Redis or Valkey server, for any number of processes.
    Redis(RedisUrl),
}

/// A single Redis or Valkey server.
#[derive(Clone, PartialEq)]
pub struct RedisUrl {
    pub tls: bool,
    /// A name, or an address (an IPv6 address without brackets).
    pub host: String,
    pub port: u16,
    pub database: i64,
    pub login: Option<Login>,
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
    #[error("it is not one of `file:PATH`, `redis://HOST` and `rediss://HOST`")]
    Scheme,
    #[error("after `file:` comes the path of a file, such as `file:/var/lib/envoy-cimd/store.redb`")]
    Path,
    #[error("it is not a URL ({0}); in user and password, `@`, `:`, `/`, `?`, `#` and `%` are percent-encoded")]
    Url(url::ParseError),
    #[error("it names no host")]
    Host,
    #[error("its port is not a port")]
    Port,
    #[error("what follows the host is the number of a database, such as `/0`, or nothing")]
    Database,
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
        let tls = match text.split_once("://") {
            Some(("redis", _)) => false,
            Some(("rediss", _)) => true,
            _ => return Err(StoreUrlError::Scheme),
        };
        redis(&Url::parse(text).map_err(StoreUrlError::Url)?, tls).map(Self::Redis)
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
        let Self { tls, host, port, database, login } = self;
        let scheme = if *tls { "rediss" } else { "redis" };
        // A user's name may be a password that somebody put in the wrong place.
        let login = if login.is_some() { "…@" } else { "" };
        let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{login}{open}{host}{close}:{port}/{database}")
    }
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

fn redis(url: &Url, tls: bool) -> Result<RedisUrl, StoreUrlError> {
    if url.query().is_some() || url.fragment().is_some() {
        return Err(StoreUrlError::Surplus);
    }
    let host = match url.host() {
        Some(url::Host::Domain(host)) if !host.is_empty() && !host.contains('%') => host.to_owned(),
        Some(url::Host::Ipv4(address)) => address.to_string(),
        Some(url::Host::Ipv6(address)) => address.to_string(),
        Some(url::Host::Domain(_)) | None => return Err(StoreUrlError::Host),
    };
    let port = url.port().unwrap_or(6379);
    if port == 0 {
        return Err(StoreUrlError::Port);
    }
    let database = match url.path().trim_start_matches('/') {
        "" => 0,
        number if number.bytes().all(|byte| byte.is_ascii_digit()) => {
            number.parse().map_err(|_| StoreUrlError::Database)?
        }
        _ => return Err(StoreUrlError::Database),
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
    Ok(RedisUrl { tls, host, port, database, login })
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
        ] {
            let url: StoreUrl = text.parse().expect(text);
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), format!("StoreUrl({shown})"));
        }
        let Ok(StoreUrl::Redis(url)) = "redis://ann:p%40ss%2Fword@redis".parse() else { panic!("a URL") };
        let login = url.login.as_ref().expect("a login");
        assert_eq!((login.user.as_deref(), login.password.as_str()), (Some("ann"), "p@ss/word"));
        assert_eq!(format!("{url:?}"), "RedisUrl(redis://…@redis:6379/0)");
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
