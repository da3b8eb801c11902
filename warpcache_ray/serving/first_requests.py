"""What a model is profiled on by a service that does so by itself: its first requests, as plain functions of their
jobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from warpcache_ray.policy_document import digest
from warpcache_ray.serving.choices import Source
from warpcache_ray.serving.lifecycle import Job

SETTINGS = (
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
)


def planned(
    ended: Iterable[Job], model: str, requests: int, quality: float, known: Iterable[str]
) -> tuple[str, dict[str, Any]] | None:
    """The first group of jobs with the same settings that has so many different prompts and isn't known for the model,
    by name, and its plan; None if there is none. Only jobs count that asked for no policy, quality, image or LoRA, and
    that none of the registry has served."""
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    settings: dict[str, dict[str, Any]] = {}
    known = set(known)
    for job in ended:
        if not _counts(job):
            continue
        asked = {name: job.request[name] for name in SETTINGS if name in job.request}
        group = digest({"model": model, **asked})
        if group in known:
            continue
        settings[group] = asked
        groups[group][job.request["prompt"]] = None
        if len(groups[group]) == requests:
            plan = {"model": model, "prompts": list(groups[group]), "arguments": asked}
            return group, plan | {"quality": quality}
    return None


def _counts(job: Job) -> bool:
    origin = job.policy_origin
    return (
        origin.get("source") == Source.CONFIGURATION
        and origin.get("quality") == "default"
        and job.image is None
        and "lora" not in job.request
        and not job.removed
    )
