"""What policies are published for: a slot is a key (model, size, steps, …) and the quality that requests ask for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from warpcache_ray.errors import InvalidConfig, InvalidPolicy, InvalidRequest
from warpcache_ray.policy_document import PolicyDocument, PolicyKey, parse_document
from warpcache_ray.policy_spec import POLICY_FILES, load_document, parse_policy

Served = Literal["default", "high", "balanced", "fast"]
"""A quality that requests ask for by name; `default` is that of those that ask for nothing."""
QUALITIES: tuple[Served, ...] = get_args(Served)
Documents = dict[Served, list[dict[str, Any]]]
"""As JSON has them, by the quality that they are for."""
POLICY_FOLDER = "configs/policies"
"""Where a configuration's documents are, if it doesn't say; it needn't exist."""


def slot_id(quality: str, key: PolicyKey) -> str:
    """The slot's name in the store, in URLs and of files: `default-0123456789abcdef`."""
    return f"{quality}-{key.digest.removeprefix('sha256:')}"


def quality_of(slot: str) -> str:
    """The quality that a slot is for."""
    return slot.partition("-")[0]


def check_quality(quality: str) -> Served:
    """The quality, if policies can be published for it.

    Raises:
        InvalidRequest: it's no such name.
    """
    for known in QUALITIES:
        if quality == known:
            return known
    raise InvalidRequest(
        f"quality: {quality!r} is not allowed; policies are published for {', '.join(QUALITIES)}",
        "quality",
    )


def read_document(content: Any) -> PolicyDocument:
    """The document that JSON describes; its policy is valid.

    Raises:
        InvalidPolicy: it's no document, or one that was changed.
    """
    document = parse_document(content)
    parse_policy(document.policy)
    return document


def read_published(slot: str, content: Any) -> PolicyDocument:
    """The document that is in a slot.

    Raises:
        InvalidPolicy: it's no document, or one for another slot.
    """
    document = read_document(content)
    own = slot_id(quality_of(slot), document.key)
    if own != slot:
        raise InvalidPolicy(f"the policy in slot {slot!r} was profiled for {own!r}", "policy.key")
    return document


def check_model(document: PolicyDocument, served: Sequence[str]) -> None:
    """Refuses a policy of a model that isn't served, where it is known which are.

    Raises:
        InvalidPolicy: the message names both.
    """
    if served and document.key.model not in served:
        raise InvalidPolicy(
            f"policy.key.model: {document.key.model!r} is not served here, the policy was profiled for another model; "
            f"there is {', '.join(sorted(served))}",
            "policy.key.model",
        )


def in_canary(job_id: str, share: int) -> bool:
    """Whether a job is one of the `share` percent that a canary has: the same for a job whenever one asks."""
    return int.from_bytes(hashlib.sha256(f"canary:{job_id}".encode()).digest()[:8]) % 100 < share


def with_documents(policies: str | Documents) -> Documents:
    """A configuration's documents, all of them valid: given ones, or those in a folder's files, each for the quality
    that its name begins with (`high.json`, `default-….yaml`).

    Raises:
        InvalidConfig: a file that is no document, or named for no quality; or no such folder.
    """
    try:
        if isinstance(policies, str):
            folder = Path(policies).expanduser()
            return {} if policies == POLICY_FOLDER and not folder.is_dir() else _in_files(folder)
        for content in (each for contents in policies.values() for each in contents):
            read_document(content)
    except InvalidPolicy as error:
        raise InvalidConfig(f"policies: {error.message}", "policies") from error
    except OSError as error:
        raise InvalidConfig(f"policies = {policies!r}: {error.strerror}", "policies") from error
    return policies


def _in_files(folder: Path) -> Documents:
    found: Documents = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix in POLICY_FILES):
        try:
            quality = check_quality(quality_of(path.stem))
        except InvalidRequest as error:
            said = f"{path}: its name must begin with one of {', '.join(QUALITIES)}"
            raise InvalidPolicy(said, "policies") from error
        found.setdefault(quality, []).append(load_document(path).to_dict())
    return found
