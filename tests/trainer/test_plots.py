"""Pictures: that they are drawn, whole, and replace an older one."""

import matplotlib.image
import pytest

from trainer.comparison import HEADLINES, ComparedModel, Comparison
from trainer.plots import draw_comparison


def make_comparison(metrics: list[str]) -> Comparison:
    return Comparison(
        dataset="sample",
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
