//! Which client a route is at an authorization server: one that its operator registered there, its metadata document, or
//! one that is registered when it is first needed; in this order, which is MCP's.

use std::{path::Path, sync::Arc};

use arc_swap::ArcSwap;
use url::Url;

pub mod configured;
pub mod credentials;
pub mod registration;
pub mod registrations;
pub mod secret_file;
pub mod under_way;

use self::{
    configured::{ClientSpec, Configured},
    credentials::{ActsAs, AuthMethod, Credentials},
    secret_file::SecretFileError,
};
use super::discovery::documents::AuthorizationServer;
use crate::{
    model::{client::ClientId, issuer::is_same, paths::Paths},
    net::outgoing::error::truncate,
};

/// What an operator says of it.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The `clients:` of the config file.
    pub listed: Vec<ClientSpec>,
    /// Register clients where nothing else is open.
    pub dynamic_registration: bool,
}

/// The ways that are open.
#[derive(Clone, Debug)]
pub struct Clients {
    configured: Arc<ArcSwap<Configured>>,
    dynamic_registration: bool,
    paths: Arc<Paths>,
}

/// Which way is open.
#[derive(Clone, Debug, PartialEq)]
pub enum Way {
    Is(ActsAs),
    /// A client is to be registered at this endpoint, unless it was; and this is the way to authenticate that it is asked
    /// for.
    Registers(Url, AuthMethod),
}

/// Why a record's client is not there any more.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Gone {
    /// It may be a mistake in the file, which somebody mends.
    #[error(
        "the client {0}, which it was given to, is not in the config file's `clients:` any more for this route and issuer: \
         put it back, or have people connect again"
    )]
    Removed(String),
    /// The operator says that the route is another client there.
    #[error(
        "the config file's `clients:` has another client for this route and issuer than {0}, which it was given to: people \
         connect again"
    )]
    Replaced(String),
}

impl Clients {
    /// # Errors
    /// The first entry of `clients:` that is wrong.
    pub fn new(config: &Config, paths: Paths) -> anyhow::Result<Self> {
        let configured = Configured::new(&config.listed, &paths)?;
        let Config { dynamic_registration, .. } = *config;
        Ok(Self {
            configured: Arc::new(ArcSwap::from_pointee(configured)),
            dynamic_registration,
            paths: Arc::new(paths),
        })
    }

    /// The config file's, as they are by now.
    pub fn configured(&self) -> Arc<Configured> {
        self.configured.load_full()
    }

    /// Checks a list of clients, and reads their secrets, for [`Self::take`].
    ///
    /// # Errors
    /// The first entry that is wrong.
    pub fn read(&self, specs: &[ClientSpec]) -> anyhow::Result<Configured> {
        Ok(Configured::new(specs, &self.paths)?)
    }

    /// Takes these for the config file's from now on.
    pub fn take(&self, configured: Configured) {
        self.configured.store(Arc::new(configured));
    }

    /// Takes what the file of a secret has by now.
    ///
    /// # Errors
    /// Where that is no client secret. The last one stays.
    pub fn take_secret(&self, path: &Path, content: &str) -> Result<(), SecretFileError> {
        self.configured.load().take_secret(path, content)
    }

    /// Which client a flow of a route is for. `pin` is the issuer that the operator says: only that selects one of theirs,
    /// since an upstream that names an honest server would else be handed that server's tokens.
    ///
    /// # Errors
    /// What each of the ways lacks, for operators.
    pub fn choose(&self, document: &ClientId, pin: Option<&str>, server: &AuthorizationServer) -> Result<Way, String> {
        let configured = self.configured.load();
        let listed = configured.of(&server.issuer, document);
        let is_pinned = pin.is_some_and(|pin| is_same(pin, &server.issuer));
        if let Some(client) = listed.filter(|_| is_pinned) {
            return Ok(Way::Is(ActsAs::PreRegistered { client_id: client.client_id.clone() }));
        }
        if server.takes_documents {
            return Ok(Way::Is(ActsAs::Document));
        }
        let registration = match (&server.registration_endpoint, self.dynamic_registration) {
            (Ok(Some(endpoint)), true) => return Ok(Way::Registers(endpoint.clone(), asked(server))),
            (Ok(Some(_)), false) => "it would register a client, which needs --dynamic-registration".to_owned(),
            (Ok(None), _) => "it does not register clients (`registration_endpoint`)".to_owned(),
            (Err(problem), _) => format!("it does not register clients where we may ask it to: {problem}"),
        };
        let configured = match listed {
            Some(_) => "the client of `clients:` is not used, since the route does not pin this `authorization_server`",
            None => "`clients:` has no client for this route and issuer",
        };
        Err(format!(
            "the authorization server {} knows us in no way: {configured}; it does not support client ID metadata documents \
             (`client_id_metadata_document_supported`); {registration}",
            truncate(server.issuer.clone()),
        ))
    }

    /// What a flow or grant goes on with: what its record says, and the secret as it is by now.
    ///
    /// # Errors
    /// Where the client is not there any more.
    pub fn credentials(&self, acts_as: &ActsAs, document: &ClientId, issuer: &str) -> Result<Credentials, Gone> {
        match acts_as {
            ActsAs::Document => Ok(Credentials::of_document(document)),
            ActsAs::Registered(credentials) => Ok(credentials.clone()),
            ActsAs::PreRegistered { client_id } => match self.configured.load().of(issuer, document) {
                Some(client) if client.client_id == *client_id => Ok(client.credentials()),
                Some(_) => Err(Gone::Replaced(client_id.clone())),
                None => Err(Gone::Removed(client_id.clone())),
            },
        }
    }
}

/// The way to authenticate that a registration asks for: the document's, unless the server says that it takes another
/// alone.
fn asked(server: &AuthorizationServer) -> AuthMethod {
    use AuthMethod::{ClientSecretBasic, ClientSecretPost, None as Public};
    let takes = |method: &AuthMethod| match &server.auth_methods {
        Some(methods) => methods.iter().any(|name| name == method.name()),
        None => true,
    };
    [Public, ClientSecretBasic, ClientSecretPost].into_iter().find(takes).unwrap_or(Public)
}
