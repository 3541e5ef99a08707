"""How the commands speak: results on stdout, progress and mistakes on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from trainer.errors import TrainerError

stderr = Console(stderr=True)


def print_json(content: object) -> None:
    """Print for scripts."""
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def tell(result: str) -> None:
    """Print a result for people, as it is: a path may hold what would be markup."""
    Console(markup=False).print(result, soft_wrap=True)


def say(sentence: str) -> None:
    """Tell the user something that is no result."""
    stderr.print(escape(sentence), soft_wrap=True, highlight=False)


@contextmanager
def epoch_progress(what: str, n_epochs: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Draw a progress bar; yields what the training calls after every epoch."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs{task.fields[loss]},"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=stderr) as progress:
        task = progress.add_task(what, total=n_epochs, loss="")

        def update(epoch: int, logs: dict[str, float]) -> None:
            progress.update(task, completed=epoch, loss=f", loss {logs['loss']:.4f}")

        yield update


@contextmanager
def sentences_for_errors(*errors: type[Exception]) -> Iterator[None]:
    """Turn what the user can mend into one sentence on stderr and exit code 1.

    Args:
        errors: what can be mended beside the trainer's own errors.
    """
    try:
        yield
    except (TrainerError, *errors) as error:  # type: ignore[misc] # mypy 1.x sees no tuple
        stderr.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from error
