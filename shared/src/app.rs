//! Implementation of the subcommands.

use std::io::{self, IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::unistd::Uid;
use pingora::services::background::background_service;

use crate::cli::{self, CheckArgs, Cli, CliCommand, DaemonCommand, DemoArgs, Format, ProxyArgs, RunArgs};
use crate::config::{self, Context, Loaded, Plan, Problems, RealFiles, Severity, Source};
use crate::control::client::Unreachable;
use crate::control::{Client, find};
use crate::daemon::{self, Mode, Start, StartError};
use crate::demo::{Demo, Once, POOL, Show};
use crate::http_message::{Reply, Request};
use crate::operator::{ConfigFile, Provenance};
use crate::places::{self, Missing};
use crate::process::files::reason;
use crate::process::runtime::{RuntimeFiles, canonical, runtime_directory};
use crate::process::successor::Predecessor;
use crate::process::{systemd, write_message};
use crate::purpose::Purpose;
use crate::subcommands::{self, CommandError};
use crate::words::count_of;

/// Exit code of a failure at run time.
const FAILED: u8 = 1;
/// Exit code of an invalid command line or configuration, with which a restart fails again.
const WRONG: u8 = 2;

/// Exit code of a daemon that cut off requests, and of the subcommand that stopped it.
const CUT: u8 = crate::process::lifecycle::CUT;

/// Runs the command line.
pub fn run(cli: Cli) -> ExitCode {
    if let Some(problem) = misplaced(&cli) {
        return ExitCode::from(complain(problem));
    }
    let code = match cli.command {
        None => run_file(&cli.run),
        Some(CliCommand::Proxy(args)) => proxy(&cli.run, &args),
        Some(CliCommand::Demo(args)) => demo(&cli.run, &args, Purpose::Demo),
        Some(CliCommand::Check(args)) => check(&cli.run, &args),
        Some(CliCommand::Healthcheck) => healthcheck(&cli.run),
        Some(CliCommand::Daemon(command)) => run_on_daemon(&cli.run, &command),
        Some(CliCommand::Schema) => print(config::schema_text().as_bytes()),
        Some(CliCommand::Completions { shell }) => print(&cli::completions(shell)),
        Some(CliCommand::Man) => print_with(cli::manual),
    };
    ExitCode::from(code)
}

/// Returns the error for an option that the subcommand would ignore; `None` if there is none.
fn misplaced(cli: &Cli) -> Option<&'static str> {
    let run = &cli.run;
    let of_a_start = run.daemon || run.test || run.upgrade;
    match &cli.command {
        Some(CliCommand::Schema | CliCommand::Completions { .. } | CliCommand::Man) if run.conf.is_some() => {
            Some("the output does not depend on a configuration file: omit `--conf`")
        }
        Some(CliCommand::Check(check)) if run.conf.is_some() && check.file.is_some() => {
            Some("the file is given twice: omit `--conf` or the argument FILE")
        }
        Some(CliCommand::Daemon(
            DaemonCommand::Reload { .. } | DaemonCommand::Upgrade { .. } | DaemonCommand::Stop { .. },
        )) if is_input(run) => Some(
            "the text on standard input would not be used, and does not identify a running daemon; omit `--conf -`, and \
             select the daemon with `--socket PATH`",
        ),
        Some(CliCommand::Proxy(_)) if run.conf.is_some() => {
            Some("`proxy` runs without a configuration file: omit `--conf`")
        }
        Some(CliCommand::Demo(_)) if run.conf.is_some() => {
            Some("the demo has its own configuration: omit `--conf`")
        }
        Some(command) if of_a_start && !matches!(command, CliCommand::Proxy(_)) => {
            Some("`--daemon`, `--test` and `--upgrade` require no subcommand, or `proxy`")
        }
        Some(CliCommand::Check(_)) if run.strict => Some("write `--strict` after `check`"),
        _ if run.strict && !run.test => {
            Some("`--strict` belongs to a test of the configuration: add `-t`, or write `check --strict`")
        }
        _ => None,
    }
}

fn is_input(run: &RunArgs) -> bool {
    run.conf.as_deref().is_some_and(config::is_input)
}

fn run_file(args: &RunArgs) -> u8 {
    let path = match configuration(args) {
        Ok(path) => path,
        Err(missing) => return run_without_file(args, missing),
    };
    let file = match with_context(args, Some(&path), |context| ConfigFile::new(&path, context)) {
        Ok(file) => file,
        Err(error) => return fail(&format!("cannot determine the working directory: {}", reason(&error))),
    };
    let (source, loaded) = match load(&path, args) {
        Ok(found) => found,
        Err(problems) => return report(&problems),
    };
    if args.test {
        return test(&source.name, &loaded, args);
    }
    let provenance =
        if config::is_input(&path) { Provenance::Input(source.text.into()) } else { Provenance::File(file) };
    serve(&loaded, args, provenance)
}

/// Runs the demo if there is no configuration file. This is for a person who tries the program; under a service manager
/// and in tests, a missing file is an error.
fn run_without_file(args: &RunArgs, missing: Missing) -> u8 {
    if args.test || args.upgrade {
        return complain(&no_configuration(&missing));
    }
    if systemd::is_expected(|name| std::env::var_os(name)) {
        let manager = "the demo does not start instead, because a service manager started this process (NOTIFY_SOCKET is set)";
        return complain(&format!("{}\n{manager}", no_configuration(&missing)));
    }
    demo(args, &DemoArgs::default(), Purpose::Stopgap(missing))
}

fn proxy(run: &RunArgs, args: &ProxyArgs) -> u8 {
    let backends: Vec<_> = args.to.iter().map(ToString::to_string).collect();
    let text = format!(
        "listeners: [{{address: \"{}\"}}]\nmetrics: {{address: \"{}\"}}\npools: {{proxy: {{backends: [\"{}\"]}}}}\n",
        args.listen,
        args.metrics,
        backends.join("\", \""),
    );
    match with_context(run, None, |context| config::load_text("command line", &text, context)) {
        Err(problems) => report(&problems),
        Ok(loaded) if run.test => test("the command line", &loaded, run),
        Ok(loaded) => serve(&loaded, run, Provenance::Arguments),
    }
}

fn serve(loaded: &Loaded, args: &RunArgs, provenance: Provenance) -> u8 {
    let Loaded { plan, warnings, .. } = loaded;
    let (mode, warnings, predecessor) = (mode(plan, args), warnings.clone(), Predecessor::of_this_process());
    let how = Start { mode, provenance, warnings, predecessor, ..Start::default() };
    let started = daemon::serve(plan, how, Box::new(|_, _| Vec::new()));
    started.unwrap_or_else(|error| fail_to_start(&explained(&error, plan, args)))
}

/// Returns the message for a failed start. If an address is in use because the daemon of this file already runs, the
/// message says so first.
fn explained(error: &StartError, plan: &Plan, args: &RunArgs) -> String {
    let is_in_use = matches!(error, StartError::Listen(error) if error.is_in_use());
    let file = plan.server.runtime.configuration().filter(|_| is_in_use && !args.upgrade);
    let running = file.and_then(|file| Some((file, find::process_with(&plan.control.socket, file)?)));
    running.map_or_else(
        || error.to_string(),
        |(file, pid)| {
            let file = file.display();
            format!(
                "load_balancer already runs as process {pid} with {file}: run `load_balancer reload -c {file}` to apply a changed \
                 file, `load_balancer upgrade -c {file}` to replace the process, or `load_balancer stop -c {file}` to end \
                 it\n  {error}"
            )
        },
    )
}

fn mode(plan: &Plan, args: &RunArgs) -> Mode {
    Mode { daemon: plan.server.daemon, upgrade: args.upgrade }
}

/// Runs the daemon with the demo's configuration, together with the services of the demo.
fn demo(run: &RunArgs, args: &DemoArgs, purpose: Purpose) -> u8 {
    let demo = match Demo::new() {
        Ok(demo) => Arc::new(demo),
        Err(error) => return fail(&format!("cannot find a free port for the demo: {}", reason(&error))),
    };
    let text = demo.configuration();
    let loaded = match with_context(run, None, |context| config::load_text("demo", &text, context)) {
        Ok(loaded) => loaded,
        Err(problems) => return report(&problems),
    };
    let mut outcome = None;
    let notice = match &purpose {
        Purpose::Stopgap(missing) => format!("{missing}\n{}\n", demo.notice(run.daemon)),
        _ => String::new(),
    };
    let mode = mode(&loaded.plan, run);
    let predecessor = Predecessor::of_this_process();
    let how = Start { mode, purpose, predecessor, silent: &[Demo::TRAFFIC], ..Start::default() };
    let started = daemon::serve(
        &loaded.plan,
        how,
        Box::new(|server, services| {
            // At this point only the serving process prints the notice, and not its parent as well.
            complain_as_is(&notice);
            let origins =
                demo.origins.iter().map(|origin| server.add_service(origin.clone().service())).collect();
            let pool = services.core.current.load().pools.iter().find(|pool| &*pool.name == POOL).cloned();
            let Some(pool) = pool else { return origins };
            let show = Show::new(demo.clone(), pool, services.core.readiness.clone());
            if args.once {
                let (once, result) = Once::new(show);
                outcome = Some(result);
                server.add_service(background_service("demo", once));
            } else {
                server.add_service(background_service("demo", show));
            }
            origins
        }),
    );
    match started {
        Err(error) => fail_to_start(&error.to_string()),
        Ok(_) if outcome.is_some_and(|outcome| !outcome.passed()) => FAILED,
        Ok(code) => code,
    }
}

/// Checks whether a start would succeed with a valid configuration.
fn test(name: &str, loaded: &Loaded, run: &RunArgs) -> u8 {
    warn(&loaded.warnings);
    let more = match daemon::preflight(&loaded.plan, run.upgrade) {
        Ok(warnings) => warnings,
        Err(error) => return complain(&explained(&error, &loaded.plan, run)),
    };
    more.iter().for_each(|warning| complain_as_is(&format!("warning: {warning}\n")));
    let count = loaded.warnings.count(Severity::Warning) + more.len();
    if run.strict && count > 0 {
        print(format!("{name}: {}, which `--strict` rejects\n", count_of(count, "warning")).as_bytes());
        return WRONG;
    }
    print(format!("{name}: the configuration is valid, and a start would succeed\n").as_bytes())
}

fn check(run: &RunArgs, args: &CheckArgs) -> u8 {
    if let Some(id) = &args.explain {
        return explain_problem(id);
    }
    let path = match args.file.clone().map_or_else(|| configuration(run), Ok) {
        Ok(path) => path,
        Err(missing) => return complain(&no_configuration(&missing)),
    };
    match load(&path, run) {
        Err(problems) if args.format == Format::Json => {
            print_json(&problems);
            WRONG
        }
        Err(problems) => report(&problems),
        Ok((source, loaded)) => {
            let code = checked(&source.name, &loaded, args);
            if args.strict && !loaded.warnings.is_empty() { WRONG } else { code }
        }
    }
}

fn explain_problem(id: &str) -> u8 {
    match config::explain(id) {
        Some((severity, text)) => print(format!("{} ({severity}): {text}\n", id.to_uppercase()).as_bytes()),
        None => complain(&format!("there is no problem with the ID {id}")),
    }
}

/// Reports a valid configuration. Output for programs goes only to standard output.
fn checked(name: &str, loaded: &Loaded, args: &CheckArgs) -> u8 {
    let warnings = &loaded.warnings;
    if args.format == Format::Text || args.print {
        warn(warnings);
    }
    if args.print {
        return print(loaded.effective().as_bytes());
    }
    match args.format {
        Format::Json => print_json(warnings),
        Format::Text => print(format!("{name}: {}\n", judgement(warnings, args.strict)).as_bytes()),
    }
}

fn judgement(warnings: &Problems, strict: bool) -> String {
    match (warnings.is_empty(), strict) {
        (true, _) => "the configuration is valid".into(),
        (false, false) => format!("the configuration is valid, with {}", config::counted(warnings)),
        (false, true) => format!("{}, which `--strict` rejects", config::counted(warnings)),
    }
}

fn print_json(problems: &Problems) -> u8 {
    if problems.is_cut_short {
        complain_as_is("the list of problems ends here; there might be more\n");
    }
    let json =
        serde_json::to_string_pretty(&config::documents(problems)).expect("texts and numbers are JSON");
    print((json + "\n").as_bytes())
}

/// Runs a subcommand against the daemon of this configuration.
fn run_on_daemon(run: &RunArgs, command: &DaemonCommand) -> u8 {
    let client = match client(run, command) {
        Ok(client) => client,
        // The default socket would belong to another daemon.
        Err(Unclear::File(problems)) => return report(&problems),
        Err(Unclear::Daemon(error)) => return fail(&error.to_string()),
    };
    match subcommands::run(command, &client, &mut io::stdout().lock()) {
        Ok(()) => 0,
        Err(CommandError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        // The diagnostics of a file are printed as they are; any other error is a sentence.
        Err(CommandError::File(problems)) => {
            complain_as_is(&problems);
            WRONG
        }
        Err(CommandError::Refused(problem)) => complain(&problem),
        Err(CommandError::Cut(problem)) => {
            fail(&problem);
            CUT
        }
        Err(error) => fail(&error.to_string()),
    }
}

/// Reason why the daemon cannot be determined.
enum Unclear {
    File(Problems),
    Daemon(Unreachable),
}

/// Returns a client for the selected daemon, see [`find`].
fn client(run: &RunArgs, command: &DaemonCommand) -> Result<Client, Unclear> {
    let of = |client: Client, file: Option<&Path>| match runtime_files(file).configuration() {
        Some(file) => client.of_file(file.to_owned()),
        None => client,
    };
    if let Some(socket) = &command.daemon().socket {
        return Ok(of(Client::new(socket), run.conf.as_deref()));
    }
    let file = configuration(run).ok();
    let named =
        with_context(run, file.as_deref(), |context| config::control_socket_of(file.as_deref(), context));
    match named.map_err(Unclear::File)? {
        Some(socket) => Ok(of(Client::new(&socket), file.as_deref())),
        None => find::by_default(&runtime_files(file.as_deref())).map_err(Unclear::Daemon),
    }
}

/// Asks the daemon of this configuration whether it is ready.
fn healthcheck(run: &RunArgs) -> u8 {
    let path = match configuration(run) {
        Ok(path) => path,
        Err(missing) => return complain(&no_configuration(&missing)),
    };
    match load(&path, run).map(|(_, loaded)| loaded.plan) {
        Err(problems) => report(&problems),
        Ok(plan) => match ready(plan.metrics, plan.server.runtime.configuration()) {
            Ok(reply) => judge_health(reply, &path, plan.metrics),
            Err(error) => fail(&format!("cannot reach the daemon at {}: {}", plan.metrics, reason(&error))),
        },
    }
}

fn judge_health(reply: Option<Reply>, path: &Path, metrics: SocketAddr) -> u8 {
    let Some(Reply { status, body }) = reply else {
        return fail(&format!("{metrics} is not the metrics address of a load_balancer daemon"));
    };
    let body = body.trim_end();
    match status {
        200 => 0,
        421 => fail(&format!(
            "the daemon at {metrics} does not run with {}: {body}; set a different `metrics: {{address: …}}` in each file",
            path.display()
        )),
        _ => fail(body),
    }
}

/// Requests `/readyz`. A daemon with this metrics address that runs with another file rejects the request.
fn ready(metrics: SocketAddr, file: Option<&Path>) -> io::Result<Option<Reply>> {
    const TIMEOUT: Duration = Duration::from_secs(2);
    const MAX_RESPONSE: u64 = 64 * 1024;
    let mut stream = TcpStream::connect_timeout(&metrics, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(&Request { file, ..Request::get("/readyz") }.to_bytes())?;
    let mut response = Vec::new();
    stream.take(MAX_RESPONSE).read_to_end(&mut response)?;
    Ok(Reply::parse(&response))
}

/// Returns the configuration file: the one from the command line, or the first that exists.
fn configuration(args: &RunArgs) -> Result<PathBuf, Missing> {
    let directory = std::env::current_dir().unwrap_or_else(|_| ".".into());
    args.conf.clone().map_or_else(|| places::find(std::env::var_os(places::VARIABLE), &directory), Ok)
}

fn no_configuration(missing: &Missing) -> String {
    format!("{missing}\nselect a file with `-c FILE`, or create one at one of these paths")
}

fn load(path: &Path, args: &RunArgs) -> Result<(Source, Loaded), Problems> {
    with_context(args, Some(path), |context| {
        let source = config::read_source(path, context)?;
        let loaded = config::load_text(&source.name, &source.text, context)?;
        Ok((source, loaded))
    })
}

fn with_context<T>(args: &RunArgs, file: Option<&Path>, load: impl FnOnce(&Context<'_>) -> T) -> T {
    let variables = |name: &str| std::env::var(name).ok();
    load(&Context {
        variables: &variables,
        runtime: &runtime_files(file),
        cpus: thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
        daemon: args.daemon,
        loopback: config::loopback(),
        files: &RealFiles,
    })
}

/// Returns the paths of runtime files. In an upgrade, the new process uses the directory of the old one, regardless of
/// the user.
fn runtime_files(file: Option<&Path>) -> RuntimeFiles {
    let own = || runtime_directory(Uid::effective().as_raw(), &|name| std::env::var(name).ok());
    let directory =
        Predecessor::of_this_process().map_or_else(own, |predecessor| predecessor.runtime_directory);
    RuntimeFiles::new(directory, file.filter(|file| !config::is_input(file)).and_then(known_as))
}

/// Returns the canonical path of a file. A missing directory is not an error here, because reading the file reports it.
fn known_as(file: &Path) -> Option<PathBuf> {
    canonical(file).or_else(|_| std::path::absolute(file)).ok()
}

fn report(problems: &Problems) -> u8 {
    tell_predecessor(&config::text(problems, false));
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    complain_as_is(&config::text(problems, colour));
    WRONG
}

/// Prints warnings, which do not prevent anything.
fn warn(warnings: &Problems) {
    if !warnings.is_empty() {
        report(warnings);
    }
}

fn complain(problem: &str) -> u8 {
    tell_predecessor(problem);
    complain_as_is(&format!("error: {problem}\n"));
    WRONG
}

fn fail(problem: &str) -> u8 {
    tell_predecessor(problem);
    complain_as_is(&format!("error: {problem}\n"));
    FAILED
}

/// Reports the problem to the old process, which passes it on to the client that requested the upgrade.
fn tell_predecessor(problem: &str) {
    if let Some(predecessor) = Predecessor::of_this_process() {
        predecessor.tell(problem.trim_end());
    }
}

/// Reports a failed start. Nothing reacts to signals at this point, so a blocked write of the message must not prevent
/// the end of the process.
fn fail_to_start(error: &str) -> u8 {
    let text = error.to_owned();
    write_message(move || {
        fail(&text);
    });
    FAILED
}

/// Writes to standard error. A closed standard error is ignored.
fn complain_as_is(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

fn print(text: &[u8]) -> u8 {
    print_with(|out| out.write_all(text))
}

/// Writes to standard output. A closed pipe, as with `| head`, is not a failure.
fn print_with(write: impl FnOnce(&mut io::StdoutLock<'static>) -> io::Result<()>) -> u8 {
    let mut out = io::stdout().lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Ok(()) => 0,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => fail(&format!("cannot write: {}", reason(&error))),
    }
}
