"""What an index costs before it is searched: building, tuning, opening.

Each build has a process of its own, whose peak memory is its; beside our index the library builds
one by itself, with the same params. Tuning is set against building, opening against hashing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich import box
from rich.table import Table

from benchmarks.errors import BenchmarkError
from benchmarks.processes import peak_bytes, run_alone
from benchmarks.progress import OnStep
from benchmarks.timing import hash_files, timed
from indexer.backends import BACKENDS
from indexer.backends.annoy import AnnoyBuildParams
from indexer.backends.scann import ScannBuildParams
from indexer.build import BuildOptions, measured_depths
from indexer.bundle import EMBEDDINGS, IndexBundle
from indexer.tuning import TuningQueries, tune_depths

_OPTIONS = BuildOptions()
_ROUNDS = 3  # of opening and hashing, of which the fastest counts: the first may read from disk


Build = Callable[[np.ndarray, str, dict[str, Any], str], None]
"""(embeddings, backend, build params, folder) -> nothing; builds an index and saves it."""


class Built(BaseModel):
    """A build, by us or by the library alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float
    """To build and save it."""
    peak_bytes: int
    """The most memory that its process had resident, the mapped vectors included."""


class BackendCosts(BaseModel):
    """What one backend costs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: str
    alone: Built
    """By the library, with the same params."""
    ours: Built
    tuning_seconds: float
    """For all numbers of results and all recalls that a build tunes for."""


class BuildReport(BaseModel):
    """What the indexes of one bundle cost before they are searched."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_candidates: int
    dim: int
    backends: tuple[BackendCosts, ...]
    exact_seconds: float
    """For the exact answers that all backends are tuned on."""
    hash_seconds: float
    """To read and hash the bundle's files, one after the other."""
    open_seconds: float
    """To open the bundle, which hashes its files."""
    load_seconds: float
    """To open it and load all that is in it."""

    @property
    def vectors_bytes(self) -> int:
        """What the embeddings take."""
        return 4 * self.n_candidates * self.dim


def benchmark_build(bundle: IndexBundle, *, on_step: OnStep = lambda _: None) -> BuildReport:
    """Build, tune and open again what a bundle holds.

    Args:
        bundle: an open index bundle.
        on_step: called with a line of progress.

    Raises:
        BenchmarkError: if it holds no index that a library built.
    """
    if not _LIBRARIES.keys() & bundle.manifest.backends.keys():
        raise BenchmarkError(
            f"{bundle.directory} holds neither Annoy nor ScaNN, whose builds are measured; build "
            "an index with one of them, or give --corpus synthetic:1000000x64"
        )
    directory, manifest = bundle.directory, bundle.manifest
    depths = measured_depths(manifest.n_candidates, _OPTIONS.k)
    on_step("searching exactly")
    exact_seconds, queries = timed(
        lambda: TuningQueries.prepare(
            bundle.corpus.embeddings, bundle.tuning_queries, depths[-1], _OPTIONS.seed
        )
    )
    measured = []
    for name in filter(_LIBRARIES.__contains__, manifest.backends):
        params = manifest.backends[name].build_params
        on_step(f"{name}: the library alone builds")
        alone = run_alone(_measured, _build_alone, directory, name, params)
        on_step(f"{name}: building")
        ours = run_alone(_measured, _build_ours, directory, name, params)
        on_step(f"{name}: tuning")
        index = bundle.index(name)
        seconds, _ = timed(partial(tune_depths, index, queries, depths, _OPTIONS.targets))
        costs = BackendCosts(backend=name, alone=alone, ours=ours, tuning_seconds=seconds)
        measured.append(costs)
    on_step("opening and hashing")
    return BuildReport(
        n_candidates=manifest.n_candidates,
        dim=manifest.dim,
        backends=tuple(measured),
        exact_seconds=exact_seconds,
        hash_seconds=_fastest(lambda: hash_files(directory, manifest.files)),
        open_seconds=_fastest(lambda: IndexBundle.open(directory)),
        load_seconds=_fastest(lambda: IndexBundle.open(directory).check()),
    )


def build_costs_table(report: BuildReport) -> Table:
    """Tabulate what building and tuning cost."""
    table = Table(
        title=f"{report.n_candidates:,} candidates of {report.dim} dimensions",
        caption="memory above: our peak above the library's, in sizes of the embeddings; tuning "
        "apart from the exact answers that all share",
        box=box.SIMPLE,
        padding=0,
    )
    table.add_column("backend")
    for heading in (
        *("library s", "ours s", "ratio"),
        *("library peak MB", "ours", "memory above"),
        *("tuning s", "of building"),
    ):
        table.add_column(heading, justify="right")
    for one in report.backends:
        above = (one.ours.peak_bytes - one.alone.peak_bytes) / report.vectors_bytes
        table.add_row(
            one.backend,
            *(f"{one.alone.seconds:.1f}", f"{one.ours.seconds:.1f}"),
            f"{one.ours.seconds / one.alone.seconds:.2f}",
            *(f"{one.alone.peak_bytes / 1e6:,.0f}", f"{one.ours.peak_bytes / 1e6:,.0f}"),
            f"{above:+.2f}",
            *(f"{one.tuning_seconds:.1f}", f"{one.tuning_seconds / one.ours.seconds:.2f}"),
        )
    return table


def build_costs_summary(report: BuildReport) -> str:
    """Say what opening costs beside hashing."""
    hashed = report.hash_seconds
    return (
        f"The exact answers to tune on: {report.exact_seconds:.1f} s.\n"
        f"Opening the bundle: {report.open_seconds / hashed:.2f} times hashing its files "
        f"({hashed:.2f} s); opening it and loading all that is in it: "
        f"{report.load_seconds / hashed:.2f} times."
    )


def _measured(build: Build, directory: Path, backend: str, params: dict[str, Any]) -> Built:
    embeddings = np.load(directory / EMBEDDINGS, mmap_mode="r", allow_pickle=False)
    with TemporaryDirectory() as saved:
        seconds, _ = timed(lambda: build(embeddings, backend, params, saved))
    return Built(seconds=seconds, peak_bytes=peak_bytes(os.getpid()))


def _build_ours(
    embeddings: np.ndarray, backend: str, params: dict[str, Any], directory: str
) -> None:
    index_type = BACKENDS[backend]
    index = index_type.build(embeddings, index_type.build_params_type.model_validate(params))
    index.save(Path(directory))


def _build_alone(
    embeddings: np.ndarray, backend: str, params: dict[str, Any], directory: str
) -> None:
    _LIBRARIES[backend](embeddings, params, directory)


def _build_annoy(embeddings: np.ndarray, params: dict[str, Any], directory: str) -> None:
    from annoy import AnnoyIndex  # noqa: PLC0415

    chosen = AnnoyBuildParams.model_validate(params)
    added = int(chosen.metric == "angular")  # the dimension by which ours makes norms equal
    index = AnnoyIndex(embeddings.shape[1] + added, chosen.metric)
    index.set_seed(chosen.seed)
    for row, vector in enumerate(embeddings):
        index.add_item(row, [*vector, *[0.0] * added])
    index.build(chosen.n_trees, chosen.n_jobs)
    index.save(f"{directory}/annoy")


def _build_scann(embeddings: np.ndarray, params: dict[str, Any], directory: str) -> None:
    # The library imports it if it is there, and would be measured with it.
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    from scann.scann_ops.py import scann_ops_pybind  # noqa: PLC0415

    chosen = ScannBuildParams.model_validate(params)
    sample = min(chosen.training_sample_size, len(embeddings))
    builder = scann_ops_pybind.builder(embeddings, 1, "dot_product")
    builder.set_n_training_threads(chosen.training_threads)
    if chosen.num_leaves is not None:
        builder.tree(
            num_leaves=chosen.num_leaves,
            num_leaves_to_search=1,
            training_sample_size=sample,
            min_partition_size=1,
            soar_lambda=chosen.soar_lambda,
            avq=chosen.avq,
        )
    builder.score_ah(
        chosen.dimensions_per_block,
        anisotropic_quantization_threshold=chosen.anisotropic_quantization_threshold,
        training_sample_size=sample,
        residual_quantization=chosen.residual_quantization and chosen.num_leaves is not None,
    )
    by_bytes = scann_ops_pybind.scann_builder.ReorderType.INT8
    builder.reorder(1, quantize=by_bytes).build().serialize(directory)


_LIBRARIES = {"annoy": _build_annoy, "scann": _build_scann}


def _fastest(work: Callable[[], object]) -> float:
    return min(timed(work)[0] for _ in range(_ROUNDS))
