//! Any text is a wait of an hour at most, or none.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some(wait) = sqril_grpc::rest::fuzzing::retry_after(text) {
        assert!(wait.as_secs() <= 3600);
    }
});
