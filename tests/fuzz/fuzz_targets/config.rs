//! Loads any text as a configuration.
#![no_main]

#[path = "../../../shared/tests/config/exercise.rs"]
mod exercise;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| exercise::exercise(text));
