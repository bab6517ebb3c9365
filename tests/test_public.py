"""The public names: what is promised is there, documented, and nothing else is exported."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import ray_launcher
from ray_launcher import testing
from ray_launcher.cli.main import cli

#: What the design promises so far.
PROMISED = {
    *("LaunchOptions", "Placement", "ProcBind", "StdioHandling"),
    *("ExitReport", "Exited", "Signaled", "Failed", "ProcExitKind", "ProcExitResult", "decode_exit"),
    *("ProcLauncher", "ActorProcLauncher", "RayProcLauncher", "LaunchResult", "ExitPort"),
    *("ProcSpawner", "start_spawner", "ProcInfo", "Gang", "GangResult"),
    *("ProcLauncherError", "LaunchError", "TerminateError", "KillError", "DecodeError", "UnknownProcError"),
}
README = Path(__file__).parent.parent / "README.md"


def test_all_is_sorted_and_each_name_is_there() -> None:
    assert sorted(ray_launcher.__all__, key=str.lower) == sorted(set(ray_launcher.__all__), key=str.lower)
    assert [name for name in ray_launcher.__all__ if not hasattr(ray_launcher, name)] == []


def test_everything_imported_into_the_package_is_in_all() -> None:
    shown = {
        name
        for name, value in vars(ray_launcher).items()
        if not name.startswith("_") and not inspect.ismodule(value) and value is not None
    }
    assert shown - {"annotations"} == set(ray_launcher.__all__)


def test_what_the_design_promises_is_there() -> None:
    assert set(ray_launcher.__all__) >= PROMISED


@pytest.mark.parametrize("name", sorted(ray_launcher.__all__))
def test_each_public_class_and_function_says_what_it_is_for(name: str) -> None:
    value = getattr(ray_launcher, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value)


@pytest.mark.parametrize(
    "name", sorted(name for name in ray_launcher.__all__ if inspect.isclass(getattr(ray_launcher, name)))
)
def test_each_public_method_says_what_it_does(name: str) -> None:
    methods = inspect.getmembers(getattr(ray_launcher, name), inspect.isfunction)
    ours = [method for method_name, method in methods if not method_name.startswith("_")]
    undocumented = [
        method.__qualname__ for method in ours if "ray_launcher" in method.__module__ and not method.__doc__
    ]
    assert undocumented == []


def test_what_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([\w./-]+)\)", README.read_text())
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []


def test_what_the_readme_imports_from_the_package_is_public() -> None:
    imported = re.findall(r"^from ray_launcher import (.+)$", README.read_text(), re.MULTILINE)
    names = {name.strip() for line in imported for name in line.split(",")}
    assert names <= set(ray_launcher.__all__)


def test_the_commands_and_options_of_the_readme_exist() -> None:
    used = set(re.findall(r"(?:ray-launcher|python -m ray_launcher) ([a-z]+)", README.read_text()))
    assert used <= set(cli.commands)
    rows = README.read_text().partition("| verb | |\n")[2].partition("\n\n")[0].splitlines()
    assert {verb for row in rows for verb in re.findall("`([a-z]+)`", row.split("|")[1])} == set(cli.commands)
    (usage,) = re.findall(r"^ray-launcher run (\[.*?) -- PROGRAM", README.read_text(), re.MULTILINE | re.DOTALL)
    known = {name for parameter in cli.commands["run"].params for name in parameter.opts}
    assert set(re.findall(r"-{1,2}[a-z-]+\b|-n", usage)) <= known


def test_the_testing_module_brings_what_the_readme_promises() -> None:
    assert inspect.isclass(testing.FakeSpawner)
    assert inspect.isclass(testing.SpawnerContract)
