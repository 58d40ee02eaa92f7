//! Passes any bytes on as requests.
#![no_main]

use lb_service::fuzzing::forwarded_request;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| forwarded_request(bytes));
