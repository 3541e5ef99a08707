from pathlib import Path

import pytest

from indexer.bundle import IndexBundle
from server.domain import SearchRequest, UserQuery
from server.planning import Planner


def test_a_default_that_finds_too_few_leaves_it_to_another(
    tower_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = IndexBundle.open(tower_index, verify=False)
    entry = bundle.manifest.backends["annoy"]
    points = tuple(point for point in entry.operating_points if point.name == "exhaustive")
    backends = {
        **bundle.manifest.backends,
        "annoy": entry.model_copy(update={"operating_points": points}),
    }
    changed = {"backends": backends, "default_backend": "annoy"}
    monkeypatch.setattr(bundle, "manifest", bundle.manifest.model_copy(update=changed))
    planner = Planner(bundle)
    choice = planner.choose(SearchRequest(UserQuery("42"), count=10), 10)
    assert choice.index is not planner.indexes["annoy"]
    assert "own choice, annoy, does not" in choice.reason
    assert planner.recall_targets == [0.99, 0.95, 0.9]
    named = planner.choose(SearchRequest(UserQuery("42"), count=10, backend="annoy"), 10)
    assert named.index is planner.indexes["annoy"]


def test_recalls_that_the_usable_backends_were_tuned_for_are_known(
    tower_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = IndexBundle.open(tower_index, verify=False)
    entry = bundle.manifest.backends["annoy"]
    changed = [
        point if point.name == "exhaustive" else point.model_copy(update={"recall_target": 0.8})
        for point in entry.operating_points
    ]
    annoy = entry.model_copy(update={"operating_points": tuple(changed)})
    only = {"backends": {"annoy": annoy}, "default_backend": "annoy"}
    monkeypatch.setattr(bundle, "manifest", bundle.manifest.model_copy(update=only))
    assert Planner(bundle).recall_targets == [0.8]
