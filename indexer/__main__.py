"""``python -m indexer``: the command line."""

import logging
import signal
import sys

from trainer.extras import needed


def main() -> None:
    """Run a command."""
    # What ends the process from outside lets it clean up, as an interruption does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # The engines tell of failures in the log as well, which a server has.
    logging.getLogger("indexer").addHandler(logging.NullHandler())
    with needed("serve"):
        from indexer.commands import app

        app(prog_name="python -m indexer")


if __name__ == "__main__":
    main()
