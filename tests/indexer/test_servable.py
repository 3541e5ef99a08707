"""The servable, as plain TensorFlow loads it, beside the server's own answers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from indexer.build import BuildOptions, build_bundle
from indexer.bundle import IndexBundle
from indexer.commands import app
from server.domain import EmbeddingQuery, SearchRequest, UserQuery
from server.engine import Engine
from tests.indexer.conftest import make_corpus
from tests.uncovered import measuring_no_coverage

EXPORT = """
import sys
from indexer.commands import app
for layer in ("brute_force", "scann"):
    app(["export-servable", sys.argv[1], "--output", f"{sys.argv[2]}/{layer}", "--layer", layer,
         "--max-count", "20", "--json"], standalone_mode=False)
app(["export-servable", sys.argv[3], "--output", f"{sys.argv[2]}/few", "--layer", "scann"])
"""

LOAD = """
import json, sys
import scann
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

def fields(message, *specs):
    for name, number, kind, repeated in specs:
        field = message.field.add(name=name, number=number, label=3 if repeated else 1)
        field.type = 9 if kind == "string" else 11
        if kind != "string":
            field.type_name = kind

file = descriptor_pb2.FileDescriptorProto(
    name="prediction_log.proto", package="warmup", syntax="proto3",
    dependency=["tensorflow/core/framework/tensor.proto"])
inputs = ".warmup.Input"
fields(file.message_type.add(name="ModelSpec"), ("name", 1, "string", 0),
       ("signature_name", 3, "string", 0))
fields(file.message_type.add(name="Input"), ("key", 1, "string", 0),
       ("value", 2, ".tensorflow.TensorProto", 0))
fields(file.message_type.add(name="PredictRequest"), ("model_spec", 1, ".warmup.ModelSpec", 0),
       ("inputs", 2, ".warmup.Input", 1))
fields(file.message_type.add(name="PredictLog"), ("request", 1, ".warmup.PredictRequest", 0))
fields(file.message_type.add(name="PredictionLog"), ("predict_log", 6, ".warmup.PredictLog", 0))
pool = descriptor_pool.Default()
pool.Add(file)
PredictionLog = message_factory.GetMessageClass(
    pool.FindMessageTypeByName("warmup.PredictionLog"))

def told(answer):
    ids = [[one.decode() for one in line] for line in answer["candidate_ids"].numpy().tolist()]
    return {"ids": ids, "scores": answer["scores"].numpy().tolist()}

asked = json.load(sys.stdin)
answers = {}
for layer in ("brute_force", "scann"):
    path = f"{sys.argv[1]}/{layer}/1"
    signatures = tf.saved_model.load(path).signatures
    by_user, by_embedding = signatures["serving_default"], signatures["by_embedding"]
    warmed = []
    for record in tf.data.TFRecordDataset(f"{path}/assets.extra/tf_serving_warmup_requests"):
        request = PredictionLog.FromString(record.numpy()).predict_log.request
        tensors = {i.key: tf.constant(tf.make_ndarray(i.value)) for i in request.inputs}
        spec = request.model_spec
        found = told(signatures[spec.signature_name](**tensors))
        warmed.append([spec.name, spec.signature_name, len(found["ids"][0])])
    count = tf.constant(asked["count"])
    answers[layer] = {
        "warmed": warmed,
        "users": told(by_user(user_id=tf.constant(asked["users"]), candidate_count=count)),
        "embeddings": told(by_embedding(
            embedding=tf.constant(asked["embeddings"]), candidate_count=count)),
        "too_many": told(by_user(user_id=tf.constant(["u"]), candidate_count=tf.constant(1000))),
    }
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def engine(tower_index: Path) -> Engine:
    return Engine(IndexBundle.open(tower_index))


@pytest.fixture(scope="module")
def asked(engine: Engine) -> dict[str, Any]:
    """Twenty known users and one who is not, and ten embeddings."""
    assets = engine.bundle.query
    assert assets is not None
    assert assets.user_ids is not None
    users = assets.user_ids.tokens(np.arange(0, len(assets.user_ids), len(assets.user_ids) // 19))
    embeddings = engine.bundle.tuning_queries[:10].tolist()
    return {"users": [*users, "nobody"], "embeddings": embeddings, "count": 15}


@pytest.fixture(scope="module")
def exported(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Where both layers are, and how it ended with few candidates."""
    root = tmp_path_factory.mktemp("servables")
    options = BuildOptions(backends=("brute_force",))
    few = build_bundle(make_corpus(5), None, tmp_path_factory.mktemp("few"), options)
    command = [sys.executable, "-c", EXPORT, engine.bundle.directory, root, few]
    return root, subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def answers(exported: tuple[Path, Any], asked: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-c", LOAD, exported[0]]
    with measuring_no_coverage():
        done = subprocess.run(
            command, input=json.dumps(asked), check=True, capture_output=True, text=True
        )
    return json.loads(done.stdout)


def expected(engine: Engine, query: Any) -> tuple[list[str], np.ndarray]:
    found = engine.search(SearchRequest(query, count=15, exact=True))
    return engine.bundle.corpus.candidate_ids.tokens(found.rows), found.scores


def test_users_get_the_servers_answers(engine: Engine, asked: Any, answers: Any) -> None:
    found = answers["brute_force"]["users"]
    for user, ids, scores in zip(asked["users"], found["ids"], found["scores"], strict=True):
        expected_ids, expected_scores = expected(engine, UserQuery(user))
        assert expected_ids == ids
        np.testing.assert_allclose(expected_scores, scores, rtol=1e-5)


def test_embeddings_get_the_servers_answers(engine: Engine, asked: Any, answers: Any) -> None:
    found = answers["brute_force"]["embeddings"]
    for vector, ids, scores in zip(asked["embeddings"], found["ids"], found["scores"], strict=True):
        query = EmbeddingQuery(np.array(vector, dtype=np.float32))
        expected_ids, expected_scores = expected(engine, query)
        assert expected_ids == ids
        np.testing.assert_allclose(expected_scores, scores, rtol=1e-5)


def test_scann_finds_most_of_it_and_nothing_of_the_history(
    engine: Engine, asked: Any, answers: Any
) -> None:
    found = answers["scann"]["users"]["ids"]
    assets = engine.bundle.query
    recalls = []
    for user, ids in zip(asked["users"], found, strict=True):
        recalls.append(np.isin(ids, expected(engine, UserQuery(user))[0]).mean())
        history = assets.history(assets.user_ids.row(user)) if user != "nobody" else []
        assert set() == set(ids) & set(engine.bundle.corpus.candidate_ids.tokens(history))
    assert np.mean(recalls) >= 0.93


@pytest.mark.parametrize("layer", ["brute_force", "scann"])
def test_more_than_the_most_is_the_most(answers: Any, layer: str) -> None:
    assert [20] == [len(ids) for ids in answers[layer]["too_many"]["ids"]]


@pytest.mark.parametrize("layer", ["brute_force", "scann"])
def test_the_warm_up_requests_can_be_made(answers: Any, layer: str) -> None:
    assert [
        [layer, signature, count]
        for signature in ("by_embedding", "serving_default")
        for count in (1, 10)
    ] == answers[layer]["warmed"]


def test_too_few_candidates_for_scann_are_a_sentence(exported: tuple[Path, Any]) -> None:
    root, done = exported
    assert done.returncode == 1
    assert "Error: the layer scann cannot search these candidates, brute_force can: " in done.stderr
    assert not (root / "few").exists()


def test_a_recall_out_of_bounds_is_a_sentence(tower_index: Path) -> None:
    done = CliRunner().invoke(
        app, ["export-servable", str(tower_index), "--layer", "scann", "--recall", "1.5"]
    )
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--recall must be above 0 and at most 1, not 1.5" in done.stderr


def test_without_tensorflow_it_is_a_sentence(
    tower_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.delitem(sys.modules, "indexer.servable", raising=False)
    output = tmp_path / "candidates"
    done = CliRunner().invoke(app, ["export-servable", str(tower_index), "--output", str(output)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "tensorflow is not installed" in done.stderr
    assert not output.exists()
