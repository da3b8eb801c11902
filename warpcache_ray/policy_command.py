"""`warpcache policy`: what is published in a store, and changes of that. Running services follow within a second."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from warpcache_ray import policy_tables
from warpcache_ray.errors import InvalidConfig, InvalidRequest, WarpCacheError
from warpcache_ray.policy_slots import Documents, check_quality, read_document, with_documents
from warpcache_ray.policy_spec import POLICY_FILES, load_document, save_policy
from warpcache_ray.publication import asked, whoever
from warpcache_ray.store.published import Published
from warpcache_ray.terminal import complain, console

app = typer.Typer(no_args_is_help=True, help="The policies that a service serves with.")

Store = Annotated[
    str,
    typer.Option(envvar="WARPCACHE_STORE", help="redis://, rediss:// or unix:// URL", show_default=False),
]  # fmt: skip
App = Annotated[
    str | None,
    typer.Option(envvar="WARPCACHE_APP", help="Application; default: the only one in the store"),
]
By = Annotated[str | None, typer.Option(help="Who changes it; default: user@host")]
Why = Annotated[str, typer.Option(help="Why; both stand in the history")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of tables")]
Slot = Annotated[str, typer.Argument(help="As `list` names it; the beginning suffices")]
What = Annotated[str, typer.Argument(help="A policy file, a slot (its active version), or SLOT@VERSION")]  # fmt: skip
Quality = Annotated[
    str, typer.Option("--for", help="Quality that a file serves: default, high, balanced or fast")
]


@app.command("list")
def list_(store: Store, app: App = None, as_json: Json = False) -> None:
    """All slots: what each is for, and which versions are in force."""
    lines = _ask(store, app, lambda policies: policies.slots())
    _tell(lines, policy_tables.slots, as_json)


@app.command()
def show(what: What, store: Store, app: App = None, as_json: Json = False) -> None:
    """A version's document; its policy's measurements as digests, all of it with --json."""
    document = _ask(store, app, lambda policies: _document(policies, what))
    _tell(document, policy_tables.document, as_json)


@app.command()
def diff(old: What, new: What, store: Store, app: App = None, as_json: Json = False) -> None:
    """What differs between two documents."""

    async def both(policies: Published) -> Any:
        documents = await _document(policies, old), await _document(policies, new)
        return policy_tables.differences(*documents)

    _tell(_ask(store, app, both), lambda found: policy_tables.compared(found, old, new), as_json)


@app.command("set")
def set_(
    what: What,
    store: Store,
    app: App = None,
    quality: Quality = "default",
    by: By = None,
    why: Why = "",
    as_json: Json = False,
) -> None:
    """Have a file's policy, or a version that is there, serve all requests of its slot."""
    _change(store, app, as_json, lambda policies: _put(policies, what, quality, by, why, 100))


@app.command()
def canary(
    what: What,
    percent: Annotated[int, typer.Argument(help="Of the slot's requests, 1 to 99")],
    store: Store,
    app: App = None,
    quality: Quality = "default",
    by: By = None,
    why: Why = "",
    as_json: Json = False,
) -> None:
    """Have a file's policy, or a version that is there, serve a share of the requests."""

    async def put(policies: Published) -> Any:
        if not 1 <= percent <= 99:
            raise InvalidRequest(
                f"percent: {percent} is not allowed; it must be 1 to 99", "percent"
            )
        return await _put(policies, what, quality, by, why, percent)

    _change(store, app, as_json, put)


@app.command()
def promote(
    slot: Slot, store: Store, app: App = None, by: By = None, why: Why = "", as_json: Json = False
) -> None:
    """Have the canary serve all requests."""
    _change_slot("promote", slot, store, app, by, why, as_json)


@app.command()
def withdraw(
    slot: Slot, store: Store, app: App = None, by: By = None, why: Why = "", as_json: Json = False
) -> None:
    """End the canary."""
    _change_slot("withdraw", slot, store, app, by, why, as_json)


@app.command()
def rollback(
    slot: Slot, store: Store, app: App = None, by: By = None, why: Why = "", as_json: Json = False
) -> None:
    """Have the version serve that did before; end the canary."""
    _change_slot("rollback", slot, store, app, by, why, as_json)


@app.command()
def history(slot: Slot, store: Store, app: App = None, as_json: Json = False) -> None:
    """Who changed what, and why; the newest first."""

    async def told(policies: Published) -> Any:
        return await policies.history(await policies.find(slot))

    _tell(_ask(store, app, told), policy_tables.history, as_json)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Of the files, one a slot; they work in configs/policies too")],
    store: Store,
    app: App = None,
) -> None:  # fmt: skip
    """Write the active versions as files."""

    async def write(policies: Published) -> list[Path]:
        active = [line["slot"] for line in await policies.slots() if line["active"] is not None]
        documents = {slot: read_document(await policies.document(slot)) for slot in active}
        folder.mkdir(parents=True, exist_ok=True)
        for slot, document in documents.items():
            save_policy(document, folder / f"{slot}.json")
        return [folder / f"{slot}.json" for slot in documents]

    for path in _ask(store, app, write):
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Of files named for their quality, as `export` does")],
    store: Store,
    app: App = None,
    by: By = None,
    why: Why = "",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Have the policies of a folder's files serve all requests; all files are checked before the first is published."""

    async def publish(policies: Published) -> list[dict[str, Any]]:
        documents: Documents = with_documents(str(folder.absolute()))
        if not documents:
            raise InvalidConfig(f"folder = {str(folder)!r}: there is no policy file", "folder")
        each = [(quality, content) for quality in documents for content in documents[quality]]
        return [await policies.publish(*one, whoever(by), why) for one in each]

    _tell(_ask(store, app, publish), policy_tables.slots, as_json)


def _change(
    store: str, app: str | None, as_json: bool, ask: Callable[[Published], Awaitable[Any]]
) -> None:
    _tell(_ask(store, app, ask), lambda line: policy_tables.slots([line]), as_json)


def _change_slot(
    what: str, slot: str, store: str, app: str | None, by: str | None, why: str, as_json: bool
) -> None:
    async def change(policies: Published) -> Any:
        return await getattr(policies, what)(await policies.find(slot), whoever(by), why)

    _change(store, app, as_json, change)


async def _put(
    policies: Published, what: str, quality: str, by: str | None, why: str, share: int
) -> Any:
    if what.endswith(POLICY_FILES):
        document = load_document(what).to_dict()
        return await policies.publish(check_quality(quality), document, whoever(by), why, share)
    slot, version = await _slot(policies, what)
    if version is None:
        raise InvalidRequest(
            f"what: {what!r} is not allowed; it must be SLOT@VERSION or a file that ends in {', '.join(POLICY_FILES)}",
            "what",
        )
    return await policies.activate(slot, version, whoever(by), why, share)


async def _document(policies: Published, what: str) -> dict[str, Any]:
    if what.endswith(POLICY_FILES):
        return load_document(what).to_dict()
    return await policies.document(*await _slot(policies, what))


async def _slot(policies: Published, what: str) -> tuple[str, int | None]:
    name, at, version = what.partition("@")
    if at and not (version.isascii() and version.isdigit()):
        raise InvalidRequest(f"version: {version!r} is not allowed; it must be a number", "version")
    return await policies.find(name), int(version) if at else None


def _ask(store: str, app: str | None, ask: Callable[[Published], Awaitable[Any]]) -> Any:
    try:
        return asked(store, app, ask)
    except WarpCacheError as error:
        raise complain(error) from error


def _tell(found: Any, table: Callable[[Any], Table], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        console.print(table(found))
