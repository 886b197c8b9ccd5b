//! From arguments, variables and the config file to a task.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::PathBuf,
};

use anyhow::{Context, bail};
use clap::{
    Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches, builder::OsStr, error::ErrorKind,
    parser::ValueSource,
};

use super::{Cli, Task};
use crate::commands::config_file::{self, ConfigFile};

/// The settings that were given, by flag, variable or file, each by its key.
pub type Given = BTreeSet<String>;

/// What was asked for, and the config file that came with it.
#[derive(Debug)]
pub struct Parsed {
    pub task: Task,
    pub file: Option<LoadedFile>,
    pub given: Given,
}

/// A config file as it was read at start.
#[derive(Debug)]
pub struct LoadedFile {
    pub path: PathBuf,
    pub text: String,
    pub content: ConfigFile,
}

/// Reads command line, environment and config file, in this order of precedence: the file's values take the place of
/// the built-in defaults, and clap does the rest.
///
/// # Errors
/// A [`clap::Error`] where the command line or a variable is wrong (or help is asked for); another error where the
/// file is.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<Parsed> {
    let args: Vec<OsString> = args.into_iter().collect();
    let command = Cli::command();
    let matches = command.clone().try_get_matches_from(&args)?;
    let path =
        matches.subcommand().and_then(|(_, matches)| matches.try_get_one::<PathBuf>("config").ok().flatten().cloned());
    let task = |matches| Ok::<_, clap::Error>(Cli::from_arg_matches(&matches)?.command);
    let mut given = given(&matches);
    let Some(path) = path else {
        return Ok(Parsed { task: task(matches)?, file: None, given });
    };
    let text = config_file::read(&path)?;
    let named = || path.display().to_string();
    let content = ConfigFile::parse(&text, &setting_keys()).with_context(named)?;
    let command = with_defaults_of(&content, command).with_context(named)?;
    let matches = command.try_get_matches_from(&args).map_err(|error| in_file(&error)).with_context(named)?;
    given.extend(content.settings.keys().cloned());
    Ok(Parsed { task: task(matches)?, file: Some(LoadedFile { path, text, content }), given })
}

/// What the command line and the variables say.
fn given(matches: &ArgMatches) -> Given {
    let Some((_, matches)) = matches.subcommand() else { return Given::new() };
    let is_given = |id: &&str| matches.value_source(id).is_some_and(|source| source != ValueSource::DefaultValue);
    matches.ids().map(clap::Id::as_str).filter(is_given).map(str::to_owned).collect()
}

/// The keys that a config file may have besides `routes`: those of all settings, of any command.
pub fn setting_keys() -> Vec<String> {
    let mut keys: Vec<String> = Cli::command()
        .get_subcommands()
        .flat_map(Command::get_arguments)
        .filter(|arg| arg.get_env().is_some() && arg.get_id() != "config")
        .map(|arg| arg.get_id().to_string())
        .collect();
    keys.sort();
    keys.dedup();
    keys
}

fn with_defaults_of(file: &ConfigFile, command: Command) -> anyhow::Result<Command> {
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let mut defaults = BTreeMap::new();
    for key in file.settings.keys() {
        let values: Vec<OsStr> = file.values(key)?.into_iter().map(OsStr::from).collect();
        let mut args =
            command.get_subcommands().flat_map(Command::get_arguments).filter(|arg| arg.get_id() == key.as_str());
        if values.len() != 1 && !args.any(|arg| matches!(arg.get_action(), ArgAction::Append)) {
            bail!("`{key}` takes one value, not a list");
        }
        // clap takes none for the default, which is not to serve nothing.
        if values.is_empty() && key == "roles" {
            bail!("`roles` is an empty list: name one, or leave the key out");
        }
        defaults.insert(key.as_str(), values);
    }
    let with_defaults = |arg: Arg| match defaults.get(arg.get_id().as_str()) {
        Some(values) if arg.get_env().is_some() => arg.default_values(values.clone()),
        _ => arg,
    };
    Ok(names.into_iter().fold(command, |command, name| command.mut_subcommand(name, |sub| sub.mut_args(with_defaults))))
}

/// The command line was good without the file, so what is wrong now is the file's: clap names the flag, and the key is
/// the same word.
fn in_file(error: &clap::Error) -> anyhow::Error {
    use clap::error::{ContextKind, ContextValue};
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let flag = text(ContextKind::InvalidArg);
    let key = flag.trim_start_matches("--").split([' ', '=', '[']).next().unwrap_or_default().replace('-', "_");
    let reason = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    match error.kind() {
        ErrorKind::ValueValidation | ErrorKind::InvalidValue if !key.is_empty() => {
            anyhow::anyhow!("`{key}`: bad value {:?}{reason}", text(ContextKind::InvalidValue))
        }
        // A parser of its own said it all, without repeating the value.
        _ => anyhow::anyhow!("{}", error.to_string().trim_start_matches("error: ").trim_end()),
    }
}
