//! HAProxy, as a master with one worker. A reload and an upgrade both send SIGUSR2 to the master, which executes the
//! program again. Weights and drains use HAProxy's stats socket.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use tests::{Lab, Signal, wait};

use super::{LIMIT, Ordered, Place, Shape, Subject, awaited, fill, finish};
use crate::setup::{Order, Policy, Pool, Setup};

/// The configuration. Names between `@` are replaced by values.
const TEMPLATE: &str = include_str!("../haproxy.cfg");

/// A running HAProxy.
pub(crate) struct Haproxy {
    lab: Lab,
    master: Option<Child>,
}

impl Haproxy {
    /// Creates a subject that is not started.
    pub(crate) fn new() -> Self {
        Self { lab: Lab::new(), master: None }
    }

    fn write(&self, setup: &Setup) {
        let bind: String = setup.addresses().iter().map(|address| format!("    bind {address}\n")).collect();
        let [web, frail, sockets] = setup.pools.each_ref().map(backend);
        let log =
            if setup.access_log { "log stdout format raw local0\n    option httplog" } else { "no log" };
        let canary = "    use_backend sockets if { hdr(host) -i canary.test }";
        let values = [
            ("DIRECTORY", self.lab.directory().display().to_string()),
            ("DRAIN", format!("{}s", setup.drain.as_secs())),
            ("ACCESS_LOG", log.to_owned()),
            ("RESPONSE_TIMEOUT", format!("{}s", setup.response_timeout)),
            ("CHECK_INTERVAL", format!("{}ms", setup.check_interval)),
            ("BIND", bind),
            ("CANARY_ROUTE", if setup.has_canary { canary } else { "" }.to_owned()),
            ("WEB", web),
            ("FRAIL", frail),
            ("SOCKETS", sockets),
            ("MARKER", setup.marker.to_string()),
            ("GENERATION", setup.generation.to_string()),
        ];
        self.lab.write("haproxy.cfg", &fill(TEMPLATE, &values));
    }

    fn command(&self, line: &str) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("{line}: {error}");
        let mut socket = UnixStream::connect(self.lab.path("haproxy.sock")).map_err(failed)?;
        socket.write_all(format!("{line}\n").as_bytes()).map_err(failed)?;
        let mut said = String::new();
        socket.read_to_string(&mut said).map_err(failed)?;
        if said.trim().is_empty() { Ok(()) } else { Err(format!("{line}: {}", said.trim())) }
    }
}

fn backend(pool: &Pool) -> String {
    let policy = match pool.policy {
        Policy::RoundRobin => "roundrobin",
        Policy::Random => "random",
        Policy::LeastRequest => "leastconn",
        Policy::PeakEwma => "random(2)",
        Policy::ConsistentHash | Policy::Maglev => "uri\n    hash-type consistent",
    };
    let server = |member: &crate::setup::Member| {
        let weight = if member.drained { 0 } else { member.weight };
        format!("    server origin{} {} weight {weight}\n", member.origin, member.address)
    };
    let servers: String = pool.members.iter().map(server).collect();
    format!("    balance {policy}\n{servers}")
}

impl Subject for Haproxy {
    fn name(&self) -> String {
        let said = finish("haproxy", &["-v"], self.lab.directory()).unwrap_or_default();
        let version = said.split_whitespace().nth(2).unwrap_or_default();
        format!("HAProxy {}", version.split('-').next().unwrap_or_default())
    }

    fn start(&mut self, setup: &Setup) -> Result<(), String> {
        self.write(setup);
        let log = File::create(self.lab.path("haproxy.log")).map_err(|error| error.to_string())?;
        let mut command = Command::new("haproxy");
        command.args(["-W", "-p", "haproxy.pid", "-f", "haproxy.cfg"]).current_dir(self.lab.directory());
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(|error| error.to_string())?).stderr(log);
        let master = command
            .spawn()
            .map_err(|error| format!("cannot run haproxy: {error}; run `make setup` to install it"))?;
        self.master = Some(master);
        awaited("the worker runs", || {
            let master = self.place().main()?;
            (self.place().children(master).len() == 1).then_some(())
        })
    }

    fn reload(&mut self, setup: &Setup) -> Result<(), String> {
        self.write(setup);
        finish("haproxy", &["-c", "-f", "haproxy.cfg"], self.lab.directory())?;
        let place = self.place();
        let master = place.main().ok_or("the master has exited")?;
        let before = place.children(master);
        master.signal(Signal::SIGUSR2);
        awaited("a new worker runs", || {
            let workers = place.children(master);
            workers.iter().any(|worker| !before.contains(worker)).then_some(())
        })
    }

    fn upgrade(&mut self, setup: &Setup) -> Result<(), String> {
        self.reload(setup)
    }

    fn order(&mut self, order: &Order, setup: &Setup) -> Result<Ordered, String> {
        let server = |origin: usize| format!("web/origin{origin}");
        let line = match order {
            Order::Drain(member) => format!("set server {} state drain", server(member.origin)),
            Order::Undrain(member) => format!("set server {} state ready", server(member.origin)),
            Order::Weight(member, weight) => format!("set server {} weight {weight}", server(member.origin)),
            Order::Add(_) | Order::Remove(_) => {
                return self.reload(setup).map(|()| Ordered::ByReload);
            }
        };
        self.command(&line).map(|()| Ordered::Live)
    }

    fn shape(&self) -> Shape {
        Shape { processes: 2, reload_replaces: true }
    }

    fn place(&self) -> Place {
        Place::of(&self.lab, "haproxy.pid")
    }

    fn stop(&mut self) {
        if let Some(master) = &mut self.master {
            tests::process::Process(master.id()).signal(Signal::SIGUSR1);
            let _ = wait::poll(LIMIT, || master.try_wait().ok().flatten());
        }
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        self.place().processes().iter().for_each(|process| process.signal(Signal::SIGKILL));
        if let Some(master) = &mut self.master {
            let _ = master.wait();
        }
    }
}
