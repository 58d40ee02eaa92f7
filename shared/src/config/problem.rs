//! What is wrong with a configuration: each [`Problem`] has a stable id, a place and a remedy.

use std::fmt;
use std::ops::Range;

/// How many problems are reported at most; a file with more of them is not a configuration.
pub(crate) const MAX_PROBLEMS: usize = 100;

/// A range of bytes of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The kind of problem; never changes its meaning.
    pub id: Id,
    /// One sentence, lower-case, without a full stop.
    pub message: String,
    /// Where; `None` when it is about the file as a whole.
    pub span: Option<Span>,
    /// A second place that has to do with it, and what to say there.
    pub related: Option<(Span, String)>,
    /// What to do.
    pub hint: Option<String>,
}

/// The file that problems are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Its path as the user gave it.
    pub name: String,
    /// Its text; empty when it could not be read.
    pub text: String,
}

/// All problems of one file, in the order of their places. At least one of them is an error when they are returned as
/// an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// The file.
    pub source: Source,
    /// What is wrong with it; at most 100. Warnings are left out before errors are.
    pub list: Vec<Problem>,
    /// Whether there is more.
    pub is_cut_short: bool,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// The configuration is used as it is, and its author should look at it.
    Warning,
}

/// Declares the ids: number, severity, name, one line that explains it.
macro_rules! ids {
    ($($number:literal $severity:ident $name:ident $text:literal,)*) => {
        /// The kinds of problems. The number of a kind never changes, and is never used again.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Id {
            $(#[doc = $text] $name,)*
        }

        impl Id {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// As in `LB012`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => concat!("LB", $number),)*
                }
            }

            /// How bad a problem of this kind is; always the same.
            pub fn severity(self) -> Severity {
                match self {
                    $(Self::$name => Severity::$severity,)*
                }
            }

            /// One line that explains the kind.
            pub fn explanation(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

ids! {
    "001" Error Unreadable "The file cannot be read, or is not UTF-8 text.",
    "002" Error Syntax "The file is not YAML.",
    "003" Error DuplicateKey "A key is given twice in the same mapping; it is not clear which one is meant.",
    "004" Error Document "The file uses a part of YAML that configurations do not need: several documents, tags, merge keys, or far too much of anything.",
    "005" Error Variable "A `${NAME}` is malformed, or names an environment variable that is not set.",
    "006" Error Foreign "The file is a configuration of another product.",
    "010" Error UnknownKey "There is no such key here. A key that is not known is never ignored.",
    "011" Error MissingKey "A key that is needed here is not given.",
    "012" Error WrongType "The value is of another kind than the key takes, such as a number in place of a text.",
    "013" Error InvalidValue "The value is of the right kind, but cannot be used.",
    "014" Error UnknownChoice "The key takes one of a few words, and this is none of them.",
    "015" Error NotSupportedYet "The key or value is planned, but this version does not have it.",
    "016" Error NoSuchSetting "Pingora knows this key, but it has no effect in this program; another key does what is meant.",
    "017" Warning Renamed "The key or value has a new name. The old one still works.",
    "020" Error NoPools "There is no pool, so no request could be answered.",
    "021" Error NoBackends "A pool has no backends.",
    "022" Error DuplicateBackend "A pool names the same backend twice; give it a weight instead.",
    "023" Warning UnusedPool "No route leads to this pool, so it gets no requests.",
    "024" Warning OnlyBackups "Every backend of a pool is a backup, so they are used all the time.",
    "030" Error UnknownPool "A route leads to a pool that does not exist.",
    "031" Error UnknownListener "A route names a listener that does not exist.",
    "032" Error NoRoutes "There are several pools, but no routes that say which requests go where.",
    "033" Error UnreachableRoute "A route can never match, because an earlier one matches all that it matches.",
    "034" Warning LiteralAsterisk "A path has an asterisk, which stands for itself and for nothing else.",
    "040" Error NoListeners "The list of listeners is empty, so no request could arrive.",
    "041" Error DuplicateListener "Two listeners have the same name.",
    "042" Error AddressTaken "Two parts of the configuration want to listen on the same address.",
    "050" Error CheckTiming "The times of a health check contradict each other.",
    "051" Error WithoutEffect "The key has no effect, because of another key.",
    "052" Error EjectionTiming "The longest ejection is shorter than the first one.",
    "053" Warning FewBackends "The key has no effect while the pool has so few backends. It takes effect as soon as there are more.",
    "054" Warning NothingToActOn "The key has no effect, because the file has nothing that it acts on. It takes effect as soon as there is something.",
    "055" Warning SwitchedOff "The key has no effect while another key turns off what it is about.",
    "060" Warning MissingName "TLS to the backends verifies certificates, but no name is given that they must be for: they must be for the addresses.",
    "061" Error Certificates "A file of certificates cannot be read, or holds none.",
    "062" Error SessionKeys "The file with the keys of session cookies cannot be read, holds no keys, or is open to other users.",
    "070" Error Directory "The directory of a file that is to be created is missing, or cannot be written to, or the file itself cannot.",
    "071" Error PathTaken "Two parts of the configuration want to use the same file.",
    "072" Error Incomplete "Two keys only work together, and one of them is missing.",
    "073" Error NoStandardOutput "A daemon has no standard output to write the access log to.",
    "074" Error Account "There is no such user, or no such group, on this machine.",
    "077" Error NotAllowed "A file or directory that the daemon needs later is closed to the user that it runs as (`user`, `group`).",
    "078" Warning Rotation "The user that the daemon runs as (`user`, `group`) cannot create files in the directory of a log, so a rotation that moves the log fails.",
}

/// The severity of the kind with this id, such as `LB012`, and one line about it; `None` if there is no such kind.
pub fn explain(id: &str) -> Option<(Severity, &'static str)> {
    let known = Id::ALL.iter().find(|known| known.as_str().eq_ignore_ascii_case(id))?;
    Some((known.severity(), known.explanation()))
}

// === impl Span ===

impl Span {
    /// The bytes from `start` up to `end`.
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end: end.max(start) }
    }

    pub(crate) fn range(self) -> Range<usize> {
        self.start..self.end
    }
}

// === impl Problem ===

impl Problem {
    pub(crate) fn new(id: Id, message: impl Into<String>) -> Self {
        Self { id, message: message.into(), span: None, related: None, hint: None }
    }

    pub(crate) fn at(mut self, span: Span) -> Self {
        self.span = Some(span);
        self
    }

    pub(crate) fn related(mut self, span: Span, text: impl Into<String>) -> Self {
        self.related = Some((span, text.into()));
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// How bad it is.
    pub fn severity(&self) -> Severity {
        self.id.severity()
    }
}

// === impl Severity ===

impl Severity {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Source ===

impl Source {
    /// Line and column of a byte, both counted from 1, the column in characters.
    pub fn line_column(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        (line, before[line_start..].chars().count() + 1)
    }
}

// === impl Problems ===

impl Problems {
    pub(crate) fn new(source: Source, mut list: Vec<Problem>) -> Self {
        let place = |problem: &Problem| problem.span.map_or(0, |span| span.start);
        list.sort_by_key(|problem| (problem.severity(), place(problem)));
        list.dedup();
        let is_cut_short = list.len() >= MAX_PROBLEMS;
        list.truncate(MAX_PROBLEMS);
        list.sort_by_key(place);
        Self { source, list, is_cut_short }
    }

    /// Whether nothing is wrong at all.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether something in it stands in the way of a plan.
    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    /// How many problems of a severity there are.
    pub fn count(&self, severity: Severity) -> usize {
        self.list.iter().filter(|problem| problem.severity() == severity).count()
    }
}

impl std::error::Error for Problems {}

// === impl Id ===

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_explained() {
        let mut numbers: Vec<&str> = Id::ALL.iter().map(|id| id.as_str()).collect();
        numbers.dedup();
        assert_eq!(numbers.len(), Id::ALL.len());
        assert!(numbers.is_sorted());
        assert_eq!(explain("lb020"), Some((Severity::Error, Id::NoPools.explanation())));
        assert_eq!(explain("LB999"), None);
    }

    #[test]
    fn a_list_that_is_cut_short_keeps_its_errors() {
        let problem = |id, at| Problem::new(id, format!("at {at}")).at(Span::new(at, at));
        let warnings = (0..MAX_PROBLEMS).map(|at| problem(Id::FewBackends, at));
        let list = warnings.chain([problem(Id::UnknownKey, 7), problem(Id::UnknownKey, 1000)]).collect();
        let problems = Problems::new(Source::default(), list);
        assert!(problems.is_cut_short);
        assert_eq!(
            (problems.count(Severity::Error), problems.count(Severity::Warning)),
            (2, MAX_PROBLEMS - 2)
        );
        assert!(problems.list.is_sorted_by_key(|problem| problem.span.map(|span| span.start)));
    }

    #[test]
    fn columns_count_characters() {
        let source = Source { name: String::new(), text: "a: 1\nü: x\n".into() };
        assert_eq!(source.line_column(0), (1, 1));
        assert_eq!(source.line_column(9), (2, 4));
        assert_eq!(source.line_column(1000), (3, 1));
    }
}
