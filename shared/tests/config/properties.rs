//! No text makes the configuration panic: arbitrary ones, valid ones that were damaged, and the corpus of the fuzz target.

use std::fs;
use std::sync::OnceLock;

use crate::exercise::exercise;
use crate::support::{repository, yaml_files};
use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::Index;

/// Pieces that have a meaning to YAML or to the configuration.
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
];

/// Every fixture and every shipped configuration.
fn written() -> &'static [String] {
    static TEXTS: OnceLock<Vec<String>> = OnceLock::new();
    TEXTS.get_or_init(|| {
        let directories = ["deploy/config", "tests/fixtures/config/valid", "tests/fixtures/config/invalid"];
        let files = directories.iter().flat_map(|directory| yaml_files(&repository().join(directory)));
        files.map(|file| fs::read_to_string(file).expect("a fixture is text")).collect()
    })
}

/// A change of a text: at a place, so many characters are replaced by a piece.
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
    fn damaged_configurations_are_accepted_or_refused(which in any::<Index>(), damages in vec(damage(), 1..6)) {
        let text: &String = which.get(written());
        exercise(&damaged(text, &damages));
    }
}

#[test]
fn every_beginning_of_the_example_is_accepted_or_refused() {
    let text =
        fs::read_to_string(repository().join("deploy/config/example.yaml")).expect("the example is shipped");
    text.char_indices().step_by(7).for_each(|(end, _)| exercise(&text[..end]));
}

#[test]
fn the_corpus_of_the_fuzz_target_is_accepted_or_refused() {
    let corpus = repository().join("tests/fuzz/corpus/config");
    let entries = fs::read_dir(&corpus).expect("the corpus is there");
    let inputs: Vec<Vec<u8>> = entries
        .map(|entry| fs::read(entry.expect("it can be listed").path()).expect("it can be read"))
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
