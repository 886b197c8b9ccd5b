//! Where the project is and which version it has, in all the places that say so, and the notes of a release.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::settings::page;

/// The only files beside `Cargo.toml` that say where the project is: GitHub wants it written out there.
const WITH_ITS_PLACE: [&str; 2] = [".github/CODEOWNERS", ".github/ISSUE_TEMPLATE/config.yml"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a folder, named from the root, but for what is built or fetched.
fn files(folder: &str) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).expect("a folder") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().expect("text");
            let path = folder.join(&name);
            if entry.file_type().expect("a type").is_dir() {
                if ![".git", "target", "node_modules"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else {
                files.push(path.to_str().expect("text").to_owned());
            }
        }
    }
    files
}

/// The text before a character that is no part of an address.
fn address(text: &str) -> &str {
    text.split(|char: char| char.is_whitespace() || "\"'`)>".contains(char)).next().expect("a part")
}

#[test]
fn one_file_says_where_the_project_is() {
    let repository = env!("CARGO_PKG_REPOSITORY");
    let (owner, name) = repository
        .strip_prefix("https://github.com/")
        .and_then(|path| path.split_once('/'))
        .expect("an address at GitHub, as long as .github is for it");
    assert_eq!(name, env!("CARGO_PKG_NAME"));
    assert!(env!("CARGO_PKG_HOMEPAGE").starts_with("https://"));

    let of_owner = format!("github.com/{owner}/");
    for file in [files(".github"), files("docs"), files("envoy")].concat() {
        let Ok(text) = fs::read_to_string(root().join(&file)) else { continue };
        for (at, _) in text.match_indices(&of_owner) {
            // A page for maintainers names the placeholder; a chart has to name its source.
            let may =
                WITH_ITS_PLACE.contains(&file.as_str()) || file == "docs/releasing.md" || file.ends_with("/Chart.yaml");
            assert!(may, "{file} repeats where the project is");
            let said = format!("https://{}", address(&text[at..]));
            assert!(said.starts_with(repository), "{file}: {said}, and Cargo.toml has {repository}");
        }
    }
    let [owners, forms] = WITH_ITS_PLACE.map(page);
    assert!(owners.contains(&format!("\n* @{owner}/")), "{owners}");
    assert!(forms.contains(&format!("url: {repository}/security/advisories/new\n")), "{forms}");
}

#[test]
fn every_version_is_that_of_the_program() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = page("CHANGELOG.md");
    let newest = changelog.lines().filter(|line| line.starts_with("## [")).nth(1).expect("a version");
    assert!(newest.starts_with(&format!("## [{version}] - 20")), "{newest}");

    let mut seen = 0;
    for file in files("envoy").into_iter().filter(|file| file.ends_with(".yaml")) {
        let text = page(&file);
        let images = text.match_indices("/envoy-cimd:").map(|(at, before)| address(&text[at + before.len()..]));
        let images = images.filter(|said| said.starts_with(|first: char| first.is_ascii_digit()));
        let charts = text.lines().filter_map(|line| line.strip_prefix("appVersion: "));
        for said in images.chain(charts.map(|said| said.trim_matches(['"', '\'']))) {
            seen += 1;
            assert_eq!(said, version, "{file}");
        }
    }
    assert!(seen > 0, "no version under envoy/");
    assert!(page(".github/ISSUE_TEMPLATE/bug.yml").contains(&format!("placeholder: envoy-cimd {version}\n")));
}

/// Whatever is pinned is kept new by Dependabot.
#[test]
fn every_lock_is_kept_new() {
    let dependabot = page(".github/dependabot.yml");
    let mut seen = 0;
    for file in files("").into_iter().map(PathBuf::from) {
        let kind = match file.file_name().and_then(|name| name.to_str()) {
            Some("Cargo.lock") => "cargo",
            Some("package-lock.json") => "npm",
            Some("requirements.txt") => "pip",
            Some("Dockerfile") => "docker",
            Some("docker-compose.yml") => "docker-compose",
            _ => continue,
        };
        seen += 1;
        let folder = format!("/{}", file.parent().and_then(Path::to_str).expect("a folder"));
        let part = dependabot.split("- package-ecosystem: ").find(|part| part.starts_with(&format!("{kind}\n")));
        let lines = part.unwrap_or_default().lines().map(str::trim);
        let named = lines.filter_map(|line| line.strip_prefix("directories: [").or(line.strip_prefix("directory: ")));
        let is_named = named.flat_map(|folders| folders.trim_end_matches(']').split(", ")).any(|one| one == folder);
        assert!(is_named, ".github/dependabot.yml has no {folder} for {kind}");
    }
    assert!(seen > 7, "{seen}");
}

const CHANGELOG: &str = "\
# Changelog

## [Unreleased]

## [1.2.3] - 2027-01-31

First, read [how](docs/upgrading.md#how).

### Added

- A [key](https://example.com/a.md), and another.

## [1.2.2] - 2027-01-30

- Older.
";

/// A folder with what the script reads, of a version 1.2.3.
fn released(dir: &Path) {
    let cargo = "[package]\nname = \"envoy-cimd\"\nversion = \"1.2.3\"\n\
        repository = \"https://github.com/us/envoy-cimd\"\n\n[dependencies]\nversion = \"9\"\n";
    let lock = "[[package]]\nname = \"envoy\"\nversion = \"8.0.0\"\n\n\
        [[package]]\nname = \"envoy-cimd\"\nversion = \"1.2.3\"\ndependencies = []\n";
    for folder in [".ci", "fuzz"] {
        fs::create_dir(dir.join(folder)).expect("a folder");
    }
    let files = [("Cargo.toml", cargo), ("Cargo.lock", lock), ("fuzz/Cargo.lock", lock), ("CHANGELOG.md", CHANGELOG)];
    for (name, text) in files {
        fs::write(dir.join(name), text).expect("written");
    }
    fs::copy(root().join(".ci/release-notes"), dir.join(".ci/release-notes")).expect("copied");
}

/// Whether it went well, and what it said: the notes, or why not.
fn notes(dir: &Path, tag: &str, repository: Option<&str>) -> (bool, String) {
    let mut command = Command::new("bash");
    command.arg(dir.join(".ci/release-notes")).arg(tag).env_remove("GITHUB_SERVER_URL").env_remove("GITHUB_REPOSITORY");
    if let Some(repository) = repository {
        command.env("GITHUB_REPOSITORY", repository);
    }
    let output = command.output().expect("bash");
    let good = output.status.success();
    let (said, other) = if good { (output.stdout, output.stderr) } else { (output.stderr, output.stdout) };
    assert_eq!(String::from_utf8(other).expect("text"), "");
    (good, String::from_utf8(said).expect("text"))
}

#[test]
fn the_notes_of_a_release() {
    let dir = tempfile::tempdir().expect("a folder");
    released(dir.path());
    let expected = "\
First, read [how](https://github.com/us/envoy-cimd/blob/v1.2.3/docs/upgrading.md#how).

### Added

- A [key](https://example.com/a.md), and another.
";
    for repository in [None, Some("us/envoy-cimd")] {
        assert_eq!(notes(dir.path(), "v1.2.3", repository), (true, expected.to_owned()));
    }
}

/// A row for each way in which a tag is no release: the file, what is changed in it, and what is said.
#[test]
fn a_tag_that_is_no_release() {
    let rows = [
        ("Cargo.toml", "1.2.3", "1.2.4", "the tag is v1.2.3, and the version in Cargo.toml 1.2.4"),
        ("Cargo.lock", "1.2.3", "1.2.4", "the tag is v1.2.3, and the version in Cargo.lock 1.2.4"),
        ("fuzz/Cargo.lock", "1.2.3", "1.2.2", "the tag is v1.2.3, and the version in fuzz/Cargo.lock 1.2.2"),
        ("CHANGELOG.md", "[Unreleased]\n", "[Unreleased]\n\n- New.\n", "CHANGELOG.md has changes under Unreleased"),
        ("CHANGELOG.md", "## [1.2.3] - 2027-01-31\n", "", "CHANGELOG.md has changes under Unreleased"),
        ("CHANGELOG.md", " - 2027-01-31", "", "the newest heading in CHANGELOG.md is '## [1.2.3]'"),
        ("CHANGELOG.md", "[1.2.3]", "[1.2.4]", "the newest heading in CHANGELOG.md is '## [1.2.4] - 2027-01-31'"),
        ("CHANGELOG.md", "31\n", "31\n\n## [1.2.1] - 2027-01-01\n", "CHANGELOG.md says nothing of 1.2.3"),
    ];
    for (file, before, after, said) in rows {
        let dir = tempfile::tempdir().expect("a folder");
        released(dir.path());
        let path = dir.path().join(file);
        let text = fs::read_to_string(&path).expect("a file");
        assert!(text.contains(before), "{file} {before}");
        fs::write(&path, text.replacen(before, after, 1)).expect("written");
        let (good, answer) = notes(dir.path(), "v1.2.3", None);
        assert!(!good && answer.starts_with(&format!("release-notes: {said}")), "{file} {after:?}: {answer}");
    }

    let dir = tempfile::tempdir().expect("a folder");
    released(dir.path());
    for tag in ["1.2.3", "v1.2", "v1.2.3.4", "v1.2.3 ", "latest", "v1.2.3-"] {
        let (good, answer) = notes(dir.path(), tag, None);
        assert!(
            !good && answer.starts_with(&format!("release-notes: {tag} is not a tag of a release")),
            "{tag}: {answer}"
        );
    }
    let (good, answer) = notes(dir.path(), "v1.2.3", Some("others/envoy-cimd"));
    assert!(!good && answer.contains("this is others/envoy-cimd"), "{answer}");
}
