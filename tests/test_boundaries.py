"""Who may import whom, read from the sources."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import warpcache_ray

PACKAGE = Path(warpcache_ray.__file__).parent
OURS = PACKAGE.name
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

MAY_IMPORT = {
    "core": {"torch", f"{OURS}.core"},
    "models": {"torch", "diffusers", f"{OURS}.core", f"{OURS}.errors", f"{OURS}.models"}
    | {"safetensors", "torchao", "dfloat11", f"{OURS}.extras"},
    "engine": {
        "torch",
        "diffusers",
        "numpy",
        "PIL",
        f"{OURS}.engine",
        f"{OURS}.models",
        f"{OURS}.core",
    }
    | {f"{OURS}.errors", f"{OURS}.policy_spec", f"{OURS}.policy_document"},
    "rpc": {"grpc", "google.protobuf", f"{OURS}.rpc"},
}
"""Beside the standard library."""

ONLY_IN = {
    "ray": "serving/",
    "redis": "store/",
    "xfuser": "parallel/",
    "distvae": "parallel/",
    "diffusers.hooks": "models/seam.py",
    f"{OURS}.cli": "cli.py",
    f"{OURS}.toyworld": "toyworld/",
}

LIGHT = ["config", *(f"serving.{m}" for m in ("ingress", "coordinator", "replica", "ranks", "app"))]
"""Modules of processes that never compute."""


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text())


def _names(node: ast.AST) -> Iterator[str]:
    """Dotted names that one statement imports, `from a import b` as a.b."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)


def _imports(file: str) -> set[str]:
    """All imports of a file, wherever they stand."""
    return {name for node in ast.walk(_tree(file)) for name in _names(node)}


def _loaded(body: list[ast.stmt]) -> Iterator[str]:
    """What importing the module imports: not in functions, not for type checkers."""
    for node in body:
        yield from _names(node)
        checked = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not checked and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            parts = (
                getattr(node, part, []) for part in ("body", "orelse", "handlers", "finalbody")
            )
            yield from _loaded([child for part in parts for child in part])


def _within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _outside(file: str, allowed: set[str]) -> set[str]:
    return {
        name
        for name in _imports(file)
        if name.split(".")[0] not in sys.stdlib_module_names and not _within(name, allowed)
    }


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_parts_import_what_they_may(part):
    """core, models and engine see nothing of what stands above them."""
    strays = {f: _outside(f, MAY_IMPORT[part]) for f in FILES if f.startswith(f"{part}/")}
    assert {file: names for file, names in strays.items() if names} == {}


def test_quality_stands_alone():
    """Measures of fidelity know nothing of what they measure."""
    files = [f for f in FILES if f.startswith("quality/")]
    ours = [name for f in files for name in _imports(f) if _within(name, {OURS})]
    assert [name for name in ours if not _within(name, {f"{OURS}.quality"})] == []


@pytest.mark.parametrize("name", ONLY_IN)
def test_one_place_each(name):
    """Ray, Redis, xfuser, DistVAE, diffusers' hooks, command line and toy world are each imported in one place only."""
    users = [f for f in FILES if any(_within(i, {name}) for i in _imports(f))]
    assert [f for f in users if not f.startswith(ONLY_IN[name])] == []


def test_core_loads_without_torch():
    """Only the warp needs torch at import; the others name it for type checkers."""
    files = [f for f in FILES if f.startswith("core/")]
    users = [f for f in files if any(_within(n, {"torch"}) for n in _loaded(_tree(f).body))]
    assert users == ["core/warp.py"]


def test_imports_are_absolute():
    """No relative import hides from these tests."""
    assert [f for f in FILES if any(name.startswith(".") for name in _imports(f))] == []


def test_modules_are_small_and_named_for_what_they_hold():
    """At most 400 lines; no drawer for odds and ends."""
    drawers = {"utils", "helpers", "common", "misc", "manager"}
    long = [f for f in FILES if len((PACKAGE / f).read_text().splitlines()) > 400]
    named = [f for f in FILES if drawers & set(f.removesuffix(".py").split("/"))]
    assert (long, named) == ([], [])


def test_processes_that_never_compute_load_no_torch():
    """Importing configuration and service leaves torch and diffusers out."""
    code = "import sys, importlib\n"
    code += f"for m in {LIGHT}: importlib.import_module('{OURS}.' + m)\n"
    code += "print(*sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


def test_the_scan_sees_hidden_imports():
    """Imports in functions count as imports, but not as loaded; those for type checkers neither."""
    source = "import a.b\nif TYPE_CHECKING:\n    import c\ntry:\n    import d\nexcept E:\n    from e import f\n"
    tree = ast.parse(source + "def g():\n    import h\nclass I:\n    import j\n")
    assert {n for node in ast.walk(tree) for n in _names(node)} == {
        "a.b",
        "c",
        "d",
        "e.f",
        "h",
        "j",
    }
    assert set(_loaded(tree.body)) == {"a.b", "d", "e.f", "j"}
