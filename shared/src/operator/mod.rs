//! What changes while the daemon runs: a file that is read again, and what operators order.
//!
//! ```text
//! file ── config::load ──> Plan ─┐
//!                                ├─ Runtime::applied_to ─> wanted ─┐
//! orders ───────────────> Runtime┘                                 ├─ Diff ─> stage ─> commit
//!                                                       in effect ─┘          (may fail, unseen)
//! ```
//!
//! The plan in effect is always the file as it was read last, with what operators changed since. Either may change: then the
//! difference is computed, everything that it needs is [staged](crate::daemon::Running::stage), and put in place at once. What
//! cannot be staged changes nothing.
//!
//! **Invariant:** one task makes all changes, one after the other, so a change that is asked for by somebody who leaves meanwhile
//! is neither lost nor half done.

mod diff;
mod file;
mod order;
mod rollback;
mod runtime;
mod shown;
#[cfg(test)]
mod testing;
mod watch;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use metrics_service::{ConfigMetrics, Reload as Counted};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{self, Plan, Problems};
use crate::daemon::Running;
use crate::events::{About, Events, Kind};
use crate::process::systemd::Supervisor;
pub use diff::Diff;
pub use file::ConfigFile;
pub use order::{Change, Joining, Order, Reload, Verb, Verdict};
pub use rollback::Answers;
use rollback::{Judgement, Past, Trial};
pub use runtime::{Portable, Runtime};
pub use shown::{Document, LastReload, Shown};
use watch::{Print, Watch};

/// Asks for changes, and knows what they led to. Clones ask the same daemon.
#[derive(Clone)]
pub struct Operator {
    commands: mpsc::UnboundedSender<Command>,
    shown: Arc<ArcSwap<Shown>>,
    running: Running,
    events: Events,
}

/// Makes the changes: a service of its own, so that a change goes on when whoever asked for it has left.
pub struct OperatorService(Mutex<Option<Changer>>);

/// What a changer works with.
pub struct Parts {
    /// What serves.
    pub running: Running,
    /// What it was started by; absent: the command line.
    pub file: Option<ConfigFile>,
    /// What the file says; with the next, it is in effect.
    pub plan: Plan,
    /// What operators had changed in the process before this one.
    pub runtime: Runtime,
    /// Where changes are told.
    pub events: Events,
    /// Where reloads are counted.
    pub metrics: ConfigMetrics,
    /// Told when a reload begins and ends.
    pub supervisor: Supervisor,
    /// Is told of each change that is in effect.
    pub observer: Box<dyn Fn(&Plan) + Send + Sync>,
}

/// Somebody wants a change.
enum Command {
    Reload { reload: Reload, by: &'static str, answer: Option<oneshot::Sender<Verdict>> },
    Order { order: Order, answer: oneshot::Sender<Verdict> },
}

/// Who makes the changes, and what is known to him alone.
struct Changer {
    parts: Parts,
    commands: mpsc::UnboundedReceiver<Command>,
    shown: Arc<ArcSwap<Shown>>,
    wanted: Wanted,
    /// What is in effect.
    effective: Plan,
    watch: Watch,
    past: Past,
    trial: Option<(Trial, Wanted)>,
}

/// What the plan in effect is made of.
#[derive(Clone)]
struct Wanted {
    file: Plan,
    runtime: Runtime,
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

// === impl Operator ===

impl Operator {
    /// One that changes what `parts` say, and the service that does it.
    pub fn new(mut parts: Parts) -> (Self, OperatorService) {
        let (commands, received) = mpsc::unbounded_channel();
        let path = parts.file.as_ref().map(|file| file.path().to_owned());
        let wanted = Wanted { file: parts.plan.clone(), runtime: std::mem::take(&mut parts.runtime) };
        let shown = Arc::new(ArcSwap::from_pointee(Shown {
            generation: 1,
            file: path.clone(),
            since: SystemTime::now(),
            last_reload: None,
            runtime: wanted.runtime.clone(),
        }));
        let (running, events) = (parts.running.clone(), parts.events.clone());
        let changer = Changer {
            commands: received,
            shown: shown.clone(),
            effective: wanted.effective(),
            wanted,
            watch: Watch::new(path.and_then(|path| Print::of(&path))),
            past: Past::default(),
            trial: None,
            parts,
        };
        (Self { commands, shown, running, events }, OperatorService(Mutex::new(Some(changer))))
    }

    /// Reads the file again, and says what became of it.
    pub async fn reload(&self, reload: Reload) -> Verdict {
        self.ask(|answer| Command::Reload { reload, by: "command", answer: Some(answer) }).await
    }

    /// The same for a signal, which nobody waits for.
    pub fn reload_by_signal(&self) {
        // A process that has no changer any more is about to end.
        let reload = Reload::default();
        let _ = self.commands.send(Command::Reload { reload, by: "signal HUP", answer: None });
    }

    /// Carries an order out.
    pub async fn order(&self, order: Order) -> Verdict {
        self.ask(|answer| Command::Order { order, answer }).await
    }

    /// Returns when a backend works on no request.
    ///
    /// # Errors
    /// When nobody knows it.
    pub async fn idle(&self, pool: &str, backend: SocketAddr) -> Result<(), String> {
        self.running.idle(pool, backend).await
    }

    /// What operators changed, for the process that takes over: a variable of its environment.
    pub fn heritage(&self) -> Vec<(&'static str, String)> {
        let portable = self.shown.load().runtime.portable();
        let text = serde_json::to_string(&portable).expect("texts and numbers are JSON");
        vec![(HERITAGE, text)]
    }

    /// Which configuration is in effect.
    pub fn shown(&self) -> Arc<Shown> {
        self.shown.load_full()
    }

    /// What changed.
    pub fn events(&self) -> &Events {
        &self.events
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<Verdict>) -> Command) -> Verdict {
        let (answer, answered) = oneshot::channel();
        // Both fail when the process ends.
        let _ = self.commands.send(command(answer));
        answered.await.unwrap_or_else(|_| Verdict {
            result: Verb::Refused,
            generation: self.shown.load().generation,
            changes: Vec::new(),
            problem: "the process is ending".into(),
            problems: Vec::new(),
        })
    }
}

// === impl OperatorService ===

#[async_trait]
impl BackgroundService for OperatorService {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let changer = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(changer) = changer else { return };
        tokio::select! {
            () = changer.run() => {}
            _ = shutdown.wait_for(|ends| *ends) => {}
        }
    }
}

// === impl Changer ===

impl Changer {
    async fn run(mut self) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.follow(command).await,
                    None => return,
                },
                _ = looks.tick() => self.look().await,
            }
        }
    }

    async fn follow(&mut self, command: Command) {
        match command {
            Command::Reload { reload, by, answer } => {
                let verdict = self.reload(reload, by).await;
                // Whoever asked may have left: the change is made all the same.
                answer.map(|answer| answer.send(verdict));
            }
            Command::Order { order, answer } => {
                let verdict = self.order(&order).await;
                let _ = answer.send(verdict);
            }
        }
    }

    /// What is due without an order.
    async fn look(&mut self) {
        let running = self.parts.running.clone();
        // It waits for a disk when a log has ended; a panic in there is none of ours.
        let _ = tokio::task::spawn_blocking(move || running.tidy()).await;
        self.look_at_answers().await;
        let now = self.parts.file.as_ref().and_then(|file| Print::of(file.path()));
        if self.watch.look(now) && self.effective.reload.watch && !self.parts.running.is_draining() {
            self.reload(Reload::default(), "the file has changed").await;
        }
    }

    // --- the file ---

    async fn reload(&mut self, reload: Reload, by: &'static str) -> Verdict {
        if let Some(file) = &self.parts.file {
            self.watch = Watch::new(Print::of(file.path()));
        }
        if reload.dry_run {
            let result = self.read_again(reload).await;
            return self.dry_verdict(result);
        }
        self.parts.supervisor.reloading();
        let result = self.read_again(reload).await;
        log::info!("reload: {by}");
        let verdict = match result {
            Ok((lines, lost)) => self.reloaded(lines, lost),
            Err(refusal) => self.not_reloaded(&refusal),
        };
        self.parts.supervisor.ready(&format!("configuration {} is in effect", verdict.generation));
        verdict
    }

    /// What changed, and what was kept or lost of what operators had changed.
    async fn read_again(&mut self, reload: Reload) -> Result<(Vec<String>, Vec<String>), Refusal> {
        self.refuse_while_ending()?;
        let file = self.parts.file.as_ref().ok_or_else(|| Refusal::Other(NO_FILE.into()))?;
        let plan = file.load().map_err(Refusal::File)?.plan;
        let before = &self.wanted.runtime;
        let (runtime, lost) = match reload.keep_runtime {
            true => before.rebased(&plan),
            false => (Runtime::default(), before.lines()),
        };
        let lost = lost.into_iter().map(|line| format!("! no longer, since the file is read again: {line}"));
        let lost: Vec<_> = lost.collect();
        let before = self.wanted.clone();
        let lines = self.apply(Wanted { file: plan, runtime }, reload.dry_run).await?;
        if !reload.dry_run && !lines.is_empty() {
            self.begin_trial(before);
        }
        Ok((lines, lost))
    }

    fn reloaded(&mut self, mut lines: Vec<String>, lost: Vec<String>) -> Verdict {
        let result = if lines.is_empty() { Verb::Unchanged } else { Verb::Applied };
        let word = if result == Verb::Applied { "applied" } else { "unchanged" };
        lines.extend(lost);
        self.show(Some(LastReload::new(word, None)));
        let generation = self.shown.load().generation;
        self.parts.metrics.reloaded(Counted::Applied, generation);
        for line in &lines {
            log::info!("reload: {line}");
        }
        log::info!("reload: configuration {generation} is in effect");
        let changes = if lines.is_empty() { "nothing to change".into() } else { lines.join("; ") };
        self.note(Kind::Reload, format!("configuration {generation} is in effect: {changes}"));
        Verdict { changes: lines, ..self.verdict(result) }
    }

    fn not_reloaded(&mut self, refusal: &Refusal) -> Verdict {
        let problem = refusal.text();
        self.show(Some(LastReload::new("refused", Some(problem.trim_end()))));
        self.parts.metrics.reloaded(Counted::Refused, self.shown.load().generation);
        log::error!("reload: refused, nothing has changed:\n{}", problem.trim_end());
        self.note(Kind::Reload, format!("refused: {}", refusal.summary()));
        Verdict { problem, problems: refusal.problems(), ..self.verdict(Verb::Refused) }
    }

    fn dry_verdict(&self, result: Result<(Vec<String>, Vec<String>), Refusal>) -> Verdict {
        match result {
            Ok((mut lines, lost)) => {
                let result = if lines.is_empty() { Verb::Unchanged } else { Verb::WouldApply };
                lines.extend(lost);
                Verdict { changes: lines, ..self.verdict(result) }
            }
            Err(refusal) => {
                let (problem, problems) = (refusal.text(), refusal.problems());
                let changes = match refusal {
                    Refusal::Process { lines, .. } => lines,
                    _ => Vec::new(),
                };
                Verdict { changes, problem, problems, ..self.verdict(Verb::Refused) }
            }
        }
    }

    // --- orders ---

    async fn order(&mut self, order: &Order) -> Verdict {
        match self.carry_out(order).await {
            Err(refusal) => Verdict { problem: refusal.text(), ..self.verdict(Verb::Refused) },
            Ok(lines) if lines.is_empty() => self.verdict(Verb::Unchanged),
            Ok(mut lines) => {
                self.show(self.shown.load().last_reload.clone());
                self.parts.metrics.set_generation(self.shown.load().generation);
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
                Verdict { changes: lines, ..self.verdict(Verb::Applied) }
            }
        }
    }

    async fn carry_out(&mut self, order: &Order) -> Result<Vec<String>, Refusal> {
        self.refuse_while_ending()?;
        let runtime = self.wanted.runtime.after(order, &self.wanted.file).map_err(Refusal::Other)?;
        self.apply(Wanted { file: self.wanted.file.clone(), runtime }, false).await
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
            return Ok(diff.lines);
        }
        if !diff.lines.is_empty() {
            let staged = running.stage(&self.effective, &effective, &diff).await.map_err(Refusal::Other)?;
            running.commit(staged).await;
            (self.parts.observer)(&effective);
        }
        (self.wanted, self.effective) = (wanted, effective);
        if !diff.lines.is_empty() {
            let shown = Shown { since: SystemTime::now(), ..Shown::clone(&self.shown.load()) };
            self.shown.store(Arc::new(Shown { generation: shown.generation + 1, ..shown }));
        }
        Ok(diff.lines)
    }

    fn refuse_while_ending(&self) -> Result<(), Refusal> {
        let ends = self.parts.running.is_draining();
        if ends { Err(Refusal::Other("the process is draining: ask its successor".into())) } else { Ok(()) }
    }

    fn show(&self, last_reload: Option<LastReload>) {
        let shown = Shown::clone(&self.shown.load());
        let runtime = self.wanted.runtime.clone();
        self.shown.store(Arc::new(Shown { last_reload, runtime, ..shown }));
    }

    fn note(&self, kind: Kind, text: String) {
        self.parts.events.note(kind, About::default(), text);
    }

    fn verdict(&self, result: Verb) -> Verdict {
        Verdict {
            result,
            generation: self.shown.load().generation,
            changes: Vec::new(),
            problem: String::new(),
            problems: Vec::new(),
        }
    }

    // --- taking back ---

    fn begin_trial(&mut self, before: Wanted) {
        let rule = self.effective.reload.rollback;
        let answers = self.parts.running.answers();
        self.trial = rule.map(|rule| (self.past.try_it(rule, Instant::now(), answers), before));
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
        let generation = self.shown.load().generation;
        let text = match undone {
            Ok(_) => format!("taken back: {reason}; the configuration before is in effect as {generation}"),
            Err(refusal) => format!("{reason}, and it cannot be taken back: {}", refusal.text()),
        };
        self.show(Some(LastReload::new("rolled_back", Some(&text))));
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

/// What operators changed in the process before this one, as far as `plan` has a place for it: what its
/// [heritage](Operator::heritage) says, if it started this one.
pub fn inherited(plan: &Plan, lookup: impl Fn(&str) -> Option<String>) -> Runtime {
    let portable = lookup(HERITAGE).and_then(|text| serde_json::from_str::<Vec<Portable>>(&text).ok());
    let (kept, lost) = Runtime::from_portable(portable.unwrap_or_default()).rebased(plan);
    lost.iter().for_each(|line| log::warn!("upgrade: no longer, since the file has changed: {line}"));
    kept
}

/// The name of the variable.
const HERITAGE: &str = "LB_RUNTIME_CHANGES";

const NO_FILE: &str = "it runs without a configuration file, so there is none to read again";

// === impl Wanted ===

impl Wanted {
    fn effective(&self) -> Plan {
        self.runtime.applied_to(&self.file)
    }
}

// === impl Refusal ===

impl Refusal {
    /// As it is printed.
    fn text(&self) -> String {
        match self {
            Self::File(problems) => config::text(problems, false),
            Self::Process { keys, .. } => format!(
                "a running process cannot change {}: run `load_balancer upgrade`, which loses no request either",
                keys.join(", ")
            ),
            Self::Other(text) => text.clone(),
        }
    }

    /// In one line.
    fn summary(&self) -> String {
        match self {
            Self::File(problems) => {
                let first = problems.list.first().map(|problem| problem.message.as_str());
                let more = problems.list.len().saturating_sub(1);
                let more = if more == 0 { String::new() } else { format!(", and {more} more") };
                format!("{}{more}", first.unwrap_or("the file is wrong"))
            }
            _ => self.text(),
        }
    }

    fn problems(&self) -> Vec<serde_json::Value> {
        match self {
            Self::File(problems) => config::json(problems).as_array().cloned().unwrap_or_default(),
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
