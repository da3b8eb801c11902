import pickle
import re

import pytest

from warpcache_ray import errors
from warpcache_ray.errors import WarpCacheError

TREE = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, Exception)]


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_errors_cross_processes(kind):
    """Pickled and back, an error has its class, message, parameter and time to try again."""
    error = pickle.loads(pickle.dumps(kind("told so", "field", 3.0)))
    assert type(error) is kind
    assert (str(error), error.message, error.param) == ("told so", "told so", "field")
    assert error.retry_after_s == 3.0


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_records_carry_all(kind):
    """Message, class, parameter, code and whether it's worth another try."""
    assert kind("told so").to_dict() == {
        "message": "told so",
        "type": kind.__name__,
        "param": None,
        "code": kind.code,
        "retryable": kind.retryable,
    }


def test_codes_are_unique():
    """Each class has a code of its own."""
    assert len({kind.code for kind in TREE}) == len(TREE)


def test_the_docstring_shows_the_tree():
    """Names and statuses in the module's text are those of the classes."""
    rows = re.findall(r"[├└]── (\w+).*?\s(\d{3})\s", f"{errors.__doc__}\n")
    assert dict(rows) == {k.__name__: str(k.status) for k in TREE if k is not WarpCacheError}


@pytest.mark.parametrize("kind", [errors.InvalidRequest, errors.InvalidConfig])
def test_bad_values_are_value_errors(kind):
    """Python users can catch them as such."""
    assert issubclass(kind, ValueError)
