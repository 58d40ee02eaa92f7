//! The corpora of the fuzz targets, and texts that are close to messages.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

/// Asserts the properties of one target for any bytes.
type Exercise = fn(&[u8]);

/// The fuzz targets of this crate.
const TARGETS: [(&str, Exercise); 8] = [
    ("chunked_body", chunked_body),
    ("fields", fields),
    ("forwarded_request", forwarded_request),
    ("forwarded_response", forwarded_response),
    ("request_head", request_head),
    ("request_target", request_target),
    ("response_head", response_head),
    ("trailers", trailers),
];

/// The targets of other crates.
const OTHERS: [&str; 1] = ["config"];

/// Returns a path in the crate of the fuzz targets.
fn fuzz(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz").join(path)
}

/// Returns the names of the files in a directory, without their extensions.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).expect("the directory exists");
    let paths = entries.map(|entry| entry.expect("it can be listed").path());
    paths.map(|path| path.file_stem().expect("it has a name").to_string_lossy().into_owned()).collect()
}

#[test]
fn each_target_holds_for_its_corpus() {
    for (name, exercise) in TARGETS {
        let corpus = fuzz("corpus").join(name);
        let inputs = fs::read_dir(&corpus).expect("the corpus exists");
        let inputs: Vec<_> = inputs.map(|entry| entry.expect("it can be listed").path()).collect();
        assert!(inputs.len() >= 5, "{} has {} inputs", corpus.display(), inputs.len());
        for path in inputs {
            println!("{}", path.display()); // names the input that fails
            exercise(&fs::read(&path).expect("an input can be read"));
        }
    }
}

#[test]
fn each_target_has_a_program_and_a_corpus() {
    let expected: BTreeSet<_> =
        TARGETS.map(|(name, _)| name).into_iter().chain(OTHERS).map(str::to_owned).collect();
    assert_eq!(names(&fuzz("fuzz_targets")), expected);
    assert_eq!(names(&fuzz("corpus")), expected);
    let manifest = fs::read_to_string(fuzz("Cargo.toml")).expect("the manifest exists");
    assert!(expected.iter().all(|name| manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\""))));
}

/// Returns texts that consist of these parts.
fn text(parts: &[&'static str], count: usize) -> impl Strategy<Value = String> + use<> {
    let part = prop::sample::select(parts.to_vec());
    prop::collection::vec(part, 0..count).prop_map(|parts| parts.concat())
}

/// Returns fields, most of which are valid.
fn lines() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "TE",
        "Trailer",
        "Upgrade",
        "Expect",
        "X-A",
        "X_Forwarded_For",
        "Keep-Alive",
        "Proxy",
        "Date",
        "x-checksum",
        "Cookie",
        "Max-Forwards",
    ]);
    let value = text(
        &[
            "a",
            "1",
            "0",
            "5",
            ",",
            " ",
            "chunked",
            "Chunked",
            "close",
            "x-a",
            "te",
            "trailers",
            "keep-alive",
            "\u{e9}",
            "upgrade",
            "websocket",
            "100-continue",
            "\t",
            "[::1]",
            ":80",
            "host",
        ],
        4,
    );
    let colon = prop::sample::select(vec![": ", ": ", ": ", ":", ":\t ", " :", ""]);
    let end = prop::sample::select(vec!["\r\n", "\r\n", "\r\n", "\r\n", " \r\n", "\n", "\r\n "]);
    let line =
        (name, colon, value, end).prop_map(|(name, colon, value, end)| format!("{name}{colon}{value}{end}"));
    prop::collection::vec(line, 0..5).prop_map(|lines| lines.concat())
}

/// Returns bodies with and without chunks.
fn body() -> impl Strategy<Value = String> {
    let chunks = text(
        &[
            "1\r\na\r\n",
            "2;x=\"\\\"\"\r\nab\r\n",
            "a\r\n0123456789\r\n",
            "5 \r\nabcde\r\n",
            "3\r\nab\r\n",
            "1;\"\r\na\r\n",
        ],
        4,
    );
    let chunked = (chunks, lines()).prop_map(|(chunks, trailers)| format!("{chunks}0\r\n{trailers}\r\n"));
    prop_oneof![Just(String::new()), Just("a".to_owned()), Just("abcde".to_owned()), chunked]
}

/// Returns messages that begin with one of these lines, some of which are damaged.
fn messages(first: &[&'static str]) -> impl Strategy<Value = Vec<u8>> + use<> {
    let framing = prop::sample::select(vec![
        "",
        "Content-Length: 5\r\n",
        "Content-Length: 1\r\n",
        "Transfer-Encoding: chunked\r\n",
    ]);
    let line = prop::sample::select(first.to_vec());
    let message = (line, framing, lines(), body())
        .prop_map(|(line, framing, lines, body)| format!("{line}\r\n{framing}{lines}\r\n{body}"));
    let messages = prop::collection::vec(message, 1..4).prop_map(|messages| messages.concat().into_bytes());
    (messages, prop::option::of((any::<prop::sample::Index>(), any::<u8>()))).prop_map(
        |(mut bytes, damage)| {
            if let Some((index, byte)) = damage {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            bytes
        },
    )
}

const REQUEST_LINES: [&str; 8] = [
    "GET / HTTP/1.1\r\nHost: a",
    "GET / HTTP/1.1\r\nHost: a",
    "POST /a/../b?c HTTP/1.1\r\nHost: a:80",
    "POST http://a/b HTTP/1.1\r\nHost: A",
    "POST http://a?b HTTP/1.0",
    "POST / HTTP/1.0",
    "OPTIONS * HTTP/1.1\r\nHost: [::1]",
    "\r\nHEAD /%2e/a HTTP/1.1\r\nHost: a",
];

const STATUS_LINES: [&str; 9] = [
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200 OK",
    "HTTP/1.0 200",
    "HTTP/1.1 204 No Content",
    "HTTP/1.1 304 Not Modified",
    "HTTP/1.1 103 Early Hints",
    "HTTP/1.1 101 Switching Protocols",
    "HTTP/1.1 426 Upgrade Required",
    "HTTP/1.0 999 \u{e9}",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn requests_are_read_and_passed_on_in_one_way(bytes in messages(&REQUEST_LINES)) {
        request_head(&bytes);
        forwarded_request(&bytes);
    }

    #[test]
    fn responses_are_read_and_passed_on_in_one_way(bytes in messages(&STATUS_LINES)) {
        response_head(&bytes);
        forwarded_response(&bytes);
    }

    #[test]
    fn bodies_and_trailers_are_read_in_one_way(body in body(), lines in lines()) {
        chunked_body(body.as_bytes());
        trailers(format!("{lines}\r\n").as_bytes());
    }

    #[test]
    fn fields_are_read_in_one_way(lines in lines()) {
        fields(lines.as_bytes());
    }

    #[test]
    fn targets_and_hosts_are_read_in_one_way(
        text in text(&["/", ".", "..", "%2e", "%2E", "a", "?", "http://", "a:80", "[::1]", "*", "%", "\\", "@", ":"], 10),
    ) {
        request_target(text.as_bytes());
    }
}
