//! Files of session keys, which are read again after a change without a reload.
//!
//! Each file is checked as often as the configuration file. It is read when two consecutive checks find the same state,
//! so that a file is not read while it is being written. If the keys cannot be read, the previous keys stay in effect,
//! and the status shows the problem until it is solved.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use lb_service::pool::SessionKeys;

use super::watch::Fingerprint;
use crate::config::{KeyFile, Plan};
use crate::status_document::KeyFileStatus;
use crate::time::rfc3339;

/// Observed states of all key files.
#[derive(Debug, Default)]
pub(super) struct KeyFiles(BTreeMap<PathBuf, Seen>);

/// Observed state of one key file.
#[derive(Debug, Default)]
struct Seen {
    latest: Option<Fingerprint>,
    /// The state at the last read; the outer `None` means that the file was not read yet, the inner `None` that it did
    /// not exist.
    read: Option<Option<Fingerprint>>,
    problem: Option<KeyProblem>,
}

/// Reason why the keys of a file are not in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KeyProblem {
    why: String,
    since: SystemTime,
}

// === impl KeyFiles ===

impl KeyFiles {
    /// Checks the files of a plan with `fingerprint` and returns those that must be read.
    pub(super) fn due(
        &mut self,
        files: &[KeyFile],
        fingerprint: impl Fn(&Path) -> Option<Fingerprint>,
    ) -> Vec<PathBuf> {
        self.0.retain(|path, _| files.iter().any(|file| file.path == *path));
        for file in files {
            self.0.entry(file.path.clone()).or_default();
        }
        let changed =
            self.0.iter_mut().filter_map(|(path, seen)| seen.look(fingerprint(path)).then_some(path));
        changed.cloned().collect()
    }

    /// Records that the keys of a file are in effect, and returns whether this ends a problem.
    pub(super) fn solved(&mut self, path: &Path) -> bool {
        self.0.get_mut(path).and_then(|seen| seen.problem.take()).is_some()
    }

    /// Records that the current keys of a file are not in effect.
    pub(super) fn failed(&mut self, path: &Path, why: &str, now: SystemTime) {
        let seen = self.0.entry(path.to_owned()).or_default();
        let since = seen.problem.as_ref().map_or(now, |problem| problem.since);
        seen.problem = Some(KeyProblem { why: why.to_owned(), since });
    }

    /// Returns the status of each file of a plan, each file once.
    pub(super) fn status(&self, plan: &Plan) -> Vec<KeyFileStatus> {
        let mut paths: Vec<_> = plan.key_files.iter().map(|file| file.path.as_path()).collect();
        paths.sort();
        paths.dedup();
        paths.into_iter().map(|path| self.status_of(path, plan)).collect()
    }

    fn status_of(&self, path: &Path, plan: &Plan) -> KeyFileStatus {
        let users = plan.key_files.iter().filter(|file| file.path == path);
        let pools: Vec<_> = users.map(|file| file.pool.to_string()).collect();
        let mut settings =
            plan.pools.iter().filter(|(pool, _)| pools.iter().any(|name| **name == *pool.name));
        let keys = settings.find_map(|(pool, _)| pool.sticky.as_ref()?.keys.as_ref());
        let problem = self.0.get(path).and_then(|seen| seen.problem.as_ref());
        KeyFileStatus {
            file: path.display().to_string(),
            keys: keys.map_or(0, SessionKeys::count),
            problem: problem.map(|problem| problem.why.clone()),
            since: problem.map(|problem| rfc3339(problem.since)),
            pools,
        }
    }
}

// === impl Seen ===

impl Seen {
    /// Records the current state and returns whether the file must be read. A missing file counts as a change.
    fn look(&mut self, now: Option<Fingerprint>) -> bool {
        let is_settled = now == self.latest;
        self.latest = now;
        let is_new = is_settled && self.read != Some(now);
        if is_new {
            self.read = Some(now);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::watch::tests::seen;
    use super::*;

    const FILE: &str = "/etc/lb/sticky.keys";

    fn files(names: &[&str]) -> Vec<KeyFile> {
        let file = |(pool, path): (usize, &&str)| KeyFile {
            pool: format!("pool{pool}").into(),
            path: PathBuf::from(path),
        };
        names.iter().enumerate().map(file).collect()
    }

    #[test]
    fn a_file_is_read_after_it_has_settled_and_after_it_was_deleted() {
        let mut keys = KeyFiles::default();
        let one = files(&[FILE]);
        let looks =
            [Some(1), Some(1), Some(1), Some(2), Some(3), Some(3), None, None, None, Some(3), Some(3)];
        let found = looks.map(|inode| !keys.due(&one, |_| inode.map(seen)).is_empty());
        assert_eq!(found, [false, true, false, false, false, true, false, true, false, false, true]);
    }

    #[test]
    fn a_file_shared_by_two_pools_is_read_once_and_an_unused_file_is_forgotten() {
        let mut keys = KeyFiles::default();
        let both = files(&[FILE, FILE, "/other"]);
        keys.due(&both, |_| Some(seen(1)));
        assert_eq!(keys.due(&both, |_| Some(seen(1))), [PathBuf::from(FILE), PathBuf::from("/other")]);
        keys.failed(Path::new("/other"), "it is broken", SystemTime::UNIX_EPOCH);
        keys.due(&files(&[FILE]), |_| Some(seen(1)));
        assert!(!keys.solved(Path::new("/other")));
    }

    #[test]
    fn a_problem_keeps_its_start_time_until_it_is_solved() {
        let mut keys = KeyFiles::default();
        let (path, at) = (Path::new(FILE), |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        keys.failed(path, "it has no key", at(1));
        keys.failed(path, "permission denied", at(2));
        let problem = keys.0[path].problem.clone();
        assert_eq!(problem, Some(KeyProblem { why: "permission denied".into(), since: at(1) }));
        assert!(keys.solved(path) && !keys.solved(path));
    }
}
