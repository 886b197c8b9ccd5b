//! The dashboard and the alert rules: what they name is what `/metrics` has.

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;

use crate::{
    stack::{Certificates, Cimd, get},
    world::executable,
};

/// Labels that Prometheus itself adds.
const OF_THE_TARGET: [&str; 2] = ["instance", "job"];

/// A sample of `/metrics`, or what an expression asks for: there, a label has one of several values.
struct Series<'a> {
    name: &'a str,
    labels: Vec<(&'a str, Vec<&'a str>)>,
}

impl<'a> Series<'a> {
    /// Those of ours in an expression, or in the text of `/metrics`.
    fn all(text: &'a str) -> Vec<Self> {
        let starts = text.match_indices("envoy_cimd_").map(|(start, _)| &text[start..]);
        starts.map(Self::read).collect()
    }

    fn read(text: &'a str) -> Self {
        let end = text.find(|char: char| !(char.is_ascii_alphanumeric() || char == '_')).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        let matchers = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inside, _)| inside);
        let labels = matchers.split(',').filter_map(|matcher| {
            let (label, value) = matcher.trim().split_once('=')?;
            Some((label, value.trim_matches(['~', '"']).split('|').collect()))
        });
        Self { name, labels: labels.collect() }
    }

    fn values(&self, label: &str) -> Option<&[&'a str]> {
        self.labels.iter().find(|(name, _)| *name == label).map(|(_, values)| values.as_slice())
    }

    /// Whether each of its values is one that some sample has, together with one of each other label.
    fn is_in(&self, samples: &[Series<'_>]) -> bool {
        let ours = || self.labels.iter().filter(|(label, _)| !OF_THE_TARGET.contains(label));
        let has = |sample: &Series<'_>, label: &str, wanted: &[&str]| {
            sample.values(label).is_some_and(|value| wanted.contains(&value[0]))
        };
        let found = |label: &str, value: &str| {
            samples.iter().any(|sample| {
                sample.name == self.name
                    && has(sample, label, &[value])
                    && ours().all(|(other, wanted)| has(sample, other, wanted))
            })
        };
        samples.iter().any(|sample| sample.name == self.name)
            && ours().all(|(label, values)| values.iter().all(|value| found(label, value)))
    }
}

async fn metrics() -> String {
    let dir = tempfile::tempdir().expect("a folder");
    let cimd = Cimd::start(&executable(), &Certificates::make(dir.path(), &["localhost"]).flags()).await;
    let (_, text) = get(cimd.admin.parse().expect("an address"), "/metrics").await.expect("metrics");
    let text = String::from_utf8(text.to_vec()).expect("text");
    text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
}

fn file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("envoy").join(name)).expect(name)
}

/// The texts under a key, wherever they are.
fn under<'a>(key: &str, value: &'a Value) -> Vec<&'a str> {
    match value {
        Value::Array(list) => list.iter().flat_map(|value| under(key, value)).collect(),
        Value::Object(object) => object
            .iter()
            .flat_map(|(name, value)| {
                value.as_str().filter(|_| name == key).map_or_else(|| under(key, value), |text| vec![text])
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// What is wrong with an expression.
fn complaints(expression: &str, samples: &[Series<'_>]) -> Vec<String> {
    let unknown = Series::all(expression).into_iter().filter(|series| !series.is_in(samples));
    let unknown = unknown.map(|series| format!("{} {:?}", series.name, series.labels));
    let known =
        |label: &str| OF_THE_TARGET.contains(&label) || samples.iter().any(|sample| sample.values(label).is_some());
    let grouped = expression.split("by (").skip(1).filter_map(|rest| rest.split(')').next());
    let labels = grouped.flat_map(|labels| labels.split(',').map(str::trim));
    unknown.chain(labels.filter(|label| !known(label)).map(str::to_owned)).collect()
}

#[tokio::test]
async fn it_and_the_alerts_name_what_is_there() {
    let text = metrics().await;
    let samples = Series::all(&text);
    let dashboard: Value = serde_json::from_str(&file("grafana/dashboard.json")).expect("JSON");
    let rules: Value = serde_saphyr::from_str(&file("prometheus/alerts.yaml")).expect("YAML");
    let queries = [under("expr", &dashboard), under("query", &dashboard)].concat();
    let alerts = under("expr", &rules);
    assert!(queries.len() > 10 && alerts.len() > 10);
    for expression in queries.iter().chain(&alerts) {
        assert_eq!(complaints(expression, &samples), [] as [&str; 0], "{expression}");
    }
    for rule in rules["groups"][0]["rules"].as_array().expect("rules") {
        let said = ["summary", "description"].map(|key| rule["annotations"][key].as_str());
        assert!(said.iter().all(Option::is_some), "{rule}");
        assert!(["warning", "critical"].iter().any(|severity| rule["labels"]["severity"] == **severity), "{rule}");
    }
    // No outcome is without its line on the dashboard.
    let outcomes = |series: &[Series<'_>]| -> BTreeSet<String> {
        let values = series.iter().filter_map(|series| series.values("outcome")).flatten();
        values.map(|value| (*value).to_owned()).collect()
    };
    let shown: Vec<Series<'_>> = queries.iter().flat_map(|query| Series::all(query)).collect();
    assert_eq!(outcomes(&shown), outcomes(&samples));
    for wrong in [
        "envoy_cimd_request_total",
        r#"envoy_cimd_requests_total{outcome="fine"}"#,
        r#"envoy_cimd_requests_total{outcome=~"served|fine"}"#,
        r#"envoy_cimd_requests_total{endpoint="document",outcome="completed"}"#,
        r#"envoy_cimd_reload_ok{outcome="served"}"#,
        "sum by (result, route) (envoy_cimd_refreshes_total)",
    ] {
        assert!(!complaints(wrong, &samples).is_empty(), "{wrong}");
    }
}
