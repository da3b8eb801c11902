"""Requests to addresses that clients name, against real servers on loopback."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trustme

from warpcache_ray.errors import InvalidConfig, InvalidRequest
from warpcache_ray.outbound_config import OutboundConfig
from warpcache_ray.serving.outbound import REDIRECTS, Outbound

OPEN = OutboundConfig(allow_private_hosts=("127.0.0.1",), allow_http=True, timeout_s=5.0)
"""Allows servers of the tests, once their port is listed."""

Answer = Callable[[str], bytes] | bytes


@asynccontextmanager
async def serving(
    answer: Answer,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    drip_s: float = 0.0,
) -> AsyncIterator[tuple[int, list[str]]]:
    """A server that answers every request with these bytes (by its path); its port, and what it was asked."""
    asked: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head)
        told = answer if isinstance(answer, bytes) else answer(head.split()[1])
        try:
            for byte in told if drip_s else ():
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(drip_s)
            writer.write(b"" if drip_s else told)
            await writer.drain()
        except ConnectionError:
            asked.append("gone")
        writer.close()

    server = await asyncio.start_server(talk, host, port, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1], asked


def response(body: bytes = b"", status: int = 200, **headers: str) -> bytes:
    fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} x\r\n{fields}content-length: {len(body)}\r\n\r\n".encode() + body


def to(*ports: int, **changes: object) -> Outbound:
    """One that may reach the servers at these ports."""
    return Outbound(replace(OPEN, ports=ports, **changes))


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A name server: each of its names has the first of these answers, and from then on the next, to the last."""
    table: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def look_up(host, *rest, **more):
        host = host.decode() if isinstance(host, bytes) else host
        if host not in table:
            return real(host, *rest, **more)
        answers = table[host]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return [found for part in answer.split() for found in real(part, *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return table


def test_a_file_of_certificates_that_is_none(tmp_path):
    """It is told where the service starts."""
    for path in (tmp_path / "none.pem", tmp_path):
        with pytest.raises(InvalidConfig, match=r"outbound.ca_file = .*not a file of certificates"):
            Outbound(replace(OPEN, ca_file=str(path)))


async def test_a_fetch():
    """Body and media type; nothing is sent but what such a request needs."""
    sent = response(b"\x89PNG", Content_Type="Image/PNG; charset=x")
    async with serving(sent) as (port, asked):
        found = await to(port).fetch(f"http://127.0.0.1:{port}/a.png?b=c", "image", 4)
    assert found == (b"\x89PNG", "image/png")
    lines = asked[0].lower().split("\r\n")
    assert lines[0] == "get /a.png?b=c http/1.1"
    assert {line.partition(":")[0] for line in lines[1:] if line} == {
        "host", "accept-encoding", "user-agent"
    }  # fmt: skip
    assert f"host: 127.0.0.1:{port}" in lines


async def test_a_post():
    """Body and headers arrive; the status comes back whatever it is, a redirect isn't followed."""
    for status in (204, 302, 500):
        sent = response(b"never read", status, Location="/elsewhere", Retry_After="7")
        async with serving(sent) as (port, asked):
            url = f"http://127.0.0.1:{port}/hook"
            told = await to(port).post(url, "webhook_url", b"{}", {"webhook-id": "evt_1"})
        assert (told.status, told.headers["retry-after"], len(asked)) == (status, "7", 1)
        assert "webhook-id: evt_1\r\n" in asked[0]
        assert "content-length: 2\r\n" in asked[0].lower()


async def test_proxies_of_the_environment_dont_count(monkeypatch):
    """They would connect where they like."""
    async with (
        serving(response(b"proxied")) as (proxy, asked),
        serving(response(b"direct")) as (port, _),
    ):
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        body, _ = await to(port).fetch(f"http://127.0.0.1:{port}/", "image", 100)
    assert (body, asked) == (b"direct", [])


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (response(b"x", 404), "answered 404"),
        (response(b"x" * 101), "too large; at most 100 bytes"),
        (b"HTTP/1.1 200 x\r\n\r\n" + b"x" * 101, "too large; at most 100 bytes"),
        (response(gzip.compress(bytes(10**7)), content_encoding="gzip"), "compressed, unasked"),
        (response(b"x", content_encoding="gzip, gzip"), "compressed, unasked"),
        (b"HTTP/1.1 200 x\r\ncontent-length: 9\r\n\r\nx", "could not be reached"),
        (b"SSH-2.0-OpenSSH\r\n", "could not be reached"),
        (b"", "could not be reached"),
    ],
)
async def test_answers_that_arent_taken(answer, why):
    """Not found, over the limit with or without its length told, compressed, cut off, none of HTTP."""
    async with serving(answer) as (port, _):
        with pytest.raises(InvalidRequest, match=why) as refused:
            await to(port).fetch(f"http://127.0.0.1:{port}/", "image", 100)
    assert refused.value.param == "image"


async def test_nobody_is_there(free_port):
    """The message doesn't say what the network does."""
    with pytest.raises(InvalidRequest, match=r"could not be reached \(ConnectError\)$"):
        await to(free_port).fetch(f"http://127.0.0.1:{free_port}/", "image", 100)


async def test_the_whole_answer_has_its_time():
    """A server that sends a byte now and then is never idle, and holds nobody for long."""
    async with serving(response(b"x" * 10_000), drip_s=0.02) as (port, asked):
        outbound = to(port, timeout_s=0.3)
        with pytest.raises(InvalidRequest, match=r"didn't answer in full within 0.3 s"):
            await outbound.fetch(f"http://127.0.0.1:{port}/", "image", 100_000)
        with pytest.raises(InvalidRequest, match=r"didn't answer in full within 0.3 s"):
            await outbound.post(f"http://127.0.0.1:{port}/", "webhook_url", b"", {})
        async with asyncio.timeout(5):
            while asked.count("gone") != 2:
                await asyncio.sleep(0.01)


async def test_redirects_are_followed_to_where_one_may_go():
    """Within the site and a few times."""
    targets = {"/1": "/2", "/2": "3", "/round": "/round"}

    def answer(path: str) -> bytes:
        where = targets.get(path)
        return response(b"there") if where is None else response(b"", 302, Location=where)

    async with serving(answer) as (port, asked):
        body, _ = await to(port).fetch(f"http://127.0.0.1:{port}/1", "image", 100)
        assert (body, len(asked)) == (b"there", 3)
        with pytest.raises(InvalidRequest, match="TooManyRedirects"):
            await to(port).fetch(f"http://127.0.0.1:{port}/round", "image", 100)
        assert len(asked) == 3 + REDIRECTS + 1


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("http://169.254.169.254/latest/meta-data/", "outbound.allow_hosts"),
        ("http://inside.example:{port}/", "no public address"),
        ("http://a:b@127.0.0.1:{port}/", "no user or password"),
        ("http://127.0.0.1:1/", "its port must be"),
        ("file:///etc/passwd", "could not be reached|it must be"),
        ("http://[/", "outbound.allow_hosts"),
    ],
)
async def test_redirects_to_where_one_may_not(location, why, names):
    """Each hop is checked as the first one is."""
    names["inside.example"] = ["127.0.0.1"]
    where = ""
    async with serving(lambda path: response(b"", 302, Location=where)) as (port, asked):
        where = location.format(port=port)
        outbound = to(port, allow_hosts=("inside.example",))
        with pytest.raises(InvalidRequest, match=why):
            await outbound.fetch(f"http://127.0.0.1:{port}/", "image", 100)
        assert len(asked) == 1


@pytest.mark.parametrize("host", ["inside.example", "localhost", "2130706433", "0x7f.1"])
async def test_names_of_what_is_inside(host, names):
    """A name that leads to loopback isn't reached, however it is written."""
    names["inside.example"] = ["127.0.0.1 ::1 10.0.0.1 169.254.169.254"]
    async with serving(response(b"secret")) as (port, asked):
        outbound = to(port, allow_hosts=("*",))
        for url in (f"http://{host}:{port}/", f"http://{host}.:{port}/"):
            with pytest.raises(InvalidRequest, match="no public address"):
                await outbound.fetch(url, "image", 100)
        assert asked == []


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "nowhere.invalid"])
async def test_names_that_lead_nowhere(host, names):
    """The same as for one that leads inside: it tells nothing of which names there are."""
    with pytest.raises(InvalidRequest, match="no public address"):
        await to(80, allow_hosts=("*",)).fetch(f"http://{host}/", "image", 100)


async def test_a_name_is_looked_up_once(names):
    """A name server that gives another answer to the second question isn't asked it."""
    names["flip.example"] = ["127.0.0.1", "127.0.0.2"]
    async with (
        serving(response(b"checked")) as (port, asked),
        serving(response(b"rebound"), "127.0.0.2", port) as (_, rebound),
    ):
        outbound = to(port, allow_private_hosts=("flip.example",))
        body, _ = await outbound.fetch(f"http://flip.example:{port}/", "image", 100)
        assert (body, rebound) == (b"checked", [])
        assert f"host: flip.example:{port}\r\n" in asked[0].lower()
        assert names["flip.example"] == ["127.0.0.2"]


async def test_the_next_address_is_tried(names, free_port):
    """One of a host's addresses may be of no use from here."""
    names["two.example"] = ["127.0.0.2 127.0.0.1"]
    async with serving(response(b"there")) as (port, _):
        outbound = to(port, allow_private_hosts=("two.example",))
        assert (await outbound.fetch(f"http://two.example:{port}/", "image", 9))[0] == b"there"


async def test_tls_verifies_the_name(names, tmp_path):
    """The connection goes to an address, the certificate has to be the name's: one that nobody knows, or of another
    name, is refused before anything is sent."""
    names["good.example"] = names["other.example"] = ["127.0.0.1"]
    authority, unknown = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    hosts = ("good.example", "other.example", "127.0.0.1")
    for issuer, url, fine in (
        (authority, "https://good.example:{port}/", True),
        (authority, "https://other.example:{port}/", False),
        (authority, "https://127.0.0.1:{port}/", False),
        (unknown, "https://good.example:{port}/", False),
    ):
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        issuer.issue_cert("good.example").configure_cert(tls)
        async with serving(response(b"there"), tls=tls) as (port, asked):
            ca_file = str(tmp_path / "ca.pem")
            outbound = to(port, allow_private_hosts=hosts, allow_http=False, ca_file=ca_file)
            fetched = outbound.fetch(url.format(port=port), "image", 100)
            if fine:
                assert await fetched == (b"there", "")
            else:
                with pytest.raises(InvalidRequest, match="could not be reached"):
                    await fetched
            assert len(asked) == fine
