"""A client to learn from: a video over gRPC, with its steps as they are made (README, "gRPC").

python -m warpcache_ray.rpc.client "a red circle moving right fast over a blue background" --key wc_… --out red.mp4
"""

import argparse
import json
import sys
import uuid

import grpc
from google.protobuf.struct_pb2 import Value

from warpcache_ray.rpc.videos_pb2 import GenerateRequest, Job, JobId
from warpcache_ray.rpc.videos_pb2_grpc import VideosStub


def quality_of(text: str) -> Value:
    """A quality's name, or the SSIM to keep."""
    try:
        return Value(number_value=float(text))
    except ValueError:
        return Value(string_value=text)


def generate(videos: VideosStub, prompt: str, quality: str, key: list[tuple[str, str]]) -> Job:
    """Asks for a video and shows what happens to the job; its record at the end."""
    request = GenerateRequest(prompt=prompt, quality=quality_of(quality))
    # Sent again with the same key, after a broken connection, it follows the same job.
    once = ("idempotency-key", uuid.uuid4().hex)
    job = Job()
    for event in videos.Generate(request, metadata=[*key, once]):
        job = event.job
        if event.kind == "step":
            print(f"step {event.data['step']:.0f} of {event.data['total_steps']:.0f}")
        else:
            print(event.kind, event.job_id)
    return job


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="A video over gRPC.")
    parser.add_argument("prompt")
    parser.add_argument("--target", default="localhost:9000")
    parser.add_argument("--key", help="an API key, where the service wants one")
    parser.add_argument("--quality", default="balanced")
    parser.add_argument("--out", help="video.mp4, or what its format is called, if left out")
    args = parser.parse_args()
    key = [("x-api-key", args.key)] if args.key else []
    try:
        with grpc.insecure_channel(args.target) as channel:
            videos = VideosStub(channel)
            job = generate(videos, args.prompt, args.quality, key)
            out = args.out or f"video.{job.request['output_format']}"
            with open(out, "wb") as file:
                for part in videos.Download(JobId(job_id=job.id), metadata=key):
                    file.write(part.data)
    except grpc.RpcError as error:
        problem = json.loads(dict(error.trailing_metadata()).get("problem-bin", b"{}"))
        code = problem.get("error", {}).get("code", "")
        sys.exit(f"{error.code().name} {code}: {error.details()}")
    print(out)


if __name__ == "__main__":
    main()
