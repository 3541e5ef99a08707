"""The command line: ``python -m server serve``, ``search`` and the rest."""

from __future__ import annotations

import atexit
import inspect
import json
import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import structlog
import typer
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server import admin_commands, health
from server.admin_commands import Authority, ServerName, Token, tls_credentials, told_of
from server.client import (
    Candidate,
    Examples,
    Like,
    Query,
    SearchClient,
    SearchFailedError,
    SearchResults,
    User,
)
from server.conditions import EXAMPLES, parse_conditions
from server.settings import (
    ENVIRONMENT_PREFIX,
    Settings,
    SettingsError,
    load_settings,
    unknown_variables,
)
from server.signals import ending_when_asked
from trainer.toml import as_toml

app = typer.Typer(
    help="Serve an index over gRPC, and search a server from the command line.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(admin_commands.app, name="admin")


def _with_a_flag_per_setting(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a command's keyword arguments into one option per setting, described in one place."""
    signature = inspect.signature(command, eval_str=True)
    own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    flags = [_flag(name, field) for name, field in Settings.model_fields.items()]
    every = [*own, *flags]
    command.__signature__ = signature.replace(parameters=every)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in every}
    return command


def _flag(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = name.replace("_", "-")
    default = "" if field.default is None else f" Default: {field.default}."
    if field.annotation is bool:
        option = typer.Option(f"--{flag}/--no-{flag}", help=f"{field.description}{default}")
        kind: Any = Annotated[bool | None, option]
    else:
        # The settings check the value, wherever it comes from.
        option = typer.Option(f"--{flag}", help=f"{field.description}{default}", metavar="VALUE")
        kind = Annotated[str | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


@app.command()
@_with_a_flag_per_setting
def serve(
    config: Annotated[
        Path | None,
        typer.Option(
            help="A TOML file with settings, which flags and the environment override.",
            envvar=f"{ENVIRONMENT_PREFIX}CONFIG",
        ),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings in force, and end.")
    ] = False,
    **flags: Any,
) -> None:
    """Serve an index bundle over gRPC until SIGTERM or SIGINT.

    Example: python -m server serve --index artifacts/indexes/current --port 50051
    """
    try:
        settings = load_settings(flags, config)
    except SettingsError as error:
        raise _fail(error) from error
    unknown = unknown_variables(os.environ)
    if print_config:
        for name in unknown:
            typer.echo(f"warning: no setting has the name of {name}", err=True)
        typer.echo(as_toml(settings))
        return
    _configure_logging(settings)
    for name in unknown:
        structlog.get_logger(__name__).warning("no setting has this name", variable=name)
    with ending_when_asked(_count_together(settings)):
        _serve(settings)


def _serve(settings: Settings) -> None:
    # A search that spreads over all cores would stall its neighbours. NumPy reads this when it is
    # imported, and only here: no other command needs the server's own libraries.
    for library in ("OPENBLAS", "OMP", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    # Arrow's own allocator keeps 30 MB that reading a bundle's tables took for a moment.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from indexer.backends import BackendUnavailableError
    from server.loading import load_and_settle, with_page_token_key
    from server.ports import PortTakenError
    from server.serve import check, run_event_loop, serve_alone
    from server.supervisor import WorkerError
    from server.tls import CertificateError
    from server.workers import serve_with_workers
    from trainer.publish import BundleError

    settings = with_page_token_key(settings)
    try:
        check(settings)
        if settings.workers > 1:
            serve_with_workers(settings, _announce)
        else:
            # Not kept here: the first version leaves memory when others have taken over.
            run_event_loop(serve_alone(settings, load_and_settle(settings), _announce))
            _leave()
    except (
        BackendUnavailableError,
        BundleError,
        CertificateError,
        PortTakenError,
        SettingsError,
        WorkerError,
    ) as error:
        raise _fail(error) from error


def _leave() -> NoReturn:
    """End now: Python waits for threads, and one may still be loading a version."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _count_together(settings: Settings) -> Callable[[], None]:
    """Have all processes count into one directory, where there are several.

    Returns:
        What removes the directory; it goes with this process anyhow, if that ends by itself.
    """
    if settings.workers == 1 or settings.metrics_port is None:
        return lambda: None
    # The client library of Prometheus reads this when it is imported.
    directory = tempfile.mkdtemp(prefix="candidate-search-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    remove = partial(shutil.rmtree, directory, ignore_errors=True)
    atexit.register(remove)
    return remove


def _announce(where: str) -> None:
    # One line that scripts can wait for; it is flushed although it goes into a pipe.
    sys.stdout.write(f"serving on {where}\n")
    sys.stdout.flush()


@app.command(
    "health",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def ask_for_health(context: typer.Context) -> None:
    """Ask a server whether it answers searches; exit with 1 if not. For probes.

    Example: python -m server health --address localhost:50051
    """
    raise typer.Exit(health.main(context.args))


@app.command()
def sign(
    private_key: Annotated[Path, typer.Option(help="An Ed25519 key (PEM).")],
    index: Annotated[
        Path, typer.Option(help="The index bundle: a version's directory, or the link to one.")
    ] = Path("artifacts/indexes/current"),
) -> None:
    """Sign an index version, for servers that were given the public key.

    Example: python -m server sign --index artifacts/indexes/current --private-key signing.pem
    """
    from server.signing import sign as sign_bundle
    from trainer.publish import BundleError

    try:
        typer.echo(f"signed {sign_bundle(index, private_key)}")
    except BundleError as error:
        raise _fail(error) from error


@app.command()
def search(
    *,
    user: Annotated[str | None, typer.Option(help="The id of a user known from training.")] = None,
    like: Annotated[str | None, typer.Option(help="More like this candidate.")] = None,
    liked: Annotated[
        str | None, typer.Option(help="Ids of liked candidates, separated by commas.")
    ] = None,
    disliked: Annotated[
        str | None, typer.Option(help="Ids of disliked candidates, separated by commas.")
    ] = None,
    describe: Annotated[
        str | None,
        typer.Option(
            help="What is wanted, in words of what candidates have; beside --user or alone."
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="How many candidates are wanted.")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A condition on metadata, such as {EXAMPLES}; all must hold if it is repeated.",
            metavar="CONDITION",
        ),
    ] = None,
    exclude: Annotated[
        str | None, typer.Option(help="Ids of candidates to leave out, separated by commas.")
    ] = None,
    recall: Annotated[
        float | None, typer.Option(help="The recall to deliver, such as 0.99.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="The backend to search with.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Score every candidate.")] = False,
    rank: Annotated[
        bool, typer.Option("--rank", help="Order them by the ranking model; show both scores.")
    ] = False,
    fields: Annotated[
        str | None,
        typer.Option(help="Metadata columns, separated by commas; title and genres if there are."),
    ] = None,
    address: Annotated[str, typer.Option(help="Where the server listens.")] = "localhost:50051",
    token: Token = None,
    authority: Authority = None,
    server_name: ServerName = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Search a running server for a user, or for candidates like others.

    Example: python -m server search --user 42 --count 10 --where "year>=1990"
    """
    query = _query(user, describe, like, _split(liked), _split(disliked))
    options: dict[str, Any] = {
        "count": count,
        "exclude": _split(exclude),
        "backend": backend,
        "exact": exact,
        "recall_target": recall,
        "rank": rank,
        "returned_fields": _split(fields),
    }
    try:
        with SearchClient(
            address,
            timeout_seconds=timeout,
            token=token,
            credentials=tls_credentials(authority),
            server_name=server_name,
        ) as client:
            if fields is None or where:
                types = {one.name: one.type for one in client.index_info().metadata_fields}
                options["where"] = parse_conditions(where or (), types)
                if fields is None:
                    options["returned_fields"] = [n for n in ("title", "genres") if n in types]
            results = client.search(query, **options)
    except SearchFailedError as error:
        raise _fail(told_of(error, address)) from error
    except (TypeError, ValueError) as error:
        raise _fail(error) from error
    _print_results(results, as_json=as_json)


def _query(
    user: str | None,
    description: str | None,
    like: str | None,
    liked: Sequence[str],
    disliked: Sequence[str],
) -> Query:
    is_user = user is not None or description is not None
    if sum([is_user, like is not None, bool(liked or disliked)]) != 1:
        raise typer.BadParameter(
            "say one of --user (with --describe or without), --describe, --like and --liked (with "
            "--disliked)"
        )
    if is_user:
        features = {} if description is None else {"description": description}
        return User(user or "", features=features)
    return Like(like) if like is not None else Examples(liked, disliked)


def _print_results(results: SearchResults, *, as_json: bool) -> None:
    if as_json:
        document = {
            "candidates": [{"id": c.id, **_scores(c), **_finite(c.fields)} for c in results],
            "notices": [{"code": n.code, "message": n.message} for n in results.notices],
            "backend": results.plan.backend,
            "index_version": results.index_version,
        }
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    table = Table("", "id", *map(escape, results.columns))
    for name in ("score", *(["ranking score"] if results.ranking_scores else [])):
        table.add_column(name, justify="right")
    for i, candidate in enumerate(results, start=1):
        shown = [_shown(value) for value in candidate.fields.values()]
        scores = [f"{score:.4f}" for score in _scores(candidate).values()]
        table.add_row(str(i), escape(candidate.id), *map(escape, shown), *scores)
    console = Console()
    console.print(table)
    for notice in results.notices:
        console.print(f"{notice.code}: {notice.message}", style="yellow", markup=False)


def _scores(candidate: Candidate) -> dict[str, float]:
    """Return the scores that a candidate has, by name."""
    scores = {"score": candidate.score}
    if candidate.ranking_score is not None:
        scores["ranking_score"] = candidate.ranking_score
    return scores


def _finite(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as JSON can hold them: what is no number is none."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }


def _shown(value: object) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()] if text else []


def _configure_logging(settings: Settings) -> None:
    processors: list[structlog.typing.Processor]
    # Tracebacks go without the values of variables: user ids and histories are among them.
    if settings.log_format == "json":
        traceback = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        processors = [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.ExceptionRenderer(traceback),
            structlog.processors.JSONRenderer(),
        ]
    else:
        processors = [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ,
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    level = logging.getLevelName(settings.log_level.upper())
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # A line in one piece: workers write to the same place.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )


def _fail(error: object) -> typer.Exit:
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(1)
