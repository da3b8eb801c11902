"""The videos protocol's mapping, as pure functions."""

import pytest

from warpcache_ray.config import Defaults, Limits, ModelConfig, ServiceConfig
from warpcache_ray.errors import InvalidRequest, NotFound
from warpcache_ray.serving import videos_schema
from warpcache_ray.serving.lifecycle import Job, Status
from warpcache_ray.serving.videos_schema import STATUSES, VideoRequest

MODEL = ModelConfig("toy", defaults=Defaults(fps=8), limits=Limits(num_frames=33))


@pytest.mark.parametrize(
    ("fps", "seconds", "multiple", "frames"),
    [
        (8, 2, 4, 17),  # 16
        (8, 0.5, 4, 5),  # 4
        (10, 0.7, 4, 9),  # 7 lies between 5 and 9
        (10, 0.6, 4, 5),  # 6
        (8, 0.01, 1, 1),
        (None, 4, 4, 33),  # at the service's 8 fps
    ],
)
def test_seconds_to_frames(fps, seconds, multiple, frames):
    """The nearest number that the model can make, of two as near the larger, at the request's or the service's fps."""
    request = VideoRequest(prompt="a", seconds=seconds, fps=fps)
    assert request.resolved(MODEL, multiple).num_frames == frames


def test_what_is_explicit_goes_first():
    """Height, width and frames go before size and seconds, each by itself; too many seconds don't matter then."""
    request = VideoRequest(prompt="a", size="64x48", seconds=90, height=16, num_frames=5)
    found = request.resolved(MODEL, 4)
    assert (found.width, found.height, found.num_frames) == (64, 16, 5)
    with pytest.raises(InvalidRequest, match="num_frames = 721"):
        VideoRequest(prompt="a", seconds=90).resolved(MODEL, 4)


def test_an_image_has_no_seconds():
    """Clients that always send them get their image."""
    assert VideoRequest(prompt="a", seconds=4).resolved(MODEL, None).num_frames is None


@pytest.mark.parametrize("status", Status)
def test_four_states(status):
    """Every state of a job is one that the protocol has, and nothing is finished before it is completed."""
    request = {"prompt": "a", "fps": 8, "seed": 1}
    job = Job("job_1", request, {"name": "never"}, 5.5, status=status, step=4, total_steps=4)
    video = videos_schema.video(job.to_dict(), ServiceConfig(MODEL), "http://test/")
    assert video["status"] == STATUSES[status]
    assert video["status"] in {"queued", "in_progress", "completed", "failed"}
    assert video["progress"] == (100 if status is Status.SUCCEEDED else 99)
    assert (video["created_at"], video["size"], video["seconds"]) == (5, None, None)


def test_ids():
    """The mapping goes both ways, and is one to one."""
    assert videos_schema.video_id("job_1f") == "video_1f"
    assert videos_schema.job_id("video_1f") == "job_1f"
    with pytest.raises(NotFound):
        videos_schema.job_id("job_1f")
