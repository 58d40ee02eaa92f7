//! The manual page: a single page for all subcommands.

use std::fmt::Write as _;
use std::io;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

/// The entries of a section: a term and its description.
type Entries = [(&'static str, &'static str)];

const EXIT_STATUS: &Entries = &[
    ("0", "The command succeeded. A daemon finished all requests."),
    ("1", "The daemon could not start, or the command failed while it ran."),
    ("2", "The command line or the configuration is wrong. A restart does not help."),
    (
        "3",
        "The daemon cut off requests: the drain timed out, or a second signal arrived. The subcommand stop exits with \
         the same code, unless --now was given.",
    ),
];

const SIGNALS: &Entries = &[
    ("SIGTERM, SIGINT", "Drain and end. A second signal ends the process at once."),
    ("SIGHUP", "Reload the configuration file."),
    ("SIGUSR1", "Reopen the error log and the access log, for log rotation."),
    ("SIGUSR2", "Upgrade: start a new process, and drain once that process accepts requests."),
    ("SIGQUIT", "Offer the listening sockets for one minute to a process that is started with --upgrade."),
];

const ENVIRONMENT: &Entries = &[
    ("LB_CONFIG", "The configuration file, unless --conf names one."),
    (
        "RUST_LOG",
        "The log level: none, error, warn, info, debug, trace, levels of single modules, or both, such as \
         info,health_service=debug. It overrides the key log_level of the configuration.",
    ),
    (
        "XDG_RUNTIME_DIR, TMPDIR",
        "The place of the runtime directory for a user other than root: $XDG_RUNTIME_DIR/load_balancer, or else \
         load_balancer-UID in $TMPDIR or in /tmp.",
    ),
    (
        "NOTIFY_SOCKET, WATCHDOG_USEC",
        "Set by systemd for a service of Type=notify. The daemon then reports its state to systemd.",
    ),
    ("NO_COLOR", "If it is set, problems of the configuration are printed without colours."),
    ("any other variable", "The configuration can use it in a value, as ${NAME} or ${NAME:-default}."),
];

const FILES: &Entries = &[
    (
        "./load_balancer.yaml, /etc/load_balancer/load_balancer.yaml",
        "The configuration file, unless --conf or LB_CONFIG names one. The first that exists is used.",
    ),
    (
        "/run/load_balancer",
        "The runtime directory of a daemon that root has started. It belongs to the user that the daemon runs as. It has \
         the files below, unless the configuration gives their paths. If the configuration file is not the one in \
         /etc, its name and a hash of its path are part of their names.",
    ),
    (
        "control.sock",
        "The control socket, through which subcommands reach the running daemon (control.socket).",
    ),
    ("load_balancer.pid", "The PID of a daemon in the background (pid_file)."),
    ("upgrade.sock", "The socket through which an upgrade passes the listening sockets (upgrade_sock)."),
];

const EXAMPLES: &Entries = &[
    (
        "load_balancer proxy --to 10.0.0.1:8080 --to 10.0.0.2:8080",
        "Balance requests between two backends, without a file.",
    ),
    ("load_balancer -c /etc/lb.yaml -t", "Check everything that a start with this file needs."),
    (
        "load_balancer -c /etc/lb.yaml -d",
        "Start in the background, and return when the daemon accepts requests.",
    ),
    ("load_balancer reload --dry-run", "Show what a reload would change."),
    (
        "load_balancer drain web 10.0.0.1:8080 --wait",
        "Drain a backend of the pool web, and return when it has no request in flight.",
    ),
    ("load_balancer explain --host example.com --path /cart", "Show where this request would go, and why."),
    ("load_balancer status --watch", "Show problems and state, refreshed every second."),
];

/// Returns the page in roff.
pub(super) fn page(mut command: Command) -> io::Result<String> {
    command.build();
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    subcommands(&command, &mut page)?;
    for (title, entries) in [
        ("EXIT STATUS", EXIT_STATUS),
        ("SIGNALS", SIGNALS),
        ("ENVIRONMENT", ENVIRONMENT),
        ("FILES", FILES),
        ("EXAMPLES", EXAMPLES),
    ] {
        section(title, entries).to_writer(&mut page)?;
    }
    Ok(once(&String::from_utf8_lossy(&page)))
}

fn subcommands(command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    let mut heading = Roff::new();
    heading.control("SH", ["SUBCOMMANDS"]);
    heading.to_writer(page)?;
    for subcommand in command.get_subcommands().filter(|subcommand| is_described(subcommand)) {
        let mut about = Roff::new();
        let usage = subcommand.clone().render_usage().to_string();
        about.control("SS", [usage.trim_start_matches("Usage: ")]);
        about.text([roman(subcommand.get_about().map(ToString::to_string).unwrap_or_default() + ".")]);
        about.to_writer(page)?;
        options(subcommand, page)?;
    }
    Ok(())
}

/// Removes clap's own section, which repeats the page.
fn is_described(subcommand: &Command) -> bool {
    !subcommand.is_hide_set() && subcommand.get_name() != "help"
}

/// Writes the options of one subcommand below its heading, without `--help`, which all of them have.
fn options(subcommand: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    let quiet = subcommand.clone().mut_arg("help", |help| help.hide(true));
    if quiet.get_arguments().all(clap::Arg::is_hide_set) {
        return Ok(());
    }
    let mut section = Vec::new();
    Man::new(quiet).render_options_section(&mut section)?;
    let section = String::from_utf8_lossy(&section);
    page.extend(
        section
            .lines()
            .filter(|line| *line != ".SH OPTIONS")
            .flat_map(|line| [line, "\n"])
            .collect::<String>()
            .bytes(),
    );
    Ok(())
}

fn section(title: &str, entries: &Entries) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", [title]);
    for (name, text) in entries {
        roff.control("TP", []);
        roff.text([bold(*name)]);
        roff.text([Inline::Roman((*text).to_owned())]);
    }
    roff
}

/// Joins the parts, keeping only the first of their equal preambles.
fn once(page: &str) -> String {
    let is_preamble = |line: &str| line.starts_with(".ie \\n(.g") || line.starts_with(".el .ds Aq");
    let (preamble, rest): (Vec<&str>, Vec<&str>) = page.lines().partition(|line| is_preamble(line));
    let mut text = String::new();
    for line in preamble.into_iter().take(2).chain(rest) {
        let _ = writeln!(text, "{line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> String {
        page(super::super::command()).unwrap()
    }

    #[test]
    fn the_page_has_all_sections_and_all_subcommands() {
        let page = text();
        for title in
            ["NAME", "OPTIONS", "SUBCOMMANDS", "EXIT STATUS", "SIGNALS", "ENVIRONMENT", "FILES", "EXAMPLES"]
        {
            let heading = format!(".SH {title}");
            let quoted = format!(".SH \"{title}\"");
            assert!(page.lines().any(|line| line == heading || line == quoted), "{title}: {page}");
        }
        for subcommand in super::super::command().get_subcommands() {
            let name = subcommand.get_name();
            let is_there = page.lines().any(|line| {
                line.strip_prefix(".SS \"load_balancer ")
                    .is_some_and(|rest| rest.split([' ', '"']).next() == Some(name))
            });
            assert_eq!(is_there, is_described(subcommand), "{name}: {page}");
        }
    }

    #[test]
    fn no_other_page_is_named() {
        assert!(!text().contains("(1)"), "{}", text());
    }

    #[test]
    fn the_preamble_comes_once() {
        assert_eq!(text().matches(".el .ds Aq").count(), 1);
    }
}
