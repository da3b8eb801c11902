from __future__ import annotations

import pytest

from warpcache_ray.evaluation.protocols import PAI_BENCH, PROTOCOLS, VBENCH, told_scores


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_best_values_are_a_whole_score(protocol) -> None:
    """Each dimension counts from its floor to its ceiling, whatever its weight."""
    best = {name: d.ceiling for name, d in protocol.dimensions.items()}
    worst = {name: d.floor for name, d in protocol.dimensions.items()}
    assert set(protocol.scores(best).values()) == {1.0}
    assert set(protocol.scores(worst).values()) == {0.0}


def test_vbenchs_weights() -> None:
    """Motion counts half among seven, quality four times as much as semantics (its cal_final_score.py)."""
    best = {name: d.ceiling for name, d in VBENCH.dimensions.items()}
    still = VBENCH.scores(best | {"dynamic_degree": 0.0})
    assert still["quality"] == pytest.approx(6 / 6.5)
    assert still["total"] == pytest.approx((4 * 6 / 6.5 + 1) / 5)


def test_nothing_is_made_up() -> None:
    """A group that lacks one dimension has no score, nor has the whole."""
    best = {name: d.ceiling for name, d in PAI_BENCH.dimensions.items()}
    del best["domain_score"]
    assert PAI_BENCH.scores(best) == {"quality": 1.0, "domain": None, "total": None}


def test_every_missing_dimension_can_say_what_it_takes() -> None:
    """All but the one that a video tells by itself."""
    bare = {d.name for p in PROTOCOLS.values() for d in p.dimensions.values() if not d.needs}
    assert bare == {"temporal_flickering"}


def test_what_their_own_programs_write() -> None:
    """VBench's values stand before those of each video; PAI-Bench's answers have a file of their own."""
    assert told_scores({"imaging_quality": [0.6, [{"video_path": "a"}]]}) == {
        "imaging_quality": 0.6
    }
    assert told_scores({"overall_accuracy": 0.8, "total_videos": 2}) == {"domain_score": 0.8}
    with pytest.raises(ValueError, match="neither"):
        told_scores({"imaging_quality": 0.6})
