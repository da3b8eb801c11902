"""gRPC: the methods of the service in `rpc/videos.proto`, over what the HTTP routes are made of.

Serve's gRPC proxy calls them by name on the ingress, where its configuration asks for it (`grpc_options`). What Serve
carries of a status with an exception has no trailers, and is logged as a fault of ours; so a call that comes to nothing
returns, with an empty message beside its status.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from grpc import StatusCode

from warpcache_ray.errors import WarpCacheError
from warpcache_ray.rpc import videos_pb2 as pb
from warpcache_ray.serving import messages, problems, traces
from warpcache_ray.serving.access import CALLER, identify
from warpcache_ray.serving.delivery import ready
from warpcache_ray.serving.events import happening, known_id
from warpcache_ray.serving.idempotency import HEADER, once
from warpcache_ray.serving.lifecycle import TERMINAL
from warpcache_ray.store.events import BEGIN

if TYPE_CHECKING:
    from ray.serve.grpc_util import RayServegRPCContext

    from warpcache_ray.serving.ingress import Service
    from warpcache_ray.serving.schemas import FollowedRequest
    from warpcache_ray.store.events import Event

log = logging.getLogger(__name__)

STATUSES = {
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    405: StatusCode.UNIMPLEMENTED,
    409: StatusCode.ABORTED,
    413: StatusCode.INVALID_ARGUMENT,
    422: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    500: StatusCode.INTERNAL,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}
"""What the HTTP status of an error is here."""
PROBLEM = "problem-bin"
"""The trailer with the body that HTTP would have."""
PART_BYTES = 1 << 20
"""Of a video in one message: clients take up to 4 MiB, if not told otherwise."""
_SHOWN = 1000
"""Bytes of a message or a field's name, in which a client's own text may stand: the trailers have 8 KiB, and a message
goes with three bytes for one, and again in the body with four for three."""


class Methods:
    """For the ingress to have, which has the service."""

    service: Service

    async def Generate(
        self, request: pb.GenerateRequest, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[pb.Event]:
        """Takes a job in, and tells what happens to it."""
        with _Answering(grpc_context):
            self._admit(grpc_context)
            asked = messages.asked(request, self.service.config.model.limits)
            # Before the job is made: whoever may not wait for it has none.
            with self.service.stream():
                job = await self._submitted(asked, grpc_context)
                try:
                    async for event in self._events(job["id"], BEGIN, [], grpc_context):
                        yield event
                except asyncio.CancelledError:
                    # So Serve tells that the client has gone.
                    if asked.cancel_on_disconnect:
                        self.service.tell("cancel", job["id"])
                    raise
            return
        yield pb.Event(kind="error")

    async def Follow(
        self, request: pb.FollowRequest, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[pb.Event]:
        """What happens to a job after an event."""
        with _Answering(grpc_context):
            self._admit(grpc_context)
            after = known_id(request.after, "after") if request.HasField("after") else BEGIN
            with self.service.stream():
                found = await self.service.ask("events", request.job_id, after, 0.0)
                async for event in self._events(request.job_id, after, found, grpc_context):
                    yield event
            return
        yield pb.Event(kind="error")

    async def Get(self, request: pb.JobId, grpc_context: RayServegRPCContext) -> pb.Job:
        """A job's record."""
        with _Answering(grpc_context):
            self._admit(grpc_context)
            return messages.record(await self.service.ask("get", request.job_id))
        return pb.Job()

    async def Cancel(self, request: pb.JobId, grpc_context: RayServegRPCContext) -> pb.Job:
        """Asks for a job's end."""
        with _Answering(grpc_context):
            self._admit(grpc_context)
            return messages.record(await self.service.ask("cancel", request.job_id))
        return pb.Job()

    async def Download(
        self, request: pb.JobId, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[pb.VideoPart]:
        """A finished video."""
        with _Answering(grpc_context):
            self._admit(grpc_context)
            job = await self.service.ask("get", request.job_id)
            video = ready(job, await self.service.video(job))
            size = await asyncio.to_thread(video.size)
            for start in range(0, size, PART_BYTES):
                end = min(start + PART_BYTES, size)
                yield pb.VideoPart(data=await asyncio.to_thread(video.read, start, end))
            return
        yield pb.VideoPart()

    def _admit(self, context: RayServegRPCContext) -> None:
        """Lets in who may come, as often as it may. A call is a task of its own, whose caller that is from now on."""
        caller = identify(self.service.config.access, dict(context.invocation_metadata()))
        self.service.limiter.take("requests", caller.counted_as, caller.rate)
        CALLER.set(caller)

    async def _submitted(
        self, asked: FollowedRequest, context: RayServegRPCContext
    ) -> dict[str, Any]:
        key = dict(context.invocation_metadata()).get(HEADER.lower())
        with traces.call(self.service.config, "Generate", context.traceparent()):
            return await self.service.submit(
                asked, once(key, self.service.caller.name, "Generate", asked)
            )

    async def _events(
        self, job_id: str, after: str, found: list[Event] | None, context: RayServegRPCContext
    ) -> AsyncIterator[pb.Event]:
        """Those that were `found`, and others to the job's end, whose status is the call's too: also where that isn't
        among them, told before `after` or lost with its job meanwhile."""
        ended = False
        async for events in happening(self.service.ask, job_id, after, found):
            for happened in events:
                event = messages.event(job_id, happened)
                ended = happened.kind in TERMINAL
                if event.job.HasField("error"):
                    _refuse_as(context, happened.data["error"])
                yield event
        if ended:
            return
        error = (await self.service.ask("get", job_id))["error"]
        if error is not None:
            _refuse_as(context, error)
            yield pb.Event(kind="error")


class _Answering:
    """An error in the block is the call's status."""

    def __init__(self, context: RayServegRPCContext) -> None:
        self._context = context

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        if not isinstance(error, WarpCacheError):
            log.error("a gRPC call failed", exc_info=error)
            error = problems.unexpected(error)
        _refuse(self._context, error.status, error.to_dict(), problems.patience(error))
        return True


def _refuse_as(context: RayServegRPCContext, error: dict[str, Any]) -> None:
    """With the status of an error that a job's record has."""
    _refuse(context, problems.status_of(error), error)


def _refuse(
    context: RayServegRPCContext,
    status: int,
    error: dict[str, Any],
    headers: dict[str, str] | None = None,
) -> None:
    error = {name: _short(value) for name, value in error.items()}
    context.set_code(STATUSES[status])
    context.set_details(error["message"])
    body = json.dumps({"error": error}, ensure_ascii=False).encode()
    context.set_trailing_metadata([*(headers or {}).items(), (PROBLEM, body)])


def _short(value: Any) -> Any:
    if not isinstance(value, str) or len(data := value.encode()) <= _SHOWN:
        return value
    return f"{data[:_SHOWN].decode(errors='ignore')}…"
