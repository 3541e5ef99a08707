"""Damaged and malicious bundles: all are refused before native code sees them."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.admin_client import AdminClient
from server.client import Embedding, SearchClient, SearchFailedError
from tests.server.processes import serving
from tests.server.published import copied, current, point_at, publish, publish_changed

CUTS = (0.0, 0.1, 0.5, 0.95)
N_FLIPS = 200


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The version that serves, and a second one of the same backends to take apart."""
    directory = tmp_path_factory.mktemp("published")
    for seed in (1, 2):
        publish(directory, seed, ("brute_force", "annoy", "scann"))
    return directory


@pytest.fixture(scope="module")
def admin(root: Path) -> Iterator[AdminClient]:
    with serving(root / "current", "--admin") as (_, address), AdminClient(address) as client:
        yield client
        with SearchClient(address) as searcher:  # whatever happened, the old version serves
            assert current(root / "current") == searcher.search(Embedding([1.0] * 8)).index_version


@pytest.fixture
def victim(root: Path) -> Iterator[Path]:
    """A version beside the one that serves, whole again afterwards."""
    directory = next(one for one in root.glob("2*") if one.name != current(root / "current"))
    whole = root / "whole"
    shutil.copytree(directory, whole)
    yield directory
    shutil.rmtree(directory)
    whole.rename(directory)


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def assert_refused(admin: AdminClient, version: Path, reason: str = "") -> None:
    with pytest.raises(SearchFailedError, match=f"VERSION_(REFUSED|UNKNOWN): .*{reason}"):
        admin.verify(version.name)


def test_every_file_is_needed_in_full(admin: AdminClient, victim: Path) -> None:
    for path in files(victim):
        content = path.read_bytes()
        for cut in CUTS:
            path.write_bytes(content[: int(cut * len(content))])
            assert_refused(admin, victim)
        path.write_bytes(content)
    admin.verify(victim.name)


def test_no_bit_may_flip(admin: AdminClient, victim: Path) -> None:
    rng = np.random.default_rng(0)
    paths = files(victim)
    for _ in range(N_FLIPS):
        path = paths[rng.integers(len(paths))]
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        assert_refused(admin, victim)
        path.write_bytes(content)


def test_a_manifest_belongs_to_its_version(admin: AdminClient, victim: Path, root: Path) -> None:
    for name in ("manifest.json", "manifest.sha256"):
        shutil.copyfile(root / "current" / name, victim / name)
    assert_refused(admin, victim)


@pytest.mark.parametrize("name", ["extra.pkl", "query/model.pkl", "annoy/.hidden"])
def test_nothing_may_be_added(admin: AdminClient, victim: Path, name: str) -> None:
    (victim / name).parent.mkdir(exist_ok=True)
    (victim / name).write_bytes(pickle.dumps("harmless"))
    assert_refused(admin, victim, "not in the manifest")


@pytest.mark.parametrize("target", ["/etc/hostname", "../current/embeddings.npy"])
def test_no_file_may_be_a_link(admin: AdminClient, victim: Path, target: str) -> None:
    (victim / "embeddings.npy").unlink()
    (victim / "embeddings.npy").symlink_to(target)
    assert_refused(admin, victim, "is a link")


def test_no_folder_may_be_a_link(admin: AdminClient, victim: Path, tmp_path: Path) -> None:
    shutil.move(victim / "annoy", tmp_path / "annoy")
    (victim / "annoy").symlink_to(tmp_path / "annoy")
    assert_refused(admin, victim, "is a link")


def test_a_version_may_be_no_link(admin: AdminClient, root: Path) -> None:
    link = root / "20300101T000000Z-00000000"
    link.symlink_to(current(root / "current"))
    assert_refused(admin, link, "there is no index version")
    link.unlink()


@pytest.mark.parametrize("name", ["/etc/hostname", "../current/embeddings.npy", "a/../../b"])
def test_no_path_leaves_the_folder(admin: AdminClient, victim: Path, name: str) -> None:
    entry = {"sha256": "0" * 64, "size_bytes": 1}
    rewrite_manifest(victim, lambda manifest: manifest["files"].update({name: entry}))
    assert_refused(admin, victim, "missing")


def test_a_backend_nobody_knows_is_refused(admin: AdminClient, victim: Path) -> None:
    def rename(manifest: Any) -> None:
        manifest["backends"]["os"] = manifest["backends"].pop("annoy")

    rewrite_manifest(victim, rename)
    assert_refused(admin, victim)


def test_a_planted_pickle_is_never_loaded(root: Path, tmp_path: Path) -> None:
    """Its hash is in the manifest, and it lies where arrays are read."""
    mark = tmp_path / "was-here"
    link = copied(root, tmp_path / "indexes")
    serves = current(link)
    np.save(tmp_path / "planted.npy", np.array([_Touch(mark)], dtype=object), allow_pickle=True)
    content = (tmp_path / "planted.npy").read_bytes()
    names = ("embeddings.npy", "tuning_queries.npy", "popularity.npy")
    planted = [publish_changed(link, name, content) for name in names]
    point_at(link, serves)
    with serving(link, "--admin") as (_, address), AdminClient(address) as client:
        for version in planted:
            assert_refused(client, link.parent / version)
    assert not mark.exists()


class _Touch:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


def rewrite_manifest(directory: Path, change: Any) -> None:
    """Change a manifest and its hash, as somebody who knows the format would."""
    manifest = json.loads((directory / "manifest.json").read_text())
    change(manifest)
    text = json.dumps(manifest).encode()
    (directory / "manifest.json").write_bytes(text)
    (directory / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest())
