//! Measures the cost of one pick through Pingora's `select_with`, for each algorithm and for Pingora's round robin.
//! That is how other programs use a `Policy`. A `Pool` takes the candidates from its own `Policy`, which costs less.
//!
//! ```text
//! cargo bench -p lb-service --bench pick
//! ```
//!
//! Each round measures all of them, so that other work of the machine affects all equally. The output is a Markdown
//! table with the median of the rounds in nanoseconds, and the ratio to Pingora's round robin in the same column.

#![expect(clippy::unwrap_used, reason = "a benchmark fails if a step fails")]
#![expect(clippy::print_stdout, reason = "the table is the output")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::hint::black_box;
use std::time::{Duration, Instant};

use futures::FutureExt;
use lb_service::policy::{Algorithm, Policy, PolicyConfig};
use pingora::lb::selection::{BackendIter, BackendSelection, RoundRobin};
use pingora::lb::{Backend, Backends, LoadBalancer, discovery};

const SIZES: [usize; 4] = [2, 10, 100, 1000];
const ROUNDS: usize = 41;
const PICKS: u32 = 50_000;

/// One line of the table for one number of backends. It takes the number of picks and returns their duration.
type Subject = Box<dyn Fn(u32) -> Duration>;

fn members(backends: usize) -> BTreeSet<Backend> {
    let address = |index| format!("10.0.{}.{}:80", index / 250, index % 250);
    (0..backends).map(|index| Backend::new(&address(index)).unwrap()).collect()
}

fn subject<S>(config: Option<S::Config>, backends: usize) -> Subject
where
    S: BackendSelection + Send + Sync + 'static,
    S::Config: Send + Sync,
    S::Iter: BackendIter,
{
    let members = Backends::new(discovery::Static::new(members(backends)));
    let balancer = LoadBalancer::<S>::from_backends_with_config(members, config);
    balancer.update().now_or_never().unwrap().unwrap();
    let keys: Vec<String> = (0..1024).map(|key| format!("/images/{key}.png")).collect();
    Box::new(move |picks| {
        let began = Instant::now();
        for pick in 0..picks {
            let key = keys[pick as usize % keys.len()].as_bytes();
            black_box(balancer.select_with(black_box(key), backends, |_, ready| ready));
        }
        began.elapsed()
    })
}

fn subjects(backends: usize) -> Vec<(String, Subject)> {
    let pingora = ("Pingora's round robin".to_owned(), subject::<RoundRobin>(None, backends));
    let ours = Algorithm::ALL.map(|algorithm| {
        let config = PolicyConfig::new(algorithm).with_seed(1);
        (format!("`{}`", algorithm.as_str()), subject::<Policy>(Some(config), backends))
    });
    std::iter::once(pingora).chain(ours).collect()
}

/// Returns the median time of one pick for each subject, in nanoseconds.
fn medians(subjects: &[(String, Subject)]) -> Vec<f64> {
    let mut times = vec![Vec::new(); subjects.len()];
    for round in 0..ROUNDS {
        for turn in 0..subjects.len() {
            // Each round begins with another subject.
            let index = (turn + round) % subjects.len();
            times[index].push(subjects[index].1(PICKS));
        }
    }
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e9 / f64::from(PICKS)
    };
    times.into_iter().map(median).collect()
}

fn main() {
    let mut lines: Vec<String> = Vec::new();
    let (mut head, mut rule) = ("| one pick, ns (ratio) |".to_owned(), "|---|".to_owned());
    for backends in SIZES {
        let subjects = subjects(backends);
        let medians = medians(&subjects);
        write!(head, " {backends} backends |").unwrap();
        rule.push_str("---|");
        lines.resize(subjects.len(), String::new());
        for ((line, (name, _)), median) in lines.iter_mut().zip(&subjects).zip(&medians) {
            if line.is_empty() {
                *line = format!("| {name} |");
            }
            write!(line, " {median:.0} ({:.2}) |", median / medians[0]).unwrap();
        }
    }
    println!("{head}\n{rule}\n{}", lines.join("\n"));
}
