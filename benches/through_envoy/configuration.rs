//! One Envoy with a listener for each variant, all made from what `envoy-cimd envoy-config` prints.

use envoy_types::pb::envoy::service::ext_proc::v3::{ImmediateResponse, processing_response::Response};
use serde_json::{Value, json};

use crate::{
    executable,
    stack::{
        Certificates,
        in_process::{DOCUMENT, answer, document_of, endpoints},
    },
};

/// The host of a listener's one route; all are as long, so that the documents are too.
pub fn host(listener: &str) -> String {
    format!("{listener}.bench.example")
}

/// Whom a variant asks.
pub enum Host {
    One(String),
    /// This many in turn.
    Many(usize),
}

impl Host {
    pub fn first(&self) -> String {
        match self {
            Self::One(host) => host.clone(),
            Self::Many(_) => host_of_many(0),
        }
    }

    /// With several hosts to ask in turn, none soon after itself, from any of them on: a short run does not come to all.
    pub fn script(&self) -> String {
        let Self::Many(hosts) = self else { return String::new() };
        format!(
            "math.randomseed(os.time())\n\
             local turn = math.random(0, {hosts} - 1)\n\
             request = function()\n\
               turn = (turn + 7919) % {hosts}\n\
               wrk.headers['Host'] = string.format('{}', turn)\n\
               return wrk.format()\n\
             end\n",
            host("%06d")
        )
    }
}

/// The host of one of many routes.
fn host_of_many(route: usize) -> String {
    host(&format!("{route:06}"))
}

/// A config file of many routes.
pub fn many_routes(routes: usize) -> String {
    let route = |route| format!("- from: https://{}\n", host_of_many(route));
    std::iter::once("routes:\n".to_owned()).chain((0..routes).map(route)).collect()
}

/// What `envoy-cimd` answers for the document of a host.
pub fn document(host: &str) -> ImmediateResponse {
    match answer(&endpoints(), document_of(&format!("https://{host}"))).response {
        Some(Response::ImmediateResponse(document)) => document,
        other => panic!("a document, not {other:?}"),
    }
}

/// The whole configuration; a listener's cluster has its name.
pub fn configuration(certificates: &Certificates, floor: &str, tcp: &str, unix: &str, many: &str) -> Value {
    let print = |name, processor, flags: &[&str]| {
        let route = format!("--route=from=https://{}", host(name));
        printed(certificates, name, processor, &[&[route.as_str()], flags].concat())
    };
    let mut config = print("c", tcp, &[]);
    let mut direct = print("a", tcp, &[]);
    let document_route = routes(&mut direct).iter_mut().find(|route| route["match"]["path"] == DOCUMENT);
    serve_directly(document_route.expect("the document's route"), &document(&host("a")));
    let mut unfiltered = print("g", tcp, &[]);
    remove_filter(&mut unfiltered);
    let mut any_host = print("h", many, &[]);
    let host = &mut manager(&mut any_host)["route_config"]["virtual_hosts"][0];
    host["domains"] = json!(["*.bench.example"]);
    remove(host, "metadata");
    let others = [
        ("a", direct),
        ("b", print("b", floor, &[])),
        ("c", config.clone()),
        ("d", print("d", unix, &[])),
        ("e", print("e", tcp, &["--static-cimd"])),
        ("g", unfiltered),
        ("h", any_host),
    ];
    for (name, mut other) in others {
        routes(&mut other).push(json!({
            "match": {"path": "/mcp"},
            "direct_response": {"status": 200, "body": {"inline_string": "other traffic"}},
        }));
        let listener = plain(name, other["static_resources"]["listeners"][0].take());
        list(&mut config["static_resources"]["listeners"]).push(listener);
        if name != "c" {
            list(&mut config["static_resources"]["clusters"]).append(list(&mut other["static_resources"]["clusters"]));
        }
    }
    config
}

/// What `envoy-config` prints with these flags, a route among them, for a processor whose cluster has this name.
pub fn printed(certificates: &Certificates, name: &str, processor: &str, flags: &[&str]) -> Value {
    let output = std::process::Command::new(executable())
        .args(["envoy-config", "--https-listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--envoy-admin=127.0.0.1:0"])
        .args(["--cluster", name, "--processor", processor])
        .arg("--downstream-cert")
        .arg(&certificates.cert)
        .arg("--downstream-key")
        .arg(&certificates.key)
        .args(flags)
        .output()
        .expect("envoy-cimd runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_saphyr::from_str(&String::from_utf8_lossy(&output.stdout)).expect("YAML")
}

/// A listener as printed, but without TLS, and without an access log, which would be most of what Envoy does.
pub fn plain(name: &str, mut listener: Value) -> Value {
    listener["name"] = name.into();
    let chain = &mut listener["filter_chains"][0];
    remove(chain, "transport_socket");
    let manager = &mut chain["filters"][0]["typed_config"];
    remove(manager, "access_log");
    // The client says that it came over https.
    manager["use_remote_address"] = false.into();
    // Envoy otherwise ends an HTTP/1.1 connection with each 400 of a filter, and new ones would be most of the load.
    manager["stream_error_on_invalid_http_message"] = true.into();
    listener
}

pub fn manager(config: &mut Value) -> &mut Value {
    &mut config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
}

pub fn routes(config: &mut Value) -> &mut Vec<Value> {
    list(&mut manager(config)["route_config"]["virtual_hosts"][0]["routes"])
}

/// Lets Envoy serve what the filter would answer.
fn serve_directly(route: &mut Value, document: &ImmediateResponse) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let headers = document.headers.iter().flat_map(|mutation| &mutation.set_headers).flat_map(|set| &set.header);
    remove(route, "typed_per_filter_config");
    route["direct_response"] = json!({"status": 200, "body": {"inline_string": text(&document.body)}});
    route["response_headers_to_add"] = headers
        .map(|header| {
            json!({
                "header": {"key": header.key, "value": text(&header.raw_value)},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            })
        })
        .collect();
}

/// An Envoy that never heard of us.
fn remove_filter(config: &mut Value) {
    list(&mut manager(config)["http_filters"]).retain(|filter| filter["name"] != "envoy-cimd");
    for host in list(&mut manager(config)["route_config"]["virtual_hosts"]) {
        remove(host, "metadata");
        list(&mut host["routes"]).iter_mut().for_each(|route| remove(route, "typed_per_filter_config"));
    }
}

pub fn list(value: &mut Value) -> &mut Vec<Value> {
    value.as_array_mut().expect("a list")
}

pub fn remove(value: &mut Value, key: &str) {
    value.as_object_mut().expect("an object").remove(key);
}
