//! Every configuration in `invalid` has a file of expected errors next to it, and every one in `warned` a file of
//! expected warnings. Every configuration in `valid` loads without a warning, and its printed form loads to an equal
//! plan.
//!
//! `UPDATE_FIXTURES=1 cargo test -p shared --test config fixtures` writes the diagnostics. Review the changes.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::support::{context, repository, yaml_files};
use shared::config::{Context, Loaded, ProblemId, RealFiles, Severity, documents, lines, load_text};

#[test]
fn invalid_configurations_have_the_expected_diagnostics() {
    let files = of("invalid");
    assert!(files.len() >= 40, "only {} invalid configurations", files.len());
    let wrong: Vec<String> = files.iter().filter_map(|file| difference(file, Severity::Error)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn configurations_with_warnings_have_the_expected_diagnostics() {
    let wrong: Vec<String> =
        of("warned").iter().filter_map(|file| difference(file, Severity::Warning)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn of(directory: &str) -> Vec<PathBuf> {
    yaml_files(&repository().join("tests/fixtures/config").join(directory))
}

/// The difference between the diagnostics of a file and the expected ones, or `None` if they are equal. The worst
/// diagnostic of the file must have the severity `worst`.
fn difference(file: &PathBuf, worst: Severity) -> Option<String> {
    let name = file.file_name().expect("a file has a name").to_string_lossy().into_owned();
    let text = fs::read_to_string(file).expect("a fixture can be read");
    let real = Context { files: &RealFiles, ..context() };
    let found = match (load_text(&name, &text, &real), worst) {
        (Err(problems), Severity::Error) => problems.to_string(),
        (Ok(loaded), Severity::Warning) if !loaded.warnings.is_empty() => loaded.warnings.to_string(),
        (Ok(_), _) => return Some(format!("{name} has no {worst}\n")),
        (Err(problems), _) => return Some(problems.to_string()),
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
    let files = of("invalid").into_iter().chain(of("warned"));
    let expected = files.map(|file| fs::read_to_string(file.with_extension("expected")).unwrap_or_default());
    let all = expected.collect::<String>();
    let shown = |id: &ProblemId| all.contains(&format!("{}[{id}]", id.severity()));
    let without: BTreeSet<ProblemId> = ProblemId::ALL.iter().copied().filter(|id| !shown(id)).collect();
    // These depend on permissions, on the user that runs the test, or on environment variables. Process tests cover
    // them.
    let elsewhere = BTreeSet::from([
        ProblemId::Unreadable,
        ProblemId::NoAuthorities,
        ProblemId::NotAllowed,
        ProblemId::Rotation,
    ]);
    assert_eq!(without, elsewhere, "these problems have no fixture");
}

#[test]
fn valid_configurations_load_and_so_does_their_printed_form() {
    let mut files = of("valid");
    files.extend(yaml_files(&repository().join("deploy/config")));
    for file in files {
        let name = file.display().to_string();
        let text = fs::read_to_string(&file).expect("a fixture can be read");
        let loaded = load_text(&name, &text, &context()).unwrap_or_else(|problems| panic!("{problems}"));
        assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
        assert_prints(&loaded);
    }
    for file in of("warned") {
        let name = file.display().to_string();
        let text = fs::read_to_string(&file).expect("a fixture can be read");
        assert_prints(&load_text(&name, &text, &context()).unwrap_or_else(|problems| panic!("{problems}")));
    }
}

/// Asserts that the printed form loads to an equal plan, and prints as the same text.
fn assert_prints(loaded: &Loaded) {
    let printed = loaded.effective();
    let again = load_text("printed.yaml", &printed, &context());
    let again = again.unwrap_or_else(|problems| panic!("{printed}\n{problems}"));
    assert_eq!(format!("{:?}", again.plan), format!("{:?}", loaded.plan), "{printed}");
    assert_eq!(again.effective(), printed);
}

#[test]
fn the_json_form_has_place_severity_and_hint() {
    let text = "pools:\n  web:\n    backend: [10.0.0.1:80]\n";
    let problems = load_text("a.yaml", text, &context()).expect_err("the key is misspelt");
    assert_eq!(
        serde_json::json!(documents(&problems)),
        serde_json::json!([{
            "id": "LB010", "severity": "error", "file": "a.yaml", "line": 3, "column": 5,
            "message": "unknown key `backend`", "hint": "did you mean `backends`?",
        }])
    );
    let text = "pools:\n  web:\n    backends: [10.0.0.1:80]\n    sticky: {cookie: lb}\n";
    let loaded = load_text("a.yaml", text, &context()).expect("the file causes only a warning");
    let warnings = serde_json::json!(documents(&loaded.warnings));
    assert_eq!((&warnings[0]["id"], &warnings[0]["severity"]), (&"LB053".into(), &"warning".into()));
}

#[test]
fn warnings_are_shown_together_with_errors_and_one_per_line() {
    let text = "pools:\n  web:\n    backends: [10.0.0.1:80]\n    sticky: {cookie: lb}\nthread: 1\n";
    let problems = load_text("a.yaml", text, &context()).expect_err("a key is misspelt");
    let text = problems.to_string();
    assert!(
        text.contains("warning[LB053]: `sticky`") && text.contains("error[LB010]: unknown key"),
        "{text}"
    );
    assert!(text.ends_with("a.yaml: 1 problem, 1 warning\n"), "{text}");
    assert_eq!(
        lines(&problems),
        [
            "a.yaml:4:5: warning[LB053]: `sticky` has no effect: all clients use the only backend in any case; \
             remove it, or keep it for a second backend that you add later",
            "a.yaml:5:1: error[LB010]: unknown key `thread`; did you mean `threads`?",
        ]
    );
}
