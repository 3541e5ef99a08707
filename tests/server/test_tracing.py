"""Traces, as a collector gets them."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from candidate_search.v1 import candidate_search_service_pb2 as pb
from candidate_search.v1.candidate_search_service_pb2_grpc import CandidateSearchServiceStub
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from server.serve import check
from server.settings import Settings, SettingsError
from tests.server.conftest import RunningServer

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        del context
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    collecting, server = Collector(), grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collecting, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collecting, f"http://127.0.0.1:{port}"
    server.stop(0)


@pytest.mark.parametrize(("flags", "n_traces"), [("01", 1), ("00", 0)])
def test_a_search_is_a_span_of_the_callers_trace_with_its_stages(
    collector: tuple[Collector, str], vector_index: Path, flags: str, n_traces: int
) -> None:
    collecting, endpoint = collector
    server = RunningServer(
        Settings(index=vector_index, port=0, trace_endpoint=endpoint, trace_share=1.0)
    )
    request = pb.SearchCandidatesRequest(query=pb.Query(candidate_id="c5"))
    parent = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-{flags}"),)
    with grpc.insecure_channel(server.address) as channel:
        CandidateSearchServiceStub(channel).SearchCandidates(request, metadata=parent)
    server.close()  # sends what was not sent yet
    searches = [span for span in collecting.spans if span.name == "search candidates"]
    assert n_traces == len(searches)
    assert {TRACE_ID} >= {span.trace_id.hex() for span in collecting.spans}
    assert {PARENT_ID} >= {span.parent_span_id.hex() for span in searches}
    for search in searches:
        stages = [one for one in collecting.spans if one.parent_span_id == search.span_id]
        assert {"embed", "plan", "search"} <= {stage.name for stage in stages}
        assert all(search.start_time_unix_nano <= stage.start_time_unix_nano for stage in stages)
        attributes = {one.key: one.value.string_value for one in search.attributes}
        assert server.engine.bundle.manifest.version == attributes["search.index_version"]
        values = [one.value.string_value for span in collecting.spans for one in span.attributes]
        assert not any("c5" in value.split() for value in values)


def test_the_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "server.tracing", raising=False)
    with pytest.raises(SettingsError, match=r"pip install '\.\[trace\]'"):
        check(Settings(trace_endpoint="http://localhost:4317"))
