"""OpenTelemetry traces of searches by stage; needs the extra ``trace``.

A search becomes a span, a child of the caller's where a ``traceparent`` was sent, with a span for
each stage. Nothing that could tell who was searched for is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from opentelemetry import context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.domain import SearchResult

_SERVICE = "candidate-search"
_PROPAGATOR = TraceContextTextMapPropagator()


class Tracer:
    """Sends spans to a collector, beside the event loop.

    Args:
        endpoint: the collector's OTLP port, ``http://host:4317``; with https by TLS.
        share: of the searches whose callers do not decide, how many are traced.
    """

    def __init__(self, endpoint: str, share: float) -> None:
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)),
            resource=Resource.create({SERVICE_NAME: _SERVICE}),
        )
        exporter = OTLPSpanExporter(endpoint=endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(_SERVICE)

    def record(self, result: SearchResult, begun_nanos: int, index_version: str) -> None:
        """Record a search that has just been answered.

        Args:
            result: the answer.
            begun_nanos: when it was begun, in nanoseconds since the epoch.
            index_version: what answered it.
        """
        span = self._tracer.start_span("search candidates", start_time=begun_nanos)
        end = time.time_ns()
        if span.is_recording():
            span.set_attributes(
                {
                    "search.backend": result.plan.backend,
                    "search.method": result.plan.method.value,
                    "search.index_version": index_version,
                    "search.found": len(result.rows),
                    "search.notices": [notice.code.name for notice in result.notices],
                }
            )
            # One after the other, as they were; only how long each took is known.
            within, start = set_span_in_context(span), begun_nanos
            for stage, nanos in result.stage_nanos.items():
                child = self._tracer.start_span(stage, within, start_time=start)
                start += nanos
                child.end(start)
        span.end(end)

    def close(self) -> None:
        """Send what was not sent yet."""
        self._provider.shutdown()


class TraceInterceptor(grpc.aio.ServerInterceptor):
    """Makes a caller's span the parent of what the call does."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Enter the context that the call's metadata tell; it ends with the call's task."""
        carrier = {
            key: value
            for key, value in handler_call_details.invocation_metadata or ()
            if isinstance(value, str)
        }
        context.attach(_PROPAGATOR.extract(carrier))
        return await continuation(handler_call_details)
