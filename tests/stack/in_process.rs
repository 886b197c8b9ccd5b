//! The parts without their processes: the endpoints, and messages as Envoy sends them.

use std::{collections::HashMap, sync::Arc};

use axum::serve::Listener;
use envoy_cimd::{
    contract::tokens::TokenOwner,
    edge::{
        codec::Answer,
        conversation::Conversation,
        ext_proc::{Config, ExtProc, Shared},
        roles::{RoleName, Roles},
        server::Server,
    },
    exchange::embedded::{self, Embedded},
    filter::{
        browser::BrowserCookie,
        endpoint::{self, Endpoints},
        state::StateKeys,
    },
    model::{
        client::{ClientId, RedirectUri},
        clock::UnixTime,
        flow::FlowId,
        route_table::RouteTable,
        secret::{Key, Secret, random},
        upstream::Upstream,
        user::User,
    },
    net::grpc::services::{GrpcService, Services},
    store::vault,
};
use envoy_types::pb::{
    envoy::{
        config::core::v3::{HeaderMap, HeaderValue},
        service::ext_proc::v3::{
            HttpHeaders, ProcessingRequest, ProcessingResponse, processing_request::Request as Phase,
        },
    },
    google::protobuf::{Struct, Value, value::Kind},
};
use tokio_util::sync::CancellationToken;

pub const DOCUMENT: &str = "/.well-known/mcp-client-metadata.json";
pub const CALLBACK: &str = "/.pomerium/oauth/callback";

/// The endpoints as they are unless a setting says otherwise, without any route of their own.
pub fn endpoints() -> Arc<Endpoints> {
    let store = vault::Config { state_dir: Some("/dev/null/envoy-cimd".into()), ..vault::Config::default() };
    let embedded = Embedded::new(embedded::Config { store, ..embedded::Config::default() }).expect("good settings");
    let state_keys = StateKeys::new(vec![Key::new(random().expect("randomness"))]);
    let (metrics, calls) = (Arc::clone(&embedded.tokens.metrics), embedded.tokens.calls.clone());
    let (config, routes) = (endpoint::Config::default(), RouteTable::default());
    Arc::new(Endpoints::new(config, routes, state_keys, Arc::new(embedded), metrics, calls))
}

/// The gRPC service that answers for them.
pub fn service(endpoints: &Arc<Endpoints>) -> Server<ExtProc> {
    let shared = Shared {
        metrics: Arc::clone(&endpoints.metrics),
        refusals: Arc::clone(&endpoints.refusals),
        users: endpoints.tools.users.source().cloned(),
    };
    let roles = Roles { endpoints: Some(Arc::clone(endpoints) as _), ..Roles::default() };
    Server::new(ExtProc::new(roles, shared, Config::default()))
}

/// Serves it as it would be served, until the task ends.
pub async fn serve(listener: impl Listener, service: impl GrpcService) {
    let services = Services { main: service, health: None };
    envoy_cimd::net::grpc::serve(listener, services, CancellationToken::new()).await;
}

/// What they answer at once.
pub fn answer(endpoints: &Arc<Endpoints>, message: ProcessingRequest) -> ProcessingResponse {
    said(endpoints, message).decoded().expect("an answer")
}

/// The same as it is sent.
pub fn said(endpoints: &Arc<Endpoints>, message: ProcessingRequest) -> Answer {
    let mut stream = Conversation::new(Arc::clone(endpoints) as _, RoleName::Endpoints);
    let users = endpoints.tools.users.source();
    stream.take(message, users).expect("a message that is known").expect("an answer at once")
}

/// Whose token it is that a route gets for an upstream.
pub fn owner(user: User, client_id: &str, upstream: &str) -> TokenOwner {
    let upstream = Upstream { url: upstream.to_owned(), authorization_server: None, resource: None };
    TokenOwner { user, client_id: ClientId::new(client_id), upstream }
}

pub fn attribute(of: &str, key: &str) -> String {
    format!("xds.{of}_metadata.filter_metadata['envoy_cimd']['{key}']")
}

pub fn headers(pairs: &[(&str, &str)]) -> HttpHeaders {
    let headers = pairs
        .iter()
        .map(|(key, value)| HeaderValue {
            key: (*key).to_owned(),
            raw_value: value.as_bytes().to_vec(),
            ..HeaderValue::default()
        })
        .collect();
    HttpHeaders { headers: Some(HeaderMap { headers }), end_of_stream: true, ..HttpHeaders::default() }
}

/// Request headers as Envoy sends them, for a route whose attributes are these.
pub fn message(pairs: &[(&str, &str)], attributes: &[(String, &str)]) -> ProcessingRequest {
    let fields = attributes
        .iter()
        .map(|(name, text)| (name.clone(), Value { kind: Some(Kind::StringValue((*text).to_owned())) }))
        .collect();
    ProcessingRequest {
        request: Some(Phase::RequestHeaders(headers(pairs))),
        attributes: HashMap::from([("envoy.filters.http.ext_proc".to_owned(), Struct { fields })]),
        ..ProcessingRequest::default()
    }
}

/// A request for the document of a route, with nothing wrong.
pub fn document_of(from: &str) -> ProcessingRequest {
    let rest = from.trim_start_matches("https://");
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = format!("{path}{DOCUMENT}");
    message(
        &[(":method", "GET"), (":path", &path), (":authority", authority), (":scheme", "https")],
        &[(attribute("route", "from"), from)],
    )
}

/// A state that names one of these keys, and that none of them signed.
pub fn forged(keys: &StateKeys) -> String {
    let (redirect_uri, cookie) = (RedirectUri::new(""), BrowserCookie::from(Secret::new("")));
    let minted = keys.mint(FlowId([7; 16]), &redirect_uri, &cookie, UnixTime::default(), UnixTime::MAX);
    let mut state = minted.expect("a key");
    let last = if state.pop() == Some('A') { 'B' } else { 'A' };
    state.push(last);
    state
}
