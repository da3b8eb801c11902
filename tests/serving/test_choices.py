"""Which policy serves a request: by what is published, what it asks for, and what stands behind that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from documents import KEY, SLOT, document
from hubs import CONFIG, INFO

from warpcache_ray.policy_slots import slot_id
from warpcache_ray.serving.choices import Choice, Offer, Source, choose, given, key_of, prior


def offers_of(*of: tuple[str, float, int]) -> dict[str, Offer]:
    """For slots of some qualities: the SSIM that each promises, with how many calls."""
    return {
        slot_id(quality, KEY): Offer(
            slot_id(quality, KEY), document(calls, ssim=ssim), Source.REGISTRY, "active", 7
        )
        for quality, ssim, calls in of
    }


def chosen(asked: str | float | None, offers: dict[str, Offer], **of_key: Any) -> Choice:
    """For a request for that quality."""
    key = replace(KEY, **of_key)
    known = {slot: offer.document for slot, offer in offers.items()}
    return choose(asked, key, lambda slot: [offers[s] for s in offers if s == slot], known, CONFIG)


def test_the_key_is_the_requests() -> None:
    """What it leaves out is as the pipeline has it; whole numbers will do for its guidance."""
    assert key_of({"prompt": "a"}, INFO) == KEY
    request = {"height": 48, "num_inference_steps": 20, "guidance_scale": 5, "fps": 8}
    asked = key_of(request, INFO)
    assert asked == replace(KEY, height=48, steps=20, guidance_scale=5.0)
    assert asked.digest == replace(KEY, height=48, steps=20, guidance_scale=5.0).digest


def test_a_name_has_its_slot() -> None:
    """Whatever that promises; a request that asks for nothing has the default one."""
    offers = offers_of(("default", 0.97, 4), ("high", 0.5, 6))
    for asked, quality, calls in ((None, "default", 4), ("high", "high", 6)):
        choice = chosen(asked, offers)
        assert choice.policy["max_calls"] == calls
        assert choice.origin == {
            "source": "registry",
            "quality": quality,
            "slot": slot_id(quality, KEY),
            "version": 7,
            "why": "active",
        }


@pytest.mark.parametrize(
    ("asked", "calls"), [(0.9, 4), (0.95, 4), (0.96, 5), (0.98, 6), (0.985, None)]
)
def test_a_number_has_the_least_that_is_enough(asked: float, calls: int | None) -> None:
    """Of all slots; where none promises as much, nothing is promised."""
    choice = chosen(asked, offers_of(("high", 0.98, 6), ("default", 0.97, 5), ("fast", 0.95, 4)))
    if calls is None:
        assert choice.origin["source"] == "prior"
        assert "no published policy keeps an SSIM of 0.985" in choice.origin["why"]
    else:
        assert (choice.policy["max_calls"], choice.origin["quality"]) == (calls, asked)


def test_a_canary_takes_no_promise_away() -> None:
    """A number that the canary at hand doesn't keep has the active version; the slot's name has the canary."""
    (active,) = offers_of(("high", 0.99, 6)).values()
    canary = replace(active, document=document(3, ssim=0.97), source=Source.CANARY, version=8)

    def both(slot: str) -> list[Offer]:
        return [canary, active] if slot == active.slot else []

    for asked, version in ((0.985, 7), (0.96, 8), ("high", 8)):
        choice = choose(asked, KEY, both, {}, CONFIG)
        assert choice.origin["version"] == version


def test_a_number_is_no_matter_of_decibels() -> None:
    """A promise of another kind than SSIM keeps none."""
    (offer,) = offers_of(("default", 0.99, 4)).values()
    target = replace(offer.document.target, metric="psnr", bound=40.0)
    other = replace(offer, document=replace(offer.document, target=target))
    assert chosen(0.5, {SLOT: other}).origin["source"] == "prior"


@pytest.mark.parametrize("asked", [None, "high", 0.9])
def test_another_key_is_not_served_by_it(asked: str | float | None) -> None:
    """The record says which of its parts nothing is published for, and that nothing is promised."""
    offers = offers_of(("default", 0.99, 4), ("high", 0.99, 4))
    for field, value in (("steps", 30), ("width", 48), ("model", "Toy-0-2")):
        choice = chosen(asked, offers, **{field: value})
        assert choice.origin["source"] == ("prior" if asked == 0.9 else "configuration")
        assert (
            f"was profiled for {field} = {getattr(KEY, field)!r}, not {value!r}"
            in choice.origin["why"]
        )
        assert "nothing is promised" in choice.origin["why"]
        assert (choice.origin["slot"], choice.origin["version"]) == (None, None)


def test_fewer_steps_have_what_carries_over() -> None:
    """The same calls as with the steps that were profiled, of its own quality, without a version that it would count
    for; far fewer steps, or more, have nothing of it."""
    offers = offers_of(("default", 0.97, 4), ("high", 0.99, 6))
    fewer = KEY.steps - 1
    for asked, calls in ((None, 4), ("high", 6), (0.98, 6)):
        choice = chosen(asked, offers, steps=fewer)
        assert choice.policy["max_calls"] == calls
        assert (choice.origin["source"], choice.origin["version"]) == ("derived", None)
        assert f"{KEY.steps} steps; not certified for {fewer}" in choice.origin["why"]
    for steps in (KEY.steps // 2, KEY.steps + 1):
        assert chosen(None, offers, steps=steps).origin["source"] == "configuration"


def test_a_lora_makes_another_model() -> None:
    """What was measured without it isn't promised with it."""
    key = key_of({"lora": "style"}, INFO)
    assert key == replace(KEY, model=f"{KEY.model} with style")
    offers = offers_of(("default", 0.97, 4))
    assert chosen(None, offers, model=key.model).origin["source"] == "configuration"


def test_without_documents_the_configuration_serves() -> None:
    """Its policy, or its policies for names; numbers have the prior."""
    assert chosen(None, {}).policy["name"] == CONFIG.default_policy.name
    assert chosen("fast", {}).policy["threshold"] == 0.16
    assert "no policy is published for quality fast" in chosen("fast", {}).origin["why"]
    assert chosen(0.99, {}).policy == {**chosen(0.9, {}).policy, "target_psnr": 40.0}


def test_the_prior_asks_for_more_where_more_is_to_be_kept() -> None:
    """Up to what can be asked for."""
    targets = [prior(ssim).target_psnr for ssim in (0.1, 0.9, 0.99, 0.999, 1 - 1e-12)]
    assert targets == [20.46, 30.0, 40.0, 50.0, 99.0]


def test_what_requests_bring_is_theirs() -> None:
    """Their own policy, and exact, whatever is published."""
    choice = given({"name": "never"})
    assert (choice.policy, choice.origin["source"], choice.origin["quality"]) == (
        {"name": "never"},
        "request",
        None,
    )
    exact = chosen("exact", offers_of(("default", 0.99, 4)))
    assert (exact.policy["name"], exact.origin["source"]) == ("never", "request")
