"""The comparison table: every model on the same users, with intervals on the differences."""

import numpy as np
import pytest

from trainer.baselines import ease, popularity
from trainer.comparison import BOOTSTRAPPED, HEADLINES, Comparison, compare
from trainer.datasets import load_dataset
from trainer.evaluation import EvaluationError, evaluate
from trainer.splits import split


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("sample")


@pytest.fixture(scope="module")
def parts(dataset):
    return split(dataset, "leave-last-out")


@pytest.fixture(scope="module")
def comparison(dataset, parts):
    towers = ease(dataset, parts.train)
    return compare(dataset, parts, towers, baselines={"popularity": popularity, "EASE": ease})


def test_figures_are_those_of_evaluate(dataset, parts, comparison):
    expected = evaluate(dataset, parts, popularity(dataset, parts.train))

    assert [model.name for model in comparison.models] == ["towers", "popularity", "EASE"]
    assert expected.metrics == comparison.models[1].metrics
    assert expected.n_users == comparison.n_users
    assert set(HEADLINES) <= set(expected.metrics)


def test_the_lead_is_over_each_baseline_and_none_over_oneself(comparison):
    towers, popular, same = comparison.models

    assert towers.towers_lead == {}
    assert set(popular.towers_lead) == set(BOOTSTRAPPED)
    lead = popular.towers_lead["heldout_recall@10"]
    difference = towers.metrics["heldout_recall@10"] - popular.metrics["heldout_recall@10"]
    assert lead.mean == pytest.approx(difference)
    assert 0 < lead.low < lead.mean < lead.high
    assert same.towers_lead["ndcg@10"].model_dump() == {"mean": 0, "low": 0, "high": 0}


def test_a_baseline_that_cannot_be_had_is_left_out_with_its_reason(dataset, parts):
    def refuse(dataset, train_rows):
        raise EvaluationError(
            f"{dataset.n_candidates} candidates are too many for {train_rows.dtype}"
        )

    turns = []
    actual = compare(
        dataset,
        parts,
        popularity(dataset, parts.train),
        baselines={"EASE": refuse},
        on_model=turns.append,
    )

    assert [model.name for model in actual.models] == ["towers"]
    assert actual.left_out == {"EASE": "800 candidates are too many for int64"}
    assert turns == ["towers", "EASE"]


def test_towers_that_give_no_numbers_are_refused(dataset, parts):
    with pytest.raises(EvaluationError, match="NaN"):
        compare(
            dataset,
            parts,
            lambda rows: np.full((len(rows), dataset.n_candidates), np.nan, np.float32),
            baselines={},
        )


def test_ratings_are_compared_where_there_are_any(dataset, parts):
    def constant(rating):
        return lambda *rows: np.full(len(rows[0]), rating, np.float32)

    ratings = dataset.ratings[parts.train]
    towers = popularity(dataset, parts.train)
    actual = compare(
        dataset,
        parts,
        towers,
        rating_models={"nothing": constant(0)},
        baselines={},
        rating_baselines={"the mean": lambda *fitted_to: constant(fitted_to[2].mean())},
    )
    without = compare(dataset, parts, towers, baselines={})

    held_out = dataset.ratings[parts.test]
    assert {
        "nothing": pytest.approx(np.sqrt((held_out**2).mean())),
        "the mean": pytest.approx(np.sqrt(((held_out - ratings.mean()) ** 2).mean())),
    } == actual.rmse
    assert without.rmse == {}


def test_it_survives_json(comparison):
    assert comparison == Comparison.model_validate_json(comparison.model_dump_json())
