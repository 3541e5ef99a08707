"""The demo: the whole main job on real data, through the commands that a user would type."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from benchmarks.errors import BenchmarkError
from benchmarks.server_process import server_process

# Apart from where the commands publish by default, which a server may be following.
ARTIFACTS = Path("artifacts/demo")
TOWERS = ARTIFACTS / "towers"
INDEXES = ARTIFACTS / "indexes"

_KNOWN_USER = "42"

console = Console(highlight=False)


class _DemoError(BenchmarkError):
    """A step of the demo failed; it has printed why itself."""


def run() -> int:
    """Train, index, serve, query and compare, printing every command.

    Returns:
        The exit code: 0 if every step succeeded.
    """
    started = time.monotonic()
    try:
        _heading("Train two towers on MovieLens 100K and measure them on held-out interactions")
        _command("trainer", "fit", "--output", str(TOWERS))
        _heading("Embed all candidates and build the indexes")
        towers, indexes = str(TOWERS / "current"), str(INDEXES)
        _command("indexer", "build", "--towers", towers, "--output", indexes)
        _heading("Serve")
        with _server() as target:
            _query(target)
        _heading("Compare the backends")
        corpus, output = str(INDEXES / "current"), str(ARTIFACTS / "benchmarks")
        _command("benchmarks", "search", "--corpus", corpus, "--output", output)
    except BenchmarkError as error:
        console.print(f"[bold red]The demo stopped:[/] {error}")
        return 1
    console.print(f"\nDone in {time.monotonic() - started:.0f} seconds. The server is stopped.")
    return 0


def _query(target: str) -> None:
    liked = _first_candidates(3)
    _heading(f"What a known user, {_KNOWN_USER}, may like")
    _command("server", "search", "--address", target, "--user", _KNOWN_USER, "--count", "5")
    _heading("What somebody new may like who liked three movies")
    _command("server", "search", "--address", target, "--liked", ",".join(liked), "--count", "5")
    _heading("More like the first of them")
    _command("server", "search", "--address", target, "--like", liked[0], "--count", "5")


def _first_candidates(count: int) -> list[str]:
    """Return the ids of the most popular candidates of the index."""
    from indexer.bundle import IndexBundle  # noqa: PLC0415 - there is no index before this

    corpus = IndexBundle.open(INDEXES / "current", verify=False).corpus
    return corpus.candidate_ids.tokens((-corpus.popularity).argsort(kind="stable")[:count])


@contextmanager
def _server() -> Iterator[str]:
    """Run the server on a free port; yields its address."""
    arguments = ("server", "serve", "--index", str(INDEXES / "current"), "--port", "0")
    _show(arguments)
    with server_process(arguments, on_line=partial(console.print, markup=False)) as started:
        yield started.target


def _command(*arguments: str) -> None:
    """Run one of the programs as a user would."""
    _show(arguments)
    if code := subprocess.run([sys.executable, "-m", *arguments], check=False).returncode:
        raise _DemoError(f"python -m {' '.join(arguments)} ended with exit code {code}")


def _show(arguments: tuple[str, ...]) -> None:
    console.print(f"[dim]$[/] [bold]python -m {' '.join(arguments)}[/]", soft_wrap=True)


def _heading(text: str) -> None:
    console.print()
    console.print(Rule(text, align="left"))
