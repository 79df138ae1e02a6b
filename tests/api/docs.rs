//! The README keeps up with the program.

use std::collections::BTreeSet;

use sqril_grpc::grpc::Reason;

use crate::{
    certificates::{SHOP, Tls},
    health::http_get,
    support::{JSON, Upstream, an_update, program},
};

const README: &str = include_str!("../../README.md");

/// Every flag is named, and its variable is its name in capitals.
#[test]
fn every_flag_is_in_the_readme() {
    for command in ["serve", "sandbox", "health"] {
        let output = program(command, &["--help"], &[]).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let flags: Vec<_> = help
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("--"))
            .collect();
        assert!(flags.len() > 2, "{help}");
        for flag in flags {
            let name: String = flag
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '-')
                .collect();
            if name == "help" || name.is_empty() {
                continue;
            }
            assert!(
                README.contains(&format!("`--{name}`")),
                "--{name} of {command} is not in the README"
            );
            let variable = format!("SQRIL_GRPC_{}", name.to_ascii_uppercase().replace('-', "_"));
            assert!(
                help.contains(&variable),
                "--{name} of {command} has no variable {variable}"
            );
        }
    }
}

#[test]
fn every_reason_is_in_the_readme() {
    for reason in Reason::ALL {
        assert!(
            README.contains(&format!("`{}`", reason.name())),
            "{} is not in the README",
            reason.name()
        );
    }
}

/// The names that stand as code in a table's first column.
fn first_column(page: &str) -> BTreeSet<String> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.flat_map(|row| {
        let column = row.split(" |").next().unwrap();
        let names = column.split("`, `");
        names.map(|name| name.trim_end_matches('`').to_owned())
    })
    .collect()
}

const OBSERVABILITY: &str = include_str!("../../OBSERVABILITY.md");
const RULES: &str = include_str!("../../deploy/observability/rules.yaml");
const DASHBOARD: &str = include_str!("../../deploy/observability/dashboard.json");

/// Each metric has its row, and each row its metric.
#[tokio::test]
async fn every_metric_is_explained() {
    // With a certificate, a caller and a warning: what depends on the configuration is there only with it.
    let tls = Tls::new();
    let upstream = Upstream::answering(200, &[JSON], "{}").await;
    let facade = tls.facade(&upstream.url(), &[]).await;
    let mut shop = tls.client(&facade, Some(&tls.theirs.caller(SHOP))).await;
    shop.update_customer(an_update()).await.unwrap();
    let said = http_get(facade.admin, "/metrics").await;
    let metrics: BTreeSet<_> = said
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .map(str::to_owned)
        .collect();
    let is_metric = |name: &String| {
        let prefixes = ["grpc_", "sqril_", "process_", "tokio_"];
        prefixes.iter().any(|prefix| name.starts_with(prefix))
    };
    let explained: BTreeSet<_> = first_column(OBSERVABILITY)
        .into_iter()
        .filter(is_metric)
        .collect();
    assert_eq!(metrics, explained);

    // What rules and dashboard ask for is there.
    for (file, text) in [("rules", RULES), ("dashboard", DASHBOARD)] {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let asked = words.map(str::to_owned).filter(is_metric);
        let labels = ["grpc_service", "grpc_code", "grpc_method", "sqril_grpc"];
        let mut known = 0;
        for word in asked.filter(|word| !labels.contains(&word.as_str())) {
            let name = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| word.strip_suffix(suffix))
                .unwrap_or(&word);
            assert!(metrics.contains(name), "{word} of {file}");
            known += 1;
        }
        assert!(known > 20, "{file}");
    }
}

/// Each alert has its entry in the runbook and its test.
#[test]
fn every_alert_has_its_entry() {
    let runbook = include_str!("../../deploy/observability/runbook.md");
    let tests = include_str!("../../deploy/observability/rules_test.yaml");
    let alerts = RULES
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let mut count = 0;
    for alert in alerts {
        let entry = runbook
            .split("\n## ")
            .find(|entry| entry.lines().next() == Some(alert));
        let entry = entry.unwrap_or_else(|| panic!("{alert} is not in the runbook"));
        assert!(
            entry.contains("**Means.**") && entry.contains("o.**"),
            "{alert}"
        );
        let anchor = format!("runbook: runbook.md#{}", alert.to_lowercase());
        assert!(RULES.contains(&anchor), "{anchor}");
        let fires = format!("alertname: {alert}, exp_alerts: [ {{");
        let at_length = format!("alertname: {alert}\n        exp_alerts:\n          -");
        assert!(
            tests.contains(&fires) || tests.contains(&at_length),
            "{alert} has no test"
        );
        count += 1;
    }
    assert!(count > 20);
}

/// Each test that is named in the threat model is there.
#[test]
fn every_test_in_the_threat_model_is_there() {
    let threats = include_str!("../../THREATS.md");
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let quoted: Vec<_> = threats.split('`').skip(1).step_by(2).collect();
    let mut named = 0;
    for (chapter, test) in quoted.iter().filter_map(|text| text.split_once("::")) {
        let file = root.join(format!("tests/api/{chapter}.rs"));
        let source = std::fs::read_to_string(file).unwrap();
        assert!(
            source.contains(&format!("fn {test}()")),
            "{chapter}::{test} is not there"
        );
        named += 1;
    }
    assert!(named > 20, "{named}");
    for path in quoted
        .iter()
        .filter(|text| text.contains(".rs") || text.ends_with("/run"))
    {
        assert!(root.join(path).exists(), "{path} is not there");
    }
}
