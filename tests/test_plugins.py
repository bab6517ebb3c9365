"""Spawners by name: found among those that installed packages offer, or an error that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from custom_spawner import LocalSpawner
from plugin_rig import offer

from ray_launcher import ProcLauncherError, UnknownSpawnerError, find_spawner, spawner_names

MORE = {"abstract": "ray_launcher:ProcSpawner", "script": "a_script:Spawner"}


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with spawners of all kinds."""
    offer(tmp_path, local="custom_spawner:LocalSpawner", broken="nothing_there:Spawner", odd="os:getcwd", **MORE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_spawner_is_found_by_its_name() -> None:
    assert find_spawner("local") is LocalSpawner


def test_names_are_told_without_an_import() -> None:
    assert {"broken", "local", "odd"} <= set(spawner_names())


def test_an_unknown_name_lists_those_that_there_are() -> None:
    with pytest.raises(UnknownSpawnerError, match=r"no spawner 'lokal'; those that are installed: abstract, broken, "):
        find_spawner("lokal")


def test_one_that_cannot_be_imported_says_why_and_whose_it_is() -> None:
    with pytest.raises(ProcLauncherError, match=r"'broken' \(nothing_there:Spawner, of offers\) cannot be imported"):
        find_spawner("broken")


def test_what_is_no_spawner_is_refused() -> None:
    with pytest.raises(ProcLauncherError, match=r"'odd' .* is no subclass of ray_launcher.ProcSpawner"):
        find_spawner("odd")


def test_one_that_exits_when_it_is_imported_says_so(tmp_path: Path) -> None:
    (tmp_path / "a_script.py").write_text("raise SystemExit('no arguments')")
    with pytest.raises(ProcLauncherError, match=r"'script' .* cannot be imported: no arguments"):
        find_spawner("script")


def test_one_that_lacks_a_coroutine_is_refused_with_its_name() -> None:
    with pytest.raises(ProcLauncherError, match=r"'abstract' .* is not finished: it must define kill, launch, term"):
        find_spawner("abstract")


def test_a_name_that_two_distributions_offer_is_refused_with_both_and_listed_once(tmp_path: Path) -> None:
    offer(tmp_path, "rivals", local="custom_spawner:Other")
    with pytest.raises(ProcLauncherError, match=r"'local' is offered twice: .*; uninstall one, or import") as caught:
        find_spawner("local")
    for described in ("custom_spawner:LocalSpawner, of offers", "custom_spawner:Other, of rivals"):
        assert described in str(caught.value)
    assert spawner_names().count("local") == 1


def test_a_name_is_a_str() -> None:
    with pytest.raises(TypeError, match="name must be a str, not NoneType"):
        find_spawner(None)  # type: ignore[arg-type]
