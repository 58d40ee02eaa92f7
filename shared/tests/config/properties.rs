//! No text makes the configuration panic. The texts are arbitrary ones, damaged valid ones, and the corpus of the fuzz
//! target.

use std::collections::BTreeMap;
use std::fs;
use std::sync::OnceLock;

use crate::exercise::exercise;
use crate::support::{repository, yaml_files};
use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::{Index, subsequence};

/// Pieces of text that have a meaning in YAML or in the configuration.
const PIECES: &[&str] = &[
    "pools",
    ":",
    " ",
    "\n",
    "  ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "\"",
    "'",
    "&a ",
    "*a",
    "<<",
    "!!int ",
    "|\n",
    ">-\n",
    "---\n",
    "...",
    "#",
    "\t",
    "?",
    "~",
    "0",
    "1s",
    "10.0.0.1:80",
    "web",
    "backends",
    "routes",
    "match",
    "${HOST}",
    "${QUOTE}",
    "${EMPTY:-",
    "$${",
    "é",
    "\u{feff}",
    "\u{0}",
    "\u{2028}",
    "%YAML 1.2\n",
    "0x1F",
    "1e400",
    "-",
    "listeners",
    "address",
    "unix:/a",
    "health_check",
    "policy",
    "maglev",
    "hash_on",
    "{header: X-User}",
    "sticky",
    "cookie",
    "backup",
    "max_requests",
    "limits",
    "queue",
    "retries",
    "on",
    "502",
    "outlier_detection",
    "consecutive_failures",
    "slow_backends",
    "ratio",
    "50%",
    "1.5",
];

/// Keys of a pool with some of their values. Some values are invalid, and some contradict each other.
const POOL_KEYS: &[(&str, &[&str])] = &[
    (
        "policy",
        &["round_robin", "random", "least_request", "peak_ewma", "consistent_hash", "maglev", "least_conn"],
    ),
    (
        "hash_on",
        &["client_ip", "uri", "{header: X-User}", "{cookie: a}", "{query: b}", "{}", "{header: a, query: b}"],
    ),
    ("bounded_load", &["100", "101", "1000", "1001", "150%"]),
    ("sticky", &["{cookie: lb}", "{cookie: lb, ttl: 1h}", "{cookie: lb, ttl: 1ms}", "{ttl: 1h}"]),
    (
        "timeouts",
        &["{queue: 1s}", "{response: 1s}", "{response: 1s, queue: 250ms}", "{queue: 0s}", "{connect: 1s}"],
    ),
    ("panic_threshold", &["0", "100", "101"]),
    ("slow_start", &["30s", "0s"]),
    ("health_check.type", &["none", "tcp"]),
    ("limits.max_requests", &["0", "1", "1000000", "1000001"]),
    ("limits.queue", &["0", "7", "1000000", "-1"]),
    ("outlier_detection.consecutive_failures", &["0", "1", "5"]),
    ("outlier_detection.base_ejection", &["1s", "10m"]),
    ("outlier_detection.max_ejection", &["10s", "24h"]),
    ("outlier_detection.max_ejected_percent", &["0", "20", "50", "100"]),
    (
        "outlier_detection.slow_backends",
        &["{}", "{ratio: 1.5, min_samples: 1}", "{ratio: 1}", "{window: 1m}"],
    ),
    ("retries.attempts", &["0", "1", "10"]),
    ("retries.per_try", &["500ms", "2s", "60s"]),
    ("retries.budget_percent", &["0", "20", "100"]),
    ("retries.min_concurrent", &["0", "3"]),
    ("retries.connect_race", &["0s", "100ms", "250ms", "1s", "3s"]),
    ("retries.when", &["[connect_failure]", "[reset, 502]", "[502, \"502\"]", "[]"]),
];

/// Entries of the list `backends`. Some of them contradict each other.
const BACKENDS: &[&str] = &[
    "10.0.0.1:80",
    "10.0.0.2:80",
    "{address: 10.0.0.3:80, weight: 1000}",
    "{address: 10.0.0.4:80, backup: true}",
    "{address: 10.0.0.5:80, backup: true, max_requests: 3}",
    "{address: 10.0.0.6:80, max_requests: 0}",
    "{address: 10.0.0.7:80, max_requests: 1000000}",
    "unix:/run/app.sock",
];

/// The texts of the fixtures and of the shipped configurations.
fn written() -> &'static [String] {
    static TEXTS: OnceLock<Vec<String>> = OnceLock::new();
    TEXTS.get_or_init(|| {
        let directories = ["deploy/config", "tests/fixtures/config/valid", "tests/fixtures/config/invalid"];
        let files = directories.iter().flat_map(|directory| yaml_files(&repository().join(directory)));
        files.map(|file| fs::read_to_string(file).expect("a fixture is text")).collect()
    })
}

/// A change of a text: at `place`, `piece` replaces `removed` characters.
#[derive(Clone, Debug)]
struct Damage {
    place: Index,
    removed: usize,
    piece: String,
}

fn damage() -> impl Strategy<Value = Damage> {
    let piece = prop_oneof![
        3 => any::<Index>().prop_map(|index| index.get(PIECES).to_string()),
        1 => Just(String::new()),
        1 => any::<char>().prop_map(String::from),
    ];
    (any::<Index>(), 0..6_usize, piece).prop_map(|(place, removed, piece)| Damage { place, removed, piece })
}

fn damaged(text: &str, damages: &[Damage]) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    for damage in damages {
        let start = damage.place.index(characters.len() + 1);
        let end = (start + damage.removed).min(characters.len());
        characters.splice(start..end, damage.piece.chars());
    }
    characters.into_iter().collect()
}

/// A pool with some of its keys, each with one of its values.
fn pool() -> impl Strategy<Value = String> {
    let backends = subsequence(BACKENDS, 1..=BACKENDS.len());
    let keys = subsequence(POOL_KEYS, 0..=8);
    (backends, keys, vec(any::<Index>(), 8))
        .prop_map(|(backends, keys, values)| pool_of(&backends, &keys, &values))
}

fn pool_of(backends: &[&str], keys: &[(&str, &[&str])], values: &[Index]) -> String {
    let mut sections: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for ((path, choices), value) in keys.iter().zip(values) {
        let value = value.get(choices);
        match path.split_once('.') {
            Some((section, key)) => sections.entry(section).or_default().push(format!("{key}: {value}")),
            None => sections.entry(path).or_default().push((*value).to_owned()),
        }
    }
    let lines =
        sections.into_iter().map(|(key, values)| match POOL_KEYS.iter().any(|(path, _)| *path == key) {
            true => format!("    {key}: {}\n", values.concat()),
            false => format!("    {key}: {{{}}}\n", values.join(", ")),
        });
    format!("pools:\n  web:\n    backends: [{}]\n{}", backends.join(", "), lines.collect::<String>())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_is_accepted_or_refused(text in "\\PC{0,200}") {
        exercise(&text);
    }

    #[test]
    fn pieces_in_any_order_are_accepted_or_refused(pieces in vec(any::<Index>(), 0..40)) {
        exercise(&pieces.iter().map(|index| *index.get(PIECES)).collect::<String>());
    }

    #[test]
    fn keys_of_a_pool_in_any_combination_are_accepted_or_refused(text in pool()) {
        exercise(&text);
    }

    #[test]
    fn damaged_configurations_are_accepted_or_refused(which in any::<Index>(), damages in vec(damage(), 1..6)) {
        let text: &String = which.get(written());
        exercise(&damaged(text, &damages));
    }
}

#[test]
fn every_prefix_of_the_example_is_accepted_or_refused() {
    let text =
        fs::read_to_string(repository().join("deploy/config/example.yaml")).expect("the example is shipped");
    text.char_indices().step_by(7).for_each(|(end, _)| exercise(&text[..end]));
}

#[test]
fn the_corpus_of_the_fuzz_target_is_accepted_or_refused() {
    let corpus = repository().join("tests/fuzz/corpus/config");
    let entries = fs::read_dir(&corpus).expect("the corpus exists");
    let inputs: Vec<Vec<u8>> = entries
        .map(|entry| fs::read(entry.expect("the corpus can be listed").path()).expect("an input can be read"))
        .collect();
    assert!(inputs.len() >= 20, "only {} inputs", inputs.len());
    inputs.iter().filter_map(|input| std::str::from_utf8(input).ok()).for_each(exercise);
}

#[test]
fn hostile_documents_end_quickly() {
    let many_keys: String = (0..50_000).map(|index| format!("k{index}: 1\n")).collect();
    let many_problems = format!("pools:\n  web:\n    backends: [{}]\n", "x, ".repeat(5_000));
    for text in [
        many_keys,
        many_problems,
        "[".repeat(100_000),
        "- ".repeat(50_000),
        "${".repeat(50_000),
        "? ".repeat(1_000),
    ] {
        exercise(&text);
    }
}
