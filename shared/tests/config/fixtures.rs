//! Every invalid configuration has its expected diagnostic beside it; every valid one loads, and what is printed of it
//! loads to the same plan.
//!
//! `UPDATE_FIXTURES=1 cargo test -p shared --test config fixtures` writes the diagnostics; review them by eye.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::support::{context, repository, yaml_files};
use shared::config::{Context, ProblemId, RealFiles, json, load_text};

#[test]
fn invalid_configurations_have_the_diagnostics_beside_them() {
    let files = yaml_files(&repository().join("tests/fixtures/config/invalid"));
    assert!(files.len() >= 40, "only {} invalid configurations", files.len());
    let wrong: Vec<String> = files.iter().filter_map(difference).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is different from what is expected; `None` when nothing is.
fn difference(file: &PathBuf) -> Option<String> {
    let name = file.file_name().expect("a file has a name").to_string_lossy().into_owned();
    let text = fs::read_to_string(file).expect("a fixture can be read");
    let real = Context { files: &RealFiles, ..context() };
    let found = match load_text(&name, &text, &real) {
        Ok(_) => format!("{name} is accepted\n"),
        Err(problems) => problems.to_string(),
    };
    let expected = file.with_extension("expected");
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        fs::write(&expected, &found).expect("an expected diagnostic can be written");
    }
    let expected = fs::read_to_string(&expected).unwrap_or_default();
    (found != expected).then(|| format!("--- {name} ---\nexpected:\n{expected}\nfound:\n{found}"))
}

#[test]
fn every_kind_of_problem_has_a_fixture() {
    let files = yaml_files(&repository().join("tests/fixtures/config/invalid"));
    let expected =
        files.iter().map(|file| fs::read_to_string(file.with_extension("expected")).unwrap_or_default());
    let all = expected.collect::<String>();
    let without: BTreeSet<&str> = ProblemId::ALL
        .iter()
        .map(|id| id.as_str())
        .filter(|id| !all.contains(&format!("error[{id}]")))
        .filter(|id| *id != ProblemId::Unreadable.as_str())
        // Only root can find out; a process test shows it.
        .filter(|id| *id != ProblemId::NotAllowed.as_str())
        .collect();
    assert!(without.is_empty(), "no fixture shows {without:?}");
}

#[test]
fn valid_configurations_load_and_load_again_as_printed() {
    let mut files = yaml_files(&repository().join("tests/fixtures/config/valid"));
    files.extend(yaml_files(&repository().join("deploy/config")));
    for file in files {
        let name = file.display().to_string();
        let text = fs::read_to_string(&file).expect("a fixture can be read");
        let loaded = load_text(&name, &text, &context()).unwrap_or_else(|problems| panic!("{problems}"));
        let printed = loaded.effective();
        let again =
            load_text(&name, &printed, &context()).unwrap_or_else(|problems| panic!("{printed}\n{problems}"));
        assert_eq!(format!("{:?}", again.plan), format!("{:?}", loaded.plan), "{printed}");
        assert_eq!(again.effective(), printed);
    }
}

#[test]
fn the_json_form_says_the_same() {
    let text = "pools:\n  web:\n    backend: [10.0.0.1:80]\n";
    let problems = load_text("a.yaml", text, &context()).expect_err("the key is misspelt");
    assert_eq!(
        json(&problems),
        serde_json::json!([{
            "id": "LB010", "severity": "error", "file": "a.yaml", "line": 3, "column": 5,
            "message": "unknown key `backend`", "hint": "did you mean `backends`?",
        }])
    );
}
