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
    named = planner.choose(SearchRequest(UserQuery("42"), count=10, backend="annoy"), 10)
    assert named.index is planner.indexes["annoy"]
