"""What was generated from `videos.proto`, against the file itself and against what HTTP takes and answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from warpcache_ray.rpc import videos_pb2 as pb
from warpcache_ray.rpc.videos_pb2_grpc import VideosStub
from warpcache_ray.serving import answers
from warpcache_ray.serving.lifecycle import Delivery
from warpcache_ray.serving.schemas import FollowedRequest

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "warpcache_ray" / "rpc" / "videos.proto"
INCLUDED = Path(protoc.__file__).parent / "_proto"


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorProto:
    """The file as it is, compiled."""
    out = tmp_path_factory.mktemp("proto") / "set"
    options = [f"-I{ROOT}", f"-I{INCLUDED}", f"--descriptor_set_out={out}"]
    assert protoc.main(["protoc", *options, str(PROTO)]) == 0
    (found,) = FileDescriptorSet.FromString(out.read_bytes()).file
    for message in found.message_type:
        for field in message.field:
            # It follows from the name, and generated code leaves it out.
            field.ClearField("json_name")
    return found


def test_messages_are_those_of_the_file(described: FileDescriptorProto) -> None:
    """Fields, numbers, types and methods: whoever changes the file generates anew."""
    generated = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(generated)
    assert generated == described


def test_calls_are_those_of_the_file(described: FileDescriptorProto) -> None:
    """Each under its name, streamed where the file says so."""
    with grpc.insecure_channel("localhost:1") as channel:
        calls = vars(VideosStub(channel))
    streamed = {name: isinstance(c, grpc.UnaryStreamMultiCallable) for name, c in calls.items()}
    (service,) = described.service
    assert streamed == {method.name: method.server_streaming for method in service.method}


def test_a_request_has_the_fields_of_https() -> None:
    """All that `/generate` takes but for what says how it answers; an image as a file or where it is."""
    image, *rest = pb.GenerateRequest.DESCRIPTOR.oneofs_by_name["image"].fields
    names = {field.name for field in pb.GenerateRequest.DESCRIPTOR.fields}
    assert {image.name, *(field.name for field in rest)} == {"image_file", "image_url"}
    taken = names - {"image_file", "image_url"} | {"image"}
    assert taken == set(FollowedRequest.model_fields)


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (pb.Job, {*answers.JobRecord.model_fields, "seed"}),
        (pb.Error, answers.Error.model_fields),
        (pb.PolicyOrigin, answers.PolicyOrigin.model_fields),
        (pb.Delivery, {field.name for field in fields(Delivery)}),
    ],
)
def test_a_record_has_the_fields_of_https(message: type, names: Iterable[str]) -> None:
    """And what it is made of."""
    assert {field.name for field in message.DESCRIPTOR.fields} == set(names)
