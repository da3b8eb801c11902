"""`warpcache key`: API keys for the service's clients."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
import yaml

from warpcache_ray.access_config import NAME, NAMES, digest, make_key

app = typer.Typer(no_args_is_help=True, help="API keys for the service's clients.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Of the client that is to have the key")],
    admin: Annotated[bool, typer.Option(help="Sees all jobs, may use /admin")] = False,
) -> None:
    """Make a key. It is shown now (on stderr) and never again; what the configuration needs goes to stdout, so that it
    can be appended to the file that `access.keys_file` names.
    """
    if not re.fullmatch(NAME, name):
        raise typer.BadParameter(f"{name!r} must be {NAMES}", param_hint="NAME")
    key = make_key()
    entry: dict[str, Any] = {"name": name, "sha256": digest(key)}
    entry |= {"admin": True} if admin else {}
    typer.echo(f"The key of {name}, shown only now: {key}", err=True)
    line = yaml.safe_dump([entry], default_flow_style=None, sort_keys=False, width=200)
    typer.echo(line, nl=False)
