//! `envoy-cimd check`: what a config file would serve.

use std::{collections::HashMap, fmt::Write as _};

use anyhow::Context;

use super::{
    exchange::{Exchange, Side},
    listeners::main_tls,
    notices,
    roles::roles,
    serve,
    settings::{Check, Task, parse},
    shared_hosts::{several_ports, several_routes},
};
use crate::{
    exchange::clients::configured::PreRegistered,
    filter::{
        document::{Document, LONGEST_SAFE_CLIENT_ID},
        route_book::State,
    },
    model::{issuer::is_same, paths::Paths, public_url::PublicUrl, route::Key},
    telemetry::exposure,
};

/// What `serve` would make of the file, as text.
///
/// # Errors
/// As `serve` would fail, before it binds anything.
pub fn check(options: &Check) -> anyhow::Result<String> {
    let args = ["envoy-cimd".into(), "serve".into(), "--config".into(), options.config.clone().into_os_string()];
    let parsed = parse::parse(args)?;
    let Task::Serve(settings) = parsed.task else {
        anyhow::bail!("the command line of `serve` was not taken");
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(main_tls(&settings.listen, &settings.process, settings.exchange.tokens_listen.as_ref()))?;
    let roles = runtime.block_on(roles(&settings))?;
    let exchange = runtime.block_on(Exchange::new(&settings, parsed.file.as_ref()))?;
    let paths = serve::endpoints(&settings, parsed.file.as_ref(), &exchange)?.0.tools.paths;
    let file = parsed.file.map(|file| file.content).unwrap_or_default();
    let mut text = String::new();
    let mut public_urls = Vec::new();
    let mut pins = HashMap::new();
    for exposure in serve::secret_files(&settings, &exchange).iter().flat_map(|path| exposure::exposures(path)) {
        writeln!(text, "warning: {exposure}")?;
    }
    for spec in &file.routes {
        let route = spec.route()?;
        let document = Document::new(&route, &paths, &settings.routes.document.client_name)
            .with_context(|| route.from.to_string())?;
        let client_id = paths.client_id(&route.from);
        let length = client_id.as_str().len();
        writeln!(text, "{}", route.from)?;
        writeln!(text, "  client_id     {client_id}")?;
        writeln!(text, "  redirect_uri  {}", paths.redirect_uri(&route.from))?;
        writeln!(text, "  document      {} bytes", document.body.len())?;
        writeln!(text, "  route         from this file: {}", State::of(&route).name())?;
        if length > LONGEST_SAFE_CLIENT_ID {
            writeln!(
                text,
                "  warning: the client_id has {} bytes; Auth0 takes {LONGEST_SAFE_CLIENT_ID} at most",
                length
            )?;
        }
        if spec.get(Key::To).is_none() {
            writeln!(text, "  warning: without `to`, nobody can connect; the document alone is served")?;
        }
        pins.insert(route.from.clone(), route.pinned_issuer()?.map(str::to_owned));
        public_urls.push(route.from);
    }
    if file.routes.is_empty() {
        writeln!(
            text,
            "no routes in the file: they come from Envoy's metadata, all keys of a route from the level that sets `from` \
             (the route, or its virtual host)"
        )?;
    }
    if let Side::Here(embedded, _) = &exchange.side {
        for client in &embedded.tokens.clients.configured().all {
            write_client(&mut text, client, &paths, &pins)?;
        }
    }
    writeln!(text, "serves {roles}")?;
    if let Some(reason) = &roles.left_out {
        writeln!(text, "  {reason}")?;
    }
    if let Some(subject) = settings.user_subject.as_ref().filter(|subject| subject.may_change_hands()) {
        writeln!(
            text,
            "warning: `user_subject` is {subject}, which another person may have one day, or may choose: whoever has it \
             has this person's tokens. Take `sub`, or what the provider keeps for one person alone, such as `oid`"
        )?;
    }
    for notice in notices::of_serve(&settings, &roles, &parsed.given) {
        writeln!(text, "warning: {notice}")?;
    }
    for warning in several_ports(&public_urls).into_iter().chain(several_routes(&public_urls)) {
        writeln!(text, "warning: {warning}")?;
    }
    Ok(text)
}

/// A client of the file, with what its operator enters where they register it. `pins` are the issuers of the file's routes.
fn write_client(
    text: &mut String,
    client: &PreRegistered,
    paths: &Paths,
    pins: &HashMap<PublicUrl, Option<String>>,
) -> std::fmt::Result {
    let PreRegistered { issuer, client_id, method, routes, .. } = client;
    writeln!(text, "client {client_id} at {issuer} ({}), where these redirect URIs are to be entered:", method.name())?;
    for from in routes {
        writeln!(text, "  {}", paths.redirect_uri(from))?;
        match pins.get(from) {
            Some(Some(pin)) if is_same(pin, issuer) => {}
            Some(_) => writeln!(
                text,
                "  warning: the route {from} is not this client, since its `authorization_server` does not pin {issuer}"
            )?,
            None => writeln!(
                text,
                "  the route {from} is not in this file: wherever it comes from, it must pin this issuer with \
                 `authorization_server`"
            )?,
        }
    }
    Ok(())
}
