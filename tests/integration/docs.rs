//! The pages themselves: links lead somewhere, commands of ours are ones, and the example of the README runs.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use clap::{CommandFactory, error::ErrorKind};
use envoy_cimd::commands::settings::{self, Cli, Task};

use crate::{
    envoy_config::validate,
    settings::page,
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

/// Every `envoy-cimd …` in a block is one that the program takes, and every `make …` has a target.
#[test]
fn every_command_is_one() {
    let makefile = page("Makefile");
    let (mut ours, mut makes) = (0, 0);
    for name in pages() {
        let text = page(&name);
        for block in text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().expect("an end")) {
            let block = block.replace("\\\n", " ");
            let lines = block.lines().map(|line| line.split(" #").next().expect("a part"));
            for command in lines.flat_map(|line| line.split([';', '(', ')', '|', '&', '>'])).map(str::trim) {
                if let Some(arguments) = command.strip_prefix("make ") {
                    makes += 1;
                    let target = arguments.split(' ').next().expect("a part");
                    assert!(makefile.contains(&format!("\n{target}: ")), "{name}: {command}");
                }
                if command.starts_with("envoy-cimd ") {
                    ours += 1;
                    let is_whole = !command.contains('…');
                    let words = command.split_whitespace().filter(|word| *word != "…");
                    let words = words.map(|word| word.trim_matches(['\'', '"']));
                    match Cli::command().try_get_matches_from(words) {
                        Ok(_) => {}
                        Err(error) if !is_whole && error.kind() == ErrorKind::MissingRequiredArgument => {}
                        Err(error) => panic!("{name}: {command}\n{error}"),
                    }
                }
            }
        }
    }
    assert!(ours > 30 && makes > 3, "{ours} {makes}");
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
    let blocks = |language: &str| -> Vec<&str> {
        let fence = format!("```{language}\n");
        example.split(&fence).skip(1).map(|block| block.split("```").next().expect("an end")).collect()
    };
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
