//! An HTTP answer, before Envoy's protocol wraps it.

use std::borrow::Cow;

/// Status, headers and body.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub status: u16,
    /// What became of the request, for metrics and Envoy's access log.
    pub label: &'static str,
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn new(status: u16, label: &'static str) -> Self {
        Self { status, label, headers: Vec::with_capacity(8), body: Vec::new() }
    }

    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    #[must_use]
    pub fn body(mut self, body: Vec<u8>) -> Self {
        self.body = body;
        self
    }
}
