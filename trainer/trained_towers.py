"""Trained towers: what embeds users and candidates, in the form in which it is exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.features import USER_ID, Feature, Features, encode_queries, encode_together
from trainer.keras import tf
from trainer.model_config import TowersConfig
from trainer.towers import CandidateTower, QueryTower, TwoTowers
from trainer.vocabulary import Vocabulary

_BATCH_SIZE = 4096


class TowerModule(tf.Module):  # type: ignore[misc]
    """A tower as it is exported: an array for each feature in, a dictionary out."""

    def __init__(self, tower: QueryTower | CandidateTower, features: Sequence[Feature]) -> None:
        super().__init__()
        self.tower = tower
        self._names = [feature.name for feature in features]
        self.embed = tf.function(self._embed, input_signature=_signature(features))

    def _embed(self, *inputs: Any) -> dict[str, Any]:
        return {"embedding": self.tower(dict(zip(self._names, inputs, strict=True)))}


class DescriptionModule(TowerModule):
    """A query tower that descriptions go through, in which popularity has no part.

    The last dimension of their embeddings is 0.
    """

    def _embed(self, *inputs: Any) -> dict[str, Any]:
        directed = super()._embed(*inputs)["embedding"][:, :-1]
        return {"embedding": tf.pad(directed, [[0, 0], [0, 1]])}


def _signature(features: Sequence[Feature]) -> list[Any]:
    return [
        tf.TensorSpec(
            # Most histories are short, and padding costs as much as what it pads.
            (None, None if feature.kind == "history" else feature.length),
            tf.float32 if feature.kind == "number" else tf.int32,
            name=feature.name,
        )
        for feature in features
    ]


class Towers:
    """Trained towers, and the histories they were trained on.

    Args:
        model: the trained model.
        config: how it was built and trained.
        features: what the towers read.
        vocabularies: the tokens of each feature that has any.
        corpus: the candidates as ``trainer.features.encode_candidates`` encodes them.
        histories: candidate rows of every user in the data, oldest first; empty for a user
            without interactions in the train rows.
        context: what else the query tower reads of them, by name (n_users, length).
    """

    def __init__(
        self,
        model: TwoTowers,
        config: TowersConfig,
        features: Features,
        vocabularies: dict[str, Vocabulary],
        corpus: dict[str, np.ndarray],
        histories: Sequence[np.ndarray],
        context: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.features = features
        self.vocabularies = vocabularies
        self.corpus = corpus
        self.histories = histories
        self.context = context or {}
        self.query_module = TowerModule(model.query_tower, features.query)
        self.description_module = _description_module(model.query_tower, features, config)
        self.candidate_module = TowerModule(model.candidate_tower, features.candidate)

    def embed_queries(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Embed users of whom nothing but what they have interacted with is known.

        Args:
            histories: candidate rows of each user, oldest first.

        Returns:
            (n, dim) float32.
        """
        nobody = pa.table({USER_ID: pa.nulls(len(histories), pa.string())})

        def encoded(some: slice) -> dict[str, np.ndarray]:
            return encode_queries(self.features, self.vocabularies, histories[some], nobody[some])

        return in_batches(self.query_module.embed, len(histories), encoded)

    def embed_users(
        self, rows: np.ndarray, histories: Sequence[np.ndarray] | None = None
    ) -> np.ndarray:
        """Embed users of the data by what they have interacted with, and what else is read of them.

        Args:
            rows: (n,) users.
            histories: candidate rows of every user, oldest first; those of the training if none.

        Returns:
            (n, dim) float32.
        """
        return in_batches(
            self.query_module.embed,
            len(rows),
            lambda some: self.encode_users(rows[some], histories),
        )

    def encode_users(
        self, rows: np.ndarray, histories: Sequence[np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Encode users as ``embed_users`` reads them: the query tower's inputs (n, length).

        Histories are padded to the longest of them.
        """
        known = self.histories if histories is None else histories
        chosen = [known[row] for row in rows]
        return {
            feature.name: encode_together(chosen, feature.length)
            if feature.kind == "history"
            else self.context[feature.name][rows]
            for feature in self.features.query
        }

    def embed_descriptions(self, content: Mapping[str, np.ndarray]) -> np.ndarray:
        """Embed descriptions, which popularity has no part in.

        Args:
            content: by feature (n, length), as ``trainer.features.DescriptionReader`` reads texts.

        Returns:
            (n, dim) float32, whose last dimension is 0.
        """
        if self.description_module is None:
            raise ValueError("these towers read no content in histories")
        return _in_batches_of(self.description_module.embed, content, self.features.content)

    def embed_candidates(self, corpus: dict[str, np.ndarray] | None = None) -> np.ndarray:
        """Embed candidates.

        Args:
            corpus: as ``trainer.features.encode_candidates`` encodes them; the catalogue if none.

        Returns:
            (n_candidates, dim) float32, in row order.
        """
        corpus = self.corpus if corpus is None else corpus
        return _in_batches_of(self.candidate_module.embed, corpus, self.features.candidate)


def _description_module(
    tower: QueryTower, features: Features, config: TowersConfig
) -> DescriptionModule | None:
    """Return what embeds descriptions; None if the towers read no content in histories.

    A description is embedded as somebody of whom nothing is known but that they interacted with one
    candidate, which nobody knows but by its content: a query tower whose context is that content.
    """
    if not (features.content and features.reads_history):
        return None
    described = QueryTower(Features(query=features.content, candidate=()), 0, config, seed=0)
    ours: Any = described.context
    for feature in features.content:
        ours.table(feature.name).assign(tower.encoder.table(feature.name))
    described.center.assign(tower.center)
    described.projection.assign(tower.projection)
    return DescriptionModule(described, features.content)


def in_batches(
    embed: Any, n: int, encoded: Callable[[slice], Mapping[str, np.ndarray]]
) -> np.ndarray:
    """Return the embeddings (n, dim) float32 that an exported function gives to its inputs.

    Args:
        embed: of tensors, in the order of its inputs; returns a dictionary.
        n: how many lines there are.
        encoded: returns the inputs (n, length) of some lines, in that order; all of them at once
            could take more memory than there is.
    """
    batches = (encoded(slice(start, start + _BATCH_SIZE)) for start in range(0, n, _BATCH_SIZE))
    return np.concatenate([embed(*batch.values())["embedding"].numpy() for batch in batches])


def _in_batches_of(
    embed: Any, inputs: Mapping[str, np.ndarray], features: Sequence[Feature]
) -> np.ndarray:
    """Return the same for inputs (n, length) that are there, of which ``embed`` reads some."""
    read = {feature.name: inputs[feature.name] for feature in features}
    n = len(next(iter(read.values())))
    return in_batches(embed, n, lambda some: {name: one[some] for name, one in read.items()})
