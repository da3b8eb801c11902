"""Who may use the service, as its configuration says; and how an API key is made, of which only a digest is kept."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from limits import parse_many
from pydantic import AfterValidator, ConfigDict, Field

_STRICT = ConfigDict(extra="forbid")
PREFIX = "wc_"
"""Of a key: so that whoever finds one knows what it is."""

_KEY_BYTES = 32


def _like(pattern: str, allowed: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {allowed}")
        return text

    return AfterValidator(check)


def _rate(text: str) -> str:
    try:
        amounts = [limit.amount for limit in parse_many(text)] if text else [1]
    except ValueError:
        amounts = []
    if len(amounts) != 1 or amounts[0] < 1:
        raise ValueError("must be like 60/minute or 1000 per 2 hours, or '' for no limit")
    return text


NAME = "[A-Za-z0-9_.-]{1,64}"
NAMES = "1 to 64 of the characters A-Z a-z 0-9 _ . -"

Name = Annotated[str, _like(NAME, NAMES)]
Digest = Annotated[
    str,
    _like("[0-9a-f]{64}", "64 hexadecimal digits in lower case, as `warpcache key create` gives"),
]
Origin = Annotated[
    str, _like(r"\*|https?://[^/\s*]+", "like https://example.org, without a path, or '*' for all")
]
Rate = Annotated[str, AfterValidator(_rate)]


@dataclass(frozen=True, slots=True)
class RateLimits:
    """How much a client may ask for, like `60/minute` (``""``: as much as it likes): `requests` of any kind, and among
    them `submissions` of new jobs, so that polling doesn't use these up; and how many `streams` it may have open at a
    time, of events or of requests that wait for their job's end."""

    __pydantic_config__ = _STRICT

    requests: Rate = ""
    submissions: Rate = ""
    streams: Annotated[int, Field(ge=1)] = 100


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A client: its name, the SHA-256 of its key in hexadecimal digits, whether it sees all jobs and may use `/admin`,
    and its own rates, where they aren't everyone's."""

    __pydantic_config__ = _STRICT

    name: Name
    sha256: Digest
    admin: bool = False
    rate: RateLimits | None = None


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """Who may use the service: whoever has one of the `keys`, of which more may stand in `keys_file` (YAML or JSON, a
    list of the same entries); without any, everyone who reaches it. Without keys it isn't served on an address that
    other machines reach, unless `allow_public` says so.

    `rate` holds for each client; without keys for all of them together, as whoever is asked for none could call itself
    another one each time. Pages from `cors_origins` may use the service from a browser.
    """

    __pydantic_config__ = _STRICT

    keys: tuple[ApiKey, ...] = ()
    keys_file: str = ""
    allow_public: bool = False
    rate: RateLimits = field(default_factory=RateLimits)
    cors_origins: tuple[Origin, ...] = ()


def make_key() -> str:
    """A new API key: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def digest(key: str) -> str:
    """What is kept of a key. A plain SHA-256 suffices: nobody can try all keys of 256 random bits."""
    return hashlib.sha256(key.encode()).hexdigest()


def repeated(keys: Sequence[ApiKey]) -> str | None:
    """The first name that two of the keys have, or that has another's key."""
    names, digests = Counter(k.name for k in keys), Counter(k.sha256 for k in keys)
    return next((k.name for k in keys if names[k.name] > 1 or digests[k.sha256] > 1), None)
