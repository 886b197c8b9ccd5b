//! Tests of what is said on a stream, with roles that say what a test wants of them.

use std::{
    future::{pending, poll_fn},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use envoy_types::pb::{
    envoy::{
        config::core::v3::header_value_option::HeaderAppendAction,
        extensions::filters::http::ext_proc::v3::processing_mode::{BodySendMode, HeaderSendMode},
        service::ext_proc::v3::{
            BodyResponse, HeaderMutation, HttpHeaders, HttpTrailers, ImmediateResponse, TrailersResponse,
            body_mutation::Mutation, processing_response::Response,
        },
    },
    google::protobuf::value::Kind,
};
use tokio::time::Instant;
use tonic::Code;

use super::*;
use crate::{
    contract::tokens::TokenTag,
    filter::{
        outcome::Outcome,
        reply::Reply,
        request::{Request, Sources},
    },
};

const LONGEST: Duration = Duration::from_secs(5);
const SECRET: &str = "Bearer a-secret";

/// A role that says what a test wants of it, told whether the headers end the request.
struct Says<F>(F);

impl<F: Fn(bool) -> Verdict + Send + Sync> Role for Says<F> {
    fn answer(&self, _: &Request<'_>, _: &Sources<'_>, ends: bool) -> Verdict {
        self.0(ends)
    }
}

fn stream(says: impl Fn(bool) -> Verdict + Send + Sync + 'static) -> Conversation {
    Conversation::new(Arc::new(Says(says)), RoleName::Traffic)
}

fn message(phase: Phase) -> ProcessingRequest {
    ProcessingRequest { request: Some(phase), ..ProcessingRequest::default() }
}

fn headers(end_of_stream: bool) -> ProcessingRequest {
    message(Phase::RequestHeaders(HttpHeaders { end_of_stream, ..HttpHeaders::default() }))
}

fn body(length: usize, end_of_stream: bool) -> ProcessingRequest {
    message(Phase::RequestBody(HttpBody { body: vec![b'a'; length], end_of_stream, ..HttpBody::default() }))
}

fn trailers() -> ProcessingRequest {
    message(Phase::RequestTrailers(HttpTrailers::default()))
}

/// The answer to a message, which takes no time of this test's.
async fn tell(stream: &mut Conversation, message: ProcessingRequest) -> Result<ProcessingResponse, Status> {
    match stream.take(message, None)? {
        Some(answer) => Ok(decoded(answer)),
        None => next(stream).await,
    }
}

async fn next(stream: &mut Conversation) -> Result<ProcessingResponse, Status> {
    poll_fn(|context| stream.poll_answer(context)).await.map(decoded)
}

fn decoded(answer: Answer) -> ProcessingResponse {
    answer.decoded().expect("an answer")
}

/// An answer to trailers, and to nothing else.
fn loses_credentials(answer: ProcessingResponse) {
    let Some(Response::RequestTrailers(TrailersResponse { header_mutation: Some(change) })) = &answer.response else {
        panic!("trailers")
    };
    assert!(change.set_headers.is_empty(), "a trailer");
    assert_eq!(change.remove_headers, ["authorization", "cookie", "proxy-authorization"]);
    assert_eq!(answer, ProcessingResponse { response: answer.response.clone(), ..ProcessingResponse::default() });
}

async fn is_silent(stream: &mut Conversation) -> bool {
    futures_util::poll!(std::pin::pin!(next(stream))).is_pending()
}

fn reply() -> Verdict {
    Verdict::Reply(Reply::new(Outcome::NotFound))
}

fn edits() -> Edits {
    Edits {
        set: vec![("authorization", Bytes::from_static(SECRET.as_bytes()))],
        remove: &["cookie", "proxy-authorization"],
        tag: Some(TokenTag([0xff; 16])),
        body: None,
    }
}

fn await_body(then: impl FnOnce(Body) -> Verdict + Send + 'static) -> Verdict {
    Verdict::Body(AwaitedBody { longest: LONGEST, then: Box::new(then) })
}

fn is_reply(answer: &ProcessingResponse) -> bool {
    let details = "envoy_cimd_not_found";
    matches!(&answer.response, Some(Response::ImmediateResponse(ImmediateResponse { details: of, .. })) if of == details)
}

/// The change in an answer to headers or a body, and whether it is the edits above, and nothing else.
fn is_edited(answer: &ProcessingResponse) -> bool {
    let change = match &answer.response {
        Some(Response::RequestHeaders(answer)) => &answer.response,
        Some(Response::RequestBody(answer)) => &answer.response,
        other => panic!("{other:?}"),
    };
    let change = change.as_ref().expect("a change");
    let HeaderMutation { set_headers, remove_headers } = change.header_mutation.as_ref().expect("of headers");
    let [set] = &set_headers[..] else { panic!("{} headers", set_headers.len()) };
    let header = set.header.as_ref().expect("a header");
    let names = &answer.dynamic_metadata.as_ref().expect("a tag").fields["envoy_cimd_traffic"];
    let Some(Kind::StructValue(names)) = &names.kind else { panic!("a struct") };
    let tag = names.fields["tag"].kind == Some(Kind::StringValue("_____________________w".to_owned()));
    (header.key.as_str(), &header.raw_value[..], header.value.as_str()) == ("authorization", SECRET.as_bytes(), "")
        && set.append_action() == HeaderAppendAction::OverwriteIfExistsOrAdd
        && remove_headers == &["cookie", "proxy-authorization"]
        && tag
        && (change.body_mutation.is_none(), change.clear_route_cache, change.status) == (true, false, 0)
}

#[tokio::test]
async fn each_verdict_on_headers() {
    let answer = tell(&mut stream(|_| Verdict::Pass), headers(true)).await.expect("an answer");
    assert_eq!(answer, write::headers(None));

    let mut replied = stream(|_| reply());
    assert!(is_reply(&tell(&mut replied, headers(false)).await.expect("an answer")));
    assert!(replied.take(headers(false), None).expect("no error").is_none(), "nothing follows a reply");
    assert!(is_silent(&mut replied).await);

    let mut forwarded = stream(|_| Verdict::Forward(Said::new(edits())));
    let answer = tell(&mut forwarded, headers(false)).await.expect("an answer");
    assert!(is_edited(&answer), "the change is another");
    assert_eq!((answer.mode_override, answer.override_message_timeout), (None, None));
    // Where the filter is set to send trailers.
    loses_credentials(tell(&mut forwarded, trailers()).await.expect("an answer"));
}

#[test]
fn credentials_are_not_shown() {
    let shown = r#"Edits { set: ["authorization"], remove: ["cookie", "proxy-authorization"], .. }"#;
    assert_eq!(format!("{:?}", edits()), shown);
}

#[tokio::test(start_paused = true)]
async fn time_is_asked_for_once_and_where_it_is_needed() {
    let at_once = stream(|_| Verdict::Later(Box::pin(async { Verdict::Forward(Said::new(edits())) })));
    assert!(is_edited(&tell(&mut { at_once }, headers(false)).await.expect("an answer")));

    let slowly = || async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Verdict::Forward(Said::new(edits()))
        };
        Verdict::Later(Box::pin(after))
    };
    let mut stream = stream(move |_| Verdict::Later(Box::pin(slowly())));
    // Another message on the stream is another reason to ask.
    for _ in 0..2 {
        let began = Instant::now();
        let answer = tell(&mut stream, headers(false)).await.expect("an answer");
        assert_eq!(answer, write::more_time(24));
        assert!(stream.is_calling());
        assert!(is_edited(&next(&mut stream).await.expect("an answer")));
        assert_eq!(began.elapsed(), Duration::from_secs(2));
    }
}

/// What Envoy is asked for, and that what it is not asked for is said too.
#[tokio::test]
async fn a_body_is_asked_for() {
    let mut stream = stream(|_| await_body(|_| reply()));
    let answer = tell(&mut stream, headers(false)).await.expect("an answer");
    let mode = answer.mode_override.expect("another mode");
    assert_eq!(
        (mode.request_body_mode(), mode.request_trailer_mode()),
        (BodySendMode::BufferedPartial, HeaderSendMode::Send)
    );
    assert_eq!(
        (mode.response_header_mode(), mode.response_body_mode(), mode.response_trailer_mode()),
        (HeaderSendMode::Skip, BodySendMode::None, HeaderSendMode::Skip)
    );
    assert!(matches!(answer.response, Some(Response::RequestHeaders(_))));
    assert!(is_silent(&mut stream).await && !stream.is_calling());
    assert!(is_reply(&tell(&mut stream, body(0, true)).await.expect("an answer")));
}

#[tokio::test(start_paused = true)]
async fn a_call_may_end_with_a_wish_for_the_body() {
    let mut stream = stream(|_| {
        Verdict::Later(Box::pin(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            await_body(|_| reply())
        }))
    });
    assert_eq!(tell(&mut stream, headers(false)).await.expect("an answer"), write::more_time(24));
    assert_eq!(next(&mut stream).await.expect("an answer"), write::ask_for_body());
    assert!(is_reply(&tell(&mut stream, body(1, true)).await.expect("an answer")));
}

#[tokio::test]
async fn as_much_of_a_body_is_handed_on() {
    for (message, length, whole) in [
        (body(0, true), 0, true),
        (body(0, false), 0, false),
        (body(10, true), 10, true),
        (body(10, false), 10, false),
        (body(MAX_BODY, true), MAX_BODY, true),
        (body(MAX_BODY + 1, true), MAX_BODY, false),
        (body(3 << 20, false), MAX_BODY, false),
        (trailers(), 0, true),
    ] {
        let mut stream = stream(move |_| {
            await_body(move |body| {
                assert_eq!(body, Body::Came { bytes: vec![b'a'; length].into(), whole });
                reply()
            })
        });
        tell(&mut stream, headers(false)).await.expect("an answer");
        assert!(is_reply(&tell(&mut stream, message).await.expect("an answer")));
    }
    // Nothing follows headers that are all.
    let mut stream = stream(|ends| {
        assert!(ends);
        await_body(|body| {
            assert_eq!(body, Body::Came { bytes: Bytes::new(), whole: true });
            reply()
        })
    });
    assert!(is_reply(&tell(&mut stream, headers(true)).await.expect("an answer")));
}

#[tokio::test(start_paused = true)]
async fn a_request_goes_on_after_its_body() {
    let mut stream = stream(|_| {
        await_body(|_| {
            Verdict::Later(Box::pin(async {
                tokio::time::sleep(Duration::from_secs(20)).await;
                Verdict::Forward(Said::new(edits()))
            }))
        })
    });
    tell(&mut stream, headers(false)).await.expect("an answer");
    assert_eq!(tell(&mut stream, body(1, false)).await.expect("an answer"), write::more_time(24));
    let answer = next(&mut stream).await.expect("an answer");
    assert!(matches!(answer.response, Some(Response::RequestBody(_))) && is_edited(&answer));
    let answer = tell(&mut stream, trailers()).await.expect("an answer");
    loses_credentials(answer);
}

/// With it, Envoy is told another length as well, which the role has said.
#[tokio::test]
async fn a_body_that_is_changed() {
    let changed = || Verdict::Forward(Said::new(Edits { body: Some(Bytes::from_static(b"new")), ..edits() }));
    let mut stream = stream(move |_| await_body(move |_| changed()));
    tell(&mut stream, headers(false)).await.expect("an answer");
    let mut answer = tell(&mut stream, body(10, true)).await.expect("an answer");
    let Some(Response::RequestBody(BodyResponse { response: Some(change) })) = &mut answer.response else {
        panic!("a body")
    };
    let body = change.body_mutation.take().and_then(|change| change.mutation);
    assert_eq!(body, Some(Mutation::Body(b"new".to_vec())));
    assert!(is_edited(&answer));
    loses_credentials(tell(&mut stream, trailers()).await.expect("an answer"));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_answered_in_time() {
    let mut stream = stream(|_| {
        await_body(|body| {
            assert_eq!(body, Body::Late);
            reply()
        })
    });
    tell(&mut stream, headers(false)).await.expect("an answer");
    let began = Instant::now();
    assert!(is_reply(&next(&mut stream).await.expect("an answer")));
    assert_eq!(began.elapsed(), LONGEST);
    assert!(stream.take(body(1, true), None).expect("no error").is_none(), "it comes too late");
}

/// What Envoy could not do as it is said ends the stream with an error: the request goes nowhere.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_done_is_an_error() {
    type Wish = fn() -> Verdict;
    let forward: Wish = || Verdict::Forward(Said::new(edits()));
    let another: Wish = || await_body(|_| reply());
    let code = |answer: Result<ProcessingResponse, Status>| answer.err().map(|status| status.code());
    // Headers cannot be changed when trailers came; a body is asked for in the answer to headers; nothing can be
    // told to go on that did not come.
    for (message, wish) in [
        (Some(trailers()), forward),
        (Some(trailers()), another),
        (Some(body(1, true)), another),
        (None, forward),
        (None, another),
        (None, || Verdict::Pass),
    ] {
        let mut stream = stream(move |_| await_body(move |_| wish()));
        tell(&mut stream, headers(false)).await.expect("an answer");
        let answer = match message {
            Some(message) => tell(&mut stream, message).await,
            None => next(&mut stream).await,
        };
        assert_eq!(code(answer), Some(Code::Internal));
    }
    // A body that nobody saw is not changed.
    let mut at_once = stream(|_| Verdict::Forward(Said::new(Edits { body: Some(Bytes::new()), ..edits() })));
    assert_eq!(code(tell(&mut at_once, headers(false)).await), Some(Code::Internal));
    for first in [body(1, true), body(1, false), trailers()] {
        let mut stream = stream(|_| panic!("it is asked"));
        assert_eq!(code(tell(&mut stream, first).await), Some(Code::FailedPrecondition));
    }
    let mut stream = stream(|_| await_body(|_| reply()));
    tell(&mut stream, headers(false)).await.expect("an answer");
    assert_eq!(code(tell(&mut stream, headers(true)).await), Some(Code::FailedPrecondition));
    assert_eq!(code(tell(&mut stream, ProcessingRequest::default()).await), Some(Code::Unimplemented));
}

/// Answers to what Envoy only watches change nothing, so nothing may be handed out.
#[tokio::test]
async fn what_is_watched_is_not_looked_at() {
    let mut stream = stream(|_| panic!("it is asked"));
    let watched = ProcessingRequest { observability_mode: true, ..headers(false) };
    let answer = tell(&mut stream, watched).await.expect("an answer");
    assert_eq!(
        answer,
        ProcessingResponse { response: Some(Response::RequestHeaders(Default::default())), ..Default::default() }
    );
}

/// Whoever hangs up ends what was begun for them.
#[tokio::test]
async fn a_stream_that_ends_ends_its_call() {
    struct Dropped(Arc<AtomicBool>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&dropped);
    let mut stream = stream(move |_| {
        let told = Dropped(Arc::clone(&told));
        Verdict::Later(Box::pin(async move {
            let _told = told;
            pending().await
        }))
    });
    tell(&mut stream, headers(false)).await.expect("an answer");
    assert!(!dropped.load(Ordering::Relaxed));
    drop(stream);
    assert!(dropped.load(Ordering::Relaxed));
}
