"""Where the service reaches out to: the sections `outbound` and `webhooks` of the configuration."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=1, le=65535)]
Host = Annotated[str, Field(pattern=r"^(\*\.)?[a-z0-9:_-]+(\.[a-z0-9_-]+)*$")]
"""A name or an address, in lower case and as DNS has it; `*.example.com` stands for all names under it."""
_SECRET = r"whsec_[A-Za-z0-9+/]{32,86}={0,2}"
Secret = Annotated[str, Field(pattern=f"^({_SECRET})?$")]


@dataclass(frozen=True, slots=True)
class OutboundConfig:
    """Which URLs that clients give the service will reach for. With no hosts, none.

    `allow_hosts` are reached at public addresses only (`*`: every host), `allow_private_hosts` at any: those may be
    within the operator's own network. `allow_http` allows plain HTTP beside HTTPS; `ports` are all that are allowed.
    An answer has to be there in full within `timeout_s`. Certificates may be signed by those in `ca_file` too.
    """

    __pydantic_config__ = _STRICT

    allow_hosts: tuple[Host | Literal["*"], ...] = ()
    allow_private_hosts: tuple[Host, ...] = ()
    allow_http: bool = False
    ports: tuple[Port, ...] = (443,)
    timeout_s: Seconds = 20.0
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class WebhookConfig:
    """How the end of a job is told to the `webhook_url` of its request, or to `url` where that names none.

    What is sent is signed with `secret`, which is `whsec_` and the base64 of 24 to 64 random bytes, or with the one in
    the environment variable `secret_env` of ingress and coordinator (Serve shows an application's arguments, so also a
    `secret` among them). There are `attempts`, the second `backoff_s` after the first, each further one after three
    times as long: with these numbers over 14 hours, if the job is kept as long.
    """

    __pydantic_config__ = _STRICT

    url: str = ""
    secret: Secret = field(default="", repr=False)
    secret_env: str = ""
    attempts: Annotated[int, Field(ge=1, le=20)] = 10
    backoff_s: Seconds = 5.0

    @property
    def signing_secret(self) -> str | None:
        """The secret, if there is one that can be used."""
        secret = self.secret or os.environ.get(self.secret_env, "")
        return secret if re.fullmatch(_SECRET, secret) else None
