"""Profiled policies in files: what is kept comes back, and nothing else is taken for one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from warpcache_ray.core.policies.auto import Auto
from warpcache_ray.errors import InvalidPolicy
from warpcache_ray.policy_document import (
    Certificate,
    PolicyDocument,
    PolicyKey,
    Target,
    parse_document,
)
from warpcache_ray.policy_spec import describe_policy, load_document, load_policy, save_policy

KEY = PolicyKey(
    model="WanTransformer3DModel-0-1",
    height=64,
    width=64,
    num_frames=17,
    steps=50,
    scheduler="FlowMatchEulerDiscreteScheduler",
    shift=3.0,
    guidance_scale=4.0,
)
POLICY = Auto(max_calls=9, model=KEY.model, level=17.25)
DOCUMENT = PolicyDocument(
    key=KEY,
    policy=json.loads(json.dumps(describe_policy(POLICY))),
    target=Target("ssim", 0.99),
    expected={"calls": 9, "share_kept": 0.96},
    certificate=Certificate(
        certified=True,
        requests=59,
        misses=0,
        allowed_misses=0,
        share=0.95,
        delta=0.05,
        share_kept=0.9505,
        policies_tested=3,
        prompts_sha256="0" * 16,
    ),
    provenance={"versions": {"torch": "2.13.0"}},
)


@pytest.mark.parametrize("name", ["policy.json", "policy.yaml"])
def test_a_file_gives_policy_and_document(tmp_path: Path, name: str) -> None:
    """Where a policy is expected its document will do, with further parameters like any other."""
    path = tmp_path / name
    save_policy(DOCUMENT, path)
    assert load_document(path) == DOCUMENT
    assert load_policy(path) == POLICY
    assert load_policy(path, warmup=3) == replace(POLICY, warmup=3)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_target_reads_as_text() -> None:
    """In messages and reports."""
    told = [str(Target("psnr", 35.0)), str(Target("ssim", 0.99)), str(Target("calls", 12))]
    assert told == ["PSNR of 35 dB", "SSIM of 0.99", "12 calls"]


def _changed(*path: str, to: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(DOCUMENT.to_dict()))
    inner = content
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = to
    return content


@pytest.mark.parametrize(
    ("content", "told", "param"),
    [
        (_changed("format", to="recipe"), "format: must be 'warpcache-policy'", "format"),
        (_changed("version", to=2), "version: 2 is not known here; it must be 1", "version"),
        (_changed("key", "steps", to="many"), "key.steps: .*valid integer", "key.steps"),
        (_changed("key", "colour", to="red"), "key.colour: .*[Uu]nexpected", "key.colour"),
        (_changed("target", "metric", to="taste"), "target.metric: .*'psnr'", "target.metric"),
        (_changed("policy", "max_calls", to=3), "changed after it was profiled", "policy_digest"),
        (_changed("policy_digest", to=None), "policy_digest: None", "policy_digest"),
        (_changed("certified", to=False), "certified: False is not what", "certified"),
        (_changed("certificate", to=None), "certified: True is not what", "certified"),
    ],
)
def test_what_is_no_document_is_refused(
    content: dict[str, Any], told: str, param: str, tmp_path: Path
) -> None:
    """The message names file and field, whichever way it is read."""
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(content))
    for load in (load_policy, load_document):
        with pytest.raises(InvalidPolicy, match=told) as caught:
            load(path)
        assert str(path) in caught.value.message
        assert caught.value.param == param


@pytest.mark.parametrize("text", ['{"format": "warpcache-', "[1]", '"never"'])
def test_a_torn_or_foreign_file_is_no_document(text: str, tmp_path: Path) -> None:
    """A file that isn't JSON, or holds something else."""
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(InvalidPolicy, match=r"policy.json: (can't be read|format: must be)"):
        load_document(path)


def test_a_document_may_hold_no_invalid_policy(tmp_path: Path) -> None:
    """A digest that fits doesn't make it valid."""
    path = tmp_path / "policy.json"
    save_policy(replace(DOCUMENT, policy={"name": "auto", "max_calls": 0}), path)
    with pytest.raises(InvalidPolicy, match="max_calls: 0 is not allowed") as caught:
        load_document(path)
    assert caught.value.param == "policy.max_calls"


@pytest.mark.parametrize(
    "change",
    [
        {"model": "WanTransformer3DModel-0-2"},
        {"steps": 30},
        {"width": 128},
        {"scheduler": "UniPCMultistepScheduler"},
        {"shift": 5.0},
        {"guidance_scale": None},
    ],
    ids=str,
)
def test_it_is_for_its_key_alone(change: dict[str, Any]) -> None:
    """Another key is refused by the field that differs, and has another name in the store."""
    DOCUMENT.check_key(KEY)
    other = replace(KEY, **change)
    assert other.digest != KEY.digest
    with pytest.raises(InvalidPolicy, match=f"profiled for {next(iter(change))} = "):
        DOCUMENT.check_key(other)


def test_parsing_is_the_inverse() -> None:
    """Of what the store keeps as JSON."""
    assert parse_document(json.loads(json.dumps(DOCUMENT.to_dict()))) == DOCUMENT
