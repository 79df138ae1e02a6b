//! Server reflection, v1 and v1alpha: older grpcurls know only the latter. Beside our own contract it knows health,
//! and the messages that errors carry, so that tools can show them.

use tonic::server::NamedService;
use tonic_reflection::server::{Builder, Error, v1, v1alpha};

use super::MAX_MESSAGE_BYTES;
use crate::pb;

/// Their full names.
pub(super) const V1: &str = <v1::ServerReflectionServer<()> as NamedService>::NAME;
pub(super) const V1ALPHA: &str = <v1alpha::ServerReflectionServer<()> as NamedService>::NAME;

/// The two reflection services.
///
/// # Errors
/// When a descriptor set that was built into the program cannot be read.
pub fn services() -> Result<
    (
        v1::ServerReflectionServer<impl v1::ServerReflection>,
        v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>,
    ),
    Error,
> {
    let builder = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = builder()
        .build_v1()?
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let v1alpha = builder()
        .build_v1alpha()?
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    Ok((v1, v1alpha))
}
