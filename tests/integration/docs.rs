//! The pages themselves: links lead somewhere, commands of ours are ones, and the example of the README runs.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use clap::{CommandFactory, error::ErrorKind};
use envoy_cimd::{
    commands::settings::{self, Cli, Task},
    filter::outcome::Outcome,
};

use crate::{
    envoy_config::validate,
    settings::{page, section},
    stack::Certificates,
    world::{run, shell},
};

/// Flags that are not ours: of benchmarks, of the MCP Inspector, of the demo, and the end of flags.
const OF_OTHERS: [&str; 4] = ["--bench", "--cli", "--once", "--"];

/// Every page for people, named from the root of the repository.
fn pages() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let in_folder = |folder: &str| {
        let entries = std::fs::read_dir(root.join(folder)).expect(folder);
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
        names.filter(|name| name.ends_with(".md")).map(|name| format!("{folder}{name}")).collect::<Vec<_>>()
    };
    let pages = [in_folder(""), in_folder("docs/")].concat();
    assert!(pages.len() > 10 && pages.contains(&"README.md".to_owned()));
    pages
}

/// The lines of a page that are prose, without what is code in them.
fn prose(page: &str) -> String {
    let mut text = String::new();
    for (number, part) in page.split("```").enumerate() {
        if number % 2 == 0 {
            text += part;
        }
    }
    // A heading, too, may have code in it, whose words count for its anchor.
    text.lines()
        .map(|line| if line.starts_with('#') { line.replace('`', "") } else { line.to_owned() } + "\n")
        .collect()
}

/// What stands between backticks on a line.
fn spans(prose: &str) -> impl Iterator<Item = &str> {
    prose.split('`').skip(1).step_by(2)
}

/// What stands in the blocks of a page that are of this language.
fn blocks<'a>(page: &'a str, language: &str) -> impl Iterator<Item = &'a str> {
    let fence = format!("```{language}\n");
    let starts: Vec<usize> = page.match_indices(&fence).map(|(at, _)| at + fence.len()).collect();
    starts.into_iter().map(|at| page[at..].split("```").next().expect("an end"))
}

/// The anchor that a heading gets: lower case, spaces as hyphens, no other punctuation.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = prose(page);
    let headings = headings.lines().filter_map(|line| line.strip_prefix('#'));
    headings
        .map(|heading| {
            let words = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = words.chars().filter(|char| char.is_alphanumeric() || " -_".contains(*char));
            kept.map(|char| if char == ' ' { '-' } else { char }).collect()
        })
        .collect()
}

/// The targets of the links in a page, but for those on the web.
fn links(page: &str) -> Vec<String> {
    let prose = prose(page);
    let targets = prose.split("](").skip(1).map(|rest| rest.split(')').next().expect("a part").to_owned());
    targets.filter(|target| !target.starts_with("https://")).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for name in pages() {
        let text = page(&name);
        for link in links(&text) {
            seen += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let from = Path::new(&name).parent().expect("a folder");
            let target = if path.is_empty() { PathBuf::from(&name) } else { from.join(path) };
            assert!(root.join(&target).exists(), "{name}: {link} leads to no file");
            let is_there = || anchors(&page(target.to_str().expect("text"))).contains(anchor);
            assert!(anchor.is_empty() || is_there(), "{name}: {link} leads to no heading");
        }
        // Pages are named without a link, too.
        for (at, _) in text.match_indices("docs/") {
            let named = text[at..].split(|char: char| !char.is_ascii_alphanumeric() && !"/-_.".contains(char)).next();
            let named = named.expect("a part").trim_end_matches('.');
            if let Some(end) = named.strip_suffix(".md").filter(|_| !text[..at].ends_with('/')) {
                assert!(root.join(named).is_file(), "{name}: there is no {end}.md");
            }
        }
    }
    assert!(seen > 100, "{seen}");
}

/// Every `envoy-cimd …` in a block or a sentence is one that the program takes, and every `make …` has a target.
#[test]
fn every_command_is_one() {
    let makefile = page("Makefile");
    let (mut ours, mut makes) = (0, 0);
    for name in pages() {
        let text = page(&name);
        let blocks = blocks(&text, "sh").map(|block| (true, block));
        let prose = prose(&text).replace('\n', " ");
        for (is_block, commands) in blocks.chain(spans(&prose).map(|span| (false, span))) {
            let commands = commands.replace("\\\n", " ");
            let lines = commands.lines().map(|line| line.split(" #").next().expect("a part"));
            for command in lines.flat_map(|line| line.split([';', '(', ')', '|', '&', '>'])).map(str::trim) {
                if let Some(arguments) = command.strip_prefix("make ") {
                    makes += 1;
                    let target = arguments.split(' ').next().expect("a part");
                    assert!(target == "…" || makefile.contains(&format!("\n{target}: ")), "{name}: {command}");
                }
                if command.starts_with("envoy-cimd ") && command != "envoy-cimd …" {
                    ours += 1;
                    // A sentence names a command without all that it needs.
                    let is_whole = is_block && !command.contains('…');
                    let words = command.split_whitespace().filter(|word| *word != "…");
                    let words = words.map(|word| word.trim_matches(['\'', '"']));
                    match Cli::command().try_get_matches_from(words) {
                        Ok(_) => {}
                        Err(error) if !is_whole && error.kind() == ErrorKind::MissingRequiredArgument => {}
                        Err(error) if error.kind() == ErrorKind::DisplayHelp => {}
                        Err(error) => panic!("{name}: {command}\n{error}"),
                    }
                }
            }
        }
    }
    assert!(ours > 50 && makes > 20, "{ours} {makes}");
}

/// Every file of settings that a page shows is one that `check` takes.
#[test]
fn every_config_file_is_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    // What the files name.
    for (name, text) in [("state.keys", run(&["keygen"], &[]).1), ("secret", "a secret".to_owned())] {
        std::fs::write(path(name), text).expect("written");
    }
    let mut seen = 0;
    for name in pages() {
        let text = page(&name);
        for config in blocks(&text, "yaml").filter(|block| format!("\n{block}").contains("\nroutes:\n")) {
            seen += 1;
            let config =
                config.replace("state.keys", &path("state.keys")).replace("/run/secrets/github", &path("secret"));
            std::fs::write(path("config.yaml"), &config).expect("written");
            let (code, _, stderr) = run(&["check", "--config", &path("config.yaml")], &[]);
            assert_eq!((code, stderr.as_str()), (Some(0), ""), "{name}: {config}");
        }
    }
    assert!(seen > 3, "{seen}");
}

/// The table of commands has each of them, and no other.
#[test]
fn every_command_has_its_row() {
    let cli = Cli::command();
    let commands: BTreeSet<String> =
        cli.get_subcommands().map(|command| format!("envoy-cimd {}", command.get_name())).collect();
    let text = page("docs/reference.md");
    let rows = section(&text, "commands").lines().filter_map(|line| spans(line).next());
    assert_eq!(rows.map(str::to_owned).collect::<BTreeSet<_>>(), commands);
}

/// The table of errors has each refusal with its status, and no other.
#[test]
fn every_refusal_has_its_row() {
    let text = page("docs/reference.md");
    let (_, table) = text.split_once("\n| label | status |").expect("the table of errors");
    let table = table.split("\n\n").next().expect("its end");
    let mut rows = BTreeSet::new();
    for line in table.lines().skip(2) {
        let mut cells = line.split(" | ");
        let labels: Vec<&str> = spans(cells.next().expect("labels")).collect();
        let statuses = cells.next().expect("statuses").split(", ").map(|status| status.parse().expect(line));
        let statuses: Vec<u16> = statuses.collect();
        assert!(statuses.len() == 1 || statuses.len() == labels.len(), "{line}");
        rows.extend(labels.into_iter().zip(statuses.into_iter().cycle()));
    }
    let refusals = Outcome::ALL.iter().map(|outcome| outcome.row()).filter(|row| row.status >= 400);
    assert_eq!(rows, refusals.map(|row| (row.label, row.status)).collect());
}

/// Every variable and every metric that a page names is one of the program's.
#[test]
fn every_variable_and_metric_is_one() {
    let cli = Cli::command();
    let variables: BTreeSet<&str> = cli
        .get_subcommands()
        .flat_map(|command| command.get_arguments())
        .filter_map(|argument| argument.get_env()?.to_str())
        .collect();
    // `telemetry::` holds this table to `/metrics`.
    let operations = page("docs/operations.md");
    let metrics: BTreeSet<&str> =
        section(&operations, "metrics").lines().filter_map(|line| spans(line).next()).collect();
    // The metadata that the role `traffic` leaves for `refused`, and an image of `docker-compose.yml`.
    let others = BTreeSet::from(["envoy_cimd_traffic", "ENVOY_CIMD_IMAGE"]);
    let (mut seen, mut unknown) = (0, Vec::new());
    for name in pages().into_iter().filter(|name| name != "CHANGELOG.md") {
        let text = page(&name);
        let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
        for word in words.filter(|word| !word.ends_with('_')) {
            if !word.to_ascii_lowercase().starts_with("envoy_cimd_") {
                continue;
            }
            seen += 1;
            if ![&variables, &metrics, &others].iter().any(|names| names.contains(word)) {
                unknown.push(format!("{name}: {word}"));
            }
        }
    }
    assert!(seen > 100 && unknown.is_empty(), "{seen} {unknown:#?}");
}

/// Every flag that a page names is one of the program's.
#[test]
fn every_flag_is_one() {
    let cli = Cli::command();
    let flags: BTreeSet<String> = cli
        .get_subcommands()
        .flat_map(|command| command.get_arguments())
        .filter_map(|argument| Some(format!("--{}", argument.get_long()?)))
        .chain(["--help", "--version"].map(str::to_owned))
        .chain(OF_OTHERS.map(str::to_owned))
        .collect();
    let mut unknown = Vec::new();
    for name in pages().into_iter().filter(|name| name != "CHANGELOG.md") {
        for span in spans(&prose(&page(&name))).filter(|span| span.starts_with("--")) {
            let flag = span.split([' ', '=', '[']).next().expect("a part");
            // `--max-calls…` stands for those that begin so.
            let is_one = match flag.strip_suffix('…') {
                Some(beginning) => flags.iter().any(|flag| flag.starts_with(beginning)),
                None => flags.contains(flag),
            };
            if !is_one {
                unknown.push(format!("{name}: {span}"));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

/// Every source that a page names is there: a file by its path or the end of it, a module by the path of its file.
#[test]
fn every_source_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources: Vec<String> = ["src", "tests", "benches", "examples", "fuzz/targets", "proto"]
        .iter()
        .flat_map(|folder| files_in(&root.join(folder)))
        .map(|path| path.strip_prefix(root).expect("below the root").to_str().expect("text").to_owned())
        .collect();
    let is_file =
        |name: &str| root.join(name).is_file() || sources.iter().any(|source| source.ends_with(&format!("/{name}")));
    let is_room = |word: &str| root.join(format!("src/{word}.rs")).is_file() && !["lib", "main"].contains(&word);
    // `room::part::Type`, or `room::part::function`.
    let is_module = |name: &str| {
        let modules: Vec<&str> = name.split("::").take_while(|word| !word.starts_with(char::is_uppercase)).collect();
        let text = |modules: &[&str]| std::fs::read_to_string(root.join(format!("src/{}.rs", modules.join("/")))).ok();
        let (last, above) = modules.split_last().expect("a room");
        match name.split("::").nth(modules.len()) {
            Some(item) => text(&modules).is_some_and(|text| text.contains(&format!(" {item}"))),
            None => {
                text(&modules).or_else(|| text(above).filter(|text| text.contains(&format!("fn {last}")))).is_some()
            }
        }
    };
    let (mut seen, mut unknown) = (0, Vec::new());
    // SECURITY.md names tests, which have a test of their own.
    for name in pages().into_iter().filter(|name| !["CHANGELOG.md", "SECURITY.md"].contains(&name.as_str())) {
        let prose = prose(&page(&name)).replace('\n', " ");
        for span in spans(&prose) {
            let path: String =
                span.chars().take_while(|char| char.is_ascii_alphanumeric() || "_:".contains(*char)).collect();
            let is_there = match path.split_once("::") {
                Some((room, _)) if is_room(room) => is_module(path.trim_end_matches(':')),
                _ if [".rs", ".mjs", ".proto"].iter().any(|end| span.ends_with(end)) => is_file(span),
                _ => continue,
            };
            seen += 1;
            if !is_there {
                unknown.push(format!("{name}: {span}"));
            }
        }
    }
    assert!(seen > 200 && unknown.is_empty(), "{seen} {unknown:#?}");
}

/// All files below a folder.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files_in(&path) } else { vec![path] }).collect()
}

/// The README stays one that is read: what is more has its page.
#[test]
fn the_readme_is_short() {
    let length = page("README.md").len();
    assert!(length < 12_000, "{length} bytes");
}

/// Its example is what it says, from the config file to an Envoy that takes the result.
#[test]
fn the_readmes_example() {
    let readme = page("README.md");
    let (_, example) = readme.split_once("\n## A whole example\n").expect("the example");
    let example = example.split("\n## ").next().expect("its end");
    let blocks = |language: &str| -> Vec<&str> { blocks(example, language).collect() };
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    let [config] = blocks("yaml")[..] else { panic!("one config file") };
    std::fs::write(path("envoy-cimd.yaml"), config).expect("written");
    let [makes, starts, probes, adds] = blocks("sh")[..] else { panic!("four blocks of commands") };
    shell(makes, dir.path());

    let config = config.replace("state.keys", &path("state.keys"));
    std::fs::write(path("envoy-cimd.yaml"), config).expect("written");
    let (code, stdout, stderr) = run(&["check", "--config", &path("envoy-cimd.yaml")], &[]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("\nserves endpoints, traffic, refused\n") && !stdout.contains("warning"), "{stdout}");
    let starts: Vec<&str> = starts.lines().collect();
    let [serve, "envoy --config-path envoy.yaml"] = starts[..] else { panic!("{starts:?}") };
    let serve = serve.replace("envoy-cimd.yaml", &path("envoy-cimd.yaml"));
    let parsed = settings::parse::parse(serve.split_whitespace().map(Into::into)).expect("settings");
    let Task::Serve(serve) = parsed.task else { panic!("serve") };
    serve.users().expect("who people are");
    assert!(serve.routes.user_namespace.is_some());

    // The addresses are those of its one route.
    let from = "https://mcp.example.com/notes";
    assert!(stdout.starts_with(&format!("{from}\n")), "{stdout}");
    assert_eq!(probes, format!("envoy-cimd probe {from}\n"));
    assert!(adds.ends_with(&format!(" {from}\n")), "{adds}");
    assert!(example.contains(&format!("`{from}/.pomerium/oauth/start`")));

    let certificates = Certificates::make(dir.path(), &["mcp.example.com"]);
    std::fs::write(path("secret"), "a secret").expect("written");
    let mut text = std::fs::read_to_string(path("envoy.yaml")).expect("what was printed");
    for (named, file) in [
        ("/etc/envoy/tls.crt", certificates.cert.to_str().expect("text")),
        ("/etc/envoy/tls.key", certificates.key.to_str().expect("text")),
        ("/etc/ssl/certs/ca-certificates.crt", certificates.ca.to_str().expect("text")),
        ("/etc/envoy/sign-in.secret", &path("secret")),
        ("/etc/envoy/sign-in.key", &path("secret")),
    ] {
        assert!(text.contains(named), "{named}");
        text = text.replace(named, file);
    }
    let (good, said) = validate(&text);
    assert!(good && !said.contains("deprecated"), "{said}");
}
