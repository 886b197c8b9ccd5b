//! MCP routes behind a real Envoy on this machine, each with an authorization server of its own to connect to: three
//! that are one person's, two of them on one host, and one of a company whose people sign in.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{checks::Checks, clients::clients, running::Running};

mod authorization_server;
mod checks;
mod client_document;
mod clients;
mod company;
mod events;
mod guide;
mod identity_provider;
mod needs;
mod pages;
mod pending;
mod running;
mod sdk_client;
mod serving;
#[path = "../../tests/stack/mod.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod stack;
mod upstream;

/// MCP routes behind a real Envoy on this machine, each an OAuth client of its own.
///
/// It starts small MCP servers, an authorization server for each, envoy-cimd and Envoy on loopback, and both once more
/// for a company with an identity provider, where people and their MCP clients sign in. It fetches the client metadata
/// documents through Envoy as an authorization server would, and says how to connect the routes in a browser and what
/// else to try. When it ends, so does all that it started, and its files are removed.
#[derive(Parser)]
#[command(name = "demo", max_term_width = 110, after_help = AFTER_HELP)]
struct Options {
    /// Connect the routes as a person with a browser and an MCP client would, check what came of it, and end.
    #[arg(long)]
    once: bool,
    /// The port of the routes, on 127.0.0.1; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 8443)]
    port: u16,
}

const AFTER_HELP: &str = "\
Options reach it through make as ARGS: make demo ARGS=\"--once --port 9443\"
The variable ENVOY names the Envoy to run; without it, that is the `envoy` on the PATH.
It exits with 0 if every check passed and nothing ended by itself, and with 1 otherwise.";

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    // What the demo shares with the tests panics where it fails; whoever runs the demo needs the message alone.
    std::panic::set_hook(Box::new(|panic| eprintln!("demo: {}", panic.payload_as_str().unwrap_or("a bug in it"))));
    match tokio::spawn(demo(options)).await {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) | Err(_) => ExitCode::FAILURE,
        Ok(Err(error)) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The demo from start to end; whether all of it went well.
async fn demo(options: Options) -> anyhow::Result<bool> {
    let mut stop = StopSignals::new()?;
    let start = async {
        let mut running = Running::start(options.port).await?;
        guide::introduce(&running);
        let mut checks = Checks::default();
        if options.once {
            sign_in(&running, &mut checks).await;
        }
        let etag = look(&running, &mut checks).await;
        if options.once {
            connect(&mut running, &mut checks).await;
        }
        Ok::<_, anyhow::Error>((running, checks, etag))
    };
    // A Ctrl-C at a terminal reaches the children too: that they end is then no news, so the signal is looked at first.
    let (mut running, checks, etag) = tokio::select! {
        biased;
        () = stop.next() => bail!("interrupted before the checks were done; what was started is stopped"),
        started = start => started?,
    };

    let mut well = checks.all_passed();
    println!("\n{}", checks.summary());
    if options.once {
        if !well {
            eprintln!();
            running.print_output_ends();
        }
    } else {
        guide::suggest(&running, etag.as_deref().unwrap_or("*"))?;
        guide::invite(&running);
        guide::offer(&running);
        println!("\nAll of it runs until you press Ctrl-C. What happens on the routes:\n");
        let (log, company) = (running.cimd.process.lines(), running.company.cimd.process.lines());
        tokio::select! {
            biased;
            () = stop.next() => println!(),
            () = running.one_ended() => well = false,
            never = events::tell(log) => match never {},
            never = events::tell(company) => match never {},
        }
    }

    tokio::select! {
        stopped = running.stop() => println!("{}", stopped?),
        () = stop.next() => bail!("did not wait for an orderly end; what was started is killed"),
    }
    Ok(well)
}

/// What a person and their MCP client go through, from nothing to the answer of a tool.
async fn sign_in(running: &Running, checks: &mut Checks) {
    println!("\nUsed by an MCP client of the official TypeScript SDK, whose person signs in and connects");
    let Some(modules) = needs::client_modules() else {
        checks.leave_out("the MCP client, which takes Node.js 20 or newer and npm on the PATH when `make demo` runs.");
        return;
    };
    let ca = &running.certificates.ca;
    checks::sdk_client::check(checks, &running.web, &running.company, ca, &modules).await;
}

/// A look at the routes from outside; the entity tag of a document.
async fn look(running: &Running, checks: &mut Checks) -> Option<String> {
    println!("\nChecked, as an authorization server would");
    let etag = checks::documents::check(checks, &running.web, &running.routes).await;
    println!("\nAsked, as the MCP clients would that this is pasted into");
    let [notes, ..] = &running.routes;
    for client in clients(notes, &running.certificates.ca) {
        checks.about(client.what);
        let told = checks::mcp::told_to_connect(&running.web, client.url().unwrap_or_default(), notes).await;
        checks.note("is told where to connect", told);
    }
    etag
}

/// Connects the routes, calls their servers, asks for their tokens, then looks at what envoy-cimd has kept.
async fn connect(running: &mut Running, checks: &mut Checks) {
    println!("\nConnected, as a person with a browser would");
    checks::connecting::check(checks, &running.web, &running.routes).await;
    println!("\nCalled through Envoy, as an MCP client would that has no token");
    for route in &running.routes {
        checks.about(&route.mcp());
        let called = checks::mcp::called(&running.web, route).await;
        checks.note(
            &format!("is answered by the {} MCP server, with the person's token and no other", route.name),
            called,
        );
    }
    println!("\nHanded out, to whoever else carries MCP traffic");
    checks::handing_out::check(checks, &running.web, &running.routes, &running.tokens).await;
    println!("\nFound in envoy-cimd's store, once envoy-cimd has ended");
    // The store is one process's at a time.
    let ended = running.cimd.process.stop().await;
    checks.about("envoy-cimd");
    let in_order = if ended == Some(0) { Ok(()) } else { Err("it did not exit with 0".to_owned()) };
    checks.note("ends in order when it is asked to", in_order);
    checks::tokens::check(checks, &running.web, &running.routes, &running.state_dir()).await;
}

/// What ends the demo. SIGHUP is a closed terminal, which Envoy alone would survive.
struct StopSignals([Signal; 3]);

impl StopSignals {
    fn new() -> anyhow::Result<Self> {
        let [interrupt, terminate, hangup] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        Ok(Self([signal(interrupt)?, signal(terminate)?, signal(hangup)?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
