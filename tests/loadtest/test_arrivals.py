"""When requests come, and what they ask."""

import json
import random
from itertools import islice, pairwise

import pytest
from arrivals import Arrival, Load, Mix, poisson, read_mix, read_shape, replay

LOAD = Load(
    seed=3,
    shapes=read_mix("--shapes", "32x48x9:1,64x64x17:3", read_shape),
    priorities=read_mix("--priorities", "low,high:3", str),
    cancel_share=0.25,
)
MANY = 4000


def _first(rate: float, load: Load, many: int = MANY) -> list[Arrival]:
    return list(islice(poisson(rate, load), many))


def test_the_clock_is_poissons():
    """Gaps have the mean and the deviation of an exponential of this rate, and know nothing of each other."""
    times = [arrival.at for arrival in _first(2.0, LOAD)]
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / MANY
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / MANY) ** 0.5
    together = sum((a - mean) * (b - mean) for a, b in pairwise(gaps)) / MANY
    assert mean == pytest.approx(0.5, rel=0.06)
    assert deviation == pytest.approx(0.5, rel=0.1)
    assert abs(together / deviation**2) < 0.06


def test_a_seed_is_a_load():
    """The same one gives the same arrivals, another one others."""
    assert _first(2.0, LOAD, 50) == _first(2.0, LOAD, 50)
    assert _first(2.0, LOAD, 50) != _first(2.0, Load(seed=4), 50)


def test_requests_are_mixed_as_asked():
    """Shapes, priorities, cancellations and listeners in the given shares; each request with a seed of its own."""
    arrivals = _first(1.0, LOAD)
    bodies = [arrival.body for arrival in arrivals]
    large = sum(body["height"] == 64 for body in bodies)
    high = sum(body["priority"] == "high" for body in bodies)
    cancelled = [a.cancel_after_s for a in arrivals if a.cancel_after_s is not None]
    listening = sum(arrival.listens for arrival in arrivals)
    for count, share in ((large, 0.75), (high, 0.75), (len(cancelled), 0.25), (listening, 0.5)):
        assert count / MANY == pytest.approx(share, abs=0.03)
    assert max(cancelled) <= LOAD.cancel_within_s
    assert {(b["height"], b["width"], b["num_frames"]) for b in bodies} == {
        (32, 48, 9),
        (64, 64, 17),
    }
    assert len({body["seed"] for body in bodies}) == MANY


def test_mixes():
    """Weights are relative, and one where they are left out; no shape is the service's own."""
    mix = read_mix("--steps", "10:3, 20", int)
    assert mix == Mix((10, 20), (3.0, 1.0))
    assert {mix.draw(random.Random(n)) for n in range(20)} == {10, 20}
    assert read_mix("--shapes", "", read_shape) == Mix(({},), (1.0,))


@pytest.mark.parametrize(
    ("text", "read", "said"),
    [
        ("a", int, "--x: 'a' is not allowed"),
        ("1,,2", int, "--x: '' is not allowed"),
        ("1:b", int, "--x: '1:b' is not allowed"),
        ("1:0", int, "weight 0 is not allowed; it must be above 0"),
        ("1:nan", int, "weight nan is not allowed"),
        ("3x4", read_shape, "a shape is HEIGHTxWIDTHxFRAMES"),
        ("3x4xb", read_shape, "'3x4xb' is not allowed"),
    ],
)
def test_mixes_that_cant_be(text, read, said):
    """The message names the option, the part and what is allowed."""
    with pytest.raises(ValueError, match=said):
        read_mix("--x", text, read)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_rates_that_cant_be(rate):
    """Before the first arrival."""
    with pytest.raises(ValueError, match=r"rate = .* is not allowed; it must be above 0"):
        poisson(rate, LOAD)


@pytest.mark.parametrize("name", ["cancel_share", "events_share"])
def test_shares_that_cant_be(name):
    """Neither below 0 nor above 1."""
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"{name} = {share} is not allowed; it must be 0 to 1"):
            Load(**{name: share})


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_trace_is_replayed(ending, tmp_path):
    """Times, fields and clients as its rows have them; what they leave out is left to the service."""
    path = tmp_path / f"trace.{ending}"
    rows = [
        {"t": 0.5, "prompt": "a, b", "height": 32, "width": 48, "frames": 9, "steps": 4},
        {"t": 0.5, "priority": "high", "client": "me"},
    ]
    if ending == "csv":
        path.write_text(
            "t,prompt,height,width,frames,steps,priority,client\n"
            '0.5,"a, b",32,48,9,4,,\n0.5,,,,,,high,me\n'
        )
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    first, second = replay(path, Load())
    sizes = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 4}
    assert (first.at, first.body, first.client) == (
        0.5,
        {"prompt": "a, b", "seed": 0, **sizes},
        None,
    )
    assert second.body.keys() == {"prompt", "seed", "priority"}
    assert (second.at, second.body["priority"], second.client) == (0.5, "high", "me")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"t": 1, "colour": 1}, r"line 2: 'colour' is unknown; there are t, prompt"),
        ({"prompt": "a"}, r"line 2: t = None is not allowed; it must be at least 1.0"),
        ({"t": 0.9}, r"line 2: t = 0.9 is not allowed; it must be at least 1.0"),
        ({"t": "soon"}, r"line 2: t = 'soon' is not allowed; it must be a float"),
        ({"t": 1, "steps": "4.5"}, r"line 2: steps = '4.5' is not allowed; it must be a int"),
        ([1], r"line 2 is no JSON object"),
    ],
)
def test_traces_that_cant_be(row, said, tmp_path):
    """The message names the line, the field, the value and what is allowed."""
    path = tmp_path / "trace.jsonl"
    path.write_text(f'{{"t": 1.0}}\n{json.dumps(row)}\n')
    with pytest.raises(ValueError, match=said):
        list(replay(path, Load()))


def test_a_trace_has_an_ending(tmp_path):
    """Which says how to read it."""
    with pytest.raises(ValueError, match=r"must end in .csv or .jsonl"):
        list(replay(tmp_path / "trace.txt", Load()))
