//! Task that makes the changes: it reloads the file, executes orders, watches files, and rolls back.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use lb_service::pool::{SessionKeys, UpstreamAddress};
use metrics_service::Reload as Counted;
use nix::unistd::Uid;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::config_status::{ConfigStatus, last_reload};
use super::file::ConfigFile;
use super::keys::KeyFiles;
use super::order::{Change, ChangeResult, Order, Outcome, Reload};
use super::rollback::{Judgement, Past, Trial};
use super::runtime::Runtime;
use super::watch::{Fingerprint, Watch};
use super::{Command, ENDING, Parts, TurnLock};
use crate::config::{self, Loaded, Plan, ProblemDocument, Problems, RealFiles, Severity};
use crate::events::{About, Kind};
use crate::process::logging::LogFilter;
use crate::serving::Diff;
use crate::status_document::LastReload;

/// State of the task that makes the changes.
pub(super) struct Changer {
    parts: Parts,
    commands: mpsc::UnboundedReceiver<Command>,
    status: Arc<ArcSwap<ConfigStatus>>,
    turn: Arc<TurnLock>,
    wanted: Wanted,
    /// The plan in effect.
    effective: Plan,
    watch: Watch,
    keys: KeyFiles,
    past: Past,
    trial: Option<(Trial, Wanted)>,
}

/// Inputs from which the plan in effect is computed.
#[derive(Clone)]
pub(super) struct Wanted {
    file: Plan,
    /// The warnings about the file.
    warnings: Arc<Problems>,
    runtime: Runtime,
}

/// Result of reading a valid file again.
struct ReadAgain {
    /// The changes that were made, or would be made.
    lines: Vec<String>,
    /// The changes of operators that were dropped.
    lost: Vec<String>,
    /// The warnings about the file.
    warnings: Arc<Problems>,
}

/// Log levels of a reload. An operator's level lasts until a file with a level is loaded.
#[derive(Default)]
struct LevelChange {
    /// The level that an operator has set.
    ordered: Option<LogFilter>,
    /// The level in `RUST_LOG`.
    variable: Option<LogFilter>,
    /// The level in the previous file.
    before: Option<LogFilter>,
    /// The level in the new file.
    file: Option<LogFilter>,
    /// Whether the reload keeps the changes of operators.
    keeps_order: bool,
}

/// Lines about the log level in the result of a reload.
#[derive(Debug, Default, PartialEq)]
struct LevelLines {
    /// The change of the level in effect that is not a change of the file.
    change: Option<String>,
    /// The level that has no effect, or is dropped.
    note: Option<String>,
}

/// Reason why a change is not made.
enum Refusal {
    /// The file is invalid.
    File(Problems),
    /// These keys need a new process; the lines describe the other changes.
    Process { keys: Vec<&'static str>, lines: Vec<String> },
    /// Any other reason, as a sentence.
    Other(String),
}

/// Interval between checks of the files and of the response counts.
const LOOK: Duration = Duration::from_millis(500);

// === impl Changer ===

impl Changer {
    pub(super) fn new(
        mut parts: Parts,
        commands: mpsc::UnboundedReceiver<Command>,
        status: Arc<ArcSwap<ConfigStatus>>,
        turn: Arc<TurnLock>,
    ) -> Self {
        let wanted = Wanted {
            file: parts.plan.clone(),
            warnings: Arc::new(std::mem::take(&mut parts.warnings)),
            runtime: std::mem::take(&mut parts.runtime),
        };
        let watch = Watch::new(parts.provenance.file().and_then(ConfigFile::first_seen));
        let effective = wanted.effective();
        let (keys, past) = (KeyFiles::default(), Past::default());
        Self { parts, commands, status, turn, wanted, effective, watch, keys, past, trial: None }
    }

    pub(super) async fn run(mut self) {
        self.catch_up().await;
        self.warn_of_vain_watch();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => {
                        let _turn = self.turn.clone().lock_owned().await;
                        self.follow(command).await;
                    }
                    None => return,
                },
                _ = looks.tick() => {
                    let _turn = self.turn.clone().lock_owned().await;
                    self.look().await;
                }
            }
        }
    }

    /// Warns if `reload.watch` has no effect. It is not an error in a text from standard input, because the same text
    /// might be used as a file elsewhere.
    fn warn_of_vain_watch(&self) {
        if let (true, Err(reason)) = (self.effective.reload.watch, self.reloadable()) {
            log::warn!("reload: `watch` has no effect: {reason}");
        }
    }

    fn reloadable(&self) -> Result<&ConfigFile, String> {
        self.parts.provenance.reloadable(std::process::id())
    }

    /// Reloads a file that changed during the upgrade, because the old process might have read it after this one did.
    async fn catch_up(&mut self) {
        let _turn = self.turn.clone().lock_owned().await;
        let file = self.parts.provenance.file().filter(|_| self.parts.takes_over);
        // A file that this user is not allowed to see counts as unchanged.
        let has_changed = |file: &ConfigFile| {
            Fingerprint::of(file.path()).is_some_and(|now| file.first_seen() != Some(now))
        };
        if file.is_some_and(has_changed) {
            self.reload(
                Reload { keep_runtime: true, ..Reload::default() },
                "the file changed during the upgrade",
            )
            .await;
        }
    }

    async fn follow(&mut self, command: Command) {
        match command {
            Command::Reload { reload, by, result } => {
                let change_result = self.reload(reload, by).await;
                // The caller might have gone away; the change is made anyway.
                if let Some(result) = result {
                    let _ = result.send(change_result);
                }
            }
            Command::Order { order, result } => {
                let change_result = self.order(&order).await;
                let _ = result.send(change_result);
            }
        }
    }

    /// Does the periodic work.
    async fn look(&mut self) {
        let running = self.parts.running.clone();
        let tidied = running.clone();
        // This call waits for the disk when a log was closed. A panic in it does not end the changer.
        let _ = tokio::task::spawn_blocking(move || tidied.tidy()).await;
        if running.is_draining() {
            return;
        }
        self.look_at_responses().await;
        let now = self.parts.provenance.file().and_then(|file| Fingerprint::of(file.path()));
        if self.watch.look(now) && self.effective.reload.watch {
            self.reload(Reload::default(), "the file changed").await;
        }
        self.look_at_keys().await;
    }

    // --- session keys ---

    /// Reads the session keys of files that changed. Nothing else changes; orders of operators stay in effect.
    async fn look_at_keys(&mut self) {
        for path in self.keys.due(&self.wanted.file.key_files, Fingerprint::of) {
            let uid = Uid::effective().as_raw();
            let result = match config::session_keys(&path, &RealFiles, uid) {
                Ok(keys) => self.take_keys(&path, &keys).await.map_err(|refusal| refusal.text()),
                Err(error) => Err(error.why),
            };
            if let Err(why) = result {
                self.refuse_keys(&path, &why);
            }
        }
    }

    async fn take_keys(&mut self, path: &Path, keys: &SessionKeys) -> Result<(), Refusal> {
        let Wanted { file, warnings, runtime } = self.wanted.clone();
        let wanted = Wanted { file: file.with_session_keys(path, keys), warnings, runtime };
        let is_new = wanted.file != self.wanted.file;
        self.apply(wanted, false).await?;
        if let Some((_, before)) = &mut self.trial {
            // A rollback restores the configuration but not the keys.
            before.file = before.file.clone().with_session_keys(path, keys);
        }
        if self.keys.solved(path) || is_new {
            self.tell_keys(path, keys.count());
        }
        Ok(())
    }

    fn tell_keys(&self, path: &Path, count: usize) {
        let keys = if count == 1 { "1 key is".to_owned() } else { format!("{count} keys are") };
        let text = format!("session keys of {}: {keys} in effect; the first one signs", path.display());
        self.show(self.status.load().last_reload.clone());
        self.parts.metrics.set_generation(self.status.load().generation);
        log::info!("{text}");
        self.note(Kind::Reload, text);
    }

    fn refuse_keys(&mut self, path: &Path, why: &str) {
        self.keys.failed(path, why, SystemTime::now());
        self.show(self.status.load().last_reload.clone());
        let text = format!("session keys of {}: {why}; the previous keys stay in effect", path.display());
        log::error!("{text}");
        self.note(Kind::Reload, text);
    }

    // --- the file ---

    async fn reload(&mut self, reload: Reload, by: &'static str) -> ChangeResult {
        if reload.dry_run {
            let result = self.read_again(reload).await;
            return self.dry_result(result);
        }
        if let Some(file) = self.parts.provenance.file() {
            self.watch = Watch::new(Fingerprint::of(file.path()));
        }
        self.parts.supervisor.reloading();
        let result = self.read_again(reload).await;
        log::info!("reload: {by}");
        let change_result = match result {
            Ok(read) => self.reloaded(read),
            Err(refusal) => self.not_reloaded(&refusal),
        };
        self.parts.supervisor.reloaded(&format!("configuration {} is in effect", change_result.generation));
        change_result
    }

    async fn read_again(&mut self, reload: Reload) -> Result<ReadAgain, Refusal> {
        self.refuse_while_ending()?;
        let file = self.reloadable().map_err(Refusal::Other)?;
        let Loaded { plan, warnings, .. } = file.load().map_err(Refusal::File)?;
        let (level, warnings) = (plan.log_level.clone(), Arc::new(warnings));
        let level = self.level_change(level, reload);
        let before = &self.wanted.runtime;
        let (runtime, lost) = match reload.keep_runtime {
            true => before.rebased(&plan),
            false => (Runtime::default(), before.lines()),
        };
        let before = self.wanted.clone();
        let wanted = Wanted { file: plan, warnings: warnings.clone(), runtime };
        let mut lines = self.apply(wanted, reload.dry_run).await?;
        let mut lost = name_dropped(&mut lines, lost);
        if !reload.dry_run && !lines.is_empty() {
            self.begin_trial(before);
        }
        let LevelLines { change, note } = level.lines();
        lines.extend(change.filter(|_| !lines.iter().any(|line| line.starts_with("log_level "))));
        lost.extend(note);
        if level.drops_order() && !reload.dry_run {
            self.parts.running.core.verbosity.order(None);
        }
        Ok(ReadAgain { lines, lost, warnings })
    }

    /// Returns the log levels before and after a reload of a file with this `level`.
    fn level_change(&self, level: Option<LogFilter>, reload: Reload) -> LevelChange {
        let verbosity = &self.parts.running.core.verbosity;
        LevelChange {
            ordered: verbosity.ordered(),
            variable: verbosity.by_variable(),
            before: self.wanted.file.log_level.clone(),
            file: level,
            keeps_order: reload.keep_runtime,
        }
    }

    fn reloaded(&mut self, read: ReadAgain) -> ChangeResult {
        let ReadAgain { mut lines, lost, warnings } = read;
        let result = if lines.is_empty() { Outcome::Unchanged } else { Outcome::Applied };
        let word = if result == Outcome::Applied { "applied" } else { "unchanged" };
        lines.extend(lost);
        self.show(Some(last_reload(word, None)));
        let generation = self.status.load().generation;
        self.parts.metrics.reloaded(Counted::Applied, generation);
        for line in &lines {
            log::info!("reload: {line}");
        }
        for line in config::lines(&warnings) {
            log::warn!("{line}");
        }
        log::info!("reload: configuration {generation} is in effect");
        let changes = if lines.is_empty() { "no changes".into() } else { lines.join("; ") };
        self.note(Kind::Reload, format!("configuration {generation} is in effect: {changes}"));
        ChangeResult { changes: lines, ..self.change_result(result) }.with_warnings(&warnings)
    }

    fn not_reloaded(&mut self, refusal: &Refusal) -> ChangeResult {
        let problem = refusal.text();
        self.show(Some(last_reload("refused", Some(problem.trim_end()))));
        self.parts.metrics.reloaded(Counted::Refused, self.status.load().generation);
        log::error!("reload: rejected, nothing changed:\n{}", problem.trim_end());
        self.note(Kind::Reload, format!("refused: {}", refusal.summary()));
        ChangeResult { problem, problems: refusal.problems(), ..self.change_result(Outcome::Refused) }
    }

    fn dry_result(&self, result: Result<ReadAgain, Refusal>) -> ChangeResult {
        match result {
            Ok(ReadAgain { mut lines, lost, warnings }) => {
                let result = if lines.is_empty() { Outcome::Unchanged } else { Outcome::WouldApply };
                lines.extend(lost);
                ChangeResult { changes: lines, ..self.change_result(result) }.with_warnings(&warnings)
            }
            Err(refusal) => {
                let (problem, problems) = (refusal.text(), refusal.problems());
                let changes = match refusal {
                    Refusal::Process { lines, .. } => lines,
                    _ => Vec::new(),
                };
                ChangeResult { changes, problem, problems, ..self.change_result(Outcome::Refused) }
            }
        }
    }

    // --- orders ---

    async fn order(&mut self, order: &Order) -> ChangeResult {
        match self.carry_out(order).await {
            Err(refusal) => ChangeResult { problem: refusal.text(), ..self.change_result(Outcome::Refused) },
            Ok(lines) if lines.is_empty() => self.change_result(Outcome::Unchanged),
            Ok(mut lines) => {
                self.show(self.status.load().last_reload.clone());
                self.parts.metrics.set_generation(self.status.load().generation);
                lines.extend(own_address(&self.effective, order));
                if self.parts.running.is_out_of_service(&order.pool) {
                    lines.push(format!("! pool {}: no backend is in service now", order.pool));
                }
                let backend = order.backend.to_string();
                for line in &lines {
                    log::info!("operator: {line}");
                    let about = About::backend(&order.pool, &backend);
                    self.parts.running.core.events.note(
                        Kind::Operator,
                        about,
                        without_subject(line, &order.pool, &backend),
                    );
                }
                ChangeResult { changes: lines, ..self.change_result(Outcome::Applied) }
            }
        }
    }

    async fn carry_out(&mut self, order: &Order) -> Result<Vec<String>, Refusal> {
        self.refuse_while_ending()?;
        let runtime = self.wanted.runtime.after(order, &self.wanted.file).map_err(Refusal::Other)?;
        let lines = self.apply(Wanted { runtime, ..self.wanted.clone() }, false).await?;
        if let Some((_, before)) = &mut self.trial {
            before.follow(order);
        }
        Ok(lines)
    }

    // --- both ---

    /// Puts the wanted plan into effect, and returns the changes that were made or, in a dry run, would be made.
    async fn apply(&mut self, wanted: Wanted, dry_run: bool) -> Result<Vec<String>, Refusal> {
        let effective = wanted.effective();
        let running = &self.parts.running;
        let in_flight = |pool: &str, address: &UpstreamAddress| running.in_flight(pool, address);
        let diff = Diff::between(&self.effective, &effective, &in_flight);
        if !diff.needs_process.is_empty() {
            return Err(Refusal::Process { keys: diff.needs_process, lines: diff.lines });
        }
        if dry_run {
            running.rehearse(&self.effective, &effective, &diff).map_err(Refusal::Other)?;
            return Ok(diff.lines);
        }
        if !diff.lines.is_empty() {
            let staged = running.stage(&self.effective, &effective, &diff).await.map_err(Refusal::Other)?;
            // Staging can take long, so the process might have begun to drain.
            self.refuse_while_ending()?;
            running.commit(staged).await;
            running.adopt(&effective);
        }
        (self.wanted, self.effective) = (wanted, effective);
        if !diff.lines.is_empty() {
            self.status.store(Arc::new(self.status.load().next(SystemTime::now())));
        }
        Ok(diff.lines)
    }

    fn refuse_while_ending(&self) -> Result<(), Refusal> {
        let ends = self.parts.running.is_draining();
        if ends { Err(Refusal::Other(ENDING.into())) } else { Ok(()) }
    }

    fn show(&self, last_reload: Option<LastReload>) {
        let status = self.status.load().with_runtime(self.wanted.runtime.clone(), SystemTime::now());
        let status = status.with_key_files(self.keys.status(&self.wanted.file));
        let status = status.with_warnings(self.wanted.warnings.clone());
        self.status.store(Arc::new(status.with_last_reload(last_reload)));
    }

    fn note(&self, kind: Kind, text: String) {
        self.parts.running.core.events.note(kind, About::default(), text);
    }

    fn change_result(&self, result: Outcome) -> ChangeResult {
        ChangeResult::of(result, self.status.load().generation)
    }

    // --- rollback ---

    /// Starts judging a reload. If the reload before it is still being judged, a rollback undoes both.
    fn begin_trial(&mut self, before: Wanted) {
        let (rule, open) = (self.effective.reload.rollback, self.trial.take());
        let responses = self.parts.running.responses();
        self.trial = rule.map(|rule| {
            let trial = self.past.try_it(rule, Instant::now(), responses);
            match open {
                Some((first, before)) => (trial.together_with(&first), before),
                None => (trial, before),
            }
        });
    }

    async fn look_at_responses(&mut self) {
        let (now, responses) = (Instant::now(), self.parts.running.responses());
        if let Some(rule) = self.effective.reload.rollback {
            self.past.note(now, responses, rule.window);
        }
        let Some((trial, _)) = &self.trial else { return };
        match trial.judge(now, responses) {
            Judgement::Open => {}
            Judgement::Acquitted => self.trial = None,
            Judgement::Guilty { rate } => {
                if let Some((trial, before)) = self.trial.take() {
                    self.roll_back(before, &trial.reason(rate, now)).await;
                }
            }
        }
    }

    async fn roll_back(&mut self, before: Wanted, reason: &str) {
        let undone = self.apply(before, false).await;
        let generation = self.status.load().generation;
        let text = match undone {
            Ok(_) => format!(
                "rolled back: {reason}; the previous configuration is in effect as configuration {generation}"
            ),
            Err(refusal) => format!("cannot roll back: {}; {reason}", refusal.text()),
        };
        self.show(Some(last_reload("rolled_back", Some(&text))));
        self.parts.metrics.reloaded(Counted::RolledBack, generation);
        log::error!("reload: {text}");
        self.note(Kind::Reload, text);
    }
}

/// Returns a line of a diff without the pool and the backend, which the event contains already.
fn without_subject(line: &str, pool: &str, backend: &str) -> String {
    let text = line.replacen(&format!("pool {pool}: backend {backend}"), "", 1);
    match text.split_once(' ') {
        Some(("+", rest)) => format!("is added{rest}"),
        Some(("-", rest)) => format!("is removed{rest}"),
        Some((_, rest)) => rest.trim_start_matches([':', ' ']).to_owned(),
        None => text,
    }
}

/// Returns a warning about an added backend that is this daemon itself, as LB025 is for the file.
fn own_address(plan: &Plan, order: &Order) -> Option<String> {
    let Change::Add(_) = order.change else { return None };
    let consequence = config::own_address(plan, &order.backend)?;
    Some(format!("! pool {}: backend {} is {consequence}", order.pool, order.backend))
}

// === impl Wanted ===

impl Wanted {
    fn effective(&self) -> Plan {
        self.runtime.applied_to(&self.file)
    }

    /// Adds an order to the plan for a rollback, so that the rollback keeps it. An order for a backend that the
    /// previous file does not have is dropped.
    fn follow(&mut self, order: &Order) {
        if let Ok(runtime) = self.runtime.after(order, &self.file) {
            self.runtime = runtime;
        }
    }
}

// === impl Refusal ===

impl Refusal {
    /// Returns the reason as it is printed.
    fn text(&self) -> String {
        match self {
            Self::File(problems) => config::text(problems, false),
            Self::Process { keys, .. } => {
                format!("a running process cannot change {}: {}", keys.join(", "), remedy(keys))
            }
            Self::Other(text) => text.clone(),
        }
    }

    /// Returns the reason in one line.
    fn summary(&self) -> String {
        match self {
            Self::File(problems) => {
                let mut errors = problems.list.iter().filter(|found| found.severity() == Severity::Error);
                let first = errors.next().map(|problem| problem.message.as_str());
                let more = errors.count();
                let more = if more == 0 { String::new() } else { format!(", and {more} more") };
                format!("{}{more}", first.unwrap_or("the file is invalid"))
            }
            _ => self.text(),
        }
    }

    fn problems(&self) -> Vec<ProblemDocument> {
        match self {
            Self::File(problems) => config::documents(problems),
            _ => Vec::new(),
        }
    }
}

/// Returns the command that changes these keys. An upgrade keeps the user and the group of the running process.
fn remedy(keys: &[&str]) -> &'static str {
    if keys.iter().any(|key| ["user", "group"].contains(key)) {
        "restart the daemon"
    } else {
        "run `load_balancer upgrade`, which does not lose requests"
    }
}

// === impl ChangeResult ===

impl ChangeResult {
    fn with_warnings(self, warnings: &Problems) -> Self {
        Self { warning: config::text(warnings, false), warnings: config::documents(warnings), ..self }
    }
}

/// Marks the lines about backends whose run-time change is `dropped`. Returns a line for each dropped change that no
/// other line is about, so that each change is listed once.
fn name_dropped(lines: &mut [String], dropped: Vec<String>) -> Vec<String> {
    let is_about = |line: &str, backend: &str| {
        let rest = line.get(2..).and_then(|line| line.strip_prefix(backend));
        rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
    };
    let mut alone = Vec::new();
    for change in dropped {
        let (backend, what) = change.rsplit_once(": ").unwrap_or((&change, ""));
        match lines.iter_mut().find(|line| is_about(line, backend)) {
            Some(line) => line.push_str(&format!("; this reload drops the run-time change ({what})")),
            None => alone.push(format!("! dropped by this reload: {change}")),
        }
    }
    alone
}

// === impl LevelChange ===

impl LevelChange {
    /// Returns whether the reload drops the level of the operator.
    fn drops_order(&self) -> bool {
        self.ordered.is_some() && self.file.is_some() && !self.keeps_order
    }

    fn lines(&self) -> LevelLines {
        let is_changed = self.before != self.file;
        match (&self.ordered, &self.variable, &self.file) {
            (Some(ordered), variable, Some(file)) if self.drops_order() => {
                let level = variable.as_ref().unwrap_or(file);
                let change = (ordered != level).then(|| format!("log_level {ordered} -> {level}"));
                LevelLines {
                    change,
                    note: Some(format!("! dropped by this reload: the log level {ordered}")),
                }
            }
            (Some(ordered), _, _) if is_changed => {
                LevelLines::note(format!("! the log level stays {ordered}: an operator set it at run time"))
            }
            (None, Some(variable), _) if is_changed => LevelLines::note(format!(
                "! the log level stays {variable}: RUST_LOG takes precedence over the file"
            )),
            _ => LevelLines::default(),
        }
    }
}

impl LevelLines {
    fn note(note: String) -> Self {
        Self { change: None, note: Some(note) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_lists_each_log_level_that_changes_is_dropped_or_has_no_effect() {
        let level = |text: &str| (!text.is_empty()).then(|| LogFilter::parse(text).unwrap());
        let lines = |ordered, variable, before, file, keeps_order| {
            let (ordered, variable, before, file) =
                (level(ordered), level(variable), level(before), level(file));
            let LevelLines { change, note } =
                LevelChange { ordered, variable, before, file, keeps_order }.lines();
            [change.unwrap_or_default(), note.unwrap_or_default()]
        };
        let dropped = "! dropped by this reload: the log level debug";
        let stays = "! the log level stays debug: an operator set it at run time";
        let variable = "! the log level stays warn: RUST_LOG takes precedence over the file";
        assert_eq!(lines("debug", "", "info", "warn", false), ["log_level debug -> warn", dropped]);
        assert_eq!(
            lines("debug", "debug", "info", "warn", false),
            ["", dropped],
            "RUST_LOG has the same level"
        );
        assert_eq!(lines("debug", "", "warn", "warn", false), ["log_level debug -> warn", dropped]);
        assert_eq!(lines("debug", "", "info", "", false), ["", stays], "the file has no level");
        assert_eq!(lines("debug", "", "info", "warn", true), ["", stays]);
        assert_eq!(lines("debug", "", "warn", "warn", true), ["", ""]);
        assert_eq!(lines("", "warn", "info", "error", false), ["", variable]);
        assert_eq!(lines("", "", "info", "error", false), ["", ""]);
    }

    #[test]
    fn a_dropped_change_is_listed_once() {
        let drain = "~ pool web: backend 10.0.0.1:8: draining -> in service";
        let mut lines = vec!["~ pool web: backend 10.0.0.1:80: weight 1 -> 2".to_owned(), drain.to_owned()];
        let dropped = ["pool web: backend 10.0.0.1:8: draining", "pool old: backend 10.0.0.9:80: removed"];
        let alone = name_dropped(&mut lines, dropped.map(str::to_owned).into());
        assert_eq!(lines[0], "~ pool web: backend 10.0.0.1:80: weight 1 -> 2");
        assert_eq!(lines[1], format!("{drain}; this reload drops the run-time change (draining)"));
        assert_eq!(alone, ["! dropped by this reload: pool old: backend 10.0.0.9:80: removed"]);
    }

    #[test]
    fn an_upgrade_is_not_advised_for_another_user() {
        assert!(remedy(&["threads", "pid_file"]).contains("load_balancer upgrade"));
        for keys in [&["user"][..], &["threads", "group"]] {
            assert_eq!(remedy(keys), "restart the daemon");
        }
    }

    #[test]
    fn the_text_of_an_event_omits_the_pool_and_the_backend() {
        let text = |line: &str| without_subject(line, "web", "10.0.0.1:80");
        assert_eq!(text("+ pool web: backend 10.0.0.1:80"), "is added");
        assert_eq!(text("+ pool web: backend 10.0.0.1:80 (weight 2)"), "is added (weight 2)");
        assert_eq!(text("~ pool web: backend 10.0.0.1:80: weight 1 -> 3"), "weight 1 -> 3");
        assert_eq!(
            text("- pool web: backend 10.0.0.1:80; its request in flight will complete"),
            "is removed; its request in flight will complete"
        );
    }
}
