"""The report of a profile, read as the XML that it is."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from warpcache_ray.policy_document import Certificate, PolicyDocument, PolicyKey, Target
from warpcache_ray.tuning.profiler import describe
from warpcache_ray.tuning.report import render, write_report
from warpcache_ray.tuning.search import Profile
from warpcache_ray.tuning.svg import Chart, heat_map

SVG = "{http://www.w3.org/2000/svg}"
KEY = PolicyKey(
    model="tiny-0-1<b>",
    height=64,
    width=64,
    num_frames=17,
    steps=50,
    scheduler="FlowMatchEulerDiscreteScheduler",
    shift=3.0,
    guidance_scale=4.0,
)
CERTIFICATE = Certificate(
    certified=True,
    requests=124,
    misses=2,
    allowed_misses=2,
    share=0.95,
    delta=0.05,
    share_kept=0.9501,
    policies_tested=3,
    prompts_sha256="0",
)


def _document(profile: Profile, certificate: Certificate | None = None) -> PolicyDocument:
    return describe(KEY, profile, profile.policy, certificate)


def _parsed(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))


@pytest.mark.parametrize("target", [Target("psnr", 30.0), Target("ssim", 0.9), Target("calls", 12)])
def test_it_tells_the_whole_story(invent: Any, target: Target) -> None:
    """Each part is there for each kind of target, drawn within its frame, and nothing is loaded from elsewhere."""
    profile = invent(12, target)
    page = render(_document(profile), profile)
    told = "".join(_parsed(page).itertext())
    assert "block 11" in told
    for name, other in _document(profile).provenance["other_policies"].items():
        assert f"{name}{other['calls']}" in told
    for word in ("12 of 50 calls", str(target), "not certified", "tiny-0-1<b>", "noise_floor"):
        assert word in told
    titles = [e.text for e in _parsed(page).iter("h2")]
    assert len(titles) == 9
    charts = list(_parsed(page).iter(f"{SVG}svg"))
    assert len(charts) == 8
    for chart in charts:
        width, height = map(float, chart.attrib["viewBox"].split()[2:])
        for line in chart.iter(f"{SVG}polyline"):
            numbers = [float(n) for n in re.split(r"[ ,]", line.attrib["points"])]
            assert all(0 <= x <= width for x in numbers[::2])
            assert all(0 <= y <= height for y in numbers[1::2])
    assert not re.search(r"<script|https?://(?!www\.w3\.org/2000/svg)", page)


def test_the_certificate_is_told(invent: Any, tmp_path: Path) -> None:
    """Misses, how many were allowed, and the bound; or that it failed."""
    profile = invent(12)
    path = tmp_path / "made" / "report.html"
    write_report(_document(profile, CERTIFICATE), profile, path)
    told = "".join(_parsed(path.read_text()).itertext())
    assert "2 of 124 fresh requests missed it; 2 were allowed" in told
    assert "95.01%" in told
    failed = replace(CERTIFICATE, certified=False, misses=9)
    told = "".join(_parsed(render(_document(profile, failed), profile)).itertext())
    assert "Not proven that 95% of the requests keep PSNR of 30 dB" in told


def test_charts_scale(invent: Any) -> None:
    """Points land where their values say, on linear and logarithmic axes; what is outside is held at the edge."""
    chart = Chart((0, 10), (0, 100), "x", "y", height=140)
    log = Chart((0, 10), (0.01, 100), "x", "y", height=140, log_y=True)
    assert chart._y(50) == log._y(1.0)
    assert chart._y(1000) == chart._y(100) < chart._y(0)
    assert log._y(0) == log._y(0.01)
    assert chart._x(10) - chart._x(5) == chart._x(5) - chart._x(0)
    ticks = [
        float(t.text or "nan")
        for t in _parsed(log.render()).iter(f"{SVG}text")
        if t.get("class") == "tick"
    ]
    assert [t for t in ticks if t in (0.01, 0.1, 1, 10, 100)] == [10, 0.01, 0.1, 1, 10, 100]
    assert all(map(math.isfinite, ticks))
    cells = list(
        _parsed(heat_map([("a", [0.0, 4.0, 1.0]), ("b", [1.0, 0.0, 0.0])], "value")).iter(
            f"{SVG}rect"
        )
    )
    assert [float(c.attrib["fill-opacity"]) for c in cells] == [0, 1, 0.5, 1, 0, 0]
