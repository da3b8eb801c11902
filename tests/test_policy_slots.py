"""What policies are published for: slots, the files that are named for them, and the jobs of a canary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from documents import KEY, SLOT, document

from warpcache_ray.config import parse_config
from warpcache_ray.errors import InvalidConfig, InvalidPolicy, InvalidRequest
from warpcache_ray.policy_document import PolicyKey
from warpcache_ray.policy_slots import (
    POLICY_FOLDER,
    check_model,
    check_quality,
    in_canary,
    quality_of,
    read_published,
    slot_id,
)
from warpcache_ray.policy_spec import save_policy

MODEL = {"path": "x"}


def test_a_slot_is_a_quality_and_a_key() -> None:
    """Each part of the key counts, 4 and 4.0 are the same; the quality can be read off it."""
    assert f"default-{KEY.digest[7:]}" == SLOT
    assert quality_of(slot_id("high", KEY)) == "high"
    assert slot_id("default", replace(KEY, guidance_scale=4)) == SLOT
    others = {"model": "Toy-0-2", "height": 48, "steps": 9, "shift": None, "guidance_scale": 5.0}
    assert (
        len({SLOT, *(slot_id("default", replace(KEY, **{n: v})) for n, v in others.items())}) == 6
    )


def test_only_names_have_slots() -> None:
    """No number, and `exact`, which is always uncached, neither."""
    assert check_quality("fast") == "fast"
    for name in ("exact", "0.97", ""):
        with pytest.raises(InvalidRequest, match="published for default, high, balanced, fast"):
            check_quality(name)


def test_a_document_is_for_its_own_slot() -> None:
    """In another one, and for another model, it is refused by name."""
    content = document(4).to_dict()
    assert read_published(SLOT, content) == document(4)
    with pytest.raises(InvalidPolicy, match=f"was profiled for '{SLOT}'"):
        read_published("default-0123456789abcdef", content)
    with pytest.raises(InvalidPolicy, match=r"'Toy-0-1' is not served here.*there is Wan-1"):
        check_model(document(4), ["Wan-1"])
    check_model(document(4), ["Wan-1", KEY.model])
    check_model(document(4), [])


def test_a_canary_has_its_share() -> None:
    """Of 4000 jobs 10 % within four standard deviations, the same ones each time; a larger share has those too."""
    jobs = [f"job_{number}" for number in range(4000)]
    chosen = {job for job in jobs if in_canary(job, 10)}
    assert abs(len(chosen) - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5
    assert chosen == {job for job in jobs if in_canary(job, 10)}
    assert chosen < {job for job in jobs if in_canary(job, 30)}
    assert all(in_canary(job, 100) for job in jobs)


def test_a_configuration_has_the_documents_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each for the quality that its file's name begins with; the folder that is looked at unasked needn't be there."""
    monkeypatch.chdir(tmp_path)
    assert parse_config({"model": MODEL}).policies == {}
    folder = tmp_path / POLICY_FOLDER
    folder.mkdir(parents=True)
    save_policy(document(4), folder / f"{SLOT}.json")
    save_policy(document(5, steps=9), folder / "default-of-nine-steps.yaml")
    save_policy(document(6), folder / "high.json")
    (folder / "README.md").write_text("none of them")
    expected = {
        "default": [document(4).to_dict(), document(5, steps=9).to_dict()],
        "high": [document(6).to_dict()],
    }
    assert parse_config({"model": MODEL}).policies == expected
    config = parse_config({"model": MODEL, "policies": str(folder)})
    assert parse_config({"model": MODEL, "policies": config.policies}).policies == expected


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("mine.json", None, "must begin with one of default, high, balanced, fast"),
        ("high.json", '"interval"', "format: must be 'warpcache-policy'"),
        ("high.json", "{", "can't be read"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: str | None, told: str) -> None:
    """Before anything is served, by name."""
    if content is None:
        save_policy(document(4), tmp_path / name)
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidConfig, match=told) as refused:
        parse_config({"model": MODEL, "policies": str(tmp_path)})
    assert name in refused.value.message
    assert refused.value.param == "policies"


@pytest.mark.parametrize(
    ("policies", "told"),
    [
        ("no/such", "policies = 'no/such': No such file"),
        ({"exact": []}, "policies"),
        ({"high": [{"format": "other"}]}, "policies: format: must be"),
    ],
)
def test_other_documents_are_refused(policies: object, told: str) -> None:
    """A folder that isn't there, a quality that has no slot, and what is no document."""
    with pytest.raises(InvalidConfig, match=told):
        parse_config({"model": MODEL, "policies": policies})


def test_a_key_is_equal_however_it_was_read() -> None:
    """Whole numbers for what isn't one are as good."""
    fields = {name: getattr(KEY, name) for name in PolicyKey.__slots__}
    assert PolicyKey(**{**fields, "shift": 3, "guidance_scale": 4}).digest == KEY.digest
