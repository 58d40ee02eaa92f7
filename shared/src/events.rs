//! Log of the last thousand events: changes of the daemon with their time and reason.
//!
//! Code that changes something, or detects a change, [notes](Events::note) it. Readers request the events
//! [`after`](Events::after) the last one that they received, and can [wait](Events::wait_after) for new ones, so no
//! event is shown twice. Numbers increase by one, so a slow reader can detect that it missed events.
//!
//! A process that takes over continues the log of the old process. Each process numbers its own events, so that events
//! of the draining process and of the new one cannot be confused.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lb_service::pool::{PoolEvent, PoolObserver};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::http_message::parameters;
use crate::time::rfc3339;

/// Maximum number of events that are kept.
pub(crate) const KEPT: usize = 1000;
/// Maximum length of a text in bytes. A longer text is cut off, for example the changes by a reload of a long file; the
/// log contains all of it.
const LONGEST: usize = 2000;

/// Log of the latest events. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Events(Arc<Inner>);

/// Event that describes one change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// The number; the first event of a process has number 1.
    pub id: u64,
    /// The PID of the process that noted the event.
    #[serde(default)]
    pub process: u32,
    /// The time in UTC.
    pub time: String,
    /// The kind of change.
    pub kind: Kind,
    /// The pool that changed; `None` if the event is not about a pool.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pool: Option<String>,
    /// The backend that changed; `None` if the event is not about a backend.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub backend: Option<String>,
    /// The change and its reason: `is down: 3 checks failed: connection refused`.
    pub text: String,
}

/// Kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The process started to serve, started to drain, or handed over.
    Process,
    /// The health of a backend changed, or a pool lost its last ready backend or has one again.
    Health,
    /// A backend was ejected, or its ejection ended.
    Ejection,
    /// A pool entered or left panic mode.
    Panic,
    /// A reload was applied, refused or rolled back.
    Reload,
    /// An operator changed something.
    Operator,
}

/// Subject of an event.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct About<'a> {
    /// The pool; `None` if the event is not about a pool.
    pub pool: Option<&'a str>,
    /// The backend; `None` if the event is not about a backend.
    pub backend: Option<&'a str>,
}

#[derive(Debug)]
struct Inner {
    process: u32,
    /// The events of old processes, followed by those of this one.
    ring: Mutex<VecDeque<Event>>,
    /// The number of the latest event.
    latest: watch::Sender<u64>,
}

/// Returns the events as a JSON document: all of them, or with `after=N` those after number N of this process or of
/// `process=PID`.
///
/// # Errors
/// If the query is invalid.
pub(crate) fn document(events: &Events, query: Option<&str>) -> Result<String, String> {
    let (mut process, mut after) = (events.process(), 0);
    for parameter in parameters(query.unwrap_or_default()) {
        let (name, value) = parameter?;
        let wrong = |_| format!("`{name}` is not a number: {value:?}");
        match &*name {
            "after" => after = value.parse().map_err(wrong)?,
            "process" => process = value.parse().map_err(wrong)?,
            _ => return Err(format!("unknown parameter `{name}`; the parameters are after and process")),
        }
    }
    let text = serde_json::to_string_pretty(&events.after(process, after));
    Ok(text.expect("texts and numbers are JSON") + "\n")
}

// === impl Events ===

impl Events {
    /// Returns an empty log.
    pub(crate) fn new() -> Self {
        Self::continued(Vec::new(), std::process::id())
    }

    /// Returns a log that starts with the events of old processes. Newer events replace them.
    pub(crate) fn continued(before: Vec<Event>, process: u32) -> Self {
        let surplus = before.len().saturating_sub(KEPT);
        let ring = Mutex::new(before.into_iter().skip(surplus).collect());
        Self(Arc::new(Inner { process, ring, latest: watch::Sender::new(0) }))
    }

    /// Returns the PID of the process that notes events here.
    pub(crate) fn process(&self) -> u32 {
        self.0.process
    }

    /// Adds an event with the current time.
    pub(crate) fn note(&self, kind: Kind, about: About<'_>, text: impl Into<String>) {
        self.note_at(SystemTime::now(), kind, about, text.into());
    }

    fn note_at(&self, now: SystemTime, kind: Kind, about: About<'_>, text: String) {
        let mut ring = self.ring();
        let id = *self.0.latest.borrow() + 1;
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(Event {
            id,
            process: self.0.process,
            time: rfc3339(now),
            kind,
            pool: about.pool.map(str::to_owned),
            backend: about.backend.map(str::to_owned),
            text: shortened(text),
        });
        // This happens within the lock, so that numbers and order agree.
        self.0.latest.send_replace(id);
    }

    /// Returns the events after the event `id` of `process`, oldest first. Returns all events if `id` is 0, if this
    /// process has not reached this number, or if `process` is unknown.
    pub(crate) fn after(&self, process: u32, id: u64) -> Vec<Event> {
        let ring = self.ring();
        let is_to_come = process == self.0.process && id > *self.0.latest.borrow();
        let is_seen = |event: &Event| !is_to_come && event.process == process && event.id <= id;
        let seen = ring.iter().rposition(is_seen);
        ring.iter().skip(seen.map_or(0, |seen| seen + 1)).cloned().collect()
    }

    /// Returns the events after the event `id` of `process`. If there are none, this function waits for one, at most
    /// for `limit`.
    pub(crate) async fn wait_after(&self, process: u32, id: u64, limit: Duration) -> Vec<Event> {
        let mut latest = self.0.latest.subscribe();
        let newer = async {
            loop {
                // The number is marked as seen first, so that an event that arrives during the check counts as a
                // change.
                latest.mark_unchanged();
                let newer = self.after(process, id);
                // An error cannot occur, because the sender lives as long as `self`.
                if !newer.is_empty() || latest.changed().await.is_err() {
                    return newer;
                }
            }
        };
        tokio::time::timeout(limit, newer).await.unwrap_or_default()
    }

    fn ring(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.0.ring.lock()
    }
}

/// Cuts a text to [`LONGEST`] bytes.
fn shortened(mut text: String) -> String {
    if text.len() > LONGEST {
        let more = text.len() - text.floor_char_boundary(LONGEST);
        text.truncate(text.len() - more);
        text.push_str(&format!("... ({more} more bytes in the log)"));
    }
    text
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl PoolObserver for Events {
    fn observe(&self, pool: &str, event: &PoolEvent<'_>) {
        match *event {
            PoolEvent::Ejected { backend, time, why } => {
                let text = format!("is ejected for the next {:.1} s: {why}", time.as_secs_f64());
                self.note(Kind::Ejection, About::backend(pool, backend), text);
            }
            PoolEvent::Returned { backend, is_ready } => {
                let text = match is_ready {
                    true => "its ejection is over",
                    false => "its ejection is over, but its health checks fail",
                };
                self.note(Kind::Ejection, About::backend(pool, backend), text);
            }
            PoolEvent::Panic(true) => {
                self.note(Kind::Panic, About::pool(pool), "too few backends are available, so all are used");
            }
            PoolEvent::Panic(false) => self.note(Kind::Panic, About::pool(pool), "panic is over"),
            PoolEvent::Unready(true) => self.note(Kind::Health, About::pool(pool), "no backend is ready"),
            PoolEvent::Unready(false) => {
                self.note(Kind::Health, About::pool(pool), "a backend is ready again");
            }
        }
    }
}

impl health_service::Observer for Events {
    fn changed(&self, pool: &str, backend: &str, up: bool, reason: &str) {
        let text = format!("is {}: {reason}", if up { "up" } else { "down" });
        self.note(Kind::Health, About::backend(pool, backend), text);
    }
}

// === impl Kind ===

impl Kind {
    /// Returns the name in texts and documents.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Health => "health",
            Self::Ejection => "ejection",
            Self::Panic => "panic",
            Self::Reload => "reload",
            Self::Operator => "operator",
        }
    }
}

// === impl About ===

impl<'a> About<'a> {
    /// Returns the subject for a backend of a pool.
    pub(crate) fn backend(pool: &'a str, backend: &'a str) -> Self {
        Self { pool: Some(pool), backend: Some(backend) }
    }

    /// Returns the subject for a pool.
    pub(crate) fn pool(pool: &'a str) -> Self {
        Self { pool: Some(pool), backend: None }
    }
}

// === impl Event ===

impl std::fmt::Display for Event {
    /// Formats the event as one line for the terminal.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:<8} ", self.time, self.kind.as_str())?;
        match (&self.pool, &self.backend) {
            (Some(pool), Some(backend)) => write!(f, "{pool} {backend} ")?,
            (Some(pool), None) => write!(f, "{pool} ")?,
            _ => {}
        }
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(events: &[Event]) -> Vec<&str> {
        events.iter().map(|event| event.text.as_str()).collect()
    }

    #[test]
    fn the_latest_thousand_events_are_kept_in_order() {
        let events = Events::new();
        (1..=KEPT + 5).for_each(|n| events.note(Kind::Health, About::default(), n.to_string()));
        let kept = events.after(0, 0);
        assert_eq!(kept.len(), KEPT);
        assert_eq!((kept[0].id, kept[0].text.as_str()), (6, "6"));
        assert!(kept.windows(2).all(|pair| pair[1].id == pair[0].id + 1));
        assert_eq!(texts(&events.after(events.process(), KEPT as u64 + 3)), ["1004", "1005"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_reader_gets_the_next_event_or_times_out() {
        let events = Events::new();
        let own = events.process();
        events.note(Kind::Process, About::default(), "serves");
        assert_eq!(texts(&events.wait_after(own, 0, Duration::from_secs(9)).await), ["serves"]);
        assert!(events.wait_after(own, 1, Duration::from_secs(9)).await.is_empty());
        let waiting = tokio::spawn({
            let events = events.clone();
            async move { events.wait_after(own, 1, Duration::from_secs(9)).await }
        });
        tokio::task::yield_now().await;
        events.note(Kind::Panic, About::pool("web"), "is over");
        assert_eq!(texts(&waiting.await.unwrap()), ["is over"]);
    }

    #[test]
    fn the_document_contains_all_events_or_those_after_a_number() {
        let events = Events::new();
        ["one", "two"].iter().for_each(|text| events.note(Kind::Process, About::default(), *text));
        let read =
            |query| document(&events, query).map(|text| serde_json::from_str::<Vec<Event>>(&text).unwrap());
        assert_eq!(read(None).unwrap().len(), 2);
        assert_eq!(texts(&read(Some("after=1")).unwrap()), ["two"]);
        assert_eq!(read(Some("after=3")).unwrap().len(), 2, "this process has not reached the number");
        assert_eq!(read(Some("after=1&process=1")).unwrap().len(), 2, "the process is unknown");
        assert!(read(Some("after=x")).is_err() && read(Some("since=1")).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_of_the_old_process_gets_only_new_events() {
        let old = Events::continued(Vec::new(), 7);
        ["1", "2", "3"].iter().for_each(|text| old.note(Kind::Health, About::default(), *text));
        let new = Events::continued(old.after(7, 0), 8);
        old.note(Kind::Process, About::default(), "has handed over");
        assert!(new.wait_after(7, 3, Duration::from_secs(9)).await.is_empty());
        new.note(Kind::Process, About::default(), "serves");
        assert_eq!(texts(&new.after(8, 0)), ["1", "2", "3", "serves"]);
        assert_eq!(texts(&new.after(7, 2)), ["3", "serves"]);
        assert_eq!(
            texts(&new.after(7, 4)),
            ["serves"],
            "the reader received the last event of the old process there"
        );
        assert_eq!(texts(&new.wait_after(7, 4, Duration::from_secs(9)).await), ["serves"]);
        assert!(new.after(8, 1).is_empty());
        assert_eq!(new.after(9, 5).len(), 4, "the process is unknown");
        (0..KEPT).for_each(|_| new.note(Kind::Health, About::default(), "more"));
        assert_eq!(new.after(7, 4).len(), KEPT);
        assert_eq!(Events::continued(new.after(8, 0), 9).after(8, KEPT as u64).len(), 1);
    }

    /// Reading events must not hold a lock that noting events needs. The test uses threads, so that it can end even if
    /// they block.
    #[test]
    fn readers_and_writers_of_events_do_not_block_each_other() {
        const EACH: usize = 3000;
        let events = Events::continued(Vec::new(), 7);
        let follow = |events: Events| async move {
            let mut seen = 0;
            while seen < 2 * EACH as u64 {
                let received = events.wait_after(7, seen, Duration::from_secs(20)).await;
                seen = received.last().expect("an event arrives in time").id;
            }
        };
        let (done, is_done) = std::sync::mpsc::channel();
        for _ in 0..2 {
            let (events, done) = (events.clone(), done.clone());
            std::thread::spawn(move || {
                (0..EACH).for_each(|_| events.note(Kind::Health, About::default(), "more"));
                done.send(()).unwrap();
            });
        }
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(follow(events));
            done.send(()).unwrap();
        });
        for _ in 0..3 {
            is_done.recv_timeout(Duration::from_secs(20)).expect("no thread blocks the others");
        }
    }

    #[test]
    fn a_long_text_is_cut_at_a_character_boundary() {
        assert_eq!(shortened("short".into()), "short");
        let cut = shortened(format!("a{}", "ä".repeat(LONGEST)));
        assert!(cut.starts_with("aä") && cut.len() < LONGEST + 50, "{}", cut.len());
        assert!(cut.ends_with("ä... (2002 more bytes in the log)"), "{}", &cut[LONGEST - 20..]);
    }

    #[test]
    fn a_line_contains_time_kind_subject_and_text() {
        let events = Events::new();
        let about = About::backend("web", "10.0.0.1:80");
        events.note_at(SystemTime::UNIX_EPOCH, Kind::Health, about, "is down: refused".into());
        let line = events.after(0, 0)[0].to_string();
        assert_eq!(line, "1970-01-01T00:00:00.000Z health   web 10.0.0.1:80 is down: refused");
    }
}
