"""The towers: what they compute, and that they can be exported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from pydantic import ValidationError

from trainer import trained_towers
from trainer.batches import ages, ragged
from trainer.features import Feature, Features, encode_histories
from trainer.keras import tf
from trainer.model_config import TowersConfig
from trainer.towers import HEADS, TwoTowers
from trainer.trained_towers import Towers
from trainer.vocabulary import Vocabulary

CONFIG = TowersConfig(dim=5, width=4, max_history_length=4)
UNCOMPRESSED = TowersConfig(dim=11, width=4, max_history_length=4)
N_CANDIDATES = 7
FEATURES = Features(
    query=(Feature(name="history", kind="history", length=4),),
    candidate=(
        Feature(name="candidate_id", kind="id", n_tokens=N_CANDIDATES),
        Feature(name="genres", kind="list", length=2, n_tokens=3),
        Feature(name="year", kind="number"),
    ),
)
CORPUS = {
    "candidate_id": np.arange(1, N_CANDIDATES + 1, dtype=np.int32)[:, None],
    "genres": np.array([[1, 2], [3, 0], [0, 0], [2, 0], [1, 3], [2, 3], [1, 0]], dtype=np.int32),
    "year": np.linspace(-1, 1, N_CANDIDATES, dtype=np.float32)[:, None],
}


def read(histories: Sequence[np.ndarray]) -> tf.SparseTensor:
    return ages(ragged(histories), N_CANDIDATES)


def items(towers: Towers) -> dict[str, tf.Tensor]:
    """Return the candidates as the histories of each head read them, row by row."""
    return {name: table[1:] for name, table in towers.model.query_tower.items.items()}


def untrained(config: TowersConfig) -> Towers:
    model = TwoTowers(FEATURES, CORPUS, config, seed=0)
    histories = [np.array(rows, dtype=np.int32) for rows in ([0, 1], [2], [6, 5, 4], [3, 1, 0, 2])]
    model.finish(read(histories))
    vocabularies = {"candidate_id": Vocabulary([f"c{row}" for row in range(N_CANDIDATES)])}
    return Towers(model, config, FEATURES, vocabularies, CORPUS, histories)


@pytest.fixture(scope="module")
def towers() -> Towers:
    return untrained(CONFIG)


def lite(module: Any, directory: Path) -> Any:
    """Convert a module as the exporter does, without TensorFlow's own operations."""
    tf.saved_model.save(module, str(directory), signatures={"embed": module.embed})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(directory), signature_keys=["embed"])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    interpreter = Interpreter(model_content=converter.convert())
    return interpreter.get_signature_runner("embed")


@pytest.mark.parametrize("name", HEADS)
def test_every_head_has_fixed_lengths_and_a_dimension_for_the_bias(
    towers: Towers, name: str
) -> None:
    tower = towers.model.query_tower
    queries = tower.head(name, read([np.array([2]), np.array([0, 1, 2, 6])]), items(towers)[name])
    lengths = np.linalg.norm(queries[:, :-1], axis=1)
    np.testing.assert_allclose(1 / CONFIG.temperature, lengths, 1e-5)
    np.testing.assert_array_equal([1, 1], queries[:, -1])
    candidates = towers.model.candidate_tower.heads(CORPUS)[name]
    assert candidates.shape == (N_CANDIDATES, CONFIG.width + 1)
    np.testing.assert_allclose(1, np.linalg.norm(candidates[:, :-1], axis=1), 1e-5)


def test_queries_end_in_a_one_and_candidates_in_their_bias(towers: Towers) -> None:
    queries, candidates = towers.embed_queries(towers.histories), towers.embed_candidates()
    assert queries.shape == (4, CONFIG.dim)
    assert candidates.shape == (N_CANDIDATES, CONFIG.dim)
    assert candidates.dtype == np.float32
    np.testing.assert_array_equal([1, 1, 1, 1], queries[:, -1])
    np.testing.assert_allclose(0, queries[:, :-1].mean(axis=0), atol=1e-5)


def test_where_the_dimensions_suffice_compression_keeps_the_sum_of_both_heads() -> None:
    towers = untrained(UNCOMPRESSED)
    tower = towers.model.query_tower
    taste, sequence = (
        tower.head(name, read(towers.histories), items(towers)[name]) @ tf.transpose(candidates)
        for name, candidates in towers.model.candidate_tower.heads(CORPUS).items()
    )
    np.testing.assert_allclose(
        taste + UNCOMPRESSED.settled_sequence_weight * sequence,
        towers.embed_queries(towers.histories) @ towers.embed_candidates().T,
        atol=1e-4,
    )


def test_an_empty_history_is_answered_by_the_biases_alone(towers: Towers) -> None:
    tower = towers.model.query_tower
    taste = tower.head("taste", read([np.array([], dtype=np.int32)]), items(towers)["taste"])
    np.testing.assert_array_equal([[0, 0, 0, 0, 1]], taste)


def test_a_newer_interaction_weighs_more_for_the_sequence_and_the_same_for_the_taste(
    towers: Towers,
) -> None:
    histories = read([np.array([2, 1]), np.array([1, 2]), np.array([1])])
    tower = towers.model.query_tower
    newest, older, only = tower.head("sequence", histories, items(towers)["sequence"])[
        :, :-1
    ].numpy()
    assert newest @ only > older @ only
    same, again, _ = tower.head("taste", histories, items(towers)["taste"]).numpy()
    np.testing.assert_allclose(same, again, atol=1e-6)


def test_only_the_newest_interactions_are_read(towers: Towers) -> None:
    longer, kept = towers.embed_queries([np.array([6, 0, 1, 2, 3]), np.array([0, 1, 2, 3])])
    np.testing.assert_array_equal(longer, kept)


def test_histories_are_padded_to_the_longest_of_a_batch(
    towers: Towers, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = [np.array([2]), np.array([0, 1, 2]), np.array([], np.int32), np.array([6, 5])]
    inputs = towers.encode_users(np.array([0, 2]), histories)
    np.testing.assert_array_equal([[3], [0]], inputs["history"])
    expected = towers.embed_queries(histories)
    monkeypatch.setattr(trained_towers, "_BATCH_SIZE", 3)
    actual = towers.embed_users(np.array([3, 1, 0, 2]), histories)
    np.testing.assert_allclose(expected[[3, 1, 0, 2]], actual, atol=1e-6)


def test_padded_histories_are_embedded_as_those_of_training(towers: Towers) -> None:
    histories = [np.array([0, 1, 2]), np.array([3]), np.array([], dtype=np.int64)]
    tower = towers.model.query_tower
    wide = tower.wide(read(histories), items(towers))
    expected = (wide - tower.center) @ tower.projection
    actual = tower({"history": encode_histories(histories, CONFIG.max_history_length)})
    np.testing.assert_allclose(expected, actual[:, :-1], atol=1e-5)


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
    actual = lite(towers.candidate_module, tmp_path)(**CORPUS)["embedding"]
    np.testing.assert_allclose(towers.embed_candidates(), actual, atol=1e-5)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ValidationError, match="layers"):
        TowersConfig(layers=3)  # type: ignore[call-arg]


def test_a_query_reads_no_more_of_the_catalogue_than_its_history(towers: Towers) -> None:
    graph = towers.query_module.embed.get_concrete_function().graph
    computed = [op for op in graph.get_operations() if op.inputs and op.type != "ReadVariableOp"]
    whole = [
        op.name
        for op in computed
        for tensor in op.outputs
        if tensor.shape.rank and tensor.shape[0] == N_CANDIDATES + 1
    ]
    assert not whole
    assert any("Gather" in op.type for op in computed)
