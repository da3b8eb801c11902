"""Which jobs are audited, and what is kept of them for that."""

from __future__ import annotations

import hashlib

from warpcache_ray.serving.choices import Source
from warpcache_ray.serving.lifecycle import Job

_WHOLE = 1 << 64


def wanted(job: Job, share: float) -> bool:
    """Whether a job is to be audited: all of a canary's, and this share of those of other versions of the registry. The
    same for a job whenever one asks. Uncached ones have nothing to audit."""
    if not share or job.policy["name"] == "never" or None in _slot_and_version(job):
        return False
    if of_canary(job):
        return True
    # Not the id alone, by which canaries are chosen.
    digest = hashlib.sha256(f"audit:{job.id}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * _WHOLE


def of_canary(job: Job) -> bool:
    """Whether its policy was a canary then."""
    return job.policy_origin.get("source") == Source.CANARY


def served_by(job: Job) -> tuple[str, int]:
    """Slot and version of the policy of a job that is wanted."""
    slot, version = _slot_and_version(job)
    assert slot is not None
    assert version is not None
    return slot, version


def latents_name(fence: int) -> str:
    """The artifact that an attempt keeps its final latents in, beside its video: what was served, before any loss by
    encoding."""
    return f"{fence}-latents.pt"


def latents_beside(job: Job) -> str:
    """Where they are of a job that succeeded."""
    folder, _, _ = job.result["path"].rpartition("/")
    return f"{folder}/{latents_name(job.fence)}"


def _slot_and_version(job: Job) -> tuple[str | None, int | None]:
    return job.policy_origin.get("slot"), job.policy_origin.get("version")
