//! The paths of fixtures, and an environment that is equal on every machine.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use shared::config::{Account, Context, Files, Protection};
use shared::process::runtime::RuntimeFiles;

/// The root of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The configurations in a directory, sorted.
pub(crate) fn yaml_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let paths = entries.map(|entry| entry.expect("a directory can be read").path());
    let mut files: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
    files.sort();
    files
}

/// The context of root on a machine with two CPUs, no environment variables, and every file in its place.
pub(crate) fn context() -> Context<'static> {
    static RUNTIME: LazyLock<RuntimeFiles> =
        LazyLock::new(|| RuntimeFiles::new("/run/load_balancer".into(), None));
    let loopback = Ipv4Addr::LOCALHOST.into();
    Context { variables: &|_| None, runtime: &RUNTIME, cpus: 2, daemon: false, loopback, files: &EveryFile }
}

/// A file system in which every directory is writable. Files with the ending `keys` contain keys, those with `key` the
/// private key of `client.pem`, and all others the certificate of an authority.
struct EveryFile;

/// A certificate and its private key, as PEM.
static CLIENT: LazyLock<(String, String)> = LazyLock::new(|| {
    let pair = rcgen::generate_simple_self_signed(["client.example".to_owned()]).expect("a key can be made");
    (pair.cert.pem(), pair.signing_key.serialize_pem())
});

impl Files for EveryFile {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match path.extension() {
            Some(end) if end == "keys" => Ok("0123456789abcdef".repeat(4).into()),
            Some(end) if end == "key" => Ok(CLIENT.1.clone().into()),
            _ if path.ends_with("client.pem") => Ok(CLIENT.0.clone().into()),
            _ => fs::read(repository().join("tests/fixtures/config/authority.pem")),
        }
    }

    fn read_secret(&self, path: &Path) -> io::Result<(Protection, Vec<u8>)> {
        Ok((Protection { is_file: true, owner: 0, mode: 0o600 }, self.read(path)?))
    }

    fn uid_of(&self, _: Account<'_>) -> u32 {
        1000
    }

    fn creation_error(&self, _: &Path) -> Option<String> {
        None
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.extension().is_none()
    }

    fn account_error(&self, _: Option<&str>, _: Option<&str>) -> Option<String> {
        None
    }
}
