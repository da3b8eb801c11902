"""`GET /jobs/{id}/events`: what happens to a job, as Server-Sent Events."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import Header, Response
from fastapi.sse import EventSourceResponse, format_sse_event

from warpcache_ray.errors import InvalidRequest, NotFound, Unavailable
from warpcache_ray.serving.lifecycle import TERMINAL
from warpcache_ray.store.events import BEGIN, Event

HEARTBEAT_S = 10.0
RETRY_MS = 2000
RECONNECT_S = 0.5
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""So that no proxy keeps events back."""

ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Events as they happen", "content": {"text/event-stream": {}}},
    204: {"description": "There will be no more events"},
}
"""For the API's description."""

_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")

LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID", description="The last event that was had: those after it follow."
    ),
]
Ask = Callable[..., Awaitable[Any]]
Public = Callable[[dict[str, Any]], dict[str, Any]]


async def follow(ask: Ask, job_id: str, last: str | None, public: Public) -> Response:
    """The events of a job after the `last` one (all, if None), as they happen; the one that ends it, with its record
    as `public` makes it, is the last. 204 if nothing will come any more: a browser then asks no further.

    Serve's proxy takes in what a client doesn't read, so what bounds that is the job: it has a few events for each
    step of its attempts, and a heartbeat is a line.

    Raises:
        InvalidRequest: `last` is no event's id.
        NotFound: there is no such job.
    """
    after = BEGIN if last is None else known_id(last, "Last-Event-ID")
    first: list[Event] | None = await ask("events", job_id, after, 0.0)
    if first is None:
        return Response(status_code=204)
    return EventSourceResponse(_told(happening(ask, job_id, after, first), public), headers=HEADERS)


def known_id(event: str, param: str) -> str:
    """The id of an event that a client names.

    Raises:
        InvalidRequest: it is none; `param` is where it stands.
    """
    if not _ID.fullmatch(event):
        said = f"{param} = {event!r} is not allowed; it must be an event's id, like 1732199999123-0"
        raise InvalidRequest(said, param)
    return event


async def happening(
    ask: Ask, job_id: str, after: str, found: list[Event] | None
) -> AsyncIterator[list[Event]]:
    """What happens to a job, to its end: the events that were `found` after one, then the next ones, as many as there
    are at a time; none where there was nothing for a while."""
    while found is not None:
        yield found
        after = found[-1].id if found else after
        try:
            found = await ask("events", job_id, after, HEARTBEAT_S)
        except NotFound:
            return
        except Unavailable:
            # It will be back. A browser that was sent away would meet a 503, and not come again.
            await asyncio.sleep(RECONNECT_S)
            found = []


async def _told(batches: AsyncIterator[list[Event]], public: Public) -> AsyncIterator[bytes]:
    yield format_sse_event(retry=RETRY_MS)
    async for found in batches:
        for event in found:
            data = public(event.data) if event.kind in TERMINAL else event.data
            yield format_sse_event(event=event.kind, data_str=json.dumps(data), id=event.id)
        if not found:
            yield format_sse_event(comment="still there")
