//! `envoy-cimd choreographer`: the exchange as a process of its own.

use std::sync::Arc;

use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use super::{Embedded, Service};
use crate::{
    cli::ChoreographerCommand,
    metrics::Metrics,
    process::{Process, Tasks, check_listen},
    proto::authorization_choreographer_server::{AuthorizationChoreographerServer, SERVICE_NAME},
};

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Where a setting is wrong, a listener cannot be bound, or a part of the process ends before it should.
pub async fn run(settings: ChoreographerCommand) -> anyhow::Result<()> {
    check_listen(&settings.listen, &settings.process).await?;
    let embedded = Embedded::new(&settings.exchange)?;
    embedded.check().await?;
    let calls = TaskTracker::new();
    let process = Process {
        name: "choreographer",
        service: SERVICE_NAME,
        listen: &settings.listen,
        admin_listen: &settings.admin_listen,
        args: &settings.process,
        metrics: Arc::new(Metrics::default()),
        calls: calls.clone(),
    };
    let service = Service::new(Arc::new(embedded), calls);
    process.run(Routes::new(AuthorizationChoreographerServer::new(service)), Tasks::default()).await
}
