//! envoy-cimd turns every MCP route of an Envoy into an OAuth client of its own.
//!
//! Data flows one way: [`ext_proc`] translates a message of Envoy's into a [`request`] view and what the sources say of
//! its [`route`]; [`endpoint`] makes the [`reply`]; [`ext_proc`] wraps it for Envoy. `docs/architecture.md` has the rest.

#![forbid(unsafe_code)]

use std::{ffi::OsString, process::ExitCode};

use anyhow::Context;

use crate::log::LogFilter;

pub mod admin;
pub mod audit;
pub mod browser;
pub mod callback;
pub mod check;
pub mod choreographer;
pub mod cli;
pub mod config_file;
pub mod discovery;
pub mod document;
pub mod endpoint;
pub mod envoy_config;
pub mod ext_proc;
pub mod listen;
pub mod log;
pub mod metrics;
pub mod origin;
pub mod outgoing;
pub mod pages;
pub mod probe;
pub mod process;
pub mod proto;
pub mod query;
pub mod recent;
pub mod refusal;
pub mod refusal_log;
pub mod reload;
pub mod reply;
pub mod request;
pub mod return_to;
pub mod route;
pub mod secret;
pub mod serve;
pub mod start;
pub mod state;
pub mod store;
pub mod tls;
pub mod traces;
pub mod user;
pub mod vault;

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
                eprintln!("envoy-cimd: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn run_task(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    let cli::Parsed { task, file } = cli::parse(args)?;
    match task {
        cli::Task::Serve(settings) => {
            let log = LogFilter::start(&settings.process.log)?;
            let threads = settings.process.threads;
            block_on(threads, serve::serve(*settings, file, log))
        }
        cli::Task::Choreographer(settings) => {
            let log = LogFilter::start(&settings.process.log)?;
            let threads = settings.process.threads;
            block_on(threads, choreographer::command::run(*settings, log))
        }
        cli::Task::Check(options) => print(&check::check(&options)?),
        cli::Task::Completions { shell } => print(&cli::completions(shell)),
        cli::Task::Keygen => print(&(secret::generate_key_line()? + "\n")),
        cli::Task::EnvoyConfig(options) => print(&envoy_config::render(&options, file.as_ref())?),
        cli::Task::Probe(options) => return block_on(1, probe::run(*options)),
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

/// `println!` would panic where the reader of a pipe has gone.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    std::io::stdout().lock().write_all(text.as_bytes()).context("stdout")
}
