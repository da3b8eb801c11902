import dataclasses
import json

import pytest

from warpcache_ray.core.policies import POLICIES
from warpcache_ray.core.policies.interval import Interval
from warpcache_ray.errors import InvalidPolicy
from warpcache_ray.policy_spec import (
    describe_policy,
    load_policy,
    parameters_of,
    parse_policy,
    save_policy,
    summarize_policy,
)


@pytest.mark.parametrize("name", POLICIES)
def test_a_name_gives_the_defaults(name):
    """Each policy is found by its name, and by a mapping of nothing else."""
    assert parse_policy(name) == parse_policy({"name": name}) == POLICIES[name]()


@pytest.mark.parametrize("name", POLICIES)
def test_descriptions_read_back(name):
    """What `describe_policy` writes, also through JSON's lists, is the same policy again."""
    policy = POLICIES[name](warmup=4, steps=(2, 9))
    description = describe_policy(policy)
    assert parse_policy(description) == policy
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in description.items()}
    assert parse_policy(listed) == policy
    assert list(description) == ["name", *parameters_of(type(policy))]


@pytest.mark.parametrize("spec", ["interval", {"name": "interval", "every": 9}, Interval(every=9)])
def test_further_parameters_win(spec):
    """Keyword parameters replace those of a name, a mapping or a policy."""
    assert parse_policy(spec, every=3) == Interval(every=3)


def test_a_policy_is_taken_as_it_is():
    """Without further parameters it's the same object, and frozen."""
    policy = Interval(every=3)
    assert parse_policy(policy) is policy
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.every = 4


@pytest.mark.parametrize("spec", ["magic", {"name": "magic"}, {"every": 2}, {"name": []}, None])
def test_unknown_policies(spec):
    """The refusal lists those that there are."""
    with pytest.raises(InvalidPolicy, match="never, interval, first_block, worldcache") as caught:
        parse_policy(spec)
    assert caught.value.param == "policy"


@pytest.mark.parametrize("spec", [{"evry": 2}, {"every": 2, "evry": 2}, {1: 2, "evry": 2}], ids=str)
def test_unknown_parameters(spec):
    """The refusal lists those that the policy has."""
    with pytest.raises(InvalidPolicy, match=r"has no parameter .* it has: warmup, .*, every"):
        parse_policy({"name": "interval", **spec})


@pytest.mark.parametrize(
    ("name", "field", "value", "allowed"),
    [
        ("interval", "every", "often", "integer"),
        ("interval", "every", 0, "1 or more"),
        ("interval", "every", None, "integer"),
        ("interval", "warmup", 1.5, "integer"),
        ("interval", "max_skips", 0, "1 or more"),
        ("interval", "blocks", [3, 2], "0 <= first < end"),
        ("interval", "steps", "all", "tuple"),
        ("first_block", "threshold", -0.1, "above 0"),
        ("first_block", "probe_depth", 0, "1 or more"),
        ("worldcache", "threshold", float("nan"), "finite"),
        ("worldcache", "max_gain", 0.0, "above 0"),
        ("worldcache", "cfc", "perhaps", "boolean"),
        ("warpcache", "base_threshold", 0.0, "above 0"),
        ("warpcache", "warp_threshold", 0.5, "in 0 to base_threshold, 0.12"),
        ("warpcache", "metric", "l3", "'cosine' or 'l2'"),
        ("warpcache", "motion_scale", -1.0, "0 or more"),
        ("warpcache", "probe_depth", 1, "0"),
        ("dicache", "threshold", 0.0, "above 0"),
        ("dicache", "gains", (2.0, 1.0), "0 <= low <= high"),
        ("dicache", "retention", 1.5, "in 0 to 1"),
        ("teacache", "threshold", 0.0, "above 0"),
        ("teacache", "coefficients", (1.0, 2.0), "five numbers"),
        ("easycache", "threshold", -1.0, "above 0"),
        ("easycache", "space", "latent", "'residual' or 'velocity'"),
        ("magcache", "ratios", (1.0, 0.0), "above 0"),
        ("magcache", "threshold", 0.0, "above 0"),
        ("magcache", "site", "layer", "blocks or output"),
        ("taylorseer", "order", 3, "0, 1 or 2"),
        ("taylorseer", "interval", 0, "1 or more"),
        ("taylorseer", "site", "attention", "'output', 'blocks' or 'layer'"),
        ("lemica", "schedule", (3, 3), "each above the one before"),
        ("lemica", "schedule_steps", 0, "above the schedule's last, 0"),
        ("guidance", "every", 0, "1 or more"),
        ("guidance", "alpha1", -0.1, "0 or more"),
        ("guidance", "switch", 1.1, "in 0 to 1"),
    ],
)
@pytest.mark.parametrize("made", [False, True], ids=["mapping", "policy"])
def test_bad_values(name, field, value, allowed, made):
    """The refusal names policy, field, value and what is allowed, however the policy is given."""
    with pytest.raises(InvalidPolicy) as caught:
        parse_policy(POLICIES[name]() if made else name, **{field: value})
    assert caught.value.param == f"policy.{field}"
    for word in (repr(name), field, repr(value), allowed):
        assert word in caught.value.message


@pytest.mark.parametrize("ending", ["json", "yaml", "yml"])
@pytest.mark.parametrize("name", POLICIES)
def test_files_read_back(name, ending, tmp_path):
    """What is saved is loaded again, whatever the policy and the format."""
    policy, path = POLICIES[name](warmup=4, steps=(2, 9)), tmp_path / f"policy.{ending}"
    save_policy(policy, path)
    assert load_policy(path) == policy
    if ending == "json":
        assert json.loads(path.read_text())["name"] == name


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", '{"name": "interval", "every": 0}', ["a.json", "every", "0", "1 or more"]),
        ("a.yaml", "name: interval\nevry: 2", ["a.yaml", "evry", "it has: warmup"]),
        ("a.yaml", "name: magic", ["a.yaml", "'magic'", "never, interval"]),
        ("a.yaml", "- interval", ["a.yaml", "mapping with `name`"]),
        ("a.json", "name: interval", ["a.json", "can't be read"]),
        ("a.yaml", "name: [", ["a.yaml", "can't be read"]),
        ("a.toml", "name = 'interval'", ["a.toml", ".json, .yaml or .yml"]),
        ("a.json", None, ["a.json", "can't be read"]),
    ],
)
def test_bad_files(name, text, words, tmp_path):
    """The refusal names the file, and what is wrong in it."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidPolicy) as caught:
        load_policy(tmp_path / name)
    assert [word for word in words if word not in caught.value.message] == []


def test_a_file_may_name_a_policy_alone(tmp_path):
    """What is left out has its default; a preset is as good as parameters."""
    (tmp_path / "a.yaml").write_text("easycache")
    (tmp_path / "b.yaml").write_text("{name: warpcache, preset: fast}")
    assert load_policy(tmp_path / "a.yaml") == POLICIES["easycache"]()
    assert load_policy(tmp_path / "b.yaml") == parse_policy("warpcache", preset="fast")


@pytest.mark.parametrize(
    ("name", "preset", "known"),
    [("warpcache", "slow", "fast, balanced, quality"), ("interval", "fast", "none")],
)
def test_unknown_presets(name, preset, known):
    """The refusal lists those that the policy has."""
    with pytest.raises(InvalidPolicy, match=f"preset: '{preset}' is not allowed; .*: {known}"):
        parse_policy(name, preset=preset)


def test_a_summary_names_long_lists_by_a_digest():
    """As it does what was measured: it is told at every look at a job."""
    short, long = (summarize_policy({"name": "lemica", "schedule": [0] * n}) for n in (256, 257))
    assert short["schedule"] == [0] * 256
    assert long["schedule"].startswith("sha256:")
