//! `process_*`: metrics of this process, read from `/proc/self` at each scrape.
//!
//! The collector of the crate `prometheus` counts CPU time in whole seconds, so its rates change in steps. It also
//! keeps the PID from its construction, which is wrong after a fork into the background. This collector uses fractions
//! of a second and keeps no PID.

use std::{fs, io};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use thiserror::Error;

use crate::exposition::{Family, Kind};

/// Ticks per second of the times in `/proc`. It is 100 on every Linux architecture that Rust's standard library
/// supports.
const USER_HZ: f64 = 100.0;

/// Metrics of this process: CPU, memory, file descriptors, threads, start time.
///
/// On a system without `/proc` its series are absent.
pub struct ProcessCollector {
    cpu: Family,
    resident: Family,
    virtual_memory: Family,
    open_fds: Family,
    max_fds: Family,
    start_time: Family,
    threads: Family,
}

/// The fields of `/proc/PID/stat` that are used, in the kernel's units.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    user_ticks: u64,
    system_ticks: u64,
    threads: u64,
    /// Ticks since the machine started.
    start_ticks: u64,
    virtual_bytes: u64,
}

/// One reading, in the units of the metrics.
#[derive(Debug)]
struct Reading {
    stat: Stat,
    resident_bytes: u64,
    open_fds: u64,
    /// `None` if there is no limit.
    max_fds: Option<u64>,
    /// When the machine started, in Unix time.
    boot_seconds: u64,
}

/// Why a reading failed.
#[derive(Debug, Error)]
enum ReadingError {
    #[error("cannot read {path}: {}", values::reason(source))]
    Read { path: &'static str, source: io::Error },
    #[error("{0} has an unexpected format")]
    Parse(&'static str),
}

// === impl ProcessCollector ===

impl ProcessCollector {
    /// Creates the collector. It reads nothing yet, so this may run before a fork.
    pub fn new() -> Self {
        let gauge = |name, help| Family::new(Kind::Gauge, name, help, &[]);
        ProcessCollector {
            cpu: Family::new(
                Kind::Counter,
                "process_cpu_seconds_total",
                "User and system CPU time in seconds.",
                &[],
            ),
            resident: gauge("process_resident_memory_bytes", "Resident memory in bytes."),
            virtual_memory: gauge("process_virtual_memory_bytes", "Virtual memory in bytes."),
            open_fds: gauge("process_open_fds", "Open file descriptors."),
            max_fds: gauge("process_max_fds", "Maximum number of open file descriptors."),
            start_time: gauge(
                "process_start_time_seconds",
                "Start time of the process in seconds since the Unix epoch.",
            ),
            threads: gauge("process_threads", "Number of threads."),
        }
    }

    fn families(&self, reading: &Reading) -> Vec<MetricFamily> {
        let stat = &reading.stat;
        let one = |family: &Family, value| family.with(vec![family.sample(&[], value)]);
        let ticks = (stat.user_ticks + stat.system_ticks) as f64;
        let start = reading.boot_seconds as f64 + stat.start_ticks as f64 / USER_HZ;
        let mut families = vec![
            one(&self.cpu, ticks / USER_HZ),
            one(&self.resident, reading.resident_bytes as f64),
            one(&self.virtual_memory, stat.virtual_bytes as f64),
            one(&self.open_fds, reading.open_fds as f64),
            one(&self.start_time, start),
            one(&self.threads, stat.threads as f64),
        ];
        families.extend(reading.max_fds.map(|max| one(&self.max_fds, max as f64)));
        families
    }
}

impl Default for ProcessCollector {
    fn default() -> Self {
        ProcessCollector::new()
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![
            self.cpu.desc(),
            self.resident.desc(),
            self.virtual_memory.desc(),
            self.open_fds.desc(),
            self.max_fds.desc(),
            self.start_time.desc(),
            self.threads.desc(),
        ]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        match Reading::take() {
            Ok(reading) => self.families(&reading),
            Err(error) => {
                log::warn!("metrics: no process metrics: {error}");
                Vec::new()
            }
        }
    }
}

// === impl Reading ===

impl Reading {
    fn take() -> Result<Self, ReadingError> {
        Ok(Reading {
            stat: read("/proc/self/stat", Stat::parse)?,
            resident_bytes: read("/proc/self/status", resident_bytes)?,
            open_fds: count_open_fds()?,
            max_fds: read("/proc/self/limits", open_files_limit)?,
            boot_seconds: read("/proc/stat", boot_seconds)?,
        })
    }
}

fn read<T>(path: &'static str, parse: fn(&str) -> Option<T>) -> Result<T, ReadingError> {
    let text = fs::read(path).map_err(|source| ReadingError::Read { path, source })?;
    // The name of a process may contain any bytes.
    parse(&String::from_utf8_lossy(&text)).ok_or(ReadingError::Parse(path))
}

fn count_open_fds() -> Result<u64, ReadingError> {
    let path = "/proc/self/fd";
    let entries = fs::read_dir(path).map_err(|source| ReadingError::Read { path, source })?;
    // One of them is the directory that is being read.
    Ok((entries.count() as u64).saturating_sub(1))
}

// === impl Stat ===

impl Stat {
    /// Parses the line in `/proc/PID/stat`. Its second field, the name in parentheses, may contain spaces and
    /// parentheses, so the other fields are split after the last `)`.
    fn parse(text: &str) -> Option<Self> {
        let (_, after_name) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        // The numbers are those of proc(5), in which the first field here, the state, is field 3.
        let field = |number: usize| fields.get(number - 3)?.parse().ok();
        Some(Stat {
            user_ticks: field(14)?,
            system_ticks: field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
        })
    }
}

/// Reads `VmRSS` of `/proc/PID/status`. Unlike the value in `stat`, it needs no page size.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Reads the soft limit in the line `Max open files` of `/proc/PID/limits`; `Some(None)` if there is no limit.
fn open_files_limit(limits: &str) -> Option<Option<u64>> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(None),
        soft => soft.parse().ok().map(Some),
    }
}

/// Reads `btime` of `/proc/stat`.
fn boot_seconds(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::tests::scrape;

    const FIELDS: &str = "S 1 12 12 0 -1 4194304 99 0 0 0 4321 765 8 9 20 0 3 0 100407 3133440 371 \
                          18446744073709551615 1 1 0 0 0";

    fn stat() -> Stat {
        Stat {
            user_ticks: 4321,
            system_ticks: 765,
            threads: 3,
            start_ticks: 100_407,
            virtual_bytes: 3_133_440,
        }
    }

    #[test]
    fn stat_is_parsed_after_any_name() {
        for name in ["cat", "a b", "a) S 1 2 (b", "(((", ")", "x) R 7 7 7 7", ""] {
            let line = format!("12693 ({name}) {FIELDS}\n");
            assert_eq!(Stat::parse(&line), Some(stat()), "{name}");
        }
    }

    #[test]
    fn a_truncated_or_malformed_stat_is_rejected() {
        let line = format!("12693 (cat) {FIELDS}");
        let until_threads = line.find(" 100407").expect("it is there");
        for text in ["", "1 (cat", "1 (cat)", &line[..until_threads]] {
            assert_eq!(Stat::parse(text), None, "{text}");
        }
        assert_eq!(Stat::parse(&line.replace("4321", "many")), None);
        assert_eq!(Stat::parse(&line.replace("4321", "-1")), None);
    }

    #[test]
    fn resident_memory_is_in_bytes() {
        let status = "Name:\tcat\nVmHWM:\t    1700 kB\nVmRSS:\t    1612 kB\nRssAnon:\t 112 kB\n";
        assert_eq!(resident_bytes(status), Some(1612 * 1024));
        assert_eq!(resident_bytes("Name:\tcat\n"), None);
        assert_eq!(resident_bytes("VmRSS:\t x kB\n"), None);
    }

    #[test]
    fn the_limit_of_open_files_is_the_soft_limit() {
        let line = |soft| format!("Limit  Soft Limit\nMax open files   {soft}   40000   files\n");
        assert_eq!(open_files_limit(&line("20000")), Some(Some(20_000)));
        assert_eq!(open_files_limit(&line("unlimited")), Some(None));
        assert_eq!(open_files_limit(&line("some")), None);
        assert_eq!(open_files_limit("Max processes 1 1\n"), None);
    }

    #[test]
    fn boot_time_is_found_in_its_line() {
        assert_eq!(boot_seconds("cpu 1 2\nbtime 1795351340\nx 1\n"), Some(1_795_351_340));
        assert_eq!(boot_seconds("cpu 1 2\n"), None);
    }

    #[test]
    fn cpu_and_start_time_have_fractions_of_a_second() {
        let reading = Reading {
            stat: stat(),
            resident_bytes: 4096,
            open_fds: 7,
            max_fds: Some(1024),
            boot_seconds: 1_000_000,
        };
        let collector = ProcessCollector::new();
        let families = collector.families(&reading);
        let text = prometheus::TextEncoder::new().encode_to_string(&families).expect("encodes");
        for line in [
            "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 50.86\n",
            "\nprocess_start_time_seconds 1001004.07\n",
            "\nprocess_resident_memory_bytes 4096\n",
            "\nprocess_virtual_memory_bytes 3133440\n",
            "\nprocess_open_fds 7\n",
            "\nprocess_max_fds 1024\n",
            "\nprocess_threads 3\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn without_a_limit_there_is_no_series() {
        let reading =
            Reading { stat: stat(), resident_bytes: 0, open_fds: 0, max_fds: None, boot_seconds: 0 };
        let families = ProcessCollector::new().families(&reading);
        assert_eq!(families.len(), 6);
        assert!(families.iter().all(|f| f.name() != "process_max_fds"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_can_be_read() {
        let held = fs::File::open("/proc/self/stat").expect("opens");
        let text = scrape(ProcessCollector::new());
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
            line.expect(name).parse().expect(name)
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") >= 1.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_threads") >= 1.0);
        assert!(value("process_start_time_seconds") > 1_600_000_000.0);
        assert!(value("process_cpu_seconds_total") >= 0.0);
        drop(held);
    }
}
