"""What became of a job as an OpenTelemetry trace: the request that asked for it, the job, its attempts, their stages.

Off unless `trace_url` names where spans go. A job's spans are made from its record once it has ended: what dies on the
way takes none with it, and nothing on a step's path knows of them. Stages have lengths in the record, no beginnings:
they are laid end to end, back from their attempt's end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import InvalidConfig
from warpcache_ray.serving.attempts import Attempt, End
from warpcache_ray.serving.lifecycle import Job, Status

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

PARENT = "traceparent"
"""The field of a job's request that names the span it was asked for in, as W3C has it."""
NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
Values = dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Span:
    """One of a trace. Times are unix seconds; `error` is what went wrong, if something did."""

    name: str
    start: float
    end: float
    values: Values = field(default_factory=dict)
    error: str | None = None
    within: tuple[Span, ...] = ()


def span_of(job: Job) -> Span:
    """An ended job, with all that it went through."""
    assert job.finished_at is not None
    values: Values = {
        "job": job.id,
        "status": job.status,
        "policy": str(job.policy_summary.get("name")),
        "attempts": len(job.attempts),
        "steps": job.total_steps or 0,
    }
    values |= {name: value for name, value in job.cache.items() if name.startswith("share_of")}
    attempts = tuple(span for attempt in job.attempts for span in _spans(attempt))
    wrong = job.error["code"] if job.error and job.status is Status.FAILED else None
    return Span("job", job.created_at, job.finished_at, values, wrong, attempts)


def _spans(attempt: Attempt) -> tuple[Span, Span]:
    waited = Span("queue", attempt.started_at - attempt.waited_s, attempt.started_at)
    end = attempt.ended_at if attempt.ended_at is not None else attempt.seen_at
    values: Values = {
        "attempt": attempt.fence,
        "replica": attempt.replica,
        "ranks": attempt.ranks,
        "resumed_at": attempt.resumed_at,
        "step": attempt.step,
        "end": str(attempt.end),
    }
    wrong = attempt.error if attempt.end in (End.FAILED, End.LOST) else None
    stages: tuple[Span, ...] = ()
    began = end
    for stage, seconds in reversed(attempt.timings.items()):
        stages = (Span(stage, began - seconds, began), *stages)
        began -= seconds
    return waited, Span("attempt", attempt.started_at, end, values, wrong, stages)


def check(config: ServiceConfig) -> None:
    """What spans are sent with is installed, if they are to be sent.

    Raises:
        InvalidConfig: it isn't.
    """
    if config.trace_url and not all(map(_installed, NEEDED)):
        message = f"trace_url = {config.trace_url!r}: needs pip install 'warpcache-ray[traces]'"
        raise InvalidConfig(message, "trace_url")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def of_requests(config: ServiceConfig) -> dict[str, Any]:
    """For FastAPI, which makes the requests' own spans."""
    if not config.trace_url:
        return {}
    told = {"metrics": False, "logs": False, "operation_spans": False, "auto_configure": False}
    return {"telemetry": {"tracer_provider": provider(config.trace_url, config.name), **told}}


@contextmanager
def call(config: ServiceConfig, method: str, traceparent: str | None) -> Iterator[None]:
    """A gRPC call's own span, for the block; it is its client's, where that sends one."""
    if not config.trace_url:
        yield
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    sent = {PARENT: traceparent} if traceparent else {}
    above = TraceContextTextMapPropagator().extract(sent)
    tracer = provider(config.trace_url, config.name).get_tracer(__name__)
    with tracer.start_as_current_span(method, above):
        yield


def parent(config: ServiceConfig) -> dict[str, str]:
    """The span of the request that is being answered, for the job's request."""
    carrier: dict[str, str] = {}
    if config.trace_url:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(carrier)
    return {name: value for name, value in carrier.items() if name == PARENT}


def tell(config: ServiceConfig, job: Job) -> None:
    """Sends an ended job's spans, in a thread of their own."""
    if not config.trace_url:
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    asked = {name: value for name, value in job.request.items() if name == PARENT}
    context = TraceContextTextMapPropagator().extract(asked)
    _emit(provider(config.trace_url, config.name).get_tracer(__name__), span_of(job), context)


def _emit(tracer: Tracer, span: Span, context: Context) -> None:
    from opentelemetry.trace import StatusCode, set_span_in_context

    told = tracer.start_span(span.name, context, attributes=span.values, start_time=_ns(span.start))
    if span.error is not None:
        told.set_status(StatusCode.ERROR, span.error)
    for inner in span.within:
        _emit(tracer, inner, set_span_in_context(told))
    told.end(_ns(span.end))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


@cache
def provider(url: str, service: str) -> TracerProvider:
    """This process' way to where spans go."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    made = TracerProvider(resource=Resource.create({"service.name": service}))
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return made
