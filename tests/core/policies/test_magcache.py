import pytest

from warpcache_ray.core.policies.magcache import MagCache
from warpcache_ray.core.types import Site


@pytest.fixture
def computed(make_features, play):
    """`computed(policy, total)`: the steps that it computes, and all decisions."""

    def run(policy, total=12):
        features = make_features(1)
        decisions = [d for d, _ in play(policy, [(features, features.input)] * total)]
        return [i for i, d in enumerate(decisions) if not d.skips], decisions

    return run


@pytest.mark.parametrize("ratios", [(), (1.0,) * 12])
def test_ratio_one_recomputes_at_k_only(ratios, computed):
    """Magnitudes that never change foretell no error."""
    policy = MagCache(ratios=ratios, retention=0.0, max_skips=3, cooldown=0)
    assert computed(policy)[0] == [0, 4, 8]


def test_errors_gather_as_published(computed):
    """γ = 0.9: |1 - 0.9| + |1 - 0.81| + |1 - 0.729| = 0.561, and from nothing after a recompute."""
    policy = MagCache(ratios=(0.9,) * 12, threshold=0.5, retention=0.0, max_skips=None)
    steps, decisions = computed(policy)
    assert steps == [0, 3, 6, 9, 11]
    assert [d.drift for d in decisions[1:5]] == pytest.approx([0.1, 0.29, 0.561, 0.1])


def test_the_first_fifth_is_kept(computed):
    """`retention` of the run is computed."""
    policy = MagCache(retention=0.2, max_skips=None)
    assert computed(policy, 20)[0] == [0, 1, 2, 3, 19]


def test_ratios_of_another_length_are_read_nearest(computed):
    """Three ratios over five steps: each at the nearest place."""
    policy = MagCache(ratios=(1.0, 0.9, 0.8), threshold=9.0, retention=0.0, max_skips=1, cooldown=0)
    _, decisions = computed(policy, 5)
    assert decisions[1].drift == pytest.approx(0.0)
    assert decisions[3].drift == pytest.approx(0.2)


def test_it_may_stand_at_the_output():
    """Site is a parameter, but of no single block."""
    assert MagCache(site=Site.OUTPUT).site is Site.OUTPUT
    with pytest.raises(ValueError, match="site: 'layer' is not allowed"):
        MagCache(site=Site.LAYER)
