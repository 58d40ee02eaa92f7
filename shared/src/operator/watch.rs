//! Detection of changes of the configuration file. The file at the path is checked twice a second.
//!
//! Each check resolves the path again, so it detects a file that an editor replaces by renaming, a link that Kubernetes
//! swaps, and a change on a network file system. In contrast to inotify, there is nothing to register and no limit to
//! reach. A file is read when two consecutive checks find the same state, so that it is not read while it is being
//! written.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Metadata that distinguishes one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Observed states of a file; `None` while the file does not exist.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    /// The state that was last read, whether or not it was valid.
    read: Option<Fingerprint>,
    latest: Option<Fingerprint>,
}

// === impl Fingerprint ===

impl Fingerprint {
    /// Reads the state of the file at `path`; `None` if it does not exist.
    pub(super) fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(|metadata| Self::new(&metadata))
    }

    fn new(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

// === impl Watch ===

impl Watch {
    /// Creates a watch for a file that has been read in the state `now`.
    pub(super) fn new(now: Option<Fingerprint>) -> Self {
        Self { read: now, latest: now }
    }

    /// Records the current state and returns whether the file must be read.
    pub(super) fn look(&mut self, now: Option<Fingerprint>) -> bool {
        let is_settled = now == self.latest;
        self.latest = now;
        let is_new = now.is_some() && is_settled && now != self.read;
        if is_new {
            self.read = now;
        }
        is_new
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns the state of a file with this inode.
    pub(in super::super) const fn seen(inode: u64) -> Fingerprint {
        Fingerprint { device: 1, inode, size: 1, modified: (0, 0), changed: (0, 0) }
    }

    #[test]
    fn a_file_is_read_once_after_it_has_settled() {
        let mut watch = Watch::new(Some(seen(1)));
        let looks = [
            Some(seen(1)),
            Some(seen(2)),
            Some(seen(3)),
            Some(seen(3)),
            Some(seen(3)),
            Some(seen(1)),
            Some(seen(1)),
        ];
        assert_eq!(looks.map(|look| watch.look(look)), [false, false, false, true, false, false, true]);
    }

    #[test]
    fn a_short_absence_of_an_unchanged_file_does_not_cause_a_reload() {
        let mut watch = Watch::new(Some(seen(1)));
        let looks = [None, None, Some(seen(1)), Some(seen(1)), None, Some(seen(2)), Some(seen(2))];
        assert_eq!(looks.map(|look| watch.look(look)), [false, false, false, false, false, false, true]);
    }

    #[test]
    fn renames_links_and_writes_are_detected() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for (name, text) in [("one", "1"), ("two", "22")] {
            std::fs::write(path(name), text).unwrap();
        }
        std::os::unix::fs::symlink(path("one"), path("conf")).unwrap();
        let first = Fingerprint::of(&path("conf"));
        std::os::unix::fs::symlink(path("two"), path("next")).unwrap();
        std::fs::rename(path("next"), path("conf")).unwrap();
        let second = Fingerprint::of(&path("conf"));
        std::fs::write(path("two"), "333").unwrap();
        let third = Fingerprint::of(&path("conf"));
        std::fs::remove_file(path("two")).unwrap();
        assert!(first.is_some() && first != second && second != third);
        assert_eq!(Fingerprint::of(&path("conf")), None);
    }
}
