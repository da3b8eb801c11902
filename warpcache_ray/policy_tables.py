"""Published policies as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from warpcache_ray.policy_document import Target
from warpcache_ray.policy_spec import summarize_policy

ABSENT = "–"


def slots(lines: Sequence[Mapping[str, Any]]) -> Table:
    """One row a slot, whose name is whole in a narrow terminal too: it is there to be copied."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("slot", no_wrap=True)
    for name in ("for", "promise", "active", "canary"):
        table.add_column(name, overflow="fold")
    for line in lines:
        share = f" ({line['share']} %)" if line["canary"] else ""
        versions = line["active"] or ABSENT, f"{line['canary'] or ABSENT}{share}"
        table.add_row(line["slot"], *_described(line), *map(str, versions))
    return table


def document(content: Mapping[str, Any]) -> Table:
    """One row a field."""
    table = Table(show_header=False)
    for name, value in _flat(content).items():
        table.add_row(name, escape(str(value)))
    return table


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The fields that two documents have differently, with both values."""
    before, after = _flat(old), _flat(new)
    names = [*before, *(name for name in after if name not in before)]
    pairs = {name: [before.get(name), after.get(name)] for name in names}
    return {name: values for name, values in pairs.items() if values[0] != values[1]}


def compared(found: Mapping[str, Sequence[Any]], old: str, new: str) -> Table:
    """One row a field."""
    table = Table("", escape(old), escape(new))
    for name, values in found.items():
        table.add_row(name, *(escape(str(value)) for value in values))
    return table


def history(changes: Sequence[Mapping[str, Any]]) -> Table:
    """One row a change."""
    table = Table("revision", "at (UTC)", "what", "version", "share", "who", "why")
    for change in changes:
        at = datetime.fromtimestamp(change["at"], UTC).strftime("%Y-%m-%d %H:%M:%S")
        told = (change["revision"], at, change["what"], change["version"] or ABSENT)
        said = (f"{change['share']} %", change["who"], change["why"])
        table.add_row(*(escape(str(each)) for each in (*told, *said)))
    return table


def _described(line: Mapping[str, Any]) -> tuple[str, str]:
    key, target = line["key"], line["target"]
    if key is None:
        return ABSENT, ABSENT
    size = f"{key['width']}×{key['height']}×{key['num_frames']}"
    proven = "certified" if line["certified"] else "estimate"
    return f"{key['model']} {size}, {key['steps']} steps", f"{Target(**target)} ({proven})"


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names; what a policy has measured by its digest."""
    shown = {**content, "policy": summarize_policy(content["policy"])}
    return dict(_leaves("", shown))


def _leaves(prefix: str, content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value
