"""From a query to an embedding, without TensorFlow.

A known user whose request adds nothing is a look-up. Everything else that is a user goes through
the query tower in LiteRT; candidates and examples are made of the corpus's own embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from indexer.corpus import Corpus
from server.domain import (
    CandidateQuery,
    EmbeddingQuery,
    ExamplesQuery,
    FeatureValue,
    Query,
    UserQuery,
)
from server.errors import (
    CandidateUnknownError,
    DimensionMismatchError,
    FieldUnknownError,
    NoQueryTowerError,
    NotFiniteError,
    UndecodableError,
)
from server.litert import LiteModel, declared_shape
from server.similarity import Directions
from trainer.bundle import QueryAssets
from trainer.features import (
    DESCRIPTION,
    HISTORY,
    USER_ID,
    DescriptionReader,
    Feature,
    encode_query,
)

DISLIKE_WEIGHT = 0.5
"""Of the mean direction of disliked candidates, against the length of the query's embedding."""

SHORT_HISTORY = 64
"""Interactions, and fewer, for which the tower is run on so many places: padding costs as much."""

_NO_ROWS = np.empty(0, dtype=np.int64)


@dataclass(slots=True)
class EmbeddedQuery:
    """A query as the search stage needs it."""

    vector: np.ndarray | None
    """(dim,) float32; None if nothing is known of the user."""
    by_cosine: bool = False
    """Whether candidates are compared with the vector by direction alone; its length is then 1."""
    history: np.ndarray = field(default_factory=lambda: _NO_ROWS)
    """(n,) integer rows of what the user did."""
    queried: np.ndarray = field(default_factory=lambda: _NO_ROWS)
    """(n,) int64 rows that the query names, and that are never an answer to it."""
    unknown_ids: Sequence[str] = ()
    """Candidate ids of the query that are not in the corpus."""


class QueryTower:
    """The query tower in LiteRT; safe to use from several threads.

    Args:
        assets: what the index bundle carries of the towers.
    """

    def __init__(self, assets: QueryAssets) -> None:
        self._features = assets.features
        length = self._features.max_history_length
        self._model = LiteModel(assets.tower_path, {HISTORY: (1, length)} if length else None)
        self._short = None
        # Towers exported before there were short histories take but one length.
        if length > SHORT_HISTORY and declared_shape(assets.tower_path, HISTORY)[1] < 0:
            self._short = LiteModel(assets.tower_path, {HISTORY: (1, SHORT_HISTORY)})
        self._vocabularies = assets.vocabularies
        self.reads_history = self._features.reads_history
        self.reads_context = bool(self._features.context)

    def embed(self, history: np.ndarray, values: dict[str, FeatureValue]) -> np.ndarray:
        """Return the embedding (dim,) float32 of a user.

        Args:
            history: (n,) candidate rows, oldest first.
            values: raw values of the tower's other features; absent ones are unknown.
        """
        encoded = encode_query(self._features, self._vocabularies, history, values)
        model = self._model
        if self._short is not None and len(history) <= SHORT_HISTORY:
            model = self._short
            encoded[HISTORY] = encoded[HISTORY][:, :SHORT_HISTORY]
        vector: np.ndarray = model.run(encoded)[0]
        return vector

    def reads_any(self, values: dict[str, FeatureValue]) -> bool:
        """Whether the tower reads one of these features."""
        return any(feature.name in values for feature in self._features.query)

    def reads_of(self, history: np.ndarray) -> bool:
        """Whether the tower reads one of these candidates (n,), of which some may be too new."""
        return self.reads_history and len(self._features.readable(history)) > 0


class DescriptionTower:
    """What embeds descriptions, in LiteRT; safe to use from several threads.

    Args:
        path: of the tower.
        assets: what the index bundle carries of the towers.
    """

    def __init__(self, path: Path, assets: QueryAssets) -> None:
        self._model = LiteModel(path)
        self._reader = DescriptionReader(assets.features.content, assets.vocabularies)

    def embed(self, text: str) -> np.ndarray | None:
        """Return the embedding (dim,) float32 of a text; None if it says nothing of candidates."""
        content = self._reader.read(text)
        return None if content is None else self._model.run(content)[0]


class Embedder:
    """Embeds the queries of one index.

    Args:
        corpus: the candidates.
        directions: their directions.
        assets: what the index carries of the towers; None if it carries nothing.
    """

    def __init__(self, corpus: Corpus, directions: Directions, assets: QueryAssets | None) -> None:
        self._corpus = corpus
        self._directions = directions
        self._assets = assets
        self._tower = QueryTower(assets) if assets else None
        self._reads_history = self._tower is not None and self._tower.reads_history
        self._descriptions = _description_tower(assets) if assets else None
        self._user_features = _user_features(assets) if assets else {}
        if self._descriptions is not None:
            self._user_features[DESCRIPTION] = Feature(name=DESCRIPTION, kind="text")
        known = assets.query_embeddings if assets else None
        # A plain view: every row of a memory-mapped array is another, slower object.
        self._known_embeddings = None if known is None else known.view(np.ndarray)

    def embed(self, query: Query) -> EmbeddedQuery:
        """Embed one query.

        Raises:
            CandidateUnknownError: if no candidate that it names is known.
            NoQueryTowerError: if it is a user and the index has no query tower.
            DimensionMismatchError: if it is a vector of another dimension.
            NotFiniteError: if it is a vector with a NaN or an infinity.
            FieldUnknownError: if it gives a feature that the tower does not read.
        """
        match query:
            case UserQuery():
                return self._user(query)
            case CandidateQuery(candidate_id):
                return self._candidate(candidate_id)
            case EmbeddingQuery(vector):
                return self._vector(vector)
            case ExamplesQuery():
                return self._examples(query)

    def by_cosine(self, query: Query) -> bool:
        """Whether candidates will be compared with this query by direction alone."""
        is_mean = isinstance(query, ExamplesQuery) and not self._reads_history
        return is_mean or isinstance(query, CandidateQuery)

    def _user(self, user: UserQuery) -> EmbeddedQuery:
        if self._tower is None or self._assets is None:
            raise NoQueryTowerError(
                "the index has no query tower, so it cannot be asked for a user; "
                "ask for an embedding, a candidate or examples"
            )
        known = self._assets.user_ids
        row = known.row(user.user_id) if known is not None and user.user_id else -1
        if row >= 0 and user.adds_nothing and self._known_embeddings is not None:
            history = self._assets.history(row)
            is_read = self._tower.reads_context or self._tower.reads_of(history)
            return EmbeddedQuery(self._known_embeddings[row] if is_read else None, history=history)
        values = dict(user.features)
        self._check_values(values)
        history, unknown_ids = self._known_rows(user.history)
        if row >= 0 and not user.history_replaces:
            history = np.concatenate([self._assets.history(row), history])
        if row >= 0 and self._tower.reads_context:
            values = {USER_ID: user.user_id, **self._assets.user_values(row), **values}
        described = self._described(values)
        is_read = self._tower.reads_any(values) or self._tower.reads_of(history)
        if not is_read:
            return EmbeddedQuery(described, history=history, unknown_ids=unknown_ids)
        vector = self._tower.embed(history, values)
        if described is not None:
            vector = (vector + described) / 2
        return EmbeddedQuery(vector, history=history, unknown_ids=unknown_ids)

    def _described(self, values: dict[str, FeatureValue]) -> np.ndarray | None:
        """Return the embedding (dim,) of what is wanted in words; None if nothing is."""
        text = values.get(DESCRIPTION)
        if self._descriptions is None or not isinstance(text, str):
            return None
        return self._descriptions.embed(text)

    def _candidate(self, candidate_id: str) -> EmbeddedQuery:
        row = self._corpus.candidate_ids.row(candidate_id)
        if row < 0:
            raise CandidateUnknownError(
                f"candidate {candidate_id!r} is not in the corpus", candidate_id=candidate_id
            )
        queried = np.array([row])
        return EmbeddedQuery(self._directions.of_rows(queried)[0], by_cosine=True, queried=queried)

    def _vector(self, vector: np.ndarray) -> EmbeddedQuery:
        dim = self._corpus.embeddings.shape[1]
        if vector.shape != (dim,):
            raise DimensionMismatchError(
                f"an embedding of this index has {dim} values, not {len(vector)}",
                expected=dim,
                found=len(vector),
            )
        with np.errstate(over="ignore", invalid="ignore"):
            is_usable = np.isfinite(np.vecdot(vector, vector))
        if not is_usable:
            raise NotFiniteError(
                "an embedding must be finite and shorter than 1.8e19; this one is not"
            )
        return EmbeddedQuery(vector)

    def _examples(self, examples: ExamplesQuery) -> EmbeddedQuery:
        liked, unknown_liked = self._known_rows(examples.liked)
        disliked, unknown_disliked = self._known_rows(examples.disliked)
        if len(liked) == 0:
            raise CandidateUnknownError(
                f"none of the {len(examples.liked)} liked candidates is in the corpus",
                candidate_id=examples.liked[0],
            )
        if self._tower is not None and self._reads_history:
            if not self._tower.reads_of(liked):
                newest = self._corpus.candidate_ids.token(int(liked[0]))
                raise CandidateUnknownError(
                    f"{newest!r} has come since the towers were trained, which do not know it: "
                    "ask for candidates like it alone, or train again",
                    candidate_id=newest,
                )
            vector = self._tower.embed(liked, {})
        else:
            vector = self._directions.of_rows(liked).mean(axis=0)
        if len(disliked):
            away = self._directions.of_vector(self._directions.of_rows(disliked).mean(axis=0))
            vector = vector - np.float32(DISLIKE_WEIGHT * self._directions.norm(vector)) * away
        by_cosine = self.by_cosine(examples)
        return EmbeddedQuery(
            self._directions.of_vector(vector) if by_cosine else vector,
            by_cosine=by_cosine,
            queried=np.concatenate([liked, disliked]),
            unknown_ids=[*unknown_liked, *unknown_disliked],
        )

    def _check_values(self, values: dict[str, FeatureValue]) -> None:
        """Refuse values of features that no model reads, or not like this."""
        for name, value in values.items():
            if name not in self._user_features:
                raise FieldUnknownError(
                    f"the models of this index read no feature {name!r}; they read "
                    f"{', '.join(self._user_features) or 'the history alone'}",
                    field=name,
                )
            _check_value(self._user_features[name], value)

    def _known_rows(self, candidate_ids: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Return the rows (n,) int64 of the ids that are known, and the ids that are not."""
        rows = self._corpus.candidate_ids.rows(candidate_ids)
        known = rows >= 0
        if known.all():
            return rows, []
        return rows[known], [candidate_ids[i] for i in np.flatnonzero(~known).tolist()]


def _user_features(assets: QueryAssets) -> dict[str, Feature]:
    """Return by name what the models read of users beside their ids and histories."""
    features = [*(assets.ranker.features.query if assets.ranker else ()), *assets.features.query]
    return {one.name: one for one in features if one.kind not in ("id", "history")}


def _description_tower(assets: QueryAssets) -> DescriptionTower | None:
    path = assets.description_tower_path
    return None if path is None else DescriptionTower(path, assets)


def _check_value(feature: Feature, value: FeatureValue) -> None:
    if feature.kind == "number":
        fits, expected = isinstance(value, int | float), "a number"
    elif feature.kind == "list":
        fits, expected = not isinstance(value, int | float | str), "texts"
    else:
        fits, expected = isinstance(value, str), "a text"
    if not fits:
        raise UndecodableError(
            f"feature {feature.name!r} takes {expected}, not {value!r}", field=feature.name
        )
