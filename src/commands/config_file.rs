//! The YAML file of `--config`: settings under their snake_case keys, and the `routes:` and `clients:` lists.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::Budget;

use crate::{
    exchange::clients::configured::ClientSpec,
    model::{paths::Paths, route::RouteSpec, route_table::RouteTable},
};

/// What a file says. Only the lists are read again while the program runs.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct ConfigFile {
    #[serde(default)]
    pub routes: Vec<RouteSpec>,
    #[serde(default)]
    pub clients: Vec<ClientSpec>,
    #[serde(flatten)]
    pub settings: BTreeMap<String, Value>,
}

impl ConfigFile {
    /// Reads a file's text; `keys` are the settings that there are.
    ///
    /// # Errors
    /// Where the text is not YAML of this shape, or has a key that no setting has. The error says where.
    pub fn parse(text: &str, keys: &[String]) -> anyhow::Result<Self> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        // What the reader takes is bounded against texts that unfold to more than they are. One that does not has about a
        // node for each byte at most, and a few events for each node.
        let usual = Budget::default();
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_nodes: usual.max_nodes.max(text.len()),
                max_events: usual.max_events.max(text.len() * 4),
            },
        };
        let file: Self = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| anyhow::anyhow!("{}", error.without_snippet()))?;
        if let Some(unknown) = file.settings.keys().find(|key| !keys.contains(key)) {
            bail!("there is no setting `{unknown}`; there are: routes, clients, {}", keys.join(", "));
        }
        Ok(file)
    }

    /// # Errors
    /// As [`RouteTable::new`].
    pub fn route_table(&self, paths: &Paths) -> anyhow::Result<RouteTable> {
        Ok(RouteTable::new(&self.routes, paths)?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_routes_as_somebody_has() {
        const ROUTES: usize = 100_000;
        let route =
            |route| format!("- from: https://route-{route}.example\n  to: https://mcp-{route}.internal.example\n");
        let text: String = std::iter::once("routes:\n".to_owned()).chain((0..ROUTES).map(route)).collect();
        let file = ConfigFile::parse(&text, &[]).expect("a good file");
        assert_eq!(file.routes.len(), ROUTES);
    }

    #[test]
    fn no_more_than_is_written() {
        let mut unfolds = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let before = format!("*a{}", level - 1);
            unfolds.push_str(&format!("a{level}: &a{level} [{}]\n", vec![before; 10].join(", ")));
        }
        let routes = "- from: https://a.example\n".repeat(20_000);
        for text in [unfolds.clone(), format!("routes:\n{routes}{unfolds}")] {
            let error = ConfigFile::parse(&text, &[]).expect_err("a billion texts").to_string();
            assert!(error.contains("budget breached"), "{error}");
        }
    }
}
