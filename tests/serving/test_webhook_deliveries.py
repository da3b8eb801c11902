"""Webhooks: deliveries by a real coordinator to real receivers on loopback."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from hubs import CONFIG, SOON, claim
from openai import AsyncOpenAI
from standardwebhooks import Webhook

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import GenerationFailed, Unavailable
from warpcache_ray.outbound_config import OutboundConfig, WebhookConfig
from warpcache_ray.serving import webhooks
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.jobs import Jobs

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
HOOKS = WebhookConfig(secret=SECRET, attempts=4, backoff_s=0.01)


@dataclass
class Receiver:
    """Answers with these statuses, the last one for ever, and keeps what it is sent."""

    answers: list[str]
    held: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    had: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = [line.split(": ", 1) for line in head.split("\r\n")[1:] if line]
        headers = {name.lower(): value for name, value in lines}
        self.had.append((headers, await reader.readexactly(int(headers["content-length"]))))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer == "hold":
            await self.held.wait()
            answer = "200"
        writer.write(f"HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n".encode())
        writer.close()

    async def times(self, count: int) -> None:
        """Waits until it was sent so many."""
        async with asyncio.timeout(SOON):
            while len(self.had) < count:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def receiving(*answers: str, host: str = "127.0.0.1") -> AsyncIterator[Receiver]:
    receiver = Receiver(list(answers))
    server = await asyncio.start_server(receiver.talk, host, 0)
    receiver.port = server.sockets[0].getsockname()[1]
    async with server:
        yield receiver
        receiver.held.set()


def allowing(*receivers: Receiver, **changes: object) -> ServiceConfig:
    """A configuration with which these may be told."""
    ports = tuple(receiver.port for receiver in receivers)
    hosts = ("127.0.0.1", "127.0.0.2")
    outbound = OutboundConfig(
        allow_private_hosts=hosts, allow_http=True, ports=ports, timeout_s=SOON
    )
    return replace(CONFIG, outbound=outbound, webhooks=replace(HOOKS, **changes))


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(webhooks, "LOOK_S", 0.01)
    yield
    webhooks._outbound.cache_clear()


async def submit(hub: Coordinator, url: str | None) -> str:
    """The id of a new job whose end is to be told."""
    request = {"prompt": "a"} | ({"webhook_url": url} if url else {})
    return str((await hub.submit(request, {"name": "never"}))["id"])


async def end(hub: Coordinator, url: str | None, error: dict | None = None) -> str:
    """One that has ended."""
    job_id = await submit(hub, url)
    assert await claim(hub) == (job_id, 1)
    await hub.finish(job_id, 1, {"bytes": 3}, error)
    return job_id


async def told(hub: Coordinator, job_id: str, wanted: Callable[[dict], bool]) -> dict:
    """The delivery's state, once it is as wanted."""
    async with asyncio.timeout(SOON):
        while not wanted(state := (await hub.get(job_id))["webhook"]):
            await asyncio.sleep(0.005)
    return state


def over(state: dict) -> bool:
    return state["next_at"] is None


@pytest.mark.parametrize("ending", ["succeeded", "failed", "cancelled"])
async def test_the_end_is_told(ending, hub):
    """Once, with a signature that the scheme's own library and OpenAI's client accept."""
    async with receiving("204") as receiver:
        await hub.configure(allowing(receiver))
        if ending == "cancelled":
            await hub.cancel(job_id := await submit(hub, receiver.url))
        else:
            error = GenerationFailed("as asked").to_dict() if ending == "failed" else None
            job_id = await end(hub, receiver.url, error)
        state = await told(hub, job_id, over)
        await asyncio.sleep(0.05)
    ((headers, body),) = receiver.had
    message = Webhook(SECRET).verify(body, headers)
    AsyncOpenAI(api_key="x").webhooks.verify_signature(body, headers, secret=SECRET)
    record = await hub.get(job_id)
    assert message["type"] == f"job.{ending}"
    assert message["data"].items() <= record.items()
    assert headers["webhook-id"] == f"evt_{job_id.removeprefix('job_')}"
    assert headers["content-type"] == "application/json"
    assert state["delivered_at"] == pytest.approx(time.time(), abs=SOON)
    assert (state["attempts"], state["last_error"]) == (1, None)
    assert SECRET not in json.dumps(record)


async def test_it_is_told_again_until_it_is_heard(hub):
    """The same message under the same id; the record says what went wrong before."""
    async with receiving("500", "hold") as receiver:
        await hub.configure(allowing(receiver))
        job_id = await end(hub, receiver.url)
        await receiver.times(2)
        state = (await hub.get(job_id))["webhook"]
        assert (state["attempts"], state["last_error"]) == (1, "the receiver answered 500")
        assert state["delivered_at"] is None
        receiver.held.set()
        state = await told(hub, job_id, over)
    assert (state["attempts"], state["last_error"]) == (2, None)
    (first, body), (second, again) = receiver.had
    assert (first["webhook-id"], body) == (second["webhook-id"], again)


async def test_a_receiver_says_when(hub):
    """It has its time, not just the usual wait."""
    async with receiving("429 x\r\nretry-after: 3600") as receiver:
        await hub.configure(allowing(receiver))
        job_id = await end(hub, receiver.url)
        state = await told(hub, job_id, lambda state: state["attempts"] == 1)
        assert state["next_at"] == pytest.approx(time.time() + 3600, abs=SOON)


@pytest.mark.parametrize(("answer", "attempts"), [("500", 4), ("410", 1)])
async def test_it_is_given_up(answer, attempts, hub):
    """After so many attempts, or at once where nobody wants to hear it."""
    async with receiving(answer) as receiver:
        await hub.configure(allowing(receiver))
        state = await told(hub, await end(hub, receiver.url), over)
        await asyncio.sleep(0.05)
        assert len(receiver.had) == attempts
    assert (state["attempts"], state["delivered_at"]) == (attempts, None)
    assert state["last_error"] == f"the receiver answered {answer}"


async def test_a_slow_receiver_delays_only_its_own(hub, monkeypatch):
    """Another host's is told meanwhile, jobs go on; of the slow one's no more wait than may, and none is lost."""
    monkeypatch.setattr(webhooks, "OF_A_HOST", 2)
    async with receiving("hold") as slow, receiving("200", host="127.0.0.2") as quick:
        await hub.configure(allowing(slow, quick))
        late = [await end(hub, slow.url) for _ in range(3)]
        await slow.times(2)
        state = await told(hub, await end(hub, f"http://127.0.0.2:{quick.port}/"), over)
        assert state["delivered_at"] is not None
        assert len(slow.had) == 2
        slow.held.set()
        for job_id in late:
            assert (await told(hub, job_id, over))["delivered_at"] is not None
        assert len({headers["webhook-id"] for headers, _ in slow.had}) == len(slow.had) == 3


async def test_there_are_never_too_many_under_way(hub, monkeypatch):
    """Whoever comes later waits for a place."""
    monkeypatch.setattr(webhooks, "AT_ONCE", 1)
    async with receiving("hold") as slow, receiving("200", host="127.0.0.2") as other:
        await hub.configure(allowing(slow, other))
        await end(hub, slow.url)
        await slow.times(1)
        job_id = await end(hub, f"http://127.0.0.2:{other.port}/")
        await asyncio.sleep(0.1)
        assert other.had == []
        slow.held.set()
        await told(hub, job_id, over)


async def test_whoever_takes_over_tells_it(application, store_server, monkeypatch):
    """A coordinator that is gone after the job's end, before or in the middle of a delivery, leaves that to the next
    one: what was sent is sent again under the same id, what was told isn't."""
    async with receiving("200", "hold", "200") as receiver:
        config = allowing(receiver)
        gone = Coordinator(application, config, store_server)
        heard = await end(gone, receiver.url)
        await told(gone, heard, over)
        halfway = await end(gone, receiver.url)
        await receiver.times(2)
        monkeypatch.setattr(webhooks, "LOOK_S", 3600.0)
        await asyncio.sleep(0.05)
        unsaid = await end(gone, receiver.url)
        monkeypatch.setattr(webhooks, "LOOK_S", 0.01)
        heir = Coordinator(application, config, store_server)
        for job_id in (halfway, unsaid):
            assert (await told(heir, job_id, over))["delivered_at"] is not None
        ids = [headers["webhook-id"].replace("evt_", "job_") for headers, _ in receiver.had]
        assert ids[:2] == [heard, halfway]
        assert sorted(ids[2:]) == sorted([halfway, unsaid])


async def test_what_was_told_is_noted_when_the_store_is_back(hub, monkeypatch):
    """Until then the receiver isn't asked again."""
    async with receiving("200") as receiver:
        await hub.configure(allowing(receiver))
        change, away = Jobs.change, True

        async def unsteady(self, job_id, transition):
            if away and self.get(job_id).ended:
                raise Unavailable("away")
            return await change(self, job_id, transition)

        monkeypatch.setattr(Jobs, "change", unsteady)
        job_id = await end(hub, receiver.url)
        await receiver.times(1)
        await asyncio.sleep(0.1)
        assert (await hub.get(job_id))["webhook"]["attempts"] == 0
        away = False
        await told(hub, job_id, over)
    assert len(receiver.had) == 1


async def test_what_fails_within_is_told_to_the_log_alone(hub, monkeypatch, caplog):
    """The record has no details, the others are told all the same."""
    async with receiving("200") as receiver:
        await hub.configure(allowing(receiver, attempts=1))
        monkeypatch.setattr(webhooks, "message", lambda job: 1 / 0)
        state = await told(hub, await end(hub, receiver.url), over)
        assert state["last_error"] == "the service failed; see its log"
        assert "ZeroDivisionError" in caplog.text
        monkeypatch.undo()
        monkeypatch.setattr(webhooks, "LOOK_S", 0.01)
        assert (await told(hub, await end(hub, receiver.url), over))["delivered_at"] is not None


FAR = "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"


async def test_an_answer_that_makes_no_sense_is_an_attempt(hub):
    """A date beyond all calendars is no reason to post for ever."""
    async with receiving(f"503 x\r\nretry-after: {FAR}") as receiver:
        await hub.configure(allowing(receiver, attempts=2))
        state = await told(hub, await end(hub, receiver.url), over)
        await asyncio.sleep(0.05)
    assert (state["attempts"], state["last_error"]) == (2, "the receiver answered 503")
    assert len(receiver.had) == 2


async def test_whatever_fails_in_reading_an_answer_counts(hub, monkeypatch, caplog):
    """The attempt was made; the record says that the service failed at it."""
    monkeypatch.setattr(webhooks, "outcome", lambda answer, now: 1 / 0)
    async with receiving("200") as receiver:
        await hub.configure(allowing(receiver, attempts=2))
        state = await told(hub, await end(hub, receiver.url), over)
    assert (state["attempts"], state["last_error"]) == (2, "the service failed; see its log")
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("error", [Unavailable("away"), RuntimeError("no such command")])
async def test_an_attempt_that_cannot_be_noted_isnt_made_again(error, hub, monkeypatch):
    """Whatever the store has against it."""
    async with receiving("200") as receiver:
        await hub.configure(allowing(receiver))
        job_id = await submit(hub, receiver.url)
        assert await claim(hub) == (job_id, 1)
        change, refusals = Jobs.change, []

        async def refused(self, job_id, transition):
            if self.get(job_id).ended and len(refusals) < 3:
                refusals.append(job_id)
                raise error
            return await change(self, job_id, transition)

        monkeypatch.setattr(Jobs, "change", refused)
        await hub.finish(job_id, 1, {"bytes": 3}, None)
        state = await told(hub, job_id, over)
    assert (state["attempts"], len(refusals), len(receiver.had)) == (1, 3, 1)


async def test_a_url_that_is_none_ends_no_courier(hub):
    """It counts as told in vain; the others are told."""
    async with receiving("200") as receiver:
        config = allowing(receiver, attempts=1)
        await hub.configure(config)
        state = await told(hub, await end(hub, "https://[::1"), over)
        assert "webhook_url = 'https://[::1' is not allowed" in state["last_error"]
        assert (await told(hub, await end(hub, receiver.url), over))["delivered_at"] is not None


async def test_a_service_that_lost_its_secret(hub):
    """Nothing goes out unsigned; the record says why."""
    async with receiving("200") as receiver:
        await hub.configure(allowing(receiver, secret="", attempts=1))
        state = await told(hub, await end(hub, receiver.url), over)
    assert "webhooks.secret" in state["last_error"]
    assert receiver.had == []


async def test_the_operators_own_receiver(hub):
    """It is told where a request names nobody, and isn't named to clients; without it nobody is told."""
    async with receiving("200") as receiver:
        await hub.configure(allowing(receiver))
        silent = await end(hub, None)
        await hub.configure(allowing(receiver, url=receiver.url))
        job_id = await end(hub, None)
        await told(hub, job_id, over)
        assert (await hub.get(silent))["webhook"] is None
        assert str(receiver.port) not in json.dumps(await hub.get(job_id))
    assert len(receiver.had) == 1


async def test_what_expires_isnt_told(reaped):
    """Nor what its owner removed: the waits end with the job."""
    async with receiving("500") as receiver:
        config = allowing(receiver, backoff_s=0.2)
        await reaped.configure(config)
        removed = await end(reaped, receiver.url)
        await receiver.times(1)
        await reaped.remove(removed)
        expired = await end(reaped, receiver.url)
        await receiver.times(2)
        await reaped.configure(replace(config, result_ttl_s=1e-6))
        async with asyncio.timeout(SOON):
            while any(job.id == expired for job in await reaped._jobs()):
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.3)
        assert len(receiver.had) == 2
