//! What an authorization server looks at before it takes a document for a client's, and whether MCP goes through.

use std::fmt::Display;

use http::Version;
use serde_json::Value;
use url::Url;

use crate::{
    Route,
    stack::{Answered, Call, Client},
};

pub const DOCUMENT: &str = "/.well-known/mcp-client-metadata.json";

const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"demo","version":"1"}}}"#;

/// The checks made so far. Each prints its line at once.
pub struct Checks {
    client: Client,
    documents: Vec<Document>,
    passed: usize,
    pub failed: usize,
    /// The entity tag of the first document.
    pub etag: Option<String>,
}

/// What came when a document was asked for.
struct Document {
    client_id: String,
    answer: Answered,
    members: Value,
}

type Rule = (&'static str, fn(&Document) -> Result<(), String>);

/// What must be true of every document (draft-ietf-oauth-client-id-metadata-document).
const RULES: &[Rule] = &[
    ("answers 200 itself, with no redirect", |document| same(document.answer.status, 200)),
    ("is exactly application/json", |document| {
        same(document.answer.all("content-type").join(", "), "application/json".to_owned())
    }),
    ("is smaller than 5 kB", |document| match document.answer.body.len() {
        1..5000 => Ok(()),
        size => Err(format!("it has {size} bytes")),
    }),
    ("names the URL it came from as its client_id", |document| {
        same(&document.members["client_id"], &Value::from(document.client_id.as_str()))
    }),
    ("keeps its redirect_uris on the same origin", redirects_on_origin),
    ("is a public client's: authentication method none, no secret", |document| {
        same(&document.members["token_endpoint_auth_method"], &"none".into())?;
        let secret =
            ["client_secret", "client_secret_expires_at"].iter().find(|key| document.members.get(key).is_some());
        secret.map_or(Ok(()), |key| Err(format!("it has a {key}")))
    }),
];

impl Checks {
    pub fn new(client: Client) -> Self {
        Self { client, documents: Vec::new(), passed: 0, failed: 0, etag: None }
    }

    pub fn summary(&self) -> String {
        let all = self.passed + self.failed;
        match self.failed {
            0 => format!("All {all} checks passed."),
            failed => format!("{failed} of {all} checks FAILED."),
        }
    }

    /// All about one route.
    pub async fn route(&mut self, route: &Route) {
        let client_id = format!("{}{DOCUMENT}", route.origin);
        println!("\n  {client_id}");
        match self.client.send(Version::HTTP_11, call(route, DOCUMENT)).await {
            Ok(answer) => {
                let members = serde_json::from_slice(&answer.body).unwrap_or_default();
                let document = Document { client_id, answer, members };
                for (what, rule) in RULES {
                    self.note(what, rule(&document));
                }
                let etag = document.answer.all("etag").first().map(|&etag| etag.to_owned());
                let again = self.not_modified(route, etag.as_deref()).await;
                self.note("asked for again with its entity tag, answers 304 and no body", again);
                self.etag = self.etag.take().or(etag);
                self.documents.push(document);
            }
            Err(error) => self.note("answers", Err(error)),
        }

        println!("\n  {}/mcp", route.origin);
        let named = self.initialize(route).await;
        self.note(&format!("leads to the {} MCP server, which answers initialize", route.name), named);
    }

    /// That each route is a client of its own.
    pub fn documents_differ(&mut self) {
        println!("\n  both routes");
        let differ = match self.documents.as_slice() {
            [one, other] => ["client_id", "redirect_uris"].iter().try_for_each(|&key| {
                if one.members[key] == other.members[key] { Err(format!("their {key} is the same")) } else { Ok(()) }
            }),
            _ => Err("there are not two documents".to_owned()),
        };
        self.note("are two clients, with no client_id or redirect_uris in common", differ);
    }

    async fn not_modified(&self, route: &Route, etag: Option<&str>) -> Result<(), String> {
        let etag = etag.ok_or("there is no entity tag")?;
        let again = call(route, DOCUMENT).header("if-none-match", etag);
        let answer = self.client.send(Version::HTTP_11, again).await?;
        same(answer.status, 304)?;
        if answer.body.is_empty() { Ok(()) } else { Err("it has a body".to_owned()) }
    }

    async fn initialize(&self, route: &Route) -> Result<(), String> {
        let call = call(route, "/mcp")
            .method("POST")
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        let answer = self.client.send(Version::HTTP_11, Call { body: INITIALIZE, ..call }).await?;
        same(answer.status, 200)?;
        let reply: Value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
        same(&reply["result"]["serverInfo"]["name"], &route.name.into())
    }

    fn note(&mut self, what: &str, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("    ok      {what}");
            }
            Err(why) => {
                self.failed += 1;
                println!("    FAILED  {what}: {why}");
            }
        }
    }
}

/// A request as a stranger on the internet sends it.
fn call(route: &Route, path: &str) -> Call {
    Call::get(route.origin.host(), path).authority(route.origin.authority())
}

fn redirects_on_origin(document: &Document) -> Result<(), String> {
    let uris = document.members["redirect_uris"].as_array().filter(|uris| !uris.is_empty()).ok_or("there are none")?;
    let origin = |text: &str| Url::parse(text).map(|url| url.origin()).map_err(|error| format!("{text}: {error}"));
    for uri in uris {
        let text = uri.as_str().ok_or("one is no text")?;
        if origin(text)? != origin(&document.client_id)? {
            return Err(format!("{text} is on another"));
        }
    }
    Ok(())
}

fn same<T: PartialEq + Display>(found: T, wanted: T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("it is {found}, not {wanted}")) }
}
