//! Who makes the changes: reads the file, carries orders out, watches, and takes back.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use lb_service::pool::SessionKeys;
use metrics_service::Reload as Counted;
use nix::unistd::Uid;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::config_status::{ConfigStatus, last_reload};
use super::diff::Diff;
use super::file::ConfigFile;
use super::keys::KeyFiles;
use super::order::{ChangeResult, Order, Outcome, Reload};
use super::rollback::{Judgement, Past, Trial};
use super::runtime::Runtime;
use super::watch::{Fingerprint, Watch};
use super::{Command, ENDING, Parts, TurnLock};
use crate::config::{self, Loaded, Plan, ProblemDocument, Problems, RealFiles, Severity};
use crate::events::{About, Kind};
use crate::process::logging::LogFilter;
use crate::status_document::LastReload;

/// Who makes the changes, and what is known to him alone.
pub(super) struct Changer {
    parts: Parts,
    commands: mpsc::UnboundedReceiver<Command>,
    status: Arc<ArcSwap<ConfigStatus>>,
    turn: Arc<TurnLock>,
    wanted: Wanted,
    /// What is in effect.
    effective: Plan,
    watch: Watch,
    keys: KeyFiles,
    past: Past,
    trial: Option<(Trial, Wanted)>,
}

/// What the plan in effect is made of.
#[derive(Clone)]
pub(super) struct Wanted {
    file: Plan,
    /// What the author of the file should look at.
    warnings: Arc<Problems>,
    runtime: Runtime,
}

/// What became of a file that was read again and can be used.
struct ReadAgain {
    /// What changed, or would change.
    lines: Vec<String>,
    /// What was lost of what operators had changed.
    lost: Vec<String>,
    /// What its author should look at.
    warnings: Arc<Problems>,
}

/// Why a change is not made.
enum Refusal {
    /// The file is wrong.
    File(Problems),
    /// These keys need a new process; the lines say what else would change.
    Process { keys: Vec<&'static str>, lines: Vec<String> },
    /// In words.
    Other(String),
}

/// How often the file and the answers are looked at.
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

    /// `reload.watch` is no error in a text that came from standard input: the same text may be a file elsewhere.
    fn warn_of_vain_watch(&self) {
        if let (true, Err(reason)) = (self.effective.reload.watch, self.reloadable()) {
            log::warn!("reload: `watch` has no effect: {reason}");
        }
    }

    fn reloadable(&self) -> Result<&ConfigFile, String> {
        self.parts.provenance.reloadable(std::process::id())
    }

    /// The process before this one may have read the file once more after this one did.
    async fn catch_up(&mut self) {
        let _turn = self.turn.clone().lock_owned().await;
        let file = self.parts.provenance.file().filter(|_| self.parts.takes_over);
        // One that this user may not see is as it was, for all that is known.
        let has_changed = |file: &ConfigFile| {
            Fingerprint::of(file.path()).is_some_and(|now| file.first_seen() != Some(now))
        };
        if file.is_some_and(has_changed) {
            self.reload(Reload { keep_runtime: true, ..Reload::default() }, "the file has changed meanwhile")
                .await;
        }
    }

    async fn follow(&mut self, command: Command) {
        match command {
            Command::Reload { reload, by, answer } => {
                let change_result = self.reload(reload, by).await;
                // The caller may have left: the change is made all the same.
                if let Some(answer) = answer {
                    let _ = answer.send(change_result);
                }
            }
            Command::Order { order, answer } => {
                let change_result = self.order(&order).await;
                let _ = answer.send(change_result);
            }
        }
    }

    /// What is due without an order.
    async fn look(&mut self) {
        let running = self.parts.running.clone();
        let tidied = running.clone();
        // It waits for a disk when a log has ended; a panic in there is none of ours.
        let _ = tokio::task::spawn_blocking(move || tidied.tidy()).await;
        if running.is_draining() {
            return;
        }
        self.look_at_answers().await;
        let now = self.parts.provenance.file().and_then(|file| Fingerprint::of(file.path()));
        if self.watch.look(now) && self.effective.reload.watch {
            self.reload(Reload::default(), "the file has changed").await;
        }
        self.look_at_keys().await;
    }

    // --- session keys ---

    /// Reads the session keys whose file has changed. Nothing else changes, and what operators ordered stays.
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
            // What is taken back is the configuration, and not the keys.
            before.file = before.file.clone().with_session_keys(path, keys);
        }
        if self.keys.solved(path) || is_new {
            self.tell_keys(path, keys.count());
        }
        Ok(())
    }

    fn tell_keys(&self, path: &Path, count: usize) {
        let keys = if count == 1 { "1 key is".to_owned() } else { format!("{count} keys are") };
        let text = format!("session keys of {}: {keys} in effect, the first signs", path.display());
        self.show(self.status.load().last_reload.clone());
        self.parts.metrics.set_generation(self.status.load().generation);
        log::info!("{text}");
        self.note(Kind::Reload, text);
    }

    fn refuse_keys(&mut self, path: &Path, why: &str) {
        self.keys.failed(path, why, SystemTime::now());
        self.show(self.status.load().last_reload.clone());
        let text = format!("session keys of {}: {why}; the keys read before stay in effect", path.display());
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
        let before = &self.wanted.runtime;
        let (runtime, lost) = match reload.keep_runtime {
            true => before.rebased(&plan),
            false => (Runtime::default(), before.lines()),
        };
        let before = self.wanted.clone();
        let wanted = Wanted { file: plan, warnings: warnings.clone(), runtime };
        let mut lines = self.apply(wanted, reload.dry_run).await?;
        let mut lost = name_dropped(&mut lines, lost);
        lost.extend(self.level_of(&before.file, level.as_ref(), reload));
        if !reload.dry_run && !lines.is_empty() {
            self.begin_trial(before);
        }
        Ok(ReadAgain { lines, lost, warnings })
    }

    /// The log level that an operator has set lasts until a file is read that has one. Says what becomes of both.
    fn level_of(&self, before: &Plan, level: Option<&LogFilter>, reload: Reload) -> Option<String> {
        let verbosity = &self.parts.verbosity;
        let level = level?;
        if let Some(ordered) = verbosity.ordered().filter(|_| !reload.keep_runtime) {
            if !reload.dry_run {
                verbosity.order(None);
            }
            return Some(format!("! dropped by this reload: the log level {ordered}"));
        }
        let variable = verbosity.by_variable().filter(|_| before.log_level.as_ref() != Some(level))?;
        Some(format!("! log_level has no effect: RUST_LOG is set to `{variable}`, which wins"))
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
        let changes = if lines.is_empty() { "nothing to change".into() } else { lines.join("; ") };
        self.note(Kind::Reload, format!("configuration {generation} is in effect: {changes}"));
        ChangeResult { changes: lines, ..self.change_result(result) }.with_warnings(&warnings)
    }

    fn not_reloaded(&mut self, refusal: &Refusal) -> ChangeResult {
        let problem = refusal.text();
        self.show(Some(last_reload("refused", Some(problem.trim_end()))));
        self.parts.metrics.reloaded(Counted::Refused, self.status.load().generation);
        log::error!("reload: refused, nothing has changed:\n{}", problem.trim_end());
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
                if self.parts.running.is_out_of_service(&order.pool) {
                    lines.push(format!("! pool {}: no backend is in service now", order.pool));
                }
                let backend = order.backend.to_string();
                for line in &lines {
                    log::info!("operator: {line}");
                    let about = About::backend(&order.pool, &backend);
                    self.parts.events.note(
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

    /// Puts what is wanted into effect; what has changed, or would.
    async fn apply(&mut self, wanted: Wanted, dry_run: bool) -> Result<Vec<String>, Refusal> {
        let effective = wanted.effective();
        let running = &self.parts.running;
        let in_flight = |pool: &str, address| running.in_flight(pool, address);
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
            // That may have taken a while.
            self.refuse_while_ending()?;
            running.commit(staged).await;
            (self.parts.observer)(&effective);
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
        self.parts.events.note(kind, About::default(), text);
    }

    fn change_result(&self, result: Outcome) -> ChangeResult {
        ChangeResult::of(result, self.status.load().generation)
    }

    // --- taking back ---

    /// One that is judged already is not known to be good: with it goes what came after it.
    fn begin_trial(&mut self, before: Wanted) {
        let (rule, open) = (self.effective.reload.rollback, self.trial.take());
        let answers = self.parts.running.answers();
        self.trial = rule.map(|rule| {
            let trial = self.past.try_it(rule, Instant::now(), answers);
            match open {
                Some((first, before)) => (trial.together_with(&first), before),
                None => (trial, before),
            }
        });
    }

    async fn look_at_answers(&mut self) {
        let (now, answers) = (Instant::now(), self.parts.running.answers());
        if let Some(rule) = self.effective.reload.rollback {
            self.past.note(now, answers, rule.window);
        }
        let Some((trial, _)) = &self.trial else { return };
        match trial.judge(now, answers) {
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
            Ok(_) => format!("taken back: {reason}; the configuration before is in effect as {generation}"),
            Err(refusal) => format!("{reason}, and it cannot be taken back: {}", refusal.text()),
        };
        self.show(Some(last_reload("rolled_back", Some(&text))));
        self.parts.metrics.reloaded(Counted::RolledBack, generation);
        log::error!("reload: {text}");
        self.note(Kind::Reload, text);
    }
}

/// A line of a diff without what the event says already.
fn without_subject(line: &str, pool: &str, backend: &str) -> String {
    let text = line.replacen(&format!("pool {pool}: backend {backend}"), "", 1);
    match text.split_once(' ') {
        Some(("+", rest)) => format!("is added{rest}"),
        Some(("-", rest)) => format!("is removed{rest}"),
        Some((_, rest)) => rest.trim_start_matches(": ").to_owned(),
        None => text,
    }
}

// === impl Wanted ===

impl Wanted {
    fn effective(&self) -> Plan {
        self.runtime.applied_to(&self.file)
    }

    /// What was ordered since is not taken back with a reload, unless it is of a backend that the file before did not have.
    fn follow(&mut self, order: &Order) {
        if let Ok(runtime) = self.runtime.after(order, &self.file) {
            self.runtime = runtime;
        }
    }
}

// === impl Refusal ===

impl Refusal {
    /// As it is printed.
    fn text(&self) -> String {
        match self {
            Self::File(problems) => config::text(problems, false),
            Self::Process { keys, .. } => {
                format!("a running process cannot change {}: {}", keys.join(", "), remedy(keys))
            }
            Self::Other(text) => text.clone(),
        }
    }

    /// In one line.
    fn summary(&self) -> String {
        match self {
            Self::File(problems) => {
                let mut errors = problems.list.iter().filter(|found| found.severity() == Severity::Error);
                let first = errors.next().map(|problem| problem.message.as_str());
                let more = errors.count();
                let more = if more == 0 { String::new() } else { format!(", and {more} more") };
                format!("{}{more}", first.unwrap_or("the file is wrong"))
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

/// How these keys are changed. An upgrade keeps the user and the group of the running process.
fn remedy(keys: &[&str]) -> &'static str {
    if keys.iter().any(|key| ["user", "group"].contains(key)) {
        "stop it and start it again"
    } else {
        "run `load_balancer upgrade`, which loses no request either"
    }
}

// === impl ChangeResult ===

impl ChangeResult {
    fn with_warnings(self, warnings: &Problems) -> Self {
        Self { warning: config::text(warnings, false), warnings: config::documents(warnings), ..self }
    }
}

/// Marks the lines about backends whose run-time change is `dropped`. Returns a line for each dropped change that no other line is
/// about, so that each change is listed once.
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

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(remedy(keys), "stop it and start it again");
        }
    }

    #[test]
    fn an_event_says_what_happens_and_leaves_out_whom() {
        let text = |line: &str| without_subject(line, "web", "10.0.0.1:80");
        assert_eq!(text("+ pool web: backend 10.0.0.1:80"), "is added");
        assert_eq!(text("+ pool web: backend 10.0.0.1:80 (weight 2)"), "is added (weight 2)");
        assert_eq!(text("~ pool web: backend 10.0.0.1:80: weight 1 -> 3"), "weight 1 -> 3");
        assert_eq!(
            text("- pool web: backend 10.0.0.1:80; its request in flight is finished"),
            "is removed; its request in flight is finished"
        );
    }
}
