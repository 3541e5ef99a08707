"""The item encoder, on weights that can be added up in the head."""

import numpy as np
import pytest

from trainer.encoder import ItemEncoder
from trainer.features import Feature
from trainer.keras import tf

FEATURES = (
    Feature(name="candidate_id", kind="id", n_tokens=2),
    Feature(name="genres", kind="list", length=2, n_tokens=2),
    Feature(name="year", kind="number"),
)


@pytest.fixture
def encoder() -> ItemEncoder:
    encoder = ItemEncoder(FEATURES, width=2, deviation=1.0, seed=0)
    ids, genres, years = encoder.get_weights()
    ids[:] = [[9, 9], [1, 0], [2, 0]]
    genres[:] = [[9, 9], [0, 3], [0, 5]]
    years[:] = np.linspace(-3, 3, len(years))[:, None] * [0, 100]
    encoder.set_weights([ids, genres, years])
    return encoder


def encode(encoder: ItemEncoder, genres: object, ids: tuple[int, int] = (1, 2)) -> np.ndarray:
    inputs = {
        "candidate_id": np.array(ids, dtype=np.int32)[:, None],
        "genres": genres,
        "year": np.array([[0.0], [1.5]], dtype=np.float32),
    }
    return encoder(inputs).numpy()


def test_features_are_summed_and_tokens_divided_by_the_root_of_their_number(
    encoder: ItemEncoder,
) -> None:
    genres = np.array([[1, 0], [1, 2]], dtype=np.int32)
    expected = [[1, 3 + 0], [2, 8 / np.sqrt(2) + 150]]
    np.testing.assert_allclose(expected, encode(encoder, genres), atol=1e-3)


def test_ragged_tokens_are_encoded_as_padded_ones(encoder: ItemEncoder) -> None:
    padded = np.array([[2, 0], [1, 2]], dtype=np.int32)
    ragged = tf.RaggedTensor.from_tensor(padded, padding=0)
    np.testing.assert_allclose(encode(encoder, padded), encode(encoder, ragged), atol=1e-6)


def test_an_unknown_id_and_no_tokens_leave_the_rest_to_speak(encoder: ItemEncoder) -> None:
    genres = np.zeros((2, 2), dtype=np.int32)
    actual = encode(encoder, genres, ids=(0, 0))
    np.testing.assert_allclose([[0, 0], [0, 150]], actual, atol=1e-3)
