"""`warpcache policy` and `profile --store` against real Redis servers, over their restarts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import KEY, SLOT, document
from servers import SERVERS
from typer.testing import CliRunner, Result

from warpcache_ray.cli import app
from warpcache_ray.errors import InvalidRequest, LostRace
from warpcache_ray.policy_slots import slot_id
from warpcache_ray.policy_spec import load_document, save_policy
from warpcache_ray.publication import Publication
from warpcache_ray.store.server import EmbeddedServer
from warpcache_ray.terminal import console

Run = Callable[..., Result]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """Each kind of server in turn."""
    executable = SERVERS[request.param]()
    if executable is None:
        pytest.skip(f"{request.param} isn't installed")
    server = EmbeddedServer(tmp_path / "store", executable)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def policy(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command, on that server, in a wide terminal."""
    monkeypatch.setattr(console, "_width", 200)

    def run(*arguments: str, fails: bool = False) -> Result:
        environment = {"WARPCACHE_STORE": server.url, "WARPCACHE_APP": "toy"}
        told = CliRunner().invoke(app, ["policy", *arguments], env=environment)
        assert told.exit_code == (2 if fails else 0), told.output
        return told

    return run


def test_a_life_over_restarts(policy: Run, server: EmbeddedServer, tmp_path: Path) -> None:
    """Each command does what it says, and what one did is there for the next one, on a server that was started anew."""
    for calls in (4, 3):
        save_policy(document(calls), tmp_path / f"{calls}.json")
    commands: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (("set", str(tmp_path / "4.json")), {"active": 1, "canary": None}),
        (("canary", str(tmp_path / "3.json"), "10"), {"active": 1, "canary": 2, "share": 10}),
        (("withdraw", "default"), {"active": 1, "canary": None}),
        (("canary", "default@2", "30"), {"canary": 2, "share": 30}),
        (("promote", SLOT), {"active": 2, "canary": None}),
        (("rollback", "default"), {"active": 1}),
        (("set", "default@2"), {"active": 2, "revision": 7}),
    ]
    for command, expected in commands:
        told = policy(*command, "--by", "me", "--why", "[because]", "--json")
        assert json.loads(told.stdout).items() >= expected.items()
        server.stop()
        server.start()
    told = policy("history", "default")
    assert [line.count("[because]") for line in told.stdout.splitlines() if "because" in line] == [
        1
    ] * 7
    changes = json.loads(policy("history", "default", "--json").stdout)
    assert [change["what"] for change in changes][:2] == ["activate", "rollback"]
    assert {change["who"] for change in changes} == {"me"}
    listed = policy("list").stdout
    for part in (SLOT, KEY.model, "32×32×9", "SSIM of 0.99 (estimate)"):
        assert part in listed
    assert json.loads(policy("show", "default@1", "--json").stdout) == document(4).to_dict()
    assert "policy.max_calls" in policy("show", "default").stdout
    found = json.loads(policy("diff", "default@1", str(tmp_path / "3.json"), "--json").stdout)
    assert (found["policy.max_calls"], found["expected.calls"]) == ([4, 3], [4, 3])
    assert set(found) == {"policy.max_calls", "expected.calls", "policy_digest"}
    assert "policy.max_calls" in policy("diff", "default@1", "default").stdout


def test_what_is_exported_can_be_imported(policy: Run, tmp_path: Path) -> None:
    """All slots, as files like any other; into the same application or another."""
    save_policy(document(4), tmp_path / "4.json")
    save_policy(document(5), tmp_path / "5.yaml")
    policy("set", str(tmp_path / "4.json"))
    policy("set", str(tmp_path / "5.yaml"), "--for", "high")
    out = tmp_path / "out"
    policy("export", str(out))
    high = slot_id("high", KEY)
    assert {path.name for path in out.iterdir()} == {f"{SLOT}.json", f"{high}.json"}
    assert load_document(out / f"{high}.json") == document(5)
    lines = json.loads(policy("import", str(out), "--app", "other", "--json").stdout)
    assert {(line["slot"], line["active"]) for line in lines} == {(SLOT, 1), (high, 1)}
    (out / "fast.json").write_text("{")
    assert "can't be read" in " ".join(policy("import", str(out), fails=True).stderr.split())
    assert json.loads(policy("show", "high", "--json").stdout) == document(5).to_dict()
    assert len(json.loads(policy("history", "high", "--json").stdout)) == 1


def test_what_is_refused(policy: Run, server: EmbeddedServer, tmp_path: Path) -> None:
    """Exit status 2, in words; nothing half-published."""
    file = str(tmp_path / "default.json")
    save_policy(document(4), file)
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(document(4).to_dict() | {"policy": {"name": "never"}}))
    (tmp_path / "empty").mkdir()
    refused = [
        (("set", "none.json"), "none.json: can't be read"),
        (("set", str(changed)), "the policy was changed after it was profiled"),
        (
            ("set", file, "--for", "best"),
            "'best' is not allowed; policies are published for default",
        ),
        (("canary", file, "100"), "percent: 100 is not allowed; it must be 1 to 99"),
        (("promote", "default"), "nothing is published for slot 'default'"),
        (("import", str(tmp_path / "empty")), "there is no policy file"),
        (("list", "--store", "http://x"), "must be a redis://"),
    ]
    for command, told in refused:
        assert told in " ".join(policy(*command, fails=True).stderr.split())
    assert json.loads(policy("list", "--json").stdout) == []
    policy("set", file)
    for command, told in [
        (("set", "default"), "must be SLOT@VERSION or a file"),
        (("set", "default@x"), "version: 'x' is not allowed; it must be a number"),
        (("set", "default@2"), "have no version 2"),
        (("promote", "default"), "have no canary"),
    ]:
        assert told in " ".join(policy(*command, fails=True).stderr.split())
    assert json.loads(policy("list", "--json").stdout)[0]["revision"] == 1
    server.stop()
    assert "can't be reached" in " ".join(policy("list", fails=True).stderr.split())


def test_of_two_profilers_one_publishes(server: EmbeddedServer, policy: Run) -> None:
    """The second one to end is told what to do with its file; what the first one published stays."""
    first = Publication(server.url, "toy").began(KEY)
    second = Publication(server.url, "toy", share=10).began(KEY)
    assert first.publish(document(4)) == f"{SLOT}: version 1, active"
    with pytest.raises(
        LostRace, match=r"revision 1, not 0 any more.*publish the file with `warpcache policy set`"
    ):
        second.publish(document(3))
    third = Publication(server.url, "toy", share=10).began(KEY)
    assert third.publish(document(3)) == f"{SLOT}: version 2, canary with 10 % of the requests"
    changes = json.loads(policy("history", "default", "--json").stdout)
    assert [change["why"] for change in changes] == ["profiled for SSIM of 0.99, an estimate"] * 2
    for wrong, told in (
        ({"share": 0}, "canary: 0 is not allowed"),
        ({"quality": "best"}, "'best'"),
    ):
        with pytest.raises(InvalidRequest, match=told):
            Publication(server.url, "toy", **wrong)
