//! `stop`: has every process of the daemon end, and waits for that.
//!
//! The process that serves is asked at the control socket. Those before it, which have handed over and finish their requests, have
//! sockets of their own and are asked at the same time. A process that hands over just when it is asked answers so; its successor is
//! asked then.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Uid;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;

use super::{AskError, document, sockets_before};
use crate::control::client::Unreachable;
use crate::control::{Client, Farewell, predecessors};
use crate::words::count_of;

/// Longer than any drain.
const PATIENCE: Duration = Duration::from_secs(48 * 3600);
/// How long the kernel may take to remove a process that has closed everything.
const REMOVAL: Duration = Duration::from_secs(2);

/// A length of time as people read it: `1.2s`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Took(Duration);

/// What to ask for.
#[derive(Clone, Copy)]
struct Stop {
    now: bool,
    began: Instant,
    patience: Duration,
}

/// What one process has answered.
type Answer = Result<(Farewell, Took), AskError>;

/// Asks the daemon at this socket to end, and waits; writes how it went.
///
/// # Errors
/// When it is not there, requests were cut that `now` did not ask for, or it has not ended in time.
pub(super) fn run(
    client: &Client,
    now: bool,
    timeout: Option<Duration>,
    out: &mut impl Write,
) -> Result<(), AskError> {
    // Before any process is asked to end: those that have handed over do not say which file they are of.
    let predecessors = sockets_before(client)?;
    let stop = Stop { now, began: Instant::now(), patience: timeout.unwrap_or(PATIENCE) };
    let owner = owner_of(client.socket());
    let (main, others) = thread::scope(|scope| {
        let asked: Vec<_> =
            predecessors.iter().map(|socket| scope.spawn(move || stop.predecessor(socket, owner))).collect();
        let main = stop.main(client);
        // A thread that panics has said so.
        let others: Vec<_> = asked.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect();
        (main, others)
    });
    // One that was just handing over when the others were asked has its socket by now.
    let late =
        predecessors::sockets(client.socket()).into_iter().filter(|socket| !predecessors.contains(socket));
    let late: Vec<_> = late.filter_map(|socket| stop.predecessor(&socket, owner)).collect();
    let results = main.into_iter().chain(others).chain(late).map(|answer| stop.report(answer, out));
    // All of them are reported, whatever has become of the first.
    results.collect::<Vec<_>>().into_iter().collect()
}

/// The user that the daemon runs as: its control socket is given to it.
fn owner_of(socket: &Path) -> Option<Uid> {
    socket.metadata().ok().map(|socket| Uid::from_raw(socket.uid()))
}

impl Stop {
    /// The process that serves; before it, those that have handed over just now.
    fn main(self, client: &Client) -> Vec<Answer> {
        let mut answers = Vec::new();
        loop {
            let answer = self.ask(client);
            let is_over = !matches!(&answer, Ok((farewell, _)) if farewell.handed_over);
            answers.push(answer);
            if is_over {
                return answers;
            }
        }
    }

    /// `None`: it has left its socket behind, or ended by itself, or another user has put it there.
    fn predecessor(self, socket: &Path, owner: Option<Uid>) -> Option<Answer> {
        use Unreachable::{Foreign, Gone, Nobody};
        match self.ask(&Client::new(socket).trusting(owner.as_slice())) {
            Err(AskError::Unreachable(Nobody { .. } | Gone { .. } | Foreign { .. })) => None,
            answer => Some(answer),
        }
    }

    fn ask(self, client: &Client) -> Answer {
        let left = self.patience.saturating_sub(self.began.elapsed()).max(Duration::from_millis(1));
        let reply = client.ask("POST", "/v1/stop", &json!({"now": self.now}).to_string(), left);
        let farewell = serde_json::from_value(document(&reply.map_err(|error| self.explain(error))?)?);
        let farewell: Farewell = farewell.map_err(|error| AskError::Failed(error.to_string()))?;
        wait_removed(farewell.pid);
        Ok((farewell, Took(self.began.elapsed())))
    }

    fn explain(self, error: Unreachable) -> AskError {
        match error {
            Unreachable::Silent { .. } => AskError::Failed(format!(
                "the daemon still works on requests after {} and goes on finishing them; `stop --now` ends it at once",
                Took(self.patience)
            )),
            Unreachable::Gone { .. } => AskError::Failed(
                "the daemon has ended without saying how its drain went: it was killed, or has failed; look at its log"
                    .into(),
            ),
            error => error.into(),
        }
    }

    fn report(self, answer: Answer, out: &mut impl Write) -> Result<(), AskError> {
        let (Farewell { pid, reason, cut, .. }, took) = answer?;
        let cut_words = count_of(cut, "request");
        let was_cut =
            |why| Err(AskError::Cut(format!("process {pid} ended after {took}, {why}: {cut_words} cut")));
        match reason.as_str() {
            "failed" => {
                Err(AskError::Failed(format!("process {pid} has failed: {cut_words} cut; look at its log")))
            }
            "drained" => Ok(writeln!(out, "process {pid} drained in {took}; {cut_words} cut")?),
            _ if cut == 0 || self.now => {
                Ok(writeln!(out, "process {pid} ended after {took}; {cut_words} cut")?)
            }
            "out_of_time" => was_cut("the drain ran out of time"),
            _ => was_cut("it was ended at once by a signal or by `stop --now`"),
        }
    }
}

/// The connection has ended before the kernel has removed the process. One that cannot be seen from here is not waited for.
fn wait_removed(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(Ok(process)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { return };
    let timeout = PollTimeout::try_from(REMOVAL).unwrap_or(PollTimeout::ZERO);
    // It is gone, or is not: nothing depends on it.
    let _ = poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(&process), PollFlags::POLLIN)], timeout);
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}s", self.0.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(now: bool, reason: &str, cut: usize) -> Result<String, AskError> {
        let stop = Stop { now, began: Instant::now(), patience: PATIENCE };
        let farewell = Farewell { pid: 7, reason: reason.into(), cut, handed_over: false };
        let mut out = Vec::new();
        stop.report(Ok((farewell, Took(Duration::from_millis(1234)))), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_stop_says_how_it_went() {
        assert_eq!(report(false, "drained", 0).unwrap(), "process 7 drained in 1.2s; 0 requests cut\n");
        assert_eq!(report(true, "at_once", 1).unwrap(), "process 7 ended after 1.2s; 1 request cut\n");
        let cut = report(false, "out_of_time", 2).unwrap_err();
        assert_eq!(cut.to_string(), "process 7 ended after 1.2s, the drain ran out of time: 2 requests cut");
        assert!(matches!(report(false, "at_once", 2), Err(AskError::Cut(_))), "by somebody else");
        assert!(matches!(report(false, "failed", 0), Err(AskError::Failed(_))));
    }
}
