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

/// All problems of one file, in the order of their places. Never empty once it is returned as an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The file.
    pub source: Source,
    /// What is wrong with it; at most 100.
    pub list: Vec<Problem>,
    /// Whether there is more.
    pub is_cut_short: bool,
}

/// Declares the ids: number, name, one line that explains it.
macro_rules! ids {
    ($($number:literal $name:ident $text:literal,)*) => {
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
    "001" Unreadable "The file cannot be read, or is not UTF-8 text.",
    "002" Syntax "The file is not YAML.",
    "003" DuplicateKey "A key is given twice in the same mapping; it is not clear which one is meant.",
    "004" Document "The file uses a part of YAML that configurations do not need: several documents, tags, merge keys, or far too much of anything.",
    "005" Variable "A `${NAME}` is malformed, or names an environment variable that is not set.",
    "006" Foreign "The file is a configuration of another product.",
    "010" UnknownKey "There is no such key here. A key that is not known is never ignored.",
    "011" MissingKey "A key that is needed here is not given.",
    "012" WrongType "The value is of another kind than the key takes, such as a number in place of a text.",
    "013" InvalidValue "The value is of the right kind, but cannot be used.",
    "014" UnknownChoice "The key takes one of a few words, and this is none of them.",
    "015" NotSupportedYet "The key or value is planned, but this version does not have it.",
    "016" NoSuchSetting "Pingora knows this key, but it has no effect in this program; another key does what is meant.",
    "020" NoPools "There is no pool, so no request could be answered.",
    "021" NoBackends "A pool has no backends.",
    "022" DuplicateBackend "A pool names the same backend twice; give it a weight instead.",
    "023" UnusedPool "No route leads to this pool.",
    "024" OnlyBackups "Every backend of a pool is a backup, so there is none that they could stand in for.",
    "030" UnknownPool "A route leads to a pool that does not exist.",
    "031" UnknownListener "A route names a listener that does not exist.",
    "032" NoRoutes "There are several pools, but no routes that say which requests go where.",
    "033" UnreachableRoute "A route can never match, because an earlier one matches all that it matches.",
    "040" NoListeners "The list of listeners is empty, so no request could arrive.",
    "041" DuplicateListener "Two listeners have the same name.",
    "042" AddressTaken "Two parts of the configuration want to listen on the same address.",
    "050" CheckTiming "The times of a health check contradict each other.",
    "051" WithoutEffect "The key has no effect, because of another key.",
    "052" EjectionTiming "The longest ejection is shorter than the first one.",
    "060" MissingName "TLS to the backends verifies certificates, but no name is given that they must be for.",
    "061" Certificates "A file of certificates cannot be read, or holds none.",
    "062" SessionKeys "The file with the keys of session cookies cannot be read, holds no keys, or is open to other users.",
    "070" Directory "The directory of a file that is to be created is missing, or cannot be written to.",
    "071" PathTaken "Two parts of the configuration want to use the same file.",
    "072" Incomplete "Two keys only work together, and one of them is missing.",
    "073" NoStandardOutput "A daemon has no standard output to write the access log to.",
    "074" Account "There is no such user, or no such group, on this machine.",
    "077" NotAllowed "A file or directory that the daemon needs later is closed to the user that it runs as (`user`, `group`).",
}

/// One line about the kind with this id, such as `LB012`; `None` if there is no such kind.
pub fn explain(id: &str) -> Option<&'static str> {
    Id::ALL.iter().find(|known| known.as_str().eq_ignore_ascii_case(id)).map(|known| known.explanation())
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
        list.sort_by_key(|problem| problem.span.map_or(0, |span| span.start));
        list.dedup();
        let is_cut_short = list.len() >= MAX_PROBLEMS;
        list.truncate(MAX_PROBLEMS);
        Self { source, list, is_cut_short }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&super::render::text(self, false))
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
        assert_eq!(explain("lb020"), Some(Id::NoPools.explanation()));
        assert_eq!(explain("LB999"), None);
    }

    #[test]
    fn columns_count_characters() {
        let source = Source { name: String::new(), text: "a: 1\nü: x\n".into() };
        assert_eq!(source.line_column(0), (1, 1));
        assert_eq!(source.line_column(9), (2, 4));
        assert_eq!(source.line_column(1000), (3, 1));
    }
}
