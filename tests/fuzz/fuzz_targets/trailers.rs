//! Reads any bytes as trailers.
#![no_main]

use lb_service::fuzzing::trailers;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| trailers(bytes));
