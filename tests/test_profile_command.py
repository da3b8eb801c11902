from __future__ import annotations

import json
import uuid
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

import warpcache_ray
from warpcache_ray.cli import app
from warpcache_ray.core.policies.auto import Auto
from warpcache_ray.policy_slots import slot_id
from warpcache_ray.policy_spec import load_document, load_policy
from warpcache_ray.publication import asked
from warpcache_ray.store.server import EmbeddedServer

SIZE = ("--height", "32", "--width", "32", "--num-frames", "9")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def _profile(folders: dict[str, Path], tmp_path: Path, *options: str) -> Result:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n\na field\na dog\na tree\n")
    told = run(
        *("profile", "--model", str(folders["wan"]), "--prompts", str(prompts), "--count", "2"),
        *("--steps", "8", "--work", str(tmp_path / "work"), *SIZE, *options),
    )
    assert told.exit_code == 0, told.output
    return told


def test_it_writes_a_policy_that_generate_reads(folders: dict[str, Path], tmp_path: Path) -> None:
    """Calibrated on as many prompts as asked for, with the budget that was given; a report lies beside it."""
    policy = tmp_path / "made" / "policy.json"
    told = _profile(folders, tmp_path, "--max-calls", "3", "--out", str(policy))
    assert "generations" in told.stderr
    assert "3 of 8 calls" in told.stdout
    assert "not certified" in " ".join(told.stdout.split())
    document, made = load_document(policy), load_policy(policy)
    assert isinstance(made, Auto)
    assert (made.max_calls, made.shape) == (3, (4, 3, 4, 4))
    assert document.provenance["prompts"] == 2
    page = policy.with_suffix(".html").read_text()
    assert ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>")).tag == "html"
    map_ = json.loads(policy.with_suffix(".sensitivity.json").read_text())
    assert set(map_) == {"sigmas", "steps", "branches", "blocks"}
    out = tmp_path / "cat.gif"
    told = run(
        *("generate", "a cat", "--model", str(folders["wan"]), "--out", str(out), "--seed", "1"),
        *("--policy", str(policy), "--num-inference-steps", "8", *SIZE),
    )
    assert told.exit_code == 0, told.output
    assert "6 recomputed" in told.output
    # Its policy is for these weights alone, and the file for nobody who changed it.
    told = run("generate", "a cat", "--model", str(folders["hunyuan"]), "--policy", str(policy))
    assert (told.exit_code, "calibrated on Wan" in " ".join(told.stderr.split())) == (2, True)
    content = json.loads(policy.read_text())
    content["policy"]["max_calls"] = 2
    policy.write_text(json.dumps(content))
    told = run("generate", "a cat", "--model", str(folders["wan"]), "--policy", str(policy))
    assert (told.exit_code, "changed after it was profiled" in " ".join(told.stderr.split())) == (
        2,
        True,
    )


def test_it_certifies(folders: dict[str, Path], tmp_path: Path) -> None:
    """Two fresh prompts prove a share of 30 % at 90 % confidence; the report goes where it is asked for."""
    report = tmp_path / "seen" / "report.html"
    told = _profile(
        folders,
        tmp_path,
        *("--quality", "0.1", "--share", "0.3", "--delta", "0.1", "--certify", "2"),
        *("--out", str(tmp_path / "policy.yaml"), "--report", str(report)),
    )
    said = " ".join(told.stdout.split())
    assert "certified: 0 of 2 fresh requests missed (0 allowed)" in said
    assert load_document(tmp_path / "policy.yaml").certified
    assert "At 90% confidence" in report.read_text()


def test_it_publishes(
    folders: dict[str, Path], tmp_path: Path, store_server: EmbeddedServer
) -> None:
    """As the canary, which runs of the same shape have; the file is written all the same."""
    out, application = tmp_path / "policy.json", uuid.uuid4().hex
    told = _profile(
        folders,
        tmp_path,
        *("--max-calls", "3", "--out", str(out), "--for", "high"),
        *("--store", store_server.url, "--app", application, "--canary", "10"),
    )
    document = load_document(out)
    slot = slot_id("high", document.key)
    said = " ".join(told.stdout.split())
    assert f"published: {slot}: version 1, canary with 10 % of the requests" in said
    found = asked(store_server.url, application, lambda policies: policies.show(slot))
    assert found["documents"]["canary"] == document.to_dict()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "policy.toml"], ".json, .yaml or .yml"),
        (["--target-psnr", "-1"], "target_psnr: -1.0 is not allowed"),
        (["--max-calls", "3", "--target-psnr", "30"], "target_psnr: 30.0 is not allowed"),
        (["--quality", "1.5"], "quality: 1.5 is not allowed; it must be between 0 and 1"),
        (["--quality", "0.9", "--max-calls", "3"], "quality: 0.9 is not allowed"),
        (["--share", "1"], "share: 1.0 is not allowed; it must be between 0 and 1"),
        (["--count", "12"], "count: 12 is not allowed; a search takes 2 to 9 prompts"),
        (["--certify", "20"], "certify: 20 is not allowed; 95% of the requests"),
        (["--certify", "65"], "prompts: 72 different ones are not enough; it must be 73"),
        (["--prompts", "none.txt"], "prompts = 'none.txt': can't be read"),
        (["--model", "no/such-model"], "model.path"),
        (["--store", "redis://x", "--canary", "101"], "canary: 101 is not allowed"),
    ],
)
def test_it_refuses_before_it_runs(options: list[str], said: str) -> None:
    """Exit status 2, and a message that names the option."""
    told = run("profile", *options)
    assert told.exit_code == 2
    assert said in " ".join(told.stderr.split())


def test_prompts_of_ours_are_no_test_prompts() -> None:
    """Enough in each set for a search and a certificate, all different; what is calibrated on isn't measured on."""
    package = Path(warpcache_ray.__file__).parent
    sets = {p.stem: p.read_text().splitlines() for p in (package / "tuning/prompts").glob("*.txt")}
    assert set(sets) == {"generic", "toyworld"}
    assert all(len(set(lines)) == 72 == len(lines) for lines in sets.values())
    measured = (package / "bench/prompts/toyworld.txt").read_text().splitlines()
    assert not set(measured) & set(sets["toyworld"])
