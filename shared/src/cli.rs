//! The command line: Pingora's four flags, with the meaning they have in its quick start, and our verbs.

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use lb_service::config::{BackendAddress, FromText, PositiveDuration};
use lb_service::listener::ListenAddress;
use lb_service::pool::Weight;

use crate::config::loopback;

/// A load balancer: spreads HTTP requests over backends, leaves out those that fail their health checks, and changes
/// without losing a request.
///
/// Without a verb it runs with the file given by --conf, else $LB_CONFIG, else ./load_balancer.yaml, else
/// /etc/load_balancer/load_balancer.yaml; with none of them there, it shows the demo, which is never taken for ready
/// in the background.
#[derive(Debug, Parser)]
#[expect(missing_docs, reason = "clap would print the fields' documentation in place of the program's")]
#[command(name = "load_balancer", version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(flatten)]
    pub run: RunArgs,
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// Pingora's flags.
#[derive(Args, Debug, Default, Clone)]
pub struct RunArgs {
    /// The configuration file; - for standard input
    #[arg(short, long, value_name = "FILE", global = true)]
    pub conf: Option<PathBuf>,
    /// Run in the background; returns when the daemon serves, or says why it does not
    #[arg(short, long)]
    pub daemon: bool,
    /// Check everything that a start would need (keys, files, certificates, ports), and exit
    #[arg(short, long)]
    pub test: bool,
    /// Take the listening sockets over from a running process that got SIGQUIT, which then finishes its requests and ends
    #[arg(short, long)]
    pub upgrade: bool,
}

/// What to do instead of running with a file.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run without a file: balance between the given backends
    Proxy(ProxyArgs),
    /// Show it: three backends inside this process, one of them broken now and then, and traffic as it flows
    Demo(DemoArgs),
    /// Check the configuration, as --test does but without looking at ports, and say all that is wrong
    Check(CheckArgs),
    /// Exit with 0 when the daemon of this configuration is ready: for containers
    Healthcheck,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would print it")]
    Ask(Ask),
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

/// What a running daemon is asked for. It is found by the key `control.socket` of the configuration, also when the rest of that is wrong.
#[derive(Debug, Subcommand)]
#[expect(
    missing_docs,
    reason = "clap would print the documentation of what is flattened in place of the verb's"
)]
pub enum Ask {
    /// Show whether anything is wrong with the running daemon, since when, and why; and what it is doing
    Status {
        #[command(flatten)]
        to: Daemon,
        /// Show it again each second
        #[arg(long)]
        watch: bool,
        /// How it is printed
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Show what changed in the running daemon: health, ejections, reloads, orders; the latest thousand
    Events {
        #[command(flatten)]
        to: Daemon,
        /// Go on with those to come
        #[arg(long)]
        follow: bool,
        /// Only so many of the latest
        #[arg(long, value_name = "N")]
        last: Option<usize>,
        /// How they are printed: a line each
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Show where the running daemon would send a request, and why; changes nothing
    Explain(ExplainArgs),
    /// Have the running daemon read its file again; says what changed, or what is wrong with it
    Reload {
        #[command(flatten)]
        to: Daemon,
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
        /// Keep what was changed by drain, weight, add and the like, which is dropped otherwise
        #[arg(long)]
        keep_runtime: bool,
    },
    /// Replace the running daemon by the program and the file as they are now; no request is lost, and it goes on if that fails
    Upgrade {
        #[command(flatten)]
        to: Daemon,
    },
    /// Have the running daemon finish its requests and end; waits for that and says how it went
    Stop {
        #[command(flatten)]
        to: Daemon,
        /// End at once; requests in flight are cut
        #[arg(long)]
        now: bool,
        /// How long to wait at most, such as 90s; then the exit code is 1, and the daemon goes on finishing its requests
        #[arg(long, value_name = "TIME", value_parser = duration)]
        timeout: Option<Duration>,
    },
    /// Give a backend no new sessions; those that it has go on
    Drain {
        #[command(flatten)]
        backend: BackendArgs,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Use a backend again that is draining
    Undrain(BackendArgs),
    /// Use a backend again that is disabled
    Enable(BackendArgs),
    /// Give a backend no requests
    Disable(BackendArgs),
    /// Give a backend another share of the traffic
    Weight {
        #[command(flatten)]
        backend: BackendArgs,
        /// Its share relative to the others, 1 to 1000
        #[arg(value_parser = weight)]
        weight: Weight,
    },
    /// Add a backend to a pool, until the file is read again
    Add {
        #[command(flatten)]
        backend: BackendArgs,
        /// Its share relative to the others, 1 to 1000
        #[arg(long, value_parser = weight, default_value = "1")]
        weight: Weight,
        /// Use it only when no other is available
        #[arg(long)]
        backup: bool,
        /// The most requests it is sent at a time; default: what all others of the pool have
        #[arg(long, value_name = "N")]
        max_requests: Option<NonZeroU32>,
    },
    /// Remove a backend from its pool, until the file is read again; its requests in flight are finished
    Remove {
        #[command(flatten)]
        backend: BackendArgs,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Show what the running daemon logs, or change it
    LogLevel {
        #[command(flatten)]
        to: Daemon,
        /// A level (off, error, warn, info, debug, trace), levels of single modules, or both: `info,health_service=debug`
        filter: Option<String>,
    },
    /// Print the names of the pools, or of the backends of a pool: for completion
    #[command(hide = true)]
    Names {
        #[command(flatten)]
        to: Daemon,
        /// The pool
        pool: Option<String>,
    },
}

/// Which daemon is asked.
#[derive(Args, Debug, Clone)]
pub struct Daemon {
    /// The control socket of the daemon; default: what its configuration says
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// One backend of the daemon.
#[derive(Args, Debug)]
pub struct BackendArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would print it")]
    pub to: Daemon,
    /// The name of its pool
    pub pool: String,
    /// Its address, such as 10.0.0.1:8080 or localhost:8080
    #[arg(value_parser = backend)]
    pub backend: SocketAddr,
}

/// Whether to wait for a backend.
#[derive(Args, Debug)]
pub struct WaitArgs {
    /// Return when it works on no request any more
    #[arg(long)]
    pub wait: bool,
    /// How long to wait at most, such as 90s; then the exit code is 1
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = duration)]
    pub timeout: Option<Duration>,
}

/// Arguments of `explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would print it")]
    pub to: Daemon,
    /// The host that the client asks for
    #[arg(long)]
    pub host: Option<String>,
    /// Path and query
    #[arg(long, default_value = "/")]
    pub path: String,
    /// The method
    #[arg(long, default_value = "GET")]
    pub method: String,
    /// A header, as `Name: value`; repeat it for more
    #[arg(long, value_name = "HEADER")]
    pub header: Vec<String>,
    /// The address of the client
    #[arg(long, value_name = "IP")]
    pub client: Option<IpAddr>,
    /// The name of the listener; default: the first
    #[arg(long, value_name = "NAME")]
    pub listener: Option<String>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Only print the token that lets a request ask how it is served: as value of its header X-Lb-Explain
    #[arg(long)]
    pub token: bool,
}

impl Cli {
    /// Reads the command line, the program's name first.
    ///
    /// # Errors
    /// What is wrong with it, or the help that it asks for.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(arguments).map_err(|error| with_tip(error, |word| Path::new(word).is_file()))
    }
}

/// A file without `-c` is taken for a subcommand.
fn with_tip(mut error: clap::Error, is_file: impl Fn(&str) -> bool) -> clap::Error {
    let word = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(word)) => word.clone(),
        _ => return error,
    };
    if is_file(&word) {
        let tip = format!("to run with this file write: load_balancer -c {word}");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

impl Ask {
    /// Which daemon is asked.
    pub fn daemon(&self) -> &Daemon {
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

fn backend(text: &str) -> Result<SocketAddr, String> {
    BackendAddress::from_text(text).map(|address| address.resolve(loopback()))
}

fn duration(text: &str) -> Result<Duration, String> {
    PositiveDuration::from_text(text).map(|PositiveDuration(duration)| duration)
}

/// Arguments of `proxy`.
#[derive(Args, Debug)]
pub struct ProxyArgs {
    /// A backend, such as 10.0.0.1:8080 or localhost:8080; repeat it for more
    #[arg(long, value_name = "ADDRESS", required = true, value_parser = BackendAddress::from_text)]
    pub to: Vec<BackendAddress>,
    /// Where to listen: an address and a port, :PORT for all IPv4 addresses, or unix:/path
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:6188", value_parser = ListenAddress::from_text)]
    pub listen: ListenAddress,
    /// Where metrics, readiness and status can be read
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6192")]
    pub metrics: SocketAddr,
}

/// Arguments of `demo`.
#[derive(Args, Debug, Default)]
pub struct DemoArgs {
    /// Check that every backend is used and a broken one left out, say so, and exit
    #[arg(long)]
    pub once: bool,
}

/// Arguments of `check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The file to check, as with --conf; - for standard input
    pub file: Option<PathBuf>,
    /// How problems are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Print the configuration in effect, with all defaults
    #[arg(long)]
    pub print: bool,
    /// Exit with 2 when there are warnings, too
    #[arg(long)]
    pub strict: bool,
    /// Explain a problem by its id, such as LB001, and exit
    #[arg(long, value_name = "ID")]
    pub explain: Option<String>,
}

/// How something is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done; 1 could not start, or failed while running; 2 the command line or the configuration is wrong (starting again will
not help); 3 requests were cut: the drain ran out of time, or a second signal came; also of `stop`, if it was not told --now.

Signals: TERM and INT finish the requests in flight and end, a second one ends at once; HUP reads the file again; USR2 upgrades;
QUIT offers the listening sockets to a process started with --upgrade; USR1 reopens the log files.";

/// The manual page, in roff.
///
/// # Errors
/// When `out` cannot be written to.
pub fn manual(out: &mut impl Write) -> io::Result<()> {
    clap_mangen::Man::new(Cli::command()).render(out)
}

/// The completion script for `shell`.
pub fn completions(shell: Shell, out: &mut impl Write) {
    clap_complete::generate(shell, &mut Cli::command(), "load_balancer", out);
    if shell == Shell::Bash {
        // A reader that has enough is not a failure.
        let _ = out.write_all(LIVE_NAMES);
    }
}

/// What clap cannot know: the pools and backends of the running daemon.
const LIVE_NAMES: &[u8] = include_bytes!("cli/live_names.bash");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_quick_starts_flags_mean_what_they_mean_there() {
        let cli = Cli::try_parse_from(["load_balancer", "-c", "conf.yaml", "-d", "-u"]).unwrap();
        assert_eq!(cli.run.conf, Some("conf.yaml".into()));
        assert!(cli.run.daemon && cli.run.upgrade && !cli.run.test && cli.verb.is_none());
    }

    #[test]
    fn a_file_without_its_option_is_told_where_it_goes() {
        let said = |is_file: bool| {
            let error = Cli::try_parse_from(["load_balancer", "lb.yaml"]).unwrap_err();
            with_tip(error, |word| is_file && word == "lb.yaml").to_string()
        };
        assert!(said(true).contains("load_balancer -c lb.yaml"), "{}", said(true));
        assert!(!said(false).contains("-c lb.yaml"), "{}", said(false));
    }

    #[test]
    fn orders_name_a_pool_and_an_address() {
        let parse = |words: &str| Cli::try_parse_from(words.split(' '));
        let cli = parse("load_balancer drain web 10.0.0.1:80 --wait --timeout 90s -c conf.yaml").unwrap();
        let Some(Verb::Ask(Ask::Drain { backend, wait })) = cli.verb else { panic!("no drain") };
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
    fn the_manual_and_the_completions_know_the_verbs() {
        let mut manual_page = Vec::new();
        manual(&mut manual_page).unwrap();
        assert!(String::from_utf8(manual_page).unwrap().contains("demo"));
        let mut script = Vec::new();
        completions(Shell::Bash, &mut script);
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains("healthcheck") && script.contains("undrain"));
    }
}
