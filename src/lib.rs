//! x
pub mod admin;
pub mod app;
pub mod config;
pub mod customer;
pub mod grpc;
pub mod pb;
pub mod rest;
pub mod sandbox;
pub mod shutdown;
pub mod telemetry;
