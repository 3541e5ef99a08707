"""The command line, without a process of its own."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import structlog
from typer.testing import CliRunner

from indexer.build import BuildOptions, build_bundle
from indexer.corpus import Corpus
from server import commands, health
from server.commands import app
from server.settings import Settings
from trainer.vocabulary import Vocabulary


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """``serve`` sets the logging of its process, which here is everybody's."""
    yield
    structlog.reset_defaults()


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "120"})


def test_searches_print_a_table_or_json(server: Any) -> None:
    searched = run("search", "--user", "1", "--count", "3", "--address", server.address)
    assert searched.exit_code == 0
    assert "title" in searched.output
    printed = run("search", "--like", "1", "--exact", "--json", "--address", server.address)
    ids = [candidate["id"] for candidate in json.loads(printed.output)["candidates"]]
    assert len(ids) == 10
    some = ["--liked", f"{ids[0]}, {ids[1]}", "--disliked", ids[2], "--fields", "year"]
    liked = run("search", *some, "--backend", "brute_force", "--json", "--address", server.address)
    assert {"id", "score", "year"} == set(json.loads(liked.output)["candidates"][0])


def test_notices_are_shown(server: Any) -> None:
    searched = run("search", "--user", "nobody", "--address", server.address)
    assert "COLD_START: nothing is known of the user" in searched.output


def test_words_are_a_query_alone_or_beside_a_user(server: Any) -> None:
    for arguments in (("--describe", "comedy"), ("--describe", "comedy", "--user", "1")):
        printed = run("search", *arguments, "--json", "--address", server.address)
        answer = json.loads(printed.output)
        assert (10, []) == (len(answer["candidates"]), answer["notices"])
    some = (
        "--where",
        "year>=1995",
        "--where",
        "genres~Comedy",
        "--exclude",
        "1,2",
        "--recall",
        "0.9",
    )
    asked = ("--fields", "year,genres", "--json", "--address", server.address)
    found = json.loads(run("search", "--user", "1", *some, *asked).stdout)["candidates"]
    assert len(found) == 10
    assert all(one["year"] >= 1995 and "Comedy" in one["genres"] for one in found)
    assert not {"1", "2"} & {one["id"] for one in found}
    unread = run("search", "--describe", "xyzzy", "--address", server.address)
    assert "COLD_START" in unread.output


@pytest.mark.parametrize(
    "arguments", [(), ("--user", "1", "--like", "2"), ("--describe", "comedy", "--like", "2")]
)
def test_one_kind_of_query_must_be_said(arguments: tuple[str, ...]) -> None:
    assert run("search", *arguments).exit_code == 2


def test_every_setting_is_a_flag() -> None:
    helped = run("serve", "--help").output
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}"[:20] in helped
    printed = run("serve", "--print-config", "--workers", "3", "--no-reflection").output
    assert "workers = 3\n" in printed


def test_health_is_an_exit_status(server: Any) -> None:
    assert run("health", "--address", server.address).exit_code == 0
    assert run("health", "--address", "127.0.0.1:1").exit_code == 1


def test_health_is_asked_for_without_what_other_commands_need() -> None:
    """Orchestrators start it every few seconds."""
    script = (
        "import runpy, sys\n"
        "sys.argv[1:] = ['health', '--address', '127.0.0.1:1']\n"
        "try:\n"
        "    runpy.run_module('server', run_name='__main__')\n"
        "finally:\n"
        "    print({'numpy', 'pyarrow', 'pydantic', 'rich', 'typer'} & sys.modules.keys())\n"
    )
    asked = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert (1, "set()\n") == (asked.returncode, asked.stdout)
    assert asked.stderr == "error: 127.0.0.1:1 does not answer searches\n"


def test_health_needs_an_authority_that_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == health.main(["--authority", "nowhere.pem"])
    assert "error: cannot read nowhere.pem: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_faults_are_logged_without_the_values_of_variables(
    log_format: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Among which are user ids and histories."""

    def search(user_id: str) -> None:
        raise ValueError("no " + user_id[:4])

    commands._configure_logging(Settings(log_format=log_format))
    secret = "user-4711"
    try:
        search(secret)
    except ValueError as error:
        structlog.get_logger().error("internal error", exc_info=error)
    logged = capsys.readouterr().err
    assert "no user" in logged
    assert "in search" in logged or '"name": "search"' in logged
    assert "user-4711" not in logged


def test_what_looks_like_markup_is_shown_as_it_is(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    ids = [f"[red]m{i}[/b]" for i in range(12)]
    candidates = pa.table(
        {
            "candidate_id": ids,
            "title": ["Alien [director's cut]", "[/foo] bar"] * 6,
            "share": [math.nan, 0.5] * 6,
        }
    )
    embeddings = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    corpus = Corpus(Vocabulary(ids), embeddings, candidates, np.zeros(12, np.float32))
    options = BuildOptions(backends=("brute_force",), k=5)
    server = start(build_bundle(corpus, None, tmp_path, options))
    asked = ("search", "--like", ids[0], "--count", "11", "--address", server.address)
    shown = run(*asked).output
    for text in (ids[1], "Alien [director's cut]", "[/foo] bar"):
        assert text in shown
    found = json.loads(run(*asked, "--fields", "share", "--json").output, parse_constant=refuse)
    assert {None, 0.5} == {one["share"] for one in found["candidates"]}


def test_what_does_not_answer_is_told_with_what_to_look_at() -> None:
    told = run("search", "--user", "1", "--address", "127.0.0.1:1").output
    assert "error: no server answers at 127.0.0.1:1: is one running there" in told


def refuse(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def test_mistakes_are_sentences(server: Any) -> None:
    too_many = run("search", "--user", "1", "--count", str(10**12), "--address", server.address)
    assert "error: Value out of range" in too_many.output
    no_text = run("search", "--user", "\udcff", "--address", server.address)
    assert "error: 'utf-8' codec can't encode" in no_text.output
    assert "there are index, host" in run("serve", "--config", "pyproject.toml").output
    assert "error: there is nothing at nowhere\n" == run("serve", "--index", "nowhere").output


@pytest.mark.parametrize(
    ("command", "module"), [("search", "structlog"), ("health", "grpc_health")]
)
def test_commands_without_their_extra_are_a_sentence(command: str, module: str) -> None:
    script = (
        "import sys\n"
        f"sys.modules['{module}'] = None\n"
        f"sys.argv = ['server', '{command}']\n"
        "from server.__main__ import main\n"
        "main()\n"
    )
    run_alone = [sys.executable, "-c", script]
    done = subprocess.run(run_alone, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {module} is not installed; it comes with: pip install '.[serve]' in this "
        "project's folder\n"
    )
