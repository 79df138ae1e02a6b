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
