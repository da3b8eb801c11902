"""What happens to a job, as it is told to those who follow it."""

from __future__ import annotations

from warpcache_ray.serving.lifecycle import Job, Status
from warpcache_ray.store.events import Event

STEP = "step"
"""The only kind of which some may be left out: each tells all that those before it told."""


def happened(before: Job | None, after: Job) -> list[Event]:
    """What a job's followers are to hear when it was as `before` (None: not there) and is as `after`: `queued`,
    `running`, `step`, `checkpoint`, `ending`, `lost`, `handed_back`, or at the end its status with its record."""
    if before is None:
        return [Event("queued", {"created_at": after.created_at})]
    found = []
    if after.fence > before.fence:
        found.append(Event("running", {"attempt": after.fence, "epoch": after.epoch}))
    if after.step > before.step:
        found.append(_step(after))
    if after.checkpoint_step not in (None, before.checkpoint_step):
        found.append(Event("checkpoint", {"attempt": after.fence, "step": after.checkpoint_step}))
    if after.ending is not None and before.ending is None:
        found.append(Event("ending", {"attempt": after.fence, "error": after.ending}))
    if before.status is Status.RUNNING and after.status is Status.QUEUED:
        found.append(
            Event(str(after.attempts[-1].end), {"attempt": after.fence, "epoch": after.epoch})
        )
    if after.ended and not before.ended:
        found.append(Event(after.status.value, after.to_dict()))
    return found


def _step(job: Job) -> Event:
    done = {"step": job.step, "total_steps": job.total_steps, "progress": round(job.progress, 4)}
    return Event(STEP, {"attempt": job.fence, **done, "cache": job.cache})
