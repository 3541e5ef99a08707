"""What content tells of ids, on numbers that can be added up in the head."""

import numpy as np

from trainer.content import distil_ids_into_content, told_by_content
from trainer.encoder import Catalogue, FeatureEncoder
from trainer.features import Feature

N_LABELS = 3


def catalogue_of(
    n_candidates: int, n_labels: int = N_LABELS
) -> tuple[tuple[Feature, ...], dict[str, np.ndarray]]:
    """Return features, and candidates that have one label each, in turn."""
    features = (
        Feature(name="candidate_id", kind="id", n_tokens=n_candidates),
        Feature(name="genre", kind="category", n_tokens=n_labels),
    )
    rows = np.arange(n_candidates, dtype=np.int32)[:, None]
    return features, {"candidate_id": rows + 1, "genre": rows % n_labels + 1}


def trained_encoder(features: tuple[Feature, ...]) -> FeatureEncoder:
    """Return an encoder whose ids have learned what is of their label, and a little of their own.

    Of label 1 they add 10, of label 2 they add 20, and so on.
    """
    encoder = FeatureEncoder(features, width=2, deviation=0.1, seed=0)
    table = encoder.table("candidate_id")
    labels = (np.arange(table.shape[0])[:, None] - 1) % N_LABELS + 1
    table.assign_add(10.0 * np.repeat(labels, 2, axis=1).astype(np.float32))
    return encoder


def test_content_tells_what_its_candidates_have_in_common_as_far_as_they_are_known() -> None:
    label, ids = np.ones((2, 1), np.float32), np.full((2, 1), 3, np.float32)
    # Half trusted: (1.5 + 1.5) / (0.5 + 0.5 and half of one more that says 0).
    np.testing.assert_allclose(told_by_content(label, ids, np.array([5, 5])), [[3 / 1.5]])
    # Trusted wholly: (3 + 3) / (1 + 1 and that half).
    many = np.array([10**9, 10**9])
    np.testing.assert_allclose(told_by_content(label, ids, many), [[6 / 2.5]], rtol=1e-6)
    # Nobody knows the second.
    np.testing.assert_allclose(told_by_content(label, ids, np.array([5, 0])), [[1.5 / 1.0]])


def test_a_candidate_nobody_knows_is_embedded_as_those_of_its_label_and_no_other_changes() -> None:
    features, corpus = catalogue_of(300)
    encoder = trained_encoder(features)
    before = encoder(corpus).numpy()
    interactions = np.where(np.arange(300) < 250, 1000, 0)
    tokens = corpus["candidate_id"][:, 0]
    distil_ids_into_content(encoder, features, Catalogue(features, corpus), tokens, interactions)
    np.testing.assert_allclose(encoder(corpus), before, atol=1e-4)
    unknown = {"candidate_id": np.zeros((3, 1), np.int32), "genre": corpus["genre"][:3]}
    np.testing.assert_allclose(encoder(unknown), np.outer([10, 20, 30], [1, 1]), rtol=0.02)


def test_without_content_or_with_very_many_labels_nothing_is_moved() -> None:
    for n_labels in (0, 5000):
        features, corpus = catalogue_of(10, n_labels or 1)
        features = features[: 2 if n_labels else 1]
        encoder = trained_encoder(features)
        before = encoder.get_weights()
        tokens = corpus["candidate_id"][:, 0]
        distil_ids_into_content(
            encoder, features, Catalogue(features, corpus), tokens, np.full(10, 9)
        )
        for weights, unchanged in zip(encoder.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weights, unchanged)
