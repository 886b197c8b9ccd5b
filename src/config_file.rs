//! The YAML file of `--config`: settings under their snake_case keys, and the `routes:` list.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::route::{RouteSpec, RouteTable};

/// What a file says. Only `routes` is read again while the program runs.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct ConfigFile {
    #[serde(default)]
    pub routes: Vec<RouteSpec>,
    #[serde(flatten)]
    pub settings: BTreeMap<String, Value>,
}

impl ConfigFile {
    /// Reads a file's text; `keys` are the settings that there are.
    ///
    /// # Errors
    /// Where the text is no YAML of this shape, or has a key that no setting has. The error says where.
    pub fn parse(text: &str, keys: &[String]) -> anyhow::Result<Self> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let file: Self =
            serde_saphyr::from_str(text).map_err(|error| anyhow::anyhow!("{}", error.without_snippet()))?;
        if let Some(unknown) = file.settings.keys().find(|key| !keys.contains(key)) {
            bail!("there is no setting `{unknown}`; there are: routes, {}", keys.join(", "));
        }
        Ok(file)
    }

    /// # Errors
    /// As [`RouteTable::new`].
    pub fn route_table(&self) -> anyhow::Result<RouteTable> {
        Ok(RouteTable::new(&self.routes)?)
    }

    /// The values of a setting as a flag would take them: one, or a list's.
    ///
    /// # Errors
    /// Where the value is empty, or has a structure of its own.
    pub fn values(&self, key: &str) -> anyhow::Result<Vec<String>> {
        let scalar = |value: &Value| match value {
            Value::String(text) => Ok(text.clone()),
            Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
            _ => bail!("`{key}` must be a text, a number, true, false, or a list of these"),
        };
        match self.settings.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(scalar).collect(),
            Some(value) => Ok(vec![scalar(value)?]),
        }
    }
}

/// # Errors
/// Where the file cannot be read; the error names it.
pub fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))
}
