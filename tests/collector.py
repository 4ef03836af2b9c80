"""An OpenTelemetry collector in this process, over gRPC or HTTP, that keeps what it receives."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

WAIT_SECONDS = 30
RPCS = {
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": (
        ExportTraceServiceRequest,
        ExportTraceServiceResponse,
    ),
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": (
        ExportMetricsServiceRequest,
        ExportMetricsServiceResponse,
    ),
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export": (ExportLogsServiceRequest, ExportLogsServiceResponse),
}
PATHS = dict(zip(("/v1/traces", "/v1/metrics", "/v1/logs"), RPCS.values(), strict=True))


class Collector:
    """Keeps spans, metrics and log records. While `go_on` is not set, no request is answered."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.resources: list[dict[str, Any]] = []
        self.spans: list[Any] = []
        self.metrics: dict[str, Any] = {}
        """The latest value of each metric."""
        self.logs: list[Any] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.asked = threading.Event()
        self._arrived = threading.Condition()

    def take(self, request: Any) -> None:
        self.asked.set()
        self.go_on.wait(WAIT_SECONDS)
        with self._arrived:
            for group in getattr(request, "resource_spans", ()):
                self._keep_resource(group)
                self.spans += [span for scope in group.scope_spans for span in scope.spans]
            for group in getattr(request, "resource_metrics", ()):
                self._keep_resource(group)
                self.metrics |= {metric.name: metric for scope in group.scope_metrics for metric in scope.metrics}
            for group in getattr(request, "resource_logs", ()):
                self._keep_resource(group)
                self.logs += [record for scope in group.scope_logs for record in scope.log_records]
            self._arrived.notify_all()

    def wait_for(self, condition: Callable[[], object]) -> None:
        with self._arrived:
            assert self._arrived.wait_for(condition, WAIT_SECONDS), "it did not come"

    def _keep_resource(self, group: Any) -> None:
        self.resources.append({pair.key: pair.value.string_value for pair in group.resource.attributes})


@contextmanager
def collector(protocol: str) -> Iterator[Collector]:
    collects = Collector()
    with (_over_grpc if protocol == "grpc" else _over_http)(collects):
        yield collects


@contextmanager
def _over_grpc(collects: Collector) -> Iterator[None]:
    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            request, response = RPCS[details.method]

            def export(received: Any, _context: Any) -> Any:
                collects.take(received)
                return response()

            return grpc.unary_unary_rpc_method_handler(export, request.FromString, response.SerializeToString)

    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([Handler()])
    collects.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield
    finally:
        collects.go_on.set()
        server.stop(None).wait(WAIT_SECONDS)


@contextmanager
def _over_http(collects: Collector) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request, response = PATHS[self.path]
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collects.take(request.FromString(body))
            answer = response().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collects.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        collects.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join(WAIT_SECONDS)
