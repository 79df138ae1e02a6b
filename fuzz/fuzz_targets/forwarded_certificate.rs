//! Whatever a caller sends, what the proxy adds behind it is what counts, or nothing does.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sqril_grpc::identity::fuzzing::forwarded;

fuzz_target!(|sent: &str| {
    forwarded(sent);
    for added in [
        "By=spiffe://td/us;Hash=ab;URI=spiffe://td/them",
        r#"By=spiffe://td/us;Hash=ab;Subject="CN=\"a\",O=b;c";URI=spiffe://td/them"#,
        r#"Hash=ab;Subject="";URI=spiffe://td/them;DNS=them.example"#,
    ] {
        if let Some(names) = forwarded(&format!("{sent},{added}")) {
            assert_eq!(Some(names), forwarded(added));
        }
    }
});
