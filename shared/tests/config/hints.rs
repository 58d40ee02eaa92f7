//! Hints solve their problems: the test follows every hint that can be followed literally, in every invalid fixture.

use std::fs;

use crate::support::{context, repository, yaml_files};
use shared::config::{ConfigProblem, ProblemId, Problems, Span, load_text};

/// The place of the problem and the text that the hint puts there, or `None` if the hint cannot be followed literally.
fn followed(text: &str, problem: &ConfigProblem) -> Option<(Span, String)> {
    let (span, hint) = (problem.span?, problem.hint.as_deref()?);
    let about_key = problem.id == ProblemId::UnknownKey;
    let right = if let Some(rest) = hint.strip_prefix("did you mean ") {
        rest.trim_end_matches('?').trim_matches('`')
    } else if let Some(list) = hint.strip_prefix("put it in brackets: ") {
        list
    } else if let Some(text) = hint.strip_prefix("quote it: ") {
        text
    } else {
        let rest =
            hint.strip_prefix("write ").filter(|rest| !about_key && !rest.contains(['`', '\n', '…', '$']))?;
        let end = [" for ", ", or", ", and", ", with", ", which", "; ", " or "]
            .iter()
            .filter_map(|end| rest.find(end))
            .min();
        &rest[..end.unwrap_or(rest.len())]
    };
    // Such a hint describes the remedy in words.
    let in_words = right.contains(' ') && !right.starts_with(['{', '[', '"']);
    (!in_words && text.get(span.start..span.end).is_some()).then(|| (span, right.to_owned()))
}

fn problems(name: &str, text: &str) -> Vec<ConfigProblem> {
    match load_text(name, text, &context()) {
        Ok(_) => Vec::new(),
        Err(Problems { list, .. }) => list,
    }
}

#[test]
fn following_a_hint_solves_the_problem() {
    let (mut count, mut wrong) = (0, Vec::new());
    for file in yaml_files(&repository().join("tests/fixtures/config/invalid")) {
        let name = file.file_name().expect("a file has a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(&file).expect("a fixture can be read");
        for problem in problems(&name, &text) {
            let Some((span, right)) = followed(&text, &problem) else { continue };
            let better = [&text[..span.start], &right, &text[span.end..]].concat();
            let still = |found: &ConfigProblem| {
                found.id == problem.id && found.span.is_some_and(|at| at.start == span.start)
            };
            let found = problems(&name, &better).into_iter().find(still);
            wrong.extend(
                found.map(|found| format!("{name}: {} -> {right} -> {}", problem.message, found.message)),
            );
            count += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 60, "only {count} hints can be followed literally");
}
