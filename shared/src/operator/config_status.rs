//! Status of the configuration: the generation in effect, and the changes of operators.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use lb_service::pool::UpstreamAddress;

use super::file::{ConfigFile, Provenance};
use super::runtime::{Changed, Portable, Runtime, Times};
use crate::config::{self, Problems};
use crate::http_message::file_in_header;
use crate::process::logging::{LevelSource, LogFilter};
use crate::process::runtime::canonical;
use crate::status_document::{ConfigDocument, KeyFileStatus, LastReload};
use crate::time::rfc3339;

/// Description of the configuration in effect. Each change replaces it with a new value.
#[derive(Clone, Debug)]
pub(crate) struct ConfigStatus {
    /// The generation; it is 1 at the start.
    pub generation: u64,
    /// The file that was read, or the name of standard input; `None` for the command line.
    pub file: Option<PathBuf>,
    /// The canonical path of the file when the process was started.
    pub canonical_file: Option<PathBuf>,
    /// The time since which this configuration is in effect.
    pub since: SystemTime,
    /// The result of the last reload; `None` before the first.
    pub last_reload: Option<LastReload>,
    /// The warnings about the file in effect.
    pub warnings: Arc<Problems>,
    pub(super) runtime: Runtime,
    /// The times of the changes in `runtime`.
    changed: Times,
    /// The files of session keys.
    pub key_files: Vec<KeyFileStatus>,
}

// === impl ConfigStatus ===

impl ConfigStatus {
    /// Returns the description for the start of the process.
    pub(super) fn first(provenance: &Provenance, runtime: Runtime, times: Times) -> Self {
        let now = SystemTime::now();
        let first = Self {
            generation: 1,
            file: provenance.shown(),
            canonical_file: provenance.file().and_then(ConfigFile::canonical).map(Path::to_owned),
            since: now,
            last_reload: None,
            warnings: Arc::default(),
            runtime: runtime.clone(),
            changed: times,
            key_files: Vec::new(),
        };
        first.with_runtime(runtime, now)
    }

    /// Returns the changes in the form that an upgrade passes on.
    pub(super) fn portable(&self) -> Vec<Portable> {
        self.runtime.portable(&self.changed)
    }

    /// Returns the description of the next generation.
    pub(super) fn next(&self, now: SystemTime) -> Self {
        Self { generation: self.generation + 1, since: now, ..self.clone() }
    }

    /// Replaces the changes of operators.
    pub(super) fn with_runtime(&self, runtime: Runtime, now: SystemTime) -> Self {
        let time = |(key, changed): (&(String, UpstreamAddress), &Changed)| {
            let before = self.runtime.of(&key.0, &key.1).filter(|before| before.admin() == changed.admin());
            let since = before.and_then(|_| self.changed.get(key).copied());
            (key.clone(), since.unwrap_or(now))
        };
        let changed = runtime.iter().map(time).collect();
        Self { runtime, changed, ..self.clone() }
    }

    /// Replaces the result of the last reload.
    pub(super) fn with_last_reload(self, last_reload: Option<LastReload>) -> Self {
        Self { last_reload, ..self }
    }

    /// Replaces the status of the key files.
    pub(super) fn with_key_files(self, key_files: Vec<KeyFileStatus>) -> Self {
        Self { key_files, ..self }
    }

    /// Replaces the warnings about the file in effect.
    pub(super) fn with_warnings(self, warnings: Arc<Problems>) -> Self {
        Self { warnings, ..self }
    }

    /// Returns whether a request for the daemon of the file `wanted` is meant for this daemon; `wanted` is encoded as
    /// in the header. A daemon matches both the canonical path that its file had at the start and the current one,
    /// because a link in the path can change.
    pub(crate) fn is_of(&self, wanted: &[u8]) -> bool {
        let is_wanted = |file: &Path| file_in_header(file).as_bytes() == wanted;
        let now =
            || self.file.as_deref().filter(|file| file.is_absolute()).and_then(|file| canonical(file).ok());
        self.canonical_file.as_deref().is_some_and(is_wanted) || now().is_some_and(|file| is_wanted(&file))
    }

    /// Returns the time at which an operator drained or disabled a backend; `None` if none did. Later changes of the
    /// weight do not alter this time.
    pub(crate) fn changed(&self, pool: &str, backend: &UpstreamAddress) -> Option<SystemTime> {
        self.changed.get(&(pool.to_owned(), backend.clone())).copied()
    }

    /// Returns the section of the status document, with the log level and its source.
    pub(crate) fn document(&self, level: &LogFilter, source: LevelSource) -> ConfigDocument {
        let ordered = (source == LevelSource::Operator).then(|| format!("log level {level}"));
        ConfigDocument {
            generation: self.generation,
            file: self.file.as_ref().map(|path| path.display().to_string()),
            canonical_file: self.canonical_file.as_ref().map(|path| path.display().to_string()),
            since: rfc3339(self.since),
            last_reload: self.last_reload.clone(),
            warnings: config::documents(&self.warnings),
            runtime_changes: self.runtime.lines().into_iter().chain(ordered).collect(),
            log_level: Some(level.to_string()),
            log_level_source: source.as_str().into(),
            session_keys: self.key_files.clone(),
        }
    }

    /// Returns the changes of operators to a backend as text; `None` if there are none.
    pub(crate) fn runtime(&self, pool: &str, backend: &UpstreamAddress) -> Option<String> {
        self.runtime.of(pool, backend).map(ToString::to_string)
    }
}

/// Describes a reload that has just ended.
pub(super) fn last_reload(result: &'static str, problem: Option<&str>) -> LastReload {
    LastReload {
        result: result.into(),
        time: rfc3339(SystemTime::now()),
        problem: problem.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lb_service::pool::Weight;

    use super::*;
    use crate::config::testing::plan;
    use crate::operator::{Change, Order};

    #[test]
    fn a_drained_backend_keeps_its_timestamp_until_its_state_changes() {
        let file = plan("pools: {web: {backends: ['10.0.0.1:80', '10.0.0.2:80']}}");
        let (one, two) = ("10.0.0.1:80".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
        let order = |backend: &UpstreamAddress, change| Order {
            pool: "web".into(),
            backend: backend.clone(),
            change,
        };
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let first = Runtime::default().after(&order(&one, Change::Drain), &file).unwrap();
        let second = first.after(&order(&two, Change::Disable), &file).unwrap();
        let third = second.after(&order(&two, Change::Weigh(Weight::MAX)), &file).unwrap();
        let status = ConfigStatus::first(&Provenance::Arguments, Runtime::default(), Times::new());
        let status = status.with_runtime(first, at(1)).with_runtime(second, at(2)).with_runtime(third, at(3));
        assert_eq!((status.changed("web", &one), status.changed("web", &two)), (Some(at(1)), Some(at(2))));
        let fourth = status.runtime.after(&order(&one, Change::Disable), &file).unwrap();
        let status = status.with_runtime(fourth, at(4));
        assert_eq!(status.changed("web", &one), Some(at(4)));
        assert_eq!(status.with_runtime(Runtime::default(), at(5)).changed("web", &one), None);
    }
}
