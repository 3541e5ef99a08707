"""Candidate tower -> corpus: every candidate is embedded once.

The tower runs in LiteRT, so building an index takes no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from indexer.corpus import Corpus, CorpusError
from trainer.bundle import TowerBundle
from trainer.features import encode_candidates

_BATCH_SIZE = 1024  # a resized interpreter plans its memory anew, so there is one size
_OUTPUT = "embedding"


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
    inputs = encode_candidates(towers.query.features, towers.vocabularies, towers.candidates)
    tower = Interpreter(
        model_path=str(towers.candidate_tower_path), num_threads=1
    ).get_signature_runner()
    n_candidates = len(towers.candidate_ids)
    dim = towers.manifest.dim
    embeddings = np.empty((n_candidates, dim), dtype=np.float32)
    for start in range(0, n_candidates, _BATCH_SIZE):
        rows = np.arange(start, start + _BATCH_SIZE).clip(max=n_candidates - 1)
        batch = tower(**{name: inputs[name][rows] for name in tower.get_input_details()})[_OUTPUT]
        if batch.shape[1] != dim:
            raise CorpusError(
                f"{towers.candidate_tower_path} gives embeddings of dimension {batch.shape[1]}, "
                f"its manifest says {dim}"
            )
        stop = min(start + _BATCH_SIZE, n_candidates)
        embeddings[start:stop] = batch[: stop - start]
        on_progress(stop)
    return Corpus(
        candidate_ids=towers.candidate_ids,
        embeddings=embeddings,
        candidates=towers.candidates,
        popularity=towers.popularity,
        has_bias_dimension=towers.manifest.has_bias_dimension,
    )
