"""Profiled policies as they are kept, in files and in the store alike: one JSON document with all that it rests on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from warpcache_ray.errors import InvalidPolicy

FORMAT = "warpcache-policy"
VERSION = 1

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyKey:
    """What a policy was profiled for. Each size is a bucket of its own: a calibration knows its latents' shape."""

    __pydantic_config__ = _STRICT

    model: str
    """Class, configuration and weights of the transformer."""
    height: int
    width: int
    num_frames: int
    steps: int
    scheduler: str
    shift: float | None
    guidance_scale: float | None

    def __post_init__(self) -> None:
        for name in ("shift", "guidance_scale"):
            value = getattr(self, name)
            # 4 and 4.0 are one key.
            object.__setattr__(self, name, None if value is None else float(value))

    @property
    def digest(self) -> str:
        """The store's name for it."""
        return digest(dataclasses.asdict(self))


@dataclass(frozen=True, slots=True)
class Target:
    """What was asked for: at least so much PSNR (dB) or SSIM against uncached, or at most so many calls."""

    __pydantic_config__ = _STRICT

    metric: Literal["psnr", "ssim", "calls"]
    bound: float

    def __str__(self) -> str:
        names = {"psnr": "PSNR of {} dB", "ssim": "SSIM of {}", "calls": "{} calls"}
        return names[self.metric].format(f"{self.bound:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """How the policy did on fresh requests. `certified`: at confidence 1 - `delta`, at least `share` of all requests
    like them keep the quality; at least `share_kept` of them do."""

    __pydantic_config__ = _STRICT

    certified: bool
    requests: int
    misses: int
    allowed_misses: int | None
    share: float
    delta: float
    share_kept: float
    policies_tested: int
    prompts_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDocument:
    """A policy (name and parameters), what it is for, what it promises, and where that comes from.

    `expected` holds estimates, from the few runs of the search; `provenance` versions, prompts and measurements.
    """

    __pydantic_config__ = _STRICT

    key: PolicyKey
    policy: dict[str, Any]
    target: Target
    expected: dict[str, Any]
    certificate: Certificate | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def certified(self) -> bool:
        """Whether the promise is proven."""
        return self.certificate is not None and self.certificate.certified

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; `parse_document` reads it back."""
        content = dataclasses.asdict(self)
        del content["policy"]
        head = {"format": FORMAT, "version": VERSION, "certified": self.certified}
        policy = {"policy_digest": digest(self.policy), "policy": self.policy}
        return {**head, **content, **policy}

    def check_key(self, key: PolicyKey) -> None:
        """Refuses to be used for anything else than it was profiled for.

        Raises:
            InvalidPolicy: the message names the first field that differs, and both its values.
        """
        for each in dataclasses.fields(PolicyKey):
            own, other = getattr(self.key, each.name), getattr(key, each.name)
            if own != other:
                raise InvalidPolicy(
                    f"policy {self.policy.get('name')!r} was profiled for {each.name} = {own!r}, not {other!r}",
                    f"policy.key.{each.name}",
                )


def is_document(content: Any) -> bool:
    """Whether a file's content is a document, and not just a policy."""
    return isinstance(content, Mapping) and "format" in content


def parse_document(content: Any) -> PolicyDocument:
    """The document that JSON describes.

    Raises:
        InvalidPolicy: another format or version, a field that is missing, unknown or of another type, or a policy that
            isn't the one that was profiled.
    """
    if not is_document(content) or content["format"] != FORMAT:
        raise InvalidPolicy(f"format: must be {FORMAT!r}", "format")
    if content.get("version") != VERSION:
        raise InvalidPolicy(
            f"version: {content.get('version')!r} is not known here; it must be {VERSION}",
            "version",
        )
    rest = {k: v for k, v in content.items() if k not in ("format", "version")}
    claimed, certified = rest.pop("policy_digest", None), rest.pop("certified", None)
    try:
        document = _ADAPTER.validate_python(rest)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidPolicy(f"{where}: {first['msg']}", where) from error
    if digest(document.policy) != claimed:
        raise InvalidPolicy(
            f"policy_digest: {claimed!r} is another policy's, this one's is {digest(document.policy)!r}: the policy "
            "was changed after it was profiled",
            "policy_digest",
        )
    if certified is not document.certified:
        raise InvalidPolicy(
            f"certified: {certified!r} is not what the certificate says ({document.certified})",
            "certified",
        )
    return document


def digest(described: Mapping[str, Any] | Sequence[Any]) -> str:
    """Fingerprint of a full policy, a part of one, or a key: equal for equal content."""
    text = json.dumps(described, sort_keys=True).encode()
    return f"sha256:{hashlib.sha256(text).hexdigest()[:16]}"


_ADAPTER: TypeAdapter[PolicyDocument] = TypeAdapter(PolicyDocument)
