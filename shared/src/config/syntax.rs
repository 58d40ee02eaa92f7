//! Diagnostics for text that is not YAML.
//!
//! The parser reports the position where it failed. The cause is often in an earlier line, and it is one of a few: a
//! missing colon or space, an indentation that does not match any line above, or a string that YAML reads as something
//! else. Each cause is a function that looks at the lines. If no cause applies, the message of the parser is used.

use granit_parser::{ErrorKind, ScanError};

use super::problem::{Id, Problem, Span};
use crate::words::count_of;

const NO_TABS: &str = "indent with spaces: YAML does not allow tabs";

/// A line of the text, without its line ending.
#[derive(Clone, Copy)]
struct Line<'a> {
    whole: &'a str,
    start: usize,
    text: &'a str,
}

/// Converts an error of the parser into a problem.
pub(super) fn problem(text: &str, error: &ScanError) -> Problem {
    let offset = text.floor_char_boundary(error.marker().byte_offset().unwrap_or(text.len()));
    let line = Line::at(text, offset);
    let as_parsed = || {
        let width = text[offset..].chars().next().filter(|c| *c != '\n').map_or(0, char::len_utf8);
        Problem::new(Id::Syntax, error.info()).at(Span::new(offset, offset + width))
    };
    let is_odd = |at: usize, c: char| is_control(c) || at == offset && is_invisible(c);
    let mut places = line.text.char_indices().map(|(at, c)| (line.start + at, c));
    if let Some((at, odd)) = places.find(|(at, c)| is_odd(*at, *c)) {
        let code = u32::from(odd);
        return Problem::new(Id::Syntax, format!("this line contains the invisible character U+{code:04X}"))
            .at(Span::new(at, at + odd.len_utf8()))
            .hint("remove this character");
    }
    if line.has_tab() {
        return as_parsed().hint(NO_TABS);
    }
    cause(line, offset, error.kind()).unwrap_or_else(|| {
        let hint = remedy(error.kind()).map(str::to_owned);
        Problem { hint, ..as_parsed() }
    })
}

fn cause(line: Line<'_>, offset: usize, kind: &ErrorKind) -> Option<Problem> {
    line.before().and_then(unclosed).or_else(|| cause_here(line, offset, kind))
}

/// Finds a list or mapping in brackets without a closing bracket, and without a comma that continues it.
fn unclosed(line: Line<'_>) -> Option<Problem> {
    let content = line.content();
    let count = |bracket: char| content.matches(bracket).count();
    let is_open = |(open, close): &(char, char)| count(*open) > count(*close);
    let (open, close) = [('[', ']'), ('{', '}')].into_iter().find(is_open)?;
    let goes_on = content.ends_with([',', open]) || content.contains(['"', '\'']);
    let problem =
        Problem::new(Id::Syntax, format!("the `{open}` of this line is not closed")).at(line.span());
    (!goes_on).then(|| problem.hint(format!("write `{content}{close}`")))
}

fn cause_here(line: Line<'_>, offset: usize, kind: &ErrorKind) -> Option<Problem> {
    match kind {
        ErrorKind::MappingValueNotAllowed | ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => {
            two_keys(line, offset).or_else(|| broken_key(line.before()?)).or_else(|| too_deep(line))
        }
        ErrorKind::ExpectedBlockMappingKey
        | ErrorKind::InvalidIndentation
        | ErrorKind::ExpectedBlockSequenceEntry => {
            misaligned(line, offset).or_else(|| beside_item(line, offset))
        }
        ErrorKind::ExpectedDocumentStart => indented_start(line),
        ErrorKind::UnknownAnchor | ErrorKind::MissingAnchorOrAliasName => alias(line, offset),
        _ => None,
    }
}

/// Returns the hint for an error whose cause was not found.
fn remedy(kind: &ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::ExpectedBlockMappingKey
        | ErrorKind::InvalidIndentation
        | ErrorKind::ExpectedBlockSequenceEntry => {
            Some("indent this line like the other lines of the same mapping or list")
        }
        ErrorKind::MappingValueNotAllowed | ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => {
            Some("put a colon and a space after a key; quote a string that contains them")
        }
        ErrorKind::UnknownAnchor => {
            Some("define it with `&name` further up, or quote a string that begins with `*`")
        }
        ErrorKind::TabNotAllowed | ErrorKind::TabInBlockIndentation | ErrorKind::TabInIndentation => {
            Some(NO_TABS)
        }
        ErrorKind::UnclosedFlowCollection { .. } | ErrorKind::UnclosedQuotedScalar => {
            Some("add the closing bracket or quote")
        }
        ErrorKind::ExpectedFlowMappingSeparator | ErrorKind::ExpectedFlowSequenceSeparator => Some(
            "separate the values in brackets with commas, and quote a value that contains brackets, such as \"${NAME}\"",
        ),
        ErrorKind::UnexpectedCharacter { .. } => Some("quote a string that begins with this character"),
        _ => None,
    }
}

// === the causes ===

/// Finds two keys on one line, such as `web: backends: [10.0.0.1:80]`.
fn two_keys(line: Line<'_>, offset: usize) -> Option<Problem> {
    let before = line.whole.get(line.start..offset)?;
    let (first, second) = before.rsplit_once(": ")?;
    let (first, key) = (first.trim().trim_start_matches("- "), second.trim());
    let at = offset - second.trim_start().len();
    let problem = Problem::new(Id::Syntax, "two keys are on one line").at(Span::new(at, offset));
    (is_word(first) && is_word(key)).then(|| {
        let spaces = line.indent() + 2;
        problem.hint(format!("write `{key}:` on the next line, indented by {spaces} spaces"))
    })
}

/// Finds a malformed key: `web`, `threads = 2` or `threads:2`.
fn broken_key(line: Line<'_>) -> Option<Problem> {
    let content = line.content();
    let is_item = content.starts_with("- ");
    let (message, right) = if is_word(content) {
        (format!("a colon is missing after `{content}`"), format!("write `{content}:`"))
    } else if let Some(right) = with_colon(content).filter(|_| !is_item) {
        let key = right.split(':').next().unwrap_or_default();
        (format!("the key `{key}` has no colon with a space after it"), format!("write `{right}`"))
    } else {
        return None;
    };
    Some(Problem::new(Id::Syntax, message).at(line.span()).hint(right))
}

/// Finds a key below a line that already has a value.
fn too_deep(line: Line<'_>) -> Option<Problem> {
    let before = line.before().filter(|before| line.indent() > before.indent())?;
    let content = before.content();
    if let Some(item) = content.strip_prefix("- ").filter(|item| !item.contains(": ")) {
        let message = format!("this line belongs to a list item that already has a value: {item}");
        let problem = Problem::new(Id::Syntax, message).at(line.span());
        return Some(problem.hint(format!("give that value a key: `- address: {item}`")));
    }
    let (key, _) = content.split_once(": ")?;
    let message = format!("this line is indented deeper than `{key}`, which already has a value");
    let spaces = counted(before.indent());
    let problem = Problem::new(Id::Syntax, message).at(line.span());
    Some(problem.hint(format!("indent it by {spaces}, like `{key}` above")))
}

/// Finds a line whose indentation does not match any line above it.
fn misaligned(line: Line<'_>, offset: usize) -> Option<Problem> {
    let indent = line.indent();
    let above = line.outline();
    let is_start = offset == line.start + indent;
    if !is_start || above.iter().any(|above| above.indent() == indent) {
        return None;
    }
    let nearest = above.iter().min_by_key(|above| above.indent().abs_diff(indent))?;
    let message =
        format!("this line is indented by {}, which does not match any line above it", counted(indent));
    let hint = format!("indent it by {}, like `{}` above", counted(nearest.indent()), nearest.label());
    Some(Problem::new(Id::Syntax, message).at(line.span()).hint(hint))
}

/// Finds a key that is aligned with the dash of a list item instead of with the keys of the item.
fn beside_item(line: Line<'_>, offset: usize) -> Option<Problem> {
    let indent = line.indent();
    let item = line.outline().into_iter().find(|above| above.indent() == indent)?;
    let first = item.content().strip_prefix('-')?;
    let (key, _) = line.content().split_once(':').filter(|(key, _)| is_word(key))?;
    let (first_key, _) = first.split_once(':')?;
    let spaces = counted(indent + 1 + first.len() - first.trim_start().len());
    let message = format!("`{key}` is indented like the `-` of a list item, not like the keys of the item");
    let problem = Problem::new(Id::Syntax, message).at(line.span());
    (offset == line.start + indent)
        .then(|| problem.hint(format!("indent it by {spaces}, like `{}` above", first_key.trim())))
}

/// Finds a file whose first key is indented while the next one is not.
fn indented_start(line: Line<'_>) -> Option<Problem> {
    let first = line.before().and_then(|before| before.outline().pop().or(Some(before)))?;
    (first.indent() > 0 && line.indent() < first.indent()).then(|| {
        let message = format!("the first key is indented by {}", counted(first.indent()));
        let hint = "remove these spaces, and the same number of spaces from the lines that belong to the key";
        Problem::new(Id::Syntax, message).at(first.span()).hint(hint)
    })
}

/// Finds a string that YAML reads as an alias, such as `host: *.example.com`.
fn alias(line: Line<'_>, offset: usize) -> Option<Problem> {
    let is_star = |at: &usize| line.whole.get(*at..).is_some_and(|rest| rest.starts_with('*'));
    let start = [offset, offset.saturating_sub(1)].into_iter().find(is_star)?;
    let rest = &line.whole[start..];
    let end = rest.find(|c: char| c.is_whitespace() || "[]{},".contains(c)).unwrap_or(rest.len());
    let text = &rest[..end];
    let message = format!("`{text}` is a YAML alias, and no `&{}` defines it", &text[1..]);
    let hint = match text {
        "*" => "to match everything, remove the key; quote a string that begins with `*`".to_owned(),
        name if is_word(&name[1..]) => {
            format!("write `&{}` in front of its value, or quote the string", &name[1..])
        }
        _ => format!("quote it: \"{text}\""),
    };
    Some(Problem::new(Id::Syntax, message).at(Span::new(start, start + end)).hint(hint))
}

/// Converts `threads:2` and `threads = 2` to `threads: 2`.
pub(super) fn with_colon(text: &str) -> Option<String> {
    let end = text.find([':', '='])?;
    let (key, rest) = text.split_at(end);
    let rest = rest[1..].trim_start();
    (is_word(key.trim_end()) && !rest.is_empty() && !text[end..].starts_with(": "))
        .then(|| format!("{}: {rest}", key.trim_end()))
}

/// Returns the column of a key that is the first thing on its line, except for the dash of a list item. `None` means
/// that something else is before it.
pub(super) fn indentation(text: &str, offset: usize) -> Option<usize> {
    let before = text.get(..offset)?.rsplit('\n').next()?;
    before.chars().all(|c| matches!(c, ' ' | '-')).then_some(before.len())
}

/// Returns the indentation of the first indented line. `None` means that there is none.
pub(super) fn usual_indent(text: &str) -> Option<usize> {
    let indented = text.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    indented.map(|line| line.len() - line.trim_start_matches(' ').len()).find(|spaces| *spaces > 0)
}

/// Returns whether a text is a word of ASCII letters, digits, `_` and `-` that begins with a letter.
pub(super) fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}

/// Returns whether a character is neither visible nor white space: a control character, or one that only formats text.
pub(super) fn is_invisible(c: char) -> bool {
    let is_format = matches!(
        c,
        '\u{ad}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    );
    is_format || is_control(c)
}

fn is_control(c: char) -> bool {
    c.is_control() && !c.is_whitespace()
}

fn counted(spaces: usize) -> String {
    count_of(spaces, "space")
}

// === impl Line ===

impl<'a> Line<'a> {
    /// Returns the line that contains this byte.
    fn at(whole: &'a str, offset: usize) -> Self {
        let start = whole[..offset].rfind('\n').map_or(0, |newline| newline + 1);
        let end = whole[start..].find('\n').map_or(whole.len(), |newline| start + newline);
        Self { whole, start, text: whole[start..end].trim_end_matches('\r') }
    }

    /// Returns the last line before this one that is neither blank nor a comment.
    fn before(self) -> Option<Self> {
        let end = self.start.checked_sub(1)?;
        let line = Self::at(self.whole, end);
        if line.content().is_empty() { line.before() } else { Some(line) }
    }

    /// Returns the lines above that this line could belong to, the nearest first. Each is indented less than the
    /// previous one.
    fn outline(self) -> Vec<Self> {
        let mut lines: Vec<Self> = Vec::new();
        let mut next = self.before();
        while let Some(line) = next {
            if lines.last().is_none_or(|last| line.indent() < last.indent()) {
                lines.push(line);
            }
            next = line.before();
        }
        lines
    }

    fn indent(self) -> usize {
        self.text.len() - self.text.trim_start_matches(' ').len()
    }

    /// Returns the line without indentation and comment.
    fn content(self) -> &'a str {
        let text = self.text.trim();
        let comment = if text.starts_with('#') { Some(0) } else { text.find(" #") };
        text[..comment.unwrap_or(text.len())].trim_end()
    }

    /// Returns the name of the line for messages: its key, or all of it.
    fn label(self) -> &'a str {
        let content = self.content();
        content.split_once(": ").map_or_else(|| content.trim_end_matches(':'), |(key, _)| key)
    }

    fn span(self) -> Span {
        let start = self.start + self.text.len() - self.text.trim_start().len();
        Span::new(start, start + self.content().len())
    }

    /// Returns whether the indentation contains a tab.
    fn has_tab(self) -> bool {
        self.text.chars().take_while(|c| matches!(c, ' ' | '\t')).any(|c| c == '\t')
    }
}
