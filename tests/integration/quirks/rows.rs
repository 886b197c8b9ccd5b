//! The table: what servers do otherwise than honest ones, and what becomes of the person.

use serde_json::{Value, json};

use super::{
    Becomes::{self, Connected, Refused, SentNowhere},
    OAUTH, OF_PATH, OF_ROOT, OPENID, Site, challenges, json_of, page, status,
};

pub struct Row {
    /// The line of what real servers demand that it is of.
    pub line: u8,
    pub name: &'static str,
    pub quirk: fn(&mut Site),
    pub becomes: Becomes,
}

fn row(line: u8, name: &'static str, quirk: fn(&mut Site), becomes: Becomes) -> Row {
    Row { line, name, quirk, becomes }
}

/// What an honest upstream comes to.
const HONEST: Becomes = Connected("read write offline_access");

#[rustfmt::skip]
pub fn rows() -> Vec<Row> {
    vec![
        row(22, "all are honest", |_| {}, HONEST),

        row(27, "GET is not allowed", |s| s.on("GET /mcp", status(405)), HONEST),
        row(27, "GET finds nothing", |s| s.on("GET /mcp", status(404)), HONEST),
        row(27, "GET gets a landing page", |s| s.on("GET /mcp", page()), HONEST),
        row(27, "GET is refused without a challenge", |s| s.on("GET /mcp", status(401)), HONEST),
        row(27, "GET is refused with a challenge of another scheme", |s| s.on("GET /mcp", challenges(&["Basic realm=x"])), HONEST),
        row(27, "GET streams to strangers", |s| s.on("GET /mcp", status(200).endless()), HONEST),
        row(27, "only initialize is refused", |s| {
            s.on("GET /mcp", status(405));
            s.on("server/discover", status(400));
        }, HONEST),
        row(27, "only server/discover is refused", |s| {
            s.on("GET /mcp", status(405));
            s.on("initialize", status(404));
        }, HONEST),
        row(27, "nothing is refused, and there is metadata", |s| s.open(), Connected("listed offline_access")),
        row(27, "nothing is refused, and there is no metadata", |s| {
            s.open();
            s.on(OF_PATH, status(404));
        }, SentNowhere("this server needs no sign-in")),
        row(27, "all say 404", |s| {
            for asked in ["GET /mcp", "server/discover", "initialize", OF_PATH] { s.on(asked, status(404)) }
        }, SentNowhere("/.well-known/oauth-protected-resource, answered 404 Not Found")),
        row(27, "the refusal's body never ends", |s| { let answer = s.refusal().endless(); s.on("GET /mcp", answer) }, HONEST),
        row(27, "a POST's refusal never ends", |s| {
            s.on("GET /mcp", status(405));
            let answer = s.refusal().endless();
            s.on("server/discover", answer);
        }, HONEST),

        row(28, "a web page at the path's address", |s| {
            s.challenge("Bearer");
            s.on(OF_PATH, page());
            let metadata = json_of(&s.resource);
            s.on(OF_ROOT, metadata);
        }, Connected("listed offline_access")),
        row(28, "JSON of something else at the path's address", |s| {
            s.challenge("Bearer");
            s.on(OF_PATH, json_of(&json!({"message": "SECRET"})));
            let metadata = json_of(&s.resource);
            s.on(OF_ROOT, metadata);
        }, Connected("listed offline_access")),
        row(28, "web pages at all addresses", |s| { s.on(OF_PATH, page()); s.on(OF_ROOT, page()) },
            SentNowhere("/.well-known/oauth-protected-resource/mcp is not metadata: it is not JSON, at line 1, column 1")),
        row(28, "another's metadata at the path's address", |s| {
            s.challenge("Bearer");
            let metadata = json_of(&s.resource);
            s.on(OF_ROOT, metadata);
            s.resource["resource"] = json!("https://evil.example/mcp");
        }, SentNowhere("`resource` is https://evil.example/mcp")),
        row(28, "the server has a web page at RFC 8414's address", |s| {
            s.at_server(OAUTH, page());
            let metadata = json_of(&s.metadata);
            s.at_server(OPENID, metadata);
        }, HONEST),
        row(28, "the server has another's metadata at RFC 8414's address", |s| {
            let metadata = json_of(&s.metadata);
            s.at_server(OPENID, metadata);
            s.metadata["issuer"] = json!("https://evil.example");
        }, SentNowhere("its metadata names the issuer https://evil.example, which is another")),

        row(29, "the challenge leads to nothing", |s| s.challenge_at("{upstream}/.well-known/oauth-protected-resource/other"), HONEST),
        row(29, "the challenge leads to a web page", |s| {
            s.challenge_at("{upstream}/.well-known/oauth-protected-resource/other");
            s.on("GET /.well-known/oauth-protected-resource/other", page());
        }, HONEST),
        row(29, "the challenge names a path", |s| s.challenge_at("/.well-known/oauth-protected-resource/mcp"), HONEST),
        row(29, "the challenge names an http address", |s| s.challenge_at("http://as.localhost/.well-known/oauth-protected-resource"), HONEST),
        row(29, "the challenge names nothing", |s| s.challenge_at(""), HONEST),
        row(29, "the challenge names two addresses", |s| s.challenge_at(r#"{metadata}", resource_metadata="{metadata}"#), HONEST),
        row(29, "the challenge leads to another's metadata", |s| {
            s.challenge_at("{upstream}/.well-known/oauth-protected-resource/other");
            s.on("GET /.well-known/oauth-protected-resource/other", json_of(&json!({"resource": "https://evil.example/mcp"})));
        }, SentNowhere("`resource` is https://evil.example/mcp")),

        row(30, "UTF-8 in quotes", |s| s.challenge(r#"Bearer realm="é SECRET", scope="own", resource_metadata="{metadata}""#), Connected("own offline_access")),
        row(30, "two spaces", |s| s.challenge(r#"Bearer  scope="own", resource_metadata="{metadata}""#), Connected("own offline_access")),
        row(30, "a token beside", |s| s.challenge(r#"Negotiate oYG/SECRET==, Bearer scope="own""#), Connected("own offline_access")),
        row(30, "no commas", |s| s.challenge(r#"Bearer error="invalid_token" scope="own" resource_metadata="{metadata}""#), Connected("own offline_access")),
        row(30, "no quotes", |s| s.challenge("Bearer scope=own, resource_metadata={metadata}"), Connected("own offline_access")),
        row(30, "no quotes around two", |s| s.challenge("Bearer scope=own SECRET, resource_metadata={metadata}"), Connected("listed offline_access")),
        row(30, "quotes in quotes", |s| s.challenge(r#"Bearer error_description="no "SECRET"", scope="own""#), Connected("own offline_access")),
        row(30, "60 kB", |s| s.challenge(&format!(r#"Bearer error_description="{}", scope="own""#, "SECRET".repeat(10_000))), Connected("own offline_access")),
        row(30, "a scope of 60 kB", |s| s.challenge(&format!(r#"Bearer scope="{}""#, "own ".repeat(15_000))), Connected("own offline_access")),
        row(30, "ten challenges", |s| {
            let mut ten = vec!["Negotiate", "Basic realm=x", "DPoP algs=ES256", "Bearer", "Digest"];
            ten.extend([r#"Bearer scope="own""#; 5]);
            s.on("GET /mcp", challenges(&ten));
        }, Connected("own offline_access")),

        row(31, "201", |s| s.token.status = 201, HONEST),
        row(31, "a lifetime as text", |s| s.grant("expires_in", json!("3600")), HONEST),
        row(31, "a lifetime as a fraction", |s| s.grant("expires_in", json!(3600.0)), HONEST),
        row(31, "a lifetime below zero", |s| s.grant("expires_in", json!(-1)), HONEST),
        row(31, "JSON as text/plain", |s| s.token.headers = vec![("content-type", "text/plain".into())], HONEST),
        row(31, "a list of scopes", |s| s.grant("scope", json!(["read"])), HONEST),
        row(31, "no token type", |s| s.grant("token_type", Value::Null), HONEST),
        row(31, "another token type", |s| s.grant("token_type", json!("mac")), Refused("exchange_failed", "`token_type` is not Bearer")),
        row(31, "two tokens", |s| s.token.body = br#"{"access_token":"SECRET","access_token":"SECRET"}"#.to_vec(),
            Refused("exchange_failed", "`access_token` is there twice")),
        row(32, "too many requests", |s| s.token = status(429), Refused("exchange_failed", "the token endpoint answered 429")),
        row(34, "no lifetime", |s| s.grant("expires_in", Value::Null), HONEST),

        row(35, "null where a member may be absent", |s| {
            for member in ["revocation_endpoint", "grant_types_supported", "response_types_supported", "jwks_uri"] {
                s.metadata[member] = Value::Null;
            }
            s.resource["scopes_supported"] = Value::Null;
        }, HONEST),
        row(35, "an empty revocation endpoint", |s| s.metadata["revocation_endpoint"] = json!(""), HONEST),
        row(35, "an http revocation endpoint", |s| s.metadata["revocation_endpoint"] = json!("http://as.example/revoke"), HONEST),
        row(35, "a revocation endpoint that is a number", |s| s.metadata["revocation_endpoint"] = json!(1), HONEST),
        row(35, "lists that are texts", |s| {
            s.metadata["response_types_supported"] = json!("code");
            s.metadata["grant_types_supported"] = json!("authorization_code");
            s.resource["scopes_supported"] = json!("listed");
        }, HONEST),
        row(35, "what nobody reads is deep", |s| {
            let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
            let document = s.metadata.to_string().replacen('{', &format!("{{\"extra\":{deep},"), 1);
            s.at_server(OAUTH, status(200).body(document));
        }, HONEST),
        row(35, "a megabyte", |s| {
            let mut document = s.metadata.to_string();
            document.push_str(&" ".repeat((1 << 20) - document.len()));
            s.at_server(OAUTH, status(200).body(document));
        }, HONEST),
        row(35, "more than a megabyte", |s| s.at_server(OAUTH, status(200).body("SECRET".repeat(200_000))),
            SentNowhere("the answer is larger than 1048576 bytes")),
        row(35, "a byte order mark", |s| {
            let document = format!("\u{feff}{}", s.metadata);
            s.at_server(OAUTH, status(200).body(document));
        }, HONEST),
        row(35, "what may be absent is there twice", |s| s.twice("revocation_endpoint"), HONEST),
        row(35, "the issuer is there twice", |s| s.twice("issuer"), SentNowhere("`issuer` is there twice")),
        row(35, "the token endpoint is there twice", |s| s.twice("token_endpoint"), SentNowhere("`token_endpoint` is there twice")),
        row(35, "PKCE is there twice", |s| s.twice("code_challenge_methods_supported"),
            SentNowhere("`code_challenge_methods_supported` is there twice")),
        row(35, "the token endpoint is a list", |s| s.metadata["token_endpoint"] = json!(["SECRET"]),
            SentNowhere("`token_endpoint` has another type than it must have")),

        row(36, "the issuer with a slash", |s| s.metadata["issuer"] = json!(format!("{}/", s.issuer)), HONEST),
        row(36, "the issuer without its slash", |s| s.resource["authorization_servers"] = json!([format!("{}/", s.issuer)]), HONEST),
        row(36, "`iss` without the slash", |s| {
            s.metadata["issuer"] = json!(format!("{}/", s.issuer));
            s.iss = Some(s.issuer.clone());
        }, Refused("issuer_mismatch", "`iss` is not https://as.localhost")),
        row(36, "the slash of a path", |s| {
            let issuer = format!("{}/tenant", s.issuer);
            s.resource["authorization_servers"] = json!([issuer]);
            s.metadata["issuer"] = json!(format!("{issuer}/"));
            let metadata = json_of(&s.metadata);
            s.at_server("GET /.well-known/oauth-authorization-server/tenant", metadata);
        }, SentNowhere("/tenant/, which is another")),

        row(37, "twice, with other white space", |s| s.challenge(r#"Bearer scope=" read  write	read ""#), HONEST),
        row(37, "offline_access of the challenge", |s| s.challenge(r#"Bearer scope="offline_access read""#), Connected("read offline_access")),
        row(37, "offline_access that the server does not list", |s| {
            s.challenge(r#"Bearer scope="offline_access read""#);
            s.metadata["scopes_supported"] = json!(["read"]);
        }, Connected("read")),
        row(37, "offline_access alone", |s| s.challenge(r#"Bearer scope="offline_access""#), Connected("")),
        row(37, "no scope anywhere", |s| { s.challenge("Bearer"); s.resource["scopes_supported"] = json!([]) }, Connected("")),
        row(37, "several in one of a list", |s| { s.challenge("Bearer"); s.resource["scopes_supported"] = json!(["a b", "b c"]) },
            Connected("a b c offline_access")),
        row(37, "a list of a megabyte", |s| {
            s.challenge("Bearer");
            s.resource["scopes_supported"] = (0..100_000).map(|number| json!(format!("{number}"))).collect();
        }, Connected("")),

        row(38, "pushed requests are demanded", |s| s.metadata["require_pushed_authorization_requests"] = json!(true),
            SentNowhere("it demands pushed authorization requests (`require_pushed_authorization_requests`)")),
        row(38, "pushed requests are offered", |s| s.metadata["require_pushed_authorization_requests"] = json!(false), HONEST),
        row(38, "signed requests are demanded", |s| s.metadata["require_signed_request_object"] = json!("true"),
            SentNowhere("it demands signed authorization requests (`require_signed_request_object`)")),

        row(39, "metadata is packed", |s| s.at_server(OAUTH, status(200).body(b"\x1f\x8bSECRET").header("content-encoding", "gzip")),
            SentNowhere("it is packed (`content-encoding: gzip`), though nobody asked for that")),
        row(39, "metadata only says that it is packed", |s| {
            let metadata = json_of(&s.metadata).header("content-encoding", "utf-8");
            s.at_server(OAUTH, metadata);
        }, HONEST),
        row(39, "the token is packed", |s| s.token = status(200).body(b"\x1f\x8bSECRET").header("content-encoding", "br"),
            Refused("exchange_failed", "it is packed (`content-encoding: br`)")),

        row(24, "the first of two servers cannot be used", |s| {
            s.resource["authorization_servers"] = json!([format!("{}/first", s.issuer), s.issuer]);
        }, SentNowhere("answered 404 Not Found; the upstream also names https://as.localhost")),
        row(24, "the second of two servers is pinned", |s| {
            s.challenge("Bearer");
            s.resource["scopes_supported"] = json!([]);
            s.resource["authorization_servers"] = json!([format!("{}/first", s.issuer), s.issuer]);
            s.pin = Some(s.issuer.clone());
        }, Connected("")),
    ]
}
