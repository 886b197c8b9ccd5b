//! The pages and `--help` list what the program has.

use std::{collections::BTreeSet, path::Path};

use clap::CommandFactory;
use envoy_cimd::{
    commands::{
        config_file::ConfigFile,
        settings::{Cli, parse::setting_keys},
    },
    model::route::Key,
};

use super::{OPERATIONS, REFERENCE, file, page, path_of, section};
use crate::{
    stack::{Certificates, Cimd, get},
    world::{executable, run},
};

/// The keys of a route are the program's own list, wherever they stand.
#[test]
fn the_page_and_the_help_list_every_route_key() {
    let page = page(REFERENCE);
    let rows = section(&page, "route keys").lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let documented: Vec<&str> = rows.map(|(key, _)| key).collect();
    assert_eq!(documented, Key::NAMES);
    let help = run(&["envoy-config", "--help"], &[]).1;
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains(&format!("the keys are {}.", Key::NAMES.join(", "))), "{help}");
}

/// A setting's row; one that two commands have with different defaults says of which it speaks.
fn setting_row(command: &str, arg: &clap::Arg) -> Option<String> {
    let variable = arg.get_env()?.to_str()?;
    let value = arg.get_value_names().map(|names| names.join(" ")).unwrap_or_default();
    let flag = match arg.get_num_args() {
        Some(range) if range.min_values() == 0 => format!("--{}[={value}]", arg.get_long()?),
        _ => format!("--{} {value}", arg.get_long()?),
    };
    let default = match arg.get_default_values() {
        [default] => format!("`{}`", default.to_str()?),
        _ => "none".to_owned(),
    };
    let of = if ["listen", "admin_listen"].contains(&arg.get_id().as_str()) {
        format!(" (`{command}`)")
    } else {
        String::new()
    };
    let help = arg.get_help()?.to_string();
    Some(format!("| `{flag}`{of} | `{variable}` | {default} | {} |", help.trim_end_matches('.')))
}

#[test]
fn the_page_lists_every_setting() {
    let page = page(REFERENCE);
    let cli = Cli::command();
    let mut rows: Vec<String> = Vec::new();
    for command in ["serve", "choreographer"] {
        let command = cli.find_subcommand(command).expect(command);
        for row in command.get_arguments().filter_map(|arg| setting_row(command.get_name(), arg)) {
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
    }
    assert!(rows.len() > 5);
    let table = section(&page, "settings");
    let documented: Vec<String> = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_end_matches(" |").trim_end_matches('.').to_owned() + " |")
        .collect();
    let missing: Vec<&str> = rows.iter().filter(|row| !documented.contains(row)).map(String::as_str).collect();
    assert!(missing.is_empty(), "the table of settings in {REFERENCE} lacks\n{}", missing.join("\n"));
    assert_eq!(documented.len(), rows.len(), "and has rows that no setting has:\n{documented:#?}");
}

#[tokio::test]
async fn the_page_lists_every_metric() {
    let page = page(OPERATIONS);
    let dir = tempfile::tempdir().expect("a folder");
    let cimd = Cimd::start(&executable(), &Certificates::make(dir.path(), &["localhost"]).flags()).await;
    let (_, text) = get(cimd.admin.parse().expect("an address"), "/metrics").await.expect("metrics");
    let text = String::from_utf8(text.to_vec()).expect("text");
    // A counter's family is named without the `_total` of its samples, an info's without `_info`.
    let metrics: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        })
        .collect();
    let documented: BTreeSet<String> = section(&page, "metrics")
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .collect();
    assert_eq!(documented, metrics);
}

/// Every config file that the page shows is one that `serve` takes.
#[test]
fn the_pages_config_files_are_good() {
    let page = page(REFERENCE);
    let mut found = 0;
    for block in page.split("```yaml\n").skip(1) {
        let yaml = block.split("```").next().expect("an end");
        if !yaml.contains("routes:\n- from:") {
            continue;
        }
        found += 1;
        ConfigFile::parse(yaml, &setting_keys()).expect(yaml);
        let file = file(yaml);
        let (code, _, stderr) = run(&["check", "--config", path_of(&file)], &[]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{yaml}");
    }
    assert!(found > 0, "the page shows no config file");
}

/// What `--help` prints is reviewed like a page of documentation: a change of it shows in a diff.
#[test]
fn the_help_reads_as_it_was_reviewed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/help");
    let commands = Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect::<Vec<_>>();
    let mut stale = Vec::new();
    for command in std::iter::once(None).chain(commands.iter().map(Some)) {
        let args: Vec<&str> = command.map(String::as_str).into_iter().chain(["--help"]).collect();
        let (code, help, stderr) = run(&args, &[("COLUMNS", "110")]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
        let file = folder.join(format!("{}.txt", command.map_or("envoy-cimd", String::as_str)));
        if std::fs::read_to_string(&file).unwrap_or_default() == help {
            continue;
        }
        stale.push(file.clone());
        if std::env::var_os("RENEW_HELP").is_some() {
            std::fs::create_dir_all(&folder).expect("the folder");
            std::fs::write(file, help).expect("written");
        }
    }
    assert!(stale.is_empty(), "RENEW_HELP=1 writes these anew, to be read: {stale:?}");
}

#[test]
fn shells_complete_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, stderr) = run(&["completions", shell], &[]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{shell}");
        for word in ["choreographer", "envoy-config", "probe", "tls-cert"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    // One that a shell can read.
    let script = run(&["completions", "bash"], &[]).1;
    let checked = std::process::Command::new("bash").args(["-n", "-c", &script]).status().expect("bash");
    assert!(checked.success());
}
