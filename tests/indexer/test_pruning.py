"""What prune makes of versions whose index is in Milvus; see test_milvus.py for what it drops."""

from pathlib import Path

import pytest

from indexer.backends import IndexUnreachableError
from indexer.backends.milvus import CollectionEntry
from indexer.pruning import prune
from trainer.publish import CURRENT, MANIFEST, BundleError

VERSIONS = ("20260101T000000Z-00000000", "20260102T000000Z-00000000")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two versions that search the same content, each at an address of its own."""
    monkeypatch.delenv("CANDIDATE_SEARCH_MILVUS_URI", raising=False)
    monkeypatch.setenv("CANDIDATE_SEARCH_MILVUS_TIMEOUT_SECONDS", "0.5")
    for number, version in enumerate(VERSIONS):
        folder = tmp_path / version / "milvus"
        folder.mkdir(parents=True)
        (tmp_path / version / MANIFEST).write_text("{}")
        uri = f"http://127.0.0.1:{number + 1}"  # where nothing listens
        CollectionEntry(uri=uri, name="content", fields={}, types={}).write(folder)
    (tmp_path / CURRENT).symlink_to(VERSIONS[1])
    return tmp_path


def test_what_a_version_that_stays_may_search_is_left(root: Path) -> None:
    assert prune(root, 1) == (([root / VERSIONS[0]], []), ([], ["content at http://127.0.0.1:1"]))


def test_what_it_searches_by_the_address_in_the_environment_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANDIDATE_SEARCH_MILVUS_URI", "http://127.0.0.1:1")
    assert prune(root, 1) == (([root / VERSIONS[0]], []), ([], []))


def test_what_no_version_searches_is_dropped(root: Path) -> None:
    CollectionEntry(uri="http://127.0.0.1:2", name="other", fields={}, types={}).write(
        root / VERSIONS[1] / "milvus"
    )
    with pytest.raises(IndexUnreachableError, match=r"collection content is still there.*:1 "):
        prune(root, 1)
    assert not (root / VERSIONS[0]).exists()


def test_a_damaged_version_is_a_sentence_and_nothing_is_removed(root: Path) -> None:
    (root / VERSIONS[1] / "milvus" / "collection.json").write_text("{")
    with pytest.raises(BundleError, match=rf"remove .*{VERSIONS[1]} by hand"):
        prune(root, 0)
    assert (root / VERSIONS[0]).exists()
