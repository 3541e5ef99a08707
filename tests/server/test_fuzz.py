"""Whatever is sent, the answer is a response or a refusal, and never a fault of the server."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from candidate_search.v1 import candidate_search_service_pb2 as pb
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

METHODS = ("SearchCandidates", "BatchSearchCandidates", "ExplainSearch", "GetIndexInfo")
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
}

numbers = st.floats(width=32) | st.sampled_from([0.0, -1.0, 1e38, float("nan")])
counts = st.integers(-(2**31), 2**31 - 1) | st.integers(0, 20)
texts = st.text(max_size=20) | st.sampled_from(["1", "2", "title", "year", "genres", "scann"])
some_texts = st.lists(texts, max_size=5)
values = st.one_of(
    st.builds(pb.FilterValue),
    st.builds(lambda text: pb.FilterValue(text=text), texts),
    st.builds(lambda number: pb.FilterValue(number=number), numbers),
    st.builds(lambda number: pb.FilterValue(integer=number), st.integers(-(2**63), 2**63 - 1)),
    st.builds(lambda flag: pb.FilterValue(flag=flag), st.booleans()),
)
conditions = st.one_of(
    st.builds(pb.FieldCondition, field=texts, equals=values),
    st.builds(
        pb.FieldCondition,
        field=texts,
        one_of=st.builds(pb.FilterValueList, values=st.lists(values, max_size=3)),
    ),
    st.builds(
        pb.FieldCondition,
        field=texts,
        range=st.builds(pb.FilterRange, minimum=values, maximum=values),
    ),
    st.builds(pb.FieldCondition, field=texts, contains=values),
    st.builds(pb.FieldCondition, field=texts, is_null=st.booleans()),
)
filters = st.recursive(
    st.builds(pb.Filter) | st.builds(pb.Filter, condition=conditions),
    lambda inner: st.one_of(
        st.builds(pb.Filter, negated=inner),
        st.builds(
            lambda several: pb.Filter(all_of=pb.FilterList(filters=several)),
            st.lists(inner, max_size=3),
        ),
        st.builds(
            lambda several: pb.Filter(any_of=pb.FilterList(filters=several)),
            st.lists(inner, max_size=3),
        ),
    ),
    max_leaves=8,
)
features = st.one_of(
    st.builds(lambda text: pb.FeatureValue(text=text), texts),
    st.builds(lambda number: pb.FeatureValue(number=number), numbers),
    st.builds(lambda several: pb.FeatureValue(texts=pb.StringList(values=several)), some_texts),
)
times = st.builds(
    Timestamp, seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-(2**31), 2**31 - 1)
)
interactions = st.builds(pb.Interaction, candidate_id=texts, time=st.none() | times)
contexts = st.builds(
    pb.UserContext,
    user_id=texts,
    history=st.lists(interactions, max_size=5),
    history_replaces=st.booleans(),
    features=st.dictionaries(texts, features, max_size=2),
)
queries = st.one_of(
    st.builds(pb.Query),
    st.builds(pb.Query, user_id=texts),
    st.builds(pb.Query, user=contexts),
    st.builds(pb.Query, candidate_id=texts),
    st.builds(pb.Query, embedding=st.builds(pb.Embedding, values=st.lists(numbers, max_size=130))),
    st.builds(
        pb.Query,
        examples=st.builds(
            pb.Examples, liked_candidate_ids=some_texts, disliked_candidate_ids=some_texts
        ),
    ),
)
diversities = st.one_of(
    st.builds(pb.Diversity),
    st.builds(
        lambda weight, pool: pb.Diversity(mmr=pb.Mmr(**{"lambda": weight, "pool": pool})),
        numbers,
        counts,
    ),
    st.builds(pb.Diversity, per_group=st.builds(pb.PerGroup, field=texts, max_count=counts)),
)
modes = st.one_of(
    st.fixed_dictionaries({}),
    st.fixed_dictionaries({"backend": texts}),
    st.fixed_dictionaries({"exact": st.booleans()}),
    st.fixed_dictionaries({"recall_target": numbers}),
)
requests = st.builds(
    lambda mode, **others: pb.SearchCandidatesRequest(**mode, **others),
    mode=modes,
    query=queries,
    candidate_count=counts,
    excluded_candidate_ids=some_texts,
    filter=st.none() | filters,
    min_score=st.none() | numbers,
    diversity=st.none() | diversities,
    exclude_history=st.none() | st.booleans(),
    unknown_user_policy=st.integers(0, 3),
    rank=st.booleans(),
    returned_fields=some_texts,
    page_token=texts,
)
many = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="session")
def channel(server: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as connected:
        yield connected


def outcome(channel: grpc.Channel, method: str, body: bytes) -> grpc.StatusCode:
    call: Any = channel.unary_unary(f"/candidate_search.v1.CandidateSearchService/{method}")
    try:
        call(body)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


@given(request_=requests)
@many
def test_any_message_is_answered_or_refused(
    channel: grpc.Channel, request_: pb.SearchCandidatesRequest
) -> None:
    code = outcome(channel, "SearchCandidates", request_.SerializeToString())
    assert code in REFUSALS | {grpc.StatusCode.OK}


def test_every_field_is_tried() -> None:
    """So that one that is added to the .proto is not forgotten here."""
    tried: set[str] = set()

    @given(requests)
    @settings(max_examples=1000, deadline=None, derandomize=True, database=None)
    def try_some(request_: pb.SearchCandidatesRequest) -> None:
        tried.update(fields_set(request_))

    try_some()
    assert set() == fields_below(pb.SearchCandidatesRequest.DESCRIPTOR) - tried


def fields_below(message: Descriptor) -> set[str]:
    """Return the names of all fields of a message, and of those within."""
    found: dict[str, bool] = {}
    waiting = [message]
    while waiting:
        outer = waiting.pop()
        for field in outer.fields:
            if field.full_name not in found:  # filters hold filters
                found[field.full_name] = outer.GetOptions().map_entry
                waiting += [field.message_type] if field.message_type is not None else []
    return {name for name, is_of_a_map in found.items() if not is_of_a_map}


def fields_set(message: Message) -> set[str]:
    """Return the names of all fields that are set in a message, and in those within."""
    found: set[str] = set()
    for field, value in message.ListFields():
        found.add(field.full_name)
        if isinstance(value, Message):
            found |= fields_set(value)
        elif field.message_type is not None:
            for one in value.values() if isinstance(value, Mapping) else value:
                found |= fields_set(one)
    return found


EXTREMES = {
    "a long id": pb.SearchCandidatesRequest(query=pb.Query(user_id="x" * 1_000_000)),
    "a long candidate": pb.SearchCandidatesRequest(query=pb.Query(candidate_id="\0" * 1_000_000)),
    "a long token": pb.SearchCandidatesRequest(
        query=pb.Query(user_id="1"), page_token="A" * 1_000_000
    ),
    "many exclusions": pb.SearchCandidatesRequest(
        query=pb.Query(user_id="1"), excluded_candidate_ids=["1"] * 10_000
    ),
    "a long vector": pb.SearchCandidatesRequest(
        query=pb.Query(embedding=pb.Embedding(values=[1e38] * 200_000))
    ),
}


@pytest.mark.parametrize("name", list(EXTREMES))
def test_extremes_are_answered_or_refused(channel: grpc.Channel, name: str) -> None:
    body = EXTREMES[name].SerializeToString()
    assert outcome(channel, "SearchCandidates", body) in REFUSALS | {grpc.StatusCode.OK}


def test_text_that_is_no_text_is_undecodable(channel: grpc.Channel) -> None:
    user_id = b"\x0a\x04\x0a\x02\xff\xfe"
    assert grpc.StatusCode.INVALID_ARGUMENT == outcome(channel, "SearchCandidates", user_id)


def test_filters_deeper_than_any_parser_goes_are_refused(channel: grpc.Channel) -> None:
    inner = b""
    for _ in range(2_000):
        inner = b"\x1a" + encoded_length(inner) + inner  # Filter.negated
    body = b"\x2a" + encoded_length(inner) + inner  # SearchCandidatesRequest.filter
    assert grpc.StatusCode.INVALID_ARGUMENT == outcome(channel, "SearchCandidates", body)


def encoded_length(content: bytes) -> bytes:
    number, written = len(content), bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])


@pytest.mark.slow
def test_ten_thousand_damaged_requests_are_answered_or_refused(channel: grpc.Channel) -> None:
    """Half are random, half are a request of which some bytes were changed."""
    rng = np.random.default_rng(0)
    sound = pb.SearchCandidatesRequest(
        query=pb.Query(user_id="1"),
        candidate_count=5,
        excluded_candidate_ids=["2", "3"],
        filter=pb.Filter(
            condition=pb.FieldCondition(field="title", contains=pb.FilterValue(text="a"))
        ),
        returned_fields=["title"],
    ).SerializeToString()
    codes = Counter[grpc.StatusCode]()
    for number in range(10_000):
        body = bytearray(rng.bytes(rng.integers(200)) if number % 2 else sound)
        for position in rng.integers(len(body) or 1, size=3 if body else 0):
            body[position] = rng.integers(256)
        codes[outcome(channel, METHODS[rng.integers(len(METHODS))], bytes(body))] += 1
    print(dict(codes))  # noqa: T201
    assert codes.keys() <= REFUSALS | {grpc.StatusCode.OK}


FOREIGN_METHODS = (
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/List",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


@pytest.fixture(scope="session")
def reflecting_channel(start: Any, vector_index: Path) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(start(vector_index, reflection=True).address) as connected:
        yield connected


def foreign_outcome(channel: grpc.Channel, method: str, body: bytes) -> tuple[Any, str]:
    """Return how a call of a library's method ends, and what it says of that."""
    call: Any = channel.stream_stream(f"/{method}")
    responses = call(iter([body]), timeout=10)
    try:
        list(responses)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


@given(method=st.sampled_from(FOREIGN_METHODS), body=st.binary(max_size=100))
@many
def test_libraries_services_answer_or_refuse_any_bytes(
    reflecting_channel: grpc.Channel, method: str, body: bytes
) -> None:
    code, _ = foreign_outcome(reflecting_channel, method, body)
    assert code in REFUSALS | {grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED}


@pytest.mark.parametrize("method", [*FOREIGN_METHODS, "grpc.health.v1.Health/Watch"])
def test_what_is_no_request_of_a_librarys_service_is_undecodable(
    reflecting_channel: grpc.Channel, method: str
) -> None:
    code, details = foreign_outcome(reflecting_channel, method, b"\xff")
    assert grpc.StatusCode.INVALID_ARGUMENT == code
    assert "the body is no request of this method" == details


def test_what_a_library_does_not_implement_is_no_fault(
    reflecting_channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    code, _ = foreign_outcome(reflecting_channel, "grpc.health.v1.Health/List", b"")
    assert grpc.StatusCode.UNIMPLEMENTED == code
    assert caplog.records == []


@given(method=st.sampled_from(METHODS), body=st.binary(max_size=200))
@many
def test_any_bytes_are_answered_or_refused(channel: grpc.Channel, method: str, body: bytes) -> None:
    assert outcome(channel, method, body) in REFUSALS | {grpc.StatusCode.OK}
