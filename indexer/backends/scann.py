"""ScaNN: partitioning and anisotropic quantisation (Google Research).

Guo et al. 2020, "Accelerating large-scale inference with anisotropic vector quantization"; Sun et
al. 2023, "SOAR: improved indexing for approximate nearest neighbor search".

The index keeps only quantised vectors: four bits for two dimensions, by which all are scored, and a
byte a dimension, by which the best of them are reordered. ScaNN's reordering by floats would hold a
second copy of the embeddings in memory, while rescoring reads the ones the bundle maps anyway; and
bytes leave so few to rescore that it costs less than rescoring whatever was scored best by bits.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from indexer.backends.base import BackendUnavailableError, LocalIndex
from indexer.backends.params import BuildParams, SearchParams, geometric
from indexer.cells import Cells
from indexer.exact import Neighbors, squared_norms
from indexer.ways import CellScan, Way

_ASSETS = "scann_assets.pbtxt"
_PARTITIONER, _LEAF_OF_EACH = "serialized_partitioner.pb", "datapoint_to_token.npy"
_BYTES, _MULTIPLIERS = "int8_dataset.npy", "int8_multipliers.npy"
_CELLS = "cells"  # our folder beside ScaNN's files
_PICKLED_IDS = "scann_docids.pkl"
# As ScaNN writes it, and no other way to write the same: a path that is quoted otherwise is a trap.
_LISTED_ASSETS = re.compile(r'(assets \{\n  asset_type: \w+\n  asset_path: "\w[\w.-]*"\n\}\n)*')

# A tree of few vectors gains little. Of many, it is up to four times as fast where vectors lie in
# clusters, as trained ones do, and no faster where they do not; of very many it never loses.
_TREE_FROM, _TREE_ALWAYS_FROM = 10_000, 250_000
_AVQ = 4.0  # as cheap to build as none; far better on clustered vectors, elsewhere a little worse
_SAMPLE_PER_LEAF = 100  # vectors the leaves' centres are trained on; fewer find much less
_MIN_TREE_SIZE = 16  # the quantiser of a tree's residuals is trained on as many vectors at least
_MAX_NORM = 1e8  # in a tree: from 1e9 on, powers of norms overflow, which ends the process
_QUANTISED_COST = 0.2  # scoring a quantised vector, against a row of a sequential scan; measured
_REORDERED_STEP, _LEAVES_STEP = 1.4, 1.25
_MOST_REORDERED = 16  # times k; more do not help where too few leaves are searched ...
_ALWAYS_TRIED = 10_000  # ... but where the best are badly quantised, and few are wanted of many
_REORDERING_COST = 3.0  # the same for reordering it by bytes
_RESCORING_COST = 8.0  # the same for fetching and rescoring a proposed row
_RESCORED_BEYOND = 1 / 8  # of k, beside k themselves; more were measured to find no more


class ScannBuildParams(BuildParams):
    """How the vectors are partitioned and quantised."""

    num_leaves: int | None = Field(default=None, ge=1)
    """Partitions; None for no tree."""
    soar_lambda: float | None = Field(default=None, gt=0)
    """Weight of SOAR, which puts each vector into a second leaf; None for one leaf each."""
    avq: float | None = Field(default=None, gt=0)
    """How much more the leaves' centres mind errors along a vector than across it; None for not."""
    residual_quantization: bool = True
    """Whether, in a tree, what is quantised is a vector's difference from its leaf's centre."""
    dimensions_per_block: int = Field(default=2, ge=1)
    anisotropic_quantization_threshold: float = Field(default=0.2, gt=0, lt=1)
    training_sample_size: int = Field(default=100_000, ge=1)
    training_threads: int = Field(default=1, ge=1)


class ScannSearchParams(SearchParams):
    """How much of the index is searched."""

    leaves_to_search: int | None = Field(default=None, ge=1)
    """Partitions searched; None for all, and where there is no tree."""
    pre_reorder_num_neighbors: int = Field(ge=1)
    """Candidates that ScaNN reorders by bytes, ``final_num_neighbors`` at least."""
    final_num_neighbors: int = Field(ge=1)
    """Candidates that it then proposes for rescoring, k at least."""
    cells_to_search: int | None = Field(default=None, ge=1)
    """Parts of partitions searched, by us, where not all candidates are eligible; None for none."""


class ScannIndex(LocalIndex[ScannBuildParams, ScannSearchParams]):
    """Quantised vectors, in a tree of partitions where there are many."""

    name: ClassVar[str] = "scann"
    build_params_type = ScannBuildParams
    search_params_type = ScannSearchParams
    variants_scale = False

    _searcher: Any
    _cells: Cells | None = None
    """The tree's leaves, parted; None if there is none, or before it was saved: its files tell."""

    @property
    def is_deterministic(self) -> bool:
        """Whether there is no tree: its random start cannot be seeded, and k-means++ finds less."""
        return self.build_params.num_leaves is None

    @classmethod
    def unavailable(cls) -> str | None:
        """Return why ScaNN cannot be used here; None if it can."""
        try:
            _library()
        except BackendUnavailableError as error:
            return str(error)
        return None

    @classmethod
    def default_build_params(cls, n_candidates: int, dim: int) -> ScannBuildParams:
        """Return params with a tree but for few vectors."""
        del dim
        if n_candidates < _TREE_FROM:
            return ScannBuildParams()
        # More leaves, or SOAR, were measured to cost more to build and to search as fast.
        num_leaves = round(math.sqrt(n_candidates))
        return ScannBuildParams(
            num_leaves=num_leaves, avq=_AVQ, training_sample_size=_SAMPLE_PER_LEAF * num_leaves
        )

    @classmethod
    def build_variants(cls, n_candidates: int, dim: int) -> list[ScannBuildParams]:
        """Return params with a tree, without, or both where either may be the faster.

        Where most candidates resemble one another and few stand out, as in a large catalogue most
        of which nobody has touched, the differences from the leaves' centres are small but for
        those few, the best: quantised, they lose most of their scores. Whole vectors do not.
        """
        default = cls.default_build_params(n_candidates, dim)
        if default.num_leaves is None:
            return [default]
        whole = default.model_copy(update={"residual_quantization": False})
        if n_candidates < _TREE_ALWAYS_FROM:
            return [default, whole, ScannBuildParams()]
        return [default, whole]

    def default_search_params(self, k: int) -> ScannSearchParams:
        """Return params that search a twentieth of the leaves."""
        num_leaves = self.build_params.num_leaves
        leaves = None if num_leaves is None else math.ceil(num_leaves / 20)
        return _search_params(k, 4 * k, leaves)

    def exhaustive_params(self) -> ScannSearchParams:
        """Return the params under which every candidate is proposed."""
        return _search_params(self.n_candidates, self.n_candidates)

    def effort_ladders(self, k: int) -> list[list[ScannSearchParams]]:
        """Return rising numbers of reordered candidates, or of leaves for each such number."""
        reordered = geometric(k, self.n_candidates, _REORDERED_STEP)
        num_leaves = self.build_params.num_leaves
        if num_leaves is None:
            return [[_search_params(k, n) for n in reordered]]
        leaves = geometric(1, num_leaves, _LEAVES_STEP)
        return [
            [_search_params(k, n, searched) for searched in leaves]
            for n in reordered
            if n <= max(_MOST_REORDERED * k, _ALWAYS_TRIED)
        ]

    def cost(self, k: int, params: ScannSearchParams) -> float:
        """Return the cost of the vectors in the searched leaves and of those that are left."""
        num_leaves = self.build_params.num_leaves or 1
        scored = self.n_candidates * self._n_searched(params) / num_leaves
        return (
            num_leaves
            + _QUANTISED_COST * scored
            + _REORDERING_COST * max(params.pre_reorder_num_neighbors, k)
            + _RESCORING_COST * max(params.final_num_neighbors, k)
        )

    def save(self, directory: Path) -> None:
        """Write the quantised vectors, with paths relative to the folder."""
        self._searcher.serialize(str(directory), relative_path=True)
        self._cells = self._parted_leaves(directory)
        if self._cells is not None:
            (directory / _CELLS).mkdir(exist_ok=True)
            self._cells.save(directory / _CELLS)

    def _build(self) -> None:
        by_bytes = _library().scann_builder.ReorderType.INT8
        self._searcher = self._builder().reorder(1, quantize=by_bytes).build()

    def _builder(self) -> Any:
        """Return ScaNN's own builder, ready but for how it reorders."""
        params = self.build_params
        self._check_tree()
        builder = _library().builder(self.embeddings, 1, "dot_product")
        builder.set_n_training_threads(params.training_threads)
        sample_size = min(params.training_sample_size, self.n_candidates)
        if params.num_leaves is not None:
            builder.tree(
                num_leaves=params.num_leaves,
                num_leaves_to_search=1,
                training_sample_size=sample_size,
                # Merging small leaves leaves several with one centre, and then one query and a
                # batch of queries search different ones of them.
                min_partition_size=1,
                soar_lambda=params.soar_lambda,
                avq=params.avq,
            )
        has_tree = params.num_leaves is not None
        builder.score_ah(
            params.dimensions_per_block,
            anisotropic_quantization_threshold=params.anisotropic_quantization_threshold,
            training_sample_size=sample_size,
            residual_quantization=params.residual_quantization and has_tree,
        )
        return builder

    def _load(self, directory: Path) -> None:
        _check_assets(directory)
        self._searcher = _library().load_searcher(str(directory))
        # Only parallel searches use ScaNN's threads, and a forked process, which has none of them,
        # waits for them without end when it lets the searcher go.
        self._searcher.set_num_threads(0)
        found = self._searcher.size()
        if found != self.n_candidates:
            raise ValueError(f"{directory} holds {found} vectors, the corpus {self.n_candidates}")
        if (directory / _CELLS).exists():  # an older index may have none
            self._cells = Cells.load(directory / _CELLS, self.embeddings.shape)

    def _parted_leaves(self, directory: Path) -> Cells | None:
        """Return the leaves of the tree, of which ScaNN tells nobody but its files; None if none.

        SOAR has each vector in two leaves, and these are as good as none here.
        """
        if self.build_params.num_leaves is None or self.build_params.soar_lambda is not None:
            return None
        partitioner = _partitioner_type()()
        partitioner.ParseFromString((directory / _PARTITIONER).read_bytes())
        root = partitioner.kmeans.kmeans_tree.root
        if [child.leaf_id for child in root.children] != list(range(len(root.centers))):
            return None  # a tree of another shape than ScaNN has made so far
        return Cells.part(
            self.embeddings,
            np.array([center.dimension for center in root.centers], dtype=np.float32),
            np.load(directory / _LEAF_OF_EACH, allow_pickle=False),
            np.load(directory / _BYTES, mmap_mode="r", allow_pickle=False),
            1 / np.load(directory / _MULTIPLIERS, allow_pickle=False),
        )

    def prepared_for_masks(
        self, params: ScannSearchParams, queries: np.ndarray, exact: Neighbors, recall: float
    ) -> ScannSearchParams:
        """Return the params, with how many cells to search for what is eligible."""
        if self._cells is None:
            return params
        n_cells = self._cells.n_holding(queries, exact.rows, recall)
        return params.model_copy(update={"cells_to_search": n_cells})

    def _ways(self, k: int, params: ScannSearchParams) -> list[Way]:
        """Return how the index can look deeper than k at the recall of ``params``."""
        ways = super()._ways(k, params)
        fewest = params.cells_to_search
        if self._cells is not None and fewest is not None:
            n_cells = len(self._cells.centers)

            def n_searched(depth: int) -> int:
                # The mask may leave the very best alone, which can be the hardest to find.
                found = self._params_chosen_alike(depth, params, k).cells_to_search
                return min(max(fewest, found or n_cells), n_cells)

            ways.append(CellScan(self._exact, self._cells, n_searched, _n_rescored))
        return ways

    def _search(self, queries: np.ndarray, k: int, params: ScannSearchParams) -> np.ndarray:
        n = self._n_candidates
        n_proposed = min(max(params.final_num_neighbors, k), n)
        n_reordered = min(max(params.pre_reorder_num_neighbors, n_proposed), n)
        effort = (n_proposed, n_reordered, self._n_searched(params))
        rows: np.ndarray
        if len(queries) == 1:  # finds what a batch finds, a sixth faster, and pads nothing
            rows, _ = self._searcher.search(queries[0], *effort)
            return rows[None]
        rows, distances = self._searcher.search_batched(queries, *effort)
        # Where the searched leaves hold fewer, ScaNN pads with row 0 and a distance that is NaN.
        missing = np.isnan(distances)
        return np.where(missing, -1, rows.astype(np.int64)) if np.count_nonzero(missing) else rows

    def _check_tree(self) -> None:
        """Refuse a tree that ScaNN would fail to build, or crash over."""
        num_leaves = self.build_params.num_leaves
        if num_leaves is None:
            return
        least = max(num_leaves, _MIN_TREE_SIZE)
        if self.n_candidates < least:
            raise ValueError(
                f"a tree of {num_leaves} leaves takes at least {least} candidates, not "
                f"{self.n_candidates}; leave num_leaves out"
            )
        if self._exact.max_norm > _MAX_NORM:
            row = int(np.argmax(squared_norms(self.embeddings)))
            raise ValueError(
                f"a ScaNN tree takes embeddings of norms up to {_MAX_NORM:g}, and row {row} has "
                f"{self._exact.max_norm:.3g}; scale all of them alike, which changes no order, or "
                "build the other backends only (--backend)"
            )

    def _n_searched(self, params: ScannSearchParams) -> int:
        """Return how many leaves a search looks at; without a tree, all are in one."""
        num_leaves = self.build_params.num_leaves or 1
        return min(params.leaves_to_search or num_leaves, num_leaves)


def _search_params(k: int, n_reordered: int, leaves: int | None = None) -> ScannSearchParams:
    """Return params that rescore, of what is reordered, a little more than k."""
    return ScannSearchParams(
        leaves_to_search=leaves,
        pre_reorder_num_neighbors=n_reordered,
        final_num_neighbors=min(n_reordered, _n_rescored(k)),
    )


def _n_rescored(k: int) -> int:
    """Return how many of the best by bytes hold the best k."""
    return k + math.ceil(k * _RESCORED_BEYOND)


@cache
def _library() -> ModuleType:
    """Import ScaNN, without TensorFlow, which it would import for operations not used here."""
    try:
        with _hidden("tensorflow"):
            from scann.scann_ops.py import scann_ops_pybind  # noqa: PLC0415
    except ImportError as error:
        raise BackendUnavailableError(
            "ScaNN is not installed; it has Linux wheels only, and the other backends work without "
            f"it (on Linux: pip install scann): {error}"
        ) from error
    library: ModuleType = scann_ops_pybind
    return library


@cache
def _partitioner_type() -> Any:
    """Return the message that ScaNN keeps the centres of a tree's leaves in."""
    with _hidden("tensorflow"):
        from scann.partitioning import partitioner_pb2  # noqa: PLC0415
    return partitioner_pb2.SerializedPartitioner


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Make ``import module`` fail, and so optional, inside the block."""
    missing = object()
    before: Any = sys.modules.get(module, missing)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is missing:
            del sys.modules[module]
        else:
            sys.modules[module] = before


def _check_assets(directory: Path) -> None:
    """Refuse what makes ScaNN's loader run code or read files outside the folder."""
    if (directory / _PICKLED_IDS).exists():
        raise ValueError(f"{directory / _PICKLED_IDS} must not exist: it would be unpickled")
    if not _LISTED_ASSETS.fullmatch((directory / _ASSETS).read_text()):
        raise ValueError(f"{directory / _ASSETS} lists other things than files in its folder")
