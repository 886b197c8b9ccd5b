//! The log on stderr, and its filter, which can be changed while the process runs.

use std::{
    io::IsTerminal,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, bail};
use tracing::Subscriber;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::filter_fn, fmt::MakeWriter, layer::SubscriberExt, registry::LookupSpan, reload,
    util::SubscriberInitExt,
};

use super::audit;

/// How many lines may wait to be written, of some hundred bytes each.
const LINES: usize = 8192;

/// What is logged at the moment.
#[derive(Clone)]
pub struct LogFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    text: Arc<Mutex<String>>,
}

impl LogFilter {
    /// Starts the log: lines for a person at a terminal, JSON for everything else. What comes back writes what is still
    /// to be written when it is dropped.
    ///
    /// # Errors
    /// Where the filter cannot be read.
    pub fn start(text: &str) -> anyhow::Result<(Self, WorkerGuard)> {
        let filter = EnvFilter::try_new(text).with_context(|| format!("--log {text}"))?;
        let (filter, handle) = reload::Layer::new(filter);
        // A thread of its own writes: who answers does not wait for who reads the log, until it is far behind.
        let (queue, guard) =
            NonBlockingBuilder::default().lossy(false).buffered_lines_limit(LINES).finish(std::io::stderr());
        // But what is audited is written before the answer goes out.
        let audited = lines(std::io::stderr).with_filter(filter_fn(|line| line.target() == audit::TARGET));
        let others = lines(queue).with_filter(filter_fn(|line| line.target() != audit::TARGET));
        tracing_subscriber::registry().with(filter).with(audited).with(others).init();
        Ok((Self { handle, text: Arc::new(Mutex::new(text.to_owned())) }, guard))
    }

    /// The filter that holds.
    pub fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the filter. What is audited, and that the filter was changed, is logged whatever it says.
    ///
    /// # Errors
    /// Where the filter is none; the one before stays.
    pub fn set(&self, text: &str) -> anyhow::Result<()> {
        if text.is_empty() {
            bail!("the filter is empty");
        }
        let mut filter = EnvFilter::try_new(text)?;
        for kept in [audit::TARGET, module_path!()] {
            filter = filter.add_directive(format!("{kept}=info").parse()?);
        }
        self.handle.reload(filter)?;
        text.clone_into(&mut self.text.lock().unwrap_or_else(PoisonError::into_inner));
        tracing::info!(filter = text, "the log's filter was changed");
        Ok(())
    }
}

/// Lines for a person at a terminal, JSON for everything else.
fn lines<S, W>(writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    match std::io::stderr().is_terminal() {
        true => lines.with_ansi(true).boxed(),
        // Spans are none of ours; libraries have them at `trace`, and each line would repeat them.
        false => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    }
}
