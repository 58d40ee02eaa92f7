//! The output formats of problems: text in the style of rustc, single lines, and documents.

use std::borrow::Cow;
use std::fmt;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::{Deserialize, Serialize};

use super::problem::{Problem, Problems, Severity, Source};
use crate::words::count_of;

/// A problem of a configuration, as `check --format json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemDocument {
    /// The stable ID: `LB012`.
    pub id: Cow<'static, str>,
    /// `error` or `warning`.
    #[serde(default)]
    pub severity: Cow<'static, str>,
    /// The file.
    #[serde(default)]
    pub file: String,
    /// The line, from 1. `None` means that the problem concerns the whole file.
    #[serde(default)]
    pub line: Option<usize>,
    /// The column in characters, from 1. `None` means that the problem concerns the whole file.
    #[serde(default)]
    pub column: Option<usize>,
    /// The problem.
    #[serde(default)]
    pub message: String,
    /// The remedy. `None` means that there is no simple one.
    #[serde(default)]
    pub hint: Option<String>,
}

/// Formats the problems for a terminal, each with its line and a caret.
pub fn text(problems: &Problems, colour: bool) -> String {
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
    let mut text = String::new();
    for problem in &problems.list {
        for line in renderer.render(&[group(problem, &problems.source)]).lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text.push('\n');
    }
    text.push_str(&summary(problems));
    text
}

/// Returns the problems as documents for other programs.
pub fn documents(problems: &Problems) -> Vec<ProblemDocument> {
    problems.list.iter().map(|problem| object(problem, &problems.source)).collect()
}

/// Formats the problems for a log: each on one line, with its place, its ID and its remedy.
pub fn lines(problems: &Problems) -> Vec<String> {
    problems.list.iter().map(|problem| line(problem, &problems.source)).collect()
}

/// Formats the number of problems, as in `2 problems, 1 warning`.
pub(crate) fn counted(problems: &Problems) -> String {
    let number = |count: usize, what: &str| (count > 0).then(|| count_of(count, what));
    let errors = number(problems.count(Severity::Error), "problem");
    let warnings = number(problems.count(Severity::Warning), "warning");
    let more = problems.is_cut_short.then(|| "and possibly more".to_owned());
    let parts: Vec<String> = [errors, warnings, more].into_iter().flatten().collect();
    parts.join(", ")
}

// === impl Problems ===

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(self, false))
    }
}

fn summary(problems: &Problems) -> String {
    match problems.is_empty() {
        true => String::new(),
        false => format!("{}: {}\n", problems.source.name, counted(problems)),
    }
}

fn line(problem: &Problem, source: &Source) -> String {
    let place = problem.span.map(|span| source.line_column(span.start));
    let place = place.map(|(line, column)| format!(":{line}:{column}")).unwrap_or_default();
    let Problem { id, message, hint, .. } = problem;
    let hint =
        hint.as_ref().map(|hint| format!("; {}", hint.split_whitespace().collect::<Vec<_>>().join(" ")));
    format!("{}{place}: {}[{id}]: {message}{}", source.name, problem.severity(), hint.unwrap_or_default())
}

fn level(severity: Severity) -> Level<'static> {
    match severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    }
}

fn group<'a>(problem: &'a Problem, source: &'a Source) -> Group<'a> {
    let title = level(problem.severity()).primary_title(problem.message.as_str()).id(problem.id.as_str());
    let group = match problem.span {
        Some(span) => {
            let primary = AnnotationKind::Primary.span(span.range());
            let related = problem
                .related
                .as_ref()
                .map(|(span, text)| AnnotationKind::Context.span(span.range()).label(text.as_str()));
            let snippet = Snippet::source(source.text.as_str()).path(source.name.as_str());
            title.element(snippet.annotation(primary).annotations(related))
        }
        None => title.element(Origin::path(source.name.as_str())),
    };
    match &problem.hint {
        Some(hint) => group.element(Level::HELP.message(hint.as_str())),
        None => group,
    }
}

fn object(problem: &Problem, source: &Source) -> ProblemDocument {
    let place = problem.span.map(|span| source.line_column(span.start));
    ProblemDocument {
        id: problem.id.as_str().into(),
        severity: problem.severity().as_str().into(),
        file: source.name.clone(),
        line: place.map(|(line, _)| line),
        column: place.map(|(_, column)| column),
        message: problem.message.clone(),
        hint: problem.hint.clone(),
    }
}
