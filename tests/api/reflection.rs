//! Reflection, in both versions, with everything that an error's details need.

use tokio_stream::once;
use tonic::Code;
use tonic_reflection::pb::{v1, v1alpha};

use crate::support::Facade;

#[tokio::test]
async fn v1_knows_the_contract_health_and_details() {
    use v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let facade = Facade::sandbox().await;
    let mut client = ServerReflectionClient::new(facade.channel().await);
    let mut ask = async |message_request| {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message_request),
        };
        let mut answers = client
            .server_reflection_info(once(request))
            .await
            .unwrap()
            .into_inner();
        answers
            .message()
            .await
            .unwrap()
            .unwrap()
            .message_response
            .unwrap()
    };
    let MessageResponse::ListServicesResponse(list) =
        ask(MessageRequest::ListServices(String::new())).await
    else {
        panic!("no list");
    };
    let names: Vec<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    for name in ["sqril.customer.v1.CustomerService", "grpc.health.v1.Health"] {
        assert!(
            names.iter().any(|listed| listed == name),
            "{name} in {names:?}"
        );
    }
    for symbol in [
        "sqril.customer.v1.UpdateCustomerRequest",
        "google.protobuf.Timestamp",
        "google.rpc.ErrorInfo",
        "google.rpc.BadRequest",
        "google.rpc.RetryInfo",
        "google.rpc.QuotaFailure",
        "google.rpc.ResourceInfo",
        "google.rpc.LocalizedMessage",
        "google.rpc.RequestInfo",
    ] {
        let answer = ask(MessageRequest::FileContainingSymbol(symbol.to_owned())).await;
        assert!(
            matches!(answer, MessageResponse::FileDescriptorResponse(_)),
            "{symbol}"
        );
    }
}

#[tokio::test]
async fn v1alpha_for_older_tools() {
    use v1alpha::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest,
    };
    let facade = Facade::sandbox().await;
    let mut client = ServerReflectionClient::new(facade.channel().await);
    let message_request = Some(MessageRequest::FileContainingSymbol(
        "google.rpc.ErrorInfo".to_owned(),
    ));
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request,
    };
    let mut answers = client
        .server_reflection_info(once(request))
        .await
        .unwrap()
        .into_inner();
    assert!(
        answers
            .message()
            .await
            .unwrap()
            .unwrap()
            .message_response
            .is_some()
    );
}

#[tokio::test]
async fn a_flag_turns_it_off() {
    let facade = Facade::start(&["--sandbox", "--reflection=off"], &[]).await;
    let mut client =
        v1::server_reflection_client::ServerReflectionClient::new(facade.channel().await);
    let request = v1::ServerReflectionRequest::default();
    let status = client
        .server_reflection_info(once(request))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}
