"""One index version in memory: opened, verified, and tried before it answers anybody."""

from __future__ import annotations

import gc
import secrets
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import structlog
from prometheus_client import Counter
from pydantic import SecretStr

from indexer.backends import IndexUnreachableError
from indexer.bundle import IndexBundle, SearchChoice
from indexer.exact import ExactScorer
from indexer.recall import mean_interval, recall_at_k
from server import metrics
from server.domain import (
    CandidateQuery,
    EmbeddingQuery,
    Query,
    SearchPlan,
    SearchRequest,
    UserQuery,
)
from server.embedder import SHORT_HISTORY
from server.encoding import FoundEncoder, index_info_message, plan_fields
from server.engine import Engine
from server.errors import EngineUnreachableError, SearchError
from server.paging import PageTokens
from server.settings import Settings
from server.signing import check_signature
from trainer.bundle import QueryAssets
from trainer.features import CANDIDATE_ID, DESCRIPTION
from trainer.publish import BundleError, resolve

_log = structlog.get_logger(__name__)
# Exact search is what a self-test costs: as many queries as a scan of so many rows allows.
_SELF_TEST_ROWS = 20_000_000
_MIN_SELF_TEST_QUERIES, _MAX_SELF_TEST_QUERIES = 20, 200
_SELF_TEST_SLACK = 0.02  # of recall: an interval around exactly 1 has no width

# What reading and searching raise over files that are sound by themselves.
_DOES_NOT_FIT = (LookupError, OSError, RuntimeError, SearchError, TypeError, ValueError)


class IndexVersion:
    """What answers from one index version; workers that are forked share it.

    Args:
        bundle: the index bundle, verified.
        settings: the limits, and the key that signs page tokens.

    Raises:
        BackendUnavailableError: if the default backend's library is not installed.
        BundleError: if the bundle's parts do not fit each other.
    """

    def __init__(self, bundle: IndexBundle, settings: Settings) -> None:
        self.name = bundle.manifest.version
        self._is_tried = False
        self.engine = Engine(
            bundle,
            max_page_depth=settings.max_page_depth,
            filter_cache_bytes=settings.filter_cache_bytes,
            long_search_floats=settings.long_search_floats,
        )
        self.encoder = FoundEncoder(bundle.corpus.candidates.column(CANDIDATE_ID))
        self.page_tokens = PageTokens(self.name, page_token_key(settings))
        self.index_info = index_info_message(self.engine, settings).SerializeToString()
        self.plan_fields = lru_cache(4096)(partial(plan_fields, index_version=self.name))
        # Not of a method: such a cycle would keep a replaced version in memory.
        self.counter = lru_cache(4096)(partial(_counter, self.name))

    def try_out(self) -> None:
        """See whether the index delivers what it promises.

        Raises:
            BundleError: if a backend finds less.
            IndexUnreachableError: if its engine does not answer.
            SearchError: if parts of different bundles were put together, and others of
                ``_DOES_NOT_FIT``.
        """
        self.search_every_kind()
        _self_test(self)
        self._is_tried = True

    def warm_up(self) -> None:
        """Make searches of every kind on this thread, so that no caller waits for the first."""
        if not self._is_tried:
            self.try_out()
        self.search_every_kind()

    def search_every_kind(self) -> None:
        """Make a search of every kind that the index can answer, over its first and last rows."""
        for query in _trial_queries(self.engine.bundle):
            self.engine.search(SearchRequest(query, rank=self.engine.has_ranker))


def load(settings: Settings, directory: Path | None = None) -> IndexVersion:
    """Verify and open an index bundle, and try whether it delivers what it promises.

    An index that is kept outside is tried later, by the workers, if there are to be several.

    Args:
        settings: which bundle, and the limits.
        directory: the bundle's directory, if it is another than the settings name.

    Raises:
        BundleError: if there is no bundle, it is not signed as the settings demand, it is damaged,
            its parts do not fit each other, a backend finds less than it promises, or one that is
            outside of this process does not answer.
        BackendUnavailableError: if its default backend's library is not installed.
    """
    directory = resolve(directory or settings.index)
    if settings.index_public_key is not None:
        check_signature(directory, settings.index_public_key)
    bundle = IndexBundle.open(directory)
    try:
        bundle.check()
        version = IndexVersion(bundle, settings)
        # A process that forks must have no connection; each of its workers makes one, and tries it.
        if settings.workers == 1 or not version.engine.is_remote:
            version.try_out()
    except (EngineUnreachableError, IndexUnreachableError) as error:
        raise BundleError(f"{bundle.directory}: {error.__cause__ or error}") from error
    except _DOES_NOT_FIT as error:
        raise BundleError(f"{bundle.directory}: its parts do not fit: {error}") from error
    return version


def load_and_settle(settings: Settings) -> IndexVersion:
    """Load the index bundle that settings name, for a server that starts.

    Raises:
        BundleError: as ``load``.
        BackendUnavailableError: as ``load``.
    """
    version = load(settings)
    settle_memory()
    return version


def with_page_token_key(settings: Settings) -> Settings:
    """Return settings that have a key for page tokens, a new one if none was given."""
    if settings.page_token_key is not None:
        return settings
    return settings.model_copy(update={"page_token_key": SecretStr(secrets.token_hex(32))})


def page_token_key(settings: Settings) -> bytes:
    """Return the key that signs page tokens.

    Raises:
        ValueError: if the settings have none; ``with_page_token_key`` gives them one.
    """
    if settings.page_token_key is None:
        raise ValueError("the settings have no page_token_key")
    return settings.page_token_key.get_secret_value().encode()


def settle_memory() -> None:
    """Hide what exists now from the garbage collector, after what is no longer used is gone.

    A loaded version lives long: looking at it takes milliseconds each time, and writes to pages
    that forked workers then no longer share.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _counter(index_version: str, plan: SearchPlan) -> Counter:
    """Return what counts the searches that a version made by a plan."""
    return metrics.SEARCHES.labels(plan.backend, plan.method.value, index_version)


def _self_test(version: IndexVersion) -> None:
    """Search the stored queries, and compare the recall with what the bundle promises.

    Raises:
        BundleError: if a backend surely finds less than its operating point says.
    """
    bundle = version.engine.bundle
    indexes = version.engine.planner.indexes
    promises = [_promise(bundle, name) for name, one in indexes.items() if not one.is_exact]
    if not promises:
        return
    n_queries = int(
        np.clip(
            _SELF_TEST_ROWS / bundle.manifest.n_candidates,
            _MIN_SELF_TEST_QUERIES,
            _MAX_SELF_TEST_QUERIES,
        )
    )
    queries = np.ascontiguousarray(bundle.tuning_queries[:n_queries])
    exact = ExactScorer(bundle.corpus.embeddings).search(
        queries, max(choice.point.k for choice in promises)
    )
    for choice in promises:
        name, point = choice.backend, choice.point
        found = indexes[name].search(queries, point.k, choice.params)
        recalls = recall_at_k(found, exact.best(point.k))
        mean, _, high = mean_interval(recalls)
        _log.debug("self-test", index_version=version.name, backend=name, recall=mean)
        # Both are estimates: only where the intervals lie apart is the promise surely broken.
        if high + _SELF_TEST_SLACK < point.recall_low:
            raise BundleError(
                f"{bundle.directory}: {name} promises a recall@{point.k} of {point.recall:.3f} "
                f"and delivers {mean:.3f} on {len(queries)} stored queries"
            )


def _promise(bundle: IndexBundle, backend: str) -> SearchChoice:
    """Return how a backend's ordinary requests are answered."""
    depths = (point.k for point in bundle.manifest.backends[backend].operating_points)
    return bundle.choose(min(depths), backend=backend)


def _trial_description(assets: QueryAssets) -> str:
    """Return a text that says something of candidates."""
    content = assets.features.content
    labels = [assets.vocabularies[one.name].token(0) for one in content if one.kind != "number"]
    return " ".join([*labels, *(f"{one.mean:f}" for one in content if one.kind == "number")])


def _trial_queries(bundle: IndexBundle) -> Iterator[Query]:
    """Yield a query of every kind that the index can answer."""
    corpus, assets = bundle.corpus, bundle.query
    ends = np.unique([0, corpus.n_candidates // 2, corpus.n_candidates - 1])
    some_ids = corpus.candidate_ids.tokens(ends)
    yield CandidateQuery(some_ids[0])
    yield EmbeddingQuery(np.array(corpus.embeddings[0]))
    if assets is not None:
        yield UserQuery(history=some_ids)
        yield UserQuery(history=some_ids[:1] * (SHORT_HISTORY + 1))
        yield UserQuery()
        if assets.description_tower_path is not None:
            yield UserQuery(features={DESCRIPTION: _trial_description(assets)})
        if assets.user_ids is not None:
            yield UserQuery(assets.user_ids.token(0))
            yield UserQuery(assets.user_ids.token(len(assets.user_ids) - 1))
