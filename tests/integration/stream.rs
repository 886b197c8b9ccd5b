//! The gRPC edge over an in-memory connection: a real `Process` stream, message by message.

use std::{collections::HashMap, sync::Arc};

use envoy_cimd::{
    edge::{
        ext_proc::{Config, ExtProc},
        proto::external_processor_server::ExternalProcessorServer,
    },
    filter::endpoint::Endpoints,
    model::public_url::PublicUrl,
};
use envoy_types::pb::{
    envoy::{
        config::core::v3::Metadata,
        service::ext_proc::v3::{
            HttpBody, HttpHeaders, HttpTrailers, ImmediateResponse, ProcessingRequest, ProcessingResponse,
            ProtocolConfiguration, external_processor_client::ExternalProcessorClient,
            processing_request::Request as Phase, processing_response::Response,
        },
    },
    google::protobuf::{Any, ListValue, Struct, Value, value::Kind},
};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use prost::Message;
use prost_types::FieldDescriptorProto;
use tonic::{Code, Status, transport::Channel};
use tonic_prost::ProstCodec;
use url::{Position, Url};

use crate::stack::in_process::{CALLBACK, DOCUMENT, attribute, document_of, endpoints, headers, message, read};

/// A connection to a real server, over memory.
async fn channel(endpoints: Arc<Endpoints>) -> Channel {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let server = envoy_cimd::net::grpc::server()
        .add_service(ExternalProcessorServer::new(ExtProc::new(endpoints, Config::default())));
    tokio::spawn(server.serve_with_incoming(tokio_stream::once(Ok::<_, std::io::Error>(theirs))));
    let mut ours = Some(TokioIo::new(ours));
    let connector = tower::service_fn(move |_| {
        let io = ours.take().ok_or_else(|| std::io::Error::other("one connection only"));
        async move { io }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://envoy-cimd");
    endpoint.connect_with_connector(connector).await.expect("a connection")
}

pub async fn client(endpoints: Arc<Endpoints>) -> ExternalProcessorClient<Channel> {
    ExternalProcessorClient::new(channel(endpoints).await)
}

fn phase(phase: Phase) -> ProcessingRequest {
    ProcessingRequest { request: Some(phase), ..ProcessingRequest::default() }
}

/// All answers to a stream of messages, and how it ended.
async fn exchange(
    client: &mut ExternalProcessorClient<Channel>,
    messages: Vec<ProcessingRequest>,
) -> (Vec<Response>, Result<(), Status>) {
    let mut answers = match client.process(tokio_stream::iter(messages)).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return (Vec::new(), Err(status)),
    };
    let mut responses = Vec::new();
    loop {
        match answers.message().await {
            Ok(Some(answer)) => responses.push(answer.response.expect("a response")),
            Ok(None) => return (responses, Ok(())),
            Err(status) => return (responses, Err(status)),
        }
    }
}

fn immediate(responses: &[Response]) -> &ImmediateResponse {
    let [Response::ImmediateResponse(response)] = responses else { panic!("{responses:?}") };
    response
}

#[tokio::test]
async fn each_phase_is_answered_in_kind() {
    let mut client = client(endpoints()).await;
    let not_ours = message(&[(":method", "GET"), (":path", "/mcp"), (":authority", "a.example")], &[]);
    let phases = vec![
        not_ours,
        phase(Phase::RequestBody(HttpBody::default())),
        phase(Phase::RequestTrailers(HttpTrailers::default())),
        phase(Phase::ResponseHeaders(headers(&[(":status", "200")]))),
        phase(Phase::ResponseBody(HttpBody::default())),
        phase(Phase::ResponseTrailers(HttpTrailers::default())),
    ];
    let (responses, end) = exchange(&mut client, phases).await;
    assert!(end.is_ok());
    assert!(
        matches!(
            &responses[..],
            [
                Response::RequestHeaders(_),
                Response::RequestBody(_),
                Response::RequestTrailers(_),
                Response::ResponseHeaders(_),
                Response::ResponseBody(_),
                Response::ResponseTrailers(_),
            ]
        ),
        "{responses:?}"
    );
    let untouched = responses.iter().all(|response| match response {
        Response::RequestHeaders(headers) | Response::ResponseHeaders(headers) => headers.response.is_none(),
        Response::RequestBody(body) | Response::ResponseBody(body) => body.response.is_none(),
        Response::RequestTrailers(trailers) | Response::ResponseTrailers(trailers) => {
            trailers.header_mutation.is_none()
        }
        _ => false,
    });
    assert!(untouched, "nothing is changed: {responses:?}");
}

/// What we read of Envoy's messages is as Envoy wrote it, and the rest is skipped: written again, Envoy's own types find
/// the one in it without the other.
#[test]
fn our_part_of_the_contract_is_envoys() {
    let message = |phase, list, rest: bool| {
        let value = |kind| Value { kind: Some(kind) };
        let inner = Struct { fields: [("text".to_owned(), value(Kind::StringValue("a".to_owned())))].into() };
        let kinds = [
            ("none", Value::default()),
            ("null", value(Kind::NullValue(0))),
            ("number", value(Kind::NumberValue(1.5))),
            ("bool", value(Kind::BoolValue(true))),
            ("list", value(Kind::ListValue(list))),
            ("struct", value(Kind::StructValue(inner))),
        ];
        let fields = Struct { fields: kinds.map(|(key, value)| (key.to_owned(), value)).into() };
        let maps = HashMap::from([("a".to_owned(), fields), ("b".to_owned(), Struct::default())]);
        let typed = rest.then(|| ("c".to_owned(), Any { type_url: "d".to_owned(), value: vec![1] }));
        ProcessingRequest {
            request: Some(phase),
            attributes: maps.clone(),
            metadata_context: Some(Metadata {
                filter_metadata: maps,
                typed_filter_metadata: typed.into_iter().collect(),
            }),
            observability_mode: true,
            protocol_config: rest.then(|| ProtocolConfiguration { request_body_mode: 1, ..Default::default() }),
            ..ProcessingRequest::default()
        }
    };
    let read_headers = || HttpHeaders { end_of_stream: false, ..headers(&[(":path", "/"), ("cookie", "a=\u{fc}")]) };
    let all_headers = || HttpHeaders { end_of_stream: true, ..read_headers() };
    let body = || HttpBody { body: b"a body".into(), end_of_stream: true, ..HttpBody::default() };
    let trailers = || HttpTrailers { trailers: read_headers().headers };
    for (written, read_of_it) in [
        (Phase::RequestHeaders(all_headers()), Phase::RequestHeaders(read_headers())),
        (Phase::ResponseHeaders(all_headers()), Phase::ResponseHeaders(HttpHeaders::default())),
        (Phase::RequestBody(body()), Phase::RequestBody(HttpBody::default())),
        (Phase::ResponseBody(body()), Phase::ResponseBody(HttpBody::default())),
        (Phase::RequestTrailers(trailers()), Phase::RequestTrailers(HttpTrailers::default())),
        (Phase::ResponseTrailers(trailers()), Phase::ResponseTrailers(HttpTrailers::default())),
    ] {
        let list = ListValue { values: vec![Value { kind: Some(Kind::NumberValue(1.0)) }] };
        let again = read(&message(written, list, true)).encode_to_vec();
        assert_eq!(ProcessingRequest::decode(&again[..]), Ok(message(read_of_it, ListValue::default(), false)));
    }
}

/// An earlier filter replied: Envoy sends the response alone.
#[tokio::test]
async fn a_stream_without_request_headers_passes() {
    let mut client = client(endpoints()).await;
    let answer = phase(Phase::ResponseHeaders(headers(&[(":status", "401")])));
    let (responses, end) = exchange(&mut client, vec![answer]).await;
    assert!(matches!(&responses[..], [Response::ResponseHeaders(_)]) && end.is_ok(), "{responses:?}");
    assert_eq!(exchange(&mut client, Vec::new()).await.0, [], "nor one without any message");
}

#[tokio::test]
async fn an_unknown_message_is_unimplemented() {
    let endpoints = endpoints();
    let mut client = client(Arc::clone(&endpoints)).await;
    let (responses, end) = exchange(&mut client, vec![ProcessingRequest::default()]).await;
    assert_eq!((responses, end.expect_err("an error").code()), (Vec::new(), Code::Unimplemented));
    let (responses, _) = exchange(&mut client, vec![document_of("https://a.example")]).await;
    assert_eq!(immediate(&responses).status.expect("a status").code, 200, "the connection lives on");
    assert_eq!(endpoints.metrics.streams.get(), 0, "no stream is left open");
}

/// In observability mode Envoy heeds no answer, so nothing may happen.
#[tokio::test]
async fn an_envoy_that_only_watches_gets_nothing_done() {
    let endpoints = endpoints();
    let mut client = client(Arc::clone(&endpoints)).await;
    let watched = ProcessingRequest { observability_mode: true, ..document_of("https://a.example") };
    let (responses, _) = exchange(&mut client, vec![watched]).await;
    assert!(matches!(&responses[..], [Response::RequestHeaders(_)]), "{responses:?}");
}

/// A message that cannot be read ends the stream with an error: to end it well would be to let the request go on.
#[tokio::test]
async fn a_message_that_cannot_be_read_is_an_error() {
    let endpoints = endpoints();
    let mut raw = tonic::client::Grpc::new(channel(Arc::clone(&endpoints)).await);
    raw.ready().await.expect("ready");
    // A message of another type, whose third field is a number where the filter's is a message.
    let message = FieldDescriptorProto { number: Some(1), ..FieldDescriptorProto::default() };
    let codec = ProstCodec::<FieldDescriptorProto, ProcessingResponse>::default();
    let path = PathAndQuery::from_static("/envoy.service.ext_proc.v3.ExternalProcessor/Process");
    let ended = match raw.streaming(tonic::Request::new(tokio_stream::once(message)), path, codec).await {
        Ok(answers) => answers.into_inner().message().await.err(),
        Err(status) => Some(status),
    };
    assert!(ended.is_some(), "it did not end well");
    assert_eq!(endpoints.metrics.broken_streams.get(), 1);
}

#[tokio::test]
async fn an_answer_ends_the_stream() {
    let mut client = client(endpoints()).await;
    let messages = vec![document_of("https://a.example"), document_of("https://b.example")];
    let (responses, end) = exchange(&mut client, messages).await;
    assert!(end.is_ok());
    let body = String::from_utf8(immediate(&responses).body.clone()).expect("text");
    assert!(body.contains("https://a.example/"), "{body}");
}

/// `raw_value` before `value`, which other versions of Envoy fill.
#[tokio::test]
async fn header_values_of_both_kinds() {
    let mut client = client(endpoints()).await;
    let mut message = document_of("https://a.example");
    if let Some(Phase::RequestHeaders(HttpHeaders { headers: Some(map), .. })) = &mut message.request {
        for header in &mut map.headers {
            header.value = String::from_utf8(std::mem::take(&mut header.raw_value)).expect("text");
        }
    }
    let (responses, _) = exchange(&mut client, vec![message]).await;
    assert_eq!(immediate(&responses).status.expect("a status").code, 200);
}

/// Whatever the route, its `client_id` is the URL of the request that fetches it.
#[test]
fn the_client_id_is_the_url_of_a_request_for_it() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let client = runtime.block_on(client(endpoints()));
    let origins = "https://[a-z]([a-z0-9-]{0,10}\\.){0,3}[a-z]{2,5}(:[1-9][0-9]{0,3})?";
    let paths = "(/[A-Za-z0-9._~-]{1,12}){0,4}";
    let members = |message| {
        let (responses, _) = runtime.block_on(exchange(&mut client.clone(), vec![message]));
        serde_json::from_slice::<serde_json::Value>(&immediate(&responses).body).expect("JSON")
    };
    proptest!(ProptestConfig::with_cases(500), |(origin in origins, path in paths)| {
        let from = format!("{origin}{path}");
        let Ok(read) = from.parse::<PublicUrl>() else { return Ok(()) };
        let document = members(document_of(&from));
        prop_assert_eq!(&document["client_id"], &format!("{read}{DOCUMENT}"));
        prop_assert_eq!(&document["client_uri"], read.as_str());
        prop_assert_eq!(&document["redirect_uris"][0], &format!("{read}{CALLBACK}"));
        // The URL as everybody else reads it, and the request that they make of it.
        let url = Url::parse(document["client_id"].as_str().expect("a text")).expect("a URL");
        let authority = &url[Position::BeforeHost..Position::AfterPort];
        let pairs = [(":method", "GET"), (":path", url.path()), (":authority", authority), (":scheme", "https")];
        prop_assert_eq!(members(message(&pairs, &[(attribute("virtual_host", "from"), &from)])), document);
    });
}

/// As where many clients of Envoy's go away at once: the connection, which has everybody's streams, stays.
#[tokio::test]
async fn many_streams_that_are_reset_at_once() {
    let mut client = client(endpoints()).await;
    for _ in 0..5 {
        let mut calls: Vec<_> = (0..300)
            .map(|_| {
                let mut client = client.clone();
                Box::pin(async move { client.process(tokio_stream::pending()).await.map(drop) })
            })
            .collect();
        for call in &mut calls {
            let _ = futures_util::poll!(call);
        }
        // Sent, and reset before anybody looks at them.
        tokio::task::yield_now().await;
        drop(calls);
    }
    // There is no second connection to be had here.
    let (answers, status) = exchange(&mut client, vec![document_of("https://a.example")]).await;
    assert!(status.is_ok() && answers.len() == 1, "{answers:?} {status:?}");
}
