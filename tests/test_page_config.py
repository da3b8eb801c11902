import json
from pathlib import Path

import pytest

from warpcache_ray.config import load_application
from warpcache_ray.errors import InvalidConfig
from warpcache_ray.page_config import PageConfig, read_front


def test_a_front_is_read_from_the_package_or_a_folder(tmp_path: Path) -> None:
    """The demo's configuration names one in the package, an operator one of its own: the same file gives the same."""
    ours = load_application(Path(__file__).parents[1] / "configs" / "toyworld.yaml").page
    front = read_front(ours)
    assert front is not None
    assert front.size == "64×64, 17 frames"
    bench = Path(__file__).parents[1] / "warpcache_ray" / ours.front
    copy = tmp_path / "bench.json"
    copy.write_bytes(bench.read_bytes())
    assert read_front(PageConfig(front=str(copy))) == front


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no such file"),
        ("{", "not a bench.json"),
        ("[]", "not a bench.json"),
        (json.dumps({"methods": {}}), "not a bench.json"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str | None, said: str) -> None:
    """With the field and its value."""
    path = tmp_path / "bench.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidConfig, match=said) as raised:
        read_front(PageConfig(front=str(path)))
    assert raised.value.param == "page.front"
    assert str(path) in raised.value.message
