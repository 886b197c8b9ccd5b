//! `envoy-cimd choreographer`: the exchange as a process of its own.

use std::sync::Arc;

use tonic::service::Routes;

use super::{Embedded, Service, TokensListener, TokensService};
use crate::{
    cli::{ChoreographerCommand, ExchangeArgs},
    metrics::Metrics,
    process::{Process, Second, Tasks, check_listen},
    proto::{
        authorization_choreographer_server::{AuthorizationChoreographerServer, SERVICE_NAME},
        upstream_tokens_server::UpstreamTokensServer,
    },
};

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Where a setting is wrong, a listener cannot be bound, or a part of the process ends before it should.
pub async fn run(settings: ChoreographerCommand) -> anyhow::Result<()> {
    check_listen(&settings.listen, &settings.process).await?;
    let embedded = Embedded::new(&settings.exchange)?;
    embedded.check().await?;
    let second = tokens(&settings.exchange, &embedded)?;
    let calls = embedded.calls.clone();
    let process = Process {
        name: "choreographer",
        service: SERVICE_NAME,
        listen: &settings.listen,
        admin_listen: &settings.admin_listen,
        args: &settings.process,
        metrics: Arc::new(Metrics::default()),
        calls: calls.clone(),
        second,
    };
    let service = Service::new(Arc::new(embedded), calls);
    process.run(Routes::new(AuthorizationChoreographerServer::new(service)), Tasks::default()).await
}

/// The listener that tokens are handed out on, where the settings ask for one.
///
/// # Errors
/// As [`TokensListener::new`].
pub fn tokens(settings: &ExchangeArgs, embedded: &Embedded) -> anyhow::Result<Option<Second>> {
    let service = UpstreamTokensServer::new(TokensService(embedded.clone()));
    Ok(TokensListener::new(settings)?.map(|TokensListener { address, tls }| Second {
        name: "tokens",
        flag: "tokens-listen",
        address,
        tls,
        routes: Routes::new(service),
    }))
}
