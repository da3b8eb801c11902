"""Every error that a user can meet, with a stable code.

WarpCacheError
├── InvalidRequest (ValueError)     422  a field is out of what the model or the service can do
│   ├── InvalidPolicy               422  unknown policy, or a field that it doesn't have
│   ├── IdempotencyConflict         422  the key was used for another request
│   ├── MethodNotAllowed            405
│   └── PayloadTooLarge             413
├── InvalidConfig (ValueError)      500  a configuration file that can't be served
├── Unauthenticated                 401  no API key, or none that is known
├── Forbidden                       403  an admin's business
├── NotFound                        404
├── LostRace                        409  another change was made first
├── JobNotReady                     404  the job exists, its video not yet (or never)
├── ArtifactGone                    404  the job's file was taken from the storage
├── QueueFull                       429  retryable
├── RateLimited                     429  retryable
├── Unavailable                     503  retryable
│   └── Superseded                  503  by a newer coordinator, which is to be asked
├── StorageFailed                   503  retryable: a file can't be kept or read; the attempt is made again
├── Cancelled                       499
├── DeadlineExceeded                504  not ready when the request wanted it
├── QueueTimeout                    504  retryable: no replica took it in time
├── AttemptTimeout                  504  an attempt took longer than the service allows
├── WorkerLost                      500  retryable: a rank died
└── GenerationFailed                500  the model raised
    └── OutOfMemory                 500  the request is too large for the device
"""

from __future__ import annotations

from typing import Any, ClassVar


class WarpCacheError(Exception):
    """Base of the tree. `param` names the offending field, dotted, where there is one; `retry_after_s` says when to try
    again, where that is known."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.param, self.retry_after_s)

    def to_dict(self) -> dict[str, Any]:
        """The error as job records and HTTP bodies carry it."""
        return {
            "message": self.message,
            "type": type(self).__name__,
            "param": self.param,
            "code": self.code,
            "retryable": self.retryable,
        }


class InvalidRequest(WarpCacheError, ValueError):
    """A value that can't be served; the message says what is allowed."""

    code, status = "invalid_request", 422


class InvalidPolicy(InvalidRequest):
    """An unknown policy or policy field; the message lists what exists."""

    code = "invalid_policy"


class IdempotencyConflict(InvalidRequest):
    """An idempotency key that stands for another request."""

    code = "idempotency_conflict"


class MethodNotAllowed(InvalidRequest):
    """A route that exists, but not for this HTTP method."""

    code, status = "method_not_allowed", 405


class PayloadTooLarge(InvalidRequest):
    """A request body over the limit."""

    code, status = "payload_too_large", 413


class InvalidConfig(WarpCacheError, ValueError):
    """A configuration that can't be served; the message names field and value."""

    code = "invalid_config"


class Unauthenticated(WarpCacheError):
    """The request has no API key, or one that the service doesn't know."""

    code, status = "invalid_api_key", 401


class Forbidden(WarpCacheError):
    """The API key is good, but not for this."""

    code, status = "forbidden", 403


class NotFound(WarpCacheError):
    """No such job, model or policy."""

    code, status = "not_found", 404


class LostRace(WarpCacheError):
    """What was to be changed has changed since it was read."""

    code, status = "lost_race", 409


class JobNotReady(WarpCacheError):
    """The job has no video: it is still at work, or ended without one."""

    code, status = "job_not_ready", 404


class ArtifactGone(WarpCacheError):
    """A file that was kept for a job is no longer where it was."""

    code, status = "artifact_gone", 404


class QueueFull(WarpCacheError):
    """As many jobs wait as are allowed to."""

    code, status, retryable = "queue_full", 429, True


class RateLimited(WarpCacheError):
    """The client has sent more than it may."""

    code, status, retryable = "rate_limited", 429, True


class Unavailable(WarpCacheError):
    """The service can't take requests now."""

    code, status, retryable = "unavailable", 503, True


class Superseded(Unavailable):
    """Another coordinator of the application has begun since; this one may change nothing any more."""

    code = "superseded"


class StorageFailed(WarpCacheError):
    """The storage doesn't take a file (it may be full), or doesn't give it."""

    code, status, retryable = "storage_failed", 503, True


class Cancelled(WarpCacheError):
    """The job was cancelled by its owner."""

    code, status = "cancelled", 499


class DeadlineExceeded(WarpCacheError):
    """The job wasn't done by the time that its request set."""

    code, status = "deadline_exceeded", 504


class QueueTimeout(WarpCacheError):
    """The job waited longer than the service lets it."""

    code, status, retryable = "queue_timeout", 504, True


class AttemptTimeout(WarpCacheError):
    """An attempt took longer than the service lets it."""

    code, status = "attempt_timeout", 504


class WorkerLost(WarpCacheError):
    """A rank or replica died during the attempt."""

    code, status, retryable = "worker_lost", 500, True


class GenerationFailed(WarpCacheError):
    """The model raised during the generation."""

    code, status = "generation_failed", 500


class OutOfMemory(GenerationFailed):
    """The device's memory didn't suffice."""

    code = "oom"
