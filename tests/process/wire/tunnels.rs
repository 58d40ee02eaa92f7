//! Changes of protocol, the bytes of a tunnel, and its end.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use tests::Daemon;
use tests::wait::{self, LONG};

use super::{SWITCHING, daemon_of, read_all, read_exactly};
use crate::data_path::{UPGRADE, backend, connect, read_head, reset};
use crate::pool_of;

/// Asks for a WebSocket at this path, and returns the connection after the 101.
fn open(daemon: &Daemon, path: &str) -> TcpStream {
    let mut client = connect(daemon);
    client.write_all(format!("GET {path} HTTP/1.1\r\n{UPGRADE}\r\n").as_bytes()).unwrap();
    assert!(read_head(&mut client).unwrap().starts_with("HTTP/1.1 101"));
    client
}

#[test]
fn a_switch_that_was_not_asked_for_is_502() {
    let switching = |fields: &str| format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\nSTRAY");
    let to = |protocol: &str| switching(&format!("Connection: Upgrade\r\nUpgrade: {protocol}\r\n"));
    let plain = "GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned();
    let websocket = format!("GET / HTTP/1.1\r\n{UPGRADE}\r\n");
    let post =
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 3\r\n\r\na";
    let rows = [
        (plain.clone(), to("foo")),
        (plain, switching("")),
        (websocket.clone(), to("foo")),
        (websocket.clone(), switching("Upgrade: websocket\r\n")),
        (websocket.clone(), switching("Connection: Upgrade\r\n")),
        (websocket, to("websocket\r\nUpgrade: foo")),
        // Its body is incomplete.
        (post.to_owned(), to("tcp")),
    ];
    for (request, response) in rows {
        let (sender, end) = mpsc::channel();
        let bytes = response.clone();
        let address = backend(move |_, mut stream| {
            let _ = read_head(&mut stream);
            stream.write_all(bytes.as_bytes()).unwrap();
            sender.send(read_all(&mut stream).0).unwrap();
        });
        let (_lab, daemon) = daemon_of(&[address], "retries: {attempts: 0}");
        let mut client = connect(&daemon);
        client.write_all(request.as_bytes()).unwrap();
        let head = read_head(&mut client).unwrap();
        assert!(head.starts_with("HTTP/1.1 502"), "{request}{response}{head}");
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&mut client).0, "502 Bad Gateway\n", "{request}{response}");
        assert!(["", "a"].contains(&end.recv_timeout(LONG).unwrap().as_str()), "{request}{response}");
    }
}

#[test]
fn bytes_behind_an_upgrade_reach_the_backend_after_its_101() {
    let (sender, received) = mpsc::channel();
    let address = backend(move |_, mut stream| {
        let Some(head) = read_head(&mut stream) else { return };
        let (body, switching) = match head.starts_with("POST") {
            true => (3, "HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".as_bytes()),
            false => (0, SWITCHING),
        };
        let body = read_exactly(&mut stream, body);
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let before = stream.read(&mut [0]).map_err(|error| error.kind());
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(switching).unwrap();
        sender.send((body, before, read_exactly(&mut stream, 5))).unwrap();
    });
    let (_lab, daemon) = daemon_of(&[address], "");
    let post =
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 3\r\n\r\nabc";
    for (request, body) in [(format!("GET / HTTP/1.1\r\n{UPGRADE}\r\n"), ""), (post.to_owned(), "abc")] {
        let mut client = connect(&daemon);
        client.write_all(format!("{request}EARLY").as_bytes()).unwrap();
        assert!(read_head(&mut client).unwrap().starts_with("HTTP/1.1 101"));
        let (sent, before, after) = received.recv_timeout(LONG).unwrap();
        assert_eq!((sent.as_str(), after.as_str()), (body, "EARLY"));
        assert_eq!(before, Err(ErrorKind::WouldBlock), "nothing comes before the 101");
    }
}

#[test]
fn each_side_of_a_tunnel_may_end_its_direction_first() {
    let (sender, received) = mpsc::channel();
    let address = backend(move |_, mut stream| {
        let Some(head) = read_head(&mut stream) else { return };
        stream.write_all(SWITCHING).unwrap();
        if head.starts_with("GET /backend") {
            stream.write_all(b"output").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        }
        let input = read_all(&mut stream);
        if head.starts_with("GET /client") {
            stream.write_all(b"output").unwrap();
        }
        sender.send(input).unwrap();
    });
    let (_lab, daemon) = daemon_of(&[address], "");
    let input = || received.recv_timeout(LONG).unwrap();

    let mut client = open(&daemon, "/client");
    client.write_all(b"input").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), ("output".to_owned(), None));
    assert_eq!(input(), ("input".to_owned(), None));

    let mut client = open(&daemon, "/backend");
    assert_eq!(read_all(&mut client), ("output".to_owned(), None));
    client.write_all(b"late").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(input(), ("late".to_owned(), None));
    daemon.settle();
    assert_eq!(daemon.metric("lb_requests_total", &["code=\"101\""]), 2.0);
}

/// Starts a backend of tunnels and streams of events. At `/events`, it sends an event when the test says so. It reports
/// the end of the client's direction, and the end of the connection.
fn quiet_backend(events: Receiver<()>) -> (SocketAddr, Receiver<&'static str>) {
    let (sender, seen) = mpsc::channel();
    let events = std::sync::Mutex::new(events);
    let address = backend(move |_, mut stream| {
        let Some(head) = read_head(&mut stream) else { return };
        if head.starts_with("GET /events") {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            events.lock().unwrap().recv().unwrap();
            stream.write_all(b"event").unwrap();
        } else {
            stream.write_all(SWITCHING).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the client ends its direction");
            sender.send("half").unwrap();
            wait::until(LONG, "the connection is reset", || stream.take_error().unwrap().is_some());
            return sender.send("end").unwrap();
        }
        let _ = stream.read(&mut [0]);
        sender.send("end").unwrap();
    });
    (address, seen)
}

/// Nothing else happens on these connections until `timeouts.tunnel`, which is an hour.
#[test]
fn a_client_that_vanishes_after_its_last_byte_is_noticed() {
    let (send_event, events) = mpsc::channel();
    let (address, seen) = quiet_backend(events);
    let (_lab, daemon) = daemon_of(&[address], "");
    let next = || seen.recv_timeout(LONG).unwrap();

    let client = open(&daemon, "/tunnel");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(next(), "half");
    reset(client);
    assert_eq!(next(), "end");

    let mut client = connect(&daemon);
    client.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(read_head(&mut client).unwrap().starts_with("HTTP/1.1 200"));
    client.shutdown(Shutdown::Write).unwrap();
    send_event.send(()).unwrap();
    assert_eq!(read_exactly(&mut client, 10), "5\r\nevent\r\n");
    reset(client);
    assert_eq!(next(), "end");
    daemon.settle();
}

#[test]
fn a_tunnel_that_the_end_of_the_drain_cuts_is_logged() {
    let address = backend(|_, mut stream| {
        let _ = read_head(&mut stream);
        stream.write_all(SWITCHING).unwrap();
        let _ = read_all(&mut stream);
    });
    let lab = tests::Lab::new();
    let mut daemon = lab.start(&format!("shutdown: {{drain: 300ms}}\n{}", pool_of(&[address], "")));
    let client = open(&daemon, "/cut");
    daemon.stop();
    daemon.logged(&["/cut", "101", "reason=\"shutdown\""]);
    drop(client);
}
