"""Pictures: that they are drawn, whole, and replace an older one."""

import matplotlib.image
import pytest

from trainer.comparison import HEADLINES, ComparedModel, Comparison
from trainer.plots import draw_comparison, draw_learning_curve


def make_comparison(metrics: list[str]) -> Comparison:
    return Comparison(
        dataset="a sample for $1, $_{2",
        split="random",
        ordered_by="timestamp",
        n_users=3,
        models=[
            ComparedModel(name=name, metrics=dict.fromkeys(metrics, value))
            for name, value in (("towers", 0.5), ("popularity", 0.2))
        ],
        left_out={},
    )


@pytest.mark.parametrize("metrics", [list(HEADLINES), ["ndcg@10"], list(HEADLINES[:7])])
def test_a_comparison_is_drawn(tmp_path, metrics):
    path = tmp_path / "comparison.png"
    path.write_text("an older picture")

    draw_comparison(make_comparison(metrics), path)

    assert matplotlib.image.imread(path).ndim == 3
    assert [file.name for file in tmp_path.iterdir()] == ["comparison.png"]


def test_the_ratings_have_a_panel_below(tmp_path):
    path = tmp_path / "comparison.png"
    comparison = make_comparison(["ndcg@10"])
    draw_comparison(comparison, path)
    without = matplotlib.image.imread(path)

    rmse = {"ranking model": 0.89, "biases alone": 0.94}
    draw_comparison(comparison.model_copy(update={"rmse": rmse}), path)

    height, width, _ = matplotlib.image.imread(path).shape
    assert (height > without.shape[0], width) == (True, without.shape[1])


@pytest.mark.parametrize("validated", [{}, {"val_ndcg@10": 0.1, "val_heldout_recall@10": 0.2}])
@pytest.mark.parametrize("n_epochs", [1, 3])
def test_a_learning_curve_is_drawn(tmp_path, validated, n_epochs):
    path = tmp_path / "curve.png"

    draw_learning_curve([{"loss": 1.0, **validated}] * n_epochs, path)

    assert matplotlib.image.imread(path).ndim == 3
    assert [file.name for file in tmp_path.iterdir()] == ["curve.png"]
