"""Runs the contract over all models and writes what came of it: `python tests/models/table.py [MODEL ...]`.

Without names all models are run. The record goes to warpcache_ray/models/tested.json, and as a table into the README; a
column stands for one check, or for all policies together. "Two ranks" is run where xfuser is installed.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "warpcache_ray" / "models" / "tested.json"
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"
OK = "ok"
RANKS = {"Wan 2.1": "wan", "HunyuanVideo": "hunyuan", "Cosmos-Predict 1": "cosmos"}
"""Of the models that ranks can share, the test's name; what is built of the same class is shared the same way."""

Record = dict[str, Any]


def run(names: list[str]) -> Record:
    """What each check came to: `ok`, `none: why` where it doesn't apply, or the error."""
    import torch
    from contract import checks
    from toys import TOYS

    torch.set_num_threads(1)
    models = {}
    for name in names:
        cells = {column: _cell(check, name) for column, check in checks().items()}
        cells["two ranks"] = _ranks(name)
        models[name] = {"transformer": TOYS[name].kind, "checks": cells}
        bad = {column: cell for column, cell in cells.items() if _sign(cell) == "✗"}
        print(name, bad or OK, flush=True)
    return {"torch": version("torch"), "diffusers": version("diffusers"), "models": models}


def _cell(check: Any, name: str) -> str:
    try:
        check(name)
    except NotImplementedError as error:
        return f"none: {error}"
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return OK


def _ranks(name: str) -> str:
    from toys import TOYS

    from warpcache_ray.parallel.support import SUPPORTED

    if TOYS[name].kind not in SUPPORTED:
        return "none: ranks can't share it"
    if name not in RANKS:
        return "none: run with another model of its class"
    if importlib.util.find_spec("xfuser") is None:
        return "none: xfuser isn't installed"
    chosen = f"ulysses and {RANKS[name]} and (forwards or (decide_as_one and worldcache))"
    test = "tests/parallel/test_two_ranks.py"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "", test, "-k", chosen]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return OK if ran.returncode == 0 else f"failed: {ran.stdout[-300:]}"


def _sign(cell: str) -> str:
    if cell == OK:
        return "✓"
    return "–" if cell.startswith("none: ") else "✗"


def markdown(record: Record) -> str:
    """The table of a record."""
    from contract import CHECKS, POLICIES, SITES

    sites = [f"site {site}" for site in SITES]
    single = [*sites, *CHECKS, "two ranks"]
    head = [
        "model",
        "transformer",
        *(f"`{site}`" for site in SITES),
        "policies",
        *CHECKS,
        "two ranks",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, model in record["models"].items():
        cells = model["checks"]
        signs = [_sign(cells[column]) for column in single]
        ran = sum(cells[policy] == OK for policy in POLICIES)
        row = [
            name,
            f"`{model['transformer']}`",
            *signs[: len(sites)],
            f"{ran} of {len(POLICIES)}",
            *signs[len(sites) :],
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def put(table: str, begin: str, end: str) -> None:
    """Writes a table into the README, between two marks."""
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(begin)
    _, _, after = rest.partition(end)
    readme.write_text(f"{before}{begin}\n{table}\n{end}{after}")


def main(names: list[str]) -> None:
    """Runs the named models, all without names, and writes record and table."""
    sys.path.insert(0, str(Path(__file__).parent))
    from toys import TOYS

    before: Record = json.loads(RECORD.read_text()) if names else {"models": {}}
    record = run(names or list(TOYS))
    models = {**before["models"], **record["models"]}
    record["models"] = {name: models[name] for name in TOYS if name in models}
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    put(markdown(record), BEGIN, END)


if __name__ == "__main__":
    main(sys.argv[1:])
