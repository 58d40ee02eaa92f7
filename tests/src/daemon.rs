//! The daemon under test, as a process that is started as a user starts it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, io};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Failure, Response, get, head_bytes};
use crate::process::{self, Process};
use crate::wait::LONG;
use crate::{Connection, Signal, ports, skip, wait};

/// A private directory and addresses for the daemons of one test. Every process started with a file of this
/// directory ends with it.
pub struct Lab {
    directory: TempDir,
    /// The program, if not the one that was built.
    installed: OnceLock<PathBuf>,
    /// What `/run` is to the programs of this test, if not the machine's.
    run: Option<OwnRun>,
    /// Where programs are started, if not in the directory.
    start: OnceLock<PathBuf>,
    /// Where the daemon takes requests.
    pub listener: SocketAddr,
    /// Where the daemon is read.
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
    /// Its id, for signals and `/proc`.
    pub process: Process,
}

/// A daemon started with `-d`.
pub struct Background {
    view: View,
    /// Its id, from the pid file.
    pub process: Process,
}

/// A run of the program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; `None` when it was ended by a signal.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// What a test asks of a running daemon, in the foreground or not.
#[derive(Debug, Clone)]
pub struct View {
    /// Where it takes requests.
    pub listener: SocketAddr,
    /// Where it is read.
    pub metrics: SocketAddr,
    logs: Vec<PathBuf>,
}

/// When a started daemon counts as running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// `/readyz` answers 200.
    Ready,
    /// `/livez` answers 200 and the listener accepts connections.
    Listening,
}

// ===== impl Lab =====

impl Lab {
    /// A new directory, and addresses that are free.
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("lb-test-").tempdir();
        let directory = directory.expect("the directory for temporary files is writable");
        let (installed, start) = (OnceLock::new(), OnceLock::new());
        Self { directory, installed, run: None, start, listener: ports::free(), metrics: ports::free() }
    }

    /// A lab for daemons that root starts with default paths and that then become another user: `/run` is empty and no other test's,
    /// every user may write to the directory, and the program stands in it. None, with a message, when the test is not run by root.
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

    /// Where programs are started from now on.
    pub fn start_in(&self, directory: PathBuf) {
        self.start.get_or_init(|| directory);
    }

    /// The runtime directory of the daemons, as this process sees it: of a user other than root, or in a lab [of
    /// root](Self::of_root).
    pub fn runtime_directory(&self) -> PathBuf {
        match &self.run {
            Some(run) => PathBuf::from(format!("/proc/{}/root/run/load_balancer", run.holder.id())),
            None => self.path("load_balancer"),
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Where the daemons write their process id.
    pub fn pid_file(&self) -> PathBuf {
        if self.run.is_none() {
            return self.path("lb.pid");
        }
        let directory = self.runtime_directory();
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut pid_files = entries.filter(|path| path.extension().is_some_and(|end| end == "pid"));
        pid_files.next().unwrap_or_else(|| directory.join("load_balancer.pid"))
    }

    /// The process that the pid file names.
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

    /// As [`Lab::config`], under this name and with default paths for all but the error log.
    pub fn config_by_default(&self, name: &str, body: &str) -> PathBuf {
        let directory = self.directory().display();
        let head = format!(
            "error_log: {directory}/error.log\nlisteners: [{{address: \"{}\"}}]\nmetrics: {{address: \"{}\"}}\n",
            self.listener, self.metrics
        );
        self.write(name, &[&head, body].concat())
    }

    /// As [`Lab::config`], with listeners as given.
    pub fn config_with(&self, listeners: &str, body: &str) -> PathBuf {
        let directory = self.directory().display();
        let files = format!(
            "pid_file: {directory}/lb.pid\nerror_log: {directory}/error.log\nupgrade_sock: {directory}/upgrade.sock\n\
             control: {{socket: {directory}/control.sock}}\n"
        );
        let metrics = format!("metrics: {{address: \"{}\"}}\n", self.metrics);
        self.write("conf.yaml", &[&files, listeners, &metrics, body].concat())
    }

    /// Where the program stands that is run from now on: a copy in this directory, which a test may replace.
    pub fn install(&self) -> PathBuf {
        let path = self.path("load_balancer");
        fs::copy(binary(), &path).expect("the directory of the test is writable");
        self.installed.get_or_init(|| path).clone()
    }

    /// Puts this script in the place of the [installed](Self::install) program, in one step, as a package manager would;
    /// `None` puts the program back.
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

    /// The program, in the environment of the test.
    pub fn command(&self) -> Command {
        self.command_of(self.program())
    }

    /// The program, run by another user; only in a lab [of root](Self::of_root).
    pub fn command_as(&self, user: &str) -> Command {
        let mut command = self.command_of(Path::new("setpriv"));
        // The program stands where the runtime directory would be.
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

    /// Runs the program to its end.
    ///
    /// # Panics
    ///
    /// Panics when it does not end in time.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Finished {
        self.finish(self.command(), arguments)
    }

    /// The same with these environment variables.
    #[track_caller]
    pub fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Finished {
        let mut command = self.command();
        command.envs(variables.iter().copied());
        self.finish(command, arguments)
    }

    /// As [`Lab::run`], with this file as standard input.
    #[track_caller]
    pub fn run_with_input(&self, input: &Path, arguments: &[&str]) -> Finished {
        self.finish(self.command_reading(input), arguments)
    }

    fn command_reading(&self, input: &Path) -> Command {
        let mut command = self.command();
        command.stdin(File::open(input).expect("the test has written it"));
        command
    }

    /// As [`Lab::run`] with the program that was built, whatever stands in the place of the [installed](Self::install) one.
    #[track_caller]
    pub fn run_built(&self, arguments: &[&str]) -> Finished {
        self.finish(self.command_of(binary()), arguments)
    }

    /// Runs this command to its end.
    #[track_caller]
    pub fn finish(&self, mut command: Command, arguments: &[&str]) -> Finished {
        let (stdout, stderr) = (self.fresh_file("stdout"), self.fresh_file("stderr"));
        // Files and no pipes: a daemon that goes to the background keeps a pipe open.
        command.args(arguments).stdout(create(&stdout)).stderr(create(&stderr));
        let mut child = command.spawn().expect("the program can be started");
        let status = wait::poll(LONG, || child.try_wait().expect("it is our child"));
        let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let Some(status) = status else {
            end(&mut child);
            panic!("{arguments:?} did not end within {LONG:?}:\n{}{}", text(&stdout), text(&stderr));
        };
        Finished { code: status.code(), stdout: text(&stdout), stderr: text(&stderr) }
    }

    /// Starts a daemon in the foreground and waits until it is ready.
    #[track_caller]
    pub fn start(&self, body: &str) -> Daemon {
        self.start_file(&self.config(body))
    }

    /// As [`Lab::start`], with a file written before.
    #[track_caller]
    pub fn start_file(&self, config: &Path) -> Daemon {
        self.start_with(config, &[])
    }

    /// As [`Lab::start_file`], with these environment variables.
    #[track_caller]
    pub fn start_with(&self, config: &Path, variables: &[(&str, &str)]) -> Daemon {
        let mut command = self.command();
        command.envs(variables.iter().copied());
        let mut daemon = self.spawn_command(command, &["-c", path_str(config)]);
        daemon.wait_started(Until::Ready);
        daemon
    }

    /// As [`Lab::start_file`], with the file as standard input.
    #[track_caller]
    pub fn start_with_input(&self, config: &Path) -> Daemon {
        let mut daemon = self.spawn_command(self.command_reading(config), &["-c", "-"]);
        daemon.wait_started(Until::Ready);
        daemon
    }

    /// As [`Lab::start`], for daemons that cannot become ready as no backend is.
    #[track_caller]
    pub fn start_listening(&self, body: &str) -> Daemon {
        let mut daemon = self.spawn(&["-c", path_str(&self.config(body))]);
        daemon.wait_started(Until::Listening);
        daemon
    }

    /// Starts the program with these arguments and does not wait for anything.
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

    /// The process that takes over from `old`, when it has.
    #[track_caller]
    pub fn successor(&self, old: Process) -> Background {
        self.newer_than(Some(old))
    }

    #[track_caller]
    fn newer_than(&self, before: Option<Process>) -> Background {
        let changed = || self.pid_in_file().filter(|now| Some(*now) != before && now.alive());
        let Some(process) = wait::poll(LONG, changed) else {
            panic!("the pid file names no new running process:\n{}", self.error_log());
        };
        let view = self.view(vec![self.path("error.log")]);
        let ready = wait::poll(LONG, || view.is(Until::Ready).then_some(()));
        assert!(ready.is_some(), "not ready: {:?}\n{}", view.read("/readyz"), view.log());
        Background { view, process }
    }

    /// What daemons in the background have logged.
    pub fn error_log(&self) -> String {
        fs::read_to_string(self.path("error.log")).unwrap_or_default()
    }

    fn view(&self, logs: Vec<PathBuf>) -> View {
        View { listener: self.listener, metrics: self.metrics, logs }
    }

    /// A path that no file has yet.
    fn fresh_file(&self, kind: &str) -> PathBuf {
        let mut paths = (1..).map(|number| self.path(&format!("{kind}-{number}")));
        paths.find(|path| File::create_new(path).is_ok()).expect("the numbers do not end")
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
    }
}

// ===== impl OwnRun =====

impl OwnRun {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        // It ends with its standard input, and so with the test.
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
    /// A `GET` through the listener.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn get(&self, target: &str) -> Result<Response, Failure> {
        get(self.listener, target)
    }

    /// A new connection to the listener.
    ///
    /// # Panics
    ///
    /// Panics when it is refused.
    #[track_caller]
    pub fn connect(&self) -> Connection {
        Connection::open(self.listener).expect("the listener accepts")
    }

    /// Sends a `GET` on a connection of its own, on which the answer is to be read.
    ///
    /// # Panics
    ///
    /// Panics when the listener takes no connection.
    #[track_caller]
    pub fn begin(&self, target: &str) -> Connection {
        let mut connection = self.connect();
        connection.send(head_bytes("GET", target, &[], 0)).expect("a new connection can be written to");
        connection
    }

    /// A `GET` on the metrics address.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn read(&self, target: &str) -> Result<Response, Failure> {
        get(self.metrics, target)
    }

    /// The sum of all series of this metric whose labels contain all of `labels`, each written `name="value"`.
    ///
    /// # Panics
    ///
    /// Panics when the metrics cannot be read.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let body = self.metrics_text();
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let series = body.lines().filter(of_name);
        let with_labels = series.filter(|line| labels.iter().all(|label| line.contains(label)));
        with_labels.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until no request is in flight: one is counted a moment after its answer has been sent.
    ///
    /// # Panics
    ///
    /// Panics when one goes on.
    #[track_caller]
    pub fn settle(&self) {
        wait::until(LONG, "nothing is in flight", || self.metric("lb_requests_in_flight", &[]) == 0.0);
    }

    /// The metrics as Prometheus reads them.
    ///
    /// # Panics
    ///
    /// Panics when they cannot be read.
    #[track_caller]
    pub fn metrics_text(&self) -> String {
        let mut answer = Connection::open(self.metrics).expect("the metrics address accepts");
        answer.send("GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").expect("it reads");
        let (status, head) = answer.response_head().expect("it answers");
        assert_eq!(status, 200, "{head:?}");
        let bytes = answer.rest_of_body(&head).expect("a whole body");
        String::from_utf8(bytes).expect("metrics are UTF-8")
    }

    /// The status as JSON.
    ///
    /// # Panics
    ///
    /// Panics when it cannot be read.
    #[track_caller]
    pub fn status(&self) -> Value {
        let answer = self.read("/api/v1/status").expect("the metrics address answers");
        serde_json::from_slice(&answer.body).expect("the status is JSON")
    }

    /// What the status says of a pool.
    ///
    /// # Panics
    ///
    /// Panics when it does not know the pool.
    #[track_caller]
    pub fn pool_status(&self, pool: &str) -> Value {
        let status = self.status();
        let pools = status["pools"].as_array().into_iter().flatten();
        let found = pools.into_iter().find(|known| known["name"] == pool).cloned();
        found.unwrap_or_else(|| panic!("no pool {pool} in {status:#}"))
    }

    /// What the status says of a backend of a pool.
    ///
    /// # Panics
    ///
    /// Panics when it does not know them.
    #[track_caller]
    pub fn backend_status(&self, pool: &str, backend: SocketAddr) -> Value {
        let (status, address) = (self.pool_status(pool), backend.to_string());
        let backends = status["backends"].as_array().into_iter().flatten();
        let found = backends.into_iter().find(|known| known["address"] == address.as_str()).cloned();
        found.unwrap_or_else(|| panic!("no backend {address} in {status:#}"))
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        self.logs.iter().map(|path| fs::read_to_string(path).unwrap_or_default()).collect()
    }

    /// Waits until the log has a line with all these words, and returns the first.
    #[track_caller]
    pub fn logged(&self, words: &[&str]) -> String {
        let found = wait::poll(LONG, || {
            let log = self.log();
            let mut lines = log.lines();
            lines.find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        });
        found.unwrap_or_else(|| panic!("no line of the log has all of {words:?}:\n{}", self.log()))
    }

    fn is(&self, state: Until) -> bool {
        let answers_200 = |target| self.read(target).is_ok_and(|answer| answer.status == 200);
        match state {
            Until::Ready => answers_200("/readyz"),
            Until::Listening => answers_200("/livez") && Connection::open(self.listener).is_ok(),
        }
    }
}

// ===== impl Daemon =====

impl Daemon {
    /// Waits for the process to end by itself.
    ///
    /// # Panics
    ///
    /// Panics when it does not end in time.
    #[track_caller]
    pub fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let status = wait::poll(deadline, || self.child.try_wait().expect("it is our child"));
        status.unwrap_or_else(|| panic!("still runs after {deadline:?}:\n{}", self.log()))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Ends it by `SIGTERM` and returns its exit code.
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
            self.view.read("/readyz").map(|answer| answer.text()),
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

/// The daemon's binary: `$LOAD_BALANCER_BIN`, or the one that cargo builds in the profile of this test.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| env::var_os("LOAD_BALANCER_BIN").map_or_else(build, PathBuf::from))
}

fn build() -> PathBuf {
    let test = env::current_exe().expect("a test knows its own path");
    let profile = test.parent().and_then(Path::parent).expect("a test lies in target/PROFILE/deps");
    let target = profile.parent().expect("a profile lies in the target directory");
    let name = profile.file_name().and_then(|name| name.to_str()).expect("a profile's name is text");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "shared", "--bin", "load_balancer", "--target-dir"]);
    command.arg(target).args(["--profile", if name == "debug" { "dev" } else { name }]);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo tells a test about itself would make build scripts run again, and with them most of the build.
    let about_the_test = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars().filter(|(name, _)| about_the_test(name)) {
        command.env_remove(name);
    }
    let status = command.status().expect("cargo can be run");
    assert!(status.success(), "the daemon does not build");
    profile.join("load_balancer")
}

fn create(path: &Path) -> File {
    File::create(path).expect("the directory of the test is writable")
}

fn end(child: &mut Child) {
    // Both fail only when it has ended already.
    let _: io::Result<()> = child.kill();
    let _: io::Result<ExitStatus> = child.wait();
}

/// A path of a test as text.
///
/// # Panics
///
/// Panics when it is not UTF-8; those of a [`Lab`] are.
pub fn path_str(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}
