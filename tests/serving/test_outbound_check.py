"""What can be told of an address that a client names without asking anybody."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpcache_ray.errors import InvalidRequest
from warpcache_ray.outbound_config import OutboundConfig
from warpcache_ray.serving.outbound import Outbound, is_public

ANYWHERE = Outbound(OutboundConfig(allow_hosts=("*",)))

_INSIDE = {
    "loopback, unspecified": "0.0.0.0 127.0.0.1 127.255.255.254 :: ::1",
    "private": "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 fc00::1 fec0::1",
    "shared": "100.64.0.1",
    "link-local": "169.254.0.1 fe80::1 fe80::1%1",
    "metadata": "169.254.169.254 169.254.170.2 100.100.100.200 168.63.129.16 192.0.0.192 fd00:ec2::254",
    "documentation, benchmarks": "192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 2001:db8::1 3fff::1",
    "multicast": "224.0.0.1 239.255.255.255 ff02::1",
    "reserved": "240.0.0.1 255.255.255.255 100::1 5f00::1",
    "another in it": "::127.0.0.1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe "
    "64:ff9b:1::1 2001::1 2002:7f00:1:: 2002:808:808:: 192.88.99.1",
}
INSIDE = [address for kind in _INSIDE.values() for address in kind.split()]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://good.example/", "it must be https://HOST"),
        ("file:///etc/passwd", "it must be https://HOST"),
        ("ftp://good.example/", "it must be https://HOST"),
        ("https:///x", "it must be https://HOST"),
        ("//good.example/", "it must be https://HOST"),
        ("", "it must be https://HOST"),
        ("https://good.example:8443/", "its port must be one of 443"),
        ("https://good.example:0/", "its port must be one of 443"),
        ("https://good.example:99999/", "its port must be one of 443"),
        ("https://user@good.example/", "no user or password"),
        ("https://user:pass@good.example/", "no user or password"),
        ("https://good.example@evil.example/", "no user or password"),
        ("https://evil.example\\@good.example/", "no user or password"),
        ("https://evil.example/", "outbound.allow_hosts"),
        ("https://evil.example#@good.example/", "outbound.allow_hosts"),
        ("https://evil.example?@good.example/", "outbound.allow_hosts"),
        ("https://good.example.evil.example/", "outbound.allow_hosts"),
        ("https://xgood.example/", "outbound.allow_hosts"),
        ("https://sub.good.example/", "outbound.allow_hosts"),
        ("https://good.example./", "outbound.allow_hosts"),
        ("https://wild.example/", "outbound.allow_hosts"),
        ("https://127.0.0.1/", "outbound.allow_hosts"),
        ("https://[::1]/", "outbound.allow_hosts"),
        ("https://[::ffff:127.0.0.1]/", "outbound.allow_hosts"),
        ("https://2130706433/", "outbound.allow_hosts"),
        ("https://0x7f000001/", "outbound.allow_hosts"),
        ("https://0177.1/", "outbound.allow_hosts"),
        ("https://good%2eexample/", "outbound.allow_hosts"),
        ("https://gооd.example/", "outbound.allow_hosts"),  # Cyrillic
        ("https://good.example\t/", "'\\\\t'"),
        ("https://good.example\r\nx: y/", "'\\\\r'"),
        ("https://ⓖood.example/", "Invalid IDNA"),
        ("https://[::1/", "."),
        ("https://0177.0.0.1/", "Invalid IPv4"),
        ("https://good.example/\ud800", "surrogates not allowed"),
    ],
)
def test_what_a_url_alone_gives_away(url, why):
    """Refused without asking anybody, with the field's name, the value and what is allowed."""
    outbound = Outbound(OutboundConfig(allow_hosts=("good.example", "*.wild.example")))
    for fine in (
        "https://good.example/a.png?b=c",
        "https://GOOD.example:443",
        "https://a.b.wild.example",
    ):
        outbound.check(fine, "image")
    with pytest.raises(InvalidRequest, match=why) as refused:
        outbound.check(url, "image")
    assert refused.value.message.startswith(f"image = {url!r} is not allowed: ")
    assert refused.value.param == "image"


@given(st.text(st.characters(exclude_categories=()) | st.sampled_from("[]:@/.%\\#?")))
def test_no_url_makes_the_check_fail(text):
    """Whatever it is, it is allowed or refused."""
    for url in (text, f"https://{text}"):
        with suppress(InvalidRequest):
            ANYWHERE.check(url, "image")


def test_nothing_is_allowed_by_default():
    """The operator has to say so; the message says where. A long URL isn't repeated whole."""
    with pytest.raises(InvalidRequest, match=r"operator lists in outbound\.allow_hosts"):
        Outbound(OutboundConfig()).check("https://example.com/", "image")
    with pytest.raises(InvalidRequest) as refused:
        Outbound(OutboundConfig()).check("https://example.com/" + "a" * 10_000, "image")
    assert len(refused.value.message) < 400


def test_all_hosts_are_those_that_are_public():
    """Addresses in a URL are told at once."""
    ANYWHERE.check("https://anything.example/", "image")
    ANYWHERE.check("https://8.8.8.8/", "image")
    for host in ("127.0.0.1", "[::1]", "[::ffff:8.8.8.8]", "169.254.169.254", "127。0。0。1"):
        with pytest.raises(InvalidRequest, match="no public address"):
            ANYWHERE.check(f"https://{host}/", "image")


@pytest.mark.parametrize(
    "address",
    INSIDE,
)
def test_addresses_that_lead_inside(address):
    """None of these is anybody's on the internet, or it stands for another one."""
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "93.184.216.34",
        "172.15.0.1",
        "172.32.0.1",
        "100.128.0.1",
        "2606:4700::1111",
        "64:ff9b::808:808",
    ],
)
def test_addresses_that_dont(address):
    """Public ones, and NAT64's names for those."""
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "hosts",
    [
        "https://x.example",
        "X.example",
        "*",
        "a*.example",
        "*.*.example",
        "x.example/",
        "x.example.",
        "",
        "bücher.example",
    ],
)
def test_hosts_that_a_configuration_may_list(hosts):
    """What could never match is a mistake; all hosts at private addresses would be no guard."""
    from pydantic import TypeAdapter, ValidationError

    checked = TypeAdapter(OutboundConfig).validate_python
    for fine in (
        "x.example",
        "*.x.example",
        "xn--bcher-kva.example",
        "10.0.0.1",
        "::1",
        "my_service",
    ):
        assert checked({"allow_private_hosts": [fine]}).allow_private_hosts == (fine,)
    assert checked({"allow_hosts": ["*"]}).allow_hosts == ("*",)
    with pytest.raises(ValidationError):
        checked({"allow_private_hosts": [hosts]})
