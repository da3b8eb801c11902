"""Files of jobs in a folder, and in a kind of storage that isn't one."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from warpcache_ray.errors import ArtifactGone, InvalidConfig, StorageFailed
from warpcache_ray.serving import artifacts as module
from warpcache_ray.serving.artifacts import Artifact, Artifacts


class Bucket(MemoryFileSystem):  # type: ignore[misc]
    """Takes the version of a file in third place, as s3fs does."""

    protocol = "bucket"
    store: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("bucket://", "memory://")))

    def cat_file(
        self, path: str, version_id: str | None = None, start: Any = None, end: Any = None
    ) -> bytes:
        """Bytes of a file."""
        assert version_id is None
        data: bytes = super().cat_file(path, start=start, end=end)
        return data


fsspec.register_implementation("bucket", Bucket, clobber=True)


@pytest.fixture(params=["folder", "file URL", "memory", "bucket"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Artifacts:
    """The places that a configuration may name."""
    urls = {"folder": f"{tmp_path}/", "file URL": f"file://{tmp_path}"}
    return Artifacts(urls.get(request.param, f"{request.param}://{tmp_path.name}"))


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file of this process may grow over so many bytes: writing fails half way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_written_is_read(artifacts: Artifacts) -> None:
    """Whole, in parts and by its URL alone."""
    kept = artifacts.write("job_1", "1.mp4", b"0123456789")
    again = Artifact(kept.url)
    assert (again.size(), again.read(), again.read(2, 5)) == (10, b"0123456789", b"234")
    assert artifacts.names("job_1") == ["1.mp4"]
    assert artifacts.names("job_2") == []


def test_chunks_make_the_whole(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, none larger than is said."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 4)
    kept = artifacts.write("job_1", "1.mp4", b"0123456789")
    assert list(kept.chunks(10)) == [b"0123", b"4567", b"89"]
    assert list(kept.chunks(0)) == []


def test_files_of_this_machine_have_a_path(artifacts: Artifacts, tmp_path: Path) -> None:
    """Others have none."""
    local = artifacts.write("job_1", "1.mp4", b"x").local
    assert local == (tmp_path / "job_1" / "1.mp4" if str(tmp_path) in artifacts.url else None)


def test_all_of_a_job_is_forgotten(artifacts: Artifacts) -> None:
    """Every attempt's video, its images, and what a killed rank had begun; nothing of another job's."""
    for name in ("1.mp4", "2.mp4", "image.png", "3.mp4.part"):
        artifacts.write("job_1", name, b"x")
    other = artifacts.write("job_11", "1.mp4", b"x")
    assert artifacts.names("job_1") == ["1.mp4", "2.mp4", "image.png"]
    for _ in range(2):
        artifacts.forget("job_1")
        assert artifacts.names("job_1") == []
    system, folder = fsspec.core.url_to_fs(f"{artifacts.url.rstrip('/')}/job_1")
    assert not system.exists(folder)
    assert other.read() == b"x"


def test_what_is_gone_is_told(artifacts: Artifacts) -> None:
    """As such, however it is asked for; taking it away once more does no harm."""
    kept = artifacts.write("job_1", "1.mp4", b"x")
    for _ in range(2):
        kept.remove()
    for ask in (kept.size, kept.read, lambda: next(kept.chunks(1))):
        with pytest.raises(ArtifactGone):
            ask()


def test_a_full_disk_keeps_no_half(tmp_path: Path) -> None:
    """The error can be tried again and doesn't name the place; neither the file nor a part of it is left."""
    artifacts = Artifacts(str(tmp_path))
    with full_after(1 << 16), pytest.raises(StorageFailed) as caught:
        artifacts.write("job_1", "1.mp4", b"x" * (1 << 20))
    assert caught.value.retryable
    assert caught.value.message == "the storage failed: File too large"
    assert list((tmp_path / "job_1").iterdir()) == []
    artifacts.write("job_1", "1.mp4", b"x" * (1 << 20))


def test_a_place_that_takes_files(artifacts: Artifacts) -> None:
    """It's as before the check."""
    artifacts.check("results")
    system, folder = fsspec.core.url_to_fs(artifacts.url)
    assert system.ls(folder) == []


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://bucket/videos", "Install s3fs"),
        ("nowhere://videos", "Protocol not known: nowhere"),
        ("/proc/videos", "No such file"),
    ],
)
def test_a_place_that_takes_none(url: str, told: str) -> None:
    """It's named, with what is missing."""
    with pytest.raises(InvalidConfig, match=rf"results = '{url}': .*{told}") as caught:
        Artifacts(url).check("results")
    assert caught.value.param == "results"


def test_what_cannot_be_taken_away_stays(caplog: pytest.LogCaptureFixture) -> None:
    """With a warning."""
    caplog.set_level(logging.WARNING)
    Artifact("nowhere://videos/1.mp4").remove()
    Artifacts("nowhere://videos").forget("job_1")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
