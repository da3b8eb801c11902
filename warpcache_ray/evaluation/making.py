"""Videos that an evaluation makes itself, each once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from warpcache_ray.core.policy import Policy
from warpcache_ray.engine.engine import Engine
from warpcache_ray.engine.events import Generation, Result
from warpcache_ray.engine.fingerprints import policy_key
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.evaluation.kept import Kept, Measured
from warpcache_ray.evaluation.pairs import MEASURES, compare
from warpcache_ray.evaluation.suite import Sample
from warpcache_ray.policy_spec import describe_policy, parse_policy
from warpcache_ray.video import write_video

MADE = "made.json"
"""Beside videos that were made here: their settings."""


@dataclass(frozen=True, slots=True)
class Maker:
    """A model, the arguments of its runs (but prompt and seed), and the policy that is evaluated."""

    engine: Engine
    arguments: Mapping[str, Any]
    policy: Policy
    fps: int

    @property
    def settings(self) -> dict[str, Any]:
        """What tells its runs apart, as JSON has it."""
        pipeline = self.engine.pipeline
        form = f"{pipeline.transformer.dtype} on {pipeline.transformer.device}"
        key = asdict(policy_key(pipeline, self.arguments))
        return {**key, "form": form, "fps": self.fps, "policy": describe_policy(self.policy)}

    def make(self, prompt: str, seed: int, policy: Policy | None = None) -> Result:
        """A video, under the maker's policy if no other is given."""
        asked = Generation(prompt=prompt, seed=seed, **self.arguments)
        return self.engine.generate(asked, policy or self.policy)

    def write(self, sample: Sample, folder: Path) -> None:
        """The sample's video as a file, unless it is there.

        Raises:
            InvalidRequest: the folder has videos that weren't made with these settings.
        """
        file, about = folder / f"{sample.name}.mp4", folder / MADE
        told = json.dumps(self.settings, indent=1, sort_keys=True)
        if any(folder.glob("*.mp4")) and not (about.is_file() and about.read_text() == told):
            raise InvalidRequest(
                f"videos = {str(folder)!r}: has videos that weren't made with these settings; it must be another "
                "folder, or an empty one",
                "videos",
            )
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            about.write_text(told)
            write_video(file, self.make(sample.prompt, sample.seed).frames, self.fps, "mp4")

    def pair(self, name: str, prompt: str, seed: int, folder: Path, kept: Kept) -> Measured:
        """All measures of a video under the policy beside the uncached one, before either is encoded, with the calls
        and the seconds that it took; both are written."""

        def measure() -> Measured:
            results = {"cached": self.make(prompt, seed), "uncached": self._uncached(prompt, seed)}
            for kind, result in results.items():
                (folder / kind).mkdir(parents=True, exist_ok=True)
                write_video(folder / kind / f"{name}.mp4", result.frames, self.fps, "mp4")
            cached, plain = results.values()
            return {
                **compare(cached.frames, plain.frames),
                "share_of_blocks": cached.stats.share_of_blocks,
                "denoise_s": cached.timings.denoise,
                "uncached_denoise_s": plain.timings.denoise,
            }

        basis = {"made": self.settings, "prompt": prompt, "seed": seed, "measures": list(MEASURES)}
        return kept.get(basis, measure)

    def _uncached(self, prompt: str, seed: int) -> Result:
        return self.make(prompt, seed, parse_policy("never"))
