//! Answers as Envoy reads them.

use envoy_types::pb::{
    envoy::{
        config::core::v3::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction},
        extensions::filters::http::ext_proc::v3::{
            ProcessingMode,
            processing_mode::{BodySendMode, HeaderSendMode},
        },
        service::ext_proc::v3::{
            BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, ImmediateResponse,
            ProcessingResponse, TrailersResponse, body_mutation::Mutation, processing_request::Request as Phase,
            processing_response::Response,
        },
        r#type::v3::HttpStatus,
    },
    google::protobuf::{BoolValue, Duration},
};

use crate::filter::{reply::Reply, verdict::Edits};

/// Answers a phase in kind, and changes nothing.
pub(super) fn untouched(phase: &Phase) -> ProcessingResponse {
    response(match phase {
        Phase::RequestHeaders(_) => Response::RequestHeaders(HeadersResponse::default()),
        Phase::ResponseHeaders(_) => Response::ResponseHeaders(HeadersResponse::default()),
        Phase::RequestBody(_) => Response::RequestBody(BodyResponse::default()),
        Phase::ResponseBody(_) => Response::ResponseBody(BodyResponse::default()),
        Phase::RequestTrailers(_) => Response::RequestTrailers(TrailersResponse::default()),
        Phase::ResponseTrailers(_) => Response::ResponseTrailers(TrailersResponse::default()),
    })
}

/// Answers headers.
pub(super) fn headers(change: Option<CommonResponse>) -> ProcessingResponse {
    response(Response::RequestHeaders(HeadersResponse { response: change }))
}

/// Answers the headers of a response.
pub(super) fn response_headers(change: Option<CommonResponse>) -> ProcessingResponse {
    response(Response::ResponseHeaders(HeadersResponse { response: change }))
}

/// Answers a body.
pub(super) fn body(change: Option<CommonResponse>) -> ProcessingResponse {
    response(Response::RequestBody(BodyResponse { response: change }))
}

/// Answers trailers, and changes nothing.
pub(super) fn trailers() -> ProcessingResponse {
    response(Response::RequestTrailers(TrailersResponse::default()))
}

/// Lets trailers go on without the headers that were changed.
pub(super) fn trailers_without(edits: &Edits) -> ProcessingResponse {
    let names = edits.set.iter().map(|(name, _)| *name).chain(edits.remove.iter().copied());
    let removed = HeaderMutation { remove_headers: names.map(str::to_owned).collect(), ..HeaderMutation::default() };
    response(Response::RequestTrailers(TrailersResponse { header_mutation: Some(removed) }))
}

/// Asks for time: without it, Envoy would answer 504 when the filter's `message_timeout` is over.
pub(super) fn more_time(seconds: i64) -> ProcessingResponse {
    ProcessingResponse {
        override_message_timeout: Some(Duration { seconds, nanos: 0 }),
        ..ProcessingResponse::default()
    }
}

/// Answers headers with a wish for the body, and for trailers: without those, a request of headers and trailers alone
/// would go on to the upstream.
pub(super) fn ask_for_body() -> ProcessingResponse {
    let mode = ProcessingMode {
        request_body_mode: BodySendMode::BufferedPartial.into(),
        request_trailer_mode: HeaderSendMode::Send.into(),
        // As the filter has them. Envoy before 1.40 takes a mode that is not said for its default, which is to send.
        response_header_mode: HeaderSendMode::Skip.into(),
        response_body_mode: BodySendMode::None.into(),
        response_trailer_mode: HeaderSendMode::Skip.into(),
        ..ProcessingMode::default()
    };
    ProcessingResponse { mode_override: Some(mode), ..headers(None) }
}

/// The change that edits are.
pub(super) fn change(edits: &Edits) -> CommonResponse {
    let set = |(name, value): &(&'static str, bytes::Bytes)| HeaderValueOption {
        header: Some(header(name, value.to_vec())),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    };
    let mutation = HeaderMutation {
        set_headers: edits.set.iter().map(set).collect(),
        remove_headers: edits.remove.iter().map(|name| (*name).to_owned()).collect(),
    };
    let body = edits.body.as_ref().map(|body| BodyMutation { mutation: Some(Mutation::Body(body.to_vec())) });
    CommonResponse { header_mutation: Some(mutation), body_mutation: body, ..CommonResponse::default() }
}

/// An answer in the place of the upstream's.
pub(super) fn immediate(reply: &Reply) -> ProcessingResponse {
    #[expect(deprecated, reason = "Envoy reads `append`: without it the last of two `set-cookie` wins")]
    let set = |(name, value): &(&'static str, bytes::Bytes)| HeaderValueOption {
        header: Some(header(name, value.to_vec())),
        append: (*name == "set-cookie").then_some(BoolValue { value: true }),
        ..HeaderValueOption::default()
    };
    response(Response::ImmediateResponse(ImmediateResponse {
        status: Some(HttpStatus { code: i32::from(reply.status) }),
        headers: Some(HeaderMutation {
            set_headers: reply.headers.iter().map(set).collect(),
            ..HeaderMutation::default()
        }),
        body: reply.body.to_vec(),
        // Shows up in an access log as `%RESPONSE_CODE_DETAILS%`.
        details: ["envoy_cimd_", reply.label].concat(),
        ..ImmediateResponse::default()
    }))
}

fn response(response: Response) -> ProcessingResponse {
    ProcessingResponse { response: Some(response), ..ProcessingResponse::default() }
}

fn header(name: &str, raw_value: Vec<u8>) -> HeaderValue {
    HeaderValue { key: name.to_owned(), raw_value, ..HeaderValue::default() }
}
