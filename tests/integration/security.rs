//! The tables of attacks and of limits in SECURITY.md name tests that exist.

use std::{fs, path::Path};

use crate::settings::section;

#[test]
fn every_test_of_the_tables_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("SECURITY.md")).expect("the page");
    let rows_of = |table| section(&page, table).lines().filter(|line| line.starts_with("| ")).skip(2);
    let (attacks, limits): (Vec<&str>, Vec<&str>) = (rows_of("attacks").collect(), rows_of("limits").collect());
    assert!(!attacks.is_empty() && !limits.is_empty());
    for row in attacks.into_iter().chain(limits) {
        let tests = row.trim_end_matches(" |").rsplit("| ").next().expect("a column").split(", ");
        for test in tests {
            exists(test.trim_matches('`'));
        }
    }
}

/// # Panics
/// Where there is no test of this name, `module::function`.
pub fn exists(name: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (module, function) = name.rsplit_once("::").unwrap_or_else(|| panic!("no module: {name}"));
    let path = |module: &str| module.replace("::", "/") + ".rs";
    // Tests of the library are at the end of their module, or in a file of their own.
    let files = match module.strip_suffix("::tests") {
        Some(tested) => [tested, module].map(|module| root.join("src").join(path(module))).to_vec(),
        None => vec![root.join("tests/integration").join(path(module))],
    };
    let sources = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    assert!(sources.into_iter().any(|source| is_test(&source, function)), "there is no test {name}");
}

/// Whether a source has a function of this name with an attribute that makes it a test.
fn is_test(source: &str, function: &str) -> bool {
    source.match_indices(&format!("fn {function}(")).any(|(found, _)| {
        let attributes = source[..found].rsplit("\n\n").next().unwrap_or_default();
        attributes.contains("test]") || attributes.contains("::test(")
    })
}
