"""``python -m benchmarks``: the command line."""

import signal
import sys

from trainer.extras import needed


def main() -> None:
    """Run a command."""
    # What ends the process from outside lets it end its servers, as an interruption does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with needed("bench"):
        from benchmarks.commands import app

        app(prog_name="python -m benchmarks")


if __name__ == "__main__":
    main()
