//! The configuration: converts text to a [`Plan`], or to all problems that prevent it.
//!
//! ```text
//!  text ── document ──> tree with places ── env, renamed, rejected ─> tree ── decode ──> Config (as written)
//!                                                                                     │ plan::complete (defaults)
//!          Problems <── every step adds problems; errors prevent a plan <─────── check │
//!             │ render                                                                v plan::plan
//!         text or JSON                                                              Plan (as meant), and warnings
//! ```
//!
//! Only this module handles places in the file: it reports all problems, and other modules receive typed values.

mod check;
mod context;
mod decode;
mod document;
mod env;
mod foreign;
mod keys;
mod nesting;
mod plan;
mod ports;
mod print;
mod problem;
mod rejected;
mod renamed;
mod render;
mod schema;
mod secrets;
mod sections;
mod syntax;
#[cfg(test)]
pub(crate) mod testing;
mod words;

use std::io;
use std::path::{Path, PathBuf};

pub(crate) use check::{MAX_RING_WEIGHT, own_address};
use document::{Map, Node, Value};
use nix::unistd::Uid;
use problem::{Id, Problem};

use crate::places;
use crate::process::files::reason;
use crate::process::privileges::user_name;

pub(crate) use context::loopback;
pub use context::{Account, Context, Denied, FileAccess, Files, Protection, RealFiles};
pub use env::Lookup;
pub use keys::keys;
pub use plan::Plan;
pub(crate) use plan::{ControlPlan, KeyFile, ReloadPlan, RollbackPlan, ServerPlan, ShutdownPlan};
pub(crate) use problem::explain;
pub use problem::{Id as ProblemId, Problem as ConfigProblem, Problems, Severity, Source, Span};
pub(crate) use render::counted;
pub use render::{ProblemDocument, documents, lines, text};
pub use schema::{schema, schema_text};
pub(crate) use secrets::session_keys;
pub use sections::Config;

/// The maximum length of a file, in bytes.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration as written, with all defaults.
    pub config: Config,
    /// The plan that follows from it.
    pub plan: Plan,
    /// The warnings; often empty. None of these problems is an error.
    pub warnings: Problems,
    /// The paths of the keys that the file does not give and whose default depends on the surroundings.
    absent: Vec<&'static [&'static str]>,
}

/// The name of standard input in problems and in the status.
pub(crate) const INPUT: &str = "<standard input>";

/// Returns whether a path stands for standard input, as in `-c -`.
pub(crate) fn is_input(path: &Path) -> bool {
    path == Path::new("-")
}

/// Reads a file and makes a plan from it.
///
/// # Errors
///
/// Returns all problems of the file, including warnings, or the problem that the file cannot be read.
pub(crate) fn load(path: &Path, context: &Context<'_>) -> Result<Loaded, Problems> {
    let source = read_source(path, context)?;
    load_text(&source.name, &source.text, context)
}

/// Reads the text of a file or of standard input.
///
/// # Errors
///
/// Returns the problem that it cannot be read.
pub(crate) fn read_source(path: &Path, context: &Context<'_>) -> Result<Source, Problems> {
    let name = if is_input(path) { INPUT.to_owned() } else { path.display().to_string() };
    let text = text_of(path, context).map_err(|problem| {
        Problems::new(Source { name: name.clone(), text: String::new() }, vec![*problem])
    })?;
    Ok(Source { name, text })
}

fn text_of(path: &Path, context: &Context<'_>) -> Result<String, Box<Problem>> {
    let is_of_variable = (context.variables)(places::VARIABLE).is_some_and(|named| Path::new(&named) == path);
    let unreadable = |reason: &str, hint: &str| {
        let problem = Problem::new(Id::Unreadable, format!("cannot read the configuration: {reason}"));
        let variable = places::VARIABLE;
        let names = if is_of_variable { format!("; ${variable} names this file") } else { String::new() };
        Box::new(problem.hint(format!("{hint}{names}")))
    };
    let bytes = context.files.read_configuration(path);
    let bytes = bytes.map_err(|error| unreadable(&reason(&error), &remedy(path, &error, context)))?;
    String::from_utf8(bytes).map_err(|error| {
        let right = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + right.iter().filter(|byte| **byte == b'\n').count();
        unreadable(&format!("line {line} is not UTF-8 text"), "save it as UTF-8")
    })
}

/// Returns the remedy for a configuration that cannot be read. The reader can be a running daemon whose user differs
/// from the operator, so the remedy names the user.
fn remedy(path: &Path, error: &io::Error, context: &Context<'_>) -> String {
    let uid = context.files.uid_of(Account { user: None, group: None });
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let user = user_name(Uid::from_raw(uid));
            format!("let the user `{user}` read it, or run as another user")
        }
        io::ErrorKind::IsADirectory => {
            format!("name a file, for example with `-c {}`", path.join("load_balancer.yaml").display())
        }
        io::ErrorKind::NotFound => "name an existing file with `-c`".to_owned(),
        _ => "name a configuration file with `-c`".to_owned(),
    }
}

/// Makes a plan from the text of a configuration. `name` is its path in problems.
///
/// # Errors
///
/// Returns all problems of the text, including warnings.
pub fn load_text(name: &str, text: &str, context: &Context<'_>) -> Result<Loaded, Problems> {
    let mut problems = Vec::new();
    let read = read(text, context, &mut problems);
    let source = Source { name: name.to_owned(), text: text.to_owned() };
    let mut problems = Problems::new(source, problems);
    if let Some(problem) = foreign::recognise(text).filter(|_| problems.has_errors()) {
        problems = Problems::new(problems.source, vec![problem]);
    }
    match read {
        Some((config, plan, absent)) if !problems.has_errors() => {
            Ok(Loaded { config, plan, warnings: problems, absent })
        }
        _ => Err(problems),
    }
}

fn read(
    text: &str,
    context: &Context<'_>,
    problems: &mut Vec<Problem>,
) -> Option<(Config, Plan, Vec<&'static [&'static str]>)> {
    let (root, faults) = document::parse(text);
    problems.extend(faults);
    let mut root = root_mapping(root?);
    env::expand(&mut root, context.variables, problems);
    renamed::rename(&mut root, problems);
    rejected::reject(&mut root, problems);
    ports::reject(&mut root, problems);
    if !decode::is_valid::<Config>(&root) {
        nesting::mend(&mut root, text, problems);
    }
    let mut config: Config = decode::decode(&mut root, problems)?;
    plan::complete(&mut config, &root, context);
    let mut findings = check::check(&config, &root, context);
    findings.problems.retain(|found| !follows(found, problems));
    problems.append(&mut findings.problems);
    let has_errors = problems.iter().any(|problem| problem.severity() == Severity::Error);
    (!has_errors).then(|| {
        let plan = plan::plan(&config, context, &mut findings.files);
        (config, plan, print::absent(&root))
    })
}

/// Returns the value of the key `control.socket`, even if the rest of the file is wrong, since the daemon must be
/// reached in that case as well. `None` means that there is no file or no such key, or that the key names the default.
///
/// # Errors
///
/// Returns the problem that the file cannot be read: without it, the socket of the daemon is unknown.
pub(crate) fn control_socket_of(
    path: Option<&Path>,
    context: &Context<'_>,
) -> Result<Option<PathBuf>, Problems> {
    let source = path.map(|path| read_source(path, context)).transpose()?;
    let named = source.and_then(|source| {
        let mut root = document::parse(&source.text).0?;
        env::expand(&mut root, context.variables, &mut Vec::new());
        match &root.get(&["control".into(), "socket".into()])?.value {
            Value::Text { text, .. } if text.starts_with('/') => Some(PathBuf::from(text)),
            _ => None,
        }
    });
    Ok(named.filter(|named| *named != context.runtime.control_socket()))
}

/// Returns whether a problem is only a consequence of the others: there are no pools because the key `pools` has
/// another name.
fn follows(found: &Problem, problems: &[Problem]) -> bool {
    problems.iter().any(|problem| problem.explains == Some(found.id))
}

/// Converts an empty file to a mapping without keys.
fn root_mapping(root: Node) -> Node {
    match root.value {
        Value::Null => Node { span: root.span, value: Value::Map(Map::default()) },
        _ => root,
    }
}

// === impl Loaded ===

impl Loaded {
    /// Formats the configuration in effect as YAML, which gives the same plan when it is loaded. Keys of the process
    /// without a value are comments.
    pub fn effective(&self) -> String {
        print::yaml(&self.config, &self.plan, &self.absent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::runtime::RuntimeFiles;

    fn socket_of(text: &str) -> Option<PathBuf> {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let file = directory.path().join("conf.yaml");
        std::fs::write(&file, text).expect("a file can be written");
        let variables = |name: &str| (name == "RUN").then(|| "/run/here".to_owned());
        let loopback = std::net::Ipv4Addr::LOCALHOST.into();
        let runtime = RuntimeFiles::new("/run/load_balancer".into(), None);
        let runtime = &runtime;
        let context =
            Context { variables: &variables, runtime, cpus: 1, daemon: false, loopback, files: &RealFiles };
        control_socket_of(Some(&file), &context).unwrap()
    }

    #[test]
    fn the_control_socket_is_found_in_files_that_are_wrong_elsewhere() {
        assert_eq!(socket_of("polls: 3\ncontrol: {socket: /a.sock, mood: 1}\n"), Some("/a.sock".into()));
        assert_eq!(
            socket_of("control: {socket: '${RUN}/a.sock'}\nx: ${NONE}\n"),
            Some("/run/here/a.sock".into())
        );
        for other in ["", "pools: {", "control: 3", "control: {socket: a.sock}", "control: {socket: [1]}"] {
            assert_eq!(socket_of(other), None, "{other}");
        }
    }
}
