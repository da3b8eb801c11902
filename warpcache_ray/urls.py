"""URLs as errors and logs may show them."""

from __future__ import annotations


def shown(url: str) -> str:
    """A URL without what may be secret in it: user and password, and a query. Where it isn't clear which part is which,
    only the scheme is left. What has no scheme is a path, and stays as it is."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    place, _, query = rest.partition("?")
    if "@" in query:
        # The end of a password with a question mark in it, or a part of the query.
        return f"{scheme}://***"
    _, at, place = place.rpartition("@")
    return f"{scheme}://{'***@' if at else ''}{place}"
