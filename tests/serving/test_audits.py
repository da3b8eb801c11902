"""What follows of audits' counts, against exact cases and against simulated policies whose miss rate is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from warpcache_ray.guarantee import Promise, Verdict
from warpcache_ray.policy_document import (
    Certificate,
    PolicyDocument,
    PolicyKey,
    Target,
    parse_document,
)
from warpcache_ray.policy_spec import parse_policy
from warpcache_ray.serving.audits import (
    MOST_EVIDENCE,
    Standing,
    Step,
    due,
    keeps,
    promise_of,
    safer,
)

KEY = PolicyKey(
    model="Toy-0-1",
    height=32,
    width=32,
    num_frames=9,
    steps=20,
    scheduler="S",
    shift=None,
    guidance_scale=4.0,
)
DOCUMENT = PolicyDocument(
    key=KEY,
    policy={"name": "auto", "max_calls": 6, "level": 20.0},
    target=Target("ssim", 0.99),
    expected={"calls": 6, "share_kept": 0.97, "share": 0.9},
)
PROMISE = Promise(0.95, 0.05)
AUDITS, POLICIES = 1000, 4000


def limits(verdict: Verdict) -> NDArray[np.int64]:
    """After each number of audits, the fewest misses that break the promise, or the most that prove it to be kept (-1:
    none do)."""
    found, misses = [], 0
    for requests in range(1, AUDITS + 1):
        if verdict is Verdict.BROKEN:
            while (
                Standing(1, PROMISE, requests, misses).verdict is not verdict and misses <= requests
            ):
                misses += 1
            found.append(misses)
        else:
            while misses < requests and Standing(1, PROMISE, requests, misses).verdict is verdict:
                misses += 1
            found.append(misses - 1)
    return np.array(found)


def misses_of(rate: float) -> NDArray[np.int64]:
    """Misses so far, by policy and audit, of policies that truly miss at this rate."""
    drawn = np.random.default_rng(0).random((POLICIES, AUDITS)) < rate
    return drawn.cumsum(axis=1)


@pytest.fixture(scope="module")
def breaking() -> NDArray[np.int64]:
    return limits(Verdict.BROKEN)


def test_a_policy_that_keeps_its_promise_stays(breaking: NDArray[np.int64]) -> None:
    """One that truly keeps just 95 % is stepped down from with a chance of delta at most, over 1000 looks: after every
    audit there is one."""
    ever = (misses_of(0.05) >= breaking).any(axis=1)
    assert 0 < ever.mean() <= PROMISE.delta


def test_a_policy_that_breaks_it_is_found_soon(breaking: NDArray[np.int64]) -> None:
    """At 85 % half of them within 50 audits, 19 of 20 within 150; at 50 % all within 30."""
    found = misses_of(0.15) >= breaking
    assert found[:, :50].any(axis=1).mean() > 0.5
    assert found[:, :150].any(axis=1).mean() > 0.95
    assert (misses_of(0.5) >= breaking)[:, :30].any(axis=1).all()


def test_a_canary_comes_into_force_when_it_is_proven() -> None:
    """One that misses never, after 82 audits; at 99 % nearly all within 400; one just short of the promise with a
    chance of delta at most, ever."""
    proving = limits(Verdict.KEPT)
    assert int((proving >= 0).argmax()) + 1 == 82
    assert (misses_of(0.01) <= proving)[:, :400].any(axis=1).mean() > 0.95
    assert (misses_of(0.0501) <= proving).any(axis=1).mean() <= PROMISE.delta


OPEN = Standing(1, PROMISE, 10, 1)
BROKEN = Standing(1, PROMISE, 20, 10)
KEPT = Standing(1, PROMISE, 200, 0)


@pytest.mark.parametrize(
    ("active", "canary", "previous_is_good", "step"),
    [
        (None, None, True, None),
        (OPEN, OPEN, True, None),
        (KEPT, None, True, None),
        (KEPT, BROKEN, True, Step.WITHDRAW),
        (None, BROKEN, False, Step.WITHDRAW),
        (OPEN, KEPT, True, Step.PROMOTE),
        (None, KEPT, False, Step.PROMOTE),
        (BROKEN, None, True, Step.ROLLBACK),
        (BROKEN, OPEN, True, Step.ROLLBACK),
        (BROKEN, OPEN, False, Step.STEP_DOWN),
        (BROKEN, KEPT, False, Step.PROMOTE),
        (BROKEN, BROKEN, True, Step.WITHDRAW),
    ],
)
def test_the_step_that_is_due(
    active: Standing | None, canary: Standing | None, previous_is_good: bool, step: Step | None
) -> None:
    """The canary's fate first; then the version before comes back, if that is good; else a safer one."""
    assert due(active, canary, previous_is_good) is step


def test_what_is_broken_stays_broken() -> None:
    """Further requests that keep the quality don't mend it."""
    assert replace(KEPT, broken=True).verdict is Verdict.BROKEN


def test_the_promise_is_the_documents() -> None:
    """The certificate's; without one, what the search aimed at; a number of calls promises no quality."""
    certificate = Certificate(
        certified=True,
        requests=59,
        misses=0,
        allowed_misses=0,
        share=0.93,
        delta=0.1,
        share_kept=0.95,
        policies_tested=1,
        prompts_sha256="x",
    )
    assert promise_of(replace(DOCUMENT, certificate=certificate)) == Promise(0.93, 0.1)
    assert promise_of(DOCUMENT) == Promise(0.9, 0.05)
    assert promise_of(replace(DOCUMENT, expected={})) == Promise()
    assert promise_of(replace(DOCUMENT, target=Target("calls", 6))) is None


def test_a_request_keeps_the_target_by_its_metric() -> None:
    """SSIM or PSNR, the bound included."""
    found = {"psnr": 30.0, "ssim": 0.99}
    assert keeps(DOCUMENT, found)
    assert not keeps(DOCUMENT, found | {"ssim": 0.9899})
    decibels = replace(DOCUMENT, target=Target("psnr", 30.0))
    assert keeps(decibels, found)
    assert not keeps(decibels, found | {"psnr": 29.9})


def test_steps_down_end_uncached() -> None:
    """Each makes half of the calls that the one before leaves out, up to all; each is a document, with the target that
    it is held to and nothing that was proven or expected of another policy."""
    document, calls = DOCUMENT, []
    for version in range(1, 6):
        document = safer(document, version)
        assert parse_document(document.to_dict()) == document
        parse_policy(document.policy)
        calls.append(document.expected["calls"])
        assert (document.target, document.certified) == (DOCUMENT.target, False)
        assert document.expected["share_kept"] is None
        assert document.provenance["safer_than_version"] == version
        if document.policy["name"] == "never":
            break
    assert calls == [13, 17, 19, 20]
    assert document.policy["name"] == "never"


@pytest.mark.parametrize("policy", [{"name": "teacache"}, {"name": "auto", "max_calls": None}])
def test_other_policies_step_down_to_none(policy: dict[str, Any]) -> None:
    """Where no number of calls says what is safer, all are made."""
    assert safer(replace(DOCUMENT, policy=policy), 1).policy["name"] == "never"


def test_figures_and_reason_tell_the_same() -> None:
    """For machines and people: counts, the verdict, the interval, the evidence that reached 20 for it; JSON has no
    infinity."""
    figures = BROKEN.figures()
    assert (figures["requests"], figures["misses"], figures["verdict"]) == (20, 10, "broken")
    assert figures["evidence"]["broken"] > 20 > 1 > figures["evidence"]["kept"]
    low, high = figures["miss_rate_within"]
    assert 0.05 < low < 0.5 < high
    assert BROKEN.reason.startswith("promise broken: 10 of 20 audited requests missed")
    certain = Standing(1, PROMISE, 5000, 5000).figures()["evidence"]["broken"]
    assert certain == pytest.approx(np.exp(MOST_EVIDENCE), rel=1e-3)
