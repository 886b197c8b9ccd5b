//! The log on stderr, and its filter, which can be changed while the process runs.

use std::{
    io::IsTerminal,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, bail};
use tracing_subscriber::{EnvFilter, Layer, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

use super::audit;

/// What is logged at the moment.
#[derive(Clone)]
pub struct LogFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    text: Arc<Mutex<String>>,
}

impl LogFilter {
    /// Starts the log: lines for a person at a terminal, JSON for everything else.
    ///
    /// # Errors
    /// Where the filter is none.
    pub fn start(text: &str) -> anyhow::Result<Self> {
        let filter = EnvFilter::try_new(text).with_context(|| format!("--log {text}"))?;
        let (filter, handle) = reload::Layer::new(filter);
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let lines = match std::io::stderr().is_terminal() {
            true => lines.boxed(),
            false => lines.json().flatten_event(true).boxed(),
        };
        tracing_subscriber::registry().with(filter).with(lines).init();
        Ok(Self { handle, text: Arc::new(Mutex::new(text.to_owned())) })
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
