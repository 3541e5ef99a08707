"""Rows and scores put into a response as bytes read back as what they are."""

import numpy as np
import pyarrow as pa
import pytest
from candidate_search.v1 import candidate_search_service_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from server.encoding import FoundEncoder

PLAIN = ["a", "ü" * 70, "\U0001f600", *"bcdefghij"]
ZEROS = ["nil\0\0", "\0", *PLAIN[2:]]
LONG = ["x" * 300, *PLAIN[1:]]  # far longer than most
FOUND = st.lists(
    st.tuples(st.integers(0, len(PLAIN) - 1), st.floats(width=32, allow_nan=False)), max_size=50
)


@pytest.mark.parametrize("ids", [PLAIN, ZEROS, LONG])
@given(found=FOUND)
def test_a_response_has_the_ids_and_scores_it_was_given(
    ids: list[str], found: list[tuple[int, float]]
) -> None:
    encoder = FoundEncoder(pa.chunked_array([ids[:3], ids[3:]]))
    rows = np.array([row for row, _ in found], dtype=np.int64)
    scores = np.array([score for _, score in found], dtype=np.float32)
    response = pb.SearchCandidatesResponse.FromString(encoder.encode(rows, scores))
    assert list(response.candidate_ids) == [ids[row] for row in rows]
    assert list(response.scores) == scores.tolist()
