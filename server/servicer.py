"""The service: what a call is answered with, and on which thread, from the wire and back."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic, time_ns
from typing import TYPE_CHECKING, TypeGuard, TypeVar

import grpc
from candidate_search.v1 import candidate_search_service_pb2 as pb

from server import metrics
from server.decoding import RequestDecoder
from server.domain import Notice, SearchMethod, SearchRequest, SearchResult
from server.encoding import batch_response, batch_status, explanation_message, other_fields
from server.engine import Engine
from server.errors import LimitExceededError, NotServingError, OverloadedError, SearchError
from server.explaining import explain
from server.gathering import TURNS, Gathering
from server.interceptors import Method, code_of, new_request_id, service_handler, status_of
from server.limits import InFlight, fitted
from server.live_recall import LiveRecall
from server.loading import IndexVersion
from server.search_threads import SearchThreads
from server.settings import Settings
from server.versions import Served

if TYPE_CHECKING:
    from server.tracing import Tracer  # which needs an extra

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["CandidateSearchService"].full_name

T = TypeVar("T")

_SEARCHES_IN_A_ROW = 32  # of a batch, before other calls get their turn
_LONGEST_TURN_SECONDS = 0.005  # of writing their answers, which may hold many columns


@dataclass(slots=True)
class _Call:
    """A search that a caller asked for."""

    version: IndexVersion
    """What answers it, whatever takes over meanwhile."""
    all_but_token: bytes
    """The request without its page token: the same for all pages."""
    search: SearchRequest
    """What is searched for, which may be less than was asked for."""
    is_long: bool
    degraded: Notice | None
    begun_nanos: int
    """Since the epoch."""
    deadline: float | None
    """When the caller gives up, by ``time.monotonic``, if it does."""

    @property
    def is_made_with_others(self) -> bool:
        """Whether a batch's searches are made in one go: a scan for each would hold up the rest."""
        return not self.is_long or self.version.engine.is_remote


@dataclass(slots=True)
class _Asked:
    """A call that is not begun yet."""

    request: pb.SearchCandidatesRequest
    deadline: float | None


_Answers = Mapping[IndexVersion, Iterator[SearchResult | SearchError]]


class CandidateSearchServicer:
    """Answers the calls of ``CandidateSearchService``.

    Args:
        served: the versions that answer; others may be put in their place at any time.
        settings: the limits.
        tracer: what records searches, if anything does.
    """

    def __init__(self, served: Served, settings: Settings, tracer: Tracer | None = None) -> None:
        self.is_serving = False
        self.served = served
        self._settings = settings
        self._tracer = tracer
        self._decoder = RequestDecoder(settings)
        self._live_recall = LiveRecall(settings.live_recall_share)
        self._n_searches = 0
        queue_length = settings.long_search_queue
        self._long = SearchThreads(
            *("long", settings.long_search_threads, queue_length),
            ", or search an approximate backend without a filter",
        )
        # They wait for others, not for a core: so more of them are made at the same time.
        self._remote = SearchThreads("remote", settings.remote_search_threads, queue_length)
        self.in_flight = InFlight(settings.max_calls_in_flight)
        self._gathering: Gathering[_Asked, bytes | _Call] = Gathering(
            self.in_flight, self._answer_in_one_go, settings.max_gathered_searches
        )

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a gRPC server calls."""
        methods: dict[str, Method] = {
            "SearchCandidates": (self.search_candidates, pb.SearchCandidatesRequest),
            "BatchSearchCandidates": (
                self.batch_search_candidates,
                pb.BatchSearchCandidatesRequest,
            ),
            "ExplainSearch": (self.explain_search, pb.ExplainSearchRequest),
            "GetIndexInfo": (self.get_index_info, pb.GetIndexInfoRequest),
        }
        return service_handler(SERVICE_NAME, methods, self.in_flight)

    async def search_candidates(
        self, request: pb.SearchCandidatesRequest, seconds_left: float | None
    ) -> bytes:
        """Search for one query."""
        asked = _Asked(request, _deadline(seconds_left))
        if self._gathering.has_company:
            answer = await self._gathering.join(asked)
        else:
            answer = self._answer(asked)
        if isinstance(answer, _Call):
            return self._end(answer, await self._search_beside(answer))
        return answer

    async def batch_search_candidates(
        self, batch: pb.BatchSearchCandidatesRequest, seconds_left: float | None
    ) -> bytes:
        """Search for several queries, each with a response or a status."""
        n_requests, limit = len(batch.requests), self._settings.max_batch_size
        if not 1 <= n_requests <= limit:
            raise LimitExceededError(
                f"a batch has 1 to {limit} requests, not {n_requests}",
                field="requests",
                limit=limit,
                found=n_requests,
            )
        results: list[bytes] = []
        deadline = _deadline(seconds_left)
        for start in range(0, n_requests, _SEARCHES_IN_A_ROW):
            some = batch.requests[start : start + _SEARCHES_IN_A_ROW]
            if deadline is not None and monotonic() >= deadline:
                raise TimeoutError
            results += await self._results(some, deadline, n_requests - start)
            await _give_way()
        return b"".join(results)

    async def explain_search(
        self, message: pb.ExplainSearchRequest, seconds_left: float | None
    ) -> bytes:
        """Make one search in every way there is, and compare."""
        if message.request.page_token:
            raise LimitExceededError(
                "only a first page can be explained; leave page_token empty", field="page_token"
            )
        engine = self.served.version_for(
            message.request.SerializeToString(deterministic=True)
        ).engine
        request = self._decoder.decode(message.request)
        # The comparison is what is asked for: nothing of it is left out to be in time.
        compare = partial(explain, engine, request)
        explanation = await self.threads_for(engine).run(compare, _deadline(seconds_left))
        return explanation_message(explanation, engine).SerializeToString()

    async def get_index_info(
        self, request: pb.GetIndexInfoRequest, seconds_left: float | None
    ) -> bytes:
        """Describe the index."""
        del request, seconds_left
        return self.served.active.index_info

    def threads_for(self, engine: Engine) -> SearchThreads:
        """Return the threads on which an engine's searches are made, if not at once."""
        return self._remote if engine.is_remote else self._long

    def close(self) -> None:
        """End the threads."""
        self._long.close()
        self._remote.close()
        self._live_recall.close()
        metrics.settle()

    def observe(self) -> None:
        """Tell Prometheus what was done since, and what is being done now."""
        metrics.settle()
        metrics.observe_process(self.in_flight.count, self._long.count + self._remote.count)

    def _begin(
        self, request: pb.SearchCandidatesRequest, deadline: float | None, n_to_do: int = 1
    ) -> _Call:
        """Translate a request into a search for which there is time, or refuse it.

        Args:
            request: what is searched for.
            deadline: when the caller gives up, by ``time.monotonic``, if it does.
            n_to_do: how many searches must be made by then, this one included.
        """
        begun_nanos = time_ns()
        if not self.is_serving:
            raise NotServingError("the server is starting or stopping; try again")
        page_token = request.page_token
        request.ClearField("page_token")
        all_but_token = request.SerializeToString(deterministic=True)
        version = self.served.version_for(all_but_token)
        offset = version.page_tokens.offset(page_token, all_but_token) if page_token else 0
        search, engine = self._decoder.decode(request, offset), version.engine
        is_long, degraded = engine.is_long(search), None
        if deadline is not None and not offset:  # a later page goes on as the first was made
            seconds_left = max(0.0, deadline - monotonic()) / n_to_do
            n_ahead = self.threads_for(engine).n_ahead if is_long else 0.0
            search, degraded = fitted(search, engine.planner, seconds_left, n_ahead)
            is_long = is_long and (degraded is None or engine.is_long(search))
        return _Call(version, all_but_token, search, is_long, degraded, begun_nanos, deadline)

    def _end(self, call: _Call, result: SearchResult) -> bytes:
        """Translate a result."""
        version, next_page_token = call.version, ""
        # What is popular, or was scanned in any case, is no less than what was asked for.
        is_less = not result.plan.exact and result.plan.method is not SearchMethod.POPULARITY
        if call.degraded is not None and is_less:
            result.notices.append(call.degraded)
        elif result.has_more:  # what would go on is the search as asked for, not this one
            offset = call.search.offset + len(result.rows)
            next_page_token = version.page_tokens.sign(call.all_but_token, offset)
        metrics.count(version.counter(result.plan))
        metrics.observe_search(result, version.name, self._n_searches)
        self._n_searches += 1
        if self._tracer is not None:
            self._tracer.record(result, call.begun_nanos, version.name)
        self._live_recall.consider(version, call.search, result)
        found = version.encoder.encode(result.rows, result.scores)
        returned_fields = call.search.returned_fields
        others = other_fields(result, returned_fields, version.engine, next_page_token)
        return b"".join([found, version.plan_fields(result.plan), others])

    def _answer(self, asked: _Asked) -> bytes | _Call:
        """Answer a call if its search is short, which then costs less than handing it over."""
        call = self._begin(asked.request, asked.deadline)
        return call if call.is_long else self._end(call, call.version.engine.search(call.search))

    def _answer_in_one_go(self, several: Sequence[_Asked]) -> list[bytes | _Call | Exception]:
        """Answer the calls whose searches are short, stage by stage; what fails, fails alone."""
        n = len(several)
        begun = [_caught(partial(self._begin, one.request, one.deadline, n)) for one in several]
        results = _found_together(call for call in begun if _is_short(call))
        answers: list[bytes | _Call | Exception] = []
        for call in begun:
            result = next(results[call.version]) if _is_short(call) else None
            if isinstance(call, Exception) or result is None:
                answers.append(call)
            elif isinstance(result, Exception):
                answers.append(result)
            else:
                answers.append(_caught(partial(self._end, call, result)))
        metrics.SEARCHES_GATHERED.inc(n if n > 1 else 0)
        return answers

    async def _search_beside(self, call: _Call) -> SearchResult:
        engine = call.version.engine
        return await self.threads_for(engine).run(lambda: engine.search(call.search), call.deadline)

    async def _results(
        self,
        requests: Sequence[pb.SearchCandidatesRequest],
        deadline: float | None,
        n_to_do: int,
    ) -> list[bytes]:
        """Return some of a batch's results; a search that is refused is refused alone."""
        calls = [self._begin_or_error(request, deadline, n_to_do) for request in requests]
        answers = await self._answers_together(calls, deadline)
        results, turn_ends_at = [], monotonic() + _LONGEST_TURN_SECONDS
        for call in calls:
            if monotonic() > turn_ends_at:
                await _give_way()
                turn_ends_at = monotonic() + _LONGEST_TURN_SECONDS
            try:
                results.append(batch_response(await self._response(call, answers)))
            except SearchError as error:
                status = status_of(error, new_request_id())
                metrics.BATCH_REFUSALS.labels(code_of(error).name).inc()
                results.append(batch_status(status))
        return results

    def _begin_or_error(
        self, request: pb.SearchCandidatesRequest, deadline: float | None, n_to_do: int
    ) -> _Call | SearchError:
        try:
            return self._begin(request, deadline, n_to_do)
        except SearchError as error:
            return error

    async def _answers_together(
        self, calls: Sequence[_Call | SearchError], deadline: float | None
    ) -> _Answers:
        """Return the answers to a batch's searches but long scans, in order, by what answers."""
        searches: dict[IndexVersion, list[SearchRequest]] = defaultdict(list)
        for call in calls:
            if isinstance(call, _Call) and call.is_made_with_others:
                searches[call.version].append(call.search)
        return {
            version: iter(await self._found_by(version.engine, some, deadline))
            for version, some in searches.items()
        }

    async def _found_by(
        self, engine: Engine, searches: Sequence[SearchRequest], deadline: float | None
    ) -> Sequence[SearchResult | SearchError]:
        if not engine.is_remote:
            return engine.search_together(searches)
        try:
            return await self._remote.run(partial(engine.search_together, searches), deadline)
        except OverloadedError as error:  # which others of the batch may not meet
            return [error] * len(searches)

    async def _response(self, call: _Call | SearchError, answers: _Answers) -> bytes:
        """Return the response to one call of a batch; those made together are answered already."""
        if isinstance(call, SearchError):
            raise call
        if not call.is_made_with_others:
            return self._end(call, await self._search_beside(call))
        answer = next(answers[call.version])
        if isinstance(answer, SearchError):
            raise answer
        return self._end(call, answer)


async def _give_way() -> None:
    """Let others have their turn: what gRPC has announced takes several until it is answered."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


def _deadline(seconds_left: float | None) -> float | None:
    """Return when a caller gives up, by ``time.monotonic``; None if it waits for ever."""
    return None if seconds_left is None else monotonic() + seconds_left


def _is_short(call: _Call | Exception) -> TypeGuard[_Call]:
    return isinstance(call, _Call) and not call.is_long


def _found_together(
    calls: Iterable[_Call],
) -> dict[IndexVersion, Iterator[SearchResult | Exception]]:
    """Return the results of short searches, in order, by what makes them."""
    searches: dict[IndexVersion, list[SearchRequest]] = defaultdict(list)
    for call in calls:
        searches[call.version].append(call.search)
    results: dict[IndexVersion, Iterator[SearchResult | Exception]] = {}
    for version, some in searches.items():
        engine = version.engine
        together = _caught(partial(engine.search_together, some))
        if isinstance(together, Exception):
            results[version] = iter([_caught(partial(engine.search, one)) for one in some])
        else:
            results[version] = iter(together)
    return results


def _caught(work: Callable[[], T]) -> T | Exception:
    """Return what a call returns or raises."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - it is raised to the caller at whom it is aimed
        return error
