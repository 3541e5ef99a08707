"""Data small enough to check by eye."""

import numpy as np
import pyarrow as pa

from trainer.datasets import Dataset


def small_dataset(
    user_rows: list[int], candidate_rows: list[int], timestamps: list[int] | None
) -> Dataset:
    return Dataset(
        name="small",
        users=pa.table({"user_id": ["a", "b", "c"]}),
        candidates=pa.table({"candidate_id": ["p", "q", "r", "s"]}),
        user_rows=np.array(user_rows, dtype=np.int32),
        candidate_rows=np.array(candidate_rows, dtype=np.int32),
        timestamps=None if timestamps is None else np.array(timestamps, dtype=np.int64),
    )
