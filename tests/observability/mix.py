"""mix ADDRESS CERTIFICATE SECONDS: calls of every kind, by several callers; prints what was sent and what was told."""
import collections, json, random, sys, time

import grpc
from sqril.customer.v1 import customer_service_pb2 as pb, customer_service_pb2_grpc as service

address, certificate, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
credentials = grpc.ssl_channel_credentials(open(certificate, "rb").read())
stub = service.CustomerServiceStub(grpc.secure_channel(address, credentials))
# An identifier, how often it comes, and what becomes of its update.
MIX = [
    ("cus_sandbox", 800, "applied"), ("sbx_new_codes", 20, "applied"), ("sbx_flaky", 20, "applied"),
    ("sbx_sparse", 10, "applied"), ("sbx_immutable", 30, "rejected"), ("no_such_customer", 20, "rejected"),
    ("", 20, "not_sent"), ("sbx_status_500", 6, "unknown"), ("sbx_status_502", 3, "unknown"),
    ("sbx_unavailable", 10, "rejected"), ("sbx_reset", 6, "unknown"), ("sbx_stall", 1, "unknown"),
    ("sbx_foreign_404", 3, "rejected"), ("sbx_status_401", 2, "rejected"), ("sbx_cut", 2, "applied"),
]
CALLERS = [("spiffe://example.org/ns/shop/sa/web", 6), ("spiffe://example.org/ns/shop/sa/app", 3),
           ("spiffe://example.org/ns/billing/sa/api", 3), ("spiffe://example.org/ns/other/sa/x", 0.1)]
random.seed(7)
sent, codes, outcomes, traces = 0, collections.Counter(), collections.Counter(), 0
end = time.monotonic() + seconds
while time.monotonic() < end:
    identifier, _, outcome = random.choices(MIX, [weight for _, weight, _ in MIX])[0]
    caller = random.choices(CALLERS, [weight for _, weight in CALLERS])[0][0]
    # One in two hundred has too little time, and is not sent.
    hurried = random.random() < 0.005
    if "other" in caller or hurried:
        outcome = "not_sent"
    sampled = random.random() < 0.5
    metadata = [("x-forwarded-client-cert", f"URI={caller}"),
                ("traceparent", f"00-{random.getrandbits(128) | 1:032x}-{sent + 1:016x}-0{int(sampled)}")]
    request = pb.UpdateCustomerRequest(customer_id=identifier, nationality="PE")
    try:
        stub.UpdateCustomer(request, metadata=metadata, timeout=0.04 if hurried else 5)
        codes["OK"] += 1
    except grpc.RpcError as error:
        codes[error.code().name] += 1
    sent += 1
    traces += sampled
    outcomes[outcome] += 1
    time.sleep(random.expovariate(200))
print(json.dumps({"calls": sent, "codes": codes, "outcomes": outcomes, "sampled": traces}))
