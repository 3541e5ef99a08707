"""The commands of the indexer: build, tune, verify and inspect index bundles."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from indexer.backends import BACKENDS, BackendUnavailableError, IndexUnreachableError
from indexer.build import BuildOptions, backend_names, build_bundle, retune_bundle
from indexer.bundle import IndexBundle, IndexManifest
from indexer.corpus import CorpusError
from indexer.pruning import prune as prune_bundles
from indexer.report import print_index
from indexer.sources import (
    SHARDS,
    Source,
    check_nobody_loses_towers,
    check_of_same_towers,
    read_queries,
)
from trainer.console import print_json, sentences_for_errors, stderr, tell
from trainer.extras import missing
from trainer.publish import CURRENT, check_root, follow, read_manifest, resolve

app = typer.Typer(
    help="Build, tune, verify and inspect index bundles.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

# What the user can mend, beside bundles.
_ERRORS = (BackendUnavailableError, CorpusError, IndexUnreachableError)

_LEFT = (
    "Left in Milvus, since a version that stays searches one of this name at another address, "
    "which may be the same place. If it is not, drop by hand:"
)

IndexPath = Annotated[
    Path, typer.Argument(help="An index bundle, or a `current` link to one.", metavar="INDEX")
]
QueriesFile = Annotated[
    Path | None, typer.Option(help="Embeddings of real queries to tune on (.npy or .parquet).")
]
_RECALL_HELP = "The recall@k that the default backend delivers."
_K_HELP = "Results per query it is meant for."
Seed = Annotated[int, typer.Option(min=0, help="Seed of samples; fixes what is measured.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for scripts.")]


MakeCurrent = Annotated[
    bool,
    typer.Option(
        "--make-current/--keep-current",
        help="Whether `current` is to lead to the new index, which servers follow, or stay.",
    ),
]


@app.command()
def build(
    *,
    output: Annotated[Path, typer.Option(help="Folder of the index bundles.")] = Path(
        "artifacts/indexes"
    ),
    towers: Annotated[
        Path | None, typer.Option(help="The tower bundle whose candidates are indexed.")
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help="Your own embeddings instead of towers: .npy of shape (n, dim), or .parquet with "
            "a column `embedding`."
        ),
    ] = None,
    candidate_ids: Annotated[
        Path | None,
        typer.Option(help="One id a line, in the order of --embeddings."),
    ] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(
            help="Parquet or CSV with a column `candidate_id` and any others, for --embeddings."
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="What embeds the candidates of --towers: this process, or Ray's."),
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster; by default --engine ray uses the cores of this machine."),
    ] = None,
    shards: Annotated[
        Path | None,
        typer.Option(
            help=f"Folder of the embeddings that --engine ray publishes; {SHARDS} if not given."
        ),
    ] = None,
    queries: QueriesFile = None,
    recall: Annotated[float, typer.Option(help=_RECALL_HELP)] = 0.95,
    k: Annotated[int, typer.Option("--k", min=1, help=_K_HELP)] = 100,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Build this backend only; may be repeated.", metavar="NAME"),
    ] = None,
    milvus_uri: Annotated[
        str | None,
        typer.Option(
            help="Where the backend milvus is to put its collection: an address, or a path that "
            "ends with .db. Its token is read from CANDIDATE_SEARCH_MILVUS_TOKEN.",
            metavar="URI",
        ),
    ] = None,
    make_current: MakeCurrent = True,
    seed: Seed = 42,
    as_json: AsJson = False,
) -> None:
    """Embed the candidates, build and measure every backend, and publish an index bundle.

    Example: python -m indexer build --towers artifacts/towers/current --recall 0.95 --k 100
    """
    with sentences_for_errors(*_ERRORS):
        options = _options(recall, k, seed, _backends(backend, milvus_uri), milvus_uri)
        source = Source(
            towers, embeddings, candidate_ids, metadata, engine == "ray", ray_address, shards
        )
        # What can be refused is refused before candidates are embedded.
        source.check()
        backend_names(options)
        vectors = read_queries(queries)
        check_root(output, IndexManifest)
        if make_current and towers is None:
            check_nobody_loses_towers(output)
        with _progress() as announce:
            bundle, corpus = source.read(announce)
            directory = build_bundle(
                corpus,
                bundle.tuning_queries if vectors is None and bundle is not None else vectors,
                output,
                options,
                towers=bundle,
                make_current=make_current,
                announce=announce,
            )
        _report_missing_backends()
        _print_index(directory, as_json=as_json)


@app.command()
def tune(
    index: IndexPath,
    *,
    queries: QueriesFile = None,
    recall: Annotated[
        float | None,
        typer.Option(help=f"{_RECALL_HELP} By default, as it was.", show_default=False),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("--k", min=1, help=f"{_K_HELP} By default, as it was.", show_default=False),
    ] = None,
    make_current: MakeCurrent = True,
    seed: Seed = 42,
    as_json: AsJson = False,
) -> None:
    """Measure an index again, for another recall, k or queries, and publish it beside the old one.

    It takes the place of the current version only if that is the one it was made of.

    Example: python -m indexer tune artifacts/indexes/current --recall 0.99 --k 50
    """
    with sentences_for_errors(*_ERRORS):
        if recall is not None:
            _check_recall(recall)
        vectors = read_queries(queries)
        with _progress() as announce:
            announce("verifying the index")
            bundle = IndexBundle.open(index)
            manifest = bundle.manifest
            options = _options(
                recall or manifest.default_recall_target, k or manifest.default_k, seed
            )
            if queries is not None:
                check_of_same_towers(queries, bundle)
            directory = retune_bundle(
                bundle, vectors, options, make_current=make_current, announce=announce
            )
        _print_index(directory, as_json=as_json)
        if make_current and follow(directory.parent / CURRENT) != directory:
            stderr.print("It is not current: the index it was made of is not, either.")


@app.command()
def verify(index: IndexPath, *, as_json: AsJson = False) -> None:
    """Check every file of an index bundle against its manifest, then open all of it.

    Example: python -m indexer verify artifacts/indexes/current
    """
    with sentences_for_errors(*_ERRORS):
        start = time.perf_counter()
        bundle = IndexBundle.open(index)
        bundle.check()
        seconds = time.perf_counter() - start
        n_files = len(bundle.manifest.files)
        if as_json:
            print_json({"directory": str(bundle.directory), "n_files": n_files, "intact": True})
        else:
            tell(f"{bundle.directory}: {n_files} files intact ({seconds:.1f} s)")


@app.command()
def inspect(index: IndexPath, *, as_json: AsJson = False) -> None:
    """Show what an index bundle holds and what its backends deliver.

    Example: python -m indexer inspect artifacts/indexes/current
    """
    with sentences_for_errors(*_ERRORS):
        _print_index(resolve(index), as_json=as_json)


@app.command()
def prune(
    root: Annotated[Path, typer.Argument(help="Folder of the index bundles.", metavar="FOLDER")],
    *,
    keep: Annotated[int, typer.Option(min=0, help="Newest versions to keep.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Remove old versions, and the collections of Milvus that only they used.

    Never the current one, nor one that a server on this machine has open. Servers on others cannot
    be seen: keep the versions that they may still answer from.

    Example: python -m indexer prune artifacts/indexes --keep 3
    """
    with sentences_for_errors(*_ERRORS):
        pruned, collections = prune_bundles(root, keep)
        removed = [*map(str, pruned.removed), *collections.dropped]
        in_use = [*map(str, pruned.in_use)]
        if as_json:
            print_json({"removed": removed, "in_use": in_use, "left": collections.left})
            return
        lines = ["Removed:", *removed] if removed else ["Nothing to remove."]
        lines += ["Kept, as they are in use:", *in_use] if in_use else []
        if collections.left:
            lines += [_LEFT, *collections.left]
        tell("\n".join(lines))


@app.command("export-servable")
def export_servable(
    index: IndexPath,
    *,
    output: Annotated[
        Path, typer.Option(help="The servable's folder; its name is the model's name.")
    ] = Path("artifacts/servables/candidates"),
    layer: Annotated[
        Literal["brute_force", "scann"],
        typer.Option(help="Which layer of TensorFlow Recommenders searches."),
    ] = "brute_force",
    max_count: Annotated[
        int, typer.Option(min=1, help="The most candidates that a request is answered with.")
    ] = 100,
    recall: Annotated[
        float | None,
        typer.Option(help="The recall@k that the layer scann aims at; 0.95 if not given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write an index as a SavedModel for TensorFlow Serving; needs the `train` extra.

    Example: python -m indexer export-servable artifacts/indexes/current --layer brute_force
    """
    if recall is not None:
        _check_recall(recall)
        if layer == "brute_force":
            raise typer.BadParameter("--recall belongs to --layer scann: brute_force finds all")
    with sentences_for_errors(*_ERRORS):
        with _progress() as announce:
            announce("loading TensorFlow")
            servable = _servable_module()
            options = servable.ServableOptions(
                layer=layer, max_count=max_count, recall_target=recall or 0.95
            )
            announce("verifying the index")
            bundle = IndexBundle.open(index)
            announce(f"writing the servable over {bundle.manifest.n_candidates:,} candidates")
            directory = servable.export_servable(bundle, output, options)
        if as_json:
            print_json({"directory": str(directory)})
        else:
            tell(f"Servable: {directory}")


def _servable_module() -> ModuleType:
    try:
        from indexer import servable
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"servables are written by TensorFlow: {missing(str(error.name), 'train')}"
        ) from error
    return servable


def _options(
    recall: float,
    k: int,
    seed: int,
    backends: tuple[str, ...] = (),
    milvus_uri: str | None = None,
) -> BuildOptions:
    _check_recall(recall)
    return BuildOptions(
        recall_target=recall, k=k, backends=backends, milvus_uri=milvus_uri, seed=seed
    )


def _backends(given: list[str] | None, milvus_uri: str | None) -> tuple[str, ...]:
    backends = tuple(given or ())
    if milvus_uri is not None and "milvus" not in backends:
        raise typer.BadParameter("--milvus-uri belongs to --backend milvus")
    return backends


def _check_recall(recall: float) -> None:
    if not 0 < recall <= 1:
        raise typer.BadParameter(f"--recall must be above 0 and at most 1, not {recall}")


def _print_index(directory: Path, *, as_json: bool) -> None:
    manifest = read_manifest(directory, IndexManifest)
    if as_json:
        report = manifest.model_dump(mode="json", exclude={"files"})
        print_json({"directory": str(directory), **report})
    else:
        print_index(directory, manifest)


def _report_missing_backends() -> None:
    for backend in BACKENDS.values():
        if not backend.is_remote and (reason := backend.unavailable()):
            stderr.print(f"Not built: {backend.name}. {escape(reason)}", soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show what is being done and for how long; yields what to call with it."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda what: progress.update(task, description=what)
