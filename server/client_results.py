"""What the Python client gets, and its translation from the wire.

Import these names from ``server.client``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from candidate_search.v1 import candidate_search_service_pb2 as pb
from google.rpc import code_pb2, error_details_pb2, status_pb2

_STATUS_KEY = "grpc-status-details-bin"

FieldValue: TypeAlias = str | int | float | bool | list[str] | None


@dataclass(frozen=True)
class Candidate:
    """One candidate of an answer."""

    id: str
    score: float
    fields: Mapping[str, FieldValue]
    ranking_score: float | None = None
    """The ranking model's, if it was asked."""


@dataclass(frozen=True)
class Notice:
    """Something the caller should know about an answer: ``COLD_START``, ``UNKNOWN_IDS``..."""

    code: str
    message: str
    ids: Sequence[str]
    count: int


@dataclass(frozen=True)
class SearchResults:
    """The candidates found, best first; iterate for one at a time, or take the parallel lists.

    Attributes:
        ids: candidate ids.
        scores: their scores.
        ranking_scores: the ranking model's scores, if it was asked.
        columns: the returned fields by name, each parallel to ``ids``.
        notices: what to know about this answer.
        plan: how it was searched for.
        index_version: which index answered.
        next_page_token: of the next page; empty when there is none.
    """

    ids: list[str]
    scores: list[float]
    ranking_scores: list[float]
    columns: dict[str, list[FieldValue]]
    notices: list[Notice]
    plan: pb.SearchPlan
    index_version: str
    next_page_token: str

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Candidate]:
        ranking_scores: Sequence[float | None] = self.ranking_scores or [None] * len(self.ids)
        for i, (candidate_id, score) in enumerate(zip(self.ids, self.scores, strict=True)):
            fields = {name: values[i] for name, values in self.columns.items()}
            yield Candidate(candidate_id, score, fields, ranking_scores[i])


class SearchFailedError(Exception):
    """A call that was refused or did not get through.

    Attributes:
        code: the status, as gRPC names it: ``NOT_FOUND``.
        reason: why, as the server names it: ``CANDIDATE_UNKNOWN``; empty if it did not answer.
        metadata: the dynamic parts of the message.
        request_id: under which the server's log knows the call; empty if it did not answer.
        retry_after_seconds: when an overloaded server may be asked again; None if it says nothing.
    """

    def __init__(
        self,
        code: str,
        message: str,
        reason: str,
        metadata: Mapping[str, str],
        request_id: str,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{reason or code}: {message}")
        self.code = code
        self.reason = reason
        self.metadata = dict(metadata)
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds


def search_results(response: pb.SearchCandidatesResponse) -> SearchResults:
    """Read an answer."""
    return SearchResults(
        ids=list(response.candidate_ids),
        scores=list(response.scores),
        ranking_scores=list(response.ranking_scores),
        columns={column.name: _column(column) for column in response.columns},
        notices=[_notice(notice) for notice in response.notices],
        plan=response.plan,
        index_version=response.index_version,
        next_page_token=response.next_page_token,
    )


def batch_results(
    response: pb.BatchSearchCandidatesResponse,
) -> list[SearchResults | SearchFailedError]:
    """Read the answers to a batch, in order; a refused search is its error."""
    return [
        search_results(result.response)
        if result.WhichOneof("result") == "response"
        else _failure_of(result.status)
        for result in response.results
    ]


def failure(error: grpc.RpcError) -> SearchFailedError:
    """Read why a call failed."""
    trailing: Any = error.trailing_metadata()
    for key, value in trailing or ():
        if key == _STATUS_KEY:
            return _failure_of(status_pb2.Status.FromString(value))
    return SearchFailedError(error.code().name, error.details() or "", "", {}, "")


def _failure_of(status: status_pb2.Status) -> SearchFailedError:
    info, request_info = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    retry_info = error_details_pb2.RetryInfo()
    for detail in status.details:
        # Each unpacks only what is its own.
        detail.Unpack(info)
        detail.Unpack(request_info)
        detail.Unpack(retry_info)
    retry_after = retry_info.retry_delay.ToTimedelta().total_seconds()
    code = code_pb2.Code.Name(status.code)
    return SearchFailedError(
        code,
        status.message,
        info.reason,
        info.metadata,
        request_info.request_id,
        retry_after or None,
    )


def _notice(notice: pb.Notice) -> Notice:
    code = pb.NoticeCode.Name(notice.code).removeprefix("NOTICE_CODE_")
    return Notice(code, notice.message, list(notice.ids), notice.count)


def _column(column: pb.MetadataColumn) -> list[FieldValue]:
    kind = column.WhichOneof("values")
    values: list[FieldValue]
    if kind == "string_lists":
        values = [list(one.values) for one in column.string_lists.values]
    else:
        values = list(getattr(column, kind).values) if kind else []
    for position in column.null_positions:
        values[position] = None
    return values
