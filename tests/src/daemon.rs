//! The daemon under test, as a process that is started from the command line.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, io, thread};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Failure, Response, get, head_bytes};
use crate::process::{self, Process};
use crate::wait::LONG;
use crate::{Connection, Signal, ports, skip, wait};

/// A private directory and addresses for the daemons of one test. Dropping it kills every process that was started with
/// a file of the directory.
pub struct Lab {
    directory: TempDir,
    /// Set when the test uses an installed copy instead of the program that was built.
    installed: OnceLock<PathBuf>,
    /// Set when the programs of this test have a `/run` of their own instead of the machine's.
    run: Option<OwnRun>,
    /// Set when programs are started in another directory.
    start: OnceLock<PathBuf>,
    /// The address of the daemon's listener.
    pub listener: SocketAddr,
    /// The metrics address of the daemon.
    pub metrics: SocketAddr,
}

/// A mount namespace with an empty `/run`. It lasts as long as the process that holds it.
struct OwnRun {
    holder: Child,
}

/// A daemon in the foreground, a child of the test.
pub struct Daemon {
    child: Child,
    view: View,
    /// Its PID, for signals and `/proc`.
    pub process: Process,
}

/// A daemon started with `-d`.
pub struct Background {
    view: View,
    /// Its PID, from the PID file.
    pub process: Process,
}

/// A run of the program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; `None` if a signal ended the program.
    pub code: Option<i32>,
    /// The text on standard output.
    pub stdout: String,
    /// The text on standard error.
    pub stderr: String,
}

/// A running daemon as a test reads it, in the foreground or in the background.
#[derive(Debug, Clone)]
pub struct View {
    /// The address of its listener.
    pub listener: SocketAddr,
    /// Its metrics address.
    pub metrics: SocketAddr,
    logs: Vec<PathBuf>,
}

/// The condition under which a started daemon counts as running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// `/readyz` responds with 200.
    Ready,
    /// `/livez` responds with 200 and the listener accepts connections.
    Listening,
}

// ===== impl Lab =====

impl Lab {
    /// Creates a directory and reserves free addresses.
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("lb-test-").tempdir();
        let directory = directory.expect("the directory for temporary files is writable");
        let (installed, start) = (OnceLock::new(), OnceLock::new());
        Self { directory, installed, run: None, start, listener: ports::free(), metrics: ports::free() }
    }

    /// Creates a lab for daemons that root starts with default paths and that then become another user. Its `/run` is
    /// private and empty, every user may write to the directory, and the program is installed there. Returns `None` and
    /// prints a message if the test is not run by root.
    pub fn of_root() -> Option<Self> {
        if skip::unless_root("only root can start a daemon that becomes another user") {
            return None;
        }
        let mut lab = Self::new();
        lab.run = Some(OwnRun::new());
        fs::set_permissions(lab.directory(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        lab.install();
        Some(lab)
    }

    /// Sets the directory in which programs are started from now on.
    pub fn start_in(&self, directory: PathBuf) {
        self.start.get_or_init(|| directory);
    }

    /// Returns the path at which this process finds the runtime directory of the daemons: that of a user other than
    /// root, or that of a lab [of root](Self::of_root).
    pub fn runtime_directory(&self) -> PathBuf {
        match &self.run {
            Some(run) => PathBuf::from(format!("/proc/{}/root/run/load_balancer", run.holder.id())),
            None => self.path("load_balancer"),
        }
    }

    /// Returns the directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns a path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Returns the path of the daemons' PID file.
    pub fn pid_file(&self) -> PathBuf {
        if self.run.is_none() {
            return self.path("lb.pid");
        }
        let directory = self.runtime_directory();
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut pid_files = entries.filter(|path| path.extension().is_some_and(|end| end == "pid"));
        pid_files.next().unwrap_or_else(|| directory.join("load_balancer.pid"))
    }

    /// Returns the process that the PID file names.
    pub fn pid_in_file(&self) -> Option<Process> {
        let text = fs::read_to_string(self.pid_file()).ok()?;
        text.trim().parse().ok().map(Process)
    }

    /// Writes a file into the directory.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("the directory of the test is writable");
        path
    }

    /// Writes `conf.yaml`: the files and addresses of this directory, then `body`.
    pub fn config(&self, body: &str) -> PathBuf {
        let listeners = format!("listeners: [{{address: \"{}\"}}]\n", self.listener);
        self.config_with(&listeners, body)
    }

    /// Writes a file like [`Lab::config`], but under this name and with default paths for all but the error log.
    pub fn config_by_default(&self, name: &str, body: &str) -> PathBuf {
        let directory = self.directory().display();
        let head = format!(
            "error_log: {directory}/error.log\nlisteners: [{{address: \"{}\"}}]\nmetrics: {{address: \"{}\"}}\n",
            self.listener, self.metrics
        );
        self.write(name, &[&head, body].concat())
    }

    /// Writes a file like [`Lab::config`], but with the given listeners.
    pub fn config_with(&self, listeners: &str, body: &str) -> PathBuf {
        let directory = self.directory().display();
        let files = format!(
            "pid_file: {directory}/lb.pid\nerror_log: {directory}/error.log\nupgrade_sock: {directory}/upgrade.sock\n\
             control: {{socket: {directory}/control.sock}}\n"
        );
        let metrics = format!("metrics: {{address: \"{}\"}}\n", self.metrics);
        self.write("conf.yaml", &[&files, listeners, &metrics, body].concat())
    }

    /// Copies the program into this directory and uses the copy from now on. A test may replace it.
    pub fn install(&self) -> PathBuf {
        let path = self.path("load_balancer");
        fs::copy(binary(), &path).expect("the directory of the test is writable");
        self.installed.get_or_init(|| path).clone()
    }

    /// Replaces the [installed](Self::install) program with this script in one step, like a package manager. `None`
    /// puts the program back.
    pub fn replace_program(&self, script: Option<&str>) {
        let beside = self.path("load_balancer.new");
        match script {
            Some(script) => fs::write(&beside, format!("#!/bin/sh\n{script}\n")).map(|()| 0),
            None => fs::copy(binary(), &beside),
        }
        .and_then(|_| fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&beside, self.path("load_balancer")))
        .expect("the directory of the test is writable");
    }

    fn program(&self) -> &Path {
        self.installed.get().map_or_else(|| binary(), PathBuf::as_path)
    }

    /// Returns a command that runs the program in the environment of the test.
    pub fn command(&self) -> Command {
        self.command_of(self.program())
    }

    /// Returns a command that runs the program as another user. It needs a lab [of root](Self::of_root).
    pub fn command_as(&self, user: &str) -> Command {
        let mut command = self.command_of(Path::new("setpriv"));
        // In this lab, the program has the path that the runtime directory would have.
        command.env_remove("XDG_RUNTIME_DIR").env("TMPDIR", self.directory());
        command.args(["--reuid", user, "--regid", "nogroup", "--clear-groups"]).arg(self.program());
        command
    }

    fn command_of(&self, program: &Path) -> Command {
        let start = self.start.get().map_or(self.directory(), PathBuf::as_path);
        let mut command = match &self.run {
            Some(run) => run.command(start, program),
            None => Command::new(program),
        };
        command.env_remove("LB_CONFIG").env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
        command.env("XDG_RUNTIME_DIR", self.directory());
        command.current_dir(start).stdin(Stdio::null());
        command
    }

    /// Runs the program until it exits.
    ///
    /// # Panics
    ///
    /// Panics if it does not exit within [`LONG`].
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Finished {
        self.finish(self.command(), arguments)
    }

    /// Runs the program like [`Lab::run`], with these environment variables.
    #[track_caller]
    pub fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Finished {
        let mut command = self.command();
        command.envs(variables.iter().copied());
        self.finish(command, arguments)
    }

    /// Runs the program like [`Lab::run`], with this file as standard input.
    #[track_caller]
    pub fn run_with_input(&self, input: &Path, arguments: &[&str]) -> Finished {
        self.finish(self.command_reading(input), arguments)
    }

    fn command_reading(&self, input: &Path) -> Command {
        let mut command = self.command();
        command.stdin(File::open(input).expect("the test has written it"));
        command
    }

    /// Runs the program that was built, even if the [installed](Self::install) one has been replaced.
    #[track_caller]
    pub fn run_built(&self, arguments: &[&str]) -> Finished {
        self.finish(self.command_of(binary()), arguments)
    }

    /// Runs this command until it exits.
    #[track_caller]
    pub fn finish(&self, mut command: Command, arguments: &[&str]) -> Finished {
        let (stdout, stderr) = (self.fresh_file("stdout"), self.fresh_file("stderr"));
        // Pipes would not work here: a daemon in the background keeps them open.
        command.args(arguments).stdout(create(&stdout)).stderr(create(&stderr));
        let mut child = command.spawn().expect("the program can be started");
        let status = wait::poll(LONG, || child.try_wait().expect("it is our child"));
        let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let Some(status) = status else {
            end(&mut child);
            panic!("{arguments:?} did not end within {LONG:?}:\n{}{}", text(&stdout), text(&stderr));
        };
        let finished = Finished { code: status.code(), stdout: text(&stdout), stderr: text(&stderr) };
        assert_no_numbers(&finished.stderr);
        finished
    }

    /// Starts a daemon in the foreground and waits until it is ready.
    #[track_caller]
    pub fn start(&self, body: &str) -> Daemon {
        self.start_file(&self.config(body))
    }

    /// Starts a daemon like [`Lab::start`], with an existing file.
    #[track_caller]
    pub fn start_file(&self, config: &Path) -> Daemon {
        self.start_with(config, &[])
    }

    /// Starts a daemon like [`Lab::start_file`], with these environment variables.
    #[track_caller]
    pub fn start_with(&self, config: &Path, variables: &[(&str, &str)]) -> Daemon {
        let mut command = self.command();
        command.envs(variables.iter().copied());
        let mut daemon = self.spawn_command(command, &["-c", path_str(config)]);
        daemon.wait_started(Until::Ready);
        daemon
    }

    /// Starts a daemon like [`Lab::start_file`], with the file as standard input.
    #[track_caller]
    pub fn start_with_input(&self, config: &Path) -> Daemon {
        let mut daemon = self.spawn_command(self.command_reading(config), &["-c", "-"]);
        daemon.wait_started(Until::Ready);
        daemon
    }

    /// Starts a daemon like [`Lab::start`], but does not wait until it is ready, for pools without a ready backend.
    #[track_caller]
    pub fn start_listening(&self, body: &str) -> Daemon {
        let mut daemon = self.spawn(&["-c", path_str(&self.config(body))]);
        daemon.wait_started(Until::Listening);
        daemon
    }

    /// Starts the program with these arguments and returns at once.
    #[track_caller]
    pub fn spawn(&self, arguments: &[&str]) -> Daemon {
        self.spawn_command(self.command(), arguments)
    }

    #[track_caller]
    fn spawn_command(&self, mut command: Command, arguments: &[&str]) -> Daemon {
        let log = self.fresh_file("log");
        let file = create(&log);
        command.args(arguments).stdout(file.try_clone().expect("a file can be shared")).stderr(file);
        let child = command.spawn().expect("the program can be started");
        let process = Process(child.id());
        let logs = vec![log, self.path("error.log")];
        Daemon { child, view: self.view(logs), process }
    }

    /// Starts a daemon with `-d` and waits until it is ready.
    #[track_caller]
    pub fn daemonize(&self, body: &str) -> Background {
        self.daemonize_file(&self.config(body), &[])
    }

    /// Starts a daemon with `-d` and further arguments, and waits until it is ready.
    #[track_caller]
    pub fn daemonize_file(&self, config: &Path, more: &[&str]) -> Background {
        let before = self.pid_in_file();
        let finished = self.run(&[&["-c", path_str(config), "-d"], more].concat());
        assert_eq!(finished.code, Some(0), "-d failed: {finished:?}\n{}", self.error_log());
        self.newer_than(before)
    }

    /// Starts a daemon with `-d`, with this file as standard input, and waits until it is ready.
    #[track_caller]
    pub fn daemonize_with_input(&self, config: &Path) -> Background {
        let finished = self.run_with_input(config, &["-c", "-", "-d"]);
        assert_eq!(finished.code, Some(0), "-d failed: {finished:?}\n{}", self.error_log());
        self.newer_than(None)
    }

    /// Waits until a new process has taken over from `old`, and returns it.
    #[track_caller]
    pub fn successor(&self, old: Process) -> Background {
        self.newer_than(Some(old))
    }

    #[track_caller]
    fn newer_than(&self, before: Option<Process>) -> Background {
        let changed = || self.pid_in_file().filter(|now| Some(*now) != before && now.alive());
        let Some(process) = wait::poll(LONG, changed) else {
            panic!("the PID file names no new running process:\n{}", self.error_log());
        };
        let view = self.view(vec![self.path("error.log")]);
        let ready = wait::poll(LONG, || view.is(Until::Ready).then_some(()));
        assert!(ready.is_some(), "not ready: {:?}\n{}", view.read("/readyz"), view.log());
        Background { view, process }
    }

    /// Returns the log of daemons in the background.
    pub fn error_log(&self) -> String {
        fs::read_to_string(self.path("error.log")).unwrap_or_default()
    }

    fn view(&self, logs: Vec<PathBuf>) -> View {
        View { listener: self.listener, metrics: self.metrics, logs }
    }

    /// Creates an empty file and returns its path.
    fn fresh_file(&self, kind: &str) -> PathBuf {
        let mut paths = (1..).map(|number| self.path(&format!("{kind}-{number}")));
        paths.find(|path| File::create_new(path).is_ok()).expect("some number is unused")
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for process in process::started_with(self.directory()) {
            process.signal(Signal::SIGKILL);
        }
        if !thread::panicking() {
            assert_no_numbers(&self.error_log());
        }
    }
}

/// Asserts that messages name the reason of an error without the number of the system.
#[track_caller]
fn assert_no_numbers(messages: &str) {
    let line = messages.lines().find(|line| line.contains("(os error"));
    assert!(line.is_none(), "a message has the number of an error: {line:?}");
}

// ===== impl OwnRun =====

impl OwnRun {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        // `cat` exits at the end of its standard input, so it ends with the test.
        command.args(["--mount", "sh", "-c", "mount -t tmpfs tmpfs /run && echo mounted && exec cat"]);
        let mut holder =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("util-linux is installed");
        let stdout = holder.stdout.as_mut().expect("it is a pipe");
        let mut mounted = String::new();
        let _: io::Result<usize> = BufReader::new(stdout).read_line(&mut mounted);
        assert_eq!(mounted, "mounted\n", "root can make a mount namespace");
        Self { holder }
    }

    fn command(&self, start: &Path, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        command.arg(format!("--wdns={}", start.display())).arg("--").arg(program);
        command
    }
}

impl Drop for OwnRun {
    fn drop(&mut self) {
        end(&mut self.holder);
    }
}

// ===== impl View =====

impl View {
    /// Sends a `GET` to the listener.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn get(&self, target: &str) -> Result<Response, Failure> {
        get(self.listener, target)
    }

    /// Opens a connection to the listener.
    ///
    /// # Panics
    ///
    /// Panics if the connection is refused.
    #[track_caller]
    pub fn connect(&self) -> Connection {
        Connection::open(self.listener).expect("the listener accepts")
    }

    /// Sends a `GET` on a new connection and does not wait for the response.
    ///
    /// # Panics
    ///
    /// Panics if the connection is refused.
    #[track_caller]
    pub fn begin(&self, target: &str) -> Connection {
        let mut connection = self.connect();
        connection.send(head_bytes("GET", target, &[], 0)).expect("a new connection can be written to");
        connection
    }

    /// Sends a `GET` to the metrics address.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn read(&self, target: &str) -> Result<Response, Failure> {
        get(self.metrics, target)
    }

    /// Returns the sum of all series of this metric that have all of `labels`, each written `name="value"`.
    ///
    /// # Panics
    ///
    /// Panics if the metrics cannot be read.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let body = self.metrics_text();
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let series = body.lines().filter(of_name);
        let with_labels = series.filter(|line| labels.iter().all(|label| line.contains(label)));
        with_labels.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until no request is in flight. The daemon counts a request shortly after it has sent the response.
    ///
    /// # Panics
    ///
    /// Panics if a request stays in flight.
    #[track_caller]
    pub fn settle(&self) {
        wait::until(LONG, "nothing is in flight", || self.metric("lb_requests_in_flight", &[]) == 0.0);
    }

    /// Returns the metrics in Prometheus's text format.
    ///
    /// # Panics
    ///
    /// Panics if they cannot be read.
    #[track_caller]
    pub fn metrics_text(&self) -> String {
        let mut connection = Connection::open(self.metrics).expect("the metrics address accepts");
        connection.send("GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").expect("it reads");
        let (status, head) = connection.response_head().expect("it responds");
        assert_eq!(status, 200, "{head:?}");
        let bytes = connection.rest_of_body(&head).expect("a whole body");
        String::from_utf8(bytes).expect("metrics are UTF-8")
    }

    /// Returns the status document.
    ///
    /// # Panics
    ///
    /// Panics if it cannot be read.
    #[track_caller]
    pub fn status(&self) -> Value {
        let response = self.read("/api/v1/status").expect("the metrics address responds");
        serde_json::from_slice(&response.body).expect("the status is JSON")
    }

    /// Returns the part of the status about a pool.
    ///
    /// # Panics
    ///
    /// Panics if the status lacks the pool.
    #[track_caller]
    pub fn pool_status(&self, pool: &str) -> Value {
        let status = self.status();
        let pools = status["pools"].as_array().into_iter().flatten();
        let found = pools.into_iter().find(|known| known["name"] == pool).cloned();
        found.unwrap_or_else(|| panic!("no pool {pool} in {status:#}"))
    }

    /// Returns the part of the status about a backend.
    ///
    /// # Panics
    ///
    /// Panics if the status lacks the pool or the backend.
    #[track_caller]
    pub fn backend_status(&self, pool: &str, backend: SocketAddr) -> Value {
        let (status, address) = (self.pool_status(pool), backend.to_string());
        let backends = status["backends"].as_array().into_iter().flatten();
        let found = backends.into_iter().find(|known| known["address"] == address.as_str()).cloned();
        found.unwrap_or_else(|| panic!("no backend {address} in {status:#}"))
    }

    /// Returns the whole log.
    pub fn log(&self) -> String {
        self.logs.iter().map(|path| fs::read_to_string(path).unwrap_or_default()).collect()
    }

    /// Waits until the log has a line with all these words, and returns the first such line.
    #[track_caller]
    pub fn logged(&self, words: &[&str]) -> String {
        let found = wait::poll(LONG, || {
            let log = self.log();
            let mut lines = log.lines();
            lines.find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        });
        found.unwrap_or_else(|| panic!("no line of the log contains all of {words:?}:\n{}", self.log()))
    }

    fn is(&self, state: Until) -> bool {
        let is_200 = |target| self.read(target).is_ok_and(|response| response.status == 200);
        match state {
            Until::Ready => is_200("/readyz"),
            Until::Listening => is_200("/livez") && Connection::open(self.listener).is_ok(),
        }
    }
}

// ===== impl Daemon =====

impl Daemon {
    /// Waits until the process exits by itself.
    ///
    /// # Panics
    ///
    /// Panics if it runs after `deadline`.
    #[track_caller]
    pub fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let status = wait::poll(deadline, || self.child.try_wait().expect("it is our child"));
        status.unwrap_or_else(|| panic!("the daemon still runs after {deadline:?}:\n{}", self.log()))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Sends SIGTERM, waits until the process exits, and returns its exit code.
    #[track_caller]
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.wait_exit(LONG).code()
    }

    #[track_caller]
    fn wait_started(&mut self, state: Until) {
        let started = wait::poll(LONG, || {
            let ended = self.child.try_wait().expect("it is our child");
            let up = self.view.is(state);
            (up || ended.is_some()).then_some(up)
        });
        assert_eq!(
            started,
            Some(true),
            "the daemon did not start (/readyz: {:?}):\n{}",
            self.view.read("/readyz").map(|response| response.text()),
            self.log()
        );
    }
}

impl std::ops::Deref for Daemon {
    type Target = View;

    fn deref(&self) -> &View {
        &self.view
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

// ===== impl Background =====

impl std::ops::Deref for Background {
    type Target = View;

    fn deref(&self) -> &View {
        &self.view
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.process.signal(Signal::SIGKILL);
    }
}

// ===== the program =====

/// Returns the path of the daemon's binary: `$LOAD_BALANCER_BIN`, or the one that cargo builds in the profile of this
/// test.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let given = env::var_os("LOAD_BALANCER_BIN").map(PathBuf::from);
        given.unwrap_or_else(|| build("--bin", "load_balancer").join("load_balancer"))
    })
}

/// Returns the path of an example of the crate `shared`, which cargo builds in the profile of this test.
pub fn example(name: &str) -> PathBuf {
    build("--example", name).join("examples").join(name)
}

/// Builds a program of the crate `shared`, and returns the directory of its profile.
fn build(kind: &str, name: &str) -> PathBuf {
    let test = env::current_exe().expect("the path of this test can be read");
    let profile = test.parent().and_then(Path::parent).expect("a test is in target/PROFILE/deps");
    let target = profile.parent().expect("a profile is in the target directory");
    let of_test = profile.file_name().and_then(|name| name.to_str()).expect("a profile's name is text");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "shared", kind, name, "--target-dir"]);
    command.arg(target).args(["--profile", if of_test == "debug" { "dev" } else { of_test }]);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    // The variables that cargo sets for a test would change the inputs of build scripts and so rebuild most crates.
    let about_the_test = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars().filter(|(name, _)| about_the_test(name)) {
        command.env_remove(name);
    }
    let status = command.status().expect("cargo can be run");
    assert!(status.success(), "{name} does not build");
    profile.to_owned()
}

fn create(path: &Path) -> File {
    File::create(path).expect("the directory of the test is writable")
}

fn end(child: &mut Child) {
    // Both calls fail only if the process has ended already.
    let _: io::Result<()> = child.kill();
    let _: io::Result<ExitStatus> = child.wait();
}

/// Returns a path as text.
///
/// # Panics
///
/// Panics if the path is not UTF-8. Paths of a [`Lab`] are.
pub fn path_str(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}
