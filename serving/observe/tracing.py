"""Traces of requests for an OpenTelemetry collector: the spans of ingress and replica in one tree.

Plain contexts over one variable: which span is open in this task or thread. Without a tracer it is empty, nothing of OpenTelemetry is
imported here, and `span` does nothing. A caller's `traceparent` (W3C Trace Context) is the parent of a request's first span.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from infra import logs
from infra.errors import UserError

# Spans leave in batches, in a thread of the exporter's; what a killed process had not sent is lost.
SEND_EVERY_MS = 1_000
# A collector that is away is waited for at the process's end, too: for two batches at most.
SEND_TIMEOUT_S = 3
MOST_HELD = 2_048


class Tracer:
    """Makes this process's spans, and sends them to a collector over HTTP (OTLP)."""

    def __init__(self, endpoint: str, *, component: str) -> None:
        """component: ingress or model. Raises UserError where the exporter is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise UserError(
                f"OTEL_EXPORTER_OTLP_ENDPOINT is set, but traces cannot be sent ({error}): pip install 'backline[traces]', or unset it"
            ) from error
        resource = Resource.create({"service.namespace": "backline"}).merge(Resource({"service.name": f"backline-{component}"}))
        # Not OpenTelemetry's global provider, which belongs to whoever else is in this process: Ray, MLflow.
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=SEND_TIMEOUT_S)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=SEND_EVERY_MS, max_queue_size=MOST_HELD, max_export_batch_size=MOST_HELD)
        )
        self._tracer = self._provider.get_tracer("backline")

    def start(self, name: str, context: Any, attributes: dict[str, Any], start_ns: int | None = None) -> Any:
        """An open OpenTelemetry span below the one in `context`."""
        return self._tracer.start_span(name, context=context, attributes=attributes, start_time=start_ns)

    def close(self) -> None:
        """Sends what there is."""
        self._provider.shutdown()


class Span:
    """One piece of a request's way; without a tracer nothing."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def note(self, **attributes: Any) -> None:
        """Facts about it; those that are None are left out."""
        if self._span is not None:
            self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def fail(self, reason: str) -> None:
        """It did not do what it should."""
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, reason))

    def end(self) -> None:
        if self._span is not None:
            self._span.end()

    @property
    def traceparent(self) -> str | None:
        """This span, for another process to go on below."""
        if self._span is None:
            return None
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a request comes from, as it travels to another process: for that one's log lines and spans."""

    request_id: str | None = None
    traceparent: str | None = None
    suspect: bool = False
    """Whether a replica died while it worked on this request."""


@dataclass(frozen=True, kw_only=True)
class _Here:
    """The request's span in this process, below which further ones are."""

    tracer: Tracer
    context: Any
    request_id: str


_here: ContextVar[_Here | None] = ContextVar("span", default=None)


def begin(tracer: Tracer | None, name: str, *, request_id: str, traceparent: str | None) -> Span:
    """The first span of a request in this process; further ones of this task or thread are below it. Whoever begins it ends it."""
    if tracer is None:
        return Span()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent} if traceparent else {})
    return _begin(_Here(tracer=tracer, context=parent, request_id=request_id), name)


def _begin(above: _Here, name: str) -> Span:
    from opentelemetry.trace import set_span_in_context

    one = above.tracer.start(name, above.context, {"request_id": above.request_id})
    _here.set(replace(above, context=set_span_in_context(one)))
    return Span(one)


def continued(tracer: Tracer | None, name: str, origin: Origin | None) -> Span:
    """`begin` for a request that began in another process, with its id for the log; one of this process is below the request's span."""
    if origin is None:
        here = _here.get()
        return Span() if here is None else _begin(here, name)
    logs.about(origin.request_id)
    return begin(tracer, name, request_id=origin.request_id or "", traceparent=origin.traceparent)


def started(name: str, **attributes: Any) -> Span:
    """A span below the request's; whoever starts it ends it."""
    here = _here.get()
    return Span() if here is None else Span(here.tracer.start(name, here.context, {"request_id": here.request_id, **attributes}))


@contextmanager
def span(name: str, **attributes: Any) -> Iterator[Span]:
    """A span below the request's, for as long as the block lasts. An exception fails it by its kind alone: its text may be a user's."""
    one = started(name, **attributes)
    try:
        yield one
    except Exception as error:
        one.fail(type(error).__name__)
        raise
    finally:
        one.end()


def passed(name: str, start_s: float, end_s: float) -> None:
    """A span of what is over; times of `time.monotonic`."""
    here = _here.get()
    if here is not None and end_s > start_s:
        offset_ns = time.time_ns() - time.monotonic_ns()
        one = here.tracer.start(name, here.context, {"request_id": here.request_id}, round(start_s * 1e9) + offset_ns)
        one.end(end_time=round(end_s * 1e9) + offset_ns)
