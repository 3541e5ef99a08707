"""Live recall: some of the searches that are answered are made once more, exactly, and compared.

Operating points were measured when the index was built, on the queries of that time. What is
measured here, on today's queries, tells when they have drifted apart.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import structlog

from indexer.exact import Neighbors
from indexer.recall import recall_at_k
from server import metrics
from server.domain import SearchRequest, SearchResult
from server.loading import IndexVersion

_log = structlog.get_logger(__name__)
_LOWEST_PRIORITY = 19
_BUSY_SHARE = 0.005  # of one core; exact searches of a large corpus would take all of it
_PAUSE_AFTER_FAILURE_SECONDS = 60.0  # so that the log is not flooded with one cause


class LiveRecall:
    """Samples searches, and compares them with exact ones on a thread of low priority.

    Args:
        share: of the approximate searches, how many are compared as long as there is time.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._thread = ThreadPoolExecutor(1, "live-recall", initializer=_lower_priority)
        self._resting_until = 0.0

    def consider(self, version: IndexVersion, search: SearchRequest, result: SearchResult) -> None:
        """Compare a search, perhaps."""
        if random.random() >= self._share or result.plan.exact:  # noqa: S311 - not for secrets
            return
        expected_recall = result.plan.expected_recall
        if expected_recall is None or _is_reordered(search):
            return
        if time.monotonic() >= self._resting_until:
            self._resting_until = float("inf")
            self._thread.submit(self._compare, version, search, result, expected_recall)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _compare(
        self,
        version: IndexVersion,
        search: SearchRequest,
        result: SearchResult,
        expected_recall: float,
    ) -> None:
        start = time.monotonic()
        seconds = _PAUSE_AFTER_FAILURE_SECONDS
        try:
            exactly = replace(search, exact=True, backend=None, recall_target=None)
            exact = version.engine.search(exactly)
            if len(exact.rows):  # else there was nothing to be found
                k = max(len(exact.rows), len(result.rows))
                (recall,) = recall_at_k(_neighbors(result, k), _neighbors(exact, k))
                labels = (result.plan.backend, version.name)
                metrics.LIVE_RECALL.labels(*labels).observe(recall)
                metrics.LIVE_EXPECTED_RECALL.labels(*labels).observe(expected_recall)
            seconds = (time.monotonic() - start) / _BUSY_SHARE
        except Exception:  # noqa: BLE001 - the caller has its answer, and nobody waits for this one
            _log.exception("live recall fails", index_version=version.name)
        self._resting_until = time.monotonic() + seconds


def _is_reordered(search: SearchRequest) -> bool:
    """Whether what is returned are not simply the best by score."""
    return search.rank or search.diversity is not None or search.offset > 0


def _neighbors(result: SearchResult, k: int) -> Neighbors:
    """Return what was found as the answer to one query, padded to k."""
    padded = Neighbors.none(1, k)
    padded.rows[0, : len(result.rows)] = result.rows
    padded.scores[0, : len(result.scores)] = result.scores
    return padded


def _lower_priority() -> None:
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
