"""A real OTLP/HTTP collector in this process: it parses what an exporter posts, with OpenTelemetry's own protocol."""

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A span that has arrived."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    start_s: float
    end_s: float
    failed: bool
    attributes: dict[str, str | int | float | bool]


class Collector:
    """Spans as they arrive at `endpoint`."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.endpoint = ""

    def of(self, request_id: str, *names: str, timeout_s: float = 30) -> list[Seen]:
        """The spans of one request, once each of `names` is among them, in the order of their beginning."""
        until_s = time.monotonic() + timeout_s
        while True:
            found = [span for span in list(self.spans) if span.attributes.get("request_id") == request_id]
            missing = set(names) - {span.name for span in found}
            if not missing:
                return sorted(found, key=lambda span: (span.start_s, -span.end_s))
            assert time.monotonic() < until_s, f"no spans {missing}, only {[span.name for span in found]}"
            time.sleep(0.05)

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = {one.key: one.value.string_value for one in resource.resource.attributes}["service.name"]
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                attributes = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}
                self.spans.append(
                    Seen(
                        service=service,
                        name=span.name,
                        trace=span.trace_id.hex(),
                        id=span.span_id.hex(),
                        parent=span.parent_span_id.hex(),
                        start_s=span.start_time_unix_nano / 1e9,
                        end_s=span.end_time_unix_nano / 1e9,
                        failed=span.status.code == span.status.STATUS_CODE_ERROR,
                        attributes=attributes,
                    )
                )


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a port of its own."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces", self.path
            collector.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    collector.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
