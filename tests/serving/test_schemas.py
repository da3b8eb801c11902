import json
import random
from dataclasses import asdict

import pytest
from hubs import INFO
from pydantic import ValidationError

from warpcache_ray.config import Defaults, Limits
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.parallel.split import Split
from warpcache_ray.serving.schemas import POLICY_BYTES, GenerateRequest, check_shape

LIMITS = Limits(height=128, width=64, num_frames=33, num_inference_steps=10)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", " \n"),
        ("prompt", None),
        ("prompt", "x" * 4001),
        ("height", "64"),
        ("height", 64.0),
        ("width", True),
        ("num_frames", 0),
        ("num_inference_steps", -1),
        ("guidance_scale", float("nan")),
        ("guidance_scale", -0.1),
        ("seed", -1),
        ("seed", 2**63),
        ("fps", 0),
        ("policy", 3),
        ("priority", "urgent"),
        ("quality", "best"),
        ("output_format", "avi"),
        ("response_format", "b64"),
        ("wait", "yes"),
        ("frames", 17),
    ],
)
def test_bad_fields(field, value):
    """Nothing is coerced or ignored; the error is at the field."""
    with pytest.raises(ValidationError) as caught:
        GenerateRequest.model_validate({"prompt": "a cat", field: value})
    assert caught.value.errors()[0]["loc"][0] == field


def _measured(steps: int) -> dict:
    """`auto` with all digits of what was measured on both branches, as JSON has it."""
    draw, size = random.Random(0), 2 * steps
    products = [draw.random() for _ in range(size * (size + 1) // 2)]
    sigmas = [1.0 - step / (3 * steps) for step in range(steps)]
    gram = {"sigmas": sigmas, "products": products, "branches": ["cond", "uncond"]}
    return {"name": "auto", "gram": gram}


def test_a_policy_of_ones_own_is_bounded():
    """Measurements of 50 steps are taken; for more the refusal names the field, its size and what is allowed."""
    assert GenerateRequest(prompt="a", policy=_measured(50)).policy is not None
    large = _measured(60)
    with pytest.raises(ValidationError) as caught:
        GenerateRequest(prompt="a", policy=large)
    (error,) = caught.value.errors()
    assert error["loc"][0] == "policy"
    size = len(json.dumps(large))
    assert f"the policy has {size} bytes; at most {POLICY_BYTES} are allowed" in error["msg"]
    with pytest.raises(ValidationError, match=f"{POLICY_BYTES + 2} bytes"):
        GenerateRequest(prompt="a", policy="x" * POLICY_BYTES)


def test_a_refusal_does_not_repeat_a_large_policy():
    """Not even where the other way to choose one is the mistake."""
    with pytest.raises(ValidationError) as caught:
        GenerateRequest(prompt="a", policy=_measured(50), quality="fast")
    assert len(caught.value.errors()[0]["msg"]) < 300


def test_policy_and_quality_exclude_each_other():
    """A request says which policy in one way only."""
    with pytest.raises(ValidationError, match="exclude each other"):
        GenerateRequest(prompt="a", policy="never", quality="fast")


def test_given_fields_go_before_defaults():
    """The job has what was given, else the service's default; what neither says is left out."""
    defaults = Defaults(height=32, num_frames=9, fps=8)
    request = GenerateRequest(prompt="a", height=64, guidance_scale=4, quality="fast", wait=True)
    assert request.job_request(defaults, 7) == {
        "prompt": "a",
        "height": 64,
        "num_frames": 9,
        "fps": 8,
        "guidance_scale": 4.0,
        "seed": 7,
        "priority": "normal",
        "output_format": "mp4",
    }


def test_a_given_seed_stays():
    """Also seed 0."""
    assert GenerateRequest(prompt="a", seed=0).job_request(Defaults(), 0)["seed"] == 0


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("height", 144, "at most 128"),
        ("width", 80, "at most 64"),
        ("num_frames", 37, "at most 33"),
        ("num_inference_steps", 11, "at most 10"),
        ("height", 72, "a multiple of 16"),
        ("width", 17, "a multiple of 16"),
        ("num_frames", 16, "1 more than a multiple of 4"),
    ],
)
def test_shapes_that_cannot_be_made(field, value, allowed):
    """The refusal names field, value and what is allowed."""
    with pytest.raises(InvalidRequest) as caught:
        check_shape({field: value}, LIMITS, INFO)
    assert caught.value.message == f"{field} = {value} is not allowed; it must be {allowed}"
    assert caught.value.param == field


def test_an_image_is_one_frame():
    """A model that makes images is asked for no others."""
    image = {**INFO, "makes": "image", "frame_multiple": 1}
    with pytest.raises(InvalidRequest, match=r"num_frames = 9 .* 1, for the model makes images"):
        check_shape({"num_frames": 9}, LIMITS, image)
    check_shape({"num_frames": 1}, LIMITS, image)
    check_shape({}, LIMITS, image)


def test_of_what_is_left_out_some_frame_stays():
    """A model that keeps the first frames to itself is asked for more than these."""
    info = {**INFO, "dropped": 4}
    with pytest.raises(InvalidRequest, match=r"num_frames = 1 .* at least 5, .* the first 4"):
        check_shape({"num_frames": 1}, LIMITS, info)
    check_shape({"num_frames": 5}, LIMITS, info)
    check_shape({}, LIMITS, info)


@pytest.mark.parametrize("request_", [{}, {"height": 128, "width": 64, "num_frames": 33}])
def test_shapes_that_can(request_):
    """The limits themselves are allowed, and fields may be absent."""
    check_shape(request_, LIMITS, INFO)


def test_sizes_that_ranks_cannot_share_are_refused_at_once():
    """Of three token rows two ranks can't have the same number; the refusal names sizes that work."""
    info = {**INFO, "split": asdict(Split(ranks=2, side=16, frames=4))}
    odd = {"height": 48, "width": 16, "num_frames": 9}
    with pytest.raises(
        InvalidRequest, match=r"9 tokens can't be shared out over 2 ranks.*height = 32"
    ):
        check_shape(odd, LIMITS, info)
    check_shape(odd, LIMITS, INFO)
    check_shape({**odd, "height": 32}, LIMITS, info)
    check_shape({"height": 48}, LIMITS, info)


def test_whoever_leaves_has_to_wait_first():
    """Without `wait` nobody stays connected, so there is no disconnection to act on."""
    with pytest.raises(ValidationError, match="give wait = true too"):
        GenerateRequest(prompt="a", cancel_on_disconnect=True)
    assert GenerateRequest(prompt="a", cancel_on_disconnect=True, wait=True).wait


def test_a_png_is_of_a_model_that_makes_images() -> None:
    """Videos are refused it; what the service gives by default may be one."""
    png = Defaults(output_format="png")
    asked = GenerateRequest(prompt="a").job_request(png, 1)
    assert asked["output_format"] == "png"
    own = GenerateRequest(prompt="a", output_format="gif").job_request(png, 1)
    assert own == asked | {"output_format": "gif"}
    check_shape(asked, Limits(), {**INFO, "makes": "image"})
    with pytest.raises(InvalidRequest, match=r"output_format = 'png'.* mp4, webm or gif"):
        check_shape(asked, Limits(), INFO)


def test_a_lora_is_one_of_the_models() -> None:
    """With its scale; the refusal lists those that there are."""
    asked = GenerateRequest(prompt="a", lora="ink", lora_scale=0.5)
    fields = asked.job_request(Defaults(), 1)
    assert (fields["lora"], fields["lora_scale"]) == ("ink", 0.5)
    info = {"size_multiple": 16, "frame_multiple": 4, "split": None}
    check_shape(fields, Limits(), info | {"loras": ("clay", "ink")})
    with pytest.raises(InvalidRequest, match=r"lora = 'ink' is not allowed.* one of: clay, wax"):
        check_shape(fields, Limits(), info | {"loras": ("clay", "wax")})
    with pytest.raises(InvalidRequest, match="left out, for the model has no LoRAs"):
        check_shape(fields, Limits(), info)


def test_a_scale_needs_a_lora() -> None:
    """It would go unheard."""
    with pytest.raises(ValidationError, match=r"lora_scale = 0.5: nothing to scale"):
        GenerateRequest(prompt="a", lora_scale=0.5)
