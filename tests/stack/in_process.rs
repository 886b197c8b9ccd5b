//! The parts without their processes: the endpoints, and messages as Envoy sends them.

use std::{collections::HashMap, sync::Arc};

use envoy_cimd::{
    commands::{
        serve,
        settings::{self, Task},
    },
    edge::proto,
    exchange::embedded::Embedded,
    filter::{
        endpoint::Endpoints,
        state::{FlowId, StateKeys},
    },
};
use envoy_types::pb::{
    envoy::{
        config::core::v3::{HeaderMap, HeaderValue},
        service::ext_proc::v3::{HttpHeaders, ProcessingRequest, processing_request::Request as Phase},
    },
    google::protobuf::{Struct, Value, value::Kind},
};
use prost::Message;

pub const DOCUMENT: &str = "/.well-known/mcp-client-metadata.json";
pub const CALLBACK: &str = "/.pomerium/oauth/callback";

/// The endpoints as `serve` makes them from these flags.
pub fn endpoints(flags: &[&str]) -> Arc<Endpoints> {
    let args = ["envoy-cimd", "serve"].iter().chain(flags).map(std::ffi::OsString::from);
    let parsed = settings::parse(args).expect("good flags");
    let Task::Serve(settings) = parsed.task else { panic!("serve") };
    let embedded = Embedded::new(&settings.exchange).expect("good settings");
    let exchange = serve::Exchange {
        calls: embedded.calls.clone(),
        choreographer: Arc::new(embedded),
        embedded: None,
        tokens: None,
        tls: None,
    };
    Arc::new(serve::endpoints(&settings, parsed.file.as_ref(), &exchange).expect("good settings"))
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
    let authority = from.trim_start_matches("https://");
    message(
        &[(":method", "GET"), (":path", DOCUMENT), (":authority", authority), (":scheme", "https")],
        &[(attribute("route", "from"), from)],
    )
}

/// A message as the service reads it.
pub fn read(message: &ProcessingRequest) -> proto::ProcessingRequest {
    proto::ProcessingRequest::decode(&message.encode_to_vec()[..]).expect("a message")
}

/// A state that names one of these keys, and that none of them signed.
pub fn forged(keys: &StateKeys) -> String {
    let mut state = keys.mint(FlowId([7; 16]), "", "", 0, u64::MAX).expect("a key");
    let last = if state.pop() == Some('A') { 'B' } else { 'A' };
    state.push(last);
    state
}
