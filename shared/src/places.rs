//! Where a configuration is looked for when no file is named with `-c`.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::process::runtime::STANDARD;

/// The variable that names a file.
pub const VARIABLE: &str = "LB_CONFIG";
/// Where a file is found that nothing names.
const PLACES: [&str; 2] = ["./load_balancer.yaml", STANDARD];

/// There is no configuration at any of the places; displayed as these places, with absolute paths, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing(Vec<String>);

/// The file that `variable` names, or the first that is there. An empty variable counts as unset, since Docker Compose sets
/// variables that have no value to "". `directory` is the one that the program was started in.
///
/// A file that is there and cannot be read is found: the error of reading it says more than a search that passes it over.
///
/// # Errors
/// All places, when there is no file.
pub fn find(variable: Option<OsString>, directory: &Path) -> Result<PathBuf, Missing> {
    if let Some(named) = variable.filter(|named| !named.is_empty()) {
        return Ok(named.into());
    }
    let place = PLACES.into_iter().map(PathBuf::from).find(|place| is_there(&directory.join(place)));
    place.ok_or_else(|| Missing::at(directory))
}

/// Only a clear "no" counts: a directory that may not be entered, or a link that leads nowhere, is a mistake to be shown.
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

    /// In one line.
    pub fn in_line(&self) -> String {
        format!("no configuration was found: looked at {}", self.0.join(", "))
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no configuration was found; these places were looked at:")?;
        self.0.iter().try_for_each(|place| write!(f, "\n  {place}"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_that_the_variable_names_is_taken_whether_it_is_there_or_not() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("load_balancer.yaml"), "").unwrap();
        assert_eq!(find(Some("/no/such/file".into()), directory.path()), Ok("/no/such/file".into()));
        assert_eq!(find(Some("".into()), directory.path()), Ok("./load_balancer.yaml".into()));
        assert_eq!(find(None, directory.path()), Ok("./load_balancer.yaml".into()));
    }

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let directory = tempfile::tempdir().unwrap();
        symlink("/no/such/file", directory.path().join("load_balancer.yaml")).unwrap();
        assert_eq!(find(None, directory.path()), Ok("./load_balancer.yaml".into()));
        assert!(!is_there(&directory.path().join("other.yaml")));
    }

    #[test]
    fn each_place_is_named_with_its_absolute_path() {
        let missing = Missing::at(Path::new("/srv/app"));
        let expected = "\
no configuration was found; these places were looked at:
  $LB_CONFIG, which is not set
  /srv/app/load_balancer.yaml
  /etc/load_balancer/load_balancer.yaml";
        assert_eq!(missing.to_string(), expected);
        assert_eq!(
            missing.in_line(),
            "no configuration was found: looked at $LB_CONFIG, which is not set, /srv/app/load_balancer.yaml, \
             /etc/load_balancer/load_balancer.yaml"
        );
    }
}
