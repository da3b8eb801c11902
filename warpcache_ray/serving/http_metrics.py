"""What an ingress answers, in figures: they stand in its own memory, beside the coordinator's of jobs.

Of several ingresses behind one address a scrape reads whichever answers, so each has its series to itself: a counter
that seemed to fall and rise with the answering one would count everything again and again.
"""

from __future__ import annotations

import time
import uuid

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from warpcache_ray.serving.metrics import SHORT, Metric

NO_ROUTE = "none"
"""Of requests that were refused at the door, or that no route is for: clients can't make up names of their own."""

HTTP_TABLE = (
    Metric(
        "http_requests_total",
        "counter",
        "answers of the ingress, by the route's template",
        ("ingress", "method", "route", "status"),
    ),
    Metric(
        "http_latency_seconds",
        "histogram",
        "until an answer begins; with `wait` that is the job's end",
        ("ingress", "method", "route"),
        buckets=SHORT,
    ),
)
METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS"})


class HttpMetrics:
    """Counts answers as they begin."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.name = uuid.uuid4().hex[:8]
        self._answers, self._latency = (row.collector(self.registry) for row in HTTP_TABLE)

    def text(self) -> str:
        """Prometheus' text format."""
        return generate_latest(self.registry).decode()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Takes one."""
        known = method if method in METHODS else "other"
        self._answers.labels(self.name, known, route, str(status)).inc()  # type: ignore[union-attr]
        self._latency.labels(self.name, known, route).observe(seconds)  # type: ignore[union-attr]

    def install(self, app: FastAPI) -> None:
        """Before all that may refuse a request."""
        app.add_middleware(_Counting, metrics=self)


class _Counting:
    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, counted = time.perf_counter(), False

        def count(status: int) -> None:
            nonlocal counted
            counted, seconds = True, time.perf_counter() - began
            route = getattr(scope.get("route"), "path", NO_ROUTE)
            self.metrics.answered(scope["method"], route, status, seconds)

        async def seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, seen)
        except Exception:
            # Starlette answers it outside all middleware.
            if not counted:
                count(500)
            raise
