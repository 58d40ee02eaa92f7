//! nginx. A reload is `nginx -s reload`, and an upgrade is the procedure of its manual: SIGUSR2, SIGWINCH, SIGQUIT.
//! nginx has no commands for changes at run time, so these are reloads, too.

use nix::unistd::Uid;
use tests::process::Process;
use tests::{Lab, Signal};

use super::{Ordered, Place, Shape, Subject, awaited, fill, finish};
use crate::setup::{Order, Policy, Pool, Setup};

/// The configuration. Names between `@` are replaced by values.
const TEMPLATE: &str = include_str!("../nginx.conf");
/// The number of workers, which equals the number of the daemon's threads.
const WORKERS: usize = 2;

/// A running nginx.
pub(crate) struct Nginx {
    lab: Lab,
}

impl Nginx {
    /// Creates a subject that is not started.
    pub(crate) fn new() -> Self {
        Self { lab: Lab::new() }
    }

    fn write(&self, setup: &Setup) {
        let listen: String = setup.addresses().iter().map(|address| format!("listen {address}; ")).collect();
        let [web, frail, sockets] = setup.pools.each_ref().map(upstream);
        let log = if setup.access_log { "@DIRECTORY@/access.log" } else { "off" };
        let values = [
            ("USER", if Uid::effective().is_root() { "user root;" } else { "" }.to_owned()),
            ("WORKERS", WORKERS.to_string()),
            ("DRAIN", format!("{}s", setup.drain.as_secs())),
            ("ACCESS_LOG", log.to_owned()),
            ("DIRECTORY", self.lab.directory().display().to_string()),
            ("RESPONSE_TIMEOUT", format!("{}s", setup.response_timeout)),
            ("WEB", web),
            ("FRAIL", frail),
            ("SOCKETS", sockets),
            ("MARKER", setup.marker.to_string()),
            ("GENERATION", setup.generation.to_string()),
            ("LISTEN", listen),
            ("CANARY_NAME", if setup.has_canary { "canary.test" } else { "" }.to_owned()),
        ];
        self.lab.write("nginx.conf", &fill(TEMPLATE, &values));
    }

    fn run(&self, more: &[&str]) -> Result<String, String> {
        let directory = self.lab.directory().display().to_string();
        let conf = self.lab.path("nginx.conf").display().to_string();
        // The path is absolute, because an upgrade executes the program by the name that it was started with.
        finish(
            &program(),
            &[&["-p", &directory, "-c", &conf, "-e", "error.log"], more].concat(),
            self.lab.directory(),
        )
    }

    /// Returns the number of upgrades that nginx has refused.
    fn refusals(&self) -> usize {
        let log = std::fs::read_to_string(self.lab.path("error.log")).unwrap_or_default();
        log.matches("changing binary signal is ignored").count()
    }

    fn master(&self) -> Result<Process, String> {
        awaited("the PID file names a process", || self.place().main())
    }

    /// Waits until a master has [`WORKERS`] workers that are not among `before`.
    fn await_workers(&self, master: Process, before: &[Process]) -> Result<(), String> {
        awaited("the new workers run", || {
            let workers = self.place().children(master);
            let new = workers.iter().filter(|worker| !before.contains(worker)).count();
            (new >= WORKERS).then_some(())
        })
    }
}

/// Returns the path of nginx, which Debian installs into a directory that only root has in its `PATH`.
fn program() -> String {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
    let mut places = path.split(':').map(|directory| format!("{directory}/nginx"));
    places.find(|place| std::path::Path::new(place).exists()).unwrap_or_else(|| "nginx".to_owned())
}

fn upstream(pool: &Pool) -> String {
    let policy = match pool.policy {
        Policy::RoundRobin => "",
        Policy::Random => "random;",
        Policy::LeastRequest => "least_conn;",
        Policy::PeakEwma => "random two least_conn;",
        Policy::ConsistentHash | Policy::Maglev => "hash $request_uri consistent;",
    };
    let server = |member: &crate::setup::Member| {
        let down = if member.drained { " down" } else { "" };
        format!("server {} weight={} max_fails=3 fail_timeout=2s{down};", member.address, member.weight)
    };
    let servers: Vec<String> = pool.members.iter().map(server).collect();
    format!("{policy} {}", servers.join(" "))
}

impl Subject for Nginx {
    fn name(&self) -> String {
        let said = finish(&program(), &["-v"], self.lab.directory()).unwrap_or_default();
        format!("nginx {}", said.trim().rsplit('/').next().unwrap_or_default())
    }

    fn start(&mut self, setup: &Setup) -> Result<(), String> {
        self.write(setup);
        self.run(&[])?;
        self.await_workers(self.master()?, &[])
    }

    fn reload(&mut self, setup: &Setup) -> Result<(), String> {
        self.write(setup);
        let before = self.place().processes();
        self.run(&["-s", "reload"])?;
        self.await_workers(self.master()?, &before)
    }

    fn upgrade(&mut self, setup: &Setup) -> Result<(), String> {
        self.write(setup);
        let old = self.master()?;
        let refused = self.refusals();
        old.signal(Signal::SIGUSR2);
        let new = awaited("a new master runs", || {
            let new = self.place().main().filter(|main| *main != old).map(Ok);
            new.or_else(|| {
                (self.refusals() > refused)
                    .then(|| Err("nginx ignores SIGUSR2 while an older master runs".to_owned()))
            })
        })??;
        self.await_workers(new, &[])?;
        old.signal(Signal::SIGWINCH);
        old.signal(Signal::SIGQUIT);
        Ok(())
    }

    fn order(&mut self, _order: &Order, setup: &Setup) -> Result<Ordered, String> {
        self.reload(setup).map(|()| Ordered::ByReload)
    }

    fn shape(&self) -> Shape {
        Shape { processes: 1 + WORKERS, reload_replaces: true }
    }

    fn place(&self) -> Place {
        Place::of(&self.lab, "nginx.pid")
    }

    fn stop(&mut self) {
        if let Some(master) = self.place().main() {
            master.signal(Signal::SIGQUIT);
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.place().processes().iter().for_each(|process| process.signal(Signal::SIGKILL));
    }
}
