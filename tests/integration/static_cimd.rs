//! Documents that Envoy serves by itself (`--static-cimd`) against those of the filter, request by request.

use http::Version;
use serde_json::json;

use crate::{
    document::table,
    stack::{Answered, Call, Client},
    world::{CALLBACK, DOCUMENT, START, Wish, World, virtual_hosts},
};

/// What cannot be equal: what differs and, where there is one, the header. docs/envoy.md has the same list.
///
/// - A bad `from` is refused when the configuration is printed, so there is no 500.
/// - `date` is the moment.
/// - Requests have a name of their own each; that there is one is compared.
/// - After a request with a body on HTTP/1.1 one may close the connection, as it answers before it has read the body.
/// - Refusals and answers are neither counted nor logged by envoy-cimd.
const DIFFERENT: &[&str] = &["date", "x-request-id"];

const LARGE: usize = 4500;

async fn world(envoy_config: &[&str]) -> World {
    let large = format!("from=https://other.localhost,client_name={}", "a".repeat(LARGE));
    let settings = ["--client-name=Müller's \"{hostname}\"", "--document-max-age=60"];
    World::start(Wish {
        routes: &[
            "from=https://notes.localhost",
            "from=https://notes.localhost/linear",
            "from=https://notes.localhost/Linear/v1,client_name=Linear",
            "from=https://tickets.localhost:8443,client_name=Tickets",
            "from=https://tickets.localhost",
            "from=https://bücher.localhost",
            &large,
        ],
        cimd: &settings,
        envoy_config: &[&settings, envoy_config].concat(),
        edit: &|config| {
            for host in virtual_hosts(config).iter_mut().filter(|host| host["name"] == "notes.localhost") {
                // An authority that Envoy takes for the route's, and we must not.
                host["domains"] = json!(["notes.localhost", "notes.localhost:*", "moved.localhost"]);
            }
        },
    })
    .await
}

/// All that must be equal.
#[derive(Debug, PartialEq)]
struct Comparable {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Comparable {
    fn new(answer: &Answered, has_body: bool) -> Self {
        let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
        let mut headers: Vec<(String, String)> = answer
            .headers
            .iter()
            .filter(|(name, _)| !(has_body && *name == "connection"))
            .map(|(name, value)| match DIFFERENT.contains(&name.as_str()) {
                true => (name.to_string(), "its own".to_owned()),
                false => (name.to_string(), text(value.as_bytes())),
            })
            .collect();
        headers.sort();
        Self { status: answer.status, headers, body: text(&answer.body) }
    }
}

fn calls(etag: &str) -> Vec<(String, Call)> {
    let notes = || Call::get("notes.localhost", DOCUMENT);
    let mut calls: Vec<(String, Call)> =
        table(etag).into_iter().map(|(name, call, _)| (name.to_owned(), call)).collect();
    for method in ["GET", "HEAD", "OPTIONS", "POST", "TRACE", "CONNECT", "PROPFIND", "get"] {
        calls.push((format!("{method} of all that is wrong"), {
            Call::get("notes.localhost", &format!("{DOCUMENT}?x")).method(method).authority("moved.localhost")
        }));
        calls.push((method.to_owned(), notes().method(method).header("if-none-match", "*")));
    }
    let bare = etag.trim_matches('"');
    for values in [
        vec![""],
        vec![","],
        vec!["*,"],
        vec!["**"],
        vec!["*x"],
        vec!["\"*\""],
        vec![bare],
        vec![&format!("w/{etag}")],
        vec![&format!("W/ {etag}")],
        vec![&format!("W/W/{etag}")],
        vec![&format!("x{etag}")],
        vec![&format!("{etag}x")],
        vec![&format!("{etag} x")],
        vec![&format!("\"a\",\t{etag} ,\"b\"")],
        vec![&format!("\"a\"{etag}")],
        vec![&etag.to_uppercase()],
        vec!["\"a\"", "\"b\"", etag],
        vec![etag, "\"b\""],
        vec!["", "*"],
        vec![&format!("\"é\", {etag}")],
    ] {
        for method in ["GET", "HEAD"] {
            let call = values.iter().fold(notes().method(method), |call, value| call.header("if-none-match", *value));
            calls.push((format!("{method} if-none-match {values:?}"), call));
        }
    }
    for query in ["?", "??", "?x", "?x=1&y", "?#", "#", "%3F", "?\u{7f}"] {
        calls.push((format!("the query {query:?}"), Call::get("notes.localhost", &format!("{DOCUMENT}{query}"))));
    }
    for (host, authorities) in [
        (
            "notes.localhost",
            &[
                "Notes.LocalHost:443",
                "notes.localhost:",
                "notes.localhost:0443",
                "notes.localhost:4430",
                "notes.localhost:44",
                "notes.localhost.",
                "notesxlocalhost",
                "x.notes.localhost",
                "notes.localhost:x",
            ][..],
        ),
        (
            "tickets.localhost",
            &[
                "tickets.localhost",
                "tickets.localhost:8443",
                "tickets.localhost:443",
                "tickets.localhost:1",
                "TICKETS.localhost:443",
            ],
        ),
        ("xn--bcher-kva.localhost", &["xn--bcher-kva.localhost", "XN--bcher-kva.localhost:443"]),
        ("other.localhost", &["other.localhost", "other.localhost:1"]),
    ] {
        for authority in authorities {
            for method in ["GET", "HEAD", "DELETE"] {
                let call = Call::get(host, DOCUMENT).authority(*authority).method(method);
                calls.push((format!("{method} {authority}"), call));
            }
        }
    }
    for header in ["x-forwarded-proto", "x-forwarded-host", "x-envoy-original-path", "range", "if-modified-since"] {
        for value in ["http", "https", "bytes=0-1", "/other"] {
            calls.push((format!("{header}: {value}"), notes().header(header, value)));
        }
    }
    for path in ["/linear", "/Linear/v1", "/Linear", "/linear/v1", "/linear/", "//linear", "/x/../linear", "/%6cinear"]
    {
        let at = |of: &str| Call::get("notes.localhost", &format!("{path}{of}"));
        for method in ["GET", "HEAD", "OPTIONS", "POST"] {
            calls.push((format!("{method} under {path}"), at(DOCUMENT).method(method)));
        }
        calls.push((format!("a query under {path}"), at(&format!("{DOCUMENT}?x"))));
        calls.push((format!("another port under {path}"), at(DOCUMENT).authority("notes.localhost:1")));
        calls.push((format!("any tag under {path}"), at(DOCUMENT).header("if-none-match", "*")));
    }
    calls.push(("a service worker".to_owned(), notes().header("service-worker", "script")));
    calls.push(("a body".to_owned(), notes().method("POST").body("x".repeat(100_000))));
    calls.push(("GET with a body".to_owned(), notes().body("x")));
    calls
}

#[tokio::test]
async fn envoy_alone_answers_as_the_filter_does() {
    let (ours, mut envoys) = tokio::join!(world(&[]), world(&["--static-cimd"]));
    let first = ours.https().send(Version::HTTP_11, Call::get("notes.localhost", DOCUMENT)).await.expect("an answer");
    let etag = first.all("etag").join("");
    let mut statuses = Vec::new();
    let plain = (Client::plain(ours.envoy.http), Client::plain(envoys.envoy.http));
    for (version, clients) in [
        (Version::HTTP_11, (ours.https(), envoys.https())),
        (Version::HTTP_2, (ours.https(), envoys.https())),
        (Version::HTTP_11, plain),
    ] {
        for (name, call) in calls(&etag) {
            let has_body = !call.body.is_empty();
            let (filter, envoy) = tokio::join!(clients.0.send(version, call.clone()), clients.1.send(version, call));
            // Where the client itself refuses to send it, neither has an answer.
            match (filter, envoy) {
                (Ok(filter), Ok(envoy)) => {
                    let (filter, envoy) = (Comparable::new(&filter, has_body), Comparable::new(&envoy, has_body));
                    assert_eq!(filter, envoy, "{name}, {version:?}");
                    statuses.push(filter.status);
                }
                (filter, envoy) => {
                    assert!(filter.is_err() && envoy.is_err(), "{name}, {version:?}: {filter:?} {envoy:?}");
                }
            }
        }
    }
    for status in [200, 204, 304, 403, 404, 405, 421] {
        assert!(statuses.contains(&status), "no row gave {status}");
    }
    assert!(statuses.len() > 400, "{}", statuses.len());
    let counted = async |world: &World, outcome| {
        world.metric(&format!("envoy_cimd_requests_total{{endpoint=\"document\",outcome=\"{outcome}\"}}")).await
    };
    assert!(counted(&ours, "served").await > Some(0));
    assert_eq!(counted(&envoys, "served").await, Some(0), "Envoy did not ask");
    // It needs nobody for it; callback and start are the filter's.
    envoys.cimd.process.signal("-KILL");
    envoys.cimd.process.ended().await;
    assert_eq!(envoys.document("notes.localhost").await.0, 200);
    for path in [START, CALLBACK] {
        let answer = envoys.https().send(Version::HTTP_2, Call::get("notes.localhost", path)).await;
        assert_eq!(answer.expect("an answer").status, 503, "{path}");
    }
    assert!(envoys.upstream.seen().is_empty() && ours.upstream.seen().is_empty());
}
