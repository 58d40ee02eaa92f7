//! Log lines about changes of health.

use std::num::NonZeroU32;
use std::sync::Mutex;

use health_service::{CheckKind, Metrics, Prober, Settings, Thresholds};
use log::{Level, LevelFilter, Log, Metadata, Record};
use tokio::net::TcpListener;

use crate::origin::{eventually, refusing};
use crate::prober::{RunningProber, TestPool, fast};

/// A logger that stores all lines of this crate with their levels. A process has only one logger, so each test finds
/// its own lines by the name of its pool.
struct Lines(Mutex<Vec<(Level, String)>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("health_service") && metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().expect("not poisoned").push((record.level(), record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

#[tokio::test]
async fn each_change_is_logged_in_one_line_with_its_reason() {
    log::set_logger(&LINES).expect("no other test sets a logger");
    log::set_max_level(LevelFilter::Info);
    let of_pool = || -> Vec<(Level, String)> {
        let lines = LINES.0.lock().expect("not poisoned");
        lines.iter().filter(|(_, line)| line.starts_with("pool logged:")).cloned().collect()
    };

    let (socket, address) = refusing();
    let pool = TestPool::of(&[address]).await;
    let mut prober = Prober::new(Metrics::new());
    let two = NonZeroU32::new(2).expect("two is not zero");
    let settings = Settings { thresholds: Thresholds { rise: two, fall: two }, ..fast(CheckKind::Tcp) };
    pool.add_to(&mut prober, "logged", settings);
    let mut running = RunningProber::start(prober);
    running.until_ready().await;

    let listener: TcpListener = socket.listen(16).expect("the address is ours");
    eventually("the backend is up", || pool.ready() == 1).await;
    drop(listener);
    eventually("the backend is down", || pool.ready() == 0).await;
    running.shut_down().await;

    let line = |level, text: &str| (level, format!("pool logged: backend {address} is {text}"));
    assert_eq!(
        of_pool(),
        [
            line(Level::Warn, "down: 1 check failed: connection refused"),
            line(Level::Info, "up: 2 checks passed"),
            line(Level::Warn, "down: 2 checks failed: connection refused"),
        ]
    );
}
