//! The problems of a configuration. Each [`Problem`] has a stable ID, a place and a remedy.

use std::fmt;
use std::ops::Range;

/// The maximum number of problems that are reported. A file with more problems is probably not a configuration.
pub(crate) const MAX_PROBLEMS: usize = 100;

/// A range of bytes of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The index of the first byte.
    pub start: usize,
    /// The index after the last byte.
    pub end: usize,
}

/// A problem of a configuration, and its remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The kind of problem. The meaning of a kind never changes.
    pub id: Id,
    /// The problem in one sentence, in lower case and without a full stop.
    pub message: String,
    /// The place. `None` means that the problem concerns the whole file.
    pub span: Option<Span>,
    /// A second place that is related to the problem, with a label.
    pub related: Option<(Span, String)>,
    /// The remedy. `None` means that there is no simple one.
    pub hint: Option<String>,
    /// The kind of problem that is only a consequence of this one and is therefore not reported.
    pub(crate) explains: Option<Id>,
}

/// The file that has the problems.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Its path as it was given.
    pub name: String,
    /// Its text, empty if it could not be read.
    pub text: String,
}

/// All problems of one file, in the order of their places. If they are returned as an error, at least one of them has
/// the severity [`Severity::Error`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// The file.
    pub source: Source,
    /// The problems, at most 100. If there are more, warnings are left out first.
    pub list: Vec<Problem>,
    /// Whether problems were left out.
    pub is_cut_short: bool,
}

/// The severity of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// The configuration is used as it is, but its author should look at it.
    Warning,
}

/// Declares the kinds of problems: number, severity, name and explanation.
macro_rules! ids {
    ($($number:literal $severity:ident $name:ident $text:literal,)*) => {
        /// The kinds of problems. The number of a kind never changes and is never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Id {
            $(#[doc = $text] $name,)*
        }

        impl Id {
            /// All kinds.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Returns the ID, such as `LB012`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => concat!("LB", $number),)*
                }
            }

            /// Returns the severity of all problems of this kind.
            pub fn severity(self) -> Severity {
                match self {
                    $(Self::$name => Severity::$severity,)*
                }
            }

            /// Returns the explanation of the kind, in one line.
            pub fn explanation(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

ids! {
    "001" Error Unreadable "The file cannot be read, or it is not UTF-8 text.",
    "002" Error Syntax "The file is not valid YAML.",
    "003" Error DuplicateKey "A mapping has the same key twice, so it is not clear which value applies.",
    "004" Error Document "The file uses a feature of YAML that is not supported (several documents, tags or merge keys), or it has too many or too deeply nested values.",
    "005" Error Variable "A `${NAME}` is malformed, or the environment variable is not set.",
    "006" Error Foreign "The file is a configuration of another product.",
    "010" Error UnknownKey "This section has no such key. Unknown keys are rejected, so that a misspelt key is noticed.",
    "011" Error MissingKey "A required key is missing.",
    "012" Error WrongType "The value has the wrong type, such as a number instead of a string.",
    "013" Error InvalidValue "The value has the right type, but it is not valid.",
    "014" Error UnknownChoice "The value is not one of the words that the key accepts.",
    "015" Error NotSupportedYet "The key or value is planned, but this version does not support it.",
    "016" Error NoSuchSetting "Pingora has this key, but it has no effect in the load balancer.",
    "017" Warning Renamed "The key or value has a new name. The old name still works.",
    "020" Error NoPools "The configuration has no pool, so the daemon could not serve any request.",
    "021" Error NoBackends "A pool has no backends.",
    "022" Error DuplicateBackend "A pool lists the same backend twice. To give a backend a larger share, set its weight.",
    "023" Warning UnusedPool "No route leads to this pool, so it receives no requests.",
    "024" Warning OnlyBackups "Every backend of a pool is a backup, so the backups receive all requests.",
    "025" Warning OwnAddress "A backend has the address of a listener of this daemon, so requests can loop, or the metrics address of this daemon.",
    "030" Error UnknownPool "A route names a pool that does not exist.",
    "031" Error UnknownListener "A route names a listener that does not exist.",
    "032" Error NoRoutes "There are several pools, but no routes that assign requests to them.",
    "033" Error UnreachableRoute "A route can never match, because an earlier route already matches all of its requests.",
    "034" Warning LiteralAsterisk "A path contains an asterisk, which matches only the character itself, not arbitrary text.",
    "040" Error NoListeners "The list of listeners is empty, so no client could connect.",
    "041" Error DuplicateListener "Two listeners have the same name.",
    "042" Error AddressTaken "Two parts of the configuration would listen on the same address.",
    "050" Error CheckTiming "The durations of a health check contradict each other.",
    "051" Error WithoutEffect "The key has no effect because it contradicts another key, such as `path_prefix` together with `path`, or `hash_on` together with a policy that does not hash. Remove one of the two, or change the other key.",
    "052" Error EjectionTiming "The longest ejection is shorter than the first ejection.",
    "053" Warning FewBackends "The key has no effect because the pool has too few backends. It takes effect when the pool has more.",
    "054" Warning NothingToActOn "The key has no effect because the file has nothing that it applies to. It takes effect when the file has it.",
    "055" Warning SwitchedOff "The key has no effect because another key turns its feature off.",
    "060" Warning MissingName "TLS to the backends verifies certificates, but `sni` is missing, so the certificates must be issued for the IP addresses.",
    "061" Error Certificates "A certificate file cannot be read, or it contains no certificates. A pool with `tls` and without `ca` or `ca_file` needs the certificate authorities of the system, or those that the environment variables SSL_CERT_FILE and SSL_CERT_DIR name.",
    "062" Error SessionKeys "The file with the keys of session cookies cannot be read, contains no keys, or is accessible to other users.",
    "063" Warning NoAuthorities "TLS to the backends verifies certificates, but there are no certificate authorities to verify them with, so no connection to them can be made.",
    "064" Error SocketName "TLS to a backend on a Unix socket verifies its certificate, but `sni` is missing. Unlike an IP address, the path of a socket cannot be the name in a certificate.",
    "070" Error Directory "A file cannot be created or written: its directory is missing or not writable, or the file itself is not writable.",
    "071" Error PathTaken "Two parts of the configuration would use the same file.",
    "073" Error NoStandardOutput "The daemon runs in the background, so it has no standard output for the access log.",
    "074" Error Account "The user or the group does not exist on this machine.",
    "077" Error NotAllowed "The user that the daemon runs as (`user`, `group`) cannot access a file or directory that the daemon needs after the start.",
    "078" Warning Rotation "The user that the daemon runs as (`user`, `group`) cannot create files in the directory of a log, so the log cannot be reopened after a rotation has moved it.",
    "079" Error ClientCertificate "The certificate for backends (`client_cert`) or its private key (`client_key`) is missing, cannot be read, is not PEM, or is accessible to other users, or the key belongs to another certificate.",
}

/// Returns the severity and the explanation of the kind with this ID, such as `LB012`. `None` means that there is no
/// such kind.
pub(crate) fn explain(id: &str) -> Option<(Severity, &'static str)> {
    let known = Id::ALL.iter().find(|known| known.as_str().eq_ignore_ascii_case(id))?;
    Some((known.severity(), known.explanation()))
}

// === impl Span ===

impl Span {
    /// Returns the range of bytes from `start` up to, but not including, `end`.
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Self { start, end: end.max(start) }
    }

    pub(crate) fn range(self) -> Range<usize> {
        self.start..self.end
    }
}

// === impl Problem ===

impl Problem {
    pub(crate) fn new(id: Id, message: impl Into<String>) -> Self {
        Self { id, message: message.into(), span: None, related: None, hint: None, explains: None }
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

    /// Returns the severity of the problem.
    pub fn severity(&self) -> Severity {
        self.id.severity()
    }
}

// === impl Severity ===

impl Severity {
    /// Returns the severity as a word: `error` or `warning`.
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
    /// Returns the line and the column of a byte, both from 1. The column counts characters.
    pub(crate) fn line_column(&self, offset: usize) -> (usize, usize) {
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

    /// Returns whether there are no problems.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns whether at least one problem is an error, which prevents a plan.
    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    /// Returns the number of problems with this severity.
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
