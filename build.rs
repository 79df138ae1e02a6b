//! Compiles the contract: no protoc needed, and the descriptor set kept whole for reflection.

use std::{env, error::Error, fs, path::PathBuf};

/// Messages that hold values about a person: their `Debug` is written by hand and shows none.
const PERSONAL: [&str; 3] = [
    ".sqril.customer.v1.UpdateCustomerRequest",
    ".sqril.customer.v1.UpdateCustomerResponse",
    ".sqril.customer.v1.Customer",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true);
    compiler.open_files(["sqril/customer/v1/customer_service.proto"])?;
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(descriptors, compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .build_transport(false)
        .btree_map(".")
        .skip_debug(PERSONAL)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
