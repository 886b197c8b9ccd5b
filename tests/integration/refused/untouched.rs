//! What is no refusal of ours to answer passes as it is, and opens no stream.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use http::Version;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{Bed, NOTES, assert_untold, challenge, mcp, refused, says};
use crate::{
    authorization_server::Lie,
    flow::person,
    world::{http_filters, list, virtual_hosts},
};

/// Where no token was put in, there is none to report; whoever put theirs in is told nothing by the upstream either.
#[tokio::test]
async fn a_request_without_the_role_traffic() {
    let bed = Bed::with(Lie::none("notes"), &[], &|config| {
        for route in routes_of(config, NOTES) {
            if let Some(filters) = route["typed_per_filter_config"].as_object_mut() {
                filters.remove("envoy-cimd-traffic");
            }
        }
    })
    .await;
    bed.connect("ann", NOTES, "", "notes").await;
    bed.answers(|| says(401, challenge("")));
    let told = refused(&bed.call("ann", &[("authorization", "Bearer SECRET-access-of-SECRET-code-0")]).await);
    assert_eq!(told, "This MCP server refused the request.");
    assert_eq!((bed.servers.refreshes().len(), bed.servers.calls()), (0, 1));
    bed.finish().await;
}

fn routes_of<'a>(config: &'a mut Value, host: &str) -> &'a mut Vec<Value> {
    let hosts = virtual_hosts(config);
    let host = hosts
        .iter_mut()
        .find(|of| of["domains"].as_array().is_some_and(|domains| domains.iter().any(|domain| domain == host)));
    list(&mut host.expect("the host")["routes"])
}

/// Envoy's own refusals pass as they are, and cost no stream; neither do answers that are none, nor streams.
#[tokio::test]
async fn what_is_not_the_upstreams_refusal_opens_no_stream() {
    let bed = Bed::with(Lie::none("notes"), &[], &|config| {
        let routes = routes_of(config, NOTES);
        let mcp = routes.iter().find(|route| route["match"]["path"] == "/notes/mcp").expect("the MCP route").clone();
        let with_header = |name: &str| {
            let mut route = mcp.clone();
            route["match"]["headers"] = json!([{"name": name, "present_match": true}]);
            route
        };
        let mut direct = with_header("x-direct");
        // The role traffic would answer before.
        direct["typed_per_filter_config"].as_object_mut().expect("filters").remove("envoy-cimd-traffic");
        for key in ["route", "request_headers_to_remove"] {
            direct.as_object_mut().expect("a route").remove(key);
        }
        direct["direct_response"] = json!({"status": 401, "body": {"inline_string": "direct"}});
        direct["response_headers_to_remove"] = json!([]);
        direct["response_headers_to_add"] = json!([{"header": {"key": "www-authenticate", "value": "Bearer direct"}}]);
        let mut limited = with_header("x-limited");
        limited["typed_per_filter_config"]["limit"] = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "limit",
            "status": {"code": 403},
            "token_bucket": {"max_tokens": 1, "tokens_per_fill": 1, "fill_interval": "3600s"},
            "filter_enabled": {"default_value": {"numerator": 100}},
            "filter_enforced": {"default_value": {"numerator": 100}},
        });
        routes.splice(0..0, [direct, limited]);
        let header = |name: &str| json!({"name": name, "present_match": true});
        let keys = json!({"keys": [{"kty": "oct", "alg": "HS256", "k": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]});
        http_filters(config).splice(
            1..1,
            [
                json!({"name": "limit", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
                    "stat_prefix": "limit",
                }}),
                json!({"name": "rbac", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                    "rules": {"action": "DENY", "policies": {"all": {
                        "permissions": [{"header": header("x-denied")}], "principals": [{"any": true}],
                    }}},
                }}),
                json!({"name": "jwt", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
                    "providers": {"own": {"issuer": "own", "local_jwks": {"inline_string": keys.to_string()}}},
                    "rules": [{"match": {"prefix": "/", "headers": [header("x-signed")]}, "requires": {"provider_name": "own"}}],
                }}),
            ],
        );
    })
    .await
    .with_ann()
    .await;
    let before = bed.streams().await;
    assert_eq!(bed.call("ann", &[]).await.status, 200);
    assert_eq!(bed.streams().await, before + 1, "the one of the role traffic");
    let before = bed.streams().await;
    assert_eq!(bed.call("ann", &[("x-limited", "1")]).await.status, 200);
    assert_eq!(bed.streams().await, before + 1);
    let (before, calls) = (bed.streams().await, bed.servers.calls());
    for (header, status, body, challenges) in [
        ("x-limited", 403, "local_rate_limited", 0),
        ("x-direct", 401, "direct", 1),
        ("x-denied", 403, "RBAC: access denied", 0),
        ("x-signed", 401, "Jwt is missing", 1),
    ] {
        let answer = bed.call("ann", &[(header, "1")]).await;
        assert_eq!((answer.status, answer.text()), (status, body), "{header}");
        assert_eq!(answer.all("www-authenticate").len(), challenges, "{header} {answer:?}");
    }
    assert_eq!((bed.streams().await, bed.servers.calls()), (before, calls), "nobody was asked");
    // Answers that stream.
    bed.answers(|| {
        let events = stream::iter((0..3).map(|number| Ok::<_, std::io::Error>(format!("data: {number}\n\n"))));
        ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
    });
    let answer = bed.call("ann", &[]).await;
    assert_eq!((answer.status, answer.text()), (200, "data: 0\n\ndata: 1\n\ndata: 2\n\n"));
    assert_eq!(bed.streams().await, before + 1);
    bed.answers(|| answer_of_upstream(StatusCode::NOT_FOUND));
    assert_eq!(bed.call("ann", &[]).await.status, 404);
    assert_eq!(bed.streams().await, before + 2);
    // And one that is.
    bed.answers(|| says(401, challenge("")));
    refused(&bed.call("ann", &[]).await);
    assert_eq!(bed.streams().await, before + 4);
    bed.finish().await;
}

fn answer_of_upstream(status: StatusCode) -> Response {
    (status, "the upstream").into_response()
}

/// What an upstream says is for nobody, also where nobody is there to hear it.
#[tokio::test]
async fn a_refusal_without_envoy_cimd() {
    let mut bed = Bed::connected().await;
    let gate = Arc::new(Semaphore::new(0));
    let (closed, came) = (Arc::clone(&gate), Arc::new(Semaphore::new(0)));
    let told = Arc::clone(&came);
    bed.servers.behave("notes", move |_| {
        let (gate, came) = (Arc::clone(&closed), Arc::clone(&told));
        async move {
            came.add_permits(1);
            let _ = gate.acquire().await;
            Some(says(401, challenge("")))
        }
    });
    let client = bed.world.https();
    let waiting =
        tokio::spawn(async move { client.send(Version::HTTP_2, person(mcp(NOTES, "/notes/mcp"), "i", "ann")).await });
    came.acquire().await.expect("open").forget();
    bed.world.cimd.process.signal("-KILL");
    bed.world.cimd.process.ended().await;
    gate.add_permits(1);
    let answer = waiting.await.expect("no panic").expect("an answer");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_untold(&answer);
}
