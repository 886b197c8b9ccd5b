//! The dashboard and the alert rules: what they name is what `/metrics` has.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::Value;

use crate::{
    stack::{Call, Certificates, Cimd, Client, get},
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

/// The rules of `promtool check metrics` (promlint), held to what a Prometheus without OpenMetrics gets.
#[tokio::test]
async fn metrics_keep_the_rules_of_promlint() {
    let dir = tempfile::tempdir().expect("a folder");
    let cimd = Cimd::start(&executable(), &Certificates::make(dir.path(), &["localhost"]).flags()).await;
    let mut call = Call::get("localhost", "/metrics");
    call.headers.push(("accept", "text/plain".to_owned()));
    let reply = Client::plain(cimd.admin.parse().expect("an address")).send(http::Version::HTTP_11, call).await;
    let reply = reply.expect("an answer");
    assert_eq!(reply.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = String::from_utf8(reply.body.to_vec()).expect("text");
    assert_eq!(faults(&text), [] as [String; 0]);
    for wrong in [
        "# TYPE a_total counter\na_total 1\n",
        "# HELP a A.\n# TYPE a counter\na 1\n",
        "# HELP a_total A.\n# TYPE a_total gauge\na_total 1\n",
        "# HELP a_count A.\n# TYPE a_count gauge\na_count 1\n",
        "# HELP a_ms A.\n# TYPE a_ms gauge\na_ms 1\n",
        "# HELP a_minutes A.\n# TYPE a_minutes gauge\na_minutes 1\n",
        "# HELP a_gauge A.\n# TYPE a_gauge gauge\na_gauge 1\n",
        "# HELP aB A.\n# TYPE aB gauge\naB 1\n",
        "# HELP a A.\n# TYPE a gauge\na{bC=\"1\"} 1\n",
        "# HELP a A.\n# TYPE a gauge\na{le=\"1\"} 1\n",
        "# HELP a A.\n# TYPE a gauge\na 1\nb 1\n",
        "# HELP a A.\n# TYPE a gauge\na{b=\"1\"} 1\na{b=\"1\"} 2\n",
        "# HELP a A.\n# TYPE a gauge\na x\n",
        "# HELP a A.\n# TYPE a gauge\na 1\n# EOF\n",
    ] {
        assert!(!faults(wrong).is_empty(), "{wrong}");
    }
}

/// What promlint would say of a text in Prometheus's format.
fn faults(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut help = BTreeSet::new();
    let mut kinds = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let is_camel =
        |name: &str| name.as_bytes().windows(2).any(|two| two[0].is_ascii_lowercase() && two[1].is_ascii_uppercase());
    for line in text.lines() {
        let mut fault = |what: &str| faults.push(format!("{what}: {line}"));
        if let Some((name, said)) = line.strip_prefix("# HELP ").and_then(|of| of.split_once(' ')) {
            if said.is_empty() || !help.insert(name) {
                fault("no help, or twice");
            }
            continue;
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|of| of.split_once(' ')) {
            let ends = |suffixes: &[&str]| suffixes.iter().any(|suffix| name.ends_with(suffix));
            let words: Vec<&str> = name.split('_').collect();
            let not_base = [
                "ms",
                "milliseconds",
                "s",
                "sec",
                "secs",
                "us",
                "ns",
                "nanoseconds",
                "microseconds",
                "minutes",
                "hours",
                "days",
                "weeks",
                "bits",
                "kb",
                "kilobytes",
                "mb",
                "megabytes",
                "percent",
            ];
            if kinds.insert(name, kind).is_some() || !help.contains(name) {
                fault("no help before it, or twice");
            }
            if (kind == "counter") != ends(&["_total"]) {
                fault("counters end in _total, and nothing else does");
            }
            if ends(&["_bucket", "_count", "_sum"]) || is_camel(name) || words.contains(&kind) {
                fault("the name is of another type, in another case, or has its type in it");
            }
            if words.iter().any(|word| not_base.contains(word)) || name.contains(':') {
                fault("no base unit, or a colon");
            }
            continue;
        }
        if line.starts_with('#') {
            fault("a comment");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or((line, ""));
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let of_histogram = ["_bucket", "_count", "_sum"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .filter(|base| kinds.get(base) == Some(&"histogram"));
        if of_histogram.is_none() && !kinds.contains_key(name) {
            fault("of no family");
        }
        let has_le = labels.split(',').any(|label| label.starts_with("le=\""));
        if is_camel(labels.split('=').next().unwrap_or_default())
            || has_le != (of_histogram.is_some() && name.ends_with("_bucket"))
        {
            fault("a label that it should not have, or lacks");
        }
        if value.parse::<f64>().is_err() || !seen.insert(series) {
            fault("no number, or twice");
        }
    }
    faults
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
