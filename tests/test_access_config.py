import json
import traceback

import pytest

from warpcache_ray.access_config import ApiKey, RateLimits, digest, make_key
from warpcache_ray.config import parse_config
from warpcache_ray.errors import InvalidConfig

KEY = "wc_" + "x" * 43
ALICE = {"name": "alice", "sha256": digest(KEY)}
BOB = {"name": "bob", "sha256": digest("another"), "admin": True}


def access_of(**access):
    return parse_config({"model": {"path": "x"}, "access": access}).access


def test_keys_are_random_and_only_their_digests_kept():
    """256 bits of them; the digest is the one that `sha256sum` gives."""
    assert len({make_key() for _ in range(100)}) == 100
    assert len(make_key()) == len(KEY)
    assert digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_nothing_is_asked_by_default():
    """No keys, no rates, no other origins, no public address."""
    access = access_of()
    assert (access.keys, access.rate, access.cors_origins) == ((), RateLimits(), ())
    assert not access.allow_public


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_keys_may_stand_in_a_file(ending, tmp_path):
    """They are read with the configuration: those who get it need no file. JSON is YAML too."""
    path = tmp_path / f"keys.{ending}"
    rate = {"submissions": "5/minute"}
    yaml = f"- {{name: bob, sha256: {BOB['sha256']}, admin: true, rate: {{submissions: 5/minute}}}}"
    path.write_text(json.dumps([BOB | {"rate": rate}]) if ending == "json" else yaml)
    access = access_of(keys=[ALICE], keys_file=str(path))
    bob = ApiKey("bob", BOB["sha256"], True, RateLimits(submissions="5/minute"))
    assert access.keys == (ApiKey("alice", ALICE["sha256"]), bob)
    assert access.keys_file == ""


@pytest.mark.parametrize(
    ("access", "param", "told"),
    [
        ({"keys": [{"name": "a"}]}, "access.keys.0.sha256", "required"),
        ({"keys": [ALICE, BOB | {"sha256": "0F" * 32}]}, "access.keys.1.sha256", "64 hex.*lower"),
        ({"keys": [ALICE | {"name": "a b"}]}, "access.keys.0.name", "1 to 64 of .*A-Z"),
        ({"keys": [ALICE | {"name": ""}]}, "access.keys.0.name", "1 to 64 of .*A-Z"),
        ({"keys": [ALICE | {"role": "x"}]}, "access.keys.0.role", "name, sha256, admin, rate"),
        ({"keys": [ALICE | {"admin": "x"}]}, "access.keys.0.admin", "boolean"),
        ({"keys": [ALICE | {"rate": {"requests": "x"}}]}, "access.keys.0.rate.requests", "60/m"),
        ({"keys": [ALICE | {"rate": {"polls": "x"}}]}, "access.keys.0.rate.polls", "submissions"),
        ({"keys": [ALICE, BOB | {"name": "alice"}]}, "access.keys", "'alice' is there twice"),
        ({"keys": [ALICE, ALICE | {"name": "eve"}]}, "access.keys", "'alice' is there twice"),
        ({"open": True}, "access.open", "keys, keys_file, allow_public, rate, cors_origins"),
        ({"rate": {"requests": "often"}}, "access.rate.requests", "'often': must be like 60/m"),
        ({"rate": {"requests": "0/minute"}}, "access.rate.requests", "'0/minute': must be like"),
        ({"rate": {"submissions": "1/day;2/day"}}, "access.rate.submissions", "must be like"),
        ({"rate": {"submissions": "5/fortnight"}}, "access.rate.submissions", "must be like"),
        ({"cors_origins": ["a.org"]}, "access.cors_origins.0", "'a.org': must be like https://"),
        ({"cors_origins": ["https://a.org/"]}, "access.cors_origins.0", "without a path"),
    ],
    ids=str,
)
def test_refusals(access, param, told):
    """Each names the field and what is allowed."""
    with pytest.raises(InvalidConfig, match=told) as caught:
        access_of(**access)
    assert caught.value.param == param


SECRETS = [
    KEY,
    [KEY],
    [{"name": "alice", "sha256": KEY}],
    [{"name": KEY + "!", "sha256": digest(KEY)}],
    [ALICE | {"key": KEY}],
    [ALICE | {"rate": KEY}],
]


@pytest.mark.parametrize("keys", SECRETS, ids=range(len(SECRETS)))
@pytest.mark.parametrize("where", ["keys", "keys_file", "key"])
def test_a_key_in_the_wrong_place_is_not_repeated(where, keys, tmp_path):
    """Whoever writes it where its digest belongs doesn't find it in a log."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(keys))
    with pytest.raises(InvalidConfig) as caught:
        access_of(**{where: str(path) if where == "keys_file" else keys})
    # Without the lines of source code, which pytest's own parameters would stand in.
    told = "".join(traceback.format_exception(caught.value, limit=0))
    assert "access.key" in told
    assert KEY not in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file"),
        (b"a: [", "must be YAML or JSON"),
        (b"\xff\xfe\x00", "must be YAML or JSON"),
        (b"", "valid list"),
        (b"{name: alice}", "valid list"),
        (b"- {name: alice, sha256: 12}", "0.sha256: .*string"),
        (b"- {name: alice, sha256: x}", "0.sha256: must be 64"),
        (b"- {name: a, sha256: %s, z: x}" % (b"ab" * 32), "0.z: there is no such key; .*: name"),
    ],
    ids=str,
)
def test_files_of_keys_that_are_none(content, told, tmp_path):
    """The message names the file."""
    path = tmp_path / "keys.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidConfig, match=f"access.keys_file = '{path}': .*{told}") as caught:
        access_of(keys_file=str(path))
    assert caught.value.param == "access.keys_file"
