//! The contract's generated types, and its descriptor set for reflection. Nothing here is written by hand but the
//! `Debug` of the messages that hold values about a person.

use std::fmt;

#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the contract, which is commented"
)]
mod generated {
    tonic::include_proto!("sqril.customer.v1");
}

pub use generated::*;

/// The contract and all it imports as an encoded `google.protobuf.FileDescriptorSet`, comments included.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

macro_rules! silent_debug {
    ($($message:ident),*) => {$(
        /// Shows the message's name and nothing of what it says.
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message)).finish_non_exhaustive()
            }
        }
    )*};
}

silent_debug!(UpdateCustomerRequest, UpdateCustomerResponse, Customer);

macro_rules! codes {
    ($($codes:ident: $prefix:literal),*) => {$(
        impl $codes {
            /// Sqril's code of this value; `None` for the enum's zero, which is no code.
            pub fn code(self) -> Option<&'static str> {
                let name = self.as_str_name().strip_prefix($prefix);
                name.filter(|_| self != Self::default())
            }

            /// The value of Sqril's code; `None` if the contract does not know it.
            pub fn from_code(code: &str) -> Option<Self> {
                Self::from_str_name(&[$prefix, code].concat()).filter(|value| *value != Self::default())
            }
        }
    )*};
}

// The contract names each value after Sqril's code, with the enum's own name before it.
codes!(Occupation: "OCCUPATION_", IcType: "IC_TYPE_");
