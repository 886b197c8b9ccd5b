//! `envoy-cimd choreographer`: the exchange as a process of its own.

use std::sync::Arc;

use tonic::service::Routes;

use super::{Embedded, Service, tokens_listener};
use crate::{
    cli::ChoreographerCommand,
    metrics::Metrics,
    process::{GrpcListener, Process, Tasks, main_tls},
    proto::authorization_choreographer_server::{AuthorizationChoreographerServer, SERVICE_NAME},
};

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Where a setting is wrong, a listener cannot be bound, or a part of the process ends before it should.
pub async fn run(settings: ChoreographerCommand) -> anyhow::Result<()> {
    let tls = main_tls(&settings.listen, &settings.process, settings.exchange.tokens_listen.as_ref()).await?;
    let embedded = Embedded::new(&settings.exchange)?;
    embedded.check().await?;
    let second = tokens_listener(&settings.exchange, &settings.process, &embedded)?;
    let calls = embedded.calls.clone();
    let service = AuthorizationChoreographerServer::new(Service::new(Arc::new(embedded), calls.clone()));
    let process = Process {
        main: GrpcListener {
            name: "choreographer",
            flag: "listen",
            address: settings.listen,
            tls,
            routes: Routes::new(service),
        },
        service: SERVICE_NAME,
        admin_listen: &settings.admin_listen,
        args: &settings.process,
        metrics: Arc::new(Metrics::default()),
        calls,
        second,
    };
    process.run(Tasks::default()).await
}
