//! A client's metadata document, as an authorization server takes it (draft-ietf-oauth-client-id-metadata-document).

use std::fmt::Display;

use serde_json::Value;

use crate::stack::{
    Answered,
    web::{Web, parse},
};

/// What came when a document was asked for.
pub struct ClientDocument {
    client_id: String,
    pub answer: Answered,
    members: Value,
}

/// What a document does, and whether it does.
type Rule = (&'static str, fn(&ClientDocument) -> Result<(), String>);

/// What must be true of every document. The demo prints them one by one; its authorization servers want them all.
pub const RULES: &[Rule] = &[
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

impl ClientDocument {
    /// Asks for the document, whatever then comes.
    pub async fn fetch(web: &Web, client_id: &str) -> Result<Self, String> {
        let answer = web.send(&parse(client_id)?, |call| call.header("accept", "application/json")).await?;
        let members = serde_json::from_slice(&answer.body).unwrap_or_default();
        Ok(Self { client_id: client_id.to_owned(), answer, members })
    }

    /// All rules at once.
    pub fn check(&self) -> Result<(), String> {
        let broken = |what, why| format!("It has to be one that {what}, but {why}.");
        RULES.iter().try_for_each(|(what, rule)| rule(self).map_err(|why| broken(what, why)))
    }

    /// The client's name: its own word, which may say anything.
    pub fn name(&self) -> &str {
        self.members["client_name"].as_str().unwrap_or("A client without a name")
    }

    pub fn has_redirect_uri(&self, uri: &str) -> bool {
        self.members["redirect_uris"].as_array().is_some_and(|uris| uris.iter().any(|listed| listed == uri))
    }

    /// Two documents are of two clients.
    pub fn differs_from(&self, other: &Self) -> Result<(), String> {
        ["client_id", "redirect_uris"].iter().try_for_each(|&key| {
            if self.members[key] == other.members[key] { Err(format!("their {key} is the same")) } else { Ok(()) }
        })
    }
}

fn redirects_on_origin(document: &ClientDocument) -> Result<(), String> {
    let uris = document.members["redirect_uris"].as_array().filter(|uris| !uris.is_empty()).ok_or("there are none")?;
    for uri in uris {
        let text = uri.as_str().ok_or("one is not a text")?;
        if parse(text)?.origin() != parse(&document.client_id)?.origin() {
            return Err(format!("{text} is on another"));
        }
    }
    Ok(())
}

/// That something is what it should be; else what it is.
pub fn same<T: PartialEq + Display>(found: T, wanted: T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("it is {found}, not {wanted}")) }
}
