//! Any text is a timeout or none, and a timeout never overflows.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some(timeout) = sqril_grpc::grpc::fuzzing::grpc_timeout(text) {
        assert!(timeout.as_secs() <= 99_999_999 * 3600);
        assert!(text.len() <= 9);
    }
});
