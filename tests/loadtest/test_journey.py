"""A client's way, over real routes and real faults."""

import time

import pytest
from arrivals import Arrival
from faulty import VIDEO, Fault
from journey import UNANSWERED, Http, Outcome, travel

BODY = {"prompt": "a", "num_inference_steps": 4}
LONG = BODY | {"num_inference_steps": 100}


def _travel(http: Http, body: dict = BODY, **rest) -> Outcome:
    outcome = Outcome(Arrival(0.0, body, **rest))
    travel(http, outcome, time.monotonic())
    return outcome


def _jobs(service) -> int:
    return sum(service.call(service.hub.health())["jobs"].values())


@pytest.mark.parametrize("listens", [True, False])
def test_to_the_video(listens, http, told):
    """By events or by polling: the record of a success, its video, and how long each stage took."""
    outcome = _travel(http, listens=listens)
    assert outcome.record["status"] == "succeeded"
    assert outcome.video_bytes == len(VIDEO)
    assert outcome.e2e_s > outcome.run_s > 0
    assert outcome.queue_s >= 0
    assert (outcome.cancel_s, outcome.refusal, outcome.resent) == (None, None, 0)
    assert all(well for _, _, well in told)
    assert (("GET", "/jobs/{id}/events", True) in told) is listens


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "/generate", cut_after=0),
        Fault("POST", "/generate", status=503),
        Fault("POST", "/generate", status=500),
        Fault("POST", "/generate", status=404),
    ],
    ids=["answer lost", "503", "500", "another's 404"],
)
def test_a_request_that_is_sent_again_is_one_job(fault, service, http):
    """Whether the service took it in before the connection broke, or not at all."""
    service.faulty.faults.append(fault)
    outcome = _travel(http)
    assert (outcome.record["status"], outcome.resent, _jobs(service)) == ("succeeded", 1, 1)


def test_a_broken_stream_goes_on_where_it_was(service, http):
    """The client asks for the events after the last one that it had, and hears each once."""
    job = service.call(service.hub.submit(LONG | {"num_inference_steps": 30}, {"name": "never"}))
    service.faulty.faults += [Fault("GET", "/events", cut_after=n) for n in (2, 1)]
    heard = list(http.events(job["id"]))
    assert heard[0] == "queued"
    assert heard.count("queued") == heard.count("running") == heard.count("succeeded") == 1
    assert http.resent == 2


@pytest.mark.parametrize("path", ["/events", "", "/video"])
def test_each_request_is_sent_again(path, service, http):
    """Following and downloading survive a service that is away for a moment, or was asked too often."""
    outcome = Outcome(Arrival(0.0, BODY, listens=path == "/events"))
    service.faulty.faults += [Fault("GET", path, status=status) for status in (502, 429)]
    service.faulty.faults += [Fault("GET", path, cut_after=0)]
    travel(http, outcome, time.monotonic())
    assert (outcome.record["status"], outcome.video_bytes) == ("succeeded", len(VIDEO))
    assert outcome.resent == 3


def test_a_cancellation_is_measured(service, http):
    """From the wish to the end; there is no video."""
    outcome = _travel(http, LONG, cancel_after_s=0.2)
    assert outcome.record["status"] == "cancelled"
    assert 0 < outcome.cancel_s < outcome.e2e_s
    assert outcome.video_bytes == 0


def test_who_cancels_too_late_has_a_video(http):
    """A success is no cancellation, whatever was wished."""
    outcome = _travel(http, BODY, cancel_after_s=1.0)
    assert (outcome.record["status"], outcome.cancel_s) == ("succeeded", None)
    assert outcome.video_bytes == len(VIDEO)


def test_a_full_queue_refuses(service, http):
    """The client is told when to come back, and doesn't ask again."""
    for _ in range(9):
        service.call(service.hub.submit(LONG, {"name": "never"}))
    outcome = _travel(http)
    assert (outcome.refusal, outcome.job_id, outcome.resent) == ("queue_full", None, 0)
    assert outcome.retry_after_s >= 1


def test_a_bad_request_is_refused_with_its_code(http):
    """Nor is it sent again."""
    assert _travel(http, {"prompt": ""}).refusal == "invalid_request"


def test_a_client_gives_up(service, impatient):
    """A service that isn't there acknowledges nothing; one that goes away later leaves an acknowledged job."""
    service.faulty.faults += [Fault("POST", "/generate", status=503)] * 99
    assert _travel(impatient).refusal == UNANSWERED
    service.faulty.faults[:] = [Fault("GET", "", status=503)] * 99
    outcome = _travel(impatient, listens=False)
    assert (outcome.refusal, outcome.record) == (None, None)
    assert outcome.job_id.startswith("job_")
    assert outcome.resent > 1
