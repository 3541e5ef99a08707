"""What a server answers from stays where it is, whoever prunes."""

from pathlib import Path

from server.client import Embedding, SearchClient
from tests.server.processes import serving
from tests.server.published import publish
from trainer.pruning import prune


def test_versions_that_workers_serve_are_not_pruned(tmp_path: Path) -> None:
    old = tmp_path / publish(tmp_path, 1)
    with serving(old, "--workers", "2") as (process, address):
        new = publish(tmp_path, 2)
        assert prune(tmp_path, 0) == ([], [old])
        with SearchClient(address) as client:
            assert client.search(Embedding([1.0] * 8)).index_version == old.name
        process.terminate()
        process.wait(30)
    assert prune(tmp_path, 0) == ([old], [])
    assert [tmp_path / new] == list(tmp_path.glob("2*"))
