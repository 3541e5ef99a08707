"""Rows and scores put into a response as bytes read back as what they are."""

import numpy as np
import pyarrow as pa
from candidate_search.v1 import candidate_search_service_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from server.encoding import FoundEncoder

IDS = ["a", "ü" * 70, "\U0001f600", "x" * 300, "nil\0\0", *"bcdefghi"]
ENCODER = FoundEncoder(pa.chunked_array([IDS[:3], IDS[3:]]))  # "x" * 300 is far longer than most


@given(
    st.lists(
        st.tuples(st.integers(0, len(IDS) - 1), st.floats(width=32, allow_nan=False)), max_size=50
    )
)
def test_a_response_has_the_ids_and_scores_it_was_given(found: list[tuple[int, float]]) -> None:
    rows = np.array([row for row, _ in found], dtype=np.int64)
    scores = np.array([score for _, score in found], dtype=np.float32)
    response = pb.SearchCandidatesResponse.FromString(ENCODER.encode(rows, scores))
    assert list(response.candidate_ids) == [IDS[row] for row in rows]
    assert list(response.scores) == scores.tolist()
