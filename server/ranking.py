"""The ranking stage: how the user would rate what was retrieved, by the ranking model in LiteRT.

The ranking model reads users. Other queries are read as users who are known only by candidates:
the liked examples, or the candidate that others are like; an embedding says nothing of its user,
who is an average one then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from indexer.corpus import Corpus
from server.domain import CandidateQuery, EmbeddingQuery, ExamplesQuery, Query, UserQuery
from server.litert import LiteModel
from trainer.bundle import QueryAssets, RankerDescription
from trainer.features import CANDIDATE_ID, USER_ID, Value, encode_candidates, encode_query
from trainer.vocabulary import Vocabulary

_BATCH_SIZE = 128  # candidates that are ranked at once; fewer are padded


class CandidateRanker:
    """Ranks the candidates of one corpus; safe to use from several threads.

    Args:
        assets: what the index carries of the models.
        description: what the ranking model reads.
        corpus: the candidates.
    """

    def __init__(self, assets: QueryAssets, description: RankerDescription, corpus: Corpus) -> None:
        features = description.features
        vocabularies = _vocabularies(description.candidate_tokens)
        vocabularies[CANDIDATE_ID] = corpus.candidate_ids
        encoded = encode_candidates(features, vocabularies, corpus.candidates)
        self._candidate_inputs = {
            f"candidate_{i}": encoded[one.name] for i, one in enumerate(features.candidate)
        }
        self._model = LiteModel(
            assets.ranker_path, dict.fromkeys(self._candidate_inputs, (_BATCH_SIZE, -1))
        )
        self._assets = assets
        self._features = features
        self._user_ids = assets.user_ids or Vocabulary([])
        self._vocabularies = _vocabularies(description.query_tokens)
        self._vocabularies[USER_ID] = self._user_ids
        self._candidate_ids = corpus.candidate_ids

    def ratings(self, query: Query, history: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the ratings (n,) float32 that are predicted for candidates.

        Args:
            query: what they were retrieved for.
            history: (n_history,) candidate rows of the user's history, oldest first.
            rows: (n,) the candidates.
        """
        encoded = encode_query(
            self._features, self._vocabularies, self._read(query, history), self._values(query)
        )
        inputs = {
            f"query_{i}": encoded[feature.name] for i, feature in enumerate(self._features.query)
        }
        ratings = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), _BATCH_SIZE):
            batch = rows[start : start + _BATCH_SIZE]
            # Candidate 0 pads the last batch; its ratings are cut off.
            padded = np.zeros(_BATCH_SIZE, dtype=np.int64)
            padded[: len(batch)] = batch
            candidates = {name: one[padded] for name, one in self._candidate_inputs.items()}
            ratings[start : start + len(batch)] = self._model.run(inputs | candidates)[: len(batch)]
        return ratings

    def _read(self, query: Query, history: np.ndarray) -> np.ndarray:
        """Return the candidate rows (n,) that a query is known by."""
        match query:
            case UserQuery():
                return history
            case CandidateQuery(candidate_id):
                return self._known_rows([candidate_id])
            case ExamplesQuery(liked):
                return self._known_rows(liked)
            case EmbeddingQuery():
                return self._known_rows([])

    def _values(self, query: Query) -> dict[str, Value]:
        """Return what is known of a user: from training, unless the request says otherwise."""
        if not isinstance(query, UserQuery):
            return {}
        row = self._user_ids.row(query.user_id)
        known = self._assets.user_values(row) if row >= 0 else {}
        return {**known, **query.features, USER_ID: query.user_id}

    def _known_rows(self, candidate_ids: Sequence[str]) -> np.ndarray:
        rows = self._candidate_ids.rows(candidate_ids)
        return rows[rows >= 0]


def _vocabularies(tokens: Mapping[str, Sequence[str]]) -> dict[str, Vocabulary]:
    return {name: Vocabulary(one) for name, one in tokens.items()}
