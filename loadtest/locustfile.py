"""Open-loop load on `/generate`: requests come when a clock or a trace says so, whether the service keeps up or not.

    locust -f loadtest/locustfile.py --headless --run-time 5m --host http://127.0.0.1:8000 --rate 0.2

The README beside this file tells what it measures and how to read that.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import gevent
from arrivals import Arrival, Load, Mix, poisson, read_mix, read_shape, replay
from audit import audit
from gevent.pool import Pool
from journey import Http, Outcome, travel
from locust import User, events, task
from locust.env import Environment
from locust.exception import StopUser
from memory import Sample, growth, raylet_of, resident
from requests.adapters import HTTPAdapter
from summary import Slo, accounted, spans_of, summarize, table

SAMPLE_S = 5.0
AUDIT_CONNECTIONS = 4


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    """What this load can be told, beside Locust's own options."""
    add = parser.add_argument_group("Load").add_argument
    add("--rate", type=float, default=0.2, help="arrivals a second, in the mean")
    add("--trace", help="a .csv or .jsonl file of arrivals, instead of --rate")
    add("--seed", type=int, default=0, help="of all that is drawn")
    add("--shapes", default="", help="HEIGHTxWIDTHxFRAMES:weight,… (default: the service's)")
    add("--steps", default="20", help="steps:weight,…")
    add("--qualities", default="high,balanced,fast", help="quality:weight,…")
    add("--priorities", default="low,normal:2,high", help="priority:weight,…")
    add("--cancel-share", type=float, default=0.1, help="of the jobs, whose clients think again")
    add("--cancel-within", type=float, default=10.0, help="seconds that they take, at most")
    add("--events-share", type=float, default=0.5, help="of the clients, who listen; others poll")
    add("--api-key", help="sent as x-api-key, where a trace names no client")
    add("--most", type=int, default=1000, help="clients at a time; an arrival over it is dropped")
    add("--warmup", type=int, default=2, help="requests before, one after the other")
    add("--slo-scale", type=float, default=3.0, help="times the warm-up's latency")
    add("--patience", type=float, default=300.0, help="seconds for jobs to end, after the load")
    add("--json-out", help="where to write the summary")


class OpenLoop:
    """One load: its clock, its clients and what became of them."""

    def __init__(self, environment: Environment) -> None:
        self.options: Any = environment.parsed_options
        self.host: str = environment.host or self.options.host
        self.arrivals = arrivals_of(self.options)
        self.adapter = HTTPAdapter(pool_maxsize=self.options.most + AUDIT_CONNECTIONS)
        self.clients = Pool(self.options.most)
        self.environment = environment
        self.outcomes: list[Outcome] = []
        self.warmup: list[Outcome] = []
        self.dropped = 0
        self.began = time.monotonic()
        self.late_s = 0.0
        self.samples: list[Sample] = []

    def warm(self) -> None:
        """Requests that have the service to themselves: they say how fast it is."""
        for arrival in islice(poisson(1.0, load_of(self.options)), self.options.warmup):
            outcome = Outcome(Arrival(0.0, arrival.body))
            self.warmup.append(outcome)
            travel(self._http(outcome), outcome, time.monotonic())

    def run(self) -> None:
        """The clock. Nothing that happens to a request delays the next."""
        self.began = time.monotonic()
        for arrival in self.arrivals:
            due = self.began + arrival.at
            gevent.sleep(max(0.0, due - time.monotonic()))
            self.late_s = max(self.late_s, time.monotonic() - due)
            if self.clients.full():
                self.dropped += 1
                continue
            outcome = Outcome(arrival)
            self.outcomes.append(outcome)
            self.clients.spawn(self._travel, outcome, due)
        self.clients.join()

    def watch(self) -> None:
        """Samples the service's memory, if it runs here."""
        raylet = raylet_of(urlsplit(self.host).port or 80)
        while raylet is not None:
            self.samples.append((time.monotonic() - self.began, resident(raylet)))
            gevent.sleep(SAMPLE_S)

    def close(self) -> dict[str, Any]:
        """Waits for the clients, asks the service for every job, and sums up."""
        until = time.monotonic() + self.options.patience
        self.clients.join(timeout=self.options.patience)
        self.clients.kill()
        duration = time.monotonic() - self.began
        findings = audit(self._http, self.outcomes, until)
        slo = Slo.of(self.warmup, self.options.slo_scale)
        summary = summarize(self.outcomes, findings, duration, self.dropped, slo)
        return summary | {
            "clock_late_s": self.late_s,
            "memory": growth(self.samples),
            "options": {name: getattr(self.options, name) for name in OPTIONS},
        }

    def _travel(self, outcome: Outcome, due: float) -> None:
        travel(self._http(outcome), outcome, due)
        failed = outcome.refusal or (outcome.record and outcome.record["status"] == "failed")
        problem = RuntimeError(outcome.refusal or "failed") if failed else None
        for name, seconds in spans_of(outcome).items():
            self._report("JOB", name, seconds, outcome.video_bytes, problem)

    def _http(self, outcome: Outcome) -> Http:
        key = outcome.arrival.client or self.options.api_key
        return Http(self.host, self.adapter, self._report, key)

    def _report(
        self, kind: str, name: str, seconds: float, size: int, problem: Exception | None
    ) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=seconds * 1000,
            response_length=size,
            exception=problem,
            context={},
        )


OPTIONS = ("rate", "trace", "seed", "shapes", "steps", "qualities", "priorities", "cancel_share")
OPTIONS += ("cancel_within", "events_share", "most", "warmup", "run_time")


def arrivals_of(options: Any) -> Iterator[Arrival]:
    """The clock or the trace that the options name.

    Raises:
        ValueError: an option, or a line of the trace, that can't be.
        OSError: there is no such trace.
    """
    load = load_of(options)
    if options.trace:
        # All at once: a line that can't be read ends the run before it begins.
        return iter(list(replay(Path(options.trace), load)))
    return poisson(options.rate, load)


def load_of(options: Any) -> Load:
    """What the options say of how requests are drawn."""
    shapes: Mix[dict[str, int]] = read_mix("--shapes", options.shapes, read_shape)
    return Load(
        options.seed,
        shapes,
        read_mix("--steps", options.steps, int),
        read_mix("--qualities", options.qualities, str),
        read_mix("--priorities", options.priorities, str),
        options.cancel_share,
        options.cancel_within,
        options.events_share,
    )


class Clock(User):
    """The one that Locust starts; the clients are its own."""

    fixed_count = 1
    loop: ClassVar[OpenLoop]

    @task
    def let_loose(self) -> None:
        """Warms the service up, then lets the load loose until the time or the trace is over."""
        self.loop.warm()
        watcher = gevent.spawn(self.loop.watch)
        try:
            self.loop.run()
        finally:
            watcher.kill()
        # By another greenlet, for this one ends with it; nor shall it begin again.
        gevent.spawn(self.environment.runner.quit)
        raise StopUser


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Reads the options; what can't be read ends the run before it begins."""
    try:
        Clock.loop = OpenLoop(environment)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


@events.quitting.add_listener
def finish(environment: Environment, **_: Any) -> None:
    """Writes the account; the exit code is 1 unless each acknowledged job came to one end, once."""
    # On a signal the clock still runs.
    environment.runner.quit()
    summary = Clock.loop.close()
    if out := Clock.loop.options.json_out:
        Path(out).write_text(json.dumps(_rounded(summary), indent=2) + "\n")
    print(table(summary))
    environment.process_exit_code = 0 if accounted(summary["jobs"]) else 1


def _rounded(summary: dict[str, Any]) -> Any:
    return json.loads(json.dumps(summary), parse_float=lambda text: round(float(text), 4))
