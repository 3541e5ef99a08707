"""``python -m trainer``: the command line."""

import signal
import sys

from trainer.extras import needed


def main() -> None:
    """Run a command."""
    # What ends the process from outside lets it clean up, as an interruption does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with needed("train"):
        from trainer.commands.app import app

        app(prog_name="python -m trainer")


if __name__ == "__main__":
    main()
