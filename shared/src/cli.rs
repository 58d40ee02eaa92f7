//! The command line: Pingora's four flags, with the meaning that they have in its quick start, and our subcommands.
//!
//! Help, manual page and completions come from these types. It shows no subcommand that is
//! hidden, and no option that a subcommand rejects.

mod completion;
mod manual;
mod tips;

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, value_parser};
use clap_complete::Shell;
use lb_service::listener::ListenAddress;
use lb_service::pool::{UpstreamAddress, Weight};
use metrics_service::config::MetricsConfig;
use serde_json::json;
use values::{BackendAddress, PositiveDuration, Rejection, Scalar};

use crate::config::loopback;

/// Balance HTTP requests between backends, skip failing backends, and reload or upgrade without losing a request
///
/// Without a subcommand, the daemon starts. It reads the file given with --conf, or else the file that the environment
/// variable LB_CONFIG names, or else ./load_balancer.yaml, or else /etc/load_balancer/load_balancer.yaml. If no file is
/// given and none exists, the demo starts. A demo in the background is never ready: its /readyz responds 503.
#[derive(Debug, Parser)]
#[command(name = "load_balancer", version, max_term_width = WIDTH, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(subcommand)]
    pub(crate) command: Option<CliCommand>,
}

/// Pingora's flags.
#[derive(Args, Debug, Default, Clone)]
pub(crate) struct RunArgs {
    /// The configuration file; - reads standard input
    #[arg(short, long, value_name = "FILE", global = true)]
    pub conf: Option<PathBuf>,
    /// Run in the background. The command returns when the daemon accepts requests, or prints why it cannot
    #[arg(short, long)]
    pub daemon: bool,
    /// Check everything that a start would need (keys, files, certificates, ports), and exit
    #[arg(short, long)]
    pub test: bool,
    /// Take over the listening sockets of a running process that has received SIGQUIT. That process then finishes its
    /// requests and ends
    #[arg(short, long)]
    pub upgrade: bool,
    /// With --test: exit with 2 if there are warnings
    #[arg(long)]
    pub strict: bool,
}

/// A subcommand.
#[derive(Debug, Subcommand)]
pub(crate) enum CliCommand {
    /// Balance requests between the given backends, without a configuration file
    Proxy(ProxyArgs),
    /// Run the load balancer in front of three built-in backends, one of which fails from time to time
    Demo(DemoArgs),
    /// Check the configuration and report every problem; --test also checks whether the ports are free
    Check(CheckArgs),
    /// Test whether the daemon of this configuration is ready, and exit with 0 if so or with 1 if not; for containers
    Healthcheck,
    #[command(flatten)]
    Daemon(DaemonCommand),
    /// Print the JSON Schema of the configuration file, for editors
    Schema,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page
    Man,
}

/// A subcommand for a running daemon, which is found by the key `control.socket` of the configuration, even if other
/// keys are wrong.
#[derive(Debug, Subcommand)]
pub(crate) enum DaemonCommand {
    /// Show the problems and the state of the running daemon
    Status {
        #[command(flatten)]
        to: Daemon,
        /// Refresh every second
        #[arg(long)]
        watch: bool,
        /// The output format
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Show the last 1000 events of the running daemon: health, ejections, reloads, changes by operators
    Events {
        #[command(flatten)]
        to: Daemon,
        /// Wait for further events and show them
        #[arg(long)]
        follow: bool,
        /// Show only the last N events
        #[arg(long, value_name = "N", value_parser = number)]
        last: Option<usize>,
        /// The output format, one line per event
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Show where the running daemon would send a request, and why, without sending it
    Explain(ExplainArgs),
    /// Reload the configuration of the running daemon, and show what changed or what is wrong
    Reload {
        #[command(flatten)]
        to: Daemon,
        /// Show what would change without changing anything
        #[arg(long)]
        dry_run: bool,
        /// Keep the changes made by drain, weight, add and similar subcommands, which a reload drops otherwise
        #[arg(long)]
        keep_runtime: bool,
    },
    /// Replace the running daemon with a new process, which loads the current executable and file, without losing a
    /// request. If the new process fails, the old one continues to serve
    Upgrade {
        #[command(flatten)]
        to: Daemon,
    },
    /// Drain the running daemon and wait until it has exited
    Stop {
        #[command(flatten)]
        to: Daemon,
        /// Exit at once and cut off the requests in flight
        #[arg(long)]
        now: bool,
        /// Wait for at most this time, such as 90s. Then exit with 1, while the daemon continues to drain
        #[arg(long, value_name = "TIME", value_parser = duration)]
        timeout: Option<Duration>,
    },
    /// Send a backend only the requests of its existing sessions. In a pool without `sticky`, `drain` has the same
    /// effect as `disable`
    Drain {
        #[command(flatten)]
        backend: BackendArgs,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// End the drain of a backend, so that it gets all requests again
    Undrain(BackendArgs),
    /// Send requests to a disabled backend again
    Enable(BackendArgs),
    /// Stop sending requests to a backend, even those of its sessions
    Disable(BackendArgs),
    /// Change the share of the traffic that a backend gets
    Weight {
        #[command(flatten)]
        backend: BackendArgs,
        /// The share of the backend relative to the others, 1 to 1000
        #[arg(value_parser = weight)]
        weight: Weight,
    },
    /// Add a backend to a pool until the next reload
    Add {
        #[command(flatten)]
        backend: BackendArgs,
        /// The share of the backend relative to the others, 1 to 1000
        #[arg(long, value_parser = weight, default_value = "1")]
        weight: Weight,
        /// Use the backend only while no other backend of the pool is available
        #[arg(long)]
        backup: bool,
        /// The limit of requests in flight at the backend; default: the limit of the pool's other backends
        #[arg(long, value_name = "N")]
        max_requests: Option<NonZeroU32>,
    },
    /// Remove a backend from its pool until the next reload, and finish its requests in flight
    Remove {
        #[command(flatten)]
        backend: BackendArgs,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Show or change what the running daemon logs
    LogLevel {
        #[command(flatten)]
        to: Daemon,
        /// The new level (none, error, warn, info, debug, trace), levels of single modules, or both, such as
        /// `info,health_service=debug`; without it, show the level in effect
        filter: Option<String>,
    },
    /// Print the names of the pools, or of the backends of a pool, for completion
    #[command(hide = true)]
    Names {
        #[command(flatten)]
        to: Daemon,
        /// The pool
        pool: Option<String>,
    },
}

/// The daemon that a subcommand is for.
#[derive(Args, Debug, Clone)]
pub(crate) struct Daemon {
    /// The control socket of the daemon; default: the one of its configuration
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// One backend of the daemon.
#[derive(Args, Debug)]
pub(crate) struct BackendArgs {
    #[command(flatten)]
    pub to: Daemon,
    /// The name of the pool
    pub pool: String,
    /// The address of the backend, such as 10.0.0.1:8080, localhost:8080 or unix:/path
    #[arg(value_parser = backend)]
    pub backend: UpstreamAddress,
}

/// Whether to wait for a backend.
#[derive(Args, Debug)]
pub struct WaitArgs {
    /// Wait until the backend has no request in flight
    #[arg(long)]
    pub wait: bool,
    /// Wait for at most this time, such as 90s. Then exit with 1
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = duration)]
    pub timeout: Option<Duration>,
}

/// Arguments of `explain`.
#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    pub to: Daemon,
    /// The host of the request
    #[arg(long)]
    pub host: Option<String>,
    /// The path and the query
    #[arg(long, default_value = "/")]
    pub path: String,
    /// The method
    #[arg(long, default_value = "GET")]
    pub method: String,
    /// A header, written `Name: value`; can be repeated
    #[arg(long, value_name = "HEADER")]
    pub header: Vec<String>,
    /// The address of the client
    #[arg(long, value_name = "IP")]
    pub client: Option<IpAddr>,
    /// The name of the listener; default: the first listener
    #[arg(long, value_name = "NAME")]
    pub listener: Option<String>,
    /// The output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Print only the token for the header X-Lb-Explain. The response to a request with this header says how the
    /// request was routed
    #[arg(long)]
    pub token: bool,
}

impl Cli {
    /// Reads the command line, the program's name first.
    ///
    /// # Errors
    /// When the command line is wrong or asks for help.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let (command, arguments) = (command(), arguments.into_iter().collect::<Vec<_>>());
        let words: Vec<_> =
            arguments.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
        let names: Vec<_> = command.get_subcommands().map(|one| one.get_name().to_owned()).collect();
        let matches = command.try_get_matches_from(arguments);
        let cli = matches.and_then(|matches| Self::from_arg_matches(&matches));
        cli.map_err(|error| tips::add(error, &words, &names, |word| Path::new(word).is_file()))
    }
}

impl DaemonCommand {
    /// Returns the daemon that the subcommand is for.
    pub(crate) fn daemon(&self) -> &Daemon {
        match self {
            Self::Status { to, .. }
            | Self::Events { to, .. }
            | Self::Reload { to, .. }
            | Self::Upgrade { to }
            | Self::Stop { to, .. }
            | Self::LogLevel { to, .. }
            | Self::Names { to, .. } => to,
            Self::Explain(args) => &args.to,
            Self::Undrain(backend)
            | Self::Enable(backend)
            | Self::Disable(backend)
            | Self::Drain { backend, .. }
            | Self::Weight { backend, .. }
            | Self::Add { backend, .. }
            | Self::Remove { backend, .. } => &backend.to,
        }
    }
}

fn weight(text: &str) -> Result<Weight, String> {
    text.parse().ok().and_then(Weight::new).ok_or_else(|| "a weight is 1 to 1000".to_owned())
}

fn backend(text: &str) -> Result<UpstreamAddress, Rejection> {
    BackendAddress::from_text(text).map(|address| UpstreamAddress::resolve(&address, loopback()))
}

fn duration(text: &str) -> Result<Duration, Rejection> {
    <PositiveDuration>::from_text(text).map(PositiveDuration::get)
}

/// Parses one `--to`. The hint for several addresses in a configuration would be wrong here.
fn backend_to(text: &str) -> Result<BackendAddress, Rejection> {
    if text.contains(',') {
        let each = text.split(',').map(|address| format!("--to {}", address.trim())).collect::<Vec<_>>();
        return Err(format!("it has more than one address\nwrite {}", each.join(" ")).into());
    }
    BackendAddress::from_text(text)
}

fn metrics(text: &str) -> Result<SocketAddr, String> {
    let config = serde_json::from_value::<MetricsConfig>(json!({"address": text}));
    config.map(|config| config.address()).map_err(|error| error.to_string())
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a number".to_owned())
}

/// Arguments of `proxy`.
#[derive(Args, Debug)]
pub(crate) struct ProxyArgs {
    /// A backend, such as 10.0.0.1:8080, localhost:8080 or unix:/path; can be repeated
    #[arg(long, value_name = "ADDRESS", required = true, value_parser = backend_to)]
    pub to: Vec<BackendAddress>,
    /// The address to listen on: an address and a port, :PORT for all IPv4 addresses, or unix:/path
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:6188", value_parser = ListenAddress::from_text)]
    pub listen: ListenAddress,
    /// The address of metrics, readiness and status
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6192", value_parser = metrics)]
    pub metrics: SocketAddr,
}

/// Arguments of `demo`.
#[derive(Args, Debug, Default)]
pub(crate) struct DemoArgs {
    /// Check that every backend is used and that a broken backend is skipped, then exit
    #[arg(long)]
    pub once: bool,
}

/// Arguments of `check`.
#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// The file to check, as with --conf; - reads standard input
    pub file: Option<PathBuf>,
    /// The output format of the problems
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Print the configuration with all defaults filled in; defaults that depend on the machine are comments
    #[arg(long)]
    pub print: bool,
    /// Exit with 2 if there are warnings
    #[arg(long)]
    pub strict: bool,
    /// Explain the problem with this ID, such as LB001, and exit
    #[arg(long, value_name = "ID")]
    pub explain: Option<String>,
}

/// An output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Text for people
    Text,
    /// JSON for programs
    Json,
}

/// The widest line of the help, on a terminal of any width.
const WIDTH: usize = 80;

const AFTER_HELP: &str = "\
Exit codes: 0 success; 1 the start or the subcommand failed; 2 the command line or the configuration is wrong, so a \
restart does not help; 3 requests were cut off because the drain timed out or a second signal arrived. `stop` exits \
with 3 as well if requests were cut off, unless --now was given.

Signals: SIGTERM and SIGINT drain the process, and a second one ends it at once; SIGHUP reloads the configuration; \
SIGUSR1 reopens the log files; SIGUSR2 upgrades; SIGQUIT offers the listening sockets to a process that is started \
with --upgrade.";

/// Subcommands that reject `--conf -`: standard input does not identify a running daemon.
const WITHOUT_INPUT: [&str; 3] = ["reload", "upgrade", "stop"];

/// Subcommands that reject `--conf`. They parse it so that the error can say why.
const WITHOUT_FILE: [&str; 5] = ["proxy", "demo", "schema", "completions", "man"];

/// Returns the command line as clap sees it.
fn command() -> Command {
    let command = Cli::command();
    let names: Vec<_> =
        command.get_subcommands().map(|subcommand| subcommand.get_name().to_owned()).collect();
    // All of them are changed, because a changed subcommand moves to the end.
    names.into_iter().fold(command, |command, name| {
        let conf = match name.as_str() {
            name if WITHOUT_FILE.contains(&name) => Some(conf().hide(true)),
            name if WITHOUT_INPUT.contains(&name) => {
                Some(conf().help("The configuration file of the daemon"))
            }
            _ => None,
        };
        command.mut_subcommand(name, |subcommand| subcommand.args(conf))
    })
}

/// Returns the option `--conf` for a subcommand whose help differs.
fn conf() -> Arg {
    Arg::new("conf").short('c').long("conf").value_name("FILE").value_parser(value_parser!(PathBuf))
}

/// Writes the manual page in roff.
///
/// # Errors
/// When `out` cannot be written to.
pub(crate) fn manual(out: &mut impl Write) -> io::Result<()> {
    out.write_all(manual::page(command())?.as_bytes())
}

/// The completion script for `shell`.
pub(crate) fn completions(shell: Shell) -> Vec<u8> {
    completion::script(shell, command())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn the_quick_starts_flags_mean_what_they_mean_there() {
        let cli = Cli::try_parse_from(["load_balancer", "-c", "conf.yaml", "-d", "-u"]).unwrap();
        assert_eq!(cli.run.conf, Some("conf.yaml".into()));
        assert!(cli.run.daemon && cli.run.upgrade && !cli.run.test && cli.command.is_none());
    }

    #[test]
    fn orders_name_a_pool_and_an_address() {
        let parse = |words: &str| Cli::try_parse_from(words.split(' '));
        let cli = parse("load_balancer drain web 10.0.0.1:80 --wait --timeout 90s -c conf.yaml").unwrap();
        let Some(CliCommand::Daemon(DaemonCommand::Drain { backend, wait })) = cli.command else {
            panic!("no drain")
        };
        assert_eq!((backend.pool.as_str(), backend.backend), ("web", "10.0.0.1:80".parse().unwrap()));
        assert_eq!((wait.wait, wait.timeout), (true, Some(Duration::from_secs(90))));
        assert_eq!(cli.run.conf, Some("conf.yaml".into()));
        for wrong in [
            "load_balancer drain web",
            "load_balancer drain web nobody",
            "load_balancer drain web 10.0.0.1:80 --timeout 1s",
            "load_balancer weight web 10.0.0.1:80 0",
            "load_balancer weight web 10.0.0.1:80 1001",
            "load_balancer add web 10.0.0.1:80 --max-requests 0",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_value_is_rejected_with_the_right_one() {
        for (words, said) in [
            ("proxy --to 10.0.0.1:80,10.0.0.2:80", "write --to 10.0.0.1:80 --to 10.0.0.2:80"),
            ("proxy --to 10.0.0.1:80 --metrics 9000", "write 127.0.0.1:9000"),
            ("proxy --to 10.0.0.1:80 --metrics :9000", "write 127.0.0.1:9000"),
            ("events --last x", "expected a number"),
        ] {
            let words = std::iter::once("load_balancer").chain(words.split(' '));
            let error = Cli::try_parse_from(words).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    /// The names of all commands, with their parents.
    fn every_command() -> Vec<Vec<String>> {
        let command = command();
        let names = command.get_subcommands().map(|command| vec![command.get_name().to_owned()]);
        std::iter::once(Vec::new()).chain(names).collect()
    }

    #[test]
    fn no_line_of_the_help_is_longer_than_a_terminal() {
        for names in every_command() {
            for help in ["-h", "--help"] {
                let words =
                    ["load_balancer"].into_iter().chain(names.iter().map(String::as_str)).chain([help]);
                let error = Cli::read(words.map(OsString::from)).unwrap_err();
                for line in error.to_string().lines() {
                    assert!(line.chars().count() <= WIDTH, "{names:?} {help}: {line}");
                }
            }
        }
    }

    #[test]
    fn a_subcommand_that_rejects_the_file_does_not_show_it_and_still_reads_it() {
        let run = |words: &str| Cli::read(words.split(' ').map(OsString::from));
        for name in WITHOUT_FILE {
            let help = run(&format!("load_balancer {name} --help")).unwrap_err().to_string();
            assert!(!help.contains("--conf"), "{help}");
        }
        for words in ["load_balancer schema -c a.yaml", "load_balancer -c a.yaml schema"] {
            assert_eq!(run(words).unwrap().run.conf, Some("a.yaml".into()), "{words}");
        }
        let help = run("load_balancer status --help").unwrap_err().to_string();
        assert!(help.contains("--conf"), "{help}");
    }

    #[test]
    fn a_subcommand_that_rejects_standard_input_does_not_offer_it_and_still_reads_a_file() {
        let run = |words: &str| Cli::read(words.split(' ').map(OsString::from));
        for name in WITHOUT_INPUT {
            let help = run(&format!("load_balancer {name} --help")).unwrap_err().to_string();
            assert!(help.contains("--conf <FILE>") && !help.contains("standard input"), "{help}");
            for words in
                [format!("load_balancer {name} -c a.yaml"), format!("load_balancer -c a.yaml {name}")]
            {
                assert_eq!(run(&words).unwrap().run.conf, Some("a.yaml".into()), "{words}");
            }
        }
        assert!(run("load_balancer check --help").unwrap_err().to_string().contains("standard input"));
    }
}
