"""Candidate tower -> corpus: every candidate is embedded once.

The tower runs in LiteRT, so building an index takes no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from ai_edge_litert.interpreter import Interpreter

from indexer.corpus import Corpus, CorpusError
from trainer.bundle import TowerBundle
from trainer.features import encode_candidates

_BATCH_SIZE = 1024  # a resized interpreter plans its memory anew, so there is one size
_OUTPUT = "embedding"


class CandidateEmbedder:
    """A candidate tower, for one thread.

    Args:
        towers: the bundle that it is in.
    """

    def __init__(self, towers: TowerBundle) -> None:
        self._towers = towers
        path = str(towers.candidate_tower_path)
        self._tower = Interpreter(model_path=path, num_threads=1).get_signature_runner()

    def embed(self, candidates: pa.Table, first_row: int) -> np.ndarray:
        """Return the embeddings (n_candidates, dim) float32 of some candidates of the bundle.

        Args:
            candidates: what the tower reads of them.
            first_row: the row of the first; the others follow.

        Raises:
            CorpusError: if the embeddings are not of the dimension the manifest says.
        """
        query, dim = self._towers.query, self._towers.manifest.dim
        # Without the ids' vocabulary, which would take more memory than all else here.
        inputs = encode_candidates(query.features, query.vocabularies, candidates, first_row)
        names = self._tower.get_input_details()
        embeddings = np.empty((len(candidates), dim), dtype=np.float32)
        for start in range(0, len(candidates), _BATCH_SIZE):
            rows = np.arange(start, start + _BATCH_SIZE).clip(max=len(candidates) - 1)
            batch = self._tower(**{name: inputs[name][rows] for name in names})[_OUTPUT]
            if batch.shape[1] != dim:
                raise CorpusError(
                    f"{self._towers.candidate_tower_path} gives embeddings of dimension "
                    f"{batch.shape[1]}, its manifest says {dim}"
                )
            stop = min(start + _BATCH_SIZE, len(candidates))
            embeddings[start:stop] = batch[: stop - start]
        return embeddings


def embed_candidates(
    towers: TowerBundle, on_progress: Callable[[int], None] = lambda _: None
) -> Corpus:
    """Embed all candidates of a tower bundle.

    Args:
        towers: the bundle.
        on_progress: called with the number of candidates embedded so far.

    Raises:
        CorpusError: if the embeddings are not finite or not of the dimension the manifest says.
    """
    embedder = CandidateEmbedder(towers)
    n_candidates = len(towers.candidate_ids)
    embeddings = np.empty((n_candidates, towers.manifest.dim), dtype=np.float32)
    for start in range(0, n_candidates, _BATCH_SIZE):
        some = towers.candidates.slice(start, _BATCH_SIZE)
        embeddings[start : start + len(some)] = embedder.embed(some, start)
        on_progress(start + len(some))
    return corpus_of(towers, embeddings)


def corpus_of(towers: TowerBundle, embeddings: np.ndarray) -> Corpus:
    """Return the corpus of a tower bundle's candidates.

    Raises:
        CorpusError: if the embeddings are not finite.
    """
    return Corpus(
        candidate_ids=towers.candidate_ids,
        embeddings=embeddings,
        candidates=towers.candidates,
        popularity=towers.popularity,
        has_bias_dimension=towers.manifest.has_bias_dimension,
    )
