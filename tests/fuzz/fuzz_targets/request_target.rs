//! Reads any bytes as the target of a request and as a host.
#![no_main]

use lb_service::fuzzing::request_target;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| request_target(bytes));
