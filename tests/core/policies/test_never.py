from warpcache_ray.core.policies.never import Never
from warpcache_ray.core.types import Action, BranchState, Snapshot, Step


def test_every_step_is_forced():
    """No step comes to a decision, so no probe is measured."""
    reasons = {Never().forced(BranchState(), Step(i, 10)).reason for i in range(10)}
    assert reasons == {"never"}


def test_nothing_is_kept(make_features):
    """A recompute leaves no snapshot behind."""
    features = make_features(0)
    snapshot = Never().remember(Step(0), features, features.input)
    assert isinstance(snapshot, Snapshot)
    assert BranchState().after_recompute(snapshot, Never.window).nbytes == 0


def test_asked_anyway_it_recomputes():
    """The decision itself is RECOMPUTE too."""
    assert Never().decide(BranchState(), Step(5, 10), None).action is Action.RECOMPUTE
