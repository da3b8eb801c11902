"""The `Idempotency-Key` header: a request that is sent again is not carried out again."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Header
from pydantic import BaseModel

from warpcache_ray.errors import InvalidRequest
from warpcache_ray.policy_spec import digest
from warpcache_ray.serving.lifecycle import Once

HEADER = "Idempotency-Key"

_KEY = re.compile(r"[!-~]{1,255}")

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias=HEADER,
        description="A name of the client's own for this request, 1 to 255 visible ASCII characters. Sent again with "
        "the same body, it has the same job, for as long as that is kept; with another body it is refused.",
    ),
]


def once(key: str | None, client: str, route: str, body: BaseModel) -> Once | None:
    """What the request is known by, if the client gave it a key; the route is part of what was asked.

    Raises:
        InvalidRequest: a key that is too long, empty or unreadable.
    """
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        shown = key if len(key) <= 100 else f"{key[:100]}…"
        raise InvalidRequest(
            f"{HEADER} = {shown!r} ({len(key)} characters) is not allowed; "
            "it must be 1 to 255 visible ASCII characters, without blanks",
            HEADER,
        )
    # Only what the client sent: a field that is added to the schema later makes no other request of it.
    return Once(client, key, digest({route: body.model_dump(exclude_unset=True)}))
