"""The commands of the benchmarks: recall, latency and throughput, and the demo.

Single-threaded throughout: what one core does is what can be compared.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trainer.console import sentences_for_errors, stderr
from trainer.extras import needed

app = typer.Typer(
    help="Measure recall, latency and throughput; run the demo.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

DEFAULT_CORPUS, DEFAULT_OUTPUT = "artifacts/indexes/current", Path("artifacts/benchmarks")
_BACKENDS = ("brute_force", "scann")  # of a synthetic corpus where others would only take time
_MIN_WIDTH = 100
DEFAULT_SIZES = [f"{rows}x{dim}" for rows in (10_000, 100_000, 1_000_000) for dim in (32, 64, 128)]

Corpus = Annotated[
    str,
    typer.Option(
        metavar="CORPUS",
        help="movielens, synthetic:ROWSxDIM, generated:ROWSxDIM, or the folder of an index.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def search(
    *,
    corpus: Corpus = DEFAULT_CORPUS,
    peers: Annotated[
        bool,
        typer.Option("--peers", help="Measure FAISS, hnswlib, USearch and Voyager beside ours."),
    ] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Measure this peer only: FAISS IVF-PQ; may be repeated."),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Build this backend alone for a synthetic corpus; repeatable."
        ),
    ] = None,
    scann_alone: Annotated[
        bool,
        typer.Option(
            "--scann-alone", help="Measure the library ScaNN by itself, with our index's params."
        ),
    ] = False,
    output: Annotated[
        Path, typer.Option(help="Folder for search.json, search.png and search.html.")
    ] = DEFAULT_OUTPUT,
    seconds_per_point: Annotated[
        float, typer.Option(min=0.01, help="How long each set of search params is timed.")
    ] = 0.5,
    as_json: AsJson = False,
) -> None:
    """Compare the backends of an index: recall, latency, queries a second, build time, size.

    Example: python -m benchmarks search --corpus movielens
    Example: python -m benchmarks search --corpus synthetic:1000000x64 --peers
    """
    _use_one_thread()
    from benchmarks.contenders import build_scann_alone
    from benchmarks.corpora import open_corpus
    from benchmarks.page import write_page
    from benchmarks.peers import build_peers, check_installed, peers_named
    from benchmarks.report import asking_sentence, build_table, draw_search, search_table
    from benchmarks.search import benchmark_search

    if backend and not corpus.startswith("synthetic:"):
        raise typer.BadParameter("--backend says what to build of a synthetic corpus; leave it out")
    with _sentences_for_errors():
        output.mkdir(parents=True, exist_ok=True)
        chosen = peers_named(peer or ()) if peers or peer else ()
        check_installed(chosen)
        with stderr.status("opening the index") as status:
            bundle = open_corpus(
                corpus, output, backends=tuple(backend or ()), on_step=status.update
            )
            report = benchmark_search(
                bundle,
                peers=chain(
                    build_scann_alone(bundle, status.update) if scann_alone else (),
                    build_peers(bundle.corpus.embeddings, status.update, chosen),
                ),
                seconds_per_point=seconds_per_point,
                on_step=status.update,
            )
    _tell(
        report.model_dump_json(indent=2),
        output / "search.json",
        search_table(report),
        build_table(report),
        asking_sentence(report),
        as_json=as_json,
        drawings={
            output / "search.png": partial(draw_search, report),
            output / "search.html": partial(write_page, report),
        },
    )


@app.command()
def build(
    *,
    corpus: Corpus = DEFAULT_CORPUS,
    output: Annotated[Path, typer.Option(help="Folder for build.json.")] = DEFAULT_OUTPUT,
    as_json: AsJson = False,
) -> None:
    """Measure what building, tuning and opening cost, beside the libraries alone and hashing.

    Example: python -m benchmarks build --corpus synthetic:1000000x64
    """
    _use_one_thread()
    from benchmarks.build import benchmark_build, build_costs_summary, build_costs_table
    from benchmarks.corpora import open_corpus

    with _sentences_for_errors(), stderr.status("generating") as status:
        output.mkdir(parents=True, exist_ok=True)
        bundle = open_corpus(corpus, output, backends=_BACKENDS, on_step=status.update)
        report = benchmark_build(bundle, on_step=status.update)
    _tell(
        report.model_dump_json(indent=2),
        output / "build.json",
        build_costs_table(report),
        build_costs_summary(report),
        as_json=as_json,
    )


@app.command()
def eligibility(
    *,
    corpus: Corpus = DEFAULT_CORPUS,
    backend: Annotated[
        str | None, typer.Option(help="Which backend; by default, the index's own choice.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for eligibility.json.")] = DEFAULT_OUTPUT,
    as_json: AsJson = False,
) -> None:
    """Search among eligible candidates only: recall, and cost against no mask and against a scan.

    Example: python -m benchmarks eligibility --corpus synthetic:1000000x64
    """
    _use_one_thread()
    from benchmarks.corpora import open_corpus
    from benchmarks.eligibility import benchmark_eligibility
    from benchmarks.report import eligibility_table

    with _sentences_for_errors(), stderr.status("opening the index") as status:
        output.mkdir(parents=True, exist_ok=True)
        bundle = open_corpus(corpus, output, backends=_BACKENDS, on_step=status.update)
        report = benchmark_eligibility(bundle, backend=backend, on_step=status.update)
    text = report.model_dump_json(indent=2)
    _tell(text, output / "eligibility.json", eligibility_table(report), as_json=as_json)


@app.command()
def scaling(
    *,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROWSxDIM",
            help="A synthetic corpus; may be repeated. By default 10,000, 100,000 and 1,000,000 "
            "candidates, of 32, 64 and 128 dimensions each.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Folder for scaling.json and scaling.png.")
    ] = DEFAULT_OUTPUT,
    as_json: AsJson = False,
) -> None:
    """Measure how cost, memory and build time grow with the corpus.

    Example: python -m benchmarks scaling --size 10000x64 --size 100000x64 --size 100000x128
    """
    _use_one_thread()
    from pydantic_core import to_json

    from benchmarks.scaling import benchmark_scaling
    from benchmarks.scaling_report import capacity_table, draw_scaling, scaling_table
    from benchmarks.workloads import parse_size

    with _sentences_for_errors(), stderr.status("generating") as status:
        output.mkdir(parents=True, exist_ok=True)
        sizes = [parse_size(one) for one in size or DEFAULT_SIZES]
        points = benchmark_scaling(output, sizes, on_step=status.update)
    _tell(
        to_json(points, indent=2).decode(),
        output / "scaling.json",
        scaling_table(points),
        capacity_table(points),
        as_json=as_json,
        drawings={output / "scaling.png": partial(draw_scaling, points)},
    )


@app.command()
def milvus(
    *,
    size: Annotated[
        str, typer.Option(metavar="ROWSxDIM", help="Size of the synthetic corpus.")
    ] = "100000x64",
    seconds: Annotated[int, typer.Option(min=1, help="How long each way is timed.")] = 15,
    output: Annotated[Path, typer.Option(help="Folder for milvus.json.")] = DEFAULT_OUTPUT,
    as_json: AsJson = False,
) -> None:
    """Compare our index and our server, over milvus-lite, with pymilvus called directly.

    Example: python -m benchmarks milvus --size 100000x64
    """
    _use_one_thread()
    from benchmarks.workloads import parse_size, synthetic_bundle
    from indexer.backends import BackendUnavailableError
    from indexer.backends.milvus import MilvusIndex

    with _sentences_for_errors(), stderr.status("generating") as status:
        if reason := MilvusIndex.unavailable():
            raise BackendUnavailableError(reason)
        from benchmarks.milvus import benchmark_milvus, milvus_table

        output.mkdir(parents=True, exist_ok=True)
        bundle = synthetic_bundle(
            output,
            *parse_size(size),
            backends=("milvus",),
            milvus_uri=str(output / "milvus.db"),
            on_step=status.update,
        )
        report = benchmark_milvus(bundle, seconds, status.update)
    text = report.model_dump_json(indent=2)
    _tell(text, output / "milvus.json", milvus_table(report), as_json=as_json)


@app.command()
def ray(
    *,
    candidates: Annotated[
        int, typer.Option(min=100_000, help="Size of the generated catalogue.")
    ] = 3_000_000,
    dim: Annotated[int, typer.Option(min=2, help="Dimension of the embeddings.")] = 64,
    output: Annotated[Path, typer.Option(help="Folder for ray.json.")] = DEFAULT_OUTPUT,
    as_json: AsJson = False,
) -> None:
    """Embed candidates on Ray, on this machine, and in one process: speed of a core, memory.

    Example: python -m benchmarks ray --candidates 10000000
    """
    _use_one_thread()
    from benchmarks.embedding import benchmark_ray, ray_table

    with _sentences_for_errors(), stderr.status("starting") as status:
        output.mkdir(parents=True, exist_ok=True)
        report = benchmark_ray(output, candidates, dim, status.update)
    text = report.model_dump_json(indent=2)
    _tell(text, output / "ray.json", ray_table(report), as_json=as_json)


@app.command()
def serve(
    *,
    corpus: Annotated[
        str,
        typer.Option(
            metavar="CORPUS",
            help="movielens, generated:ROWSxDIM, or the folder of an index with known users.",
        ),
    ] = "generated:100000x64",
    seconds: Annotated[int, typer.Option(min=1, help="How long each scenario lasts.")] = 5,
    rounds: Annotated[
        int, typer.Option(min=1, help="How often scenarios are measured, in turn with one another.")
    ] = 5,
    output: Annotated[
        Path, typer.Option(help="Folder for serve.json and serve.png.")
    ] = DEFAULT_OUTPUT,
    as_json: AsJson = False,
) -> None:
    """Load the server and a null server: CPU a request, latency, and the cost of each stage.

    Example: python -m benchmarks serve --seconds 5
    Example: python -m benchmarks serve --corpus generated:1000000x64
    """
    _use_one_thread()
    from benchmarks.corpora import open_corpus
    from benchmarks.report import draw_serve, serve_summary, serve_table
    from benchmarks.serve import benchmark_serve

    with _sentences_for_errors(), stderr.status("opening the index") as status:
        output.mkdir(parents=True, exist_ok=True)
        bundle = open_corpus(corpus, output, on_step=status.update)
        report = benchmark_serve(bundle, seconds=seconds, rounds=rounds, on_step=status.update)
    _tell(
        report.model_dump_json(indent=2),
        output / "serve.json",
        serve_table(report),
        serve_summary(report),
        as_json=as_json,
        drawings={output / "serve.png": partial(draw_serve, report)},
    )


@app.command()
def train(
    *,
    candidates: Annotated[
        list[int] | None,
        typer.Option(min=1000, help="Size of a generated catalogue; may be repeated."),
    ] = None,
    interactions: Annotated[
        int, typer.Option(min=1000, help="Generated interactions, 50 of each user.")
    ] = 10_000_000,
    dim: Annotated[int, typer.Option(min=2, help="Dimension of both models' embeddings.")] = 32,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="How long each batch size is timed.")
    ] = 10.0,
    output: Annotated[
        Path, typer.Option(help="Folder for train.json and train.png.")
    ] = DEFAULT_OUTPUT,
    as_json: AsJson = False,
) -> None:
    """Train the towers and the tutorials' model on generated data: interactions a second, memory.

    Example: python -m benchmarks train --candidates 100000 --candidates 1000000
    """
    with needed("train"):
        from benchmarks.train import benchmark_train
    from benchmarks.train_report import draw_train, train_table

    with _sentences_for_errors(), stderr.status("starting") as status:
        output.mkdir(parents=True, exist_ok=True)
        report = benchmark_train(
            candidates or [100_000, 1_000_000], interactions, dim, seconds, status.update
        )
    _tell(
        report.model_dump_json(indent=2),
        output / "train.json",
        train_table(report),
        as_json=as_json,
        drawings={output / "train.png": partial(draw_train, report)},
    )


@app.command()
def demo() -> None:
    """Train, index, serve and query, and compare the backends: the whole main job."""
    from benchmarks.demo import run

    raise typer.Exit(run())


def _tell(
    report: str,
    file: Path,
    *lines: Table | str,
    as_json: bool,
    drawings: Mapping[Path, Callable[[Path], object]] = MappingProxyType({}),
) -> None:
    """Print a report as JSON, or tables and sentences that say the same, and write the files."""
    if as_json:
        sys.stdout.write(report + "\n")
    # Wide enough for a table, wherever it is printed to.
    console = Console(width=max(Console().width, _MIN_WIDTH), highlight=False)
    for line in () if as_json else lines:
        console.print(line, soft_wrap=isinstance(line, str))
    with _sentences_for_errors():
        file.write_text(report + "\n")
        for path, draw in drawings.items():
            draw(path)
    if not as_json:
        console.print(f"Wrote {', '.join(map(str, (file, *drawings)))}", soft_wrap=True)


def _sentences_for_errors() -> AbstractContextManager[None]:
    """Turn what the user can mend into one sentence on stderr and exit code 1."""
    # Not before it is said how many threads NumPy takes.
    from benchmarks.errors import BenchmarkError
    from indexer.backends import BackendUnavailableError, IndexUnreachableError
    from indexer.corpus import CorpusError
    from server.client import SearchFailedError

    return sentences_for_errors(
        *(BenchmarkError, BackendUnavailableError, CorpusError, IndexUnreachableError),
        *(SearchFailedError, MemoryError, OSError),
    )


def _use_one_thread() -> None:
    """Keep NumPy to one thread; its libraries read these when they are loaded."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
