//! A call of a service in another process.

use std::{error::Error, iter::successors, time::Duration};

use tokio::time::timeout;
use tonic::{Code, ConnectError, Status, TimeoutExpired, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    error::{CallError, Cause},
    wire::set_trace,
};
use crate::model::trace::Trace;

/// The longest that a call may take in all. The other side's own limit (`--patience`) is less, Envoy's 15 s.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// Calls once, and never again: the request may have arrived whatever is heard of it.
pub(super) async fn call_once<Q, A, F>(
    deadline: Duration,
    request: Q,
    trace: &Trace,
    call: impl FnOnce(tonic::Request<Q>) -> F,
) -> Result<A, Status>
where
    F: Future<Output = Result<tonic::Response<A>, Status>>,
{
    let mut request = tonic::Request::new(request);
    set_trace(&mut request, trace);
    request.set_timeout(deadline);
    match timeout(deadline, call(request)).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("")),
    }
}

/// Whether a process answers calls, asked of its health service. One that has none answers that, which will do.
///
/// # Errors
/// Why not, in words for operators. `service` is what these call it.
pub async fn answers(service: &'static str, channel: Channel) -> Result<(), String> {
    match HealthClient::new(channel).check(HealthCheckRequest::default()).await {
        Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
        Ok(_) => Err(format!("{service} says that it does not serve")),
        Err(status) if status.code() == Code::Unimplemented => Ok(()),
        Err(status) => Err(call_error(service, &status).cause().to_string()),
    }
}

/// What became of a call that has no answer of the service's own. `service` is what errors call it.
///
/// Only a failed connection proves that nothing was sent. (A code says less: a connection that breaks is `CANCELLED`, as a
/// deadline is.)
pub(super) fn call_error(service: &str, status: &Status) -> CallError {
    let sources = || successors(Error::source(status), |error| (*error).source());
    let innermost = sources().last().map(ToString::to_string);
    if sources().any(|error| error.is::<ConnectError>()) {
        return CallError::Unavailable(cause(format!("no connection to {service}"), innermost));
    }
    if status.code() == Code::DeadlineExceeded || sources().any(|error| error.is::<TimeoutExpired>()) {
        return CallError::Timeout(format!("{service} did not answer in time").into());
    }
    // With TLS 1.3 it shows only here that the other side does not let us in.
    let said = innermost.or_else(|| Some(format!("{:?}, {}", status.code(), status.message())));
    CallError::Failed(cause(format!("the call of {service} broke"), said))
}

/// What an answer is that keeps no contract.
pub(super) fn broken_contract(service: &str) -> Cause {
    format!("the answer of {service} does not keep the contract").into()
}

fn cause(what: String, why: Option<String>) -> Cause {
    match why {
        Some(why) => format!("{what}: {why}").into(),
        None => what.into(),
    }
}
