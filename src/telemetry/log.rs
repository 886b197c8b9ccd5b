//! The log on stderr, and its filter, which can be changed while the process runs.

use std::{
    io::IsTerminal,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use tracing::{Metadata, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer, Registry,
    filter::{FilterExt, FilterFn, Targets},
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

use super::{
    audit,
    directives::Directives,
    lines::{self, Kind, LineWriter, STDERR},
};

/// How long the end of the process waits for the last lines to be taken.
const LAST: Duration = Duration::from_secs(2);

/// What is logged at the moment.
#[derive(Clone)]
pub struct LogFilter {
    handle: reload::Handle<Targets, Registry>,
    directives: Arc<Mutex<Directives>>,
}

/// Writes what is still to be written when it is dropped, for as long as somebody reads.
#[derive(Debug)]
#[must_use]
pub struct LastLines(());

impl Drop for LastLines {
    fn drop(&mut self) {
        STDERR.finish(LAST);
    }
}

impl LogFilter {
    /// Starts the log: lines for a person at a terminal, JSON for everything else.
    ///
    /// # Errors
    /// Where the system gives no thread to write it.
    pub fn start(directives: Directives) -> anyhow::Result<(Self, LastLines)> {
        STDERR.write_to(std::io::stderr()).context("the log")?;
        let (filter, handle) = reload::Layer::new(directives.targets.clone());
        let others = filter.and(FilterFn::new(|line| !is_kept(line)).with_max_level_hint(LevelFilter::TRACE));
        // No filter that can be changed reaches these.
        let kept = FilterFn::new(is_kept).with_max_level_hint(LevelFilter::INFO);
        tracing_subscriber::registry()
            .with(layer(Kind::Lossy).with_filter(others))
            .with(layer(Kind::Kept).with_filter(kept))
            .init();
        // Else a thread that answers would write to stderr itself, and wait for who reads it.
        std::panic::set_hook(Box::new(|panic| tracing::error!(target: "panic", "{panic}")));
        Ok((Self { handle, directives: Arc::new(Mutex::new(directives)) }, LastLines(())))
    }

    /// The filter that holds.
    pub fn text(&self) -> String {
        self.directives.lock().unwrap_or_else(PoisonError::into_inner).to_string()
    }

    /// Changes the filter. What is audited, and that the filter was changed, is logged whatever it says.
    ///
    /// # Errors
    /// Where the log has gone.
    pub async fn set(&self, directives: Directives) -> anyhow::Result<()> {
        {
            // In turn, so that what is said to hold is what holds.
            let mut current = self.directives.lock().unwrap_or_else(PoisonError::into_inner);
            self.handle.reload(directives.targets.clone())?;
            tracing::info!(target: lines::TARGET, filter = %directives, "the log's filter was changed");
            *current = directives;
        }
        STDERR.written().await;
        Ok(())
    }
}

/// What is audited, and what the log says of itself.
fn is_kept(line: &Metadata<'_>) -> bool {
    audit::is_kept(line) || line.target() == lines::TARGET
}

/// Lines for a person at a terminal, JSON for everything else.
fn layer<S>(kind: Kind) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(LineWriter { lines: &STDERR, kind });
    match std::io::stderr().is_terminal() {
        true => lines.with_ansi(true).boxed(),
        // Spans are none of ours; libraries have them at `trace`, and each line would repeat them.
        false => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    }
}
