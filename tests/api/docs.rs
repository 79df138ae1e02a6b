//! The README keeps up with the program.

use sqril_grpc::grpc::Reason;

use crate::support::program;

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
