from pathlib import Path

import pytest

from warpcache_ray.bench.contender import Setting, read_contenders, thin
from warpcache_ray.errors import InvalidConfig

SHIPPED = sorted((Path(__file__).parents[2] / "warpcache_ray/bench/contenders").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "contenders.yaml"
    path.write_text(text)
    return path


def test_settings_lie_over_what_is_fixed(tmp_path):
    """Options are `fixed`, then the setting's own, which also give the label."""
    text = "worldcache: {kind: policy, fixed: {name: worldcache, alpha: 2}, settings: [{threshold: 0.1}]}"
    (found,) = read_contenders(write(tmp_path, text))
    assert found.label == "threshold 0.1"
    assert found.options == {"name": "worldcache", "alpha": 2, "threshold": 0.1}


def test_a_policy_from_a_file(tmp_path):
    """What calibration found is a file; its content, not its name, makes the setting's key."""
    (tmp_path / "found.json").write_text('{"name": "interval", "every": 3}')
    (tmp_path / "same.yaml").write_text("name: interval\nevery: 3\n")
    text = "found: {kind: policy, settings: [{file: found.json}, {file: same.yaml}]}"
    one, other = read_contenders(write(tmp_path, text))
    assert one.options == {"name": "interval", "every": 3}
    assert one.key == other.key
    assert one.label == "file found.json"


@pytest.mark.parametrize(
    "text",
    [
        "a: {kind: magic, settings: [{}]}",
        "a: {kind: policy, settings: []}",
        "a: {kind: policy, settings: [{}], setings: [{}]}",
        "a: {kind: policy, settings: [{file: absent.json}]}",
        "[1]",
        "a: [",
    ],
)
def test_bad_files_are_refused(text, tmp_path):
    """With the file's name."""
    with pytest.raises(InvalidConfig, match=str(tmp_path)):
        read_contenders(write(tmp_path, text))


def test_thin_keeps_both_ends():
    """Evenly spread over each method's list; the methods take turns."""
    settings = [Setting("a", "policy", str(i), {"i": i}) for i in range(9)]
    settings.append(Setting("b", "policy", "only", {}))
    assert [s.label for s in thin(settings, 3)] == ["0", "only", "4", "8"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_files_are_read(path):
    """And no method has two settings of the same name or content."""
    settings = read_contenders(path)
    assert len({(s.method, s.label) for s in settings}) == len(settings)
    assert len({(s.method, s.key) for s in settings}) == len(settings)
