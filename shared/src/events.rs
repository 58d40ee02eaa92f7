//! What changed, when and why: the last thousand changes, for those who ask afterwards.
//!
//! Whoever changes something, or notices that something changed by itself, [notes](Events::note) it. Readers ask for what came
//! [`after`](Events::after) the event that they saw last, and may [wait](Events::wait_after) for it, so none is shown twice and
//! a reader that is too slow can see that it missed some: numbers go up by one.
//!
//! A process that takes over goes on with the changes that the one before it kept. Each process numbers its own, so that what the
//! old one notes while it finishes and what the new one notes are never taken for each other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lb_service::pool::{PoolEvent, PoolObserver};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::http_message::parameters;
use crate::time::rfc3339;

/// So many are kept.
pub const KEPT: usize = 1000;
/// A longer text is cut, in bytes: what a reload of a long file changed is in the log.
const LONGEST: usize = 2000;

/// The latest changes. Clones share them.
#[derive(Clone, Debug)]
pub struct Events(Arc<Inner>);

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number; the first of a process is 1.
    pub id: u64,
    /// The process that noted it.
    #[serde(default)]
    pub process: u32,
    /// When, in UTC.
    pub time: String,
    /// What kind of change it is.
    pub kind: Kind,
    /// The pool that it is about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pool: Option<String>,
    /// The backend that it is about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub backend: Option<String>,
    /// What and why, in words: `is down: 3 checks failed: connection refused`.
    pub text: String,
}

/// What kind of change it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The process began to serve, drains, or has handed over.
    Process,
    /// The checks of a backend changed their mind, or a pool came to have no ready backend, or has one again.
    Health,
    /// A backend was ejected, or came back.
    Ejection,
    /// A pool came to use all its backends, or ceased to.
    Panic,
    /// The configuration was read again: applied, refused or taken back.
    Reload,
    /// An operator changed something.
    Operator,
}

/// What an event is about, before it has a number and a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct About<'a> {
    /// The pool.
    pub pool: Option<&'a str>,
    /// The backend.
    pub backend: Option<&'a str>,
}

#[derive(Debug)]
struct Inner {
    process: u32,
    /// Of processes before this one, then of this one.
    ring: Mutex<VecDeque<Event>>,
    /// The number of the latest.
    latest: watch::Sender<u64>,
}

/// The changes as a JSON document, all of them or those `after=N` of this process, or of `process=PID`.
///
/// # Errors
/// What is wrong with the query.
pub fn document(events: &Events, query: Option<&str>) -> Result<String, String> {
    let (mut process, mut after) = (events.process(), 0);
    for parameter in parameters(query.unwrap_or_default()) {
        let (name, value) = parameter?;
        let wrong = |_| format!("`{name}` is not a number: {value:?}");
        match &*name {
            "after" => after = value.parse().map_err(wrong)?,
            "process" => process = value.parse().map_err(wrong)?,
            _ => return Err(format!("unknown parameter `{name}`; there are after and process")),
        }
    }
    let text = serde_json::to_string_pretty(&events.after(process, after));
    Ok(text.expect("texts and numbers are JSON") + "\n")
}

// === impl Events ===

impl Events {
    /// None yet.
    pub fn new() -> Self {
        Self::continued(Vec::new(), std::process::id())
    }

    /// Those of processes before this one, as they were handed over, until there are newer ones.
    pub fn continued(before: Vec<Event>, process: u32) -> Self {
        let surplus = before.len().saturating_sub(KEPT);
        let ring = Mutex::new(before.into_iter().skip(surplus).collect());
        Self(Arc::new(Inner { process, ring, latest: watch::Sender::new(0) }))
    }

    /// The process that notes here.
    pub fn process(&self) -> u32 {
        self.0.process
    }

    /// Something changed just now.
    pub fn note(&self, kind: Kind, about: About<'_>, text: impl Into<String>) {
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
        // Within the lock, so that numbers and order agree.
        self.0.latest.send_replace(id);
    }

    /// Those that came after the event with this number, of this process or of one before; all that are kept when that is 0, a
    /// number that this process has not come to, or one of a process of which nothing is known. The oldest is first.
    pub fn after(&self, process: u32, id: u64) -> Vec<Event> {
        let ring = self.ring();
        let is_to_come = process == self.0.process && id > *self.0.latest.borrow();
        let is_seen = |event: &Event| !is_to_come && event.process == process && event.id <= id;
        let seen = ring.iter().rposition(is_seen);
        ring.iter().skip(seen.map_or(0, |seen| seen + 1)).cloned().collect()
    }

    /// The same, and waits for one for so long if there is none yet.
    pub async fn wait_after(&self, process: u32, id: u64, patience: Duration) -> Vec<Event> {
        let mut latest = self.0.latest.subscribe();
        let newer = async {
            loop {
                // Marked as seen first: what comes while we look is a change.
                latest.mark_unchanged();
                let newer = self.after(process, id);
                // The sender lives as long as `self`.
                if !newer.is_empty() || latest.changed().await.is_err() {
                    return newer;
                }
            }
        };
        tokio::time::timeout(patience, newer).await.unwrap_or_default()
    }

    fn ring(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.0.ring.lock()
    }
}

/// At most [`LONGEST`] bytes of it.
fn shortened(mut text: String) -> String {
    if text.len() > LONGEST {
        let more = text.len() - text.floor_char_boundary(LONGEST);
        text.truncate(text.len() - more);
        text.push_str(&format!("... (and {more} bytes, which the log has)"));
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
                let text = format!("is ejected and back in {:.1} s: {why}", time.as_secs_f64());
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
                self.note(Kind::Panic, About::pool(pool), "too few backends are available, all are used");
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
    /// The word in texts and documents.
    pub fn as_str(self) -> &'static str {
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
    /// A backend of a pool.
    pub fn backend(pool: &'a str, backend: &'a str) -> Self {
        Self { pool: Some(pool), backend: Some(backend) }
    }

    /// A pool.
    pub fn pool(pool: &'a str) -> Self {
        Self { pool: Some(pool), backend: None }
    }
}

// === impl Event ===

impl std::fmt::Display for Event {
    /// One line, as the terminal shows it.
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
    fn the_latest_thousand_are_kept_in_order() {
        let events = Events::new();
        (1..=KEPT + 5).for_each(|n| events.note(Kind::Health, About::default(), n.to_string()));
        let kept = events.after(0, 0);
        assert_eq!(kept.len(), KEPT);
        assert_eq!((kept[0].id, kept[0].text.as_str()), (6, "6"));
        assert!(kept.windows(2).all(|pair| pair[1].id == pair[0].id + 1));
        assert_eq!(texts(&events.after(events.process(), KEPT as u64 + 3)), ["1004", "1005"]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_next_or_nothing_in_time() {
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
    fn the_document_has_all_or_those_after_a_number() {
        let events = Events::new();
        ["one", "two"].iter().for_each(|text| events.note(Kind::Process, About::default(), *text));
        let read =
            |query| document(&events, query).map(|text| serde_json::from_str::<Vec<Event>>(&text).unwrap());
        assert_eq!(read(None).unwrap().len(), 2);
        assert_eq!(texts(&read(Some("after=1")).unwrap()), ["two"]);
        assert_eq!(read(Some("after=3")).unwrap().len(), 2, "a number of another process, so it seems");
        assert_eq!(read(Some("after=1&process=1")).unwrap().len(), 2, "of a process that nobody knows");
        assert!(read(Some("after=x")).is_err() && read(Some("since=1")).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_followed_the_process_before_gets_what_it_has_not_seen() {
        let old = Events::continued(Vec::new(), 7);
        ["1", "2", "3"].iter().for_each(|text| old.note(Kind::Health, About::default(), *text));
        let new = Events::continued(old.after(7, 0), 8);
        old.note(Kind::Process, About::default(), "has handed over");
        assert!(new.wait_after(7, 3, Duration::from_secs(9)).await.is_empty());
        new.note(Kind::Process, About::default(), "serves");
        assert_eq!(texts(&new.after(8, 0)), ["1", "2", "3", "serves"]);
        assert_eq!(texts(&new.after(7, 2)), ["3", "serves"]);
        assert_eq!(texts(&new.after(7, 4)), ["serves"], "the end of the old one was seen there");
        assert_eq!(texts(&new.wait_after(7, 4, Duration::from_secs(9)).await), ["serves"]);
        assert!(new.after(8, 1).is_empty());
        assert_eq!(new.after(9, 5).len(), 4, "of a process that nobody knows");
        (0..KEPT).for_each(|_| new.note(Kind::Health, About::default(), "more"));
        assert_eq!(new.after(7, 4).len(), KEPT);
        assert_eq!(Events::continued(new.after(8, 0), 9).after(8, KEPT as u64).len(), 1);
    }

    /// Who looks for events holds none of the locks that who notes them needs. All are threads that a test may leave behind.
    #[test]
    fn who_waits_and_who_notes_do_not_wait_for_each_other() {
        const EACH: usize = 3000;
        let events = Events::continued(Vec::new(), 7);
        let follow = |events: Events| async move {
            let mut seen = 0;
            while seen < 2 * EACH as u64 {
                let told = events.wait_after(7, seen, Duration::from_secs(20)).await;
                seen = told.last().expect("one comes in time").id;
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
            is_done.recv_timeout(Duration::from_secs(20)).expect("nobody keeps the others from going on");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(shortened("short".into()), "short");
        let cut = shortened(format!("a{}", "ä".repeat(LONGEST)));
        assert!(cut.starts_with("aä") && cut.len() < LONGEST + 50, "{}", cut.len());
        assert!(cut.ends_with("ä... (and 2002 bytes, which the log has)"), "{}", &cut[LONGEST - 20..]);
    }

    #[test]
    fn a_line_says_when_what_kind_whom_and_what() {
        let events = Events::new();
        let about = About::backend("web", "10.0.0.1:80");
        events.note_at(SystemTime::UNIX_EPOCH, Kind::Health, about, "is down: refused".into());
        let line = events.after(0, 0)[0].to_string();
        assert_eq!(line, "1970-01-01T00:00:00.000Z health   web 10.0.0.1:80 is down: refused");
    }
}
