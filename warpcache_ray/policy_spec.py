"""Policies as users write them: a name, or a mapping with `name`, maybe a `preset`, and parameters; in files too."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from warpcache_ray.core.policies import POLICIES
from warpcache_ray.core.policy import Policy
from warpcache_ray.errors import InvalidPolicy
from warpcache_ray.policy_document import PolicyDocument, is_document, parse_document
from warpcache_ray.policy_document import digest as digest

PolicySpec = str | Mapping[str, Any] | Policy
POLICY_FILES = (".json", ".yaml", ".yml")
SUMMARISED = 256
"""A summary has lists up to this length in full: two numbers for each of the steps that runs have."""


def parse_policy(spec: PolicySpec, **parameters: Any) -> Policy:
    """The frozen policy that `spec` (and further `parameters`) describe. A `preset` stands for parameters of its own,
    which those beside it replace.

    Raises:
        InvalidPolicy: unknown name, preset or field, or a bad value; the message lists what is allowed.
    """
    if isinstance(spec, Policy):
        kind, parameters = type(spec), _with_preset(type(spec), parameters)
        return dataclasses.replace(spec, **_validated(kind, parameters)) if parameters else spec
    if isinstance(spec, Mapping):
        named = dict(spec)
        name = named.pop("name", None)
        parameters = {**named, **parameters}
    else:
        name = spec
    if not isinstance(name, str) or name not in POLICIES:
        raise InvalidPolicy(
            f"policy {name!r} is unknown; there are: {', '.join(POLICIES)}", "policy"
        )
    kind = POLICIES[name]
    return kind(**_validated(kind, _with_preset(kind, parameters)))


def load_policy(path: str | Path, **parameters: Any) -> Policy:
    """The policy in a `.json`, `.yaml` or `.yml` file (bare, or a profiler's document), with further `parameters`; what
    both leave out has its default.

    Raises:
        InvalidPolicy: no such file, another ending, not of its format, or no valid policy.
    """
    path = Path(path)
    spec = _read(path)
    if not isinstance(spec, (str, Mapping)):
        raise InvalidPolicy(
            f"{path}: must hold a policy's name, or a mapping with `name`", "policy"
        )
    try:
        if is_document(spec):
            spec = parse_document(spec).policy
        return parse_policy(parse_policy(spec), **parameters)
    except InvalidPolicy as error:
        raise InvalidPolicy(f"{path}: {error.message}", error.param) from error


def load_document(path: str | Path) -> PolicyDocument:
    """The profiler's document in a `.json`, `.yaml` or `.yml` file; its policy is valid.

    Raises:
        InvalidPolicy: no such file, another ending, or no document.
    """
    try:
        document = parse_document(_read(Path(path)))
        parse_policy(document.policy)
    except InvalidPolicy as error:
        told = error.message if str(path) in error.message else f"{path}: {error.message}"
        raise InvalidPolicy(told, error.param) from error
    return document


def save_policy(policy: Policy | PolicyDocument, path: str | Path) -> None:
    """Writes all parameters (of a document, all that it holds), as JSON or YAML by the file's ending; `load_policy`
    reads them back. The file is whole at any time.

    Raises:
        InvalidPolicy: another ending.
    """
    path = Path(path)
    _, write = _format(path)
    content = describe_policy(policy) if isinstance(policy, Policy) else policy.to_dict()
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    # By way of JSON, so that tuples and enumerations are plain in YAML too.
    draft.write_text(write(json.loads(json.dumps(content))))
    draft.replace(path)


def describe_policy(policy: Policy) -> dict[str, Any]:
    """Name and parameters; `parse_policy` reads it back."""
    return {"name": policy.name, **dataclasses.asdict(policy)}


def summarize_policy(policy: Policy | Mapping[str, Any]) -> dict[str, Any]:
    """Name and parameters (or those of a description) for records; measurements that a policy carries, and lists of
    more than `SUMMARISED`, are named by a digest."""
    described = dict(policy) if isinstance(policy, Mapping) else describe_policy(policy)
    for field, value in described.items():
        listed = isinstance(value, list | tuple)
        if isinstance(value, dict) or (listed and len(value) > SUMMARISED):
            described[field] = digest(value)
    return described


def parameters_of(kind: type[Policy]) -> list[str]:
    """The names of a policy's parameters."""
    return [field.name for field in dataclasses.fields(kind)]


def check_policy_file(path: str | Path) -> None:
    """Refuses a name that `save_policy` would refuse.

    Raises:
        InvalidPolicy: another ending.
    """
    _format(Path(path))


def _read(path: Path) -> Any:
    read, _ = _format(path)
    try:
        return read(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidPolicy(f"{path}: can't be read: {error}", "policy") from error


def _format(path: Path) -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    if path.suffix == ".json":
        return json.loads, lambda described: json.dumps(described, indent=2) + "\n"
    if path.suffix in (".yaml", ".yml"):
        return yaml.safe_load, lambda described: str(yaml.safe_dump(described, sort_keys=False))
    raise InvalidPolicy(f"{path}: must end in .json, .yaml or .yml", "policy")


def _with_preset(kind: type[Policy], parameters: dict[str, Any]) -> dict[str, Any]:
    if "preset" not in parameters:
        return parameters
    rest = dict(parameters)
    preset = rest.pop("preset")
    if not isinstance(preset, str) or preset not in kind.presets:
        known = ", ".join(kind.presets) or "none"
        raise InvalidPolicy(
            f"policy {kind.name!r}: preset: {preset!r} is not allowed; there are: {known}",
            "policy.preset",
        )
    return {**kind.presets[preset], **rest}


def _validated(kind: type[Policy], parameters: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(parameters) - set(parameters_of(kind)), key=str)
    if unknown:
        raise InvalidPolicy(
            f"policy {kind.name!r} has no parameter {unknown[0]!r}; it has: {', '.join(parameters_of(kind))}",
            f"policy.{unknown[0]}",
        )
    try:
        made = _adapter(kind.name).validate_python(parameters)
    except ValidationError as error:
        raise _invalid(kind, error) from error
    return {name: getattr(made, name) for name in parameters}


def _invalid(kind: type[Policy], error: ValidationError) -> InvalidPolicy:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["loc"]:
        field = str(first["loc"][0])
        message = f"{field}: {first['input']!r} is not allowed; {message}"
    else:
        field = message.split(":")[0]
    return InvalidPolicy(f"policy {kind.name!r}: {message}", f"policy.{field}")


@functools.cache
def _adapter(name: str) -> TypeAdapter[Policy]:
    kind = POLICIES[name]
    strict = type(
        kind.__name__,
        (kind,),
        {"__pydantic_config__": ConfigDict(extra="forbid", allow_inf_nan=False)},
    )
    return TypeAdapter(dataclasses.dataclass(frozen=True, kw_only=True)(strict))
