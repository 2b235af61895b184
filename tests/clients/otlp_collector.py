"""A collector of OTLP over HTTP that takes only what OpenTelemetry's own message definitions take.

    otlp_collector.py FILE

Prints its port, then writes a line of JSON for each span: its name, ids and parent. A body that is no
ExportTraceServiceRequest is answered with 400, and ends FILE with a line that says why.
"""

import base64
import http.server
import json
import sys

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def parse(body: bytes) -> ExportTraceServiceRequest:
    request = json.loads(body)
    for resource in request["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                # In OTLP's JSON these are hex, and not base64 as in that of Protobuf.
                for name, size in (("traceId", 16), ("spanId", 8), ("parentSpanId", 8)):
                    value = bytes.fromhex(span[name])
                    if len(value) != size and not (name == "parentSpanId" and not value):
                        raise ValueError(f"{name} has {len(value)} bytes")
                    span[name] = base64.b64encode(value).decode()
    return json_format.ParseDict(request, ExportTraceServiceRequest(), ignore_unknown_fields=False)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = 200
        with open(sys.argv[1], "a") as out:
            try:
                if self.path != "/v1/traces" or self.headers["Content-Type"] != "application/json":
                    raise ValueError(f"{self.path} {self.headers['Content-Type']}")
                for resource in parse(body).resource_spans:
                    for scope in resource.scope_spans:
                        for span in scope.spans:
                            out.write(json.dumps({
                                "name": span.name, "trace": span.trace_id.hex(), "span": span.span_id.hex(),
                                "parent": span.parent_span_id.hex(),
                                "nanoseconds": span.end_time_unix_nano - span.start_time_unix_nano}) + "\n")
            except (ValueError, KeyError, json_format.ParseError) as error:
                out.write(json.dumps({"error": str(error)}) + "\n")
                status = 400
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_arguments) -> None:
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
