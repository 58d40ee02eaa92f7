//! The filter of the log: levels, for everything and for single modules, in the format of `RUST_LOG`.
//!
//! ```text
//! info,health_service=debug,pingora_core::server=trace/10.0.0.1
//! ^    ^                                              ^ only lines that match this regular expression
//! |    a module, with all modules below it
//! the general level
//! ```
//!
//! `env_filter` takes a word that is not a level for the name of a module, so that `warning` would log nothing but a
//! module `warning`. A [`LogFilter`] contains only known levels and known modules. Modules that it does not name are
//! logged at the [`DEFAULT_LEVEL`].

use std::fmt;

use log::LevelFilter;
use values::choice::{self, OtherWords};
use values::{Rejection, TextScalar, did_you_mean};

/// The level of all modules that a filter does not name.
const DEFAULT_LEVEL: LevelFilter = LevelFilter::Info;

/// The maximum levels of Pingora's crates, which are quieter than the rest. Its load balancer reports each health
/// change, which our prober does together with the reason. Its proxy reports each request that a client aborts, and its
/// HTTP server, which serves the metrics address, reports all bytes of each malformed request, so that clients could
/// fill the log.
const QUIET: [(&str, LevelFilter); 4] = [
    ("pingora", LevelFilter::Warn),
    ("pingora_core::apps::http_app", LevelFilter::Off),
    ("pingora_load_balancing", LevelFilter::Off),
    ("pingora_proxy", LevelFilter::Off),
];

/// The log levels, from no lines to all lines.
pub(crate) const LEVELS: [&str; 6] = ["none", "error", "warn", "info", "debug", "trace"];

const OTHER_WORDS: OtherWords = &[
    (&["warning", "warnings"], "warn"),
    (&["notice", "information", "informational", "normal", "default"], "info"),
    (&["err", "crit", "critical", "alert", "emerg", "emergency", "fatal", "panic"], "error"),
    (&["verbose", "dbg"], "debug"),
    (&["all"], "trace"),
    // A tool for YAML 1.1 turns `off` into `false`.
    (&["silent", "quiet", "disabled", "false"], "none"),
];

/// Our modules that log, by their paths.
const OURS: [&str; 35] = [
    "health_service::backend",
    "lb_service::access_log::writer",
    "lb_service::pool",
    "lb_service::pool::attempt",
    "lb_service::pool::tls",
    "lb_service::service",
    "lb_service::transport::http1::connection",
    "lb_service::transport::http1::race",
    "lb_service::transport::http1::serve",
    "lb_service::transport::listen",
    "metrics_service::endpoints",
    "metrics_service::process",
    "shared::control::predecessors",
    "shared::control::server",
    "shared::daemon::acquire",
    "shared::daemon::announce",
    "shared::daemon::gate",
    "shared::daemon::moving",
    "shared::daemon::operations",
    "shared::daemon::resources",
    "shared::demo::origin",
    "shared::demo::show",
    "shared::operator",
    "shared::operator::changer",
    "shared::process::background",
    "shared::process::lifecycle",
    "shared::process::limits",
    "shared::process::logging",
    "shared::process::moves",
    "shared::process::pid_file",
    "shared::process::sockets",
    "shared::process::successor",
    "shared::process::systemd",
    "shared::process::upgrade",
    "shared::serving::logs",
];

/// The crates of others that log. `pingora` stands for all of Pingora's crates. The HTTP/2 library and the runtime are
/// missing, because they send their messages to `tracing`, which the daemon does not read.
const OTHERS: [&str; 10] = [
    "pingora",
    "pingora_cache",
    "pingora_core",
    "pingora_load_balancing",
    "pingora_lru",
    "pingora_pool",
    "pingora_proxy",
    "pingora_runtime",
    "pingora_rustls",
    "rustls",
];

/// A filter of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogFilter {
    written: String,
    /// The complete filter for `env_filter`.
    complete: String,
}

/// The parts of a filter.
#[derive(Debug, Default)]
struct Parts<'a> {
    general: Option<(LevelFilter, &'a str)>,
    modules: Vec<(&'a str, LevelFilter)>,
    /// The regular expression. `None` means that the filter has none.
    pattern: Option<&'a str>,
}

/// One word of a filter.
enum Part<'a> {
    General(LevelFilter),
    Module(&'a str, LevelFilter),
}

// === impl LogFilter ===

impl LogFilter {
    /// Parses a filter. Pingora's crates stay quieter than the general level, unless this level is `debug` or `trace`.
    ///
    /// # Errors
    /// Returns the problem; a second line says what to write instead.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (parts, problems) = Parts::of(text);
        if let Some(problem) = problems.into_iter().next() {
            return Err(problem);
        }
        let quiet = parts.general.is_none_or(|(level, _)| level <= DEFAULT_LEVEL);
        Ok(Self::new(text, &parts, quiet))
    }

    /// Parses the variable `RUST_LOG`. Shells also export it for other programs, so invalid parts are ignored and
    /// returned as warnings. `None` means that no valid part is left. A general level applies to Pingora's crates too,
    /// as in any program.
    pub(crate) fn of_variable(text: &str) -> (Option<Self>, Vec<String>) {
        if text.trim().is_empty() {
            return (None, Vec::new());
        }
        let (parts, problems) = Parts::of(text);
        let warnings = problems.iter().map(|problem| problem.replace('\n', "; ")).collect();
        let is_valid = parts.general.is_some() || !parts.modules.is_empty();
        (is_valid.then(|| Self::new(text, &parts, parts.general.is_none())), warnings)
    }

    fn new(written: &str, parts: &Parts<'_>, quiet: bool) -> Self {
        Self { written: written.trim().to_owned(), complete: parts.complete(quiet) }
    }

    /// Returns the filter for `env_filter`, including the levels of everything that the filter does not name.
    pub(super) fn complete(&self) -> &str {
        &self.complete
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self::parse("info").expect("a level is a filter")
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl TextScalar for LogFilter {
    const READS_NUMBERS: bool = true;
    const EXPECTED: &'static str =
        "a log level such as info, or levels of modules such as info,health_service=debug";

    fn parse(text: &str) -> Result<Self, Rejection> {
        Ok(Self::parse(text)?)
    }
}

// === the parts of a text ===

/// Checks the regular expression of a filter.
fn check_pattern(pattern: &str) -> Result<(), String> {
    const EXAMPLE: &str = "write a level and a regular expression, such as `info/10\\.0\\.0\\.1`";
    if pattern.is_empty() {
        return Err(format!("the regular expression after `/` is empty\n{EXAMPLE}"));
    }
    if pattern.contains('/') {
        return Err(format!("a filter has one regular expression, after its only `/`\n{EXAMPLE}"));
    }
    let checked = env_filter::Builder::new().try_parse(&format!("info/{pattern}")).map(|_| ());
    checked.map_err(|error| {
        // The last line of the error says what is wrong. The others show the expression.
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default();
        format!(
            "`{pattern}` is not a regular expression: {}\n{EXAMPLE}",
            reason.trim_start_matches("error: ")
        )
    })
}

impl<'a> Part<'a> {
    fn parse(word: &'a str) -> Result<Self, String> {
        match word.split_once('=').map(|(name, level)| (name.trim(), level.trim())) {
            None if word.is_empty() => {
                Err(format!("a part of the filter is empty\nremove the extra comma; {}", levels(None)))
            }
            Some(("", level)) => Err(format!(
                "there is no module before `={level}`\nwrite a level, or a module and its level, such as \
                 `lb_service=debug`; {}",
                levels(None)
            )),
            Some((name, "")) => Err(format!("there is no log level after `{name}=`\n{}", levels(None))),
            Some((name, level)) => Ok(Self::Module(module(name)?, level_of(level)?)),
            None => match known_level(word) {
                Some(level) => Ok(Self::General(level)),
                None if is_known(word) => Ok(Self::Module(word, LevelFilter::Trace)),
                None => Err(neither(word)),
            },
        }
    }
}

impl<'a> Parts<'a> {
    /// Splits a filter into its parts, and returns the problems of the others. The last of two contradictory levels
    /// applies, as in other programs.
    fn of(text: &'a str) -> (Self, Vec<String>) {
        let (modules, pattern) =
            text.split_once('/').map_or((text, None), |(text, pattern)| (text, Some(pattern)));
        let (mut all, mut problems) = (Self::default(), Vec::new());
        for word in modules.split(',').map(str::trim) {
            problems.extend(all.add(word).err());
        }
        match pattern.map(check_pattern) {
            Some(Err(problem)) => problems.push(problem),
            _ => all.pattern = pattern,
        }
        (all, problems)
    }

    fn add(&mut self, word: &'a str) -> Result<(), String> {
        match Part::parse(word)? {
            Part::General(level) => match self.general.replace((level, word)) {
                Some((_, earlier)) => Err(format!(
                    "the general level `{earlier}` has no effect, because `{word}` follows it\nwrite one general level; {}",
                    levels(None)
                )),
                None => Ok(()),
            },
            Part::Module(name, level) => {
                let is_second = self.modules.iter().any(|(earlier, _)| *earlier == name);
                self.modules.push((name, level));
                let problem =
                    || format!("the level of `{name}` is given twice\nwrite one level for each module");
                if is_second { Err(problem()) } else { Ok(()) }
            }
        }
    }

    /// Adds the levels of everything that is not named. If `quiet` is set, this includes the lower levels of Pingora's
    /// crates.
    fn complete(&self, quiet: bool) -> String {
        let general = self.general.map_or(DEFAULT_LEVEL, |(level, _)| level);
        let is_named = |quiet: &str| self.modules.iter().any(|(name, _)| quiet.starts_with(name));
        let quiet = QUIET.iter().filter(|(name, _)| quiet && !is_named(name));
        let quiet = quiet.map(|(name, level)| (*name, general.min(*level)));
        let modules = quiet.chain(self.modules.iter().copied());
        let modules: String = modules.map(|(name, level)| format!(",{name}={level}")).collect();
        let pattern = self.pattern.map(|pattern| format!("/{pattern}")).unwrap_or_default();
        format!("{general}{modules}{pattern}")
    }
}

// === levels ===

fn known_level(word: &str) -> Option<LevelFilter> {
    // Other programs accept `off` in `RUST_LOG`.
    if word.eq_ignore_ascii_case("none") { Some(LevelFilter::Off) } else { word.parse().ok() }
}

fn level_of(word: &str) -> Result<LevelFilter, String> {
    known_level(word).ok_or_else(|| format!("there is no log level `{word}`\n{}", levels(meant_level(word))))
}

fn meant_level(word: &str) -> Option<&'static str> {
    choice::meant(word, &LEVELS, OTHER_WORDS)
}

fn levels(meant: Option<&str>) -> String {
    let meant = meant.map(|meant| format!("did you mean `{meant}`? ")).unwrap_or_default();
    format!("{meant}the levels are {}", LEVELS.join(", "))
}

// === modules ===

/// Returns whether this module, or a module below it, logs. Every module of another crate that logs is accepted.
fn is_known(name: &str) -> bool {
    let is_within = |path: &str, name: &str| {
        let below = |rest: &str| rest.strip_prefix("::").is_some_and(|module| !module.is_empty());
        path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || below(rest))
    };
    OURS.iter().any(|ours| is_within(ours, name)) || OTHERS.iter().any(|other| is_within(name, other))
}

fn module(name: &str) -> Result<&str, String> {
    if is_known(name) {
        return Ok(name);
    }
    Err(format!("there is no log module `{name}`\n{}", meant_module(name).unwrap_or_else(modules)))
}

/// Returns our modules that log, the crates and modules that contain them, and the crates of others.
fn known_names() -> impl Iterator<Item = &'static str> {
    let above = |path: &'static str| path.match_indices("::").map(move |(at, _)| &path[..at]);
    OURS.iter().flat_map(move |path| above(path).chain([*path])).chain(OTHERS)
}

fn modules() -> String {
    let mut crates: Vec<_> = OURS.iter().filter_map(|path| path.split("::").next()).collect();
    crates.dedup();
    format!(
        "the modules are {}, {}, and those inside them, such as `lb_service::pool`",
        crates.join(", "),
        OTHERS.join(", ")
    )
}

fn meant_module(name: &str) -> Option<String> {
    did_you_mean(name, known_names()).map(|meant| format!("did you mean `{meant}`?"))
}

fn neither(word: &str) -> String {
    let hint = match (meant_level(word), meant_module(word)) {
        (Some(level), _) => levels(Some(level)),
        (None, Some(module)) => module,
        (None, None) if word.starts_with(|first: char| first.is_ascii_digit()) => levels(None),
        (None, None) => format!("{}; {}", levels(None), modules()),
    };
    format!("`{word}` is neither a log level nor a log module\n{hint}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use log::{Level, Metadata};

    use super::*;

    fn shows(filter: &LogFilter, target: &str, level: Level) -> bool {
        let filter = env_filter::Builder::new().parse(filter.complete()).build();
        filter.enabled(&Metadata::builder().target(target).level(level).build())
    }

    fn parse(text: &str) -> LogFilter {
        LogFilter::parse(text).unwrap()
    }

    fn rejection(text: &str) -> String {
        LogFilter::parse(text).unwrap_err()
    }

    #[test]
    fn the_default_filter_quietens_only_pingora() {
        for filter in [LogFilter::default(), parse("INFO")] {
            assert!(shows(&filter, "lb_service::proxy", Level::Info));
            assert!(!shows(&filter, "lb_service::proxy", Level::Debug));
            assert!(!shows(&filter, "pingora_core::server", Level::Info));
            assert!(shows(&filter, "pingora_core::server", Level::Warn));
            assert!(!shows(&filter, "pingora_load_balancing", Level::Error));
            assert!(!shows(&filter, "pingora_core::apps::http_app", Level::Error));
        }
    }

    #[test]
    fn a_lower_level_shows_no_more_than_the_default_and_debug_shows_everything() {
        assert!(!shows(&parse("error"), "pingora_core", Level::Warn));
        assert!(!shows(&parse("warn"), "pingora_proxy", Level::Error));
        assert!(shows(&parse("debug"), "pingora_proxy", Level::Debug));
        assert!(!shows(&parse("none"), "lb_service", Level::Error));
    }

    #[test]
    fn modules_that_a_filter_does_not_name_have_the_default_level() {
        let filter = parse("health_service=debug");
        assert!(shows(&filter, "health_service::backend", Level::Debug));
        assert!(
            shows(&filter, "lb_service::proxy", Level::Info) && !shows(&filter, "pingora_core", Level::Info)
        );
        for none in ["none", "off"] {
            let filter = parse(&format!("{none},health_service=debug"));
            assert!(!shows(&filter, "lb_service::proxy", Level::Error), "{none}");
        }
    }

    #[test]
    fn pingoras_crates_log_at_the_levels_that_name_them() {
        let filter = parse("info,pingora=info");
        assert!(shows(&filter, "pingora_core", Level::Info) && shows(&filter, "pingora_proxy", Level::Info));
        let filter = parse("info,pingora_core::server=debug");
        assert!(
            shows(&filter, "pingora_core::server", Level::Debug)
                && !shows(&filter, "pingora_proxy", Level::Error)
        );
    }

    #[test]
    fn an_unknown_level_is_rejected_with_a_suggestion() {
        let words = [("warning", "warn"), ("notice", "info"), ("verbose", "debug"), ("inof", "info")];
        for (word, meant) in words.into_iter().chain(["false", "silent", "quiet"].map(|word| (word, "none")))
        {
            let (alone, of_module) = (rejection(word), rejection(&format!("lb_service={word}")));
            for problem in [alone, of_module] {
                assert!(problem.contains(&format!("did you mean `{meant}`?")), "{problem}");
                assert!(problem.contains(word) && problem.contains(&LEVELS.join(", ")), "{problem}");
            }
        }
        assert!(rejection("3").contains(&LEVELS.join(", ")));
        assert!(
            rejection("lb_service=").contains(&LEVELS.join(", "))
                && rejection("a=b=c").contains("no log module `a`")
        );
    }

    #[test]
    fn an_unknown_module_is_rejected_with_a_suggestion_or_with_all_names() {
        assert!(rejection("helth_service=debug").contains("did you mean `health_service`?"));
        assert!(
            rejection("health_service::backends=debug").contains("did you mean `health_service::backend`?")
        );
        let problem = rejection("sqlx=debug");
        assert!(problem.contains("lb_service, metrics_service, shared, pingora,"), "{problem}");
        assert!(rejection("h2=debug").contains("no log module `h2`"), "its messages are not read");
    }

    #[test]
    fn an_empty_filter_and_an_invalid_expression_are_rejected() {
        for invalid in ["", "  ", ",", "/a", "info/a/b", "info/"] {
            assert!(LogFilter::parse(invalid).is_err(), "{invalid}");
        }
        let problem = rejection("info/(");
        assert!(problem.starts_with("`(` is not a regular expression: unclosed group\n"), "{problem}");
        assert!(LogFilter::parse("info/10\\.0").is_ok());
    }

    #[test]
    fn an_incomplete_or_contradictory_filter_is_rejected_and_white_space_is_ignored() {
        for (text, problem) in [
            ("=debug", "no module before `=debug`"),
            ("lb_service=", "no log level after `lb_service=`"),
            ("info,", "a part of the filter is empty"),
            (",info", "a part of the filter is empty"),
            ("info,,debug", "a part of the filter is empty"),
            ("info,debug", "`info` has no effect, because `debug` follows it"),
            ("lb_service=info,lb_service=debug", "the level of `lb_service` is given twice"),
            ("pingora_core::=debug", "no log module `pingora_core::`"),
        ] {
            let rejection = rejection(text);
            let hint = rejection.lines().nth(1).expect("there is a hint");
            assert!(rejection.contains(problem), "{text}: {rejection}");
            assert!(
                hint.contains(&LEVELS.join(", ")) || hint.contains("module") || hint.contains("did you mean")
            );
            let warnings = LogFilter::of_variable(text).1;
            assert!(warnings.iter().any(|warning| warning.contains(problem)), "{text}: {warnings:?}");
        }
        for text in [" info", "info ", " info , lb_service = debug "] {
            assert_eq!(LogFilter::parse(text).unwrap().to_string(), text.trim());
        }
        let (last, _) = LogFilter::of_variable("info,debug");
        assert!(shows(&last.unwrap(), "lb_service", Level::Debug), "as in other programs");
    }

    #[test]
    fn an_invalid_part_of_the_variable_does_not_switch_the_log_off() {
        let (filter, warnings) = LogFilter::of_variable("warning");
        assert_eq!(filter, None);
        assert!(warnings[0].contains("did you mean `warn`?"), "{warnings:?}");
        assert_eq!(LogFilter::of_variable("my_app=debug,sqlx=warn").0, None);
        let (filter, warnings) = LogFilter::of_variable("my_app=debug,error");
        assert!(!shows(&filter.unwrap(), "lb_service", Level::Warn) && warnings.len() == 1);
        let (filter, warnings) = LogFilter::of_variable("rustls=debug");
        assert!(shows(&filter.unwrap(), "lb_service", Level::Info) && warnings.is_empty());
        assert_eq!(LogFilter::of_variable(" "), (None, Vec::new()));
    }

    #[test]
    fn a_general_level_in_the_variable_applies_to_pingoras_crates() {
        let (filter, warnings) = LogFilter::of_variable("INFO");
        assert!(shows(&filter.unwrap(), "pingora_core", Level::Info) && warnings.is_empty());
    }

    /// Compares the list with the source tree. A module that begins to log, or that is moved, must be added to the
    /// list.
    #[test]
    fn the_list_names_all_of_our_modules_that_log() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut found = BTreeSet::new();
        for member in ["health-service", "lb-service", "metrics-service", "shared"] {
            collect(&root.join(member).join("src"), &member.replace('-', "_"), &mut found);
        }
        assert_eq!(found, OURS.iter().map(|path| (*path).to_owned()).collect());
    }

    fn collect(directory: &Path, module: &str, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let name =
                if ["mod", "lib"].contains(&stem) { module.to_owned() } else { format!("{module}::{stem}") };
            if path.is_dir() {
                collect(&path, &name, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") && logs(&path) {
                found.insert(name);
            }
        }
    }

    fn logs(path: &Path) -> bool {
        let text = fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let calls = |line: &str| {
            ["error", "warn", "info", "debug", "trace"].iter().any(|level| {
                line.contains(&format!("log::{level}!("))
                    || line.trim_start().starts_with(&format!("{level}!("))
            })
        };
        code.iter().any(|line| calls(line))
    }
}
