//! The gRPC edge over a connection: a real `Process` stream, message by message.

use std::sync::Arc;

use bytes::Bytes;

use envoy_cimd::{
    edge::{roles::ROLE_KEY, server::MAX_MESSAGE},
    filter::endpoint::Endpoints,
    model::public_url::PublicUrl,
};
use envoy_types::pb::envoy::service::ext_proc::v3::{
    HttpBody, HttpHeaders, HttpTrailers, ImmediateResponse, ProcessingRequest,
    external_processor_client::ExternalProcessorClient, processing_request::Request as Phase,
    processing_response::Response,
};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use prost::Message;
use tokio::net::TcpListener;
use tonic::{Code, Status, transport::Channel};
use tower::ServiceExt;
use url::{Position, Url};

use crate::stack::{
    grpc,
    in_process::{CALLBACK, DOCUMENT, attribute, document_of, endpoints, headers, message, serve, service},
};

/// A connection to a real server.
async fn channel(endpoints: &Arc<Endpoints>) -> Channel {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(serve(listener, service(endpoints)));
    grpc::channel(&address).await
}

pub async fn client(endpoints: Arc<Endpoints>) -> ExternalProcessorClient<Channel> {
    ExternalProcessorClient::new(channel(&endpoints).await)
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

/// What comes of one message as bytes: the answers, and the status that the stream ends with.
async fn raw(endpoints: &Arc<Endpoints>, length: usize, message: &[u8]) -> (Vec<u8>, Option<Code>) {
    let length = u32::try_from(length).expect("a length").to_be_bytes();
    let frame = [&[0], &length[..], message].concat();
    let path = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
    let request = http::Request::post(path).body(Full::new(Bytes::from(frame))).expect("a request");
    let Ok(response) = service(endpoints).oneshot(request).await;
    let mut status = Status::from_header_map(response.headers());
    let (mut body, mut answers) = (response.into_body(), Vec::new());
    // Trailers are the end, as HTTP/2 has it.
    while status.is_none() {
        match body.frame().await.expect("an end").expect("a frame").into_data() {
            Ok(data) => answers.extend(data),
            Err(frame) => status = frame.trailers_ref().and_then(Status::from_header_map),
        }
    }
    (answers, status.map(|status| status.code()))
}

/// A message that cannot be read ends the stream with an error: to end it well would be to let the request go on.
#[tokio::test]
async fn a_message_that_cannot_be_read_is_an_error() {
    let endpoints = endpoints();
    let good = document_of("https://a.example").encode_to_vec();
    let (answers, status) = raw(&endpoints, good.len(), &good).await;
    assert!(!answers.is_empty() && status == Some(Code::Ok), "{status:?}");
    // A text that is no UTF-8, wherever it is: in the name of a header, a key of metadata, or a value.
    let name = good.windows(5).position(|bytes| bytes == b":path").expect("the name of a header");
    let key = good.windows(19).position(|bytes| bytes == b"xds.route_metadata.").expect("an attribute");
    let value = good.windows(17).position(|bytes| bytes == b"https://a.example").expect("its value");
    let no_text = [name, key, value].map(|place| {
        let mut message = good.clone();
        message[place] = 0xff;
        message
    });
    // Headers are message 2 of the phases: here a number; and cut off.
    let others = [vec![0x10, 1], good[..good.len() - 1].to_vec()];
    let mut broken = 0;
    for message in no_text.iter().chain(&others) {
        let (answers, status) = raw(&endpoints, message.len(), message).await;
        assert!(answers.is_empty() && status.is_some_and(|code| code != Code::Ok), "{status:?}");
        broken += 1;
        assert_eq!(endpoints.metrics.broken_streams.get(), broken);
    }
    // Longer than may be, which is known before it is there.
    let (answers, status) = raw(&endpoints, MAX_MESSAGE + 1, &[]).await;
    assert!(answers.is_empty() && status == Some(Code::OutOfRange), "{status:?}");
    assert_eq!(endpoints.metrics.streams.get(), 0, "no stream is left open");
}

/// Envoy's filter says which role it has. One that this listener does not serve ends before a message is read.
#[tokio::test]
async fn a_role_that_is_not_served_is_refused() {
    let endpoints = endpoints();
    for (roles, code) in [
        (&["endpoints"][..], None),
        (&["traffic"], Some(Code::PermissionDenied)),
        (&["refuse"], Some(Code::InvalidArgument)),
        (&["endpoints", "endpoints"], Some(Code::InvalidArgument)),
    ] {
        let mut request = tonic::Request::new(tokio_stream::once(document_of("https://a.example")));
        for role in roles {
            request.metadata_mut().append(ROLE_KEY, role.parse().expect("ASCII"));
        }
        let answer = client(Arc::clone(&endpoints)).await.process(request).await;
        assert_eq!(answer.err().map(|status| status.code()), code, "{roles:?}");
    }
    let text = endpoints.metrics.text();
    for counted in ["role_not_served\"} 1", "unknown_role\"} 2", "too_many_streams\"} 0"] {
        assert!(text.contains(&format!("envoy_cimd_refused_streams_total{{reason=\"{counted}\n")), "{text}");
    }
}

/// There is one service, and it has one method.
#[tokio::test]
async fn another_method_is_unimplemented() {
    let channel = channel(&endpoints()).await;
    for path in [
        "/envoy.service.ext_proc.v3.ExternalProcessor/Processes",
        "/envoy.service.ext_proc.v3.ExternalProcessor/Process/",
        "/envoy.service.ext_proc.v3.ExternalProcessor/",
        "/envoy.service.ext_proc.v3.ExternalProcessor",
        "/envoy.service.ext_proc.v3.ExternalProcessors/Process",
        "/grpc.health.v1.Health/Check",
        "//Process",
        "/",
    ] {
        let request = http::Request::post(path).body(tonic::body::Body::empty()).expect("a request");
        let response = channel.clone().oneshot(request).await.expect("an answer");
        let status = Status::from_header_map(response.headers()).expect("a status");
        assert_eq!((response.status().as_u16(), status.code()), (200, Code::Unimplemented), "{path}");
    }
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
