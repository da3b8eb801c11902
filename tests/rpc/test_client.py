"""The example client's own decisions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from warpcache_ray.rpc import client
from warpcache_ray.rpc import videos_pb2 as pb


def test_a_number_is_sent_as_one() -> None:
    """The SSIM to keep; any other text is a name."""
    assert client.quality_of("0.95").number_value == 0.95
    assert client.quality_of("fast").string_value == "fast"


def events(request: pb.GenerateRequest, metadata: Any) -> Iterator[pb.Event]:
    """Of a job that makes an image."""
    yield pb.Event(job_id="job_1", kind="queued")
    last = pb.Event(job_id="job_1", kind="succeeded", job=pb.Job(id="job_1"))
    last.job.request.update({"output_format": "png"})
    yield last


def parts(request: pb.JobId, metadata: Any) -> Iterator[pb.VideoPart]:
    """Two of it."""
    assert request.job_id == "job_1"
    yield from (pb.VideoPart(data=part) for part in (b"an ", b"image"))


@pytest.mark.parametrize("given", [[], ["--out", "own.png"]])
def test_the_file_is_called_as_its_format(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it has a name of its own."""
    monkeypatch.chdir(tmp_path)
    service = SimpleNamespace(Generate=events, Download=parts)
    monkeypatch.setattr(client, "VideosStub", lambda channel: service)
    monkeypatch.setattr(sys, "argv", ["client", "a cat", *given])
    client.main()
    (file,) = tmp_path.iterdir()
    assert file.name == (given[1] if given else "video.png")
    assert file.read_bytes() == b"an image"
