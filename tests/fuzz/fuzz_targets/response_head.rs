//! Reads any bytes as the head of a response.
#![no_main]

use lb_service::fuzzing::response_head;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| response_head(bytes));
