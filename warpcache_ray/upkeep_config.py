"""What replicas do when there is no job: the sections `audits` and `profiler` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class AuditsConfig:
    """Idle replicas make this `share` of the videos again that were made under a policy of the registry, uncached, and
    compare; of a canary's requests all, for it is there to be measured. 0: none."""

    __pydantic_config__ = _STRICT

    share: Annotated[float, Field(ge=0, le=1)] = 0.05


@dataclass(frozen=True, slots=True)
class ProfilerConfig:
    """With `auto_profile`, idle replicas profile the model on the prompts of the first `profile_requests` requests of a
    size, for a policy that keeps `quality` (SSIM against uncached), which comes as a canary for `canary_percent` of the
    requests. `sensitivity_path` is the folder for its reports (beside the results, if none is given)."""

    __pydantic_config__ = _STRICT

    auto_profile: bool = False
    profile_requests: Annotated[int, Field(ge=2, le=9)] = 8
    sensitivity_path: str = ""
    quality: Annotated[float, Field(gt=0, lt=1)] = 0.99
    canary_percent: Annotated[int, Field(ge=1, le=99)] = 20
