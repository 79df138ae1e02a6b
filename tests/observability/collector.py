"""collector FILE: an OTLP receiver over gRPC, by OpenTelemetry's own Python package; writes each span as a line of JSON."""
import json, sys
from concurrent import futures

import grpc
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace, trace_service_pb2_grpc as service


class Receiver(service.TraceServiceServicer):
    def __init__(self, path):
        self.file = open(path, "w", buffering=1)

    def Export(self, request, context):
        for resource in request.resource_spans:
            told = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    line = MessageToDict(span)
                    for key, value in ("traceId", span.trace_id), ("spanId", span.span_id), ("parentSpanId", span.parent_span_id):
                        line[key] = value.hex()
                    self.file.write(json.dumps({"resource": told, **line}) + "\n")
        return trace.ExportTraceServiceResponse()


server = grpc.server(futures.ThreadPoolExecutor(4))
service.add_TraceServiceServicer_to_server(Receiver(sys.argv[1]), server)
print(f"listens on {server.add_insecure_port('127.0.0.1:0')}", flush=True)
server.start()
server.wait_for_termination()
