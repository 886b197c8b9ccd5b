//! The trace that a request belongs to.

/// What joins our spans to Envoy's (W3C Trace Context), as Envoy sent it.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub parent: Option<String>,
    pub state: Option<String>,
}
