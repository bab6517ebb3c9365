"""Variables from files, and Ray's runtime_env, as options of `run`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_rig import running


def output(*args: str, env: dict[str, str]) -> str:
    with running(*args, env=env) as run:
        assert run.ended() == 0, run.says
        return run.out.decode()


def refusal(*args: str, env: dict[str, str]) -> str:
    with running(*args, env=env) as run:
        assert run.ended() == 125
        return run.says[-1]


def test_variables_of_a_file_are_set_and_those_of_the_command_line_win(env: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "vars"
    file.write_text("# settings\n\nA=one\nB=two words\nC\nD=file\n")
    args = ("--env-file", str(file), "-e", "D=line", "--", "sh", "-c", 'echo "$A,$B,$C,$D"')
    assert output(*args, env={**env, "C": "from here"}) == "one,two words,from here,line\n"


@pytest.mark.parametrize(
    "content, text",
    [
        (None, "No such file or directory"),
        (b"\xff\xfe", "it is no text"),
        (b"A=1\n=2\n", "line 2: the name is missing; write NAME=VALUE"),
        (b"UNSET_HERE\n", "line 1: UNSET_HERE is not set here; write UNSET_HERE=VALUE"),
    ],
)
def test_a_file_that_is_wrong_is_said_where(
    env: dict[str, str], tmp_path: Path, content: bytes | None, text: str
) -> None:
    file = tmp_path / "vars"
    if content is not None:
        file.write_bytes(content)
    assert text in refusal("--env-file", str(file), "--", "true", env=env)


def test_the_values_of_a_file_are_not_in_the_plan(env: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "vars"
    file.write_text("TOKEN=s3cret\n")
    plan = output("--dry-run", "--env-file", str(file), "--", "true", env=env)
    assert "TOKEN" in plan
    assert "s3cret" not in plan


def test_programs_run_in_the_runtime_env(env: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "env.yaml"
    file.write_text("env_vars:\n  OF_THE_ENV: 'yes'\n")
    assert output("--runtime-env", str(file), "--", "sh", "-c", "echo $OF_THE_ENV", env=env) == "yes\n"


def test_a_runtime_env_may_be_json(env: dict[str, str]) -> None:
    facts = json.dumps({"env_vars": {"OF_THE_ENV": "json"}})
    assert output("--runtime-env", facts, "--", "sh", "-c", "echo $OF_THE_ENV", env=env) == "json\n"


def test_a_working_directory_is_brought_to_the_node(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("brought\n")
    printed = output("--working-dir", str(tmp_path), "--", "sh", "-c", "cat data.txt; pwd", env=env).splitlines()
    assert printed[0] == "brought"
    assert printed[1] != str(tmp_path)


@pytest.mark.parametrize(
    "value, text",
    [("[1, 2", "No such file"), ("{a: [", "it is no YAML"), ("/dev/null", "holds no mapping")],
)
def test_a_runtime_env_that_is_wrong_is_refused(env: dict[str, str], value: str, text: str) -> None:
    assert text in refusal("--runtime-env", value, "--", "true", env=env)


def test_a_secret_comes_from_a_file_here(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret")
    args = ("--secret", f"api={tmp_path / 'key'}", "--", "sh", "-c", 'cat "$RAY_LAUNCHER_SECRETS/api"')
    assert output(*args, env=env) == "s3cret"


@pytest.mark.parametrize("value, text", [("s3cret", "write NAME=FILE"), ("api=/nonexistent", "cannot read the file")])
def test_a_secret_that_is_wrong_is_refused_without_showing_it(env: dict[str, str], value: str, text: str) -> None:
    said = refusal("--secret", value, "--", "true", env=env)
    assert text in said
    assert "s3cret" not in said
