"""Datasets by name, and what happens where one cannot be had."""

import pytest

from trainer.config import DataConfig
from trainer.datasets import DatasetError, DatasetUnavailableError, load_dataset, movielens


@pytest.fixture
def unavailable(monkeypatch):
    def load(version):
        raise DatasetUnavailableError(f"movielens/{version} is out of reach")

    monkeypatch.setattr(movielens, "load", load)


def test_the_sample_by_name():
    assert load_dataset("sample").name == "sample"


def test_min_rating_narrows():
    assert load_dataset("sample", min_rating=4).ratings.min() == 4


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(DatasetError, match=r"no dataset 'movielens/10k'.*movielens/100k.*sample"):
        load_dataset("movielens/10k")


@pytest.mark.usefixtures("unavailable")
def test_an_unavailable_dataset_is_refused():
    with pytest.raises(DatasetUnavailableError, match="out of reach"):
        load_dataset("movielens/100k")


@pytest.mark.usefixtures("unavailable")
def test_the_sample_stands_in_where_that_is_allowed(monkeypatch, capsys):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)

    dataset = load_dataset("movielens/100k", fallback_to_sample=True)

    assert dataset.name == "sample"
    warning = capsys.readouterr().err
    assert warning.startswith("WARNING: using the built-in sample instead of movielens/100k: ")
    assert warning.count("\n") == 1


@pytest.mark.usefixtures("unavailable")
def test_nothing_stands_in_for_what_was_named(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)

    assert DataConfig().load().name == "sample"
    with pytest.raises(DatasetUnavailableError):
        DataConfig(dataset="movielens/100k").load()


@pytest.mark.usefixtures("unavailable")
def test_nothing_stands_in_where_the_data_should_be(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

    with pytest.raises(DatasetUnavailableError):
        load_dataset("movielens/100k", fallback_to_sample=True)
