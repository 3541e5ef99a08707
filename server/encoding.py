"""From the domain to the wire: what was found, how, and what is being served."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from candidate_search.v1 import candidate_search_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from indexer.bundle import BackendEntry, OperatingPoint
from indexer.metadata import MetadataType
from server.domain import Notice, SearchPlan, SearchResult
from server.engine import Engine
from server.explaining import Explanation
from server.settings import Settings

_LENGTH_DELIMITED = 2
_ID_TAG = bytes([pb.SearchCandidatesResponse.CANDIDATE_IDS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])
_SCORES_TAG = bytes([pb.SearchCandidatesResponse.SCORES_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])
_TOKEN_TAG = bytes(
    [pb.SearchCandidatesResponse.NEXT_PAGE_TOKEN_FIELD_NUMBER << 3 | _LENGTH_DELIMITED]
)
_RESULT_TAG = bytes(
    [pb.BatchSearchCandidatesResponse.RESULTS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED]
)
_RESPONSE_TAG = bytes([pb.BatchResult.RESPONSE_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])

_LONG = 4  # times the mean length: a longer id would make the array of all too wide


class FoundEncoder:
    """Writes rows and scores as fields of a serialised response, without building a message.

    A serialised message is the concatenation of its fields, in any order, so the ids are kept as
    fields, ready to be joined; and packed floats are the bytes of their array. Fields lie in one
    array of a fixed width, which is far cheaper to pick from than a text and offsets. Zeros pad
    them, which are deleted from what was picked; where ids hold zeros themselves, NumPy strips them
    from the ends, so each field ends with the tag of the next one instead of beginning with its
    own.

    Args:
        candidate_ids: the id of each row, texts.
    """

    def __init__(self, candidate_ids: pa.ChunkedArray) -> None:
        ids = candidate_ids.cast(pa.large_binary()).combine_chunks()
        lengths = pc.binary_length(ids)
        sizes = [_varint(length) for length in range(pc.max(lengths).as_py() + 1)]
        written = pa.array(sizes, type=pa.large_binary()).take(lengths)
        tag, nothing = pa.array([_ID_TAG, b""], type=pa.large_binary())
        fields = pc.binary_join_element_wise(written, ids, tag, nothing)
        widths = pc.binary_length(fields).to_numpy()
        width = min(_LONG * int(widths.sum()) // len(fields), int(widths.max()))
        self._long = {row: fields[row].as_py() for row in np.flatnonzero(widths > width).tolist()}
        self._fields = _of_one_width(pc.binary_slice(fields, 0, width), width)
        # Sizes hold none: a last byte of 0 would make them longer than they need be.
        self._may_hold_zeros = bool(pc.any(pc.match_substring(ids, "\0")).as_py())

    def encode(self, rows: np.ndarray, scores: np.ndarray) -> bytes:
        """Return the fields of a response that hold the ids of ``rows`` and their scores, (n,)."""
        packed = scores.astype("<f4", copy=False).tobytes()
        return self._ids(rows) + _field(_SCORES_TAG, packed)

    def _ids(self, rows: np.ndarray) -> bytes:
        picked = self._fields.take(rows)
        if not self._long and not self._may_hold_zeros:
            fields = picked.tobytes().translate(None, b"\0")
        else:
            pairs = zip(rows.tolist(), picked.tolist(), strict=True)
            fields = b"".join([self._long.get(row, field) for row, field in pairs])
        return (_ID_TAG + fields)[: -len(_ID_TAG)]


def plan_fields(plan: SearchPlan, index_version: str) -> bytes:
    """Return the fields of a response that are the same for all searches of one plan."""
    response = pb.SearchCandidatesResponse(plan=plan_message(plan), index_version=index_version)
    return response.SerializeToString()


def other_fields(
    result: SearchResult, returned_fields: Sequence[str], engine: Engine, next_page_token: str
) -> bytes:
    """Return the fields of a response beside what was found and how."""
    token = _field(_TOKEN_TAG, next_page_token.encode()) if next_page_token else b""
    if result.ranking_scores is None and not returned_fields and not result.notices:
        return token  # as most are, for which a message is not worth its making
    response = pb.SearchCandidatesResponse()
    if result.ranking_scores is not None:
        response.ranking_scores.extend(result.ranking_scores.tolist())
    for name in returned_fields:
        values = engine.metadata.values(name, result.rows)
        response.columns.append(column_message(name, engine.metadata.types[name], values))
    if result.notices:
        response.notices.extend(map(notice_message, result.notices))
    return response.SerializeToString() + token


def batch_response(response: bytes) -> bytes:
    """Return the field of a batch's response that holds the response to one of its searches."""
    return _field(_RESULT_TAG, _field(_RESPONSE_TAG, response))


def batch_status(status: status_pb2.Status) -> bytes:
    """Return the field of a batch's response that holds the refusal of one of its searches."""
    refused = pb.BatchSearchCandidatesResponse(results=[pb.BatchResult(status=status)])
    return refused.SerializeToString()


def column_message(name: str, kind: MetadataType, values: Sequence[Any]) -> pb.MetadataColumn:
    """Return the values of one metadata column; None is a null."""
    message = pb.MetadataColumn(
        name=name, null_positions=[i for i, value in enumerate(values) if value is None]
    )
    present = (kind.empty if value is None else value for value in values)
    match kind:
        case MetadataType.STRING:
            message.strings.values.extend(present)
        case MetadataType.INTEGER:
            message.ints.values.extend(present)
        case MetadataType.DOUBLE:
            message.doubles.values.extend(present)
        case MetadataType.BOOL:
            message.bools.values.extend(present)
        case MetadataType.STRING_LIST:
            add = message.string_lists.values.add  # far cheaper than making messages to be copied
            for value in present:
                add().values.extend([one for one in value if one is not None])
    return message


def plan_message(plan: SearchPlan) -> pb.SearchPlan:
    """Return how candidates were searched for."""
    return pb.SearchPlan(
        backend=plan.backend,
        method=pb.SearchMethod.Value(f"SEARCH_METHOD_{plan.method.name}"),
        search_params=plan.search_params,
        expected_recall=plan.expected_recall,
        exact=plan.exact,
    )


def notice_message(notice: Notice) -> pb.Notice:
    """Return what the caller should know."""
    return pb.Notice(
        code=pb.NoticeCode.Value(f"NOTICE_CODE_{notice.code.name}"),
        message=notice.message,
        ids=notice.ids,
        count=notice.count,
    )


def explanation_message(explanation: Explanation, engine: Engine) -> pb.ExplainSearchResponse:
    """Return one search, made in every way."""
    ids = engine.bundle.corpus.candidate_ids
    return pb.ExplainSearchResponse(
        plan=plan_message(explanation.plan),
        plan_reason=explanation.plan_reason,
        stages=[
            pb.StageTiming(stage=stage, duration_micros=micros)
            for stage, micros in explanation.stage_micros.items()
        ],
        answers=[
            pb.BackendAnswer(
                name=answer.name,
                plan=plan_message(answer.plan),
                candidate_ids=ids.tokens(answer.rows),
                scores=answer.scores.tolist(),
                overlap=answer.overlap,
                duration_micros=answer.duration_micros,
            )
            for answer in explanation.answers
        ],
        eligible_count=explanation.n_eligible,
        notices=map(notice_message, explanation.notices),
        index_version=engine.bundle.manifest.version,
    )


def index_info_message(engine: Engine, settings: Settings) -> pb.GetIndexInfoResponse:
    """Return what is being served, and within which limits."""
    manifest, query = engine.bundle.manifest, engine.bundle.query
    create_time = Timestamp()
    create_time.FromJsonString(manifest.created_at)
    return pb.GetIndexInfoResponse(
        index_version=manifest.version,
        create_time=create_time,
        candidate_count=manifest.n_candidates,
        embedding_dimension=manifest.dim,
        has_bias_dimension=manifest.has_bias_dimension,
        tower_version=manifest.tower_version or "",
        has_query_tower=query is not None,
        user_count=len(query.user_ids) if query is not None and query.user_ids else 0,
        max_history_length=manifest.max_history_length,
        has_ranker=engine.has_ranker,
        default_backend=manifest.default_backend,
        backends=[
            _backend_info(name, manifest.backends[name], exact=index.is_exact)
            for name, index in engine.planner.indexes.items()
        ],
        metadata_fields=[
            pb.MetadataField(name=name, type=pb.MetadataType.Value(f"METADATA_TYPE_{kind.name}"))
            for name, kind in engine.metadata.types.items()
        ],
        limits=pb.RequestLimits(
            **{name: getattr(settings, name) for name in pb.RequestLimits.DESCRIPTOR.fields_by_name}
        ),
    )


def _backend_info(name: str, entry: BackendEntry, *, exact: bool) -> pb.BackendInfo:
    return pb.BackendInfo(
        name=name,
        exact=exact,
        operating_points=map(_operating_point, entry.operating_points),
        build_seconds=entry.build_seconds,
        size_bytes=entry.size_bytes,
    )


def _operating_point(point: OperatingPoint) -> pb.OperatingPoint:
    params = {name: value for name, value in point.search_params.items() if value is not None}
    return pb.OperatingPoint(
        search_params=params,
        recall=point.recall,
        recall_depth=point.k,
        latency_p50_micros=point.p50_microseconds,
    )


def _of_one_width(values: pa.LargeBinaryArray, width: int) -> np.ndarray:
    """Return bytes (n,), none longer than ``width``, with zeros behind them."""
    _, offsets, data = values.buffers()
    texts = pa.LargeStringArray.from_buffers(len(values), offsets, data)
    padded = pc.ascii_rpad(texts, width, padding="\0")
    return np.frombuffer(padded.buffers()[2], dtype=f"S{width}", count=len(values))


def _field(tag: bytes, content: bytes) -> bytes:
    """Return a field whose content says how long it is."""
    return b"".join([tag, _varint(len(content)), content])


@lru_cache(maxsize=4096)  # many answers are as long as others
def _varint(number: int) -> bytes:
    """Return a non-negative number as protobuf writes lengths: 7 bits a byte, the lowest first."""
    written = bytearray()
    while number > 0x7F:  # noqa: PLR2004
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
