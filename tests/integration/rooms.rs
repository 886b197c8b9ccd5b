//! The walls of the house: which room may import which, read from the sources themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use proc_macro2::{Delimiter, Punct, TokenStream, TokenTree};

/// The rooms, the highest first, and what each must never import: rooms below it, and other crates. A room imports
/// itself and the rooms below it, and no other; those of one row do not import each other.
const ROOMS: [(&[&str], &[&str]); 9] = [
    (&["commands"], &[]),
    (&["edge"], &["exchange", "store", "net"]),
    (&["filter"], &["exchange", "store", "net", "process", "tonic", "prost", "reqwest", "redb", "redis", "clap"]),
    (&["exchange"], &["clap", "tonic"]),
    (&["contract"], &["store", "clap"]),
    (&["store"], &["clap"]),
    (&["net"], &["clap"]),
    (&["process", "telemetry"], &["clap"]),
    (&["model"], &["clap"]),
];

/// A path that a file names: the line, and the path from the crate's root, or from another crate's.
struct Import {
    line: usize,
    path: Vec<String>,
    /// From the crate's root.
    ours: bool,
}

fn level(room: &str) -> Option<usize> {
    ROOMS.iter().position(|(rooms, _)| rooms.contains(&room))
}

/// Every import that a wall forbids, and every two files that import each other. `files` are paths below `src` with
/// their text.
fn faults(files: &[(&str, &str)]) -> Vec<String> {
    let modules: BTreeMap<Vec<String>, &str> = files.iter().map(|(file, _)| (module(file), *file)).collect();
    let mut faults = Vec::new();
    let mut edges = BTreeMap::new();
    for (file, text) in files {
        let own = module(file);
        let room = own.first().map_or("", String::as_str);
        for Import { line, path, ours } in imports(text, &own, &modules) {
            let Some(other) = path.first() else { continue };
            if ours && level(other).is_none() && !room.is_empty() {
                faults.push(format!("src/{file}:{line}: {} is in no room", path.join("::")));
                continue;
            }
            let shown = path.join("::");
            let forbidden = match (level(room), level(other)) {
                // `lib.rs` and `main.rs` put the rooms together.
                (None, _) => false,
                (Some(_), _) if room == other => false,
                (Some(here), Some(there)) => here >= there || ROOMS[here].1.contains(&other.as_str()),
                (Some(here), None) => ROOMS[here].1.contains(&other.as_str()),
            };
            if forbidden {
                faults.push(format!("src/{file}:{line}: {room} must not import {shown}"));
            }
            let target = (1..=path.len()).rev().find_map(|length| modules.get(&path[..length]));
            if let Some(target) = target.filter(|target| *target != file) {
                edges.entry((*file, *target)).or_insert(line);
            }
        }
    }
    for ((file, other), line) in &edges {
        if let Some(back) = edges.get(&(*other, *file)).filter(|_| file < other) {
            faults.push(format!("src/{file}:{line} and src/{other}:{back} import each other"));
        }
    }
    faults
}

/// The path of a file's module.
fn module(file: &str) -> Vec<String> {
    match file.strip_suffix(".rs").expect("a source") {
        "lib" | "main" => Vec::new(),
        path => path.split('/').map(str::to_owned).collect(),
    }
}

fn imports(text: &str, module: &[String], modules: &BTreeMap<Vec<String>, &str>) -> Vec<Import> {
    let tokens: TokenStream = text.parse().expect("Rust");
    let mut found = Vec::new();
    walk(tokens, module, &mut |line, path, module| {
        let mut rest = path.as_slice();
        let mut from = match rest.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self" | "super") => module.to_vec(),
            Some(name) => {
                let mut child = module.to_vec();
                child.push(name.to_owned());
                if !modules.contains_key(&child) {
                    // Another crate, or something that this file imports by a path of its own.
                    found.push(Import { line, path: path.clone(), ours: false });
                    return;
                }
                module.to_vec()
            }
            None => return,
        };
        while let Some((first, others)) = rest.split_first() {
            match first.as_str() {
                "crate" | "self" => {}
                "super" => drop(from.pop()),
                _ => break,
            }
            rest = others;
        }
        from.extend_from_slice(rest);
        found.push(Import { line, path: from, ours: true });
    });
    found
}

type Found<'a> = dyn FnMut(usize, Vec<String>, &[String]) + 'a;

/// Calls `found` with each path of two names or more, and with what `use` names.
fn walk(tokens: TokenStream, module: &[String], found: &mut Found<'_>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let is = |place: usize, char: char| matches!(tokens.get(place), Some(TokenTree::Punct(punct)) if punct.as_char() == char);
    let name = |place: usize| match tokens.get(place) {
        Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
        _ => None,
    };
    let mut place = 0;
    while let Some(token) = tokens.get(place) {
        match token {
            TokenTree::Group(group) if place > 0 && name(place - 1).is_some_and(|name| name == "use") => {
                let line = group.span_open().start().line;
                tree(&tokens[place..], line, &mut Vec::new(), &mut |line, path| found(line, path, module));
            }
            TokenTree::Group(group) => walk(group.stream(), module, found),
            TokenTree::Ident(ident) if ident == "use" => {}
            TokenTree::Ident(ident) if ident == "mod" => {
                if let (Some(name), Some(TokenTree::Group(group))) = (name(place + 1), tokens.get(place + 2)) {
                    walk(group.stream(), &[module, &[name]].concat(), found);
                    place += 2;
                }
            }
            TokenTree::Ident(ident) => {
                // After `a::` or `<A as B>::` it goes on with a path; after `use` it is one, however short.
                let before = place.checked_sub(3);
                let continues = before.is_some_and(|before| {
                    is(place - 1, ':')
                        && is(place - 2, ':')
                        && (name(before).is_some_and(|name| name != "use") || is(before, '>'))
                });
                let is_path = is(place + 1, ':') && is(place + 2, ':');
                let used = place > 0 && name(place - 1).is_some_and(|name| ["use", "crate"].contains(&name.as_str()));
                if !continues && (is_path || used) {
                    let line = ident.span().start().line;
                    let all = &tokens[place..];
                    let rest = tree(all, line, &mut Vec::new(), &mut |line, path| found(line, path, module));
                    // The last token may be a name's, or a group that has more in it.
                    place += (all.len() - rest.len()).saturating_sub(1);
                }
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
        place += 1;
    }
}

/// The paths of a tree such as `a::{b, c::d}`, with the line of each one's end; and what comes after the tree.
fn tree<'t>(
    mut tokens: &'t [TokenTree],
    mut line: usize,
    prefix: &mut Vec<String>,
    found: &mut dyn FnMut(usize, Vec<String>),
) -> &'t [TokenTree] {
    let length = prefix.len();
    while let [TokenTree::Ident(ident), tail @ ..] = tokens {
        line = ident.span().start().line;
        prefix.push(ident.to_string());
        tokens = tail;
        match tail {
            [TokenTree::Punct(one), TokenTree::Punct(two), tail @ ..] if [one, two].map(Punct::as_char) == [':'; 2] => {
                tokens = tail;
            }
            _ => {
                found(line, prefix.clone());
                prefix.truncate(length);
                return tokens;
            }
        }
    }
    match tokens {
        [TokenTree::Group(group), tail @ ..] if group.delimiter() == Delimiter::Brace => {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ',');
            for branch in inner.split(is_comma).filter(|branch| !branch.is_empty()) {
                tree(branch, line, prefix, found);
            }
            tokens = tail;
        }
        // All of a module, or the arguments of a type.
        _ => found(line, prefix.clone()),
    }
    prefix.truncate(length);
    tokens
}

fn sources(folder: &Path, below: &str, files: &mut Vec<(String, String)>) {
    let mut entries: Vec<_> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")).collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), format!("{below}{}", entry.file_name().to_str().expect("text")));
        if path.is_dir() {
            sources(&path, &format!("{name}/"), files);
        } else if name.ends_with(".rs") {
            files.push((name, std::fs::read_to_string(&path).expect("a source")));
        }
    }
}

#[test]
fn no_import_breaks_a_wall() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut files);
    let files: Vec<(&str, &str)> = files.iter().map(|(file, text)| (file.as_str(), text.as_str())).collect();
    assert!(files.len() > 60, "the sources are where they were");
    // A file that is in no room has no walls.
    let rooms: BTreeSet<&str> = ROOMS.iter().flat_map(|(rooms, _)| rooms.iter().copied()).collect();
    for (file, text) in &files {
        for hidden in ["#[path", "include!(", "with = \"crate"] {
            assert!(!text.contains(hidden), "src/{file} imports by {hidden}, which this test does not read");
        }
        let room = file.trim_end_matches(".rs").split('/').next().expect("a name");
        assert!(rooms.contains(room) || ["lib", "main"].contains(&room), "src/{file} is in no room");
    }
    let faults = faults(&files);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn what_breaks_a_wall_is_named() {
    for (text, expected) in [
        ("use crate::model::user::User;\nuse crate::net::tls::pem;\n", "2: filter must not import net::tls::pem"),
        (
            "use crate::{\n    model::user::User,\n    exchange::{\n        tokens::Tokens,\n    },\n};",
            "4: filter must not import exchange::tokens::Tokens",
        ),
        ("fn a() {\n    crate::commands::serve::serve();\n}", "2: filter must not import commands::serve::serve"),
        (
            "mod tests {\n    use super::super::super::process::tasks::Tasks;\n}",
            "2: filter must not import process::tasks::Tasks",
        ),
        ("use super::super::edge::proto;", "1: filter must not import edge::proto"),
        ("use tonic::Status;", "1: filter must not import tonic::Status"),
        ("use ::tonic::Status;", "1: filter must not import tonic::Status"),
        ("use tonic as t;", "1: filter must not import tonic"),
        ("use {url::Url, redis};", "1: filter must not import redis"),
        ("extern crate tonic;", "1: filter must not import tonic"),
        // What `lib.rs` imports for itself can be named below it.
        ("use crate::serve::serve;", "1: serve::serve is in no room"),
        ("fn a() { let _ = vec![clap::Arg::new()]; }", "1: filter must not import clap::Arg::new"),
    ] {
        let faults = faults(&[("filter/start.rs", text)]);
        assert_eq!(faults, [format!("src/filter/start.rs:{expected}")], "{text}");
    }
    for good in [
        "use crate::{contract::error::CallError, model::user::User, telemetry::metrics::Metrics};",
        "//! As `crate::net` does.\nconst A: &str = \"crate::net::tls\";",
        "use super::reply::Reply;\nmod tests {\n    use super::*;\n}",
    ] {
        assert_eq!(faults(&[("filter/start.rs", good)]), Vec::<String>::new(), "{good}");
    }
    assert_eq!(
        faults(&[
            ("store/open.rs", "use super::file::FileStore;"),
            ("store/file.rs", "\nuse crate::store::{open::blocking};")
        ]),
        ["src/store/file.rs:2 and src/store/open.rs:1 import each other"]
    );
    assert_eq!(
        faults(&[("net/outgoing.rs", "mod error;\nuse error::X;"), ("net/outgoing/error.rs", "use super::LIMIT;")]),
        ["src/net/outgoing.rs:2 and src/net/outgoing/error.rs:1 import each other"]
    );
    assert_eq!(faults(&[("process/stop.rs", "use crate::telemetry::log::LogFilter;")]).len(), 1);
    assert_eq!(faults(&[("lib.rs", "use crate::commands::serve;")]).len(), 0);
}
