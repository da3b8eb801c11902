"""What processes log, for machines to read: a line of JSON each, with the job, attempt and rank that it is about."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from warpcache_ray import __name__ as PACKAGE
from warpcache_ray.config import ServiceConfig

_ABOUT: ContextVar[dict[str, Any] | None] = ContextVar("about", default=None)


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Lines of this thread or task, in the block, have these fields beside those of the blocks around it."""
    token = _ABOUT.set({**(_ABOUT.get() or {}), **fields})
    try:
        yield
    finally:
        _ABOUT.reset(token)


class JsonLines(logging.Formatter):
    """`time`, `level`, `logger`, `message`, the fields that it is `about`, and `exception` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """A line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **(_ABOUT.get() or {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def install(config: ServiceConfig) -> None:
    """Has this package's loggers write JSON to standard error, if the configuration wants that. Once a process."""
    log = logging.getLogger(PACKAGE)
    if config.log_format != "json" or any(isinstance(h.formatter, JsonLines) for h in log.handlers):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    # What stands above has a format of its own.
    log.propagate = False
