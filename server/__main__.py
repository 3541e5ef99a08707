"""``python -m server``: the command line."""

import sys

from trainer.extras import needed


def main() -> None:
    """Run a command; a probe, which is run every few seconds, without what the others import."""
    with needed("serve"):
        if sys.argv[1:2] == ["health"]:
            from server import health

            sys.exit(health.main(sys.argv[2:]))
        from server.commands import app

        app(prog_name="python -m server")


if __name__ == "__main__":
    main()
