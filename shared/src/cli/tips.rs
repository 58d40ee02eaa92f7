//! Tips for command lines that clap rejects: the right command for what operators try first.

use std::net::SocketAddr;

use clap::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// The command line as far as a tip depends on it.
struct Line<'a> {
    /// The arguments after the name of the program.
    words: &'a [String],
    /// The first argument that is a subcommand. `None` means that there is none.
    subcommand: Option<&'a str>,
}

/// The endings of file names that are probably configurations.
const ENDINGS: [&str; 6] = [".yaml", ".yml", ".conf", ".cfg", ".json", ".toml"];

/// Adds tips to the error of a command line, in place of the ones from clap. `words` are the arguments after the name
/// of the program, `subcommands` the names of all subcommands, and `is_file` returns whether a file exists.
pub(super) fn add(
    mut error: Error,
    words: &[String],
    subcommands: &[String],
    is_file: impl Fn(&str) -> bool,
) -> Error {
    let subcommand = words.iter().find(|word| subcommands.contains(word)).map(String::as_str);
    let line = Line { words, subcommand };
    let tips = match error.kind() {
        ErrorKind::InvalidSubcommand => wrong_word(&error, ContextKind::InvalidSubcommand)
            .map(|word| line.for_subcommand(&word, is_file))
            .unwrap_or_default(),
        ErrorKind::UnknownArgument => wrong_word(&error, ContextKind::InvalidArg)
            .map(|word| line.for_argument(&word, is_file))
            .unwrap_or_default(),
        ErrorKind::MissingRequiredArgument => line.for_missing_argument(),
        _ => Vec::new(),
    };
    if !tips.is_empty() {
        error.remove(ContextKind::SuggestedSubcommand);
        error.remove(ContextKind::SuggestedArg);
        let tips = tips.into_iter().map(Into::into).collect();
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    error
}

fn wrong_word(error: &Error, kind: ContextKind) -> Option<String> {
    match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.clone()),
        _ => None,
    }
}

fn is_option(word: &str) -> bool {
    word.starts_with('-')
}

fn is_path(word: &str, is_file: impl Fn(&str) -> bool) -> bool {
    !is_option(word)
        && !word.contains("://")
        && (is_file(word) || word.contains('/') || ENDINGS.iter().any(|ending| word.ends_with(ending)))
}

fn to(purpose: &str, command: &str) -> String {
    format!("to {purpose}, write: load_balancer {command}")
}

// === impl Line ===

impl Line<'_> {
    /// Returns the configuration file that the command line names, or a placeholder.
    fn file(&self) -> &str {
        let named = self.after("-c").or_else(|| self.after("--conf"));
        named.unwrap_or("FILE")
    }

    /// Returns the argument after `option`.
    fn after(&self, option: &str) -> Option<&str> {
        let at = self.words.iter().position(|word| word == option)?;
        self.words.get(at + 1).map(String::as_str)
    }

    /// Returns the tips for a word in the place of a subcommand.
    fn for_subcommand(&self, word: &str, is_file: impl Fn(&str) -> bool) -> Vec<String> {
        if is_path(word, &is_file) {
            let missing = (!is_file(word)).then(|| format!("the file {word} does not exist"));
            return std::iter::once(to("run with this file", &format!("-c {word}"))).chain(missing).collect();
        }
        let file = self.file();
        let foreground = || to("run in the foreground", &format!("-c {file}"));
        let background = || to("run in the background", &format!("-c {file} -d"));
        match word {
            "start" | "up" | "launch" => vec![background(), foreground()],
            "daemon" | "background" => vec![background()],
            "run" | "serve" | "server" | "foreground" => vec![foreground()],
            "restart" => vec![
                to("replace the process without downtime", "upgrade"),
                to("apply changes of the configuration file", "reload"),
            ],
            "validate" | "verify" | "test" | "config" | "configtest" | "lint" => vec![
                to("check a configuration file", &format!("check {file}")),
                to("also check its ports", &format!("-t -c {file}")),
            ],
            "quit" | "shutdown" | "exit" | "halt" | "end" | "down" | "terminate" => {
                vec![to("finish the requests in flight and end", "stop")]
            }
            "kill" => vec![to("end at once, without a drain", "stop --now")],
            "log" | "logs" | "tail" => vec![
                to("follow changes of state", "events --follow"),
                "the log is in the file of the key `error_log`, or on standard error".to_owned(),
            ],
            "info" | "show" | "list" | "ps" | "stats" | "top" | "pools" | "backends" => {
                vec![to("show the state of the daemon", "status")]
            }
            "health" | "ready" | "ping" => vec![to("test whether the daemon is ready", "healthcheck")],
            "version" => vec![to("print the version", "--version")],
            "reopen" | "rotate" | "logrotate" => vec![reopen()],
            _ => Vec::new(),
        }
    }

    /// Returns the tips for an argument that clap does not expect.
    fn for_argument(&self, word: &str, is_file: impl Fn(&str) -> bool) -> Vec<String> {
        let tip = match (self.subcommand, word) {
            (_, "-f" | "--file" | "--config") => to("select the configuration file", "-c FILE"),
            (_, "-v") => to("print the version", "--version"),
            (Some("proxy"), "-d" | "--daemon" | "-t" | "--test" | "-u" | "--upgrade") => {
                format!("to use this option, write: load_balancer {word} proxy …")
            }
            (Some("check"), "-t" | "--test") => {
                to("check everything that a start needs", &format!("-t -c {}", self.file()))
            }
            (_, "-s" | "--signal") => return self.for_nginx_signal(),
            (
                Some(name @ ("status" | "events" | "explain" | "check")),
                "--json" | "-j" | "-o" | "--output",
            ) => to("print JSON", &format!("{name} --format json")),
            (Some("explain"), url) if url.contains('/') => {
                let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
                let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                let host = if host.is_empty() { String::new() } else { format!(" --host {host}") };
                to(
                    "explain this request",
                    &format!("explain{host} --path {}", if path.is_empty() { "/" } else { path }),
                )
            }
            (Some("proxy"), file) if is_path(file, &is_file) => {
                to("run with this file", &format!("-c {file}"))
            }
            (Some(name), file) if is_path(file, &is_file) => {
                to("select the configuration file", &format!("{name} -c {file}"))
            }
            (Some("proxy"), address) if !is_option(address) => {
                to("name a backend", &format!("proxy --to {}", with_host(address)))
            }
            _ => return Vec::new(),
        };
        vec![tip]
    }

    /// Returns the tip for `nginx -s SIGNAL`.
    fn for_nginx_signal(&self) -> Vec<String> {
        let tip = match self.after("-s").or_else(|| self.after("--signal")) {
            Some("reload") => to("apply changes of the configuration file", "reload"),
            Some("quit") => to("finish the requests in flight and end", "stop"),
            Some("stop") => to("end at once, without a drain", "stop --now"),
            Some("reopen") => reopen(),
            _ => return Vec::new(),
        };
        vec![tip]
    }

    /// Returns the tip for a backend that is named without its pool.
    fn for_missing_argument(&self) -> Vec<String> {
        let Some(name) = self.subcommand else { return Vec::new() };
        let address = self.words.iter().find(|word| word.parse::<SocketAddr>().is_ok());
        let tip = |address| to("name a backend", &format!("{name} POOL {address}"));
        address.filter(|_| name != "proxy").map(tip).into_iter().collect()
    }
}

/// Returns the address of a backend in the form that `--to` accepts. A port alone stands for this machine.
fn with_host(address: &str) -> String {
    let port = address.strip_prefix(':').unwrap_or(address);
    if port.parse::<u16>().is_ok() { format!("localhost:{port}") } else { address.to_owned() }
}

fn reopen() -> String {
    "to reopen the log files, send SIGUSR1 to the process".to_owned()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::Cli;

    /// Returns the tips for a command line.
    fn tips(line: &str) -> Vec<String> {
        let words = std::iter::once("load_balancer").chain(line.split(' ')).map(OsString::from);
        let error = Cli::read(words).expect_err("the command line is wrong").to_string();
        error.lines().filter_map(|line| line.strip_prefix("  tip: ")).map(str::to_owned).collect()
    }

    #[test]
    fn a_word_of_other_programs_gets_the_right_command() {
        for (line, command) in [
            ("start", "load_balancer -c FILE -d"),
            ("-c lb.yaml start", "load_balancer -c lb.yaml -d"),
            ("run", "load_balancer -c FILE"),
            ("serve", "load_balancer -c FILE"),
            ("restart", "load_balancer upgrade"),
            ("validate", "load_balancer check FILE"),
            ("test", "load_balancer check FILE"),
            ("config", "load_balancer check FILE"),
            ("quit", "load_balancer stop"),
            ("kill", "load_balancer stop --now"),
            ("logs", "load_balancer events --follow"),
            ("list", "load_balancer status"),
            ("version", "load_balancer --version"),
            ("-s reload", "load_balancer reload"),
            ("-s stop", "load_balancer stop --now"),
            ("-f lb.yaml", "load_balancer -c FILE"),
            ("status --json", "load_balancer status --format json"),
            ("status lb.yaml", "load_balancer status -c lb.yaml"),
            ("reload /etc/lb.yaml", "load_balancer reload -c /etc/lb.yaml"),
            ("proxy 127.0.0.1:8081", "load_balancer proxy --to 127.0.0.1:8081"),
            ("proxy 8081", "load_balancer proxy --to localhost:8081"),
            ("proxy :8081", "load_balancer proxy --to localhost:8081"),
            ("proxy lb.yaml", "load_balancer -c lb.yaml"),
            ("explain http://a.test/b", "load_balancer explain --host a.test --path /b"),
            ("explain /b", "load_balancer explain --path /b"),
            ("drain 10.0.0.1:80", "load_balancer drain POOL 10.0.0.1:80"),
            ("lb.yaml", "load_balancer -c lb.yaml"),
            ("proxy --to 10.0.0.1:80 -d", "load_balancer -d proxy …"),
            ("check -t", "load_balancer -t -c FILE"),
        ] {
            let tips = tips(line);
            assert!(tips.first().is_some_and(|tip| tip.ends_with(command)), "{line}: {tips:?}");
            assert!(tips.iter().all(|tip| !tip.contains("similar")), "{line}: {tips:?}");
        }
    }

    #[test]
    fn a_file_that_does_not_exist_is_named_as_missing() {
        assert!(tips("nowhere/lb.yaml").contains(&"the file nowhere/lb.yaml does not exist".to_owned()));
        assert_eq!(tips("/etc/passwd").len(), 1);
    }

    #[test]
    fn a_word_without_a_tip_keeps_the_suggestion_of_clap() {
        assert_eq!(tips("reloat"), ["a similar subcommand exists: 'reload'"]);
        assert_eq!(tips("nonsense"), Vec::<String>::new());
    }

    #[test]
    fn no_tip_is_longer_than_a_terminal() {
        for word in ["start", "restart", "validate", "quit", "kill", "logs", "list", "health", "reopen"] {
            assert!(tips(word).iter().all(|tip| tip.chars().count() <= 73), "{word}: {:?}", tips(word));
        }
    }
}
