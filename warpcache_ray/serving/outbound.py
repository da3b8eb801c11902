"""The only place that makes HTTP requests to addresses which a client names, and what keeps those from reaching
anything inside (server-side request forgery).

A host has to be listed by the operator. Its name is resolved once, addresses that aren't public are dropped, and the
connection goes to one of those left, so a name server that changes its answer changes nothing; TLS verifies the name
all the same. A redirect is a request like the first one. Nothing is taken from the environment: no proxies, no netrc.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

import httpx

from warpcache_ray import __version__
from warpcache_ray.errors import InvalidConfig, InvalidRequest
from warpcache_ray.outbound_config import OutboundConfig

log = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address

REDIRECTS = 3
"""How many a fetch follows; a post follows none."""
LOOKUPS = 32
"""How many names are looked up at once, by threads of their own: a name server may be as slow as it likes."""

# They may be compressed a thousandfold, and again: what arrives is to be what is kept.
_HEADERS = {"accept-encoding": "identity", "user-agent": f"warpcache-ray/{__version__}"}
_PORTS = {"https": 443, "http": 80}

_NOWHERE = (
    "its host has no public address (one with another has to be in outbound.allow_private_hosts)"
)

_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_SPECIAL = [
    ip_network(text)
    for text in (
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # Azure's metadata
        "2001::/23",  # protocol assignments; Teredo
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
]
"""Beside what every supported Python knows as not global."""


def is_public(address: Address) -> bool:
    """True for an address that anybody on the internet has, and that leads to no other one (but for NAT64, which is
    as public as what it leads to)."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return is_public(IPv4Address(address.packed[-4:]))
        if address not in _UNICAST:
            return False
    special = any(address in network for network in _SPECIAL)
    return address.is_global and not address.is_multicast and not special


class Posted(NamedTuple):
    """What a receiver said."""

    status: int
    headers: httpx.Headers


class Outbound:
    """Requests to the hosts that a configuration allows.

    Whatever goes wrong is an `InvalidRequest` that names the client's field: it gave an address that isn't allowed,
    that can't be reached, or whose answer isn't what it should be.
    """

    def __init__(self, config: OutboundConfig) -> None:
        self.config = config
        self._tls = httpx.create_ssl_context(trust_env=False)
        try:
            if config.ca_file:
                self._tls.load_verify_locations(config.ca_file)
        except OSError as error:
            said = f"outbound.ca_file = {config.ca_file!r}: not a file of certificates ({error})"
            raise InvalidConfig(said, "outbound.ca_file") from error
        self._lookups = ThreadPoolExecutor(LOOKUPS, "outbound-lookup")

    def check(self, url: str, param: str) -> None:
        """What can be told of a URL without asking anybody; `param` is the field that it stands in.

        Raises:
            InvalidRequest: it isn't allowed; the message says why.
        """
        try:
            reason = self._refusal(httpx.URL(url))
        except (httpx.InvalidURL, UnicodeError) as error:
            reason = str(error)
        if reason is not None:
            shown = repr(url if len(url) <= 100 else f"{url[:100]}…")
            raise InvalidRequest(f"{param} = {shown} is not allowed: {reason}", param)

    async def fetch(self, url: str, param: str, most_bytes: int) -> tuple[bytes, str]:
        """The body (not compressed) and media type (lower case, without parameters) that a URL has.

        Raises:
            InvalidRequest: not allowed, not there, larger than `most_bytes`, or too slow.
        """
        self.check(url, param)
        async with self._answer(httpx.Request("GET", url, headers=_HEADERS), param) as answer:
            if answer.status_code != httpx.codes.OK:
                raise InvalidRequest(f"{param}: the host answered {answer.status_code}", param)
            if answer.headers.get("content-encoding", "identity").lower() != "identity":
                raise InvalidRequest(f"{param}: the host sent it compressed, unasked", param)
            body = bytearray()
            async for part in answer.aiter_raw():
                body += part
                if len(body) > most_bytes:
                    said = f"{param}: it is too large; at most {most_bytes} bytes are allowed"
                    raise InvalidRequest(said, param)
            media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            return bytes(body), media_type

    async def post(self, url: str, param: str, body: bytes, headers: Mapping[str, str]) -> Posted:
        """Status and headers that a receiver answers with; a redirect isn't followed, a body isn't read.

        Raises:
            InvalidRequest: not allowed, no answer, or too slow.
        """
        self.check(url, param)
        request = httpx.Request("POST", url, headers={**_HEADERS, **headers}, content=body)
        async with self._answer(request, param) as answer:
            return Posted(answer.status_code, answer.headers)

    @asynccontextmanager
    async def _answer(self, request: httpx.Request, param: str) -> AsyncIterator[httpx.Response]:
        most_s = self.config.timeout_s
        # A quarter for each address of a host: the first may be of a network that isn't there.
        client = httpx.AsyncClient(
            transport=_Pinned(self._tls, partial(self._resolve, param)),
            timeout=httpx.Timeout(most_s, connect=most_s / 4),
            max_redirects=REDIRECTS,
            trust_env=False,
        )
        try:
            async with asyncio.timeout(most_s), client:
                follow = request.method == "GET"
                yield await client.send(request, stream=True, follow_redirects=follow)
        except (TimeoutError, httpx.TimeoutException) as error:
            said = f"{param}: the host didn't answer in full within {most_s:g} s"
            raise InvalidRequest(said, param) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # What exactly went wrong may tell of a network that isn't the client's.
            log.info("%s %s: %s", request.method, request.url.host, error)
            said = f"{param}: the host could not be reached ({type(error).__name__})"
            raise InvalidRequest(said, param) from error

    def _refusal(self, url: httpx.URL) -> str | None:
        """Why a URL isn't allowed, before its name is looked up."""
        config, host = self.config, _host(url)
        schemes = ("https", "http") if config.allow_http else ("https",)
        if url.scheme not in schemes or not host:
            return f"it must be {' or '.join(f'{scheme}://HOST/…' for scheme in schemes)}"
        if url.userinfo:
            return "it must carry no user or password"
        if not _listed(host, (*config.allow_hosts, *config.allow_private_hosts)):
            return f"the host {host!r} must be among those that the operator lists in outbound.allow_hosts"
        port = _PORTS[url.scheme] if url.port is None else url.port
        if port not in config.ports:
            return f"its port must be one of {', '.join(map(str, config.ports))}"
        if _is_address(host) and not self._reachable(host, [host]):
            return _NOWHERE
        return None

    def _reachable(self, host: str, addresses: list[str]) -> list[str]:
        """Those of a host's addresses that it may have."""
        if _listed(host, self.config.allow_private_hosts):
            return addresses
        return [address for address in addresses if is_public(ip_address(address))]

    async def _resolve(self, param: str, url: httpx.URL) -> list[str]:
        """Where a request for a URL may connect to, best first; never empty."""
        reason, host = self._refusal(url), _host(url)
        if reason is not None:
            raise InvalidRequest(f"{param}: {reason}", param)
        found = await asyncio.get_running_loop().run_in_executor(self._lookups, _look_up, host)
        reachable = self._reachable(host, found)
        if not reachable:
            raise InvalidRequest(f"{param}: {_NOWHERE}", param)
        return reachable


class _Pinned(httpx.AsyncHTTPTransport):
    """Resolves and checks the host of each request, redirected ones too, and connects to what was checked."""

    def __init__(
        self, tls: ssl.SSLContext, resolve: Callable[[httpx.URL], Awaitable[list[str]]]
    ) -> None:
        super().__init__(verify=tls, trust_env=False)
        self._resolve = resolve

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The response of the first address that takes the connection."""
        addresses = await self._resolve(request.url)
        for address in addresses:
            # The host's name stays in the Host header, and is what the certificate has to be for.
            pinned = httpx.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": _host(request.url)},
            )
            try:
                return await super().handle_async_request(pinned)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if address == addresses[-1]:
                    raise
        raise AssertionError("there is an address")


def _host(url: httpx.URL) -> str:
    # As it is sent: in ASCII, whatever alphabet the client wrote it in.
    return url.raw_host.decode("ascii")


def _listed(host: str, patterns: tuple[str, ...]) -> bool:
    return any(
        pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:]))
        for pattern in patterns
    )


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _look_up(host: str) -> list[str]:
    """A host's addresses, as the machine's resolver orders them; none if it is unknown."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        log.info("%s has no address: %s", host, error)
        return []
    return list(dict.fromkeys(str(place[4][0]) for place in found))
