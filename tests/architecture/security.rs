//! The promises of the guide's page on security: each names tests that exist, and the crates that read from the network
//! have no `unsafe` code and guard against panics.

use std::collections::BTreeSet;
use std::fs;

use super::{root, rust_files};

/// The crates that read what clients and backends send.
const FACING_THE_NETWORK: [&str; 3] = ["lb-service", "health-service", "metrics-service"];

/// The lints that make code say why it cannot panic.
const GUARDS: [&str; 4] =
    ["clippy::indexing_slicing", "clippy::string_slice", "clippy::expect_used", "clippy::unreachable"];

/// The folders with tests.
const MEMBERS: [&str; 5] = ["lb-service", "health-service", "metrics-service", "shared", "tests"];

#[test]
fn each_promise_about_security_names_tests_that_exist() {
    let page = fs::read_to_string(root().join("shared/guide/security.md")).expect("the page can be read");
    let promises = promises(&page);
    assert!(promises.len() >= 10, "only {} promises were found", promises.len());
    let known = functions();
    for (promise, tests) in promises {
        assert!(!tests.is_empty(), "no test holds: {promise}");
        for test in tests {
            assert!(known.contains(test), "{promise}\nthere is no test `{test}`");
        }
    }
}

#[test]
fn crates_have_no_unsafe_code_and_guard_against_panics() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has a manifest");
    let lints = ["unsafe_code = \"forbid\"", "unwrap_used = \"warn\"", "panic = \"warn\""];
    for lint in lints {
        assert!(manifest.lines().any(|line| line.starts_with(lint)), "the workspace does not set {lint}");
    }
    for name in FACING_THE_NETWORK {
        let text = fs::read_to_string(root().join(name).join("src/lib.rs")).expect("a crate has a root");
        let (_, attribute) = text.split_once("#![cfg_attr(\n    not(test),").expect("the root sets lints");
        let (attribute, _) = attribute.split_once("\n)]").expect("an attribute ends");
        for lint in GUARDS {
            assert!(attribute.contains("warn(") && attribute.contains(lint), "{name} does not set {lint}");
        }
    }
}

/// The rows of the page's table of promises, each with the names of its tests.
fn promises(page: &str) -> Vec<(&str, Vec<&str>)> {
    let (_, section) = page.split_once("\n| promise | tests |\n").expect("there is a table of promises");
    let rows = section.lines().take_while(|line| line.starts_with('|')).skip(1);
    rows.filter_map(|line| line.trim_matches('|').split_once(" | "))
        .map(|(promise, tests)| (promise.trim(), tests.split('`').skip(1).step_by(2).collect()))
        .collect()
}

/// The names of all functions of the workspace.
fn functions() -> BTreeSet<String> {
    let files = MEMBERS.iter().flat_map(|member| rust_files(&root().join(member)));
    let texts = files.map(|file| fs::read_to_string(file).expect("a source file can be read"));
    texts.flat_map(|text| text.lines().filter_map(name_of).collect::<Vec<_>>()).collect()
}

/// The name of the function that begins on this line.
fn name_of(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("fn ")?;
    rest.split_once('(').map(|(name, _)| name.to_owned())
}
