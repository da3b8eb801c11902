import dataclasses

import pytest

from warpcache_ray.core.policies import POLICIES
from warpcache_ray.core.policies.interval import Interval
from warpcache_ray.errors import InvalidPolicy
from warpcache_ray.policy_spec import describe_policy, parameters_of, parse_policy


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
