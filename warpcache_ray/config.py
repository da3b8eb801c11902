"""The service's configuration: the `args` of an application in configs/*.yaml, as frozen dataclasses."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from warpcache_ray.access_config import AccessConfig, ApiKey, repeated
from warpcache_ray.core.policy import Policy
from warpcache_ray.errors import InvalidConfig, InvalidPolicy
from warpcache_ray.media import Format
from warpcache_ray.outbound_config import OutboundConfig, WebhookConfig
from warpcache_ray.page_config import PageConfig
from warpcache_ray.parallel.layout import Layout
from warpcache_ray.policy_slots import POLICY_FOLDER, Documents, with_documents
from warpcache_ray.policy_spec import describe_policy, load_policy, parse_policy
from warpcache_ray.upkeep_config import AuditsConfig, ProfilerConfig

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
PACKAGE = Path(__file__).parent

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(gt=0)]
MOST_REPLICAS = 128
"""The coordinator has slots for the calls of so many."""
Replicas = Annotated[int, Field(ge=1, le=MOST_REPLICAS)] | Literal["auto"]
"""`auto`: as many as the application's `autoscaling_policy` wants, see `serving.autoscaling`."""
Lossy = Literal["high", "balanced", "fast"]
LoraName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Quality = Literal["exact", "high", "balanced", "fast"]


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request gets when it leaves a field out; None leaves it to the pipeline."""

    __pydantic_config__ = _STRICT

    height: Count | None = None
    width: Count | None = None
    num_frames: Count | None = None
    num_inference_steps: Count | None = None
    guidance_scale: float | None = None
    fps: Count = 16
    output_format: Format = "mp4"


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest request that is accepted. An image comes on top of `body_bytes`, where the model takes one.

    `queue` jobs may wait. Once they do, a client is refused that has its share of them, which is `queue` over the
    number of clients that have jobs waiting; whoever has less goes on until it has that. So no client, however many
    jobs it sends, keeps another one's first job out, and n clients have no more than `queue` · (1 + ln n) waiting.
    """

    __pydantic_config__ = _STRICT

    height: Count = 1280
    width: Count = 1280
    num_frames: Count = 161
    num_inference_steps: Count = 100
    queue: Count = 256
    body_bytes: Count = 1 << 20
    image_bytes: Count = 16 << 20
    image_pixels: Count = 1 << 25


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which pipeline to load: a folder (also one inside this package) or a hub id, and in which form.

    `files` names single safetensors files of transformers, `dfloat11` folders or hub ids of their compressed weights;
    `loras` the files of the adapters that requests may name. With dtype fp8 the transformers' weights are float8, and
    computed with in bfloat16. With `group_offload` each layer is on the device only while it computes.
    """

    __pydantic_config__ = _STRICT

    path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "fp8"] = "bfloat16"
    device: Literal["cpu", "cuda"] = "cuda"
    files: dict[Literal["transformer", "transformer_2"], str] = field(default_factory=dict)
    dfloat11: dict[Literal["transformer", "transformer_2"], str] = field(default_factory=dict)
    loras: dict[LoraName, str] = field(default_factory=dict)
    group_offload: bool = False
    defaults: Defaults = field(default_factory=Defaults)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.dfloat11 and (self.dtype, self.device, self.group_offload) != (
            "bfloat16",
            "cuda",
            False,
        ):
            raise ValueError("dfloat11 needs dtype bfloat16, device cuda, and no group_offload")

    @property
    def version(self) -> str:
        """Fingerprint of which weights these are, and in what precision."""
        files = [*sorted(self.files.items()), *sorted(self.loras.items())]
        text = repr((self.path, self.revision, self.dtype, *files)).encode()
        return hashlib.sha256(text).hexdigest()[:12]

    @property
    def folder(self) -> Path | None:
        """The local folder that `path` names, or None."""
        places = (Path(self.path).expanduser(), PACKAGE / self.path)
        return next((p for p in places if (p / "model_index.json").is_file()), None)


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """The Redis server that holds the jobs (`redis://`, `rediss://`, `unix://`); with no `url` one is launched beside
    the coordinator, with its data in `folder` (beside the results, if none is given). One with a password is better
    in the environment variable `url_env` of the coordinator and of `warpcache serve`, for Serve shows a `url`. Jobs
    stay where they are: a deployment with another store doesn't know them, a later one with the old store does."""

    __pydantic_config__ = _STRICT

    url: str = field(default="", repr=False)
    url_env: str = ""
    folder: str = ""

    @property
    def address(self) -> str:
        """The server's URL; empty for one that is launched.

        Raises:
            InvalidConfig: the environment has none where it should.
        """
        if not self.url_env:
            return self.url
        url = os.environ.get(self.url_env, "")
        if self.url or not url:
            wrong = "store.url is given too" if self.url else "the environment has no such variable"
            message = f"store.url_env = {self.url_env!r}: {wrong}; give either, a redis:// URL"
            raise InvalidConfig(message, "store.url_env")
        return url


@dataclass(frozen=True, slots=True)
class AdaptiveConfig:
    """How far quality gives way under load, see `serving.adaptive`: jobs of a priority down to the quality that
    `quality_floor` names for it, none where it names none, once those that wait would take longer than
    `target_wait_s`."""

    __pydantic_config__ = _STRICT

    quality_floor: dict[Literal["high", "normal", "low"], Lossy] = field(default_factory=dict)
    target_wait_s: Seconds = 120.0


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """One application. `policy` serves requests that ask for nothing, `quality` those that name a quality; a policy
    may be `{file: PATH}`, relative to the working directory as a model's path is, with parameters beside it. They stand
    back behind profiled policies: those of the store, then those of `policies`, which is a folder of documents (each
    named for the quality that it serves: `high.json`), or the documents by quality.

    Ranks that stay at one step for `slow_step_factor` times the slowest step so far (and for `slow_step_s`), or for
    `step_timeout_s` (also while they load text or decode), count as hung. Every `checkpoint_every` steps (0: never) a
    job's state is kept under `checkpoint_url` (beside the results, if none is given). `results` is where videos
    are kept, for `result_ttl_s` after their job's end; both are folders, or URLs of any kind that fsspec knows.

    Clients of a priority share the replicas by `client_weights`; who isn't named there has 1. A client goes by its
    key's name, without keys by the first 16 hex digits of the SHA-256 of whatever it sends as one, or as `anonymous`.
    A job fails once it has waited for `queue_timeout_s`, or once an attempt at it has taken `attempt_timeout_s`. One
    that has ended is kept for `result_ttl_s`, with its video, unless there are more than `keep_jobs`: then the client
    that has most of them loses its oldest. A replica that is shut down goes on for `drain_s`, then hands its job back.
    `gpu_second_price`, in any currency, is shown beside the metrics that count seconds of ranks, to multiply them
    with. `trace_url` (OTLP over HTTP, like http://localhost:4318/v1/traces) is sent a trace of each job.
    With `log_format: json` all processes log lines of JSON, with job, attempt and rank.
    """

    __pydantic_config__ = _STRICT

    model: ModelConfig
    name: str = "warpcache"
    parallel: Layout = field(default_factory=Layout)
    replicas: Replicas = 1
    store: StoreConfig = field(default_factory=StoreConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    outbound: OutboundConfig = field(default_factory=OutboundConfig)
    webhooks: WebhookConfig = field(default_factory=WebhookConfig)
    page: PageConfig = field(default_factory=PageConfig)
    audits: AuditsConfig = field(default_factory=AuditsConfig)
    profiler: ProfilerConfig = field(default_factory=ProfilerConfig)
    policy: str | dict[str, Any] = "worldcache"
    quality: dict[Lossy, str | dict[str, Any]] = field(
        default_factory=lambda: {
            "high": {"name": "worldcache", "threshold": 0.04},
            "balanced": {"name": "worldcache", "threshold": 0.08},
            "fast": {"name": "worldcache", "threshold": 0.16},
        }
    )
    policies: str | Documents = POLICY_FOLDER
    adaptive_quality: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    cache_bytes: Annotated[int, Field(ge=0)] = 8 << 30
    results: str = ""
    threads: Count = 1
    lease_s: Annotated[float, Field(ge=5)] = 15.0
    step_timeout_s: Seconds = 600.0
    slow_step_factor: Annotated[float, Field(gt=1)] = 20.0
    slow_step_s: Seconds = 30.0
    checkpoint_every: Annotated[int, Field(ge=0)] = 10
    checkpoint_url: str = ""
    max_attempts: Count = 3
    client_weights: dict[str, Weight] = field(default_factory=dict)
    queue_timeout_s: Seconds = 86_400.0
    attempt_timeout_s: Seconds | None = None
    result_ttl_s: Seconds = 86_400.0
    keep_jobs: Count = 10_000
    drain_s: Seconds = 20.0
    gpu_second_price: Annotated[float, Field(ge=0)] = 0.0
    trace_url: str = ""
    log_format: Literal["text", "json"] = "text"

    @property
    def default_policy(self) -> Policy:
        """The parsed `policy`."""
        return parse_policy(self.policy)

    def quality_policy(self, quality: Quality) -> Policy:
        """The policy that a quality stands for."""
        return parse_policy("never" if quality == "exact" else self.quality[quality])

    @property
    def store_folder(self) -> Path:
        """Where the embedded store keeps its data."""
        return Path(self.store.folder or self.local_folder / "store")

    @property
    def known_policies(self) -> Path:
        """Where the store's policies are kept, for when it can't be asked: apart for each application."""
        return self.local_folder / "policies" / self.store_name

    @property
    def store_name(self) -> str:
        """What the store is called among those that the application had: each has its jobs, and a coordinator."""
        place = self.store.url_env or self.store.url or str(self.store_folder)
        return hashlib.sha256(place.encode()).hexdigest()[:12]

    @property
    def checkpoints(self) -> str:
        """Where checkpoints are kept: apart from videos, for they are taken away by themselves."""
        return f"{(self.checkpoint_url or self.artifacts).rstrip('/')}/checkpoints"

    @property
    def artifacts(self) -> str:
        """Where videos and images are kept."""
        return self.results or str(self.local_folder)

    @property
    def profiles(self) -> Path:
        """Where the runs of profiles are kept that the service makes by itself, and their reports."""
        return self.local_folder / "profiles"

    @property
    def local_folder(self) -> Path:
        """What is beside the results is kept here: where they are, if that is a folder."""
        if self.results and "://" not in self.results:
            return Path(self.results)
        return Path(tempfile.gettempdir()) / "warpcache" / self.name


def parse_config(args: Mapping[str, Any]) -> ServiceConfig:
    """The configuration in `args`, all of it checked; policies and keys in files (of which the replicas know nothing)
    are read.

    Raises:
        InvalidConfig: names the field, its value and what is allowed.
    """
    try:
        config = TypeAdapter(ServiceConfig).validate_python(dict(args))
    except ValidationError as error:
        # Without the cause, which quotes what may be a secret.
        raise _invalid(error) from None
    policy = _checked("policy", config.policy)
    quality = {q: _checked(f"quality.{q}", spec) for q, spec in config.quality.items()}
    config = replace(config, policy=policy, quality=quality, access=_with_keys(config.access))
    config = replace(config, policies=with_documents(config.policies))
    missing = [q for q in ("high", "balanced", "fast") if q not in config.quality]
    if missing:
        raise InvalidConfig(
            f"quality: {missing[0]!r} is missing; high, balanced, fast are needed", "quality"
        )
    return config


def load_application(path: str | Path) -> ServiceConfig:
    """The configuration of the first application in a Serve YAML file.

    Raises:
        InvalidConfig: no such file, not a Serve file, or bad `args`.
    """
    try:
        document = yaml.safe_load(Path(path).read_text())
        args = dict(document["applications"][0]["args"])
    except OSError as error:
        raise InvalidConfig(f"config = {str(path)!r}: {error.strerror}", "config") from error
    except (yaml.YAMLError, KeyError, IndexError, TypeError, ValueError) as error:
        message = f"config = {str(path)!r}: not a Serve file with applications[0].args ({error})"
        raise InvalidConfig(message, "config") from error
    return parse_config(args)


def _checked(where: str, spec: str | dict[str, Any]) -> str | dict[str, Any]:
    try:
        if isinstance(spec, str) or "file" not in spec:
            parse_policy(spec)
            return spec
        rest = {name: value for name, value in spec.items() if name != "file"}
        return describe_policy(load_policy(Path(str(spec["file"])).expanduser(), **rest))
    except InvalidPolicy as error:
        raise InvalidConfig(f"{where} = {spec!r}: {error.message}", where) from error


def _with_keys(access: AccessConfig) -> AccessConfig:
    """Its keys and those of its file."""
    keys = (*access.keys, *(_read_keys(access.keys_file) if access.keys_file else ()))
    twice = repeated(keys)
    if twice is not None:
        message = f"access.keys: {twice!r} is there twice; each client has one name and one key"
        raise InvalidConfig(message, "access.keys")
    return replace(access, keys=keys, keys_file="")


def _read_keys(file: str) -> tuple[ApiKey, ...]:
    where = "access.keys_file"
    try:
        document = yaml.safe_load(Path(file).expanduser().read_text())
        return tuple(TypeAdapter(list[ApiKey]).validate_python(document))
    except OSError as error:
        raise InvalidConfig(f"{where} = {file!r}: {error.strerror}", where) from error
    except ValidationError as error:
        raise InvalidConfig(
            f"{where} = {file!r}: {_explain(error, list[ApiKey])[1]}", where
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InvalidConfig(f"{where} = {file!r}: must be YAML or JSON", where) from None


def _invalid(error: ValidationError) -> InvalidConfig:
    where, message = _explain(error, ServiceConfig)
    return InvalidConfig(message, where)


def _explain(error: ValidationError, kind: Any) -> tuple[str, str]:
    """The field of a `kind` that is wrong, and what is wrong with it."""
    first = error.errors()[0]
    path = _fields(first["loc"])
    where = ".".join(path)
    unknown = first["type"] == "unexpected_keyword_argument"
    # What stands there may be a key itself, where only its digest belongs, or a secret of the webhooks or the store.
    misplaced = unknown and path[0] == "access"
    secret = (
        kind == list[ApiKey] or "keys" in path or misplaced or path[:1] in (["webhooks"], ["store"])
    )
    message = first["msg"].removeprefix("Value error, ")
    if unknown:
        for name in path[:-1]:
            hint = kind if name.isdigit() else get_type_hints(kind)[name]
            kind = next(iter(get_args(hint)), hint)
        message = f"there is no such key; there are: {', '.join(get_type_hints(kind))}"
    value = "" if secret else f" = {first['input']!r}"
    return where, f"{where}{value}: {message}" if where else message


def _fields(location: tuple[int | str, ...]) -> list[str]:
    # Between the fields stand pydantic's words for the alternatives that it tried, e.g. "dict[str,any]".
    parts = (p for p in location if isinstance(p, int) or (p.isidentifier() and p != "str"))
    return [str(part) for part in parts]
