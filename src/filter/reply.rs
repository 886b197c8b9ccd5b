//! An HTTP answer, before Envoy's protocol wraps it.

use bytes::Bytes;

use super::outcome::{Outcome, Row};

/// Status, headers and body.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub status: u16,
    /// What became of the request, for metrics and Envoy's access log.
    pub label: &'static str,
    pub headers: Vec<(&'static str, Bytes)>,
    pub body: Bytes,
}

impl Reply {
    pub fn new(outcome: Outcome) -> Self {
        let Row { status, label, .. } = outcome.row();
        Self { status, label, headers: Vec::with_capacity(8), body: Bytes::new() }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<Bytes>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With Envoy's name for the request, where it has one.
    #[must_use]
    pub fn named(self, request_id: Option<&str>) -> Self {
        match request_id {
            Some(id) => self.header("x-request-id", Bytes::copy_from_slice(id.as_bytes())),
            None => self,
        }
    }

    /// With this body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}
