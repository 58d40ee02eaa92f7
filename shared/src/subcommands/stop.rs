//! Subcommand `stop`: makes every process of the daemon end, and waits for it.
//!
//! The process that serves receives the request at the control socket. Old processes that still drain have separate
//! sockets and receive the request at the same time. A process that hands over at this moment reports it in its
//! response, and the new process then receives the request as well.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Uid;

use super::{CommandError, document, json, sockets_before};
use crate::control::client::Unreachable;
use crate::control::{Client, Farewell, bodies, predecessors};
use crate::process::other::OtherProcess;
use crate::words::count_of;

/// Default time limit, which is longer than any drain.
const LIMIT: Duration = Duration::from_secs(48 * 3600);

/// Measured duration, which is displayed as `1.2 s`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Took(Duration);

/// Parameters of the request.
#[derive(Clone, Copy)]
struct Stop {
    now: bool,
    began: Instant,
    limit: Duration,
}

/// Response of one process.
type StopResult = Result<(Farewell, Took), CommandError>;

/// Stops the daemon of `client`, waits for its end, and writes the result to `out`.
///
/// # Errors
/// If the daemon cannot be reached, if it cut off requests without `now`, or if it does not end in time.
pub(super) fn run(
    client: &Client,
    now: bool,
    timeout: Option<Duration>,
    out: &mut impl Write,
) -> Result<(), CommandError> {
    // This comes before any stop: only the serving process can confirm the file; old processes do not report it.
    let predecessors = sockets_before(client)?;
    let stop = Stop { now, began: Instant::now(), limit: timeout.unwrap_or(LIMIT) };
    let owner = owner_of(client.socket());
    let (main, others) = thread::scope(|scope| {
        let threads: Vec<_> =
            predecessors.iter().map(|socket| scope.spawn(move || stop.predecessor(socket, owner))).collect();
        let main = stop.main(client);
        // A panic in a thread was already reported.
        let others: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect();
        (main, others)
    });
    // A process that was handing over during the first requests has its separate socket by now.
    let late =
        predecessors::sockets(client.socket()).into_iter().filter(|socket| !predecessors.contains(socket));
    let late: Vec<_> = late.filter_map(|socket| stop.predecessor(&socket, owner)).collect();
    let results = main.into_iter().chain(others).chain(late).map(|result| stop.report(result, out));
    // All results are reported, even if the first one is an error.
    results.collect::<Vec<_>>().into_iter().collect()
}

/// Returns the user of the daemon, which is the owner of its control socket.
fn owner_of(socket: &Path) -> Option<Uid> {
    socket.metadata().ok().map(|socket| Uid::from_raw(socket.uid()))
}

impl Stop {
    /// Stops the serving process. The result also contains processes that handed over in the meantime.
    fn main(self, client: &Client) -> Vec<StopResult> {
        let mut results = Vec::new();
        loop {
            let result = self.request(client);
            let is_over = !matches!(&result, Ok((farewell, _)) if farewell.handed_over);
            results.push(result);
            if is_over {
                return results;
            }
        }
    }

    /// Stops an old process. Returns `None` if the socket is stale, if the process ended by itself, or if the socket
    /// belongs to another user.
    fn predecessor(self, socket: &Path, owner: Option<Uid>) -> Option<StopResult> {
        use Unreachable::{Foreign, Gone, NotListening};
        match self.request(&Client::new(socket).trusting(owner.as_slice())) {
            Err(CommandError::Unreachable(NotListening { .. } | Gone { .. } | Foreign { .. })) => None,
            result => Some(result),
        }
    }

    fn request(self, client: &Client) -> StopResult {
        let left = self.limit.saturating_sub(self.began.elapsed()).max(Duration::from_millis(1));
        let reply = client.send("POST", "/v1/stop", &json(&bodies::Stop { now: self.now }), left);
        let farewell: Farewell = document(&reply.map_err(|error| self.explain(error))?)?;
        // The connection of a process closes before its end. A process that is not visible from here is ignored.
        OtherProcess::of(farewell.pid).ends_soon();
        Ok((farewell, Took(self.began.elapsed())))
    }

    fn explain(self, error: Unreachable) -> CommandError {
        match error {
            Unreachable::Silent { .. } => CommandError::Failed(format!(
                "the daemon still has requests in flight after {} and continues to drain; `stop --now` ends it immediately",
                Took(self.limit)
            )),
            Unreachable::Gone { .. } => CommandError::Failed(
                "the daemon ended without reporting the result of its drain: it was killed or it failed; see its log"
                    .into(),
            ),
            error => error.into(),
        }
    }

    fn report(self, result: StopResult, out: &mut impl Write) -> Result<(), CommandError> {
        let (Farewell { pid, reason, cut, .. }, took) = result?;
        let cut_words = count_of(cut, "request");
        let was_cut = |why| {
            Err(CommandError::Cut(format!("process {pid} ended after {took} because {why}; {cut_words} cut")))
        };
        match reason.as_str() {
            "failed" => {
                Err(CommandError::Failed(format!("process {pid} failed; {cut_words} cut; see its log")))
            }
            "drained" => Ok(writeln!(out, "process {pid} drained in {took}; {cut_words} cut")?),
            _ if cut == 0 || self.now => {
                Ok(writeln!(out, "process {pid} ended after {took}; {cut_words} cut")?)
            }
            "out_of_time" => was_cut("the drain timed out"),
            _ => was_cut("a signal or `stop --now` ended it immediately"),
        }
    }
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s", self.0.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(now: bool, reason: &str, cut: usize) -> Result<String, CommandError> {
        let stop = Stop { now, began: Instant::now(), limit: LIMIT };
        let farewell = Farewell { pid: 7, reason: reason.into(), cut, handed_over: false };
        let mut out = Vec::new();
        stop.report(Ok((farewell, Took(Duration::from_millis(1234)))), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_stop_reports_the_result_of_the_drain() {
        assert_eq!(report(false, "drained", 0).unwrap(), "process 7 drained in 1.2 s; 0 requests cut\n");
        assert_eq!(report(true, "at_once", 1).unwrap(), "process 7 ended after 1.2 s; 1 request cut\n");
        let cut = report(false, "out_of_time", 2).unwrap_err();
        assert_eq!(
            cut.to_string(),
            "process 7 ended after 1.2 s because the drain timed out; 2 requests cut"
        );
        assert!(
            matches!(report(false, "at_once", 2), Err(CommandError::Cut(_))),
            "another stop cut off requests"
        );
        assert!(matches!(report(false, "failed", 0), Err(CommandError::Failed(_))));
    }
}
