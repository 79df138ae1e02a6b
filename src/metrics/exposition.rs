//! The two forms in which metrics are read: OpenMetrics, which has exemplars, and the older text of Prometheus.

/// A form of the exposition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format, version 0.0.4.
    Text,
}

impl Format {
    /// The one that an `Accept` header likes best (RFC 9110, section 12.5.1); the older one where it has no wish, for
    /// everything reads that.
    pub fn preferred(accept: Option<&str>) -> Self {
        let (mut open_metrics, mut text) = (0.0_f32, 0.0_f32);
        for range in accept.unwrap_or("*/*").split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
            let quality: f32 = parts
                .filter_map(|parameter| parameter.split_once('='))
                .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
                .map_or(1.0, |(_, value)| value.trim().parse().unwrap_or(0.0));
            match media_type.as_str() {
                "application/openmetrics-text" => open_metrics = quality.max(open_metrics),
                "text/plain" | "text/*" | "*/*" => text = quality.max(text),
                _ => {}
            }
        }
        if open_metrics > 0.0 && open_metrics >= text {
            Format::OpenMetrics
        } else {
            Format::Text
        }
    }

    /// Its media type.
    pub const fn media_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// OpenMetrics in this form. In the older one a counter is called as its samples are, and there are no units, no
    /// exemplars and no mark at the end.
    pub(super) fn of(self, open_metrics: String) -> String {
        if self == Format::OpenMetrics {
            return open_metrics;
        }
        let mut text = String::with_capacity(open_metrics.len());
        let mut help = "";
        for line in open_metrics.lines() {
            let words = line
                .strip_prefix("# ")
                .and_then(|rest| rest.split_once(' '));
            match words {
                Some(("HELP", rest)) => help = rest,
                Some(("TYPE", rest)) => {
                    let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
                    let suffix = if kind == "counter" { "_total" } else { "" };
                    let help = help.strip_prefix(name).unwrap_or_default();
                    text += &format!("# HELP {name}{suffix}{help}\n# TYPE {name}{suffix} {kind}\n");
                }
                Some(("UNIT", _)) => {}
                Some(_) | None if line == "# EOF" => {}
                Some(_) | None => {
                    let sample = line.split_once(" # {").map_or(line, |(sample, _)| sample);
                    text += sample;
                    text.push('\n');
                }
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_that_is_liked_best() {
        const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let cases = [
            (None, Format::Text),
            (Some("*/*"), Format::Text),
            (Some("text/plain"), Format::Text),
            (Some("text/html, application/json"), Format::Text),
            (Some("application/openmetrics-text"), Format::OpenMetrics),
            (
                Some("APPLICATION/OpenMetrics-Text; Q=0.3, text/plain; q=0.2"),
                Format::OpenMetrics,
            ),
            (
                Some("application/openmetrics-text;q=0.4,text/plain"),
                Format::Text,
            ),
            (Some("application/openmetrics-text;q=0"), Format::Text),
            (Some(PROMETHEUS), Format::OpenMetrics),
        ];
        for (accept, format) in cases {
            assert_eq!(Format::preferred(accept), format, "{accept:?}");
        }
    }

    #[test]
    fn the_older_form() {
        let open_metrics = "# HELP a_seconds Time.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
            a_seconds_bucket{le=\"1\"} 1 # {trace_id=\"00\"} 0.5 1.0\n\
            # HELP b Things.\n# TYPE b counter\nb_total{x=\"y\"} 2\n# EOF\n";
        let text = "# HELP a_seconds Time.\n# TYPE a_seconds histogram\na_seconds_bucket{le=\"1\"} 1\n\
            # HELP b_total Things.\n# TYPE b_total counter\nb_total{x=\"y\"} 2\n";
        assert_eq!(Format::Text.of(open_metrics.to_owned()), text);
    }
}
