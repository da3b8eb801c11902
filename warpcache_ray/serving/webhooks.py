"""Webhooks: the end of a job, posted to whom its request names, signed by the Standard Webhooks scheme.

How far a delivery is stands in the job's record, so whoever takes the coordinator's place goes on with it. An attempt
whose success couldn't be noted is made again: a receiver knows a message that it has had by its `webhook-id`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import NamedTuple

import httpx
from standardwebhooks import Webhook

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import InvalidRequest, NotFound, Superseded
from warpcache_ray.outbound_config import OutboundConfig, WebhookConfig
from warpcache_ray.serving.jobs import Jobs
from warpcache_ray.serving.lifecycle import Delivery, Job
from warpcache_ray.serving.outbound import Outbound, Posted

log = logging.getLogger(__name__)

PARAM = "webhook_url"
LOOK_S = 0.5
"""How soon a delivery that is due is begun."""
AT_ONCE = 64
"""Deliveries under way, of which one host has no more than `OF_A_HOST`: a slow one delays only its own."""
OF_A_HOST = 4
GROWTH = 3
"""How many times longer than the wait before a next one is."""
SPREAD = 0.2
"""By what share a wait is longer or shorter, so that what failed together doesn't come again together."""
PATIENCE_S = 21_600.0
"""The longest `Retry-After` that is kept to."""

_NO_SECRET = (
    "this service signs no webhooks; its operator must set webhooks.secret (or webhooks.secret_env) to `whsec_` "
    "and the base64 of 24 to 64 random bytes"
)


def check(url: str, outbound: Outbound, config: WebhookConfig) -> None:
    """A request may name this URL.

    Raises:
        InvalidRequest: it isn't allowed, or the service can't sign.
    """
    outbound.check(url, PARAM)
    _secret(config)


def url_of(job: Job, config: WebhookConfig) -> str | None:
    """Where the job's end is told, if anywhere."""
    return job.request.get(PARAM) or config.url or None


def planned(job: Job, config: WebhookConfig) -> Delivery | None:
    """What a new job's record says of the telling of its end."""
    return Delivery(next_at=job.created_at) if url_of(job, config) else None


def is_due(job: Job, now: float) -> bool:
    """Whether a job's end should be told (again) now."""
    if job.webhook is None or job.webhook.next_at is None:
        return False
    return job.ended and not job.removed and job.webhook.next_at <= now


def message_id(job: Job) -> str:
    """The same for each attempt: a job ends once."""
    return f"evt_{job.id.removeprefix('job_')}"


def message(job: Job) -> bytes:
    """What a receiver is told, the same for each attempt: JSON of type, time (ISO 8601) and the job's record."""
    assert job.finished_at is not None
    ended = datetime.fromtimestamp(job.finished_at, UTC).isoformat()
    record = {name: value for name, value in job.to_dict().items() if name != "webhook"}
    return json.dumps({"type": f"job.{job.status}", "timestamp": ended, "data": record}).encode()


def signed(job: Job, body: bytes, secret: str, now: float) -> dict[str, str]:
    """The headers of an attempt."""
    at, name = datetime.fromtimestamp(int(now), UTC), message_id(job)
    return {
        "content-type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": str(int(now)),
        "webhook-signature": Webhook(secret).sign(name, at, body.decode()),
    }


class Outcome(NamedTuple):
    """What became of an attempt. Without an error it was delivered; what is `final` isn't tried again."""

    error: str | None = None
    final: bool = False
    retry_after_s: float = 0.0


def outcome(told: Posted, now: float) -> Outcome:
    """What a receiver's answer means: 2xx is a delivery, 410 the wish to hear no more."""
    if 200 <= told.status < 300:
        return Outcome()
    error = f"the receiver answered {told.status}"
    busy = told.status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
    wait = retry_after_s(told.headers.get("retry-after", ""), now) if busy else 0.0
    return Outcome(error, told.status == httpx.codes.GONE, wait)


def retry_after_s(value: str, now: float) -> float:
    """The seconds in a `Retry-After` header, which has a number or a date; 0 where it has neither."""
    try:
        wait = int(value) if value.isdigit() else parsedate_to_datetime(value).timestamp() - now
    except (ValueError, OverflowError):
        return 0.0
    return float(min(max(wait, 0), PATIENCE_S))


def after(
    before: Delivery, came: Outcome, config: WebhookConfig, now: float, spread: float
) -> Delivery:
    """The delivery after an attempt: done, given up, or with the time of the next one, whose wait is `spread` times
    the usual one."""
    attempts = before.attempts + 1
    if came.error is None:
        return Delivery(attempts, delivered_at=now)
    if came.final or attempts >= config.attempts:
        return Delivery(attempts, last_error=came.error)
    wait = max(config.backoff_s * GROWTH ** (attempts - 1) * spread, came.retry_after_s)
    return Delivery(attempts, next_at=now + wait, last_error=came.error)


class Courier:
    """Delivers what is due, each job's end by a task of its own."""

    def __init__(self, jobs: Jobs, config: Callable[[], ServiceConfig]) -> None:
        self._jobs = jobs
        self._config = config
        self._hosts: dict[str, str] = {}
        """Of the jobs whose delivery is under way."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def look(self) -> None:
        """One round, after a pause: begins what is due."""
        await asyncio.sleep(LOOK_S)
        config, now = self._config(), time.time()
        for job in self._jobs:
            url = url_of(job, config.webhooks)
            if url is not None and is_due(job, now):
                self._begin(job, url, config)

    def _begin(self, job: Job, url: str, config: ServiceConfig) -> None:
        host, under_way = _host(url), list(self._hosts.values())
        if len(under_way) >= AT_ONCE or under_way.count(host) >= OF_A_HOST or job.id in self._hosts:
            return
        self._hosts[job.id] = host
        task = asyncio.create_task(self._deliver(job, url, config))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, job: Job, url: str, config: ServiceConfig) -> None:
        try:
            await self._note(job, await self._attempt(job, url, config), config.webhooks)
        except NotFound:
            log.debug("job %s has expired meanwhile", job.id)
        except Superseded as error:
            log.warning(
                "telling of the end of job %s is left to another: %s", job.id, error.message
            )
        finally:
            del self._hosts[job.id]

    async def _attempt(self, job: Job, url: str, config: ServiceConfig) -> Outcome:
        try:
            body = message(job)
            headers = signed(job, body, _secret(config.webhooks), time.time())
            told = await _outbound(config.outbound).post(url, PARAM, body, headers)
            return outcome(told, time.time())
        except InvalidRequest as error:
            return Outcome(error.message)
        except Exception:
            # Whatever went wrong with this one, the others have to be told.
            log.exception("telling of the end of job %s failed", job.id)
            return Outcome("the service failed; see its log")

    async def _note(self, job: Job, came: Outcome, config: WebhookConfig) -> None:
        """Puts what became of an attempt into the job's record, however long the store refuses: until then there must
        be no other one."""
        spread, now = random.uniform(1 - SPREAD, 1 + SPREAD), time.time()

        def noted(job: Job) -> Job:
            assert job.webhook is not None
            return replace(job, webhook=after(job.webhook, came, config, now, spread))

        task = asyncio.current_task()
        assert task is not None
        while not task.cancelling():
            try:
                await self._jobs.change(job.id, noted)
                break
            except (NotFound, Superseded):
                raise
            except Exception as error:
                log.warning("an attempt to tell of job %s can't be noted yet: %r", job.id, error)
                await asyncio.sleep(LOOK_S)
        if came.error is not None:
            log.info("the receiver wasn't told of the end of job %s: %s", job.id, came.error)


def _host(url: str) -> str:
    try:
        return httpx.URL(url).host
    except (httpx.InvalidURL, UnicodeError):
        # The attempt will say so.
        return ""


def _secret(config: WebhookConfig) -> str:
    secret = config.signing_secret
    if secret is None:
        raise InvalidRequest(f"{PARAM}: {_NO_SECRET}", PARAM)
    return secret


@lru_cache(maxsize=1)
def _outbound(config: OutboundConfig) -> Outbound:
    return Outbound(config)
