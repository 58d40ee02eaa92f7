//! The style of comments that `CONTRIBUTING.md` asks for, as far as a program can tell.

use std::fs;

use super::{root, rust_files};

/// The widest comment line, in columns.
const MAX_COLUMNS: usize = 120;

/// Openings of any comment that stand in for a component with a name.
const NAMELESS: [&str; 3] = ["Who", "Whoever", "Nobody"];

/// Openings of doc comments that refer to something rustdoc does not show.
const DANGLING: [&str; 24] = [
    "The same", "Those", "One that", "So many", "So few", "So long", "So much", "As many", "As few",
    "As long", "As much", "As large", "Of a", "Of an", "Of the", "Of one", "Of all", "Of each", "Of what",
    "Of two", "Of those", "Of these", "Of both", "Of every",
];

/// The members whose comments are checked.
const MEMBERS: [&str; 5] = ["lb-service", "health-service", "metrics-service", "shared", "tests"];

/// A comment line of a file: its text without the marker, and what precedes it.
struct Comment<'a> {
    text: &'a str,
    is_doc: bool,
    /// Whether it begins a comment or a paragraph of one.
    begins: bool,
}

#[test]
fn comments_begin_with_the_thing_that_they_are_about() {
    let found = findings(|_, comment| {
        let opens = |opening: &&&str| begins_with(comment.text, opening);
        let nameless = NAMELESS.iter().find(opens);
        let dangling = DANGLING.iter().find(opens).filter(|_| comment.is_doc);
        comment.begins && (nameless.is_some() || dangling.is_some())
    });
    assert!(found.is_empty(), "see \"Style of words\" in CONTRIBUTING.md:\n{}", found.join("\n"));
}

#[test]
fn comment_lines_fit_into_120_columns() {
    let found = findings(|line, _| line.chars().count() > MAX_COLUMNS);
    assert!(found.is_empty(), "these comment lines are too long:\n{}", found.join("\n"));
}

#[test]
fn openings_are_whole_words_at_the_beginning_of_a_paragraph() {
    let text = "/// The same.\n/// Those too.\n///\n/// Of a kind.\nfn a() {}\n// Whoever.\n//! Whose.\n// The same.";
    let begins: Vec<bool> = comments(text).map(|(_, _, comment)| comment.begins).collect();
    assert_eq!(begins, [true, false, false, true, true, true, true]);
    assert!(begins_with("The same, again", "The same") && !begins_with("Whose", "Who"));
}

/// Each comment line that `is_wrong` matches, as `path:line: text`.
fn findings(is_wrong: impl Fn(&str, &Comment) -> bool) -> Vec<String> {
    let files = MEMBERS.iter().map(|member| root().join(member)).flat_map(|directory| rust_files(&directory));
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file can be read");
        let wrong = comments(&text).filter(|(_, line, comment)| is_wrong(line, comment));
        let file = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
        found.extend(wrong.map(|(number, line, _)| format!("{file}:{number}: {}", line.trim())));
    }
    found
}

/// The comment lines of a file, each with its number from 1 and its whole line.
fn comments(text: &str) -> impl Iterator<Item = (usize, &str, Comment<'_>)> {
    let mut previous = None;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let this = split_marker(line);
        let before = std::mem::replace(&mut previous, this);
        let (marker, text) = this?;
        let continues = before.is_some_and(|(kind, text)| kind == marker && !text.is_empty());
        let comment = Comment { text, is_doc: marker != "//", begins: !continues };
        Some((index + 1, line, comment))
    })
}

/// The marker and the text of a line that is a comment.
fn split_marker(line: &str) -> Option<(&'static str, &str)> {
    let line = line.trim_start();
    ["///", "//!", "//"]
        .into_iter()
        .find_map(|marker| line.strip_prefix(marker).map(|text| (marker, text.trim())))
}

fn begins_with(text: &str, opening: &str) -> bool {
    let rest = text.strip_prefix(opening);
    rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
}
