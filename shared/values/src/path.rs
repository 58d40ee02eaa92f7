//! Paths of files, directories and sockets.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::{Schema, json_schema};

use crate::scalar::{Rejection, Scalar, TextScalar};

/// The longest path that fits into a Unix socket address, in bytes.
const MAX_UNIX_PATH: usize = 107;

/// A path that does not depend on the working directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsolutePath(pub PathBuf);

/// The path of a Unix socket, which does not depend on the working directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPath(pub PathBuf);

/// A path that a Unix socket can have: UTF-8 text that is neither empty nor too long.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixPath(Arc<Path>);

/// A path of a file that is read when the configuration is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPath(pub PathBuf);

/// A directory, written as an absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory(pub PathBuf);

impl TextScalar for AbsolutePath {
    const EXPECTED: &'static str = "an absolute path such as /run/name.sock";
    const PATTERN: &'static str = "^/.*[^/]$";

    fn parse(text: &str) -> Result<Self, Rejection> {
        let path = readable_path(text)?;
        if ["stdout", "stderr", "none", "off", "-"].contains(&text) {
            return Err(format!("{text:?} is not a path\nremove the key").into());
        }
        if !path.is_absolute() {
            return Err(format!(
                "the path {text:?} is not absolute\nwrite the whole path, from `/`: a daemon runs in another directory"
            )
            .into());
        }
        if text.ends_with('/') || path.file_name().is_none() {
            return Err(format!("{text:?} is a directory, expected a file").into());
        }
        Ok(Self(path.to_owned()))
    }
}

impl TextScalar for SocketPath {
    const EXPECTED: &'static str = <AbsolutePath as TextScalar>::EXPECTED;

    fn parse(text: &str) -> Result<Self, Rejection> {
        let AbsolutePath(path) = AbsolutePath::from_text(text)?;
        reject_long(text)?;
        Ok(Self(path))
    }

    fn text_schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^/.*[^/]$", "maxLength": MAX_UNIX_PATH})
    }
}

impl TextScalar for ReadPath {
    const EXPECTED: &'static str = "a path";

    fn parse(text: &str) -> Result<Self, Rejection> {
        readable_path(text).map(|path| Self(path.to_owned()))
    }
}

impl TextScalar for Directory {
    const EXPECTED: &'static str = "a directory such as /var/lib/load_balancer";
    const PATTERN: &'static str = "^/";

    fn parse(text: &str) -> Result<Self, Rejection> {
        if !text.starts_with('/') || text.contains('\0') {
            return Err(
                format!("the directory {text:?} is not absolute\nwrite the whole path, from `/`").into()
            );
        }
        Ok(Self(text.into()))
    }
}

fn readable_path(text: &str) -> Result<&Path, Rejection> {
    if text.is_empty() || text.contains('\0') {
        return Err(format!("{text:?} is not a path").into());
    }
    Ok(Path::new(text))
}

/// Parses the path of a Unix socket in an address, which comes after `unix:`.
///
/// # Errors
///
/// Returns the reason why the path is rejected.
pub fn unix_address(path: &str) -> Result<UnixPath, Rejection> {
    if path.starts_with('@') {
        let message = "sockets in the abstract namespace are not supported";
        return Err(format!("{message}, found {path:?}\nwrite unix:/path").into());
    }
    if !path.starts_with('/') {
        let message = "the path of a Unix socket must be absolute";
        return Err(format!("{message}, found {path:?}\nwrite unix:/path").into());
    }
    reject_long(path)?;
    if path.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("the path of a Unix socket cannot have white space, found {path:?}").into());
    }
    UnixPath::new(path).ok_or_else(|| format!("{path:?} is not a path").into())
}

fn reject_long(socket: &str) -> Result<(), Rejection> {
    let length = socket.len();
    if length <= MAX_UNIX_PATH {
        return Ok(());
    }
    let message =
        format!("the path of a Unix socket has at most {MAX_UNIX_PATH} bytes, this one has {length}");
    Err(message.into())
}

// === impl UnixPath ===

impl UnixPath {
    /// Returns the path. `None` means that no Unix socket can have it.
    pub fn new(path: &str) -> Option<Self> {
        let is_possible = !path.is_empty() && path.len() <= MAX_UNIX_PATH && !path.contains('\0');
        is_possible.then(|| Self(Path::new(path).into()))
    }

    /// Returns the path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{accepts, rejection};

    #[test]
    fn paths_of_files_to_create_are_absolute() {
        accepts::<AbsolutePath>(&["/run/a.pid"]);
        assert!(rejection::<AbsolutePath>("a.pid").contains("not absolute"));
        assert!(rejection::<AbsolutePath>("/run/").contains("directory"));
        assert!(rejection::<AbsolutePath>("/").contains("directory"));
        assert!(rejection::<ReadPath>("").contains("not a path"));
        assert!(rejection::<Directory>("lib").contains("not absolute"));
    }

    #[test]
    fn paths_of_sockets_fit_into_an_address() {
        accepts::<SocketPath>(&["/run/a.sock"]);
        assert!(UnixPath::new(&"/".repeat(107)).is_some() && UnixPath::new(&"/".repeat(108)).is_none());
        assert!(UnixPath::new("").is_none() && UnixPath::new("/a\0").is_none());
        assert!(rejection::<SocketPath>(&format!("/{}", "a".repeat(107))).contains("this one has 108"));
    }
}
