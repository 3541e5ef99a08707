"""``python -m server``: the command line."""

import sys


def main() -> None:
    """Run a command; a probe, which is run every few seconds, without what the others import."""
    try:
        if sys.argv[1:2] == ["health"]:
            from server import health

            sys.exit(health.main(sys.argv[2:]))
        from server.commands import app
    except ModuleNotFoundError as error:  # of the clients alone, which need no more than gRPC
        package = str(error.name).partition(".")[0]
        sys.exit(
            f"error: {package} is not installed; the commands come with: "
            "pip install 'candidate-search[serve]'"
        )
    app(prog_name="python -m server")


if __name__ == "__main__":
    main()
