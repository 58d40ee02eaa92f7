//! The search for a configuration file when `-c` does not name one.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::process::runtime::STANDARD;

/// The environment variable that names a file.
pub(crate) const VARIABLE: &str = "LB_CONFIG";
/// The paths that are searched in this order.
const PLACES: [&str; 2] = ["./load_balancer.yaml", STANDARD];

/// The places without a configuration, displayed one per line with absolute paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing(Vec<String>);

/// Returns the file that `variable` names, or the first existing one of `PLACES`. An empty variable counts as unset,
/// because Docker Compose sets variables without a value to "". Relative paths begin at `directory`.
///
/// An unreadable file counts as found: the error of reading it is more useful than skipping the file.
///
/// # Errors
/// When there is no file: all places.
pub(crate) fn find(variable: Option<OsString>, directory: &Path) -> Result<PathBuf, Missing> {
    if let Some(named) = variable.filter(|named| !named.is_empty()) {
        return Ok(named.into());
    }
    let place = PLACES.into_iter().map(PathBuf::from).find(|place| is_there(&directory.join(place)));
    place.ok_or_else(|| Missing::at(directory))
}

/// Returns whether nothing exists at the path. A directory without permission or a dangling link counts as existing, so
/// that the error of reading it is shown.
fn is_there(path: &Path) -> bool {
    match path.symlink_metadata() {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}

// === impl Missing ===

impl Missing {
    fn at(directory: &Path) -> Self {
        let variable = format!("${VARIABLE}, which is not set");
        let absolute = |place: &str| directory.join(place.trim_start_matches("./")).display().to_string();
        Self(std::iter::once(variable).chain(PLACES.into_iter().map(absolute)).collect())
    }

    /// Writes all places in one line.
    pub(crate) fn in_line(&self) -> String {
        format!("found no configuration at {}", self.0.join(", "))
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("found no configuration at any of these places:")?;
        self.0.iter().try_for_each(|place| write!(f, "\n  {place}"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_that_the_variable_names_is_used_even_if_it_does_not_exist() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("load_balancer.yaml"), "").unwrap();
        assert_eq!(find(Some("/no/such/file".into()), directory.path()), Ok("/no/such/file".into()));
        assert_eq!(find(Some("".into()), directory.path()), Ok("./load_balancer.yaml".into()));
        assert_eq!(find(None, directory.path()), Ok("./load_balancer.yaml".into()));
    }

    #[test]
    fn a_dangling_link_is_found() {
        let directory = tempfile::tempdir().unwrap();
        symlink("/no/such/file", directory.path().join("load_balancer.yaml")).unwrap();
        assert_eq!(find(None, directory.path()), Ok("./load_balancer.yaml".into()));
        assert!(!is_there(&directory.path().join("other.yaml")));
    }

    #[test]
    fn each_place_is_named_with_its_absolute_path() {
        let missing = Missing::at(Path::new("/srv/app"));
        let expected = "\
found no configuration at any of these places:
  $LB_CONFIG, which is not set
  /srv/app/load_balancer.yaml
  /etc/load_balancer/load_balancer.yaml";
        assert_eq!(missing.to_string(), expected);
        assert_eq!(
            missing.in_line(),
            "found no configuration at $LB_CONFIG, which is not set, /srv/app/load_balancer.yaml, \
             /etc/load_balancer/load_balancer.yaml"
        );
    }
}
