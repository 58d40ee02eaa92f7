//! Reads any bytes as the head of a request.
#![no_main]

use lb_service::fuzzing::request_head;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| request_head(bytes));
