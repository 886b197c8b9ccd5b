//! A token endpoint's answer, through the parser that the exchange uses. The first line has status and content type,
//! and the rest is the body.

#![no_main]

use std::sync::LazyLock;

use envoy_cimd::exchange::oauth::{HttpError, OAuthClient, failure};
use envoy_cimd_fuzz::at_both_sizes;
use libfuzzer_sys::fuzz_target;
use oauth2::{AuthorizationCode, ClientId, EndpointNotSet, EndpointSet, HttpRequest, HttpResponse, TokenUrl};
use tokio::runtime::{Builder, Runtime};

type Client = OAuthClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

static CLIENT: LazyLock<Client> = LazyLock::new(|| {
    let token_url = TokenUrl::new("https://as.example/token".to_owned()).expect("a URL");
    OAuthClient::new(ClientId::new("https://mcp.example.com/c".to_owned())).set_token_uri(token_url)
});
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime"));

fuzz_target!(|text: &str| at_both_sizes(text, check));

fn check(text: &str) {
    let (head, body) = text.split_once('\n').unwrap_or(("200 application/json", text));
    let (status, content_type) = head.split_once(' ').unwrap_or((head, "application/json"));
    let response = http::Response::builder().status(status).header("content-type", content_type);
    let Ok(response) = response.body(body.as_bytes().to_vec()) else { return };
    let answer = async |_: HttpRequest| Ok::<HttpResponse, HttpError>(response.clone());
    let answer = |request| Box::pin(answer(request));
    let code = AuthorizationCode::new("a code".to_owned());
    match RUNTIME.block_on(CLIENT.exchange_code(code).request_async(&answer)) {
        Ok(answer) => {
            let Ok(granted) = answer.granted() else { return };
            for token in [Some(granted.access_token), granted.refresh_token].into_iter().flatten() {
                assert!((1..=16 << 10).contains(&token.expose().len()));
                assert!(token.expose().bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
        // Of the server's own words nothing is repeated.
        Err(error) => assert!(failure(&error).starts_with("the token endpoint")),
    }
}
