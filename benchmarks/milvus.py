"""What our index and our server add to Milvus: each beside pymilvus, called directly.

Milvus is milvus-lite here, which searches within the process that calls it; so CPU time counts all
of it, in each of the three ways alike. A real Milvus searches elsewhere, and what is added here is
then added to the time of a call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from milvus_lite.server_manager import server_manager_instance
from pydantic import BaseModel, ConfigDict
from pymilvus import MilvusClient
from rich import box
from rich.table import Table

from benchmarks.load import put_load
from benchmarks.progress import OnStep
from benchmarks.serve import SEARCH_METHOD
from benchmarks.server_process import server_process
from benchmarks.timing import time_calls
from indexer.backends import SearchParams
from indexer.backends.equal_norms import with_added_zero
from indexer.backends.milvus import CollectionEntry, MilvusIndex
from indexer.bundle import EXHAUSTIVE, IndexBundle, link_files
from server.client import Embedding, search_request
from trainer.publish import commit, staging

_K = 100
_RECALL_TARGET = 0.95
_ROUNDS = 3
_TOO_LONG_US = 1e9


class MilvusReport(BaseModel):
    """CPU time of one search, in three ways, of the same minute."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_candidates: int
    dim: int
    k: int
    search_params: dict[str, Any]
    recall: float
    """Of k, as the index was tuned."""
    build_seconds: float
    direct_us: float
    """By pymilvus alone."""
    index_us: float
    """By our index, which checks, rescores and orders."""
    server_us: float
    """By our server, all of its process."""

    @property
    def index_ratio(self) -> float:
        """The searches our index makes while pymilvus alone makes one."""
        return self.direct_us / self.index_us

    @property
    def server_ratio(self) -> float:
        """The searches our server makes while pymilvus alone makes one."""
        return self.direct_us / self.server_us


def benchmark_milvus(
    bundle: IndexBundle, seconds: int, on_step: OnStep = lambda _: None
) -> MilvusReport:
    """Measure the backend milvus of a bundle whose collection is kept by milvus-lite.

    Args:
        bundle: the bundle; it is published anew as one that Milvus answers for.
        seconds: how long each way is timed.
        on_step: called with a line of progress.
    """
    bundle = _without_scans(bundle)
    query = np.ascontiguousarray(bundle.tuning_queries[:1])
    choice = bundle.choose(_K, recall_target=_RECALL_TARGET, backend=MilvusIndex.name)
    index = bundle.index(MilvusIndex.name)
    alone = _PymilvusAlone(bundle.directory, choice.params)
    cpu_us: list[list[float]] = []
    for number in range(_ROUNDS):  # in turn, as a machine is not equally fast all the time
        on_step(f"searching in this process, round {number + 1} of {_ROUNDS}")
        ways = (alone.search, lambda one: index.search(one, _K, choice.params))
        cpu_us.append([time_calls(way, [query], seconds=seconds / _ROUNDS).cpu_us for way in ways])
    direct_us, index_us = map(float, np.median(cpu_us, axis=0))
    server_manager_instance.release_all()  # milvus-lite lets one process in
    on_step("searching through the server")
    return MilvusReport(
        n_candidates=index.n_candidates,
        dim=index.dim,
        k=_K,
        search_params=choice.params.model_dump(),
        recall=choice.point.recall,
        build_seconds=bundle.manifest.backends[MilvusIndex.name].build_seconds,
        direct_us=direct_us,
        index_us=index_us,
        server_us=_server_us(bundle.directory, query[0], seconds),
    )


def milvus_table(report: MilvusReport) -> Table:
    """Tabulate the three ways."""
    table = Table(
        title=f"{report.n_candidates:,} candidates of {report.dim} dimensions, "
        f"recall@{report.k} {report.recall:.3f}, {report.search_params}",
        caption="CPU us: a search, milvus-lite's included; speed: against pymilvus alone",
        box=box.SIMPLE,
    )
    for heading in ("", "CPU us", "speed"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("pymilvus alone", f"{report.direct_us:,.0f}", "")
    table.add_row("our index", f"{report.index_us:,.0f}", f"{report.index_ratio:.2f}x")
    table.add_row("our server", f"{report.server_us:,.0f}", f"{report.server_ratio:.2f}x")
    return table


def _without_scans(bundle: IndexBundle) -> IndexBundle:
    """Publish a bundle as if scans took too long, which they do where Milvus is worth having."""
    entry = bundle.manifest.backends[MilvusIndex.name]
    slow = {"p50_microseconds": _TOO_LONG_US}
    points = tuple(
        point.model_copy(update=slow) if point.name == EXHAUSTIVE else point
        for point in entry.operating_points
    )
    backends = {MilvusIndex.name: entry.model_copy(update={"operating_points": points})}
    root = bundle.directory.parent / "without-scans"
    with staging(root) as staged:
        link_files(bundle, staged)
        manifest = bundle.manifest.model_copy(update={"backends": backends})
        return IndexBundle.open(commit(staged, root, manifest))


class _PymilvusAlone:
    """The collection of a bundle, searched as its documentation says."""

    def __init__(self, bundle: Path, params: SearchParams) -> None:
        entry = CollectionEntry.read(bundle / MilvusIndex.name)
        self._client = MilvusClient(entry.uri)
        self._client.load_collection(entry.name)
        self._name = entry.name
        self._params = {"params": params.model_dump(exclude_none=True)}

    def search(self, query: np.ndarray) -> list[int]:
        vectors = list(with_added_zero(query))
        (hits,) = self._client.search(self._name, vectors, limit=_K, search_params=self._params)
        return [hit["row"] for hit in hits]


def _server_us(bundle: Path, query: np.ndarray, seconds: int) -> float:
    """Return the CPU time of a search by a server of its own process, one after the other."""
    request = search_request(Embedding(query.tolist()), count=_K).SerializeToString()
    with server_process(("server", "serve", "--index", str(bundle), "--port", "0")) as started:
        load = put_load(
            started.target, SEARCH_METHOD, request, started.pid, seconds=seconds, in_flight=1
        )
    return load.cpu_us_per_request
