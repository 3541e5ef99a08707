"""The towers: what they compute, and that they can be exported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from pydantic import ValidationError

from trainer.keras import tf
from trainer.towers import Towers, TowersConfig, TwoTowers
from trainer.vocabulary import Vocabulary

CONFIG = TowersConfig(dim=5, max_history_length=4)
N_CANDIDATES = 7


@pytest.fixture(scope="module")
def towers() -> Towers:
    model = TwoTowers(N_CANDIDATES, CONFIG, seed=0)
    ids = Vocabulary([f"c{row}" for row in range(N_CANDIDATES)])
    return Towers(model, CONFIG, ids, [np.array([0, 1], dtype=np.int32)])


def lite(module: Any, directory: Path) -> Any:
    """Convert a module as the exporter does, without TensorFlow's own operations."""
    tf.saved_model.save(module, str(directory), signatures={"embed": module.embed})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(directory), signature_keys=["embed"])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    interpreter = Interpreter(model_content=converter.convert())
    return interpreter.get_signature_runner("embed")


def test_the_query_has_a_fixed_length_and_a_one(towers: Towers) -> None:
    embeddings = towers.embed_queries([np.array([3]), np.array([0, 1, 2, 6])])
    np.testing.assert_allclose(
        1 / CONFIG.temperature, np.linalg.norm(embeddings[:, :-1], axis=1), 1e-5
    )
    np.testing.assert_array_equal([1, 1], embeddings[:, -1])


def test_candidates_have_length_one_beside_their_bias(towers: Towers) -> None:
    embeddings = towers.embed_candidates()
    assert embeddings.shape == (N_CANDIDATES, CONFIG.dim)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(1, np.linalg.norm(embeddings[:, :-1], axis=1), 1e-5)


def test_an_empty_history_is_answered_by_the_biases_alone(towers: Towers) -> None:
    (embedding,) = towers.embed_queries([np.array([], dtype=np.int32)])
    np.testing.assert_array_equal([0, 0, 0, 0, 1], embedding)


def test_a_newer_interaction_weighs_more(towers: Towers) -> None:
    newest_1, newest_2, only_1 = towers.embed_queries(
        [np.array([2, 1]), np.array([1, 2]), np.array([1])]
    )
    assert newest_1 @ only_1 > newest_2 @ only_1


def test_only_the_newest_interactions_are_read(towers: Towers) -> None:
    longer, kept = towers.embed_queries([np.array([6, 0, 1, 2, 3]), np.array([0, 1, 2, 3])])
    np.testing.assert_array_equal(longer, kept)


def test_ragged_and_padded_histories_are_embedded_alike(towers: Towers) -> None:
    ragged = tf.ragged.constant([[1, 2, 3], [4], []], dtype=tf.int32)
    padded = np.array([[1, 2, 3, 0], [4, 0, 0, 0], [0, 0, 0, 0]], dtype=np.int32)
    tower = towers.model.query_tower
    np.testing.assert_allclose(tower(ragged), tower(padded), atol=1e-6)


def test_exported_query_tower_agrees_without_tensorflow_operations(
    towers: Towers, tmp_path: Path
) -> None:
    histories = np.array([[1, 2, 0, 0], [7, 6, 5, 4], [0, 0, 0, 0]], dtype=np.int32)
    expected = towers.query_module.embed(histories)["embedding"]
    actual = lite(towers.query_module, tmp_path)(history=histories)["embedding"]
    np.testing.assert_allclose(expected, actual, atol=1e-5)


def test_exported_candidate_tower_agrees_without_tensorflow_operations(
    towers: Towers, tmp_path: Path
) -> None:
    tokens = np.arange(N_CANDIDATES + 1, dtype=np.int32)[:, None]
    expected = towers.candidate_module.embed(tokens)["embedding"]
    actual = lite(towers.candidate_module, tmp_path)(candidate_id=tokens)["embedding"]
    np.testing.assert_allclose(expected, actual, atol=1e-5)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ValidationError, match="layers"):
        TowersConfig(layers=3)  # type: ignore[call-arg]
