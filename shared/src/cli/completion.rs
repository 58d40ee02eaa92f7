//! The completion scripts: those that clap makes, without what is hidden, and for Bash the pools and backends of the
//! running daemon.

use clap::builder::PossibleValuesParser;
use clap::{Arg, Command};
use clap_complete::Shell;

use crate::process::logging::LEVELS;

/// The completions that clap does not have: the pools and backends of the running daemon.
const LIVE_NAMES: &[u8] = include_bytes!("live_names.bash");

/// The script for a shell.
pub(super) fn script(shell: Shell, mut command: Command) -> Vec<u8> {
    command.build();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown(&command), "load_balancer", &mut script);
    match shell {
        Shell::Bash => script.extend_from_slice(LIVE_NAMES),
        Shell::Fish => script.extend_from_slice(levels_for_fish().as_bytes()),
        _ => {}
    }
    script
}

/// The line that offers the log levels. clap offers the values of options only.
fn levels_for_fish() -> String {
    let condition = "__fish_load_balancer_using_subcommand log-level";
    format!("complete -c load_balancer -n \"{condition}\" -f -a \"{}\"\n", LEVELS.join(" "))
}

/// The command without hidden subcommands and options: clap offers them.
fn shown(command: &Command) -> Command {
    // Its own options for help and version are among the arguments of a command that is built.
    let bare = Command::new(command.get_name().to_owned())
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true);
    let version = command.get_version().unwrap_or_default().to_owned();
    let about = command.get_about().cloned().unwrap_or_default();
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let subcommands = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
    bare.version(version).about(about).args(arguments.map(offered)).subcommands(subcommands.map(shown))
}

/// The argument with the values to offer. A log filter can be a level, and much else that is not offered.
fn offered(argument: &Arg) -> Arg {
    let argument = argument.clone().global(false);
    match argument.get_id().as_str() {
        "filter" => argument.value_parser(PossibleValuesParser::new(LEVELS)),
        _ => argument,
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    fn text(shell: Shell) -> String {
        String::from_utf8(script(shell, super::super::command())).unwrap()
    }

    #[test]
    fn every_script_offers_the_subcommands_and_nothing_that_is_hidden() {
        for shell in Shell::value_variants() {
            let text = text(*shell);
            for offered in ["healthcheck", "undrain", "log-level", "keep-runtime", "conf"] {
                assert!(text.contains(offered), "{shell}: {offered}");
            }
            let clap = text.split("# Pools and backends are those").next().unwrap();
            assert!(!clap.contains("for completion"), "{shell} offers the hidden subcommand");
        }
    }

    #[test]
    fn the_levels_of_the_log_are_offered() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            assert!(text(shell).contains("none error warn info debug trace"), "{shell}");
        }
    }

    #[test]
    fn a_rejected_option_is_not_offered() {
        let bash = text(Shell::Bash);
        let options = |name: &str| {
            let case = format!("load_balancer__subcmd__{name})");
            let block = bash.split(&case).last().unwrap();
            block.lines().find(|line| line.contains("opts=")).unwrap().to_owned()
        };
        assert!(!options("schema").contains("--conf"), "{}", options("schema"));
        assert!(options("status").contains("--conf"), "{}", options("status"));
        assert!(!bash.contains("__names)"), "the hidden subcommand is offered");
    }
}
