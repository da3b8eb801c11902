"""What gRPC says of errors, and what Serve finds on the ingress."""

from __future__ import annotations

import inspect

import grpc
import pytest

from warpcache_ray.rpc.videos_pb2_grpc import VideosStub
from warpcache_ray.serving import problems, rpc
from warpcache_ray.serving.ingress import Ingress


@pytest.mark.parametrize("kind", problems.all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_status(kind):
    """And none of them is that of a success."""
    assert rpc.STATUSES[kind.status] is not grpc.StatusCode.OK


def test_the_ingress_has_every_method():
    """Under the name by which Serve calls it, with the argument that Serve looks for."""
    with grpc.insecure_channel("localhost:1") as channel:
        for name in vars(VideosStub(channel)):
            assert "grpc_context" in inspect.signature(getattr(Ingress, name)).parameters
