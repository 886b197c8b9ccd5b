//! docs/split-horizon.md: a gateway that is not on the internet. One Envoy outside serves its documents and nothing else,
//! one inside the rest; both are real, and both have the same name.

use std::path::Path;

use envoy_cimd::commands::settings::{self, Task};
use http::Version;
use serde_json::{Value, json};
use url::Url;

use crate::{
    authorization_server::{HOST, Lie, Servers},
    envoy_config::{printed, validate},
    flow::press_shown,
    stack::{Answered, Call, Certificates, Client, Envoy, get},
    world::{CALLBACK, DISCONNECT, DOCUMENT, START, Wish, World, run, shell},
};

const NOTES: &str = "notes.localhost";

/// The outer Envoy of a config file's routes.
struct Outside {
    _dir: tempfile::TempDir,
    envoy: Envoy,
    client: Client,
    config: String,
}

impl Outside {
    async fn start(config: &str, certificates: &Certificates) -> Self {
        let text = |path: &Path| path.to_str().expect("text").to_owned();
        let (cert, key) = (text(&certificates.cert), text(&certificates.key));
        let printed = printed(&[
            "envoy-config",
            "--documents-only",
            "--config",
            config,
            "--https-listen=127.0.0.1:0",
            "--http-listen=127.0.0.1:0",
            "--envoy-admin=127.0.0.1:0",
            "--downstream-cert",
            &cert,
            "--downstream-key",
            &key,
        ]);
        let dir = tempfile::tempdir().expect("a folder");
        let envoy = Envoy::start(dir.path(), &printed).await;
        let client = Client::tls(envoy.https, &certificates.ca);
        Self { _dir: dir, envoy, client, config: printed }
    }

    async fn send(&self, call: Call) -> Answered {
        self.client.send(Version::HTTP_2, call).await.expect("an answer")
    }

    /// What an authorization server does that is asked to send a person back: it fetches the client's document from
    /// where the client's name leads it.
    async fn is_taken(&self, authorization_url: &str) {
        let url = Url::parse(authorization_url).expect("a URL");
        let parameter = |name: &str| {
            url.query_pairs()
                .find(|(found, _)| found == name)
                .map(|(_, value)| value.into_owned())
                .expect("a parameter")
        };
        let client_id = parameter("client_id");
        let answer = self.send(Call::url(&Url::parse(&client_id).expect("a URL"))).await;
        assert_eq!((answer.status, answer.all("content-type")), (200, vec!["application/json"]));
        let document: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(document["client_id"], client_id);
        assert_eq!(document["redirect_uris"], json!([parameter("redirect_uri")]));
    }
}

/// What envoy-cimd counted of requests.
async fn counted(world: &World) -> Vec<String> {
    let admin = world.cimd.admin.parse().expect("an address");
    let (_, text) = get(admin, "/metrics").await.expect("metrics");
    let text = String::from_utf8(text.to_vec()).expect("text");
    let lines: Vec<String> =
        text.lines().filter(|line| line.starts_with("envoy_cimd_requests_")).map(str::to_owned).collect();
    assert!(lines.len() > 10, "{text}");
    lines
}

/// Exit code, verdict, and the codes and messages of what was found.
fn probe(args: &[&str]) -> (Option<i32>, String, Vec<String>) {
    let (code, stdout, stderr) = run(&[&["probe", "--json"], args].concat(), &[]);
    assert_eq!(stderr, "");
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let findings = report["findings"].as_array().expect("findings");
    let findings = findings.iter().map(|found| format!("{}: {}", text(&found["code"]), text(&found["message"])));
    (code, text(&report["verdict"]), findings.collect())
}

#[tokio::test]
async fn documents_outside_and_the_rest_inside() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    let certificates = Certificates::make(dir.path(), &[HOST]);
    let servers = Servers::start(&certificates, vec![Lie::none("good")]).await;
    let (ca, state, upstream) = (path("ca.pem"), path("state"), servers.upstream_of("good"));
    let mcp_path = Url::parse(&upstream).expect("a URL").path().to_owned();
    let route = format!("from=https://{NOTES},to={upstream}");
    let routes = |name: &str| format!("routes: [{{from: 'https://{NOTES}', to: '{upstream}', client_name: {name}}}]\n");
    let config = path("cimd.yaml");
    std::fs::write(&config, routes("Notes")).expect("written");
    let inside = World::start(Wish {
        routes: &[&format!("{route},client_name=Notes")],
        cimd: &[
            "--single-user",
            "--insecure-traffic",
            "--extra-ca",
            &ca,
            "--allow-host",
            HOST,
            "--state-dir",
            &state,
            "--log=trace",
        ],
        envoy_config: &["--insecure-traffic"],
        ..Wish::default()
    })
    .await;
    let mut outside = Outside::start(&config, &inside.certificates).await;
    // It is not told what it must not know, nor where the inside is.
    for word in ["ext_proc", "clusters:", "cluster:", "filter_metadata", &upstream, "127.0.0.1:9001"] {
        assert!(!outside.config.contains(word), "{word}");
    }

    // Both sides give the same document, with the same headers.
    let document = Call::get(NOTES, DOCUMENT);
    let within = inside.https().send(Version::HTTP_2, document.clone()).await.expect("an answer");
    let without = outside.send(document).await;
    assert_eq!((without.status, &without.body), (200, &within.body));
    for name in ["content-type", "cache-control", "etag", "access-control-allow-origin", "x-content-type-options"] {
        assert!(!without.all(name).is_empty() && without.all(name) == within.all(name), "{name}");
    }
    let served = "envoy_cimd_requests_total{endpoint=\"document\",outcome=\"served\"}";
    assert_eq!(inside.metric(served).await, Some(1));

    // A whole flow: the person is inside, the authorization server is outside.
    let issuer = format!("{}/good", servers.issuer);
    let within = async |call: Call| inside.https().send(Version::HTTP_2, call).await.expect("an answer");
    let begun = within(press_shown(NOTES, "?return_to=/done", &issuer)).await;
    assert_eq!(begun.status, 303, "{begun:?}");
    let location = begun.all("location").join("");
    outside.is_taken(&location).await;
    let code = servers.consent(&location);
    let url = Url::parse(&location).expect("a URL");
    let state = url.query_pairs().find(|(name, _)| name == "state").expect("a state").1.into_owned();
    let cookie = begun.all("set-cookie").join("").split(';').next().expect("a pair").to_owned();
    let callback = format!("{CALLBACK}?code={code}&state={state}&iss={issuer}");
    let callback = Call::get(NOTES, &callback).header("cookie", cookie);

    // Outside there is nothing else, whoever asks: nothing reaches envoy-cimd or an upstream, and nothing is consumed.
    let mcp = Call::get(NOTES, &mcp_path)
        .method("POST")
        .header("content-type", "application/json")
        .body(r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"x"}}"#);
    let requests = servers.calls() + servers.challenges("good");
    let metrics = counted(&inside).await;
    for call in [
        Call::get(NOTES, START),
        press_shown(NOTES, "", &issuer),
        callback.clone(),
        Call::get(NOTES, DISCONNECT).method("POST").header("sec-fetch-site", "same-origin"),
        mcp.clone(),
        Call::get(NOTES, &mcp_path),
        Call::get(NOTES, "/"),
        Call::get(NOTES, "/.well-known/oauth-protected-resource"),
        Call::get(NOTES, &format!("/linear{DOCUMENT}")),
        Call::get(NOTES, &format!("{DOCUMENT}/")),
        Call::get(NOTES, &format!("{DOCUMENT}?x")),
    ] {
        let answer = outside.send(call.clone()).await;
        assert_eq!(answer.status, 404, "{call:?} {answer:?}");
        assert!(answer.all("set-cookie").is_empty() && answer.all("location").is_empty(), "{answer:?}");
    }
    // To a browser it is the origin of the inside: no worker of it may be installed here, to be there later.
    let worker = Call::get(NOTES, "/worker.js").header("service-worker", "script");
    assert_eq!(outside.send(worker).await.status, 403);
    let elsewhere = Call::get(NOTES, DOCUMENT).authority("tickets.localhost");
    assert_eq!(outside.send(elsewhere).await.status, 421);
    let plain = Client::plain(outside.envoy.http).send(Version::HTTP_11, Call::get(NOTES, DOCUMENT)).await;
    assert_eq!(plain.expect("an answer").status, 403);
    assert_eq!((servers.calls() + servers.challenges("good"), counted(&inside).await), (requests, metrics));

    let done = within(callback).await;
    assert_eq!((done.status, done.all("location")), (303, vec!["/done"]), "{done:?}");
    assert_eq!(servers.exchanges(), std::slice::from_ref(&code));
    let answer = within(mcp).await;
    let result: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let sent = result["result"]["authorization"][0].as_str().unwrap_or_default().to_owned();
    assert!(answer.status == 200 && sent.starts_with("Bearer "), "{answer:?}");
    assert_eq!(inside.metric(served).await, Some(1), "the authorization server was not here");

    // What is outside is what the gateway means, until it is not.
    let out = path("public");
    let documents = || run(&["documents", "--config", &config, "--out", &out], &[]);
    assert_eq!(documents().0, Some(0));
    let file = format!("{out}/{NOTES}{DOCUMENT}");
    let (outer_ca, address) = (inside.certificates.ca.to_str().expect("text"), outside.envoy.https.to_string());
    let there = ["--expect", &file, "--extra-ca", outer_ca, "--connect-to", &address];
    assert_eq!(probe(&there), (Some(0), "fine".into(), Vec::new()));
    std::fs::write(&config, routes("Tickets")).expect("written");
    assert_eq!(documents().0, Some(0));
    let differs = r#"differs: client_name is "Notes"; it should be "Tickets""#;
    assert_eq!(probe(&there), (Some(1), "different".into(), vec![differs.into()]));

    // Whoever left the inside before they came back has shown their code to the outside, which keeps none of it.
    outside.envoy.process.stop().await;
    let log = outside.envoy.process.output();
    assert!(log.contains(CALLBACK) && !log.contains(&code) && !log.contains(&state), "{log}");
}

/// The commands of the page do what it says.
#[test]
fn the_page() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/split-horizon.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let blocks = |language: &str| -> Vec<String> {
        let fence = format!("```{language}\n");
        let blocks = page.split(&fence).skip(1).map(|block| block.split("```").next().expect("an end").to_owned());
        blocks.collect()
    };
    let dir = tempfile::tempdir().expect("a folder");
    let [config] = &blocks("yaml")[..] else { panic!("one config file") };
    std::fs::write(dir.path().join("envoy-cimd.yaml"), config).expect("written");
    let commands = blocks("sh");
    let (probes, commands): (Vec<&String>, Vec<&String>) =
        commands.iter().partition(|block| block.starts_with("envoy-cimd probe "));
    assert!(commands.len() >= 3 && !probes.is_empty());
    for block in commands {
        shell(block, dir.path());
    }
    for block in probes {
        let args = block.split_whitespace().map(Into::into);
        let Task::Probe(probe) = settings::parse::parse(args).expect(block).task else { panic!("{block}") };
        let file = dir.path().join(probe.expect.expect("--expect"));
        assert!(file.is_file(), "{}", file.display());
    }
    let certificates = Certificates::make(dir.path(), &["mcp.example.com"]);
    for (file, documents_only) in [("outer.yaml", true), ("envoy.yaml", false)] {
        let mut text = std::fs::read_to_string(dir.path().join(file)).expect(file);
        for (from, to) in [
            ("/etc/envoy/tls.crt", &certificates.cert),
            ("/etc/envoy/tls.key", &certificates.key),
            ("/etc/ssl/certs/ca-certificates.crt", &certificates.ca),
        ] {
            text = text.replace(from, to.to_str().expect("text"));
        }
        let (good, said) = validate(&text);
        assert!(good, "{file}: {said}");
        assert_eq!(!text.contains("ext_proc"), documents_only, "{file}");
    }
}

/// What has no effect on an Envoy of documents alone, or would make it another one, is refused.
#[test]
fn what_does_not_go_with_it() {
    for (args, code, error) in [
        (&["--static-cimd"][..], 2, "cannot be used with"),
        (&["--processor=127.0.0.1:9001"], 2, "cannot be used with"),
        (&["--part=filter"], 1, "--documents-only has no filter, no cluster and no secrets"),
        (&["--part=cluster"], 1, "--documents-only has no filter, no cluster and no secrets"),
    ] {
        let route = "--route=from=https://a.example";
        let (exit, stdout, stderr) = run(&[&["envoy-config", "--documents-only", route], args].concat(), &[]);
        assert_eq!((exit, stdout.as_str()), (Some(code), ""), "{args:?}");
        assert!(stderr.contains(error), "{args:?} {stderr}");
    }
    let (code, _, stderr) = run(&["envoy-config", "--documents-only"], &[]);
    assert!(code == Some(1) && stderr.contains("no route was given"), "{stderr}");
    // A gateway for one person has documents for everybody.
    let args = ["envoy-config", "--documents-only", "--single-user", "--route=from=https://a.example"];
    assert!(!printed(&args).contains(r#""address":"127.0.0.1","port_value":8443"#));
    let hosts = printed(&["envoy-config", "--documents-only", "--part=routes", "--route=from=https://a.example"]);
    assert!(hosts.contains("direct_response") && !hosts.contains("typed_per_filter_config"), "{hosts}");
}
