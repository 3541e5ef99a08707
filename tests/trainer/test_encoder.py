"""The feature encoder, on weights that can be added up in the head."""

import numpy as np
import pytest

from trainer.encoder import Catalogue, FeatureEncoder
from trainer.features import Feature
from trainer.keras import tf

FEATURES = (
    Feature(name="candidate_id", kind="id", n_tokens=2),
    Feature(name="genres", kind="list", length=2, n_tokens=2),
    Feature(name="year", kind="number"),
)


@pytest.fixture
def encoder() -> FeatureEncoder:
    encoder = FeatureEncoder(FEATURES, width=2, deviation=1.0, seed=0)
    ids, genres, years = encoder.get_weights()
    ids[:] = [[9, 9], [1, 0], [2, 0]]
    genres[:] = [[9, 9], [0, 3], [0, 5]]
    years[:] = np.linspace(-3, 3, len(years))[:, None] * [0, 100]
    encoder.set_weights([ids, genres, years])
    return encoder


def encode(encoder: FeatureEncoder, genres: object, ids: tuple[int, int] = (1, 2)) -> np.ndarray:
    inputs = {
        "candidate_id": np.array(ids, dtype=np.int32)[:, None],
        "genres": genres,
        "year": np.array([[0.0], [1.5]], dtype=np.float32),
    }
    return encoder(inputs).numpy()


def test_features_are_summed_and_tokens_divided_by_the_root_of_their_number(
    encoder: FeatureEncoder,
) -> None:
    genres = np.array([[1, 0], [1, 2]], dtype=np.int32)
    expected = [[1, 3 + 0], [2, 8 / np.sqrt(2) + 150]]
    np.testing.assert_allclose(expected, encode(encoder, genres), atol=1e-3)


def test_a_catalogue_is_encoded_as_its_candidates_are(encoder: FeatureEncoder) -> None:
    corpus = {
        "candidate_id": np.array([[1], [2]], dtype=np.int32),
        "genres": np.array([[2, 0], [1, 2]], dtype=np.int32),
        "year": np.array([[0.0], [1.5]], dtype=np.float32),
    }
    catalogue = Catalogue(FEATURES, corpus)
    expected = encoder(corpus)
    np.testing.assert_allclose(expected, encoder(catalogue.all), atol=1e-6)
    some = encoder(catalogue.some(tf.constant([1, 0, 1])))
    np.testing.assert_allclose(expected.numpy()[[1, 0, 1]], some, atol=1e-6)


def test_many_tokens_are_multiplied_sparsely_and_encoded_alike() -> None:
    features = (Feature(name="words", kind="text", length=3, n_tokens=1000),)
    encoder = FeatureEncoder(features, width=2, deviation=1.0, seed=0)
    encoder.set_weights([np.random.default_rng(0).normal(size=(1001, 2))])
    corpus = {"words": np.array([[5, 999, 0], [0, 0, 0], [7, 7, 1]], dtype=np.int32)}
    read = Catalogue(features, corpus).all
    assert isinstance(read["words"], tf.SparseTensor)
    np.testing.assert_allclose(encoder(corpus), encoder(read), atol=1e-6)


def test_of_a_large_catalogue_only_the_ids_that_are_read_have_a_gradient(
    encoder: FeatureEncoder,
) -> None:
    corpus = {
        "candidate_id": np.array([[1], [2]], dtype=np.int32),
        "genres": np.array([[2, 0], [1, 2]], dtype=np.int32),
        "year": np.array([[0.0], [1.5]], dtype=np.float32),
    }
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(encoder(Catalogue(FEATURES, corpus).some(tf.constant([1]))))
    gradient = tape.gradient(total, encoder.table("candidate_id"))
    assert isinstance(gradient, tf.IndexedSlices)
    assert gradient.indices.numpy().tolist() == [2]


def test_an_unknown_id_and_no_tokens_leave_the_rest_to_speak(encoder: FeatureEncoder) -> None:
    genres = np.zeros((2, 2), dtype=np.int32)
    actual = encode(encoder, genres, ids=(0, 0))
    np.testing.assert_allclose([[0, 0], [0, 150]], actual, atol=1e-3)
