"""The order of the stages of a search: embed, plan, retrieve, diversify, rank, and nothing else.

Knows no transport.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from indexer.bundle import IndexBundle
from server.diversity import Diversifier
from server.domain import (
    Notice,
    NoticeCode,
    SearchMethod,
    SearchPlan,
    SearchRequest,
    SearchResult,
)
from server.embedder import EmbeddedQuery, Embedder
from server.errors import EngineUnreachableError, NoRankerError, SearchError, UserUnknownError
from server.filters import FilterMasks
from server.metadata import Metadata
from server.planning import IndexChoice, Planner
from server.ranking import CandidateRanker
from server.retrieval import Found, Retriever, Wanted
from server.similarity import Directions

_MAX_IDS = 100  # listed in a notice
_WIDENING = 4  # how many times more is searched when variety leaves too few
_NO_ROWS = np.empty(0, dtype=np.int64)
# Of what a scan of all candidates reads: most filters let few candidates through, or so many that
# an index finds them. Chosen: the few that come close to a whole scan are not known beforehand.
_FILTERED_PART = 2
_ID_FLOATS = 450  # that a scan reads while an id of a million is looked up; measured


@dataclass(slots=True)
class _Prepared:
    """A search that is ready to be made."""

    request: SearchRequest
    history: np.ndarray
    """(n,) integer rows of what the user did."""
    wanted: Wanted
    choice: IndexChoice
    unknown_ids: Sequence[str]
    stage_nanos: dict[str, int]
    """Wall time by stage, so far."""
    found: Found | None = None
    """The best ``request.count`` by score alone, if they were searched for with others."""

    def add_time(self, stage: str, nanos: int) -> None:
        """Count time spent in a stage."""
        self.stage_nanos[stage] = self.stage_nanos.get(stage, 0) + nanos


class Engine:
    """Answers searches over one index bundle; safe to use from several threads.

    Args:
        bundle: the index bundle.
        max_page_depth: how deep pages reach.
        filter_cache_bytes: how much memory the masks of filters may take.
        long_search_floats: how many numbers a search may read and not be long.

    Attributes:
        is_remote: whether searches may leave this process, and wait for others.
    """

    def __init__(
        self,
        bundle: IndexBundle,
        *,
        max_page_depth: int = 1000,
        filter_cache_bytes: int = 64 << 20,
        long_search_floats: int = 4_000_000,
    ) -> None:
        corpus = bundle.corpus
        directions = Directions(corpus.embeddings, has_bias_dimension=corpus.has_bias_dimension)
        self.bundle = bundle
        self.metadata = Metadata(corpus.candidates)
        self.planner = Planner(bundle)
        self.is_remote = any(index.is_remote for index in self.planner.indexes.values())
        self._candidate_ids = corpus.candidate_ids
        self._directions = directions
        self._embedder = Embedder(corpus, directions, bundle.query)
        self._masks = FilterMasks(self.metadata, corpus.n_candidates, filter_cache_bytes)
        self._retriever = Retriever(corpus, directions)
        self._diversifier = Diversifier(self.metadata, directions)
        self._ranker = _ranker(bundle)
        self._max_page_depth = max_page_depth
        self._corpus_shape = corpus.embeddings.shape
        self._n_floats = int(corpus.embeddings.size)
        self._long_search_floats = long_search_floats

    def search(self, request: SearchRequest) -> SearchResult:
        """Answer one search.

        Raises:
            SearchError: if it is refused; the class says why.
        """
        return self._run(self._prepare(request))

    def search_together(
        self, requests: Sequence[SearchRequest]
    ) -> list[SearchResult | SearchError]:
        """Answer several searches as ``search`` would, those in one call that an index can so.

        Returns:
            For each search its result, or the error that refuses it.
        """
        outcomes: list[_Prepared | SearchError] = []
        groups: dict[tuple[IndexChoice, int], list[_Prepared]] = defaultdict(list)
        for request in requests:
            try:
                prepared = self._prepare(request)
            except SearchError as error:
                outcomes.append(error)
                continue
            outcomes.append(prepared)
            n_fetched = self._retriever.n_fetched(prepared.wanted, prepared.choice)
            if n_fetched is not None and request.diversity is None:
                groups[prepared.choice, n_fetched].append(prepared)
        for (choice, n_fetched), group in groups.items():
            wanted = [prepared.wanted for prepared in group]
            start = perf_counter_ns()
            try:
                found = self._retriever.search_together(wanted, choice, n_fetched)
            except EngineUnreachableError:
                continue  # each is refused when its turn comes
            nanos_each = (perf_counter_ns() - start) // len(group)
            for prepared, one in zip(group, found, strict=True):
                prepared.found = one
                prepared.add_time("search", nanos_each)
        return [one if isinstance(one, SearchError) else self._outcome(one) for one in outcomes]

    @property
    def has_ranker(self) -> bool:
        """Whether there is a ranking model."""
        return self._ranker is not None

    def is_long(self, request: SearchRequest) -> bool:
        """Whether a search may take longer than an event loop should be held up.

        Raises:
            BackendUnknownError: if it asks for a backend that there is not.
        """
        if self.is_remote:
            return True
        limit = self._long_search_floats
        if self._floats_scanned(request) > limit:
            return True
        if self._diversifier.cost(request.diversity, request.count, self._corpus_shape) > limit:
            return True
        if len(request.exclusions) * _ID_FLOATS > limit:
            return True
        condition = request.filter
        return condition is not None and self._masks.takes_longer_than(limit, condition)

    def _floats_scanned(self, request: SearchRequest) -> int:
        """Return about how many numbers a search reads to score candidates one by one."""
        if self._choose(request).exact or self._compares_directions(request):
            share = 1.0 if request.filter is None else self._masks.share(request.filter)
            return int(share * self._n_floats)
        return 0 if request.filter is None else self._n_floats // _FILTERED_PART

    def _choose(self, request: SearchRequest) -> IndexChoice:
        """Choose the index for a search's first page."""
        depth = self._diversifier.depth(request.diversity, request.count, request.count)
        return self.planner.choose(request, depth)

    def _compares_directions(self, request: SearchRequest) -> bool:
        """Whether a search is by direction alone, and embeddings differ in length."""
        return self._directions.common_norm is None and self._embedder.by_cosine(request.query)

    def reason(self, request: SearchRequest, plan: SearchPlan) -> str:
        """Return why a search was made by a plan."""
        if plan.method is SearchMethod.POPULARITY:
            return "nothing is known of the user, so there is no vector to search by"
        if self._compares_directions(request):
            return (
                "it is by direction alone, which no index here can search by, since candidates' "
                "embeddings differ in length"
            )
        return self._choose(request).reason

    def n_eligible(self, request: SearchRequest) -> int:
        """Return how many candidates a search may find.

        Raises:
            SearchError: if it is refused; the class says why.
        """
        return self._retriever.n_eligible(self._prepare(request).wanted)

    def _prepare(self, request: SearchRequest) -> _Prepared:
        """Embed a query and plan its search; refuse what must be refused."""
        if request.rank and not self.has_ranker:
            raise NoRankerError("the index has no ranking model; leave rank out")
        for name in request.returned_fields:
            self.metadata.column(name)
        self._diversifier.check(request.diversity)
        start = perf_counter_ns()
        embedded = self._embedder.embed(request.query)
        embedded_at = perf_counter_ns()
        if embedded.vector is None and request.refuse_unknown_user:
            raise UserUnknownError("nothing is known of the user: no known id, no known history")
        excluded, unknown_ids = self._excluded(request, embedded)
        mask = None if request.filter is None else self._masks.mask(request.filter)
        wanted = Wanted(embedded.vector, embedded.by_cosine, excluded, mask, request.filter)
        choice = self._choose(request)
        nanos = {"embed": embedded_at - start, "plan": perf_counter_ns() - embedded_at}
        return _Prepared(request, embedded.history, wanted, choice, unknown_ids, nanos)

    def _outcome(self, prepared: _Prepared) -> SearchResult | SearchError:
        try:
            return self._run(prepared)
        except SearchError as error:
            return error

    def _run(self, prepared: _Prepared) -> SearchResult:
        """Make a prepared search."""
        request = prepared.request
        found = self._best(prepared, request.count)
        plan = prepared.choice.plans[found.method, prepared.wanted.by_cosine]
        reach = self._reach(request)
        end = min(request.offset + request.count, reach)
        if request.offset:
            found = _continued(found, self._best(prepared, self._max_page_depth))
            found = self._diversifier.kept(request.diversity, found)
        page = slice(request.offset, end)
        rows, scores = found.rows[page], found.scores[page]
        ratings = self._ratings(prepared, rows)
        if ratings is not None:
            best_first = np.argsort(-ratings, kind="stable")
            rows, scores, ratings = rows[best_first], scores[best_first], ratings[best_first]
        is_full = len(rows) == request.count
        return SearchResult(
            rows=rows,
            scores=scores,
            ranking_scores=ratings,
            plan=plan,
            notices=self._notices(prepared, end, request.offset + len(rows)),
            has_more=is_full
            and end < reach
            and self._retriever.has_more_than(prepared.wanted, end),
            stage_nanos=prepared.stage_nanos,
        )

    def _ratings(self, prepared: _Prepared, rows: np.ndarray) -> np.ndarray | None:
        """Return the ranking model's scores (n,) of a page, if they are asked for.

        Pages are cut before they are ranked: they have the candidates they would have without,
        and none comes twice.
        """
        if self._ranker is None or not prepared.request.rank:
            return None
        start = perf_counter_ns()
        ratings = self._ranker.ratings(prepared.request.query, prepared.history, rows)
        prepared.add_time("rank", perf_counter_ns() - start)
        return ratings

    def _excluded(
        self, request: SearchRequest, embedded: EmbeddedQuery
    ) -> tuple[np.ndarray, list[str]]:
        """Return the rows (n,) that must not be returned, perhaps repeated, and unknown ids."""
        parts = [embedded.queried]
        unknown_ids = list(embedded.unknown_ids)
        if request.exclude_history:
            parts.append(embedded.history)
        if request.exclusions:
            rows = self._candidate_ids.rows(request.exclusions)
            parts.append(rows[rows >= 0])
            unknown_ids += [request.exclusions[i] for i in np.flatnonzero(rows < 0).tolist()]
        parts = [part for part in parts if len(part)] or [_NO_ROWS]
        return parts[0] if len(parts) == 1 else np.concatenate(parts), unknown_ids

    def _best(self, prepared: _Prepared, n: int) -> Found:
        """Return the first ``n`` candidates of the answer.

        As far as the index is exact, a deeper answer begins with the shallower one.
        """
        diversity, count = prepared.request.diversity, prepared.request.count
        depth = self._diversifier.depth(diversity, count, n)
        while True:
            start = perf_counter_ns()
            found = self._found(prepared, depth)
            found_at = perf_counter_ns()
            chosen = self._diversifier.choose(diversity, found, n)
            prepared.add_time("search", found_at - start)
            prepared.add_time("diversify", perf_counter_ns() - found_at)
            is_exhausted = len(found.rows) < depth or not self._diversifier.widens(diversity)
            if len(chosen.rows) >= n or is_exhausted:
                return chosen
            depth *= _WIDENING

    def _found(self, prepared: _Prepared, k: int) -> Found:
        """Return the best ``k`` candidates by score alone."""
        request = prepared.request
        found = prepared.found if k == request.count else None
        if found is None:
            # Another than was prepared, where more must be looked through than was expected.
            prepared.choice = self.planner.choose(request, k)
            found = self._retriever.search(prepared.wanted, prepared.choice)
        if request.min_score is None:
            return found
        # A plain number would be rounded to what the scores are.
        n_kept = int(np.count_nonzero(found.scores >= np.float64(request.min_score)))
        return Found(found.rows[:n_kept], found.scores[:n_kept], found.method)

    def _notices(self, prepared: _Prepared, n_wanted: int, n_found: int) -> list[Notice]:
        """Return what the caller should know; the numbers are of this and all earlier pages."""
        notices = []
        if prepared.wanted.vector is None:
            message = "nothing is known of the user: these are the most popular candidates"
            notices.append(Notice(NoticeCode.COLD_START, message))
        if unknown_ids := prepared.unknown_ids:
            message = f"{len(unknown_ids)} ids are not in the corpus and were passed over"
            notices.append(
                Notice(NoticeCode.UNKNOWN_IDS, message, unknown_ids[:_MAX_IDS], len(unknown_ids))
            )
        if n_found < n_wanted:
            message = f"{n_found} candidates meet the request, {n_wanted} were asked for"
            notices.append(Notice(NoticeCode.FEWER_ELIGIBLE, message, count=n_found))
        return notices

    def _reach(self, request: SearchRequest) -> int:
        """Return how many candidates all pages of a search hold together, at most."""
        depth = self._diversifier.reach(request.diversity, request.count, self._max_page_depth)
        return max(depth, request.count)


def _ranker(bundle: IndexBundle) -> CandidateRanker | None:
    assets = bundle.query
    if assets is None or assets.ranker is None:
        return None
    return CandidateRanker(assets, assets.ranker, bundle.corpus)


def _continued(first: Found, deep: Found) -> Found:
    """Return the first page's search, followed by what a deeper one adds to it.

    An approximate index may find other candidates when it is asked for more; so the first page
    stays as it was returned, and no later page repeats it.
    """
    is_new = ~np.isin(deep.rows, first.rows)
    return Found(
        np.concatenate([first.rows, deep.rows[is_new]]),
        np.concatenate([first.scores, deep.scores[is_new]]),
        first.method,
    )
