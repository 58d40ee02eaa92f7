//! Properties that must hold for every text, however broken. The fuzz target uses this module, too.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use lb_service::pool::{PoolSettings, RetryCause, RetrySettings};
use shared::config::{
    Account, Context, Files, Loaded, ProblemId, Problems, Protection, documents, load_text, text,
};
use shared::process::runtime::RuntimeFiles;

/// Loads a text as a configuration.
///
/// # Panics
///
/// Panics if a property does not hold. An accepted configuration must be equal after it is printed and loaded again,
/// and the settings of its pools must be consistent. A refused one must have problems whose places lie within the
/// text.
pub(crate) fn exercise(configuration: &str) {
    let loopback = Ipv4Addr::LOCALHOST.into();
    let runtime = &RuntimeFiles::new("/tmp/load_balancer-1000".into(), None);
    let context =
        Context { variables: &variables, runtime, cpus: 2, daemon: false, loopback, files: &NoFiles };
    match load_text("fuzz.yaml", configuration, &context) {
        Ok(loaded) => {
            let printed = loaded.effective();
            let again = load_text("printed.yaml", &printed, &context);
            let again = again.unwrap_or_else(|problems| panic!("{printed}\n{problems}"));
            assert_eq!(format!("{:?}", again.plan), format!("{:?}", loaded.plan), "{printed}");
            assert!(kinds(&again).is_subset(&kinds(&loaded)), "new warnings:\n{printed}\n{}", again.warnings);
            assert!(!loaded.warnings.has_errors());
            inspect(&loaded.warnings);
            fits_together(&loaded);
        }
        Err(problems) => {
            assert!(problems.has_errors(), "a text is refused without a reason");
            inspect(&problems);
        }
    }
}

fn kinds(loaded: &Loaded) -> BTreeSet<ProblemId> {
    loaded.warnings.list.iter().map(|problem| problem.id).collect()
}

/// Asserts what the rules about several keys of a pool guarantee.
fn fits_together(loaded: &Loaded) {
    let kinds = kinds(loaded);
    for (pool, _) in &loaded.plan.pools {
        let ejection = &pool.outlier_detection;
        let primary = pool.backends.iter().any(|backend| !backend.backup);
        assert!(primary || kinds.contains(&ProblemId::OnlyBackups), "there are only backups: {pool:?}");
        assert!(ejection.base_ejection <= ejection.max_ejection, "ejections become shorter: {pool:?}");
        let within_response = pool.retries.per_try.is_none_or(|time| time < pool.timeouts.response);
        assert!(within_response, "per_try has no effect: {pool:?}");
        let race = pool.retries.connect_race.filter(|race| *race >= pool.timeouts.connect);
        let is_default = race == RetrySettings::default().connect_race;
        let is_silent = pool.retries.attempts == 0 || pool.backends.len() < 2;
        let is_silent = is_silent || !pool.retries.on.contains(RetryCause::ConnectFailure);
        assert!(race.is_none() || is_default || is_silent, "connect_race has no effect: {pool:?}");
        let limited = pool.backends.iter().any(|backend| backend.max_requests.is_some());
        let warned = kinds.contains(&ProblemId::NothingToActOn);
        assert!(pool.queue == 0 || limited || warned, "no request can enter the queue: {pool:?}");
        let hashes = ["ConsistentHash", "Maglev"].contains(&format!("{:?}", pool.policy).as_str());
        assert!(hashes || pool.bounded_load.is_none(), "bounded_load has no hash: {pool:?}");
        let connect = pool.timeouts.connect;
        assert!(
            pool.retries.per_try.is_none_or(|time| connect <= time),
            "per_try is too short to connect: {pool:?}"
        );
        let warned = [ProblemId::FewBackends, ProblemId::SwitchedOff].iter().any(|kind| kinds.contains(kind));
        assert!(chooses(pool) || warned, "the pool has too few backends: {pool:?}");
    }
}

/// Whether the pool has enough backends for all the ways of choosing that it configures.
fn chooses(pool: &PoolSettings) -> bool {
    let (backends, ejection) = (pool.backends.len(), &pool.outlier_detection);
    let others = backends > 1 || pool.sticky.is_none() && pool.slow_start.is_none();
    let comparable = backends > 2 || ejection.slow_backends.is_none();
    let share = usize::from(ejection.max_ejected_percent);
    others && comparable && (backends == 1 || share == 0 || backends * share >= 100)
}

fn inspect(problems: &Problems) {
    for span in problems.list.iter().filter_map(|problem| problem.span) {
        assert!(problems.source.text.get(span.start..span.end).is_some(), "{span:?} is not within the text");
    }
    assert_eq!(text(problems, false).is_empty(), problems.is_empty());
    assert_eq!(documents(problems).len(), problems.list.len());
}

fn variables(name: &str) -> Option<String> {
    match name {
        "HOST" => Some("10.0.0.1".to_owned()),
        "QUOTE" => Some("\": {[".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

/// A file system without files, in which every directory is writable.
struct NoFiles;

impl Files for NoFiles {
    fn read(&self, _: &Path) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn read_secret(&self, _: &Path) -> io::Result<(Protection, Vec<u8>)> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn uid_of(&self, _: Account<'_>) -> u32 {
        1000
    }

    fn creation_error(&self, _: &Path) -> Option<String> {
        None
    }

    fn is_directory(&self, _: &Path) -> bool {
        false
    }

    fn account_error(&self, _: Option<&str>, _: Option<&str>) -> Option<String> {
        None
    }
}
