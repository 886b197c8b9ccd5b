//! The two texts of `/metrics`: OpenMetrics, and Prometheus's own format for who asks for that.

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    /// Prometheus's text format, version 0.0.4.
    Plain,
}

impl Format {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// What the values of `Accept` ask for (RFC 9110, section 12.5.1): OpenMetrics, unless text is liked better.
    pub fn asked<'a>(accept: impl Iterator<Item = &'a str>) -> Self {
        let ranges: Vec<(String, u16)> = accept.flat_map(|value| value.split(',')).filter_map(range).collect();
        let liked = |names: [&str; 3]| {
            let named = names.into_iter().find_map(|name| ranges.iter().find(|(range, _)| range == name));
            named.map_or(0, |(_, weight)| *weight)
        };
        let open = liked(["application/openmetrics-text", "application/*", "*/*"]);
        if liked(["text/plain", "text/*", "*/*"]) > open { Self::Plain } else { Self::OpenMetrics }
    }
}

/// A media range without its parameters, and its weight in thousandths.
fn range(text: &str) -> Option<(String, u16)> {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next()?.to_ascii_lowercase();
    let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    let weight = weight.map_or(1.0, |weight| weight.parse::<f32>().unwrap_or(0.0)).clamp(0.0, 1.0);
    // It is between 0 and 1000.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and 1000")]
    let weight = (weight * 1000.0) as u16;
    Some((name, weight))
}

/// An OpenMetrics text in Prometheus's format: there, the name of a family is that of its samples.
pub fn plain(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = "";
    for line in open_metrics.lines() {
        if let Some(of) = line.strip_prefix("# HELP ") {
            help = of;
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|of| of.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some(said) = help.strip_prefix(name) {
                text += &format!("# HELP {name}{suffix}{said}\n");
            }
            text += &format!("# TYPE {name}{suffix} {kind}\n");
        } else if !line.starts_with('#') {
            text += line;
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_text_gets_it() {
        use Format::{OpenMetrics, Plain};
        for (accept, format) in [
            (&[][..], OpenMetrics),
            (&["*/*"], OpenMetrics),
            (&["text/plain"], Plain),
            (&["text/*"], Plain),
            (&["TEXT/PLAIN; version=0.0.4"], Plain),
            (&["text/plain;q=0.3, */*;q=0.1"], Plain),
            (&["text/plain;q=0"], OpenMetrics),
            (&["text/plain;q=2, application/openmetrics-text"], OpenMetrics),
            (&["text/html", "text/plain;q=0.5"], Plain),
            (&["text/html,application/xhtml+xml,*/*;q=0.8"], OpenMetrics),
            (
                // Prometheus 3.
                &[
                    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
                ],
                OpenMetrics,
            ),
            (&["application/openmetrics-text;q=0.2", "text/plain;version=0.0.4;q=0.3"], Plain),
        ] {
            assert_eq!(Format::asked(accept.iter().copied()), format, "{accept:?}");
        }
    }

    #[test]
    fn families_are_named_as_their_samples() {
        let open = "# HELP a Help.\n# TYPE a counter\na_total{x=\"1\"} 2\n# HELP b_seconds Help.\n# TYPE b_seconds histogram\n\
                    # UNIT b_seconds seconds\nb_seconds_sum 1.5\nb_seconds_bucket{le=\"+Inf\"} 1\n# HELP c Help.\n\
                    # TYPE c info\nc_info{v=\"1\"} 1\n# EOF\n";
        let text = "# HELP a_total Help.\n# TYPE a_total counter\na_total{x=\"1\"} 2\n# HELP b_seconds Help.\n\
                    # TYPE b_seconds histogram\nb_seconds_sum 1.5\nb_seconds_bucket{le=\"+Inf\"} 1\n# HELP c_info Help.\n\
                    # TYPE c_info gauge\nc_info{v=\"1\"} 1\n";
        assert_eq!(plain(open), text);
    }
}
