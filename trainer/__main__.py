"""``python -m trainer``: fit and evaluate two towers.

Commands import what they need when they run: TensorFlow takes seconds, ``--help`` should not.
"""

from __future__ import annotations

import signal
import sys

import typer

from trainer.commands.cold_start import cold_start
from trainer.commands.config import show_config
from trainer.commands.evaluate import evaluate
from trainer.commands.fit import fit
from trainer.commands.refresh import refresh
from trainer.commands.tune import tune

app = typer.Typer(
    help="Train and evaluate two towers, and publish them as tower bundles.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(fit)
app.command()(evaluate)
app.command()(cold_start)
app.command()(tune)
app.command()(refresh)
app.command(name="config")(show_config)

if __name__ == "__main__":
    # What ends the process from outside lets it clean up, as an interruption does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    app(prog_name="python -m trainer")
