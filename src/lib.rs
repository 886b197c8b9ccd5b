//! envoy-cimd turns every MCP route of an Envoy into an OAuth client of its own.
//!
//! Data flows one way: `edge` translates a message of Envoy's into a request and what the sources say of its route;
//! `filter` makes the reply, and calls the `exchange` through the `contract` where it takes more; `edge` wraps it for
//! Envoy. `docs/architecture.md` has the rest.

#![forbid(unsafe_code)]

use std::{ffi::OsString, process::ExitCode};

use crate::{
    commands::{
        check, choreographer, documents, envoy_config,
        output::{complain, print},
        probe, serve,
        settings::{
            self,
            parse::{Parsed, parse},
        },
    },
    model::secret,
    telemetry::log::LogFilter,
};

pub mod commands;
pub mod contract;
pub mod edge;
pub mod exchange;
pub mod filter;
pub mod model;
pub mod net;
pub(crate) mod process;
pub mod store;
pub(crate) mod telemetry;

/// Runs the program: data goes to stdout, logs and errors to stderr.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match run_task(args) {
        Ok(code) => code,
        Err(error) => match error.downcast::<clap::Error>() {
            // Help is no failure: clap knows which stream and exit code an outcome of its own wants.
            Ok(error) => {
                let _ = error.print();
                u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
            }
            Err(error) => {
                complain(format!("envoy-cimd: {error:#}\n"));
                ExitCode::FAILURE
            }
        },
    }
}

fn run_task(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    let Parsed { task, file, given } = parse(args)?;
    match task {
        settings::Task::Serve(settings) => {
            let (log, _written_at_the_end) = LogFilter::start(settings.process.log.clone())?;
            let threads = settings.process.threads;
            block_on(threads, serve::serve(*settings, file, &given, log))
        }
        settings::Task::Choreographer(settings) => {
            let (log, _written_at_the_end) = LogFilter::start(settings.process.log.clone())?;
            let threads = settings.process.threads;
            block_on(threads, choreographer::run(*settings, file, &given, log))
        }
        settings::Task::Check(options) => print(&check::check(&options)?),
        settings::Task::Completions { shell } => print(&settings::completions(shell)),
        settings::Task::Keygen => print(&(secret::generate_key_line()? + "\n")),
        settings::Task::EnvoyConfig(options) => print(&envoy_config::render(&options, file.as_ref())?),
        settings::Task::Documents(options) => print(&documents::publish(&options, file.as_ref())?),
        settings::Task::Probe(options) => return block_on(1, probe::run(*options)),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a task to its end, and what it spawns on this many threads.
///
/// # Errors
/// Those of the task, and where the system gives no threads.
pub fn block_on<T>(threads: usize, task: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let result = runtime.block_on(task);
    // What did not finish by the drain timeout is not waited for.
    runtime.shutdown_background();
    result
}
