import pytest

from warpcache_ray.parallel.layout import Layout


@pytest.mark.parametrize(("degrees", "ranks"), [((1, 1, 1), 1), ((4, 2, 1), 8), ((2, 3, 2), 12)])
def test_ranks_are_the_product_of_the_degrees(degrees, ranks):
    """The number of ranks follows from the degrees, so they can't disagree."""
    assert Layout(*degrees).world_size == ranks


@pytest.mark.parametrize("degree", [0, -2])
@pytest.mark.parametrize("name", ["ulysses", "ring", "cfg"])
def test_degrees_are_at_least_one(name, degree):
    """The refusal names degree and value."""
    with pytest.raises(ValueError, match=f"{name}: {degree} is not allowed; it must be 1 or more"):
        Layout(**{name: degree})


def test_one_rank_has_none_to_decode_with():
    """Asked for, it is refused rather than left undone."""
    with pytest.raises(ValueError, match="vae: one rank decodes alone; ulysses, ring or cfg"):
        Layout(vae=True)
    assert Layout(cfg=2, vae=True).world_size == 2
