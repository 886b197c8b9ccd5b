//! `envoy-cimd probe`: fetches a document as an authorization server would, and says what would make one refuse it.

use std::{collections::BTreeSet, fmt, net::IpAddr, process::ExitCode};

use anyhow::{Context, bail};
use rustls::CertificateError;
use serde::Serialize;

pub(crate) mod expected;
pub mod fetch;
pub(crate) mod finding;
pub mod judge;
mod object;
pub(crate) mod ready;
pub(crate) mod target;
mod variations;

use super::{output::print, settings::probe::Probe};
use crate::{
    model::{origin::Origin, paths::EndpointPath},
    net::outgoing::address::special_use,
};
use expected::{DIFFERS, Expected};
use fetch::{Failure, Fetcher};
use finding::{Finding, Severity};

/// Runs the command. The report goes to stdout.
///
/// # Errors
/// Where a process that was asked is not ready, or stdout is gone.
pub async fn run(options: Probe) -> anyhow::Result<ExitCode> {
    if let Some(url) = &options.ready {
        return ready::ready(url).await.map(|()| ExitCode::SUCCESS);
    }
    let report = match report(&options).await {
        Ok(report) => report,
        Err(error) => {
            eprintln!("envoy-cimd: {error:#}");
            return Ok(Verdict::NotAsked.exit_code());
        }
    };
    let text = if options.json { serde_json::to_string(&report)? + "\n" } else { report.to_string() };
    print(&text)?;
    Ok(report.verdict.exit_code())
}

/// What the findings come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No error; perhaps warnings.
    Fine,
    /// A server would take it, and it is not the one that was expected.
    Different,
    Refused,
    /// The host could not be asked, so nothing is known of the document.
    NotAsked,
}

impl Verdict {
    fn exit_code(self) -> ExitCode {
        match self {
            Self::Fine => ExitCode::SUCCESS,
            Self::Different | Self::Refused => ExitCode::from(1),
            Self::NotAsked => ExitCode::from(2),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub client_id: String,
    pub verdict: Verdict,
    pub findings: Vec<Finding>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.client_id)?;
        for Finding { severity, code, message } in &self.findings {
            let severity = match severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            writeln!(f, "  {severity} {code}: {message}")?;
        }
        writeln!(
            f,
            "{}",
            match (self.verdict, self.findings.is_empty()) {
                (Verdict::Fine, true) => "fine",
                (Verdict::Fine, false) => "fine, but for the warnings",
                (Verdict::Different, _) => "an authorization server would take this client, but it is not as expected",
                (Verdict::Refused, _) => "an authorization server would refuse this client",
                (Verdict::NotAsked, _) => "nothing is known of the document, since its host could not be asked",
            }
        )
    }
}

async fn report(options: &Probe) -> anyhow::Result<Report> {
    let asked = options.expect.as_deref().map(Expected::read).transpose().and_then(|expected| {
        let target = match (&options.url, &expected) {
            (Some(url), _) => url.clone(),
            (None, Some(expected)) => expected.target()?,
            (None, None) => bail!("URL is missing"),
        };
        Ok((target, expected))
    });
    let (target, expected) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            let url = options.url.as_ref();
            let client_id =
                url.map(|url| [url.origin.as_str(), url.path.as_ref().map_or("", EndpointPath::as_str)].concat());
            return cannot_ask(client_id.unwrap_or_default(), error, options);
        }
    };
    let mut first = None;
    for path in target.documents(&options.document_path) {
        let (report, there) = report_on(&target.origin, &path, expected.as_ref(), options).await?;
        // Where a URL may be read in two ways, a document decides.
        if there {
            return Ok(report);
        }
        first.get_or_insert(report);
    }
    first.context("URL is missing")
}

/// Who reads JSON finds there what a person finds on stderr.
fn cannot_ask(client_id: String, error: anyhow::Error, options: &Probe) -> anyhow::Result<Report> {
    if !options.json {
        return Err(error);
    }
    let findings = vec![Finding::error("option", format!("{error:#}"))];
    Ok(Report { client_id, verdict: Verdict::NotAsked, findings })
}

/// What is found of one document, and whether there is one.
async fn report_on(
    origin: &Origin,
    path: &EndpointPath,
    expected: Option<&Expected>,
    options: &Probe,
) -> anyhow::Result<(Report, bool)> {
    let client_id = format!("{origin}{path}");
    let fetcher = match Fetcher::new(origin, path, options) {
        Ok(fetcher) => fetcher,
        Err(error) => return cannot_ask(client_id, error, options).map(|report| (report, false)),
    };
    let mut findings = judge::client_id(&client_id);
    let found = ask(fetcher, origin, &client_id, expected, &mut findings).await;
    let errors = || findings.iter().filter(|finding| finding.severity == Severity::Error);
    let verdict = if found == Found::Nobody {
        Verdict::NotAsked
    } else if errors().any(|error| error.code != DIFFERS) {
        Verdict::Refused
    } else if errors().next().is_some() {
        Verdict::Different
    } else {
        Verdict::Fine
    };
    Ok((Report { client_id, verdict, findings }, found == Found::Document))
}

/// What a server that fetches a document finds.
#[derive(PartialEq)]
enum Found {
    Nobody,
    NoDocument,
    Document,
}

async fn ask(
    mut fetcher: Fetcher,
    origin: &Origin,
    client_id: &str,
    expected: Option<&Expected>,
    findings: &mut Vec<Finding>,
) -> Found {
    match fetcher.resolve().await {
        Ok(addresses) => findings.extend(special_use_addresses(&addresses)),
        Err(reason) => {
            findings.push(Finding::error("unresolvable", format!("the host's name cannot be resolved: {reason}")));
            return Found::Nobody;
        }
    }
    if let Err(reason) = fetcher.connect().await {
        findings.push(Finding::error("unreachable", format!("no connection could be made: {reason}")));
        return Found::Nobody;
    }
    let answer = match fetcher.get(&[]).await {
        Ok(answer) => answer,
        Err(failure) => {
            findings.push(failed(&failure));
            return Found::NoDocument;
        }
    };
    let judged = judge::answer(client_id, &answer);
    // What is not there cannot vary.
    let there = !judged.iter().any(|finding| judge::NO_DOCUMENT.contains(&finding.code));
    findings.extend(judged);
    if !there {
        return Found::NoDocument;
    }
    findings.extend(expected.into_iter().flat_map(|expected| expected.differences(&answer.body)));
    findings.extend(variations::all(&fetcher, origin, &answer).await);
    Found::Document
}

fn special_use_addresses(addresses: &BTreeSet<IpAddr>) -> impl Iterator<Item = Finding> {
    addresses.iter().filter_map(|address| {
        let special_use = special_use(*address)?;
        Some(Finding::error(
            "special_use_address",
            format!("the host has the address {address}, {special_use}, which servers do not fetch from"),
        ))
    })
}

fn failed(failure: &Failure) -> Finding {
    use rustls::Error::InvalidCertificate;
    match failure {
        Failure::Tls(InvalidCertificate(CertificateError::UnknownIssuer)) => Finding::error(
            "tls_untrusted",
            "the certificate is of an authority that is not trusted here (see --extra-ca)",
        ),
        Failure::Tls(InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            Finding::error("tls_expired", "the certificate has expired")
        }
        Failure::Tls(InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => Finding::error("tls_not_yet_valid", "the certificate is not valid yet"),
        Failure::Tls(InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => Finding::error("tls_wrong_name", "the certificate is for other names"),
        // Such as one that is its own authority, which `openssl req -x509` makes.
        Failure::Tls(InvalidCertificate(error)) => Finding::error(
            "tls_untrusted",
            format!("the certificate is not one that a server can trust: {}", judge::said(&format!("{error:?}"))),
        ),
        Failure::Tls(error) => Finding::error("tls_failed", format!("TLS failed: {}", judge::said(&error.to_string()))),
        Failure::Timeout => Finding::error("timeout", "no whole answer came in time (see --timeout)"),
        Failure::Broken(reason) => Finding::error("no_answer", format!("no whole answer came: {reason}")),
        Failure::TooLarge => Finding::error("too_large", judge::TOO_LARGE),
    }
}
