"""``python -m trainer config``."""

from __future__ import annotations

import sys

from trainer.commands.options import ConfigFile
from trainer.console import sentences_for_errors


def show_config(*, config: ConfigFile = None) -> None:
    """Print every option with what it does, as the TOML that --config reads.

    Example: python -m trainer config > trainer.toml
    """
    with sentences_for_errors():
        from trainer.config import load_config
        from trainer.toml import as_toml

        sys.stdout.write(as_toml(load_config(config, {})))
