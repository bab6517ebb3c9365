"""The layout: imports go downwards only, edges use public names, and the supervisor stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ray_launcher

ROOT = Path(ray_launcher.__file__).parent
WORDS = {
    "errors",
    "exits",
    "options",
    "placement",
    "checks",
    "frozen",
    "callables",
    "info",
    "limits",
    "ranks",
    "readiness",
}
WORDS |= {"usage", "checkup"}
CONTRACT = {"outcomes", "pace", "desk", "spawner", "port", "ledger", "mail", "launcher", "plugins"}
TOP = {
    "session",
    "sessions",
    "nodes",
    "doctor",
    "packages",
    "logs",
    "gang",
    "plan",
    "stdin",
    "view",
    "changes",
    "calls",
}
EDGES = {"cli", "integrations", "spawners", "testing", "__main__"}
#: Each layer may import those before it, and itself.
LAYERS = [WORDS, {"node"}, CONTRACT, {"cluster"}, TOP]
HEAVY = {"typing", "dataclasses", "subprocess", "json", "re", "asyncio", "logging", "pathlib", "inspect"}

MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def part_of(module: str) -> str:
    """`ray_launcher.node.tail` -> `node`."""
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, those inside functions too, those for type checkers only left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            known = [name for name in submodules if (ROOT.parent / name.replace(".", "/")).with_suffix(".py").exists()]
            yield from known or [node.module]


def own(path: Path) -> str:
    return part_of(".".join(path.relative_to(ROOT.parent).with_suffix("").parts))


@pytest.mark.parametrize(
    "path", [path for path in MODULES if own(path) not in EDGES], ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_go_downwards_only(path: Path) -> None:
    layer = next(number for number, parts in enumerate(LAYERS) if own(path) in parts)
    allowed = set().union(*LAYERS[: layer + 1])
    taken = {part_of(name) for name in imports(path) if name.startswith("ray_launcher")}
    assert taken <= allowed, f"{path} reaches upwards: {taken - allowed}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_is_in_a_layer(path: Path) -> None:
    assert own(path) in set().union(*LAYERS) | EDGES


@pytest.mark.parametrize(
    "path", [path for path in MODULES if own(path) in EDGES], ids=lambda path: str(path.relative_to(ROOT))
)
def test_edges_use_public_names_only(path: Path) -> None:
    ours = {name for name in imports(path) if name.startswith("ray_launcher") and part_of(name) not in EDGES}
    assert ours <= {"ray_launcher"}
    taken = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "ray_launcher"
        for alias in node.names
    }
    assert taken <= set(ray_launcher.__all__)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_absolute(path: Path) -> None:
    relative = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


@pytest.mark.parametrize(
    "path", [path for path in MODULES if own(path) in WORDS | {"node"}], ids=lambda path: str(path.relative_to(ROOT))
)
def test_words_and_node_know_nothing_of_ray(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert roots - {"ray_launcher", "cloudpickle"} <= sys.stdlib_module_names


def test_the_supervisor_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['main']; sys.path.insert(0, sys.orig_argv[-1]); import main; "
        "main._stand_in_packages(); import ray_launcher.node.guard, ray_launcher.node.supervisor; "
        "print(*sys.modules)"
    )
    command = [sys.executable, "-I", "-S", "-c", script, str(ROOT / "node")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert not HEAVY & set(done.stdout.split())
