//! The clients that an operator registered at authorization servers by hand: the `clients:` of the config file.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use url::Url;

use super::{
    credentials::{AuthMethod, Credentials, Proof},
    secret_file::{SecretFile, SecretFileError},
};
use crate::{
    exchange::discovery::documents::server_addresses,
    model::{
        client::ClientId,
        issuer::canonical,
        paths::Paths,
        public_url::{PublicUrl, PublicUrlError},
    },
};

/// A client as an operator writes it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ClientSpec {
    pub issuer: String,
    pub client_id: String,
    pub client_secret_file: Option<PathBuf>,
    /// Where it is not said, `none` without a secret and `client_secret_basic` with one (RFC 7591, section 2).
    pub token_endpoint_auth_method: Option<AuthMethod>,
    /// The `from` of each route that it is for.
    pub routes: Vec<String>,
}

/// A client that can be used.
#[derive(Debug)]
pub struct PreRegistered {
    pub issuer: String,
    pub client_id: String,
    pub method: AuthMethod,
    pub routes: Vec<PublicUrl>,
    secret: Option<SecretFile>,
}

/// The clients of a config file.
#[derive(Debug, Default)]
pub struct Configured {
    /// In the order of the file.
    pub all: Vec<Arc<PreRegistered>>,
    /// By issuer, in its canonical form, and by the document of a route.
    by_route: HashMap<(String, ClientId), Arc<PreRegistered>>,
}

/// An entry of `clients:` that cannot be used. Nothing of a secret is repeated.
#[derive(Debug, thiserror::Error)]
#[error("clients[{index}] ({issuer}): {problem}")]
pub struct ClientError {
    index: usize,
    issuer: String,
    problem: ClientProblem,
}

#[derive(Debug, thiserror::Error)]
enum ClientProblem {
    #[error("`issuer` must be an https URL without user name, query and fragment")]
    Issuer,
    #[error("`client_id` must be printable ASCII (RFC 6749, appendix A.1), and not empty")]
    ClientId,
    #[error("`routes` is empty: a client is for the routes that it lists alone")]
    NoRoute,
    #[error("`routes`: {from} {error}")]
    Route { from: String, error: PublicUrlError },
    #[error("clients[{other}] is for this issuer and the route {from} too")]
    Twice { other: usize, from: PublicUrl },
    #[error("`token_endpoint_auth_method` is none, which takes no `client_secret_file`")]
    SecretWithNone,
    #[error("`token_endpoint_auth_method` is {}, which needs a `client_secret_file`", .0.name())]
    NoSecret(AuthMethod),
    #[error("`client_secret_file` {} {error}", path.display())]
    Secret { path: PathBuf, error: SecretFileError },
}

impl Configured {
    /// Checks a list, and reads its secrets.
    ///
    /// # Errors
    /// The first entry that is wrong, or is for an issuer and a route that an earlier one is for.
    pub fn new(specs: &[ClientSpec], paths: &Paths) -> Result<Self, ClientError> {
        let mut configured = Self::default();
        let mut entries: HashMap<(String, ClientId), usize> = HashMap::new();
        for (index, spec) in specs.iter().enumerate() {
            let at = |problem| ClientError { index, issuer: shown(&spec.issuer), problem };
            let client = Arc::new(PreRegistered::new(spec).map_err(at)?);
            for from in &client.routes {
                let key = (canonical(&client.issuer).to_owned(), paths.client_id(from));
                if let Some(other) = entries.insert(key.clone(), index) {
                    return Err(at(ClientProblem::Twice { other, from: from.clone() }));
                }
                configured.by_route.insert(key, Arc::clone(&client));
            }
            configured.all.push(client);
        }
        Ok(configured)
    }

    /// The client of a route at an issuer.
    pub fn of(&self, issuer: &str, document: &ClientId) -> Option<&Arc<PreRegistered>> {
        self.by_route.get(&(canonical(issuer).to_owned(), document.clone()))
    }

    /// The files of their secrets.
    pub fn secret_files(&self) -> impl Iterator<Item = &SecretFile> {
        self.all.iter().filter_map(|client| client.secret.as_ref())
    }

    /// Takes what a file of a secret has by now.
    ///
    /// # Errors
    /// Where that is no client secret. The last one stays.
    pub fn take_secret(&self, path: &Path, content: &str) -> Result<(), SecretFileError> {
        self.secret_files().filter(|file| file.path == path).try_for_each(|file| file.take(content))
    }
}

impl PreRegistered {
    fn new(spec: &ClientSpec) -> Result<Self, ClientProblem> {
        let is_https = Url::parse(&spec.issuer).is_ok_and(|url| url.scheme() == "https");
        if !is_https || server_addresses(&spec.issuer).is_err() {
            return Err(ClientProblem::Issuer);
        }
        if spec.client_id.is_empty() || !spec.client_id.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(ClientProblem::ClientId);
        }
        if spec.routes.is_empty() {
            return Err(ClientProblem::NoRoute);
        }
        let route = |from: &String| from.parse().map_err(|error| ClientProblem::Route { from: shown(from), error });
        let routes = spec.routes.iter().map(route).collect::<Result<_, _>>()?;
        let by_secret = match spec.client_secret_file {
            Some(_) => AuthMethod::ClientSecretBasic,
            None => AuthMethod::None,
        };
        let method = spec.token_endpoint_auth_method.unwrap_or(by_secret);
        let secret = match &spec.client_secret_file {
            Some(_) if !method.needs_secret() => return Err(ClientProblem::SecretWithNone),
            None if method.needs_secret() => return Err(ClientProblem::NoSecret(method)),
            None => None,
            Some(path) => {
                let secret = SecretFile::read(path);
                Some(secret.map_err(|error| ClientProblem::Secret { path: path.clone(), error })?)
            }
        };
        Ok(Self { issuer: spec.issuer.clone(), client_id: spec.client_id.clone(), method, routes, secret })
    }

    /// With the secret as it is by now.
    pub fn credentials(&self) -> Credentials {
        let secret = self.secret.as_ref().map(SecretFile::secret);
        // A client has the secret that its method needs, or there is no such client.
        let proof = Proof::new(self.method, secret).unwrap_or(Proof::None);
        Credentials { client_id: self.client_id.clone(), proof }
    }
}

/// A text with an @ may hold a password.
fn shown(url: &str) -> String {
    if url.contains('@') { "a URL with a user name".to_owned() } else { url.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTES: &str = "https://notes.example";

    fn spec(issuer: &str, routes: &[&str]) -> ClientSpec {
        ClientSpec {
            issuer: issuer.to_owned(),
            client_id: "c".to_owned(),
            client_secret_file: None,
            token_endpoint_auth_method: None,
            routes: routes.iter().map(|from| (*from).to_owned()).collect(),
        }
    }

    fn refused(specs: &[ClientSpec]) -> String {
        Configured::new(specs, &Paths::default()).expect_err("refused").to_string()
    }

    #[test]
    fn an_entry_says_what_is_wrong_with_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "SECRET").expect("a file");
        let good = || spec("https://as.example", &[NOTES]);
        let with = |method, file: Option<&Path>| ClientSpec {
            token_endpoint_auth_method: method,
            client_secret_file: file.map(Path::to_owned),
            ..good()
        };
        for (spec, problem) in [
            (spec("http://as.example", &[NOTES]), "`issuer` must be an https URL"),
            (spec("https://as.example?x", &[NOTES]), "`issuer` must be an https URL"),
            (spec("as.example", &[NOTES]), "`issuer` must be an https URL"),
            (ClientSpec { client_id: String::new(), ..good() }, "`client_id` must be printable ASCII"),
            (ClientSpec { client_id: "é".to_owned(), ..good() }, "`client_id` must be printable ASCII"),
            (spec("https://as.example", &[]), "`routes` is empty"),
            (spec("https://as.example", &["http://notes.example"]), "`routes`: http://notes.example must be https"),
            (with(Some(AuthMethod::None), Some(&secret)), "`token_endpoint_auth_method` is none, which takes no"),
            (
                with(Some(AuthMethod::ClientSecretPost), None),
                "`token_endpoint_auth_method` is client_secret_post, which needs a `client_secret_file`",
            ),
            (with(None, Some(dir.path())), "`client_secret_file` "),
        ] {
            let error = refused(&[good(), ClientSpec { routes: spec.routes.clone(), ..spec }]);
            assert!(error.starts_with(&format!("clients[1] ({}): {problem}", error_issuer(&error))), "{error}");
        }
        let error = refused(&[spec("https://u:SECRET@as.example", &[NOTES])]);
        assert_eq!(
            error,
            "clients[0] (a URL with a user name): `issuer` must be an https URL without user name, query and fragment"
        );
    }

    fn error_issuer(error: &str) -> &str {
        error.split(['(', ')']).nth(1).expect("an issuer")
    }

    #[test]
    fn an_issuer_and_a_route_have_one_client() {
        let twice = [
            spec("https://other.example", &[NOTES]),
            spec("https://as.example", &["https://a.example", NOTES]),
            spec("https://as.example/", &["https://NOTES.example:443"]),
        ];
        assert_eq!(
            refused(&twice),
            "clients[2] (https://as.example/): clients[1] is for this issuer and the route https://notes.example too"
        );
        assert!(refused(&[spec("https://as.example", &[NOTES, NOTES])]).contains("clients[0] is for this issuer"));
        let apart = [twice[0].clone(), twice[1].clone(), spec("https://as.example/t", &[NOTES])];
        let configured = Configured::new(&apart, &Paths::default()).expect("good clients");
        let paths = Paths::default();
        let at = |issuer: &str, from: &str| {
            let document = paths.client_id(&from.parse().expect("a URL"));
            configured.of(issuer, &document).map(|client| client.issuer.as_str())
        };
        assert_eq!(at("https://as.example/", NOTES), Some("https://as.example"));
        assert_eq!(at("https://as.example/t", NOTES), Some("https://as.example/t"));
        assert_eq!(at("https://as.example/t", "https://a.example"), None, "it is for the routes that it lists alone");
        assert_eq!(at("https://as.example", "https://notes.example/linear"), None);
    }

    #[test]
    fn the_method_follows_the_secret() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("secret");
        std::fs::write(&path, "SECRET-1\n").expect("a file");
        for (method, file, proof) in [
            (None, None, Proof::None),
            (None, Some(&path), Proof::Basic(Secret::new("SECRET-1"))),
            (Some(AuthMethod::ClientSecretPost), Some(&path), Proof::Post(Secret::new("SECRET-1"))),
        ] {
            let spec = ClientSpec {
                token_endpoint_auth_method: method,
                client_secret_file: file.cloned(),
                ..spec("https://as.example", &[NOTES])
            };
            let configured = Configured::new(&[spec], &Paths::default()).expect("a good client");
            assert!(!format!("{configured:?}").contains("SECRET"));
            let credentials = configured.all[0].credentials();
            assert_eq!(credentials, Credentials { client_id: "c".to_owned(), proof });
            configured.take_secret(&path, "SECRET-2").expect("a secret");
            assert!(configured.take_secret(&path, "").is_ok() == file.is_none(), "nobody's file changes nothing");
            let secret = match configured.all[0].credentials().proof {
                Proof::None => None,
                Proof::Basic(secret) | Proof::Post(secret) => Some(secret),
            };
            assert_eq!(secret, file.map(|_| Secret::new("SECRET-2")));
        }
    }

    use crate::model::secret::Secret;
}
