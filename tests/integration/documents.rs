//! `envoy-cimd documents`: files that are what is served, and nothing of what is there besides is touched.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use http::Version;
use serde_json::Value;
use url::Url;

use crate::{
    stack::Call,
    world::{Wish, World, run, shell},
};

/// Routes of several hosts, ports and paths, and every setting of a document.
const CONFIG: &str = r#"
document_path: /oauth/client.json
callback_path: /oauth/callback
document_max_age: 60
client_name: "Acme {hostname}"
listen: 127.0.0.1:0
routes:
- {from: https://notes.localhost}
- {from: https://notes.localhost/linear, client_name: "Müller's \"MCP\""}
- {from: https://tickets.localhost:8443}
- {from: https://bücher.localhost}
"#;

const FILES: [&str; 4] = [
    "notes.localhost/oauth/client.json",
    "notes.localhost/linear/oauth/client.json",
    "tickets.localhost:8443/oauth/client.json",
    "xn--bcher-kva.localhost/oauth/client.json",
];

/// A folder with a config file.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(config: &str) -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        folder.configure(config);
        folder
    }

    fn configure(&self, config: &str) {
        fs::write(self.0.path().join("cimd.yaml"), config).expect("written");
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("text").to_owned()
    }

    fn run(&self, more: &[&str]) -> (Option<i32>, String, String) {
        let (config, out) = (self.path("cimd.yaml"), self.path("out"));
        run(&[&["documents", "--config", &config, "--out", &out], more].concat(), &[])
    }

    /// What became of each file, as the program says it.
    fn states(&self) -> BTreeMap<String, String> {
        let (code, stdout, stderr) = self.run(&["--json"]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        let report: Value = serde_json::from_str(&stdout).expect("JSON");
        let out = self.path("out/");
        let state = |document: &Value| {
            let text = |name: &str| document[name].as_str().expect(name).to_owned();
            (text("file").strip_prefix(&out).expect("in the folder").to_owned(), text("state"))
        };
        report["documents"].as_array().expect("documents").iter().map(state).collect()
    }

    /// Every file below, with its content.
    fn tree(&self) -> BTreeMap<PathBuf, String> {
        fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
            for entry in fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    walk(&path, found);
                } else {
                    let text = fs::read_to_string(&path).expect("a file");
                    found.insert(path, text);
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(self.0.path(), &mut found);
        found
    }
}

fn all(state: &str) -> BTreeMap<String, String> {
    FILES.iter().map(|file| ((*file).to_owned(), state.to_owned())).collect()
}

/// What Envoy says of an answer itself.
const OF_ENVOY: [&str; 5] = ["content-length", "date", "server", "x-envoy-upstream-service-time", "etag"];

#[tokio::test]
async fn what_is_written_is_what_is_served() {
    let folder = Folder::new(CONFIG);
    let config = format!("--config={}", folder.path("cimd.yaml"));
    let world = World::start(Wish { routes: &[], cimd: &[&config], envoy_config: &[&config], ..Wish::default() }).await;
    let (code, stdout, stderr) = folder.run(&["--json"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    let documents = report["documents"].as_array().expect("documents");
    let headers = |name: &str| -> BTreeMap<String, String> {
        serde_json::from_value(report[name].clone()).expect("names and values")
    };
    assert_eq!(documents.len(), FILES.len());
    for (document, file) in documents.iter().zip(FILES) {
        let text = |name: &str| document[name].as_str().expect(name);
        assert_eq!(text("file"), folder.path(&format!("out/{file}")));
        let url = Url::parse(text("client_id")).expect("a URL");
        let served = world.https().send(Version::HTTP_2, Call::url(&url)).await.expect("an answer");
        assert_eq!(served.status, 200, "{url}");
        assert_eq!(served.body, fs::read(text("file")).expect("the file"), "{url}");
        assert_eq!(served.all("etag"), [text("etag")]);
        let preflight =
            world.https().send(Version::HTTP_2, Call::url(&url).method("OPTIONS")).await.expect("an answer");
        assert_eq!(preflight.status, 204);
        // All that the service sends, and nothing else.
        for (answer, said) in [(served, headers("headers")), (preflight, headers("preflight"))] {
            let sent: BTreeMap<String, String> = answer
                .headers
                .iter()
                .filter(|(name, _)| !OF_ENVOY.contains(&name.as_str()))
                .map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()))
                .collect();
            assert_eq!(sent, said, "{url}");
            assert!(said.len() >= 4, "{said:?}");
        }
    }
}

#[test]
fn what_is_there_is_left_alone() {
    let folder = Folder::new(CONFIG);
    assert_eq!(folder.states(), all("written"));
    let out = |name: &str| PathBuf::from(folder.path("out")).join(name);
    // A static host makes its tag of the time of the last change.
    let before = FILES.map(|file| fs::metadata(out(file)).expect("a file").modified().expect("a time"));
    assert_eq!(folder.states(), all("unchanged"));
    let after = FILES.map(|file| fs::metadata(out(file)).expect("a file").modified().expect("a time"));
    assert_eq!(before, after);

    // Not ours: a page, some JSON, the document of another address, one that is somewhere else, a document that is large.
    let document = fs::read_to_string(out(FILES[0])).expect("a document");
    fs::write(out("notes.localhost/index.html"), "a page").expect("written");
    fs::write(out("notes.localhost/other.json"), "{}").expect("written");
    fs::write(out("notes.localhost/copy.json"), &document).expect("written");
    fs::write(out("notes.localhost/large.json"), document.replace("Acme", &"x".repeat(5000))).expect("written");
    symlink(folder.path("out"), out("loop")).expect("a link");
    // Half of an earlier attempt.
    fs::write(out("tickets.localhost:8443/oauth/client.json.new"), "half").expect("written");
    fs::write(out(FILES[2]), "changed").expect("written");

    folder.configure(&CONFIG.replace("- {from: https://notes.localhost}\n", ""));
    let mut expected = all("unchanged");
    expected.insert(FILES[0].to_owned(), "stale".to_owned());
    expected.insert(FILES[2].to_owned(), "written".to_owned());
    assert_eq!(folder.states(), expected);
    assert_eq!(fs::read_to_string(out(FILES[0])).expect("it stays"), document);
    assert!(!out("tickets.localhost:8443/oauth/client.json.new").exists());
    assert!(fs::read_to_string(out(FILES[2])).expect("a document").contains("Acme tickets.localhost"));
    assert_eq!(fs::read_to_string(out("notes.localhost/index.html")).expect("it stays"), "a page");

    let (_, stdout, _) = folder.run(&[]);
    assert!(stdout.contains(&format!("\nstale      {}\n\nA stale file is", out(FILES[0]).display())), "{stdout}");
}

#[test]
fn what_a_person_is_told() {
    let folder = Folder::new("routes: [{from: 'https://mcp.example.com'}]\n");
    shell("umask 022; envoy-cimd documents --config cimd.yaml --out public >said", folder.0.path());
    let said = fs::read_to_string(folder.path("said")).expect("what it said");
    let expected = "\
written    public/mcp.example.com/.well-known/mcp-client-metadata.json

Each folder of public is the root of one https host, with its port where that is not 443. That host answers GET and HEAD \
of these files with 200, without signing in and never with a redirect, and sends
  access-control-allow-origin: *
  access-control-expose-headers: etag
  cache-control: public, max-age=3600
  content-type: application/json
  x-content-type-options: nosniff
and an etag, which may be its own. It answers OPTIONS with 204, and sends
  access-control-allow-headers: *
  access-control-allow-methods: GET, HEAD, OPTIONS
  access-control-allow-origin: *
  access-control-max-age: 86400
Then ask from outside: envoy-cimd probe --expect FILE, for each of the files.
";
    assert_eq!(said, expected);
    // The static host is somebody else.
    let file = folder.path("public/mcp.example.com/.well-known/mcp-client-metadata.json");
    assert_eq!(fs::metadata(file).expect("a file").permissions().mode() & 0o777, 0o644);
}

#[test]
fn nothing_is_written_unless_all_of_it_is_good() {
    let large = format!("routes: [{{from: 'https://a.example', client_name: {}}}]\n", "x".repeat(5000));
    let rows = [
        ("", "has no `routes:`, whose documents these are"),
        ("document_max_age: 60\n", "has no `routes:`, whose documents these are"),
        ("document_path: x\nroutes: [{from: 'https://a.example'}]\n", "`document_path`: bad value \"x\""),
        (
            "document_path: /callback\ncallback_path: /callback\nroutes: [{from: 'https://a.example'}]\n",
            "--document-path, --callback-path: of the document's path",
        ),
        (
            "routes: [{from: 'https://a.example'}, {from: 'http://b.example'}]\n",
            "routes[1] (http://b.example): `from` must be https",
        ),
        (
            "routes: [{from: 'https://a.example'}, {from: 'https://a.example'}]\n",
            "routes[1]: https://a.example is there twice",
        ),
        (&*large, "https://a.example: the document would take"),
        (
            "document_path: /client.json\nroutes: [{from: 'https://a.example/client.json/x'}, {from: 'https://a.example'}]\n",
            "https://a.example/client.json/x: its document needs a folder where the document of https://a.example is a file",
        ),
    ];
    for (config, error) in rows {
        let folder = Folder::new(config);
        let (code, stdout, stderr) = folder.run(&[]);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{config}{stderr}");
        assert!(stderr.contains(error), "{config}{stderr}");
        assert_eq!(folder.tree().len(), 1, "{config}");
    }
    // Every error of the file's names it.
    let folder = Folder::new("routes: []\n");
    assert!(folder.run(&[]).2.contains(&folder.path("cimd.yaml")));
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let folder = Folder::new(CONFIG);
    let config = folder.path("cimd.yaml");
    for (out, error) in [(config.as_str(), "File exists"), ("/dev/null/x", "Not a directory")] {
        let (code, stdout, stderr) = run(&["documents", "--config", &config, "--out", out], &[]);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
        assert!(stderr.starts_with(&format!("envoy-cimd: --out {out}: {error}")), "{stderr}");
    }
    assert_eq!(fs::read_to_string(&config).expect("the file"), CONFIG);
    // A folder where a document goes, and a file where a folder goes.
    for (file, content) in [(FILES[1], None), ("notes.localhost/linear", Some("mine"))] {
        let folder = Folder::new(CONFIG);
        let there = PathBuf::from(folder.path("out")).join(file);
        match content {
            None => fs::create_dir_all(&there).expect("a folder"),
            Some(text) => {
                fs::create_dir_all(there.parent().expect("a folder")).expect("a folder");
                fs::write(&there, text).expect("written");
            }
        }
        let (code, stdout, stderr) = folder.run(&[]);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
        let named = format!(
            "envoy-cimd: {} (the document of https://notes.localhost/linear): ",
            folder.path(&format!("out/{}", FILES[1]))
        );
        assert!(stderr.starts_with(&named), "{stderr}");
        match content {
            None => assert!(there.is_dir()),
            Some(text) => assert_eq!(fs::read_to_string(&there).expect("it stays"), text),
        }
    }
    for (args, error) in
        [(&["documents", "--out", "x"][..], "--config <FILE>"), (&["documents", "--config", &config], "--out <DIR>")]
    {
        let (code, _, stderr) = run(args, &[]);
        assert!(code == Some(2) && stderr.contains(error), "{args:?} {stderr}");
    }
}
