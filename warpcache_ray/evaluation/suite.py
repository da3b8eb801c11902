"""A published protocol's prompts and videos: which there should be, which there are, and what is measured on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from warpcache_ray.errors import InvalidRequest
from warpcache_ray.evaluation.judges import Judge
from warpcache_ray.evaluation.kept import Kept, Measured, file_digest
from warpcache_ray.evaluation.pairs import frames_of, videos_in
from warpcache_ray.evaluation.protocols import Protocol, told_scores


@dataclass(frozen=True, slots=True)
class Sample:
    """A video that the protocol wants: its prompt, name without ending, seed (the number of the sample), and the
    dimensions that look at it."""

    prompt: str
    name: str
    seed: int
    dimensions: tuple[str, ...]


def samples_of(protocol: Protocol, prompts: Path, samples: int | None) -> list[Sample]:
    """All that a prompts file in the protocol's own form stands for, or a text file of one prompt a line.

    Raises:
        InvalidRequest: it can't be read, or is of another form.
    """
    everything = tuple(protocol.dimensions)
    found = []
    for entry in _entries(protocol, prompts):
        name = str(entry[protocol.key])
        prompt = str(entry.get("prompt_en") or entry.get("prompt") or name)
        wanted = tuple(entry.get("dimension", everything))
        for number in range(samples or protocol.samples):
            found.append(Sample(prompt, f"{name}{protocol.joint}{number}", number, wanted))
    return found


def _entries(protocol: Protocol, prompts: Path) -> list[dict[str, Any]]:
    try:
        text = prompts.read_text()
        if prompts.suffix != ".json":
            lines = (line.strip() for line in text.splitlines())
            return [{protocol.key: line, "prompt_en": line} for line in lines if line]
        entries: list[dict[str, Any]] = json.loads(text)
        missing = next((e for e in entries if protocol.key not in e), None)
    except (OSError, ValueError, TypeError) as error:
        said = f"prompts = {str(prompts)!r} can't be read: {error}"
        raise InvalidRequest(said, "prompts") from error
    if missing is not None:
        said = f"prompts = {str(prompts)!r}: each entry of {protocol.name} has {protocol.key!r}; one is {missing}"
        raise InvalidRequest(said[:500], "prompts")
    return entries


def present(samples: Sequence[Sample], videos: Path) -> list[tuple[Sample, Path]]:
    """Those whose videos are there.

    Raises:
        InvalidRequest: none is.
    """
    there = videos_in(videos, "videos")
    found = [(sample, there[sample.name]) for sample in samples if sample.name in there]
    if not found:
        said = f"videos = {str(videos)!r}: none is called as the protocol has it, such as {samples[0].name!r}"
        raise InvalidRequest(said, "videos")
    return found


def without_prompts(protocol: Protocol, videos: Path) -> list[tuple[Sample, Path]]:
    """All videos of a folder, each looked at in every dimension: what VBench calls custom input."""
    everything = tuple(protocol.dimensions)
    there = videos_in(videos, "videos")
    return [(Sample(name, name, 0, everything), file) for name, file in there.items()]


def judged(
    sample: Sample, file: Path, judges: Mapping[str, Judge], about: str, kept: Kept
) -> Measured:
    """What the judges find of a video in the dimensions that look at it; `about` tells judges apart."""
    wanted = sorted(judges.keys() & set(sample.dimensions))

    def measure() -> Measured:
        video = frames_of(file)
        return {name: judges[name](video) for name in wanted}

    return kept.get({"video": file_digest(file), "judges": about, "wanted": wanted}, measure)


def told_in(files: Sequence[Path], protocol: Protocol) -> dict[str, float]:
    """What the protocol's own programs have found, in the files that they write.

    Raises:
        InvalidRequest: a file can't be read, or tells of no dimension.
    """
    found: dict[str, float] = {}
    for file in files:
        try:
            told = told_scores(json.loads(file.read_text()))
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"scores = {str(file)!r}: {error}", "scores") from error
        known = {name: value for name, value in told.items() if name in protocol.dimensions}
        if not known:
            allowed = ", ".join(protocol.dimensions)
            raise InvalidRequest(f"scores = {str(file)!r}: none of {allowed}", "scores")
        found |= known
    return found


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each dimension over the videos that were looked at in it."""
    names = sorted({name for row in rows for name in row})
    return {n: float(np.mean([row[n] for row in rows if n in row])) for n in names}
