"""What `auto` refuses."""

import pytest

from warpcache_ray.core.policies.auto import Auto


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"max_calls": 0}, "max_calls: 0 .* 1 or more"),
        ({"max_calls": 5, "target_psnr": 30.0}, "target_psnr: 30.0 .* left out where max_calls"),
        ({"target_psnr": 0.0}, "target_psnr: 0.0 .* above 0"),
        ({"answer": -1.0}, "answer: -1.0"),
        ({"trust": 1.5}, "trust: 1.5 .* from 0 to 1"),
    ],
    ids=str,
)
def test_refusals(parameters, told):
    """Each names the field, its value and what is allowed."""
    with pytest.raises(ValueError, match=told):
        Auto(**parameters)
