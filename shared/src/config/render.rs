//! Problems as text, in the manner of rustc, and as JSON.

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde_json::{Value, json};

use super::problem::{Problem, Problems, Source};

/// For a terminal or a log: each problem with its line and a caret.
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

/// For programs: `[{id, severity, file, line, column, message, hint}]`; `line` and `column` count from 1, and are null
/// when it is about the file as a whole.
pub fn json(problems: &Problems) -> Value {
    problems.list.iter().map(|problem| object(problem, &problems.source)).collect()
}

fn summary(problems: &Problems) -> String {
    let name = &problems.source.name;
    match problems.list.len() {
        count if problems.is_cut_short => format!("{name}: {count} problems, and perhaps more\n"),
        1 => format!("{name}: 1 problem\n"),
        count => format!("{name}: {count} problems\n"),
    }
}

fn group<'a>(problem: &'a Problem, source: &'a Source) -> Group<'a> {
    let title = Level::ERROR.primary_title(problem.message.as_str()).id(problem.id.as_str());
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

fn object(problem: &Problem, source: &Source) -> Value {
    let place = problem.span.map(|span| source.line_column(span.start));
    json!({
        "id": problem.id.as_str(),
        "severity": "error",
        "file": source.name,
        "line": place.map(|(line, _)| line),
        "column": place.map(|(_, column)| column),
        "message": problem.message,
        "hint": problem.hint,
    })
}
