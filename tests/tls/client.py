"""Calls UpdateCustomer with mutual TLS and prints what it is told.

client.py ADDRESS FOLDER CALLER AUTHORITY [STOP]: as CALLER.pem and CALLER.key, believing AUTHORITY.pem, all in FOLDER;
with STOP, again and again on one connection until a file of that name is there.
"""

import os
import sys
import time

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sqril.customer.v1 import customer_service_pb2 as pb
from sqril.customer.v1 import customer_service_pb2_grpc


def read(folder, name):
    with open(os.path.join(folder, name), "rb") as file:
        return file.read()


def call(stub):
    request = pb.UpdateCustomerRequest(customer_id="cus_sandbox", nationality="ID")
    try:
        response = stub.UpdateCustomer(request, timeout=5)
        return f"OK {response.customer.customer_id}"
    except grpc.RpcError as error:
        told = [error.code().name]
        status = rpc_status.from_call(error)
        for detail in status.details if status else []:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                told += [info.reason, info.metadata["upstream_outcome"]]
        return " ".join(told)


def main(address, folder, caller, authority, stop=None):
    credentials = grpc.ssl_channel_credentials(
        root_certificates=read(folder, f"{authority}.pem"),
        private_key=read(folder, f"{caller}.key"),
        certificate_chain=read(folder, f"{caller}.pem"),
    )
    with grpc.secure_channel(address, credentials) as channel:
        stub = customer_service_pb2_grpc.CustomerServiceStub(channel)
        print(call(stub), flush=True)
        while stop and not os.path.exists(stop):
            print(call(stub), flush=True)
            time.sleep(0.02)


main(*sys.argv[1:])
