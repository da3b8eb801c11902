"""What the service is asked about each acknowledged job."""

import time
from dataclasses import replace

import pytest
from arrivals import Arrival
from audit import Verdict, audit
from faulty import Fault
from journey import Http, Outcome, travel
from requests.adapters import HTTPAdapter

from warpcache_ray.access_config import AccessConfig, ApiKey, RateLimits, digest, make_key
from warpcache_ray.store.events import Event

SHORT = {"prompt": "a", "num_inference_steps": 2}
SLOW = {"prompt": "a", "num_inference_steps": 20}
LONG = {"prompt": "a", "num_inference_steps": 100}


def _travel(http, body=SHORT, **rest) -> Outcome:
    outcome = Outcome(Arrival(0.0, body, **rest))
    travel(http, outcome, time.monotonic())
    return outcome


def _audit(http, *outcomes, patience_s=5.0):
    return audit(lambda outcome: http, outcomes, time.monotonic() + patience_s)


def test_jobs_that_ended_well(service, http):
    """One end each, the one that the client saw; arrivals without a job have no finding."""
    made, cancelled = _travel(http), _travel(http, LONG, cancel_after_s=0.1)
    findings = _audit(http, made, cancelled, Outcome(Arrival(0.0, SHORT), refusal="queue_full"))
    assert [f.verdict for f in findings] == [Verdict.SUCCEEDED, Verdict.CANCELLED]
    assert [f.ends for f in findings] == [("succeeded",), ("cancelled",)]
    assert not any(f.twice or f.without_video for f in findings)


def test_jobs_at_work_are_waited_for(service, http):
    """As long as there is time for it."""
    job = service.call(service.hub.submit(SHORT, {"name": "never"}))
    outcome = Outcome(Arrival(0.0, SHORT), job["id"])
    (finding,) = _audit(http, outcome)
    assert (finding.verdict, finding.without_video) == (Verdict.SUCCEEDED, True)
    job = service.call(service.hub.submit(LONG, {"name": "never"}))
    (finding,) = _audit(http, Outcome(Arrival(0.0, LONG), job["id"]), patience_s=0.0)
    assert finding.verdict is Verdict.UNFINISHED


def test_a_job_that_is_unknown_is_lost(service, http):
    """The others are found all the same."""
    outcomes = [_travel(http) for _ in range(2)]
    service.forget(outcomes[0].job_id)
    verdicts = [finding.verdict for finding in _audit(http, *outcomes)]
    assert verdicts == [Verdict.LOST, Verdict.SUCCEEDED]


def test_a_second_end_is_seen(service, http):
    """Told as another event, or by a record that is no longer what its client had."""
    told, changed = _travel(http), _travel(http)

    async def tell() -> None:
        store = (await service.hub._jobs()).store
        await store.events.tell(told.job_id, Event("step", {}))
        await store.events.tell(told.job_id, Event("succeeded", told.record))

    service.call(tell())
    changed.record = changed.record | {"fence": 2}
    findings = _audit(http, told, changed, replace(_travel(http)))
    assert [finding.twice for finding in findings] == [True, True, False]
    assert findings[0].ends == ("succeeded", "succeeded")


def test_a_service_that_is_gone(service, http, impatient):
    """Of nothing that can't be asked for is said that it is well."""
    outcomes = [_travel(http) for _ in range(2)]
    service.faulty.faults += [Fault("GET", "", status=503)] * 99
    assert [f.verdict for f in _audit(impatient, *outcomes)] == [Verdict.UNFINISHED] * 2


def test_one_that_asked_too_often_for_too_long(service, http, impatient):
    """Nothing is known of its job, which isn't lost; the others are asked for all the same."""
    outcomes = [_travel(http) for _ in range(2)]
    service.faulty.faults += [Fault("GET", str(outcomes[0].job_id), status=429)] * 99
    verdicts = [finding.verdict for finding in _audit(impatient, *outcomes)]
    assert verdicts == [Verdict.UNFINISHED, Verdict.SUCCEEDED]


KEYS = {name: make_key() for name in ("alice", "bob")}
BOTH = tuple(ApiKey(name, digest(key)) for name, key in KEYS.items())


def _client(service, key: str) -> Http:
    return Http(service.url, HTTPAdapter(), lambda *_: None, key)


@pytest.mark.parametrize("access", [AccessConfig(BOTH)])
def test_clients_with_keys_of_their_own(service):
    """Each one's jobs are asked for with its own key. To another's they are unknown; a key that the service refuses
    says nothing of them."""
    outcomes = [_travel(_client(service, key), client=key) for key in (KEYS["alice"], KEYS["bob"])]

    def verdicts(key_of):
        until = time.monotonic() + 5.0
        findings = audit(lambda outcome: _client(service, key_of(outcome)), outcomes, until)
        return [finding.verdict for finding in findings]

    assert verdicts(lambda outcome: outcome.arrival.client) == [Verdict.SUCCEEDED] * 2
    assert verdicts(lambda outcome: KEYS["bob"]) == [Verdict.LOST, Verdict.SUCCEEDED]
    assert verdicts(lambda outcome: make_key()) == [Verdict.UNFINISHED] * 2


@pytest.mark.parametrize("access", [AccessConfig(BOTH, rate=RateLimits(requests="4/second"))])
def test_clients_with_a_rate(service):
    """Who polls more often than allowed waits as it is told to, has its video, and the audit an answer."""
    alice = KEYS["alice"]
    outcome = _travel(_client(service, alice), SLOW, client=alice, listens=False)
    assert (outcome.resent > 0, outcome.video_bytes > 0) == (True, True)
    until = time.monotonic() + 5.0
    findings = audit(lambda of: _client(service, of.arrival.client), [outcome] * 4, until)
    assert [finding.verdict for finding in findings] == [Verdict.SUCCEEDED] * 4
