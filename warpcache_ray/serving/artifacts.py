"""Where files of jobs are kept (videos, images, checkpoints): any place that fsspec reaches."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from warpcache_ray.errors import ArtifactGone, InvalidConfig, StorageFailed
from warpcache_ray.urls import shown

log = logging.getLogger(__name__)

CHUNK_BYTES = 4 << 20
PART = ".part"
"""What a file is called until it is whole."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file, at a path or a URL. All but `local` may take as long as the storage does."""

    url: str

    @property
    def local(self) -> Path | None:
        """Its path, where it is a file of this machine."""
        system, path = _reach(self.url)
        return Path(path) if isinstance(system, LocalFileSystem) else None

    def size(self) -> int:
        """In bytes.

        Raises:
            ArtifactGone: it isn't there.
            StorageFailed: the storage can't be read.
        """
        with _Reading(self.url):
            system, path = _reach(self.url)
            return int(system.size(path))

    def read(self, start: int | None = None, end: int | None = None) -> bytes:
        """Its bytes, all or some of them; raises as `size` does."""
        with _Reading(self.url):
            system, path = _reach(self.url)
            # By name: kinds of storage differ in what they take in third place.
            data: bytes = system.cat_file(path, start=start, end=end)
            return data

    def chunks(self, size: int) -> Iterator[bytes]:
        """Its first `size` bytes, part by part; raises as `size` does."""
        for start in range(0, size, CHUNK_BYTES):
            yield self.read(start, min(start + CHUNK_BYTES, size))

    def remove(self) -> None:
        """Takes it away, if it is there. Where it can't be, it stays, with a warning."""
        try:
            system, path = _reach(self.url)
            with suppress(FileNotFoundError):
                system.rm_file(path)
        except Exception as error:
            # Each kind of storage has errors of its own.
            log.warning("%s stays: %s", shown(self.url), error)


@dataclass(frozen=True, slots=True)
class Artifacts:
    """A folder per job at `url`. What lies there under its name is whole at any time."""

    url: str

    def artifact(self, job: str, name: str) -> Artifact:
        """The one by this name."""
        return Artifact(f"{self.url.rstrip('/')}/{job}/{name}")

    def write(self, job: str, name: str, data: bytes) -> Artifact:
        """Keeps a new one.

        Raises:
            StorageFailed: it can't be kept; nothing of it is there.
        """
        try:
            return self._put(job, name, data)
        except Exception as error:
            # Each kind of storage has errors of its own.
            raise _failed(self.url, error) from error

    def names(self, job: str) -> list[str]:
        """What is kept of a job, but for parts."""
        system, folder = self._folder(job)
        if not system.exists(folder):
            return []
        found = (path.rsplit("/", 1)[-1] for path in system.ls(folder, detail=False))
        return [name for name in found if not name.endswith(PART)]

    def forget(self, job: str) -> bool:
        """Takes away all of a job's, parts too. Where that can't be done, it stays, with a warning and False."""
        try:
            system, folder = self._folder(job)
            if system.exists(folder):
                system.rm(folder, recursive=True)
        except Exception as error:
            # Each kind of storage has errors of its own.
            log.warning("%s of %s stays: %s", shown(self.url), job, error)
            return False
        return True

    def check(self, field: str) -> None:
        """The place can be written to.

        Raises:
            InvalidConfig: it can't; `field` is where the configuration names it.
        """
        try:
            self._put(".check", "written", b"")
        except Exception as error:
            # A package that the URL needs, a name, a right, a connection: storage tells what is missing.
            message = f"{field} = {shown(self.url)!r}: files can't be kept there ({error})"
            raise InvalidConfig(message, field) from error
        self.forget(".check")

    def _put(self, job: str, name: str, data: bytes) -> Artifact:
        kept = self.artifact(job, name)
        system, folder = self._folder(job)
        system.makedirs(folder, exist_ok=True)
        try:
            system.pipe_file(f"{folder}/{name}{PART}", data)
            system.mv(f"{folder}/{name}{PART}", f"{folder}/{name}")
        except Exception:
            Artifact(f"{kept.url}{PART}").remove()
            raise
        return kept

    def _folder(self, job: str) -> tuple[Any, str]:
        return _reach(f"{self.url.rstrip('/')}/{job}")


class _Reading:
    """Tells what is wrong with the storage in our words."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, FileNotFoundError):
            raise ArtifactGone("the file is no longer in the storage") from error
        if isinstance(error, Exception):
            raise _failed(self._url, error) from error


def _reach(url: str) -> tuple[Any, str]:
    system, path = fsspec.core.url_to_fs(url)
    # Listings may be remembered, and others write here too.
    system.invalidate_cache()
    return system, path


def _failed(url: str, error: Exception) -> StorageFailed:
    log.warning("%s: %s: %s", shown(url), type(error).__name__, error)
    reason = (isinstance(error, OSError) and error.strerror) or type(error).__name__
    # Without the place, which is nobody's business outside of the service.
    return StorageFailed(f"the storage failed: {reason}")
