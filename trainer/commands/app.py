"""The commands of the trainer, a module each; they import what they need when they run.

TensorFlow takes seconds, ``--help`` should not.
"""

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
