//! `envoy-cimd documents`: the documents as files, for a static host where the gateway is not on the internet.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::Value;

use super::settings::{documents::Documents, parse::LoadedFile};
use crate::{
    filter::{
        document::{self, Document},
        reply::Reply,
    },
    model::{
        paths::{Endpoint, Paths},
        route::{MAX_DOCUMENT_BYTES, Route},
        route_table::RouteTable,
    },
    store::whole_file,
};

/// Writes every document of the file, and says what a host of them must send.
///
/// Nothing is written before all of them are known to be good; each is then there whole or not at all. What is there
/// with these bytes is left alone: many a host makes a tag of the time of the last change.
///
/// # Errors
/// Where a route is wrong, or its document cannot be written; the error names the route.
pub fn publish(options: &Documents, file: Option<&LoadedFile>) -> anyhow::Result<String> {
    let paths = options.document.paths()?;
    let named = || options.config.display().to_string();
    let specs = file.map(|file| file.content.routes.as_slice()).unwrap_or_default();
    if specs.is_empty() {
        bail!(
            "{}: has no `routes:`, whose documents these are. Where Envoy's metadata has the routes, list the `from` and \
             the `client_name` of each in a file",
            named()
        );
    }
    RouteTable::new(specs, &paths).with_context(named)?;
    let mut pages = Vec::new();
    for spec in specs {
        pages.push(Page::new(&spec.route().with_context(named)?, &paths, options)?);
    }
    ensure_apart(&pages)?;
    fs::create_dir_all(&options.out).with_context(|| format!("--out {}", options.out.display()))?;
    let mut documents = Vec::new();
    for page in &pages {
        let written =
            page.write().with_context(|| format!("{} (the document of {})", page.file.display(), page.from))?;
        documents.push(Published {
            state: if written { State::Written } else { State::Unchanged },
            file: page.file.clone(),
            client_id: page.client_id.clone(),
            etag: Some(String::from_utf8_lossy(&page.document.etag).into_owned()),
        });
    }
    let current: BTreeSet<&Path> = pages.iter().map(|page| page.file.as_path()).collect();
    let mut found = Vec::new();
    stale(&options.out, "https://", &current, &mut found);
    found.sort_by(|one, other| one.file.cmp(&other.file));
    documents.extend(found);
    let cache_control = document::cache_control(options.document.document_max_age);
    let headers = pages.first().map(|page| headers(&page.document.served(&cache_control))).unwrap_or_default();
    let report = Report { documents, headers, preflight: headers_of_preflight() };
    Ok(if options.json { serde_json::to_string(&report)? + "\n" } else { report.text(options)? })
}

/// A document and where it goes.
struct Page {
    from: String,
    client_id: String,
    file: PathBuf,
    document: Document,
}

impl Page {
    fn new(route: &Route, paths: &Paths, options: &Documents) -> anyhow::Result<Self> {
        let from = route.from.to_string();
        let document = Document::new(route, paths, &options.document.client_name).with_context(|| from.clone())?;
        // Both are of plain segments, without a dot segment, so this stays below the folder.
        let path = paths.on(&route.from, Endpoint::Document);
        let file = options.out.join(route.from.origin().authority()).join(path.trim_start_matches('/'));
        Ok(Self { from, client_id: paths.client_id(&route.from).into_string(), file, document })
    }

    /// Whether it had to be written.
    fn write(&self) -> std::io::Result<bool> {
        if fs::read(&self.file).is_ok_and(|there| there == self.document.body) {
            return Ok(false);
        }
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder)?;
        }
        whole_file::make_public(&self.file, &self.document.body)?;
        Ok(true)
    }
}

/// Of URLs, one may be another one with more behind it; of files, not.
fn ensure_apart(pages: &[Page]) -> anyhow::Result<()> {
    let files: BTreeMap<&Path, &Page> = pages.iter().map(|page| (page.file.as_path(), page)).collect();
    for page in pages {
        if let Some(other) = page.file.ancestors().skip(1).find_map(|folder| files.get(folder)) {
            bail!(
                "{}: its document needs a folder where the document of {} is a file: {}",
                page.from,
                other.from,
                other.file.display()
            );
        }
    }
    Ok(())
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Written,
    Unchanged,
    /// It is the document of no route of the file.
    Stale,
}

#[derive(Debug, Serialize)]
struct Published {
    state: State,
    file: PathBuf,
    client_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
}

/// Finds documents of no route: files that say that they are the client of the address where they are. Whatever cannot
/// be read is none that was written here.
fn stale(folder: &Path, url: &str, current: &BTreeSet<&Path>, found: &mut Vec<Published>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (Ok(kind), Some(name)) = (entry.file_type(), entry.file_name().to_str().map(str::to_owned)) else {
            continue;
        };
        let (path, url) = (entry.path(), format!("{url}{name}"));
        if kind.is_dir() {
            stale(&path, &format!("{url}/"), current, found);
        } else if kind.is_file() && !current.contains(&*path) && is_document(&path, &url) {
            found.push(Published { state: State::Stale, file: path, client_id: url, etag: None });
        }
    }
}

fn is_document(path: &Path, client_id: &str) -> bool {
    let is_small = fs::metadata(path).is_ok_and(|metadata| metadata.len() <= MAX_DOCUMENT_BYTES as u64);
    let content = is_small.then(|| fs::read(path).ok()).flatten().unwrap_or_default();
    serde_json::from_slice::<Value>(&content).is_ok_and(|document| document["client_id"] == client_id)
}

/// The headers of every document; its tag is its own.
fn headers(reply: &Reply) -> BTreeMap<&'static str, String> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let headers = reply.headers.iter().filter(|(name, _)| *name != "etag");
    headers.map(|(name, value)| (*name, text(value))).collect()
}

fn headers_of_preflight() -> BTreeMap<&'static str, String> {
    headers(&document::preflight())
}

#[derive(Debug, Serialize)]
struct Report {
    documents: Vec<Published>,
    headers: BTreeMap<&'static str, String>,
    preflight: BTreeMap<&'static str, String>,
}

impl Report {
    fn text(&self, options: &Documents) -> anyhow::Result<String> {
        let mut text = String::new();
        for Published { state, file, .. } in &self.documents {
            let state = match state {
                State::Written => "written",
                State::Unchanged => "unchanged",
                State::Stale => "stale",
            };
            writeln!(text, "{state:<9}  {}", file.display())?;
        }
        if self.documents.iter().any(|document| document.state == State::Stale) {
            writeln!(
                text,
                "\nA stale file is the document of no route of {}. Authorization servers take its client for as long as \
                 it is served: remove it once nobody is connected by it.",
                options.config.display()
            )?;
        }
        writeln!(
            text,
            "\nEach folder of {} is the root of one https host, with its port where that is not 443. That host answers GET \
             and HEAD of these files with 200, without signing in and never with a redirect, and sends",
            options.out.display()
        )?;
        write_headers(&mut text, &self.headers)?;
        writeln!(text, "and an etag, which may be its own. It answers OPTIONS with 204, and sends")?;
        write_headers(&mut text, &self.preflight)?;
        writeln!(text, "Then ask from outside: envoy-cimd probe --expect FILE, for each of the files.")?;
        Ok(text)
    }
}

fn write_headers(text: &mut String, headers: &BTreeMap<&'static str, String>) -> std::fmt::Result {
    headers.iter().try_for_each(|(name, value)| writeln!(text, "  {name}: {value}"))
}
