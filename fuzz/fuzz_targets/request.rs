//! Any bytes that are a request either become a PUT that says what was set, or are refused with what is wrong.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use sqril_grpc::{customer::CustomerUpdate, pb::UpdateCustomerRequest, rest::fuzzing};

fuzz_target!(|bytes: &[u8]| {
    let Ok(request) = UpdateCustomerRequest::decode(bytes) else { return };
    match CustomerUpdate::try_from(request) {
        Ok(update) => {
            let body: serde_json::Value = serde_json::from_slice(&fuzzing::body(&update)).unwrap();
            let said = body.as_object().unwrap();
            assert_eq!(said.len(), update.changes().len());
            assert!(update.changes().all(|(field, value)| said[field.name()] == value));
        }
        Err(violations) => assert!(!violations.is_empty()),
    }
});
