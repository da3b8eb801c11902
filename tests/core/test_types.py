import pytest
import torch

from warpcache_ray.core.types import (
    Action,
    BranchState,
    Decision,
    Features,
    Grid,
    Snapshot,
    Step,
)


def _snapshot(index: int) -> Snapshot:
    return Snapshot(Step(index), torch.full((1, 2, 2), float(index)))


def test_grid_counts_its_tokens():
    """Frames × rows × columns."""
    assert Grid(2, 3, 4).tokens == 24


@pytest.mark.parametrize("action", Action)
def test_everything_but_a_recompute_skips(action):
    """REUSE and WARP skip."""
    assert Decision(action, "").skips == (action != "recompute")


def test_probe_residual_is_what_the_probe_added():
    """Probe minus input."""
    features = Features(torch.ones(1, 2, 2), torch.full((1, 2, 2), 3.0), Grid(1, 1, 2))
    assert torch.equal(features.probe_residual, torch.full((1, 2, 2), 2.0))


@pytest.mark.parametrize(("window", "kept"), [(0, []), (1, [2]), (2, [2, 1])])
def test_window_keeps_the_last_recomputes(window, kept):
    """After three recomputes the last `window` snapshots remain, newest first."""
    state = BranchState()
    for index in range(3):
        state = state.after_recompute(_snapshot(index), window)
    snapshots = [s for s in (state.latest, state.previous) if s is not None]
    assert [s.step.index for s in snapshots] == kept


def test_skips_count_up_to_the_next_recompute():
    """A skip adds one and keeps the snapshots; a recompute starts again; the old state stays as it was."""
    fresh = BranchState().after_recompute(_snapshot(0), 2)
    skipped = fresh.after_skip().after_skip()
    assert (fresh.skips, skipped.skips) == (0, 2)
    assert skipped.latest is fresh.latest
    assert skipped.after_recompute(_snapshot(1), 2).skips == 0


def test_shared_tensors_count_once():
    """Bytes of both snapshots, a tensor in two fields of one counted once."""
    tensor = torch.zeros(1, 4, 4)
    snapshot = Snapshot(Step(0), tensor, input=tensor, probe=torch.zeros(1, 4, 4))
    assert snapshot.nbytes == 2 * tensor.nbytes
    assert BranchState(snapshot, _snapshot(1)).nbytes == 2 * tensor.nbytes + 16
    assert BranchState().nbytes == 0
