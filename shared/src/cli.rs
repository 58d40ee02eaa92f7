//! The command line: Pingora's four flags, with the meaning they have in its quick start, and our verbs.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use lb_service::config::FromText;
use lb_service::listener::ListenAddress;

/// A load balancer: spreads HTTP requests over backends, leaves out those that fail their health checks, and changes
/// without losing a request.
///
/// Without a verb it runs with the file given by --conf, else $LB_CONFIG, else ./load_balancer.yaml, else
/// /etc/load_balancer/load_balancer.yaml; with none of them there, it shows the demo.
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
    /// The configuration file
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

/// Arguments of `proxy`.
#[derive(Args, Debug)]
pub struct ProxyArgs {
    /// A backend, as IP address and port; repeat it for more
    #[arg(long, value_name = "ADDRESS", required = true)]
    pub to: Vec<SocketAddr>,
    /// Where to listen
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
    /// How problems are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Print the configuration in effect, with all defaults
    #[arg(long)]
    pub print: bool,
    /// Explain a problem by its id, such as LB001, and exit
    #[arg(long, value_name = "ID")]
    pub explain: Option<String>,
}

/// How problems are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// With the line and a caret, for people
    Text,
    /// For programs
    Json,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done; 1 could not start, or failed while running; 2 the command line or the configuration is wrong (starting again will
not help); 3 requests were cut: the drain ran out of time, or a second signal came.

Signals: TERM and INT finish the requests in flight and end, a second one ends at once; QUIT offers the listening
sockets to a process started with --upgrade; USR1 reopens the log files.";

/// The manual page, in roff.
///
/// # Errors
/// When `out` cannot be written to.
pub fn manual(out: &mut impl std::io::Write) -> std::io::Result<()> {
    clap_mangen::Man::new(Cli::command()).render(out)
}

/// The completion script for `shell`.
pub fn completions(shell: Shell, out: &mut impl std::io::Write) {
    clap_complete::generate(shell, &mut Cli::command(), "load_balancer", out);
}

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
    fn the_manual_and_the_completions_know_the_verbs() {
        let mut manual_page = Vec::new();
        manual(&mut manual_page).unwrap();
        assert!(String::from_utf8(manual_page).unwrap().contains("demo"));
        let mut script = Vec::new();
        completions(Shell::Bash, &mut script);
        assert!(String::from_utf8(script).unwrap().contains("healthcheck"));
    }
}
