"""This program sends signed billing spans over OTLP/HTTP, receives them, and posts what it received.

python tests/export/otlp.py DIRECTORY DIRECTORY-OF-PACKAGES
"""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.append(sys.argv[2])

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

from lava_middleware import Lava
from lava_middleware.export import names
from lava_middleware.export.signing import Signer
from lava_middleware.export.span import show
from lava_middleware.otel import LavaSpanExporter
from tests.export.test_ledger_of_record import KEY, worked

DIRECTORY = Path(sys.argv[1])


def received(body: bytes) -> list[ReadableSpan]:
    request = ExportTraceServiceRequest.FromString(body)
    return [
        ReadableSpan(name=span.name, attributes={one.key: one.value.string_value for one in span.attributes})
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


class Receiver(BaseHTTPRequestHandler):
    """200 after the commit, 503 otherwise: an OTLP exporter repeats that one."""

    exporter: LavaSpanExporter

    def do_POST(self) -> None:
        spans = received(self.rfile.read(int(self.headers["content-length"])))
        done = self.exporter.export(spans) is SpanExportResult.SUCCESS
        self.send_response(200 if done else 503)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


def main() -> None:
    Receiver.exporter = LavaSpanExporter(f"sqlite:///{DIRECTORY / 'record.db'}", key=KEY)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    provider = TracerProvider()
    exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{server.server_address[1]}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    with Lava(f"sqlite:///{DIRECTORY / 'lava.db'}", tracing=False) as lava:
        lava.grant("acme", "1.00", key="first")
        worked(lava, 60)
        for record in lava.records("acme"):
            show(record, provider.get_tracer(names.SCOPE), signer=Signer(KEY))
    provider.shutdown()
    server.shutdown()
    Receiver.exporter.shutdown()


if __name__ == "__main__":
    main()
