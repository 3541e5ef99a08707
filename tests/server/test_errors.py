"""The error table of the wire, one test a row, and that no reason is missing from it."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from candidate_search.v1 import candidate_search_service_pb2 as pb
from candidate_search.v1.candidate_search_service_pb2_grpc import CandidateSearchServiceStub
from google.rpc import code_pb2, error_details_pb2, status_pb2
from structlog.testing import capture_logs

from server import errors
from server.errors import SearchError
from server.interceptors import STATUS_CODES, status_of

SEARCH = "/candidate_search.v1.CandidateSearchService/SearchCandidates"
Request = pb.SearchCandidatesRequest
USER = pb.Query(user=pb.UserContext())
NAN, INFINITY = float("nan"), float("inf")


def condition(**test: Any) -> pb.Filter:
    return pb.Filter(condition=pb.FieldCondition(**test))


def nested(depth: int) -> pb.Filter:
    inner = condition(field="year", is_null=True)
    for _ in range(depth - 1):
        inner = pb.Filter(negated=inner)
    return inner


def user(**context: Any) -> pb.Query:
    return pb.Query(user=pb.UserContext(**context))


def mmr_of(weight: float) -> pb.Mmr:
    mmr = pb.Mmr()
    setattr(mmr, "lambda", weight)
    return mmr


def features(**values: pb.FeatureValue) -> pb.Query:
    return user(features=values)


ROWS = [
    ("QUERY_MISSING", Request()),
    ("QUERY_MISSING", Request(query=pb.Query())),
    ("QUERY_MISSING", Request(query=pb.Query(user_id=""))),
    ("QUERY_MISSING", Request(query=pb.Query(candidate_id=""))),
    ("QUERY_MISSING", Request(query=pb.Query(examples=pb.Examples()))),
    ("QUERY_MISSING", Request(query=user(history=[pb.Interaction()]))),
    ("COUNT_OUT_OF_RANGE", Request(query=USER, candidate_count=-1)),
    ("COUNT_OUT_OF_RANGE", Request(query=USER, candidate_count=1001)),
    ("DIMENSION_MISMATCH", Request(query=pb.Query(embedding=pb.Embedding(values=[1, 2])))),
    ("DIMENSION_MISMATCH", Request(query=pb.Query(embedding=pb.Embedding()))),
    ("NOT_FINITE", Request(query=USER, min_score=NAN)),
    (
        "NOT_FINITE",
        Request(query=USER, filter=condition(field="year", equals=pb.FilterValue(number=INFINITY))),
    ),
    ("LIMIT_EXCEEDED", Request(query=USER, excluded_candidate_ids=["x"] * 10_001)),
    ("LIMIT_EXCEEDED", Request(query=USER, returned_fields=["title"] * 51)),
    (
        "LIMIT_EXCEEDED",
        Request(query=user(history=[pb.Interaction(candidate_id="x") for _ in range(1001)])),
    ),
    (
        "LIMIT_EXCEEDED",
        Request(query=pb.Query(examples=pb.Examples(liked_candidate_ids=["x"] * 1001))),
    ),
    (
        "LIMIT_EXCEEDED",
        Request(query=user(features={"description": pb.FeatureValue(text="x" * 4001)})),
    ),
    ("LIMIT_EXCEEDED", Request(query=USER, recall_target=0)),
    ("LIMIT_EXCEEDED", Request(query=USER, recall_target=1.1)),
    ("LIMIT_EXCEEDED", Request(query=USER, recall_target=NAN)),
    ("LIMIT_EXCEEDED", Request(query=USER, unknown_user_policy=7)),  # type: ignore[arg-type]
    ("LIMIT_EXCEEDED", Request(query=USER, diversity=pb.Diversity())),
    ("LIMIT_EXCEEDED", Request(query=USER, diversity=pb.Diversity(mmr=pb.Mmr(pool=9)))),
    ("LIMIT_EXCEEDED", Request(query=USER, diversity=pb.Diversity(mmr=mmr_of(2)))),
    (
        "LIMIT_EXCEEDED",
        Request(
            query=USER, diversity=pb.Diversity(per_group=pb.PerGroup(field="year", max_count=11))
        ),
    ),
    ("LIMIT_EXCEEDED", Request(query=USER, filter=nested(11))),
    (
        "LIMIT_EXCEEDED",
        Request(query=USER, filter=pb.Filter(any_of=pb.FilterList(filters=[nested(1)] * 101))),
    ),
    ("FILTER_INVALID", Request(query=USER, filter=pb.Filter())),
    ("FILTER_INVALID", Request(query=USER, filter=pb.Filter(all_of=pb.FilterList()))),
    ("FILTER_INVALID", Request(query=USER, filter=condition(field="year"))),
    ("FILTER_INVALID", Request(query=USER, filter=condition(field="year", range=pb.FilterRange()))),
    (
        "FILTER_INVALID",
        Request(query=USER, filter=condition(field="year", one_of=pb.FilterValueList())),
    ),
    (
        "FILTER_INVALID",
        Request(query=USER, filter=condition(field="year", equals=pb.FilterValue())),
    ),
    (
        "FILTER_INVALID",
        Request(query=USER, filter=condition(field="year", equals=pb.FilterValue(text="x"))),
    ),
    ("FIELD_UNKNOWN", Request(query=USER, filter=condition(field="colour", is_null=True))),
    ("FIELD_UNKNOWN", Request(query=USER, returned_fields=["colour"])),
    ("FIELD_UNKNOWN", Request(query=features(age=pb.FeatureValue(number=1)))),
    (
        "FIELD_UNKNOWN",
        Request(query=USER, diversity=pb.Diversity(per_group=pb.PerGroup(field="colour"))),
    ),
    (
        "FIELD_UNKNOWN",
        Request(query=USER, diversity=pb.Diversity(per_group=pb.PerGroup(field="genres"))),
    ),
    ("BACKEND_UNKNOWN", Request(query=USER, backend="faiss")),
    ("UNDECODABLE", Request(query=USER, page_token="forged")),
    ("UNDECODABLE", Request(query=features(age=pb.FeatureValue()))),
    ("USER_UNKNOWN", Request(query=USER, unknown_user_policy=pb.UNKNOWN_USER_POLICY_ERROR)),
    (
        "USER_UNKNOWN",
        Request(query=pb.Query(user_id="nobody"), unknown_user_policy=pb.UNKNOWN_USER_POLICY_ERROR),
    ),
    ("CANDIDATE_UNKNOWN", Request(query=pb.Query(candidate_id="nothing"))),
    (
        "CANDIDATE_UNKNOWN",
        Request(query=pb.Query(examples=pb.Examples(liked_candidate_ids=["nothing"]))),
    ),
]


@pytest.mark.parametrize(("reason", "request_"), ROWS)
def test_refuses(
    stub: CandidateSearchServiceStub, reason: str, request_: pb.SearchCandidatesRequest
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.SearchCandidates(request_)
    assert reason == info_of(caught.value).reason
    assert code_of(reason) == caught.value.code()


def test_refuses_vectors_that_are_not_finite(stub: CandidateSearchServiceStub, client: Any) -> None:
    dim = client.index_info().embedding_dimension
    for value in (NAN, INFINITY, 3e38):
        request = Request(query=pb.Query(embedding=pb.Embedding(values=[value] * dim)))
        with pytest.raises(grpc.RpcError) as caught:
            stub.SearchCandidates(request)
        assert info_of(caught.value).reason == "NOT_FINITE"


@pytest.mark.parametrize("query", [pb.Query(user_id="1"), USER])
def test_refuses_users_without_a_query_tower(vector_server: Any, query: pb.Query) -> None:
    with (
        grpc.insecure_channel(vector_server.address) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        CandidateSearchServiceStub(channel).SearchCandidates(Request(query=query))
    assert info_of(caught.value).reason == "NO_QUERY_TOWER"
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_refuses_to_rank_without_a_ranking_model(vector_server: Any) -> None:
    embedding = pb.Query(embedding=pb.Embedding(values=[1.0] * 8))
    with (
        grpc.insecure_channel(vector_server.address) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        CandidateSearchServiceStub(channel).SearchCandidates(Request(query=embedding, rank=True))
    assert info_of(caught.value).reason == "NO_RANKER"
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_refuses_bytes_that_are_no_message(server: Any) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(SEARCH)(b"\xff\xff")  # type: ignore[arg-type]
    assert info_of(caught.value).reason == "UNDECODABLE"
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_refuses_the_page_token_of_another_search(stub: CandidateSearchServiceStub) -> None:
    request = Request(query=USER, candidate_count=3)
    token = stub.SearchCandidates(request).next_page_token
    with pytest.raises(grpc.RpcError) as caught:
        stub.SearchCandidates(Request(query=USER, candidate_count=4, page_token=token))
    assert info_of(caught.value).reason == "PAGE_TOKEN_EXPIRED"
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_refuses_batches_that_are_empty_or_too_large(stub: CandidateSearchServiceStub) -> None:
    for n_requests in (0, 257):
        batch = pb.BatchSearchCandidatesRequest(requests=[Request(query=USER)] * n_requests)
        with pytest.raises(grpc.RpcError) as caught:
            stub.BatchSearchCandidates(batch)
        assert info_of(caught.value).reason == "LIMIT_EXCEEDED"


def test_refuses_searches_while_starting_or_stopping(
    start: Callable[..., Any], vector_index: Path
) -> None:
    stopping = start(vector_index)
    stopping.worker.servicer.is_serving = False
    with grpc.insecure_channel(stopping.address) as channel, pytest.raises(grpc.RpcError) as caught:
        CandidateSearchServiceStub(channel).SearchCandidates(Request(query=USER))
    assert info_of(caught.value).reason == "NOT_SERVING"
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_refuses_long_searches_beyond_those_that_may_wait(
    start: Callable[..., Any], vector_index: Path
) -> None:
    running = start(vector_index, long_search_queue=1)
    beside = running.worker.servicer.threads_for(running.engine)
    blocked = threading.Event()

    async def flood() -> list[Any]:
        calls = [asyncio.ensure_future(beside.run(blocked.wait)) for _ in range(3)]
        await asyncio.sleep(0)
        blocked.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    *accepted, refused = asyncio.run(flood())
    assert accepted == [True, True]
    assert isinstance(refused, errors.OverloadedError)
    assert status_of(refused, "id").code == code_pb2.RESOURCE_EXHAUSTED


def test_what_is_the_servers_own_fault_stays_with_the_server(
    start: Callable[..., Any], vector_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = start(vector_index)

    def fail(_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(failing.engine, "search", fail)
    with grpc.insecure_channel(failing.address) as channel, pytest.raises(grpc.RpcError) as caught:
        CandidateSearchServiceStub(channel).SearchCandidates(
            Request(query=USER), metadata=(("x-request-id", "call-7"),)
        )
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert info_of(caught.value).reason == "INTERNAL"
    assert "call-7" in str(caught.value.details())
    assert "secret" not in str(caught.value)


def test_a_slow_call_is_logged_with_its_request_id(
    stub: CandidateSearchServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.interceptors._SLOW_SECONDS", -1.0)
    with capture_logs() as logs:
        stub.SearchCandidates(
            Request(query=pb.Query(user_id="1")), metadata=(("x-request-id", "call-8"),)
        )
    (slow,) = (one for one in logs if one.get("request_id") == "call-8")
    assert ("slow call", "SearchCandidates", "OK") == (
        slow["event"],
        slow["method"],
        slow["code"],
    )
    assert "user" not in str(logs)


def test_of_many_slow_calls_few_are_logged_and_the_rest_counted(
    start: Callable[..., Any], vector_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.interceptors._SLOW_SECONDS", -1.0)
    address = start(vector_index).address
    with grpc.insecure_channel(address) as channel, capture_logs() as logs:
        stub = CandidateSearchServiceStub(channel)

        def call(n_times: int, seconds_a_line: float) -> None:
            monkeypatch.setattr("server.interceptors._SECONDS_A_LINE", seconds_a_line)
            for _ in range(n_times):
                stub.GetIndexInfo(pb.GetIndexInfoRequest())

        call(4, seconds_a_line=1000.0)
        assert [0] == [one["left_out"] for one in logs]
        call(2, seconds_a_line=0.0)
    assert [0, 3, 0] == [one["left_out"] for one in logs]


def test_the_table_has_every_reason_once() -> None:
    every = set(SearchError.__subclasses__())
    assert every == set(STATUS_CODES)
    assert len(every) == len({one.reason for one in every})


@pytest.mark.parametrize("kind", list(STATUS_CODES))
def test_every_reason_is_documented_with_its_status(kind: type[SearchError]) -> None:
    lines = (Path(__file__).parents[2] / "docs" / "serving.md").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("| `") and f"`{kind.reason}`" in line)
    assert f"| {STATUS_CODES[kind].name} |" in line


@pytest.mark.parametrize("kind", list(STATUS_CODES))
def test_a_status_repeats_reason_message_and_metadata(kind: type[SearchError]) -> None:
    status = status_of(kind("what came", found=7), "call-7")
    info, request_info = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    status.details[0].Unpack(info)
    status.details[1].Unpack(request_info)
    assert (STATUS_CODES[kind].value[0], "what came") == (status.code, status.message)
    assert ("candidate-search", kind.reason) == (info.domain, info.reason)
    assert dict(info.metadata) == {"found": "7"}
    assert request_info.request_id == "call-7"


def test_what_a_caller_makes_us_repeat_is_clipped(stub: CandidateSearchServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.SearchCandidates(Request(query=pb.Query(candidate_id="\U0001f600" * 100_000)))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert info_of(caught.value).reason == "CANDIDATE_UNKNOWN"


def info_of(error: Any) -> error_details_pb2.ErrorInfo:
    trailers = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return info


def code_of(reason: str) -> grpc.StatusCode:
    (code,) = (code for kind, code in STATUS_CODES.items() if kind.reason == reason)
    return code
