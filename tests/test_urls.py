"""What of a URL may be shown."""

import pytest

from warpcache_ray.urls import shown


@pytest.mark.parametrize(
    ("url", "rest"),
    [
        ("redis://redis.example:6379/0", "redis://redis.example:6379/0"),
        ("redis://:hush@redis.example:6379/0", "redis://***@redis.example:6379/0"),
        ("rediss://me:hush@[::1]:6379", "rediss://***@[::1]:6379"),
        ("redis://:hu/s@h@redis.example", "redis://***@redis.example"),
        ("redis://redis.example?password=hush", "redis://redis.example"),
        ("unix://:hush@/run/redis.sock?db=1", "unix://***@/run/redis.sock"),
        ("redis://:hu?sh@redis.example", "redis://***"),
        ("redis://redis.example?password=hu@sh", "redis://***"),
        ("s3://bucket/videos", "s3://bucket/videos"),
        ("simplecache::sftp://me:hush@host/videos", "simplecache::sftp://***@host/videos"),
        ("/data/a@b?c", "/data/a@b?c"),
        ("", ""),
    ],
)
def test_what_is_shown(url, rest):
    """Server and path; no user, no password, no query."""
    assert shown(url) == rest
