//! The gRPC edge: Envoy's `ExternalProcessor` stream, translated to a request view and back to an immediate response.

use std::{
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, ready},
};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{HeaderValue, HeaderValueOption, Metadata},
        service::ext_proc::v3::{
            BodyResponse, HeaderMutation, HeadersResponse, HttpHeaders, ImmediateResponse, ProcessingRequest,
            ProcessingResponse, TrailersResponse, external_processor_server::ExternalProcessor,
            processing_request::Request as Phase, processing_response::Response,
        },
        r#type::v3::HttpStatus,
    },
    google::protobuf::{BoolValue, Struct, value::Kind},
};
use futures_util::Stream;
use tonic::{Status, Streaming};

use crate::{
    endpoint::{Answer, Endpoints},
    metrics::Metrics,
    reply::Reply,
    request::{Request, Sources},
    route::{Field, Fields, KEYS, NAMESPACE},
};

/// The key of `ProcessingRequest.attributes`, whatever name the filter has in Envoy's configuration.
const FILTER: &str = "envoy.filters.http.ext_proc";

/// The CEL expressions that Envoy must send as `request_attributes`: for each of [`KEYS`], the route's and the
/// virtual host's.
pub static ATTRIBUTES: LazyLock<[[String; 2]; KEYS.len()]> = LazyLock::new(|| {
    KEYS.map(|key| {
        ["route", "virtual_host"].map(|of| format!("xds.{of}_metadata.filter_metadata['{NAMESPACE}']['{key}']"))
    })
});

/// The service that Envoy's ext_proc filter calls.
#[derive(Clone, Debug)]
pub struct ExtProc {
    endpoints: Arc<Endpoints>,
}

impl ExtProc {
    pub fn new(endpoints: Arc<Endpoints>) -> Self {
        Self { endpoints }
    }
}

#[tonic::async_trait]
impl ExternalProcessor for ExtProc {
    type ProcessStream = Answers;

    async fn process(
        &self,
        request: tonic::Request<Streaming<ProcessingRequest>>,
    ) -> Result<tonic::Response<Answers>, Status> {
        Ok(tonic::Response::new(Answers::new(Arc::clone(&self.endpoints), request.into_inner())))
    }
}

/// One stream, which is one HTTP request of Envoy's: an answer to each message, made when it is polled for. There is
/// no task and no channel of its own, since every request pays for what this does.
#[derive(Debug)]
pub struct Answers {
    endpoints: Arc<Endpoints>,
    messages: Streaming<ProcessingRequest>,
    replied: bool,
    _open: OpenStream,
}

impl Answers {
    fn new(endpoints: Arc<Endpoints>, messages: Streaming<ProcessingRequest>) -> Self {
        let _open = OpenStream::new(Arc::clone(&endpoints.metrics));
        Self { endpoints, messages, replied: false, _open }
    }
}

impl Stream for Answers {
    type Item = Result<ProcessingResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let message = match ready!(Pin::new(&mut self.messages).poll_next(context)) {
                Some(Ok(message)) => message,
                // Envoy resets a stream when the client goes away: nobody is left to tell.
                Some(Err(_)) | None => return Poll::Ready(None),
            };
            // Envoy wants nothing after an immediate response, and closes the stream. Were we to close it first, its
            // own last frame would find no stream, and a thousand such frames end the connection (h2).
            if self.replied {
                continue;
            }
            let response = respond(&self.endpoints, &message);
            self.replied = matches!(response, Ok(Response::ImmediateResponse(_)));
            return Poll::Ready(Some(
                response
                    .map(|response| ProcessingResponse { response: Some(response), ..ProcessingResponse::default() }),
            ));
        }
    }
}

/// Answers each phase in kind. Only request headers are looked at: where an earlier filter replied, Envoy sends
/// response headers alone, and they pass.
fn respond(endpoints: &Endpoints, message: &ProcessingRequest) -> Result<Response, Status> {
    Ok(match &message.request {
        Some(Phase::RequestHeaders(headers)) => match endpoints.answer(&request(headers), &sources(message)) {
            Answer::PassThrough => Response::RequestHeaders(HeadersResponse::default()),
            Answer::Reply(reply) => Response::ImmediateResponse(immediate(reply)),
        },
        Some(Phase::ResponseHeaders(_)) => Response::ResponseHeaders(HeadersResponse::default()),
        Some(Phase::RequestBody(_)) => Response::RequestBody(BodyResponse::default()),
        Some(Phase::ResponseBody(_)) => Response::ResponseBody(BodyResponse::default()),
        Some(Phase::RequestTrailers(_)) => Response::RequestTrailers(TrailersResponse::default()),
        Some(Phase::ResponseTrailers(_)) => Response::ResponseTrailers(TrailersResponse::default()),
        None => return Err(Status::unimplemented("a message of a kind that this version does not know")),
    })
}

fn request(headers: &HttpHeaders) -> Request<'_> {
    let headers = headers.headers.as_ref().map_or(&[][..], |map| &map.headers);
    let mut request = Request::with_capacity(headers.len());
    for HeaderValue { key, value, raw_value } in headers {
        let value = if raw_value.is_empty() { value.as_bytes() } else { raw_value };
        request.push(key, value);
    }
    request
}

fn sources(message: &ProcessingRequest) -> Sources<'_> {
    Sources {
        attributes: message.attributes.get(FILTER).map(attribute_fields).unwrap_or_default(),
        dynamic_metadata: message.metadata_context.as_ref().map(metadata_fields).unwrap_or_default(),
    }
}

fn attribute_fields(attributes: &Struct) -> Fields<'_> {
    Fields(
        ATTRIBUTES
            .each_ref()
            .map(|[route, virtual_host]| field(attributes, route).or_else(|| field(attributes, virtual_host))),
    )
}

fn metadata_fields(metadata: &Metadata) -> Fields<'_> {
    match metadata.filter_metadata.get(NAMESPACE) {
        Some(values) => Fields(KEYS.map(|key| field(values, key))),
        None => Fields::default(),
    }
}

fn field<'a>(values: &'a Struct, key: &str) -> Option<Field<'a>> {
    match values.fields.get(key)?.kind.as_ref()? {
        Kind::NullValue(_) => None,
        Kind::StringValue(text) => Some(Field::Text(text)),
        _ => Some(Field::NotText),
    }
}

#[expect(deprecated, reason = "Envoy still reads `append` in an immediate response")]
fn immediate(reply: Reply) -> ImmediateResponse {
    let set_headers = reply
        .headers
        .into_iter()
        .map(|(name, value)| HeaderValueOption {
            header: Some(HeaderValue {
                key: name.to_owned(),
                raw_value: value.into_owned().into_bytes(),
                ..HeaderValue::default()
            }),
            // Envoy reads the deprecated field here: without it the last of two `set-cookie` wins.
            append: (name == "set-cookie").then_some(BoolValue { value: true }),
            ..HeaderValueOption::default()
        })
        .collect();
    ImmediateResponse {
        status: Some(HttpStatus { code: i32::from(reply.status) }),
        headers: Some(HeaderMutation { set_headers, ..HeaderMutation::default() }),
        body: reply.body,
        // Shows up in an access log as `%RESPONSE_CODE_DETAILS%`.
        details: format!("envoy_cimd_{}", reply.label),
        ..ImmediateResponse::default()
    }
}

/// Counts a stream for as long as it lives.
#[derive(Debug)]
struct OpenStream(Arc<Metrics>);

impl OpenStream {
    fn new(metrics: Arc<Metrics>) -> Self {
        metrics.streams.inc();
        Self(metrics)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.dec();
    }
}
