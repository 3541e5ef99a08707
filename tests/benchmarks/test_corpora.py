from pathlib import Path

import pytest

from benchmarks.corpora import open_corpus
from benchmarks.errors import BenchmarkError
from trainer.datasets import load_dataset
from trainer.model_config import TowersConfig
from trainer.publish import BundleError


def test_a_synthetic_corpus_is_made_once(tmp_path: Path) -> None:
    steps: list[str] = []
    one = open_corpus("synthetic:60x4", tmp_path, backends=("brute_force",), on_step=steps.append)
    assert (60, 4) == one.corpus.embeddings.shape
    assert one.query is None
    made = len(steps)
    again = open_corpus("synthetic:60x4", tmp_path, backends=("brute_force",), on_step=steps.append)
    assert (one.directory, made) == (again.directory, len(steps))


def test_a_folder_is_an_index(tower_index: Path, tmp_path: Path) -> None:
    assert tower_index == open_corpus(str(tower_index), tmp_path).directory
    with pytest.raises(BundleError, match="is not a bundle"):
        open_corpus(str(tmp_path), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("movielens", (1682, 128)), ("generated:2000x8", (2000, 8))]
)
def test_others_have_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: tuple[int, int]
) -> None:
    monkeypatch.setattr("benchmarks.corpora.TowersConfig", lambda: TowersConfig(epochs=1))
    bundle = open_corpus(name, tmp_path)
    assert size == bundle.corpus.embeddings.shape
    assert bundle.query is not None
    assert bundle.query.user_ids
    if name == "movielens":
        assert len(bundle.query.user_ids) == load_dataset("movielens/100k").n_users


@pytest.mark.parametrize("name", ["synthetic", "synthetic:60", "generated:0x8"])
def test_a_size_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BenchmarkError, match="as in 1000000x64"):
        open_corpus(name, tmp_path)
