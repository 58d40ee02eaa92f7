//! Passes any bytes on as responses.
#![no_main]

use lb_service::fuzzing::forwarded_response;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| forwarded_response(bytes));
