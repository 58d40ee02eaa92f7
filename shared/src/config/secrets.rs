//! Files with secrets: their permissions, and the session keys or the private key that they contain.
//!
//! A file with a secret must belong to root or to the user that the daemon runs as, and only its owner can have access.
//! A file of root can also be readable for its group. In Kubernetes, only root can own such files, so this is the only
//! way to give a secret to a daemon that does not run as root.

use std::io;
use std::path::Path;

use lb_service::pool::SessionKeys;
use nix::unistd::Uid;

use super::context::{Files, Protection};
use crate::process::files::reason;
use crate::process::privileges::user_name;

/// The reason why a file with a secret is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretError {
    /// The reason, as words that follow a colon.
    pub(crate) why: String,
    /// The remedy.
    pub(crate) remedy: String,
}

const HOW_TO_CREATE: &str = "umask 077; openssl rand -hex 32 >";
const WHAT_IS_A_KEY: &str = "name a PEM file that contains `BEGIN PRIVATE KEY`";
const HOW_TO_MAKE_KEYS: &str = "write one key per line; `openssl rand -hex 32` makes one";

/// Reads the session keys in the file at `path`, for a daemon that runs as the user with the ID `uid`.
pub(crate) fn session_keys(path: &Path, files: &dyn Files, uid: u32) -> Result<SessionKeys, SecretError> {
    let missing = format!("create it with `{HOW_TO_CREATE} {}`", path.display());
    let text = secret(path, files, uid, missing, HOW_TO_MAKE_KEYS)?;
    SessionKeys::parse(&text)
        .map_err(|error| SecretError { why: error.to_string(), remedy: HOW_TO_MAKE_KEYS.to_owned() })
}

/// Reads the file with a private key at `path`, for a daemon that runs as the user with the ID `uid`.
pub(crate) fn private_key(path: &Path, files: &dyn Files, uid: u32) -> Result<Vec<u8>, SecretError> {
    secret(path, files, uid, WHAT_IS_A_KEY.to_owned(), WHAT_IS_A_KEY)
}

/// Reads a file that only the right users can read. The remedies are those for a missing and for a large file.
fn secret(
    path: &Path,
    files: &dyn Files,
    uid: u32,
    missing: String,
    too_large: &str,
) -> Result<Vec<u8>, SecretError> {
    let unreadable = |error: io::Error| SecretError {
        why: reason(&error),
        remedy: match error.kind() {
            io::ErrorKind::NotFound => missing,
            io::ErrorKind::FileTooLarge => too_large.to_owned(),
            _ => format!("let the {} read it, or name another file", user(uid)),
        },
    };
    let (protection, text) = files.read_secret(path).map_err(unreadable)?;
    match protection.rejection(path, uid) {
        Some(rejection) => Err(rejection),
        None => Ok(text),
    }
}

// === impl Protection ===

impl Protection {
    /// Returns the reason why the file at `path` cannot hold a secret of a daemon that runs as `uid`. `None` means that
    /// it can.
    fn rejection(self, path: &Path, uid: u32) -> Option<SecretError> {
        let Self { is_file, owner, mode } = self;
        let path = path.display();
        let (why, remedy) = if !is_file {
            ("it is not a regular file".to_owned(), "name a regular file".to_owned())
        } else if owner != 0 && owner != uid {
            let why = format!("its owner, the {}, can change it", user(owner));
            (why, format!("run `chown {uid} {path}` to give it to the user of the load balancer"))
        } else if mode & exposed(owner) != 0 {
            let why = format!("its mode {:04o} lets other users read or change it", mode & 0o7777);
            (why, format!("run `chmod 600 {path}`, and replace the keys if other users could have read them"))
        } else {
            return None;
        };
        Some(SecretError { why, remedy })
    }
}

/// Formats a user for a message: "user `www-data` (ID 33)".
fn user(uid: u32) -> String {
    match user_name(Uid::from_raw(uid)) {
        name if name == uid.to_string() => format!("user with the ID {uid}"),
        name => format!("user `{name}` (ID {uid})"),
    }
}

/// Returns the permission bits that must not be set.
fn exposed(owner: u32) -> u32 {
    if owner == 0 { 0o037 } else { 0o077 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATE: Protection = Protection { is_file: true, owner: 0, mode: 0o600 };

    fn rejection(protection: Protection) -> String {
        protection.rejection(Path::new("/keys"), 7).map(|error| error.why).unwrap_or_default()
    }

    #[test]
    fn a_private_file_of_root_or_of_the_daemon_is_used() {
        for owner in [0, 7] {
            for mode in [0o600, 0o400, 0o100_600] {
                assert_eq!(rejection(Protection { owner, mode, ..PRIVATE }), "");
            }
        }
        assert!(
            rejection(Protection { owner: 1_999_999_999, ..PRIVATE })
                .contains("the user with the ID 1999999999")
        );
        assert_eq!(user(0), "user `root` (ID 0)");
    }

    #[test]
    fn a_group_reads_only_the_files_of_root() {
        assert_eq!(rejection(Protection { mode: 0o640, ..PRIVATE }), "");
        assert!(rejection(Protection { owner: 7, mode: 0o640, ..PRIVATE }).contains("mode 0640"));
    }

    #[test]
    fn a_file_that_others_read_or_change_is_rejected() {
        for mode in [0o604, 0o644, 0o602, 0o601, 0o620, 0o660, 0o610, 0o666] {
            let rejected = rejection(Protection { mode, ..PRIVATE });
            assert!(rejected.contains(&format!("mode {mode:04o} ")), "{rejected}");
        }
    }

    #[test]
    fn a_directory_is_rejected() {
        assert!(rejection(Protection { is_file: false, ..PRIVATE }).contains("regular file"));
    }
}
