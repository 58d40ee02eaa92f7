//! Reads any bytes as a chunked body.
#![no_main]

use lb_service::fuzzing::chunked_body;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| chunked_body(bytes));
