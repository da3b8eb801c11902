"""The page in headless Chromium, over a service whose replica paints: what a visitor does, from the first look on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from painter import Painter, painting
from playwright.sync_api import Browser, Page, expect, sync_playwright

from warpcache_ray.access_config import AccessConfig, ApiKey, digest
from warpcache_ray.config import Defaults, Limits, ModelConfig, ServiceConfig
from warpcache_ray.page_config import PageConfig
from warpcache_ray.store.server import EmbeddedServer

pytestmark = pytest.mark.slow

DEFAULTS = Defaults(height=32, width=48, num_frames=5, num_inference_steps=4, fps=8)
MODEL = ModelConfig("toy", device="cpu", defaults=DEFAULTS, limits=Limits(height=128, width=128))
PAGE = PageConfig(("a red square",), "bench/results/toyworld-wan/bench.json")
CONFIG = ServiceConfig(MODEL, name="painter", page=PAGE)
KEY = "wc_secret"
KEYS = AccessConfig((ApiKey("visitor", digest(KEY)),))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "these tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """One that reaches nothing but this machine, and says nothing on its console that isn't known."""
    context = browser.new_context(service_workers="block")
    strangers: list[str] = []
    context.on(
        "request",
        lambda r: (
            None if re.match(r"(http://127.0.0.1:|blob:|data:)", r.url) else strangers.append(r.url)
        ),
    )
    page = context.new_page()
    page.set_default_timeout(15_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda said: errors.append(said.text) if "Content Security Policy" in said.text else None,
    )
    yield page
    context.close()
    assert (strangers, errors) == ([], [])


Serve = Callable[[ServiceConfig], tuple[str, Painter]]


@pytest.fixture
def service(
    request: pytest.FixtureRequest, store_server: EmbeddedServer, free_port: int, tmp_path: Path
) -> Iterator[tuple[str, Painter]]:
    """Its address, and its replica."""
    access = getattr(request, "param", AccessConfig())
    config = replace(CONFIG, access=access, results=str(tmp_path))
    with painting(config, store_server, free_port, tmp_path) as painter:
        yield f"http://127.0.0.1:{free_port}/", painter


def ask(page: Page, prompt: str = "a red square", quality: str = "default") -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label(quality, exact=True).check()
    page.get_by_role("button", name="Generate").click()


def test_a_visitor_generates_and_compares(page: Page, service: tuple[str, Painter]) -> None:
    """An example, its video, what the cache did at each step; then the uncached one beside it, with PSNR and SSIM; the
    front has the setting and the video. Comparing again asks for no second job."""
    address, _ = service
    page.goto(address)
    expect(page.locator("#quality-hint")).to_have_text(
        "worldcache: as many calls as it needs (configuration)"
    )
    page.get_by_role("button", name="a red square").click()
    page.get_by_role("button", name="Generate").click()
    video = page.get_by_label("Video: a red square")
    expect(video).to_be_visible()
    expect(page.locator("video").first).to_have_js_property("videoWidth", 48)
    expect(page.locator("#tiles")).to_contain_text("of 4")
    expect(page.locator("#timeline svg rect.recompute")).to_have_count(4)
    expect(page.locator("#timeline svg path.drift")).to_have_count(2)
    page.get_by_label("Step", exact=True).press("ArrowRight")
    expect(page.locator("#step-said")).to_contain_text(
        "cond: warp by blend at drift 0.03, threshold 0.08"
    )
    page.get_by_role("button", name="Compare with uncached").click()
    expect(page.get_by_label("Uncached video: a red square")).to_be_visible()
    expect(page.locator("#comparison")).to_contain_text(
        re.compile(r"PSNR against uncached\s*3\d\.\d dB")
    )
    expect(page.locator("#comparison")).to_contain_text("compressed")
    expect(page.locator("#front-chart")).to_contain_text("this video, 3")
    page.go_back()
    expect(page.locator("#theirs")).to_be_hidden()
    page.go_back()
    expect(page.get_by_text("Describe a video")).to_be_visible()
    page.go_forward()
    page.get_by_role("button", name="Compare with uncached").click()
    expect(page.locator("#comparison")).to_be_visible()
    expect(page.locator("#jobs li")).to_have_count(2)


def test_progress_reload_and_cancel(page: Page, service: tuple[str, Painter]) -> None:
    """Steps are shown as they are made; a page that is loaded anew in mid-job takes it up; a cancelled job says so."""
    address, painter = service
    painter.pace.clear()
    page.goto(address)
    ask(page)
    progress = page.get_by_role("progressbar")
    expect(progress).to_have_js_property("value", 0.5)
    expect(page.locator("#progress-label")).to_contain_text("step 2 of 4")
    expect(page.locator("#queue")).to_contain_text("1 running")
    page.reload()
    expect(progress).to_have_js_property("value", 0.5)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Cancelled.", exact=True)).to_be_visible()
    expect(progress).to_be_hidden()
    painter.pace.set()
    ask(page, "another square")
    expect(page.get_by_label("Video: another square")).to_be_visible()


def test_what_goes_wrong_is_shown(page: Page, service: tuple[str, Painter]) -> None:
    """No prompt: the form says so. A field that the service refuses is marked, with the reason. A job that fails shows
    why."""
    address, _ = service
    page.goto(address)
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_attribute("aria-invalid", "true")
    page.get_by_text("Settings", exact=True).click()
    seed = page.get_by_label("Seed", exact=True)
    seed.fill("1e30")
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text("seed")
    expect(seed).to_have_attribute("aria-invalid", "true")
    expect(seed).to_be_focused()
    seed.fill("")
    ask(page, "fail, please")
    expect(page.get_by_text("the paint has run out (generation_failed)")).to_be_visible()
    expect(page.locator("#said")).to_have_text("Video failed. the paint has run out")


@pytest.mark.parametrize("service", [KEYS], indirect=True)
def test_a_key_is_asked_for_and_kept_for_the_tab(page: Page, service: tuple[str, Painter]) -> None:
    """With keys the page asks for one, again if it is wrong; then events, video and comparison come with it. No other
    tab has it."""
    address, _ = service
    page.goto(address)
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("Key").fill("wc_wrong")
    dialog.get_by_label("Key").press("Enter")
    expect(dialog).to_contain_text("unknown")
    dialog.get_by_label("Key").fill(KEY)
    dialog.get_by_label("Key").press("Enter")
    expect(dialog).to_be_hidden()
    ask(page)
    expect(page.locator("video").first).to_have_js_property("videoWidth", 48)
    page.get_by_role("button", name="Compare with uncached").click()
    expect(page.locator("#comparison")).to_contain_text("dB")
    assert page.evaluate("[localStorage.length, document.cookie, sessionStorage.length]") == [
        0,
        "",
        1,
    ]
    other = page.context.new_page()
    other.goto(address)
    asked = other.get_by_role("dialog", name="API key")
    expect(asked).to_be_visible()
    other.keyboard.press("Escape")
    expect(asked).to_be_hidden()
    expect(other.get_by_role("alert")).to_contain_text("an API key is needed")
    other.get_by_role("button", name="API key").click()
    expect(asked).to_be_visible()


def test_it_fits_a_phone_and_a_keyboard(page: Page, service: tuple[str, Painter]) -> None:
    """Nothing is wider than a phone. The tab key reaches the form in order, Control and Enter send it; whoever wants no
    motion gets a video that stands still. Every field has a name."""
    address, _ = service
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(reduced_motion="reduce", color_scheme="dark")
    page.goto(address)
    expect(page.get_by_role("button", name="a red square")).to_be_visible()
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.focus()
    for expected in ("a red square", "quality"):
        page.keyboard.press("Tab")
        assert (
            page.evaluate("document.activeElement.name || document.activeElement.textContent")
            == expected
        )
    prompt.fill("a square")
    prompt.press("Control+Enter")
    video = page.locator("video")
    expect(video).to_have_js_property("readyState", 4)
    expect(video).to_have_js_property("paused", True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    unnamed = (
        "[...document.querySelectorAll('input, textarea')].filter((f) => !f.labels.length).length"
    )
    assert page.evaluate(unnamed) == 0


def test_the_description_needs_no_other_host(page: Page, service: tuple[str, Painter]) -> None:
    """Swagger UI shows the routes; the fixture sees that it asks nobody else."""
    page.goto(f"{service[0]}docs")
    expect(page.get_by_text("/jobs/{job_id}/fidelity")).to_be_visible()
