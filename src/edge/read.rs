//! Messages as we read them: a view of the request or its answer, and what the sources say of its route. All of them borrow.

use std::{collections::HashMap, sync::LazyLock};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{HeaderValue, Metadata},
        service::ext_proc::v3::{HttpHeaders, ProcessingRequest},
    },
    google::protobuf::{Struct, Value, value::Kind},
};

use super::tags;
use crate::{
    filter::{
        request::{Request, Sources},
        response::{CHALLENGE, Response, STATUS},
    },
    model::{
        route::{Field, Key, Keyed, NAMESPACE, RouteMetadata},
        user::{Claims, MetadataPath, UserSource},
    },
};

/// The key of `ProcessingRequest.attributes`, whatever name the filter has in Envoy's configuration.
const FILTER: &str = "envoy.filters.http.ext_proc";

/// The CEL expressions that Envoy must send as `request_attributes`: for each key of a route, the route's and the
/// virtual host's.
pub static ATTRIBUTES: LazyLock<Keyed<[String; 2]>> = LazyLock::new(|| {
    Keyed::new(|key| {
        let name = key.name();
        ["route", "virtual_host"].map(|of| format!("xds.{of}_metadata.filter_metadata['{NAMESPACE}']['{name}']"))
    })
});

/// The CEL expression that says who made an answer, and why.
pub const CODE_DETAILS: &str = "response.code_details";

/// The CEL expressions that Envoy must send with an answer to say what it answers, each with the header that it is. Of two
/// for one header, the first that is there counts: the router writes over authority and path, and keeps what they were.
pub const REQUEST_ATTRIBUTES: [(&str, &str); 12] = [
    ("request.method", ":method"),
    ("request.headers['x-envoy-original-host']", ":authority"),
    ("request.host", ":authority"),
    ("request.headers['x-envoy-original-path']", ":path"),
    ("request.path", ":path"),
    ("request.headers['accept']", "accept"),
    ("request.headers['origin']", "origin"),
    ("request.headers['sec-fetch-dest']", "sec-fetch-dest"),
    ("request.headers['sec-fetch-mode']", "sec-fetch-mode"),
    ("request.headers['traceparent']", "traceparent"),
    ("request.headers['tracestate']", "tracestate"),
    ("request.headers['x-request-id']", "x-request-id"),
];

pub(super) fn request(headers: &HttpHeaders) -> Request<'_> {
    let headers = headers.headers.as_ref().map_or(&[][..], |map| &map.headers);
    let mut request = Request::with_capacity(headers.len());
    for header in headers {
        request.push(header.key.as_bytes(), value(header));
    }
    request
}

/// An answer, and with it the request as far as attributes say what it was.
pub(super) fn response<'a>(headers: &'a HttpHeaders, message: &'a ProcessingRequest) -> Response<'a> {
    let mut response = Response::default();
    for header in headers.headers.iter().flat_map(|map| &map.headers) {
        match header.key.as_str() {
            STATUS => response.status = std::str::from_utf8(value(header)).ok().and_then(|status| status.parse().ok()),
            CHALLENGE => response.challenges.push(value(header)),
            _ => {}
        }
    }
    let text = |name| match field(entry(&message.attributes, FILTER)?.fields.get(name)?)? {
        Field::Text(text) => Some(text),
        Field::NotText => None,
    };
    response.details = text(CODE_DETAILS);
    let mut last = "";
    for (attribute, name) in REQUEST_ATTRIBUTES {
        if let Some(text) = text(attribute).filter(|_| name != last) {
            response.request.push(name.as_bytes(), text.as_bytes());
            last = name;
        }
    }
    response.tag = message.metadata_context.as_ref().and_then(tags::tag);
    response
}

fn value(header: &HeaderValue) -> &[u8] {
    if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value }
}

pub(super) fn sources<'a>(message: &'a ProcessingRequest, users: Option<&UserSource>) -> Sources<'a> {
    let metadata = message.metadata_context.as_ref();
    let of_user = users
        .zip(metadata)
        .and_then(|(source, metadata)| Some((source, &entry(&metadata.filter_metadata, &source.namespace)?.fields)));
    Sources {
        attributes: entry(&message.attributes, FILTER).map(attribute_fields).unwrap_or_default(),
        dynamic_metadata: metadata.map(metadata_fields).unwrap_or_default(),
        user: of_user.map(|(source, values)| Claims {
            issuer: text_at(values, &source.issuer),
            subject: text_at(values, &source.subject),
        }),
        display: of_user.and_then(|(source, values)| text_at(values, source.display.as_ref()?)),
    }
}

/// The value of a key. Most maps of Envoy's have one or two entries, and to look at each costs less than a hash that is safe
/// from whoever chooses the keys.
fn entry<'a, V>(map: &'a HashMap<String, V>, key: &str) -> Option<&'a V> {
    const FEW: usize = 4;
    match map.len() {
        ..=FEW => map.iter().find(|(name, _)| *name == key).map(|(_, value)| value),
        _ => map.get(key),
    }
}

/// The text at a path of nested metadata.
fn text_at<'a>(values: &'a HashMap<String, Value>, path: &MetadataPath) -> Option<&'a str> {
    let (last, parents) = path.keys().split_last()?;
    let mut values = values;
    for key in parents {
        match entry(values, key)?.kind.as_ref()? {
            Kind::StructValue(inner) => values = &inner.fields,
            _ => return None,
        }
    }
    match field(entry(values, last)?)? {
        Field::Text(text) => Some(text),
        Field::NotText => None,
    }
}

/// The keys of the route, or all of them of its virtual host: the level that gives `from` wins whole, or a route that
/// forgets its `to` would send a token to its neighbour's. Looks at what is there, which is less than what could be.
fn attribute_fields(attributes: &Struct) -> RouteMetadata<'_> {
    let mut levels = [RouteMetadata::default(); 2];
    for (key, value) in &attributes.fields {
        let known = ATTRIBUTES
            .iter()
            .flat_map(|(of, names)| names.iter().enumerate().map(move |(level, name)| (of, level, name)));
        if let Some((of, level, _)) = known.into_iter().find(|(.., name)| key == *name)
            && let Some(level) = levels.get_mut(level)
        {
            *level.get_mut(of) = field(value);
        }
    }
    let [route, virtual_host] = levels;
    if route.get(Key::From).is_some() { route } else { virtual_host }
}

fn metadata_fields(metadata: &Metadata) -> RouteMetadata<'_> {
    match entry(&metadata.filter_metadata, NAMESPACE) {
        Some(values) => Keyed::new(|key| field(values.fields.get(key.name())?)),
        None => RouteMetadata::default(),
    }
}

fn field(value: &Value) -> Option<Field<'_>> {
    match value.kind.as_ref()? {
        Kind::NullValue(_) => None,
        Kind::StringValue(text) => Some(Field::Text(text)),
        _ => Some(Field::NotText),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::HeaderMap;
    use prost::Message;

    use super::*;
    use crate::filter::request::Header;

    fn text(text: &str) -> Value {
        Value { kind: Some(Kind::StringValue(text.to_owned())) }
    }

    fn fields<const N: usize>(pairs: [(&str, Value); N]) -> Struct {
        Struct { fields: pairs.map(|(key, value)| (key.to_owned(), value)).into() }
    }

    fn source() -> UserSource {
        let path = |text: &str| text.parse().expect("a path");
        UserSource {
            namespace: "users".to_owned(),
            issuer: path("claims.iss"),
            subject: path("sub"),
            display: Some(path("claims.name")),
        }
    }

    /// Each source by its own name, and of each only what is text.
    #[test]
    fn sources_are_told_apart() {
        let from = ATTRIBUTES.get(Key::From)[0].as_str();
        let claims = |issuer: Value| Value {
            kind: Some(Kind::StructValue(fields([("iss", issuer.clone()), ("name", issuer)]))),
        };
        let number = || Value { kind: Some(Kind::NumberValue(5.0)) };
        let message = |value: Value| ProcessingRequest {
            attributes: HashMap::from([
                (FILTER.to_owned(), fields([(from, value.clone())])),
                ("another.filter".to_owned(), fields([(from, text("https://another.example"))])),
            ]),
            metadata_context: Some(Metadata {
                filter_metadata: HashMap::from([
                    (NAMESPACE.to_owned(), fields([("from", value.clone()), ("sub", text("another"))])),
                    ("users".to_owned(), fields([("claims", claims(value.clone())), ("sub", value)])),
                ]),
                ..Metadata::default()
            }),
            ..ProcessingRequest::default()
        };
        let null = || Value { kind: Some(Kind::NullValue(0)) };
        for (value, is) in [
            (text("https://a.example"), Some(Field::Text("https://a.example"))),
            (number(), Some(Field::NotText)),
            (null(), None),
            (Value::default(), None),
        ] {
            let message = message(value);
            let sources = sources(&message, Some(&source()));
            assert_eq!((*sources.attributes.get(Key::From), *sources.dynamic_metadata.get(Key::From)), (is, is));
            let text = is.and_then(|field| match field {
                Field::Text(text) => Some(text),
                Field::NotText => None,
            });
            assert_eq!(sources.user, Some(Claims { issuer: text, subject: text }));
            assert_eq!(sources.display, text);
        }
        let message = message(text("https://a.example"));
        let untrusted = sources(&message, None);
        assert_eq!((untrusted.user, untrusted.display), (None, None), "where the operator trusts nobody's metadata");
        let unnamed = UserSource { display: None, ..source() };
        assert_eq!(sources(&message, Some(&unnamed)).display, None, "where the operator names no claim");
    }

    /// The level that gives `from` gives all, whatever the other one has; a `from` that is not a text is one.
    #[test]
    fn one_level_gives_all_keys() {
        let [route_from, host_from] = ATTRIBUTES.get(Key::From).each_ref().map(String::as_str);
        let [route_to, host_to] = ATTRIBUTES.get(Key::To).each_ref().map(String::as_str);
        let number = Value { kind: Some(Kind::NumberValue(5.0)) };
        let (ours, theirs) = (text("https://ours.example"), text("https://theirs.example"));
        let is = |text| Some(Field::Text(text));
        for (pairs, from, to) in [
            (vec![(route_from, ours.clone()), (host_to, theirs.clone())], is("https://ours.example"), None),
            (
                vec![(route_from, ours.clone()), (host_from, theirs.clone()), (host_to, theirs.clone())],
                is("https://ours.example"),
                None,
            ),
            (
                vec![(host_from, theirs.clone()), (route_to, ours.clone()), (host_to, theirs.clone())],
                is("https://theirs.example"),
                is("https://theirs.example"),
            ),
            (vec![(host_from, theirs.clone()), (route_to, ours.clone())], is("https://theirs.example"), None),
            (vec![(route_from, number), (host_from, theirs.clone())], Some(Field::NotText), None),
            (vec![(route_from, Value::default()), (host_from, theirs.clone())], is("https://theirs.example"), None),
            (vec![(route_to, ours.clone()), (host_to, theirs.clone())], None, is("https://theirs.example")),
        ] {
            let attributes =
                Struct { fields: pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect() };
            let found = attribute_fields(&attributes);
            assert_eq!((*found.get(Key::From), *found.get(Key::To)), (from, to), "{pairs:?}");
        }
    }

    /// A message as bytes: of a key that is there twice the last entry counts, whole (Protocol Buffers, "Maps"), and one
    /// whose text is no UTF-8 is no message.
    #[test]
    fn maps_and_texts_are_as_protocol_buffers_have_them() {
        let from = ATTRIBUTES.get(Key::From)[0].as_str();
        let [old, new] = ["https://old.example", "https://new.example"].map(|value| {
            let attributes = HashMap::from([(FILTER.to_owned(), fields([(from, text(value))]))]);
            ProcessingRequest { attributes, ..ProcessingRequest::default() }.encode_to_vec()
        });
        let message = ProcessingRequest::decode(&[old, new.clone()].concat()[..]).expect("a message");
        assert_eq!(*sources(&message, None).attributes.get(Key::From), Some(Field::Text("https://new.example")));

        let mut broken = new;
        let place = broken.windows(3).position(|bytes| bytes == b"new").expect("the text");
        broken[place] = 0xff;
        assert!(ProcessingRequest::decode(&broken[..]).is_err());
    }

    /// An answer with what it answers: as it was before the router wrote over it, where Envoy says so.
    #[test]
    fn answers() {
        let header = |key: &str, raw_value: &[u8]| HeaderValue {
            key: key.to_owned(),
            raw_value: raw_value.to_vec(),
            ..HeaderValue::default()
        };
        let headers = vec![
            header(":status", b"401"),
            header("www-authenticate", b"Basic"),
            header("www-authenticate", b"Bearer \xff"),
            header("other", b"x"),
        ];
        let headers = HttpHeaders { headers: Some(HeaderMap { headers }), ..HttpHeaders::default() };
        let with = |attributes: &[(&str, &str)]| {
            let attributes = attributes.iter().map(|(key, value)| ((*key).to_owned(), text(value))).collect();
            let attributes = HashMap::from([(FILTER.to_owned(), Struct { fields: attributes })]);
            ProcessingRequest {
                attributes,
                metadata_context: Some(Metadata {
                    filter_metadata: HashMap::from([(
                        "envoy_cimd_traffic".to_owned(),
                        fields([("tag", text("_____________________w"))]),
                    )]),
                    ..Metadata::default()
                }),
                ..ProcessingRequest::default()
            }
        };
        let rewritten = [
            ("response.code_details", "via_upstream"),
            ("request.method", "POST"),
            ("request.host", "upstream.example"),
            ("request.path", "/mcp"),
            ("request.headers['x-request-id']", "the-request"),
        ];
        let message = with(&rewritten);
        let answer = response(&headers, &message);
        assert_eq!((answer.status, answer.is_of_upstream()), (Some(401), true));
        assert_eq!(answer.challenges, [&b"Basic"[..], b"Bearer \xff"]);
        assert!(answer.tag == Some(crate::contract::tokens::TokenTag([0xff; 16])));
        assert_eq!((answer.request.method(), answer.request.id()), ("POST", Some("the-request")));
        assert_eq!((answer.request.authority(), answer.request.path_and_query()), ("upstream.example", ("/mcp", None)));
        let original = [
            ("request.headers['x-envoy-original-host']", "mcp.example.com"),
            ("request.headers['x-envoy-original-path']", "/linear?a"),
        ];
        let message = with(&[&rewritten[..], &original].concat());
        let answer = response(&headers, &message);
        assert_eq!(answer.request.values(Header::Path).collect::<Vec<_>>(), [b"/linear?a"]);
        assert_eq!(answer.request.authority(), "mcp.example.com");
        let message = ProcessingRequest::default();
        let answer = response(&headers, &message);
        assert!(!answer.is_of_upstream() && answer.tag.is_none() && answer.request.method().is_empty());
    }

    /// `raw_value` before `value`, and it may be any bytes.
    #[test]
    fn header_values_of_both_kinds() {
        let header = |key: &str, value: &str, raw_value: &[u8]| HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            raw_value: raw_value.to_vec(),
        };
        let headers = vec![header(":method", "GET", b""), header(":path", "/no", b"/\xff"), header("other", "", b"")];
        let headers = HttpHeaders { headers: Some(HeaderMap { headers }), ..HttpHeaders::default() };
        let request = request(&headers);
        assert_eq!(request.method(), "GET");
        assert_eq!(request.values(Header::Path).collect::<Vec<_>>(), [b"/\xff"]);
        assert_eq!(request.header_bytes(), 22);
    }
}
