//! Any status and any body become a profile of the customer, or a status that is small and repeats no value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sqril_grpc::{grpc, rest::fuzzing};

const CANARIES: [&str; 3] = ["canary@example.com", "canary street 1", "cus_canary"];

fuzz_target!(|input: (u16, Option<u8>, &[u8])| {
    let (status, retry_after, body) = input;
    let update = fuzzing::update("cus_canary", "canary@example.com", "Canary Street 1");
    if let Some(named) = fuzzing::profile(body, &update) {
        assert_eq!(named, "cus_canary");
    }
    let error = fuzzing::answered(100 + status % 900, retry_after, body);
    let told = grpc::fuzzing::told(error, &update);
    assert!(told.encoded <= 4096);
    for text in told.texts {
        let text = text.to_lowercase();
        assert!(CANARIES.iter().all(|canary| !text.contains(canary)), "{text}");
    }
});
