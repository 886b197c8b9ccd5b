//! The gRPC edge: Envoy's `ExternalProcessor` stream, translated to a request view and back to an immediate response.

use std::{
    pin::Pin,
    sync::{Arc, LazyLock, Once},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, future::BoxFuture};
use tonic::{Status, Streaming};

use super::proto::{
    BoolValue, Duration, HeaderMutation, HeaderValue, HeaderValueOption, HttpHeaders, HttpStatus, ImmediateResponse,
    Metadata, Opaque, ProcessingRequest, ProcessingResponse, Struct, StructEntry, Value, ValueEntry,
    external_processor_server::ExternalProcessor, processing_request::Request as Phase, processing_response::Response,
    value::Kind,
};
use crate::{
    filter::{
        endpoint::Endpoints,
        reply::Reply,
        request::{Request, Sources},
        verdict::Verdict,
    },
    model::{
        route::{Field, Key, Keyed, NAMESPACE, RouteMetadata},
        user::{Claims, MetadataPath, UserSource},
    },
    telemetry::metrics::Metrics,
};

/// How long Envoy is asked to wait where an answer takes a call, in seconds: longer than the call's own deadline, and
/// no longer than the filter's `max_message_timeout`.
const CALL_TIMEOUT: i64 = 12;

/// The key of `ProcessingRequest.attributes`, whatever name the filter has in Envoy's configuration.
const FILTER: &str = "envoy.filters.http.ext_proc";

/// The CEL expressions that Envoy must send as `request_attributes`: for each key of a route, the route's and the
/// virtual host's.
pub static ATTRIBUTES: LazyLock<Keyed<[String; 2]>> = LazyLock::new(|| {
    Keyed::new(|key| {
        let name = key.name();
        ["route", "virtual_host"].map(|of| format!("xds.{of}_metadata.filter_metadata['{NAMESPACE}']['{name}']"))
    })
});

/// The service that Envoy's ext_proc filter calls.
#[derive(Clone, Debug)]
pub struct ExtProc {
    endpoints: Arc<Endpoints>,
    config: Config,
}

/// What an operator says of the streams.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// How many requests may be under way.
    pub max_streams: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_streams: 10_000 }
    }
}

impl ExtProc {
    pub fn new(endpoints: Arc<Endpoints>, config: Config) -> Self {
        Self { endpoints, config }
    }
}

#[tonic::async_trait]
impl ExternalProcessor for ExtProc {
    type ProcessStream = Answers;

    async fn process(
        &self,
        request: tonic::Request<Streaming<ProcessingRequest>>,
    ) -> Result<tonic::Response<Answers>, Status> {
        let open = OpenStream::new(&self.endpoints, self.config.max_streams)?;
        Ok(tonic::Response::new(Answers::new(Arc::clone(&self.endpoints), request.into_inner(), open)))
    }
}

/// One stream, which is one HTTP request of Envoy's: an answer to each message, made when it is polled for. There is
/// no task and no channel of its own, since every request pays for what this does.
pub struct Answers {
    endpoints: Arc<Endpoints>,
    messages: Streaming<ProcessingRequest>,
    state: State,
    _open: OpenStream,
}

/// Where a stream is after an answer.
pub enum State {
    Listening,
    /// Envoy has been asked for time; the reply comes when the call is over.
    Calling(BoxFuture<'static, Verdict>),
    /// Envoy wants nothing after an immediate response, and closes the stream. Were we to close it first, its own last
    /// frame would find no stream, and a thousand such frames end the connection (h2).
    Replied,
}

impl Answers {
    fn new(endpoints: Arc<Endpoints>, messages: Streaming<ProcessingRequest>, open: OpenStream) -> Self {
        Self { endpoints, messages, state: State::Listening, _open: open }
    }
}

impl Stream for Answers {
    type Item = Result<ProcessingResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let State::Calling(call) = &mut self.state {
                let Verdict::Reply(reply) = ready!(call.poll_unpin(context)) else {
                    return Poll::Ready(Some(Err(Status::internal("a call ends with a reply"))));
                };
                self.state = State::Replied;
                return Poll::Ready(Some(Ok(response(Response::ImmediateResponse(immediate(reply))))));
            }
            let message = match ready!(Pin::new(&mut self.messages).poll_next(context)) {
                Some(Ok(message)) => message,
                // A message that cannot be read must not end the stream well: Envoy would take that for consent, and
                // the request would go on. Where the stream was reset instead, nobody is left to be told.
                Some(Err(status)) => {
                    self.endpoints.metrics.broken_streams.inc();
                    return Poll::Ready(Some(Err(status)));
                }
                None => return Poll::Ready(None),
            };
            if matches!(self.state, State::Replied) {
                continue;
            }
            let answered = answer(&self.endpoints, &message);
            return Poll::Ready(Some(answered.map(|(response, state)| {
                self.state = state;
                response
            })));
        }
    }
}

/// The answer to one message, and what is to come after it.
///
/// # Errors
/// A message of a kind that is not known.
pub fn answer(endpoints: &Endpoints, message: &ProcessingRequest) -> Result<(ProcessingResponse, State), Status> {
    let Some(phase) = &message.request else {
        return Err(Status::unimplemented("a message of a kind that this version does not know"));
    };
    let pass = || Ok((response(untouched(phase)), State::Listening));
    let Phase::RequestHeaders(headers) = phase else {
        return pass();
    };
    // Envoy only watches, and heeds no answer: to redeem a code would use it up for nobody.
    if message.observability_mode {
        static WARNED: Once = Once::new();
        WARNED.call_once(|| tracing::warn!("the filter is in observability_mode, so nothing is served"));
        return pass();
    }
    match endpoints.answer(&request(headers), &sources(message, endpoints.tools.users.source())) {
        Verdict::Pass => pass(),
        Verdict::Forward(_) | Verdict::Body(_) => Err(Status::internal("endpoints forward nothing")),
        Verdict::Reply(reply) => Ok((response(Response::ImmediateResponse(immediate(reply))), State::Replied)),
        Verdict::Later(call) => {
            // Without this, Envoy would answer 504 when its `message_timeout` is over.
            let more_time = ProcessingResponse {
                override_message_timeout: Some(Duration { seconds: CALL_TIMEOUT }),
                ..ProcessingResponse::default()
            };
            Ok((more_time, State::Calling(call)))
        }
    }
}

fn response(response: Response) -> ProcessingResponse {
    ProcessingResponse { response: Some(response), ..ProcessingResponse::default() }
}

/// Answers a phase in kind. Only request headers are ever looked at: where an earlier filter replied, Envoy sends
/// response headers alone, and they pass.
fn untouched(phase: &Phase) -> Response {
    match phase {
        Phase::RequestHeaders(_) => Response::RequestHeaders(Opaque {}),
        Phase::ResponseHeaders(_) => Response::ResponseHeaders(Opaque {}),
        Phase::RequestBody(_) => Response::RequestBody(Opaque {}),
        Phase::ResponseBody(_) => Response::ResponseBody(Opaque {}),
        Phase::RequestTrailers(_) => Response::RequestTrailers(Opaque {}),
        Phase::ResponseTrailers(_) => Response::ResponseTrailers(Opaque {}),
    }
}

fn request(headers: &HttpHeaders) -> Request<'_> {
    let headers = headers.headers.as_ref().map_or(&[][..], |map| &map.headers);
    let mut request = Request::with_capacity(headers.len());
    for HeaderValue { key, value, raw_value } in headers {
        request.push(key, if raw_value.is_empty() { value } else { raw_value });
    }
    request
}

fn sources<'a>(message: &'a ProcessingRequest, user: Option<&UserSource>) -> Sources<'a> {
    let metadata = message.metadata_context.as_ref();
    Sources {
        attributes: struct_of(&message.attributes, FILTER).map(attribute_fields).unwrap_or_default(),
        dynamic_metadata: metadata.map(metadata_fields).unwrap_or_default(),
        user: user.zip(metadata).and_then(|(source, metadata)| {
            let values = struct_of(&metadata.filter_metadata, &source.namespace)?;
            Some(Claims { issuer: text_at(values, &source.issuer), subject: text_at(values, &source.subject) })
        }),
    }
}

/// The entry of a map. Where a key is there twice, the last one counts (Protocol Buffers, "Maps").
fn struct_of<'a>(entries: &'a [StructEntry], key: &str) -> Option<&'a Struct> {
    entries.iter().rev().find(|entry| entry.key == key)?.value.as_ref()
}

fn value_of<'a>(values: &'a Struct, key: &str) -> Option<&'a Value> {
    values.fields.iter().rev().find(|entry| entry.key == key)?.value.as_ref()
}

/// The text at a path of nested metadata.
fn text_at<'a>(values: &'a Struct, path: &MetadataPath) -> Option<&'a str> {
    let (last, parents) = path.keys().split_last()?;
    let mut values = values;
    for key in parents {
        match value_of(values, key)?.kind.as_ref()? {
            Kind::StructValue(inner) => values = inner,
            _ => return None,
        }
    }
    match field(value_of(values, last)?)? {
        Field::Text(text) => Some(text),
        Field::NotText => None,
    }
}

/// The keys of the route, or all of them of its virtual host: the level that gives `from` wins whole, or a route that
/// forgets its `to` would send a token to its neighbour's. Looks at what is there, which is less than what could be.
fn attribute_fields(attributes: &Struct) -> RouteMetadata<'_> {
    let mut levels = [RouteMetadata::default(); 2];
    for ValueEntry { key, value } in &attributes.fields {
        let known = ATTRIBUTES
            .iter()
            .flat_map(|(of, names)| names.iter().enumerate().map(move |(level, name)| (of, level, name)));
        if let Some((of, level, _)) = known.into_iter().find(|(.., name)| key == *name)
            && let Some(level) = levels.get_mut(level)
        {
            *level.get_mut(of) = value.as_ref().and_then(field);
        }
    }
    let [route, virtual_host] = levels;
    if route.get(Key::From).is_some() { route } else { virtual_host }
}

fn metadata_fields(metadata: &Metadata) -> RouteMetadata<'_> {
    match struct_of(&metadata.filter_metadata, NAMESPACE) {
        Some(values) => Keyed::new(|key| field(value_of(values, key.name())?)),
        None => RouteMetadata::default(),
    }
}

fn field(value: &Value) -> Option<Field<'_>> {
    match value.kind.as_ref()? {
        Kind::NullValue(_) => None,
        Kind::StringValue(text) => Some(std::str::from_utf8(text).map_or(Field::NotText, Field::Text)),
        _ => Some(Field::NotText),
    }
}

fn immediate(reply: Reply) -> ImmediateResponse {
    let set_headers = reply
        .headers
        .into_iter()
        .map(|(name, value)| HeaderValueOption {
            header: Some(HeaderValue {
                key: Bytes::from_static(name.as_bytes()),
                raw_value: value,
                ..HeaderValue::default()
            }),
            // Envoy reads this, though it is deprecated: without it the last of two `set-cookie` wins.
            append: (name == "set-cookie").then_some(BoolValue { value: true }),
        })
        .collect();
    ImmediateResponse {
        status: Some(HttpStatus { code: i32::from(reply.status) }),
        headers: Some(HeaderMutation { set_headers }),
        body: reply.body,
        // Shows up in an access log as `%RESPONSE_CODE_DETAILS%`.
        details: ["envoy_cimd_", reply.label].concat(),
    }
}

/// Counts a stream for as long as it lives.
#[derive(Debug)]
struct OpenStream(Arc<Metrics>);

impl OpenStream {
    /// Envoy makes of the refusal what `status_on_error` says; nothing of the request goes on to the upstream.
    fn new(endpoints: &Endpoints, max_streams: usize) -> Result<Self, Status> {
        let metrics = Arc::clone(&endpoints.metrics);
        let open = metrics.streams.inc();
        let stream = Self(metrics);
        if usize::try_from(open).is_ok_and(|others| others >= max_streams) {
            stream.0.refused_streams.inc();
            endpoints.refusals.note_stream();
            return Err(Status::resource_exhausted("as many requests are under way as --max-streams allows"));
        }
        Ok(stream)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::request::Header;

    fn text(text: &'static [u8]) -> Value {
        Value { kind: Some(Kind::StringValue(Bytes::from_static(text))) }
    }

    fn fields(pairs: &[(&'static str, Option<Value>)]) -> Struct {
        let entry =
            |(key, value): &(&'static str, Option<Value>)| ValueEntry { key: (*key).into(), value: value.clone() };
        Struct { fields: pairs.iter().map(entry).collect() }
    }

    fn entry(key: &'static str, value: Struct) -> StructEntry {
        StructEntry { key: key.into(), value: Some(value) }
    }

    fn source() -> UserSource {
        let path = |text: &str| text.parse().expect("a path");
        UserSource { namespace: "users".to_owned(), issuer: path("claims.iss"), subject: path("sub") }
    }

    /// A map that has a key twice has its last value, as everywhere in Protocol Buffers.
    #[test]
    fn the_last_entry_of_a_key_counts() {
        let from = ATTRIBUTES.get(Key::From)[0].as_str();
        let (old, new) = (text(b"https://old.example"), text(b"https://new.example"));
        let claims = |issuer| Value { kind: Some(Kind::StructValue(fields(&[("iss", Some(issuer))]))) };
        let users = [
            ("sub", Some(text(b"old"))),
            ("claims", Some(claims(text(b"old")))),
            ("sub", Some(text(b"new"))),
            ("claims", Some(claims(text(b"new")))),
        ];
        let message = ProcessingRequest {
            attributes: vec![
                entry(FILTER, fields(&[(from, Some(new.clone()))])),
                entry(FILTER, fields(&[(from, Some(old.clone())), (from, Some(new.clone()))])),
            ],
            metadata_context: Some(Metadata {
                filter_metadata: vec![
                    entry(NAMESPACE, fields(&[("from", Some(old.clone()))])),
                    entry("users", fields(&[("sub", Some(text(b"older")))])),
                    entry("users", fields(&users)),
                    entry(NAMESPACE, fields(&[("from", Some(old.clone())), ("from", Some(new.clone()))])),
                ],
            }),
            ..ProcessingRequest::default()
        };
        let sources = sources(&message, Some(&source()));
        let expected = Some(Field::Text("https://new.example"));
        assert_eq!(
            (*sources.attributes.get(Key::From), *sources.dynamic_metadata.get(Key::From)),
            (expected, expected)
        );
        assert_eq!(sources.user, Some(Claims { issuer: Some("new"), subject: Some("new") }));

        for last in [None, Some(Value::default()), Some(Value { kind: Some(Kind::NullValue(0)) })] {
            let message = ProcessingRequest {
                attributes: vec![entry(FILTER, fields(&[(from, Some(old.clone())), (from, last.clone())]))],
                metadata_context: Some(Metadata {
                    filter_metadata: vec![
                        entry(NAMESPACE, fields(&[("from", Some(old.clone())), ("from", last.clone())])),
                        entry("users", fields(&[("sub", Some(text(b"old"))), ("sub", last)])),
                    ],
                }),
                ..ProcessingRequest::default()
            };
            let sources = super::sources(&message, Some(&source()));
            assert_eq!(
                (*sources.attributes.get(Key::From), *sources.dynamic_metadata.get(Key::From), sources.user),
                (None, None, Some(Claims::default()))
            );
        }
    }

    /// The level that gives `from` gives all, whatever the other one has; a `from` that is no text is one.
    #[test]
    fn one_level_gives_all_keys() {
        let [route_from, host_from] = ATTRIBUTES.get(Key::From).each_ref().map(String::as_str);
        let [route_to, host_to] = ATTRIBUTES.get(Key::To).each_ref().map(String::as_str);
        let number = Value { kind: Some(Kind::NumberValue(5.0)) };
        let (ours, theirs) = (Some(text(b"https://ours.example")), Some(text(b"https://theirs.example")));
        let is = |text| Some(Field::Text(text));
        for (pairs, from, to) in [
            (vec![(route_from, ours.clone()), (host_to, theirs.clone())], is("https://ours.example"), None),
            (
                vec![(route_from, ours.clone()), (host_from, theirs.clone()), (host_to, theirs.clone())],
                is("https://ours.example"),
                None,
            ),
            (
                vec![(host_from, theirs.clone()), (route_to, ours.clone()), (host_to, theirs.clone())],
                is("https://theirs.example"),
                is("https://theirs.example"),
            ),
            (vec![(host_from, theirs.clone()), (route_to, ours.clone())], is("https://theirs.example"), None),
            (vec![(route_from, Some(number)), (host_from, theirs.clone())], Some(Field::NotText), None),
            (vec![(route_from, None), (host_from, theirs.clone())], is("https://theirs.example"), None),
            (vec![(route_to, ours.clone()), (host_to, theirs.clone())], None, is("https://theirs.example")),
        ] {
            let attributes = fields(&pairs);
            let found = attribute_fields(&attributes);
            assert_eq!((*found.get(Key::From), *found.get(Key::To)), (from, to), "{pairs:?}");
        }
    }

    /// Envoy's own types would refuse the whole message; here only what is read has to be text.
    #[test]
    fn what_is_no_text_is_not_taken_for_one() {
        let from = ATTRIBUTES.get(Key::From)[0].as_str();
        let claims = fields(&[("iss", Some(text(b"issuer")))]);
        let users = [("claims", Some(Value { kind: Some(Kind::StructValue(claims)) })), ("sub", Some(text(b"\xff")))];
        let mut other = entry("", fields(&[("from", Some(text(b"https://a.example")))]));
        other.key = Bytes::from_static(b"envoy_cimd\xff");
        let message = ProcessingRequest {
            attributes: vec![entry(FILTER, fields(&[(from, Some(text(b"https://a\xff.example")))]))],
            metadata_context: Some(Metadata { filter_metadata: vec![entry("users", fields(&users)), other] }),
            ..ProcessingRequest::default()
        };
        let sources = sources(&message, Some(&source()));
        assert_eq!(*sources.attributes.get(Key::From), Some(Field::NotText));
        let claims = Claims { issuer: Some("issuer"), subject: None };
        assert_eq!((sources.dynamic_metadata, sources.user), (RouteMetadata::default(), Some(claims)));

        let header = |key, raw_value| HeaderValue {
            key: Bytes::from_static(key),
            raw_value: Bytes::from_static(raw_value),
            ..HeaderValue::default()
        };
        let headers = vec![header(b":path\xff", b"/no"), header(b":path", b"/yes")];
        let headers = HttpHeaders { headers: Some(crate::edge::proto::HeaderMap { headers }) };
        let request = request(&headers);
        assert_eq!((request.text(Header::Path), request.header_bytes()), (Some("/yes"), 18));
    }
}
