//! Help, manual page and completions, and the end of every subcommand whose output is no longer read.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;
use tests::daemon::path_str;
use tests::tools::missing;
use tests::wait::{self, LONG};
use tests::{Lab, Origin};

use crate::pool;

/// The subcommands that the help lists.
fn subcommands(lab: &Lab) -> Vec<String> {
    let help = lab.run(&["--help"]).stdout;
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = listed.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("    "));
    let names = names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned);
    names.filter(|name| name != "help").collect()
}

#[test]
fn every_help_fits_into_eighty_columns() {
    let lab = Lab::new();
    let names = subcommands(&lab);
    assert!(names.len() > 20 && !names.contains(&"names".to_owned()), "{names:?}");
    for arguments in [vec![]].into_iter().chain(names.iter().map(|name| vec![name.as_str()])) {
        for help in ["-h", "--help"] {
            let mut command = lab.command();
            command.args(&arguments).arg(help).env("COLUMNS", "80");
            let output = command.output().unwrap();
            assert!(output.status.success(), "{arguments:?} {help}");
            let text = String::from_utf8(output.stdout).unwrap();
            let long: Vec<_> = text.lines().filter(|line| line.chars().count() > 80).collect();
            assert!(long.is_empty(), "{arguments:?} {help}: {long:?}");
        }
    }
}

#[test]
fn the_manual_page_renders_without_warnings() {
    let lab = Lab::new();
    let page = lab.write("load_balancer.1", &lab.run(&["man"]).stdout);
    let mut man = Command::new("man");
    man.args(["--warnings", "-l", path_str(&page)]).env("MANWIDTH", "80").env("MANROFFOPT", "-ww");
    let output = man.stdin(Stdio::null()).output().unwrap_or_else(|error| missing("man", &error));
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    for title in ["SUBCOMMANDS", "EXIT STATUS", "SIGNALS", "ENVIRONMENT", "FILES", "EXAMPLES"] {
        assert!(text.lines().any(|line| line.contains(title)), "{title}: {text}");
    }
    assert!(!text.contains("load_balancer-drain(1)"), "there is no such page: {text}");
}

#[test]
fn bash_completion_offers_all_subcommands_and_their_options() {
    let lab = Lab::new();
    let script = lab.run(&["completions", "bash"]).stdout;
    let path = lab.write("completions.bash", &script);
    let completed = |words: &str| {
        let count = words.split(' ').count() - 1;
        let program = format!(
            "source {}; COMP_WORDS=({}); COMP_CWORD={count}; COMP_LINE='{words}'; _load_balancer load_balancer \
             \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            path.display(),
            words.split(' ').map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ")
        );
        let output = Command::new("bash").args(["--norc", "-c", &program]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let offered = completed("load_balancer ");
    for name in &subcommands(&lab) {
        assert!(offered.contains(name), "{name}: {offered:?}");
    }
    assert!(!offered.contains(&"names".to_owned()), "{offered:?}");
    assert!(completed("load_balancer status --").contains(&"--conf".to_owned()));
    assert!(!completed("load_balancer schema --").contains(&"--conf".to_owned()));
}

/// Runs the program, reads the first line of its output, and closes the pipe. The program must then end by itself
/// without an error message. Returns the line.
#[track_caller]
fn head(lab: &Lab, arguments: &[&str]) -> String {
    let mut command = lab.command();
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut reader = BufReader::with_capacity(16, child.stdout.take().unwrap());
    reader.read_line(&mut line).unwrap();
    drop(reader);
    let status = wait::poll(LONG, || child.try_wait().unwrap());
    if status.is_none() {
        child.kill().unwrap();
    }
    let said = child.wait_with_output().unwrap().stderr;
    let said = String::from_utf8_lossy(&said).into_owned();
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{arguments:?}: {said}");
    assert!(!said.contains("panicked") && !said.contains("roken pipe"), "{arguments:?}: {said}");
    line
}

#[test]
fn every_subcommand_ends_when_the_reader_closes_the_pipe() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let _daemon = lab.start(&pool(&[&origin], ""));
    let config = lab.path("conf.yaml");
    let config = path_str(&config);
    for arguments in [
        &["events", "--follow", "-c", config][..],
        &["status", "--watch", "-c", config],
        &["status", "--watch", "--format", "json", "-c", config],
        &["check", "--print", "-c", config],
        &["explain", "-c", config],
        &["schema"],
        &["man"],
        &["completions", "bash"],
        &["completions", "zsh"],
        &["--help"],
    ] {
        assert!(!head(&lab, arguments).is_empty(), "{arguments:?}");
    }
    let schema: Value = serde_json::from_str(&lab.run(&["schema"]).stdout).unwrap();
    assert!(schema.is_object(), "a reader that reads to the end gets the whole output");
}

#[test]
fn the_demo_ends_when_the_reader_closes_the_pipe() {
    assert!(head(&Lab::new(), &["demo"]).contains("demo"));
}
