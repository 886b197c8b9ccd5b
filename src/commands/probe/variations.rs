//! What servers vary in a request, and what must not change the answer.

use reqwest::Method;

use super::{
    fetch::{Answer, Fetcher},
    finding::{Finding, Severity},
};
use crate::model::origin::Origin;

/// Asks again in other ways; `first` is the answer to a plain GET.
pub async fn all(fetcher: &Fetcher, origin: &Origin, first: &Answer) -> Vec<Finding> {
    let host = origin.host();
    let mut gets = vec![
        (Severity::Error, "accept", [("accept", "*/*")], "with `accept: */*`, which some servers send,"),
        (Severity::Warning, "accept", [("accept", "text/html")], "with `accept: text/html`"),
        (
            Severity::Error,
            "from_the_request",
            [("x-forwarded-host", "other.invalid")],
            "with an `x-forwarded-host` (nothing of a request may get into it)",
        ),
    ];
    if origin.port() != 443 {
        gets.push((
            Severity::Warning,
            "host_without_port",
            [("host", host)],
            "where `host` does not name the port, as some servers leave it out,",
        ));
    }
    let mut findings = Vec::new();
    for (severity, code, headers, how) in gets {
        let same = fetcher.get(&headers).await.is_ok_and(|again| again.status == 200 && again.body == first.body);
        if !same {
            findings.push(Finding { severity, code, message: format!("{how} the document is not the same") });
        }
    }
    let compressed = fetcher.get(&[("accept-encoding", "gzip")]).await;
    if first.headers.contains_key("etag") && !compressed.is_ok_and(|again| again.headers.contains_key("etag")) {
        findings.push(Finding::warning(
            "etag_gzip",
            "with `accept-encoding: gzip` the etag is gone, as where Envoy's compressor stands before the document: who \
             sends that fetches the whole document each time",
        ));
    }
    if !fetcher.send(Method::HEAD, &[]).await.is_ok_and(|answer| answer.status == 200) {
        findings.push(Finding::warning("head", "HEAD is not answered as GET is, which some servers try first"));
    }
    let preflight = [("origin", "https://client.invalid"), ("access-control-request-method", "GET")];
    let allows = |answer: Answer| {
        (200..300).contains(&answer.status) && answer.headers.contains_key("access-control-allow-origin")
    };
    if !fetcher.send(Method::OPTIONS, &preflight).await.is_ok_and(allows) {
        findings.push(Finding::warning("preflight", "a browser's preflight is refused, so no page can read it"));
    }
    findings
}
