"""spans FILE SENT: what the collector got against what was sent."""
import json, sys

spans = [json.loads(line) for line in open(sys.argv[1])]
sent = json.load(open(sys.argv[2]))
failed = 0


def check(name, holds, detail=""):
    global failed
    failed += not holds
    print(f"{'passed' if holds else 'FAILED'}  {name} {detail}")


def attributes(span):
    return {pair["key"]: next(iter(pair["value"].values())) for pair in span.get("attributes", [])}


servers = [span for span in spans if span["kind"] == "SPAN_KIND_SERVER"]
clients = [span for span in spans if span["kind"] == "SPAN_KIND_CLIENT"]
check("a span for each sampled call", len(servers) == sent["sampled"], f"{len(servers)} of {sent['calls']} calls")
check("the caller's is its parent", all(0 < int(span["parentSpanId"], 16) <= sent["calls"] for span in servers))
by_id = {span["spanId"]: span for span in servers}
check("each PUT belongs to a call", clients and all(
    by_id[span["parentSpanId"]]["traceId"] == span["traceId"] for span in clients), len(clients))
check("methods", {attributes(span)["rpc.method"] for span in servers} == {"sqril.customer.v1.CustomerService/UpdateCustomer"})
codes = {attributes(span)["rpc.response.status_code"] for span in servers}
check("codes", {"OK", "UNKNOWN", "INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE"} <= codes <= set(sent["codes"]), sorted(codes))
wrong = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
check("errors are the server's", all(
    (span.get("status", {}).get("code") == "STATUS_CODE_ERROR") == (attributes(span)["rpc.response.status_code"] in wrong)
    for span in servers))
check("no identifier in a URL", all(attributes(span)["url.full"].endswith("?customer_id=REDACTED") for span in clients))
check("service", {span["resource"]["service.name"] for span in spans} == {"sqril-grpc"})
print(f"{'0 failed' if not failed else f'{failed} failed'}, {len(spans)} spans")
sys.exit(1 if failed else 0)
