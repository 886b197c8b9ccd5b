//! The table of outcomes: a row for each way that a callback can end.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use envoy_cimd::{
    filter::{browser::BrowserCookie, state::StateKeys},
    model::{
        client::RedirectUri,
        clock::UnixTime,
        flow::FlowId,
        secret::{Key, Secret},
    },
};
use serde_json::Value;

use super::{Begun, CODE, Flows, Layout, NOTES, TICKETS, at, honest, is_guarded, press, with_query, without_cookie};
use crate::{
    choreographer::{ISSUER, Mood},
    stack::Call,
    world::{CALLBACK, START},
};

/// One row of the outcome table: a flow is begun, the choreographer is put in a mood, and then this is sent.
pub struct Row {
    pub name: &'static str,
    pub mood: Mood,
    pub callback: fn(&Begun) -> Call,
    pub status: u16,
    pub label: &'static str,
    pub consumed: bool,
    pub called: bool,
}

/// (name, mood, callback, status, label, consumed, called)
macro_rules! table {
    ($(($name:expr, $mood:ident, $callback:expr, $status:expr, $label:expr, $consumed:expr, $called:expr),)*) => {
        vec![$(Row { name: $name, mood: Mood::$mood, callback: $callback, status: $status, label: $label,
            consumed: $consumed, called: $called }),*]
    };
}

#[rustfmt::skip]
pub fn rows() -> Vec<Row> {
    table![
        ("success", Correct, honest, 303, "completed", true, true),
        ("success with `iss`", Correct, |b| with_query(b, &format!("code={CODE}&state={}&iss=https%3A%2F%2Fas.example", b.state)), 303, "completed", true, true),
        ("unknown parameters are ignored", Correct, |b| with_query(b, &format!("x=1&code={CODE}&state={}&x=2&session_state=%25", b.state)), 303, "completed", true, true),
        ("a forwarded host is no host", Correct, |b| honest(b).header("x-forwarded-host", "evil.example"), 303, "completed", true, true),
        ("a navigation", Correct, |b| honest(b).header("sec-fetch-dest", "document").header("sec-fetch-site", "cross-site"), 303, "completed", true, true),
        ("no query", Correct, |b| { let mut call = honest(b); call.path = CALLBACK.to_owned(); call }, 400, "bad_request", false, false),
        ("no state", Correct, |b| with_query(b, &format!("code={CODE}")), 400, "bad_request", false, false),
        ("an empty state", Correct, |b| with_query(b, &format!("code={CODE}&state=")), 400, "bad_request", false, false),
        ("neither code nor error", Correct, |b| with_query(b, &format!("state={}", b.state)), 400, "bad_request", false, false),
        ("an empty code", Correct, |b| with_query(b, &format!("code=&state={}", b.state)), 400, "bad_request", false, false),
        ("both code and error", Correct, |b| with_query(b, &format!("code={CODE}&error=x&state={}", b.state)), 400, "bad_request", false, false),
        ("two codes", Correct, |b| with_query(b, &format!("code={CODE}&code={CODE}&state={}", b.state)), 400, "bad_request", false, false),
        ("two states", Correct, |b| with_query(b, &format!("code={CODE}&state={0}&state={0}", b.state)), 400, "bad_request", false, false),
        ("two iss", Correct, |b| with_query(b, &format!("code={CODE}&state={}&iss=a&iss=a", b.state)), 400, "bad_request", false, false),
        ("two errors", Correct, |b| with_query(b, &format!("error=a&error=a&state={}", b.state)), 400, "bad_request", false, false),
        ("two descriptions", Correct, |b| with_query(b, &format!("error=a&error_description=a&error_description=a&state={}", b.state)), 400, "bad_request", false, false),
        ("bad percent-encoding", Correct, |b| with_query(b, &format!("code={CODE}%&state={}", b.state)), 400, "bad_request", false, false),
        ("bad UTF-8", Correct, |b| with_query(b, &format!("code={CODE}&state={}&x=%FF", b.state)), 400, "bad_request", false, false),
        ("over 8 kB", Correct, |b| with_query(b, &format!("code={CODE}&state={}&x={}", b.state, "x".repeat(8192))), 400, "bad_request", false, false),
        ("an image", Correct, |b| honest(b).header("sec-fetch-dest", "image"), 400, "bad_request", false, false),
        ("a frame", Correct, |b| honest(b).header("sec-fetch-dest", "iframe"), 400, "bad_request", false, false),
        ("a random state", Correct, |b| with_query(b, &format!("code={CODE}&state=nonsense")), 400, "malformed", false, false),
        ("10,000 random bytes as state", Correct, |b| with_query(b, &format!("code={CODE}&state={}", random_text(5_900))), 400, "malformed", false, false),
        ("a state encoded twice", Correct, |b| with_query(b, &format!("code={CODE}&state={}%253D", b.state)), 400, "malformed", false, false),
        ("somebody else's key", Correct, |b| with_query(b, &format!("code={CODE}&state={}", foreign_state())), 400, "unknown_key", false, false),
        ("a flipped bit", Correct, |b| with_query(b, &format!("code={CODE}&state={}", flipped(&b.state))), 400, "bad_mac", false, false),
        ("another route's state", Correct, |b| at(honest(b), TICKETS), 400, "wrong_route", false, false),
        ("no cookie", Correct, |b| without_cookie(honest(b)), 400, "wrong_browser", false, false),
        ("another cookie", Correct, |b| without_cookie(honest(b)).header("cookie", format!("{}x", b.cookie)), 400, "wrong_browser", false, false),
        ("a stolen cookie under another name", Correct, |b| without_cookie(honest(b)).header("cookie", format!("x{}", b.cookie)), 400, "wrong_browser", false, false),
        ("wrong `iss`", Correct, |b| with_query(b, &format!("code={CODE}&state={}&iss=https://evil.example", b.state)), 400, "issuer_mismatch", true, true),
        ("`iss` with a slash", Correct, |b| with_query(b, &format!("code={CODE}&state={}&iss={ISSUER}/", b.state)), 400, "issuer_mismatch", true, true),
        ("`iss` with :443", Correct, |b| with_query(b, &format!("code={CODE}&state={}&iss={ISSUER}:443", b.state)), 400, "issuer_mismatch", true, true),
        ("`iss` on an error", Correct, |b| with_query(b, &format!("error=access_denied&state={}&iss=https://evil.example", b.state)), 400, "issuer_mismatch", true, true),
        ("no `iss` though advertised", WantsIss, honest, 400, "issuer_mismatch", true, true),
        ("denied", Correct, |b| with_query(b, &format!("error=access_denied&error_description=%3Cscript%3ESECRET&state={}", b.state)), 400, "as_error", true, true),
        ("the token endpoint refuses", NoToken, honest, 502, "exchange_failed", true, true),
        ("the choreographer fails", Fails, honest, 502, "choreographer_failed", false, true),
        ("the choreographer answers garbage", Garbage, honest, 502, "choreographer_failed", false, true),
        ("a `return_to` that leads away", BadReturn, honest, 502, "choreographer_failed", true, true),
        ("a prefetch", Correct, |b| honest(b).header("sec-purpose", "prefetch"), 503, "prefetch", false, false),
        ("a prefetch of another browser", Correct, |b| honest(b).header("purpose", "prefetch"), 503, "prefetch", false, false),
        ("POST", Correct, |b| honest(b).method("POST"), 405, "method_not_allowed", false, false),
        ("HEAD", Correct, |b| honest(b).method("HEAD"), 405, "method_not_allowed", false, false),
        ("another port", Correct, |b| honest(b).authority("notes.localhost:8443"), 421, "misdirected_request", false, false),
    ]
}

fn random_text(bytes: usize) -> String {
    let random = envoy_cimd::model::secret::random::<5_900>().expect("randomness");
    BASE64_URL_SAFE_NO_PAD.encode(random.get(..bytes).expect("enough"))
}

fn foreign_state() -> String {
    let keys = StateKeys::new(vec![Key::new([9; 32])]);
    let redirect_uri = RedirectUri::new(format!("https://{NOTES}{CALLBACK}"));
    let now = UnixTime::from_secs(1_800_000_000);
    keys.mint(FlowId([1; 16]), &redirect_uri, &BrowserCookie::from(Secret::new("c")), now, UnixTime::MAX)
        .expect("a key")
}

/// A bit of the flow's id is another.
fn flipped(state: &str) -> String {
    let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(state).expect("base64url");
    bytes[20] ^= 1;
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

#[tokio::test]
async fn the_outcome_table() {
    outcome_table(Layout::Hosts).await;
}

#[tokio::test]
async fn the_outcome_table_between_two_paths() {
    outcome_table(Layout::Paths).await;
}

/// What a link to start again has behind it, for who wanted to go to `/after?a=b`.
const WANTED: &str = "?return_to=%2Fafter%3Fa%3Db";

async fn outcome_table(layout: Layout) {
    let flows = Flows::of(&layout.routes(), &["--single-user"]).await;
    let mut bodies_of_400 = Vec::new();
    for html in [false, true] {
        for Row { name, mood, callback, status, label, consumed, called } in rows() {
            flows.fake.set(Mood::Correct);
            flows.fake.forget_flows();
            let begun = flows.begin_as(layout.place(press(NOTES, "?return_to=/after%3Fa%3Db"))).await;
            flows.fake.set(mood);
            let (labelled, completions) = (flows.labelled("callback", label).await, flows.fake.completions());
            let exchanges = flows.fake.exchanges().len();
            let mut call = layout.place(callback(&begun));
            if html {
                call = call.header("accept", "text/html,*/*;q=0.8");
            }
            let method = call.method;
            let start = format!("{}{START}", call.path.split("/.pomerium").next().unwrap_or_default());
            let answer = flows.send(call).await;
            let row = format!("{name}, html {html}: {answer:?}");
            assert_eq!(answer.status, status, "{row}");
            assert_eq!(flows.labelled("callback", label).await, labelled + 1, "{label}; {row}");
            assert_eq!(flows.fake.consumed(), consumed, "consumed; {row}");
            assert_eq!(flows.fake.completions(), completions + usize::from(called), "called; {row}");
            let redeems = status == 303 || matches!(mood, Mood::NoToken | Mood::BadReturn);
            assert_eq!(flows.fake.exchanges().len(), exchanges + usize::from(redeems), "exchanged; {row}");
            is_guarded(&answer, &row);
            assert!(answer.all("set-cookie").is_empty(), "{row}");
            if status == 303 {
                assert_eq!(answer.all("location"), ["/after?a=b"], "{row}");
                assert_eq!(answer.text(), "", "{row}");
                continue;
            }
            assert!(answer.all("location").is_empty(), "{row}");
            for secret in [CODE, &begun.state, "SECRET", "<script", "evil", "notes"] {
                assert!(!answer.text().contains(secret), "{secret}; {row}");
            }
            if method == "HEAD" {
                continue;
            }
            let [id] = answer.all("x-request-id")[..] else { panic!("{row}") };
            if html {
                assert_eq!(answer.all("content-type"), ["text/html; charset=utf-8"], "{row}");
                assert!(answer.text().contains("<html lang=\"en\">") && answer.text().contains(id), "{row}");
                // Who is known to be the one who began goes on from there to where they wanted.
                let is_known = ["issuer_mismatch", "as_error", "exchange_failed"].contains(&label);
                let query = if is_known { WANTED } else { "" };
                let again = answer.text().contains(&format!("href=\"{start}{query}\""));
                assert_eq!(again, matches!(status, 400 | 405 | 502 | 503), "a way to start again; {row}");
            } else {
                assert_eq!(answer.all("content-type"), ["application/json"], "{row}");
                let body: Value = serde_json::from_slice(&answer.body).expect(&row);
                let shown = if status == 400 { "bad_request" } else { label };
                assert_eq!(body["error"], shown, "{row}");
            }
            if status == 400 {
                // But for the way to start again, which is the route's own, and that person's.
                bodies_of_400.push((html, answer.text().replace(id, "ID").replace(&start, START).replace(WANTED, "")));
            }
        }
    }
    bodies_of_400.dedup();
    assert_eq!(bodies_of_400.len(), 2, "400 bodies are all alike: {bodies_of_400:#?}");
    flows.finish().await;
}

/// Whatever the libraries below us say when they are asked to say everything.
#[tokio::test]
async fn nothing_leaks_at_any_log_level() {
    let flows = Flows::with(&["--single-user", "--log=trace"], &|_| {}).await;
    let begun = flows.begin(NOTES, "").await;
    assert_eq!(flows.send(honest(&begun)).await.status, 303);
    assert_eq!(flows.send(honest(&begun)).await.status, 409);
    let begun = flows.begin(NOTES, "").await;
    let denied = format!("error=access_denied&error_description=%3Cscript%3ESECRET&state={}", begun.state);
    assert_eq!(flows.send(with_query(&begun, &denied)).await.status, 400);
    assert!(flows.world.cimd.process.output().contains("\"TRACE\""));
    flows.finish().await;
}
