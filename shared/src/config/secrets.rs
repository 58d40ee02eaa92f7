//! Files with secrets: who may read them, and the session keys that stand in them.
//!
//! A file with a secret belongs to root or to the user that the daemon runs as, and only that user can read it. A file
//! of root may also be readable for its group: this is how a secret reaches a daemon that does not run as root where
//! only root can own files, as in Kubernetes.

use std::path::Path;

use lb_service::pool::SessionKeys;

use super::context::{Files, MAX_SECRET, Protection};
use crate::process::files::reason;

/// Why a file with a secret is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretError {
    /// In words that follow a colon.
    pub(crate) why: String,
    /// What to do about it.
    pub(crate) remedy: String,
}

const HOW_TO_MAKE_KEYS: &str = "write one key per line; `openssl rand -hex 32` makes one";

/// The session keys in the file at `path`, for a daemon that runs as the user with the id `uid`.
pub(crate) fn session_keys(path: &Path, files: &dyn Files, uid: u32) -> Result<SessionKeys, SecretError> {
    let unreadable = |error: std::io::Error| SecretError {
        why: reason(&error),
        remedy: format!("name a file that the user with the id {uid} can read"),
    };
    let (protection, text) = files.read_secret(path).map_err(unreadable)?;
    if let Some(refusal) = protection.refusal(path, uid) {
        return Err(refusal);
    }
    SessionKeys::parse(&text)
        .map_err(|error| SecretError { why: error.to_string(), remedy: HOW_TO_MAKE_KEYS.to_owned() })
}

// === impl Protection ===

impl Protection {
    /// Why a secret in the file at `path` is not safe with a daemon that runs as `uid`.
    fn refusal(self, path: &Path, uid: u32) -> Option<SecretError> {
        let Self { is_file, length, owner, mode } = self;
        let path = path.display();
        let (why, remedy) = if !is_file {
            ("it is not a regular file".to_owned(), "name a file".to_owned())
        } else if length > MAX_SECRET {
            (format!("it has {length} bytes, more than any list of keys"), HOW_TO_MAKE_KEYS.to_owned())
        } else if owner != 0 && owner != uid {
            let why = format!("it belongs to the user with the id {owner}, who can change it");
            (why, format!("give it to the user of the load balancer: `chown {uid} {path}`"))
        } else if mode & exposed(owner) != 0 {
            let why = format!("its mode {:04o} lets others read or change it", mode & 0o7777);
            (why, format!("run `chmod 600 {path}`, and make new keys if they may have been read"))
        } else {
            return None;
        };
        Some(SecretError { why, remedy })
    }
}

/// The permissions that nobody may have.
fn exposed(owner: u32) -> u32 {
    if owner == 0 { 0o037 } else { 0o077 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATE: Protection = Protection { is_file: true, length: 65, owner: 0, mode: 0o600 };

    fn refusal(protection: Protection) -> String {
        protection.refusal(Path::new("/keys"), 7).map(|error| error.why).unwrap_or_default()
    }

    #[test]
    fn a_file_of_root_or_of_the_daemon_that_nobody_else_reads_is_used() {
        for owner in [0, 7] {
            for mode in [0o600, 0o400, 0o100_600] {
                assert_eq!(refusal(Protection { owner, mode, ..PRIVATE }), "");
            }
        }
        assert!(refusal(Protection { owner: 8, ..PRIVATE }).contains("the user with the id 8"));
    }

    #[test]
    fn a_group_reads_only_the_files_of_root() {
        assert_eq!(refusal(Protection { mode: 0o640, ..PRIVATE }), "");
        assert!(refusal(Protection { owner: 7, mode: 0o640, ..PRIVATE }).contains("mode 0640"));
    }

    #[test]
    fn a_file_that_others_read_or_change_is_refused() {
        for mode in [0o604, 0o644, 0o602, 0o601, 0o620, 0o660, 0o610, 0o666] {
            let refused = refusal(Protection { mode, ..PRIVATE });
            assert!(refused.contains(&format!("mode {mode:04o} ")), "{refused}");
        }
    }

    #[test]
    fn what_is_no_list_of_keys_is_not_read() {
        assert!(refusal(Protection { is_file: false, ..PRIVATE }).contains("regular file"));
        assert!(refusal(Protection { length: 1 << 20, ..PRIVATE }).contains("bytes"));
    }
}
