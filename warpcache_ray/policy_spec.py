"""Policies as users write them: a name, or a mapping with `name` and parameters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from warpcache_ray.core.policies import POLICIES
from warpcache_ray.core.policy import Policy
from warpcache_ray.errors import InvalidPolicy

PolicySpec = str | Mapping[str, Any] | Policy


def parse_policy(spec: PolicySpec, **parameters: Any) -> Policy:
    """The frozen policy that `spec` (and further `parameters`) describe.

    Raises:
        InvalidPolicy: unknown name or field, or a bad value; the message lists what is allowed.
    """
    if isinstance(spec, Policy):
        return (
            dataclasses.replace(spec, **_validated(type(spec), parameters)) if parameters else spec
        )
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
    return kind(**_validated(kind, parameters))


def describe_policy(policy: Policy) -> dict[str, Any]:
    """Name and parameters; `parse_policy` reads it back."""
    return {"name": policy.name, **dataclasses.asdict(policy)}


def parameters_of(kind: type[Policy]) -> list[str]:
    """The names of a policy's parameters."""
    return [field.name for field in dataclasses.fields(kind)]


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
