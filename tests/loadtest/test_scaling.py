"""The simulator's own laws, and the committed figures, which are those that it makes."""

from __future__ import annotations

import json

import pytest
from scaling import MAX_REPLICAS, RESULTS, STARTUP_S, contenders, simulate, traces

from warpcache_ray.serving.autoscaling import TargetWait


@pytest.mark.parametrize("contender", contenders(), ids=lambda c: c.name)
def test_every_job_is_made(contender):
    """A burst on one replica, which first has the others to start: nobody is lost or begun before they could be, and
    what was paid for is at least what was done."""
    run = simulate([(0.0, 30.0)] * 12, contender)
    assert (run.jobs, len(run.wait_s)) == (12, 12)
    assert run.wait_p50_s > 0
    assert 30 <= run.wait_max_s <= 30 * 11
    assert run.replica_hours * 3600 >= 12 * 30
    assert 1 < run.most_replicas <= MAX_REPLICAS


def test_replicas_that_start_do_nothing_yet():
    """Two jobs that are longer than a start: the second one waits for the new replica, not for the first job."""
    ours = contenders()[0]
    assert isinstance(ours.policy.__wrapped__, TargetWait)
    run = simulate([(0.0, 600.0)] * 2, ours)
    assert STARTUP_S <= run.wait_max_s <= STARTUP_S + 30


def test_the_committed_figures_are_these():
    """One of them is made anew; and ours is what the README says it is."""
    told = json.loads((RESULTS / "scaling.json").read_text())
    run = simulate(traces()["one flood"], contenders()[0])
    kept = told["traces"]["one flood"]["TargetWait"]
    assert kept == {name: getattr(run, name) for name in kept}
    assert (RESULTS / "scaling.png").stat().st_size > 10_000
