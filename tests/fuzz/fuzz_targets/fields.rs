//! Reads any bytes as fields that frame a message or its connection.
#![no_main]

use lb_service::fuzzing::fields;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fields(bytes));
