import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.pruning import prune
from trainer.publish import (
    CURRENT,
    MANIFEST,
    BundleError,
    Manifest,
    commit,
    read_manifest,
    resolve,
    staging,
    verify_files,
    versions,
)


class ToyManifest(Manifest):
    format_version: int = 3
    kind: str = "toy"
    colour: str


class OtherManifest(Manifest):
    format_version: int = 3
    kind: str = "other"


def publish(root: Path, content: str = "hello") -> Path:
    with staging(root) as staged:
        (staged / "inner").mkdir()
        (staged / "inner" / "a.txt").write_text(content)
        (staged / "b.bin").write_bytes(b"\x00\x01")
        return commit(staged, root, ToyManifest(colour="red"))


def test_a_published_bundle_reads_back(tmp_path: Path) -> None:
    directory = publish(tmp_path)
    manifest = read_manifest(directory, ToyManifest)
    assert manifest.colour == "red"
    assert manifest.version == directory.name
    assert list(manifest.files) == ["b.bin", "inner/a.txt"]
    assert manifest.files["inner/a.txt"].sha256 == hashlib.sha256(b"hello").hexdigest()
    assert manifest.files["inner/a.txt"].size_bytes == 5
    verify_files(directory, manifest)


def test_current_is_a_relative_link_to_the_newest(tmp_path: Path) -> None:
    publish(tmp_path, "one")
    newest = publish(tmp_path, "two")
    assert (tmp_path / CURRENT).readlink() == Path(newest.name)
    assert resolve(tmp_path / CURRENT) == newest


def test_a_link_to_a_link_is_followed(tmp_path: Path) -> None:
    directory = publish(tmp_path / "versions")
    link = tmp_path / "live"
    link.symlink_to("versions/current")
    assert directory.resolve() == resolve(link).resolve()
    circle = tmp_path / "circle"
    circle.symlink_to("circle")
    with pytest.raises(BundleError, match="circle cannot be read: Too many levels of symbolic"):
        resolve(circle)


def test_publishing_the_same_twice_is_no_error(tmp_path: Path) -> None:
    published = {publish(tmp_path) for _ in range(5)}
    assert set(versions(tmp_path)) == published


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staging(tmp_path) as staged:
        (staged / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys; from trainer.publish import staging\n"
        "with staging(pathlib.Path(sys.argv[1])) as s:\n"
        "    (s / 'half').write_text('x'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path], check=False)
    assert len(list(tmp_path.glob(".staging-*"))) == 1
    directory = publish(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([CURRENT, directory.name])


def test_what_a_killed_process_with_our_id_left_is_removed_and_what_is_ours_stays(
    tmp_path: Path,
) -> None:
    # In a container every process may be the first.
    with staging(tmp_path) as ours:
        theirs = ours.with_name(f"{ours.name.rpartition('-')[0]}-00000000")
        theirs.mkdir()
        publish(tmp_path)
        assert (True, False) == (ours.is_dir(), theirs.exists())


def test_what_a_process_of_another_machine_is_at_stays(tmp_path: Path) -> None:
    theirs = tmp_path / f".staging-another-host_{2**22 + 1}-00000000"
    theirs.mkdir()
    publish(tmp_path)
    assert theirs.is_dir()


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    directory = publish(tmp_path)
    for path in [p for p in directory.rglob("*") if p.is_file()]:
        content = path.read_bytes()
        for position in range(0, len(content), 7):
            damaged = bytearray(content)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(BundleError):
                verify_files(directory, read_manifest(directory, ToyManifest))
        path.write_bytes(content)
    verify_files(directory, read_manifest(directory, ToyManifest))


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = publish(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("trainer.publish.hashlib.file_digest", fail)
    with pytest.raises(BundleError, match=r"cannot read .*: Input/output error"):
        verify_files(directory, read_manifest(directory, ToyManifest))


def test_missing_extra_and_linked_files_are_named(tmp_path: Path) -> None:
    directory = publish(tmp_path)
    manifest = read_manifest(directory, ToyManifest)
    extra = directory / "extra.pkl"
    extra.write_text("x")
    with pytest.raises(BundleError, match=r"not in the manifest: extra\.pkl"):
        verify_files(directory, manifest)
    extra.unlink()
    extra.symlink_to("/etc/hostname")
    with pytest.raises(BundleError, match="is a link"):
        verify_files(directory, manifest)
    extra.unlink()
    (directory / "b.bin").unlink()
    with pytest.raises(BundleError, match=r"missing b\.bin"):
        verify_files(directory, manifest)


def test_a_bundle_with_a_link_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is a link"), staging(tmp_path) as staged:
        (staged / "link").symlink_to("/etc/hostname")
        commit(staged, tmp_path, ToyManifest(colour="red"))
    assert list(tmp_path.iterdir()) == []


def test_another_kind_is_refused_with_both_named(tmp_path: Path) -> None:
    directory = publish(tmp_path)
    with pytest.raises(BundleError, match="expected kind 'other', found 'toy'"):
        read_manifest(directory, OtherManifest)


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    directory = publish(tmp_path)
    content = json.loads((directory / MANIFEST).read_text()) | {"surprise": 1}
    text = json.dumps(content).encode()
    (directory / MANIFEST).write_bytes(text)
    (directory / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest())
    with pytest.raises(BundleError, match="surprise"):
        read_manifest(directory, ToyManifest)


def test_a_folder_of_versions_is_not_a_bundle_but_hints_at_one(tmp_path: Path) -> None:
    publish(tmp_path)
    with pytest.raises(BundleError, match=r"did you mean .*current\?"):
        resolve(tmp_path)
    with pytest.raises(BundleError, match=r"has no manifest\.json$"):
        (tmp_path / "empty").mkdir()
        resolve(tmp_path / "empty")
    with pytest.raises(BundleError, match=r"there is nothing at .*nowhere$"):
        resolve(tmp_path / "nowhere")
    (tmp_path / "lost").symlink_to("nowhere")
    with pytest.raises(BundleError, match=r"lost leads to .*nowhere, and there is nothing there"):
        resolve(tmp_path / "lost")
    with pytest.raises(BundleError, match=r"(?i)cannot be read: .*name too long"):
        resolve(tmp_path / ("x" * 300))


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="must be a folder"), staging(tmp_path / "file"):
        pass


def test_a_folder_that_no_file_system_makes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"(?i)name too long"), staging(tmp_path / ("x" * 300)):
        pass


def test_prune_keeps_the_newest_and_the_current(tmp_path: Path) -> None:
    published = sorted(publish(tmp_path, str(i)) for i in range(4))
    current = resolve(tmp_path / CURRENT)
    removed, _ = prune(tmp_path, keep=1)
    kept = {published[-1], current}
    assert set(removed) == set(published) - kept
    assert set(versions(tmp_path)) == kept


def test_prune_keeps_what_current_leads_to_by_other_links(tmp_path: Path) -> None:
    oldest, *_, newest = sorted(publish(tmp_path, str(i)) for i in range(4))
    (tmp_path / "stable").symlink_to(oldest.name)
    (tmp_path / CURRENT).unlink()
    (tmp_path / CURRENT).symlink_to("stable")
    prune(tmp_path, keep=1)
    assert [oldest, newest] == versions(tmp_path)
    (tmp_path / "stable").unlink()
    (tmp_path / "stable").symlink_to(CURRENT)
    with pytest.raises(BundleError, match=r"current cannot be followed: Too many levels"):
        prune(tmp_path, keep=1)


@pytest.mark.parametrize("place", ["current", "current/deeper", "version"])
def test_nothing_is_published_within_a_bundle(tmp_path: Path, place: str) -> None:
    directory = publish(tmp_path / "root")
    root = tmp_path / "root" / place.replace("version", directory.name)
    with pytest.raises(BundleError, match=f"give the folder .* such as {tmp_path}/root"):
        publish(root)
    verify_files(directory, read_manifest(directory, ToyManifest))


def test_bundles_of_two_kinds_do_not_share_a_folder(tmp_path: Path) -> None:
    directory = publish(tmp_path)
    with (
        pytest.raises(BundleError, match="is a folder of toy, as current shows; give another one"),
        staging(tmp_path, OtherManifest),
    ):
        pass
    (directory / MANIFEST).write_bytes(b"damaged")  # which is no reason to publish nothing
    with staging(tmp_path, OtherManifest):
        pass


def test_a_current_that_is_no_link_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / CURRENT).mkdir()
    with pytest.raises(BundleError, match=r"current must be a link .*: rename it first"):
        publish(tmp_path)
    assert [tmp_path / CURRENT] == list(tmp_path.iterdir())


def test_a_bundle_may_be_published_beside_the_current_one(tmp_path: Path) -> None:
    first = publish(tmp_path)
    with staging(tmp_path) as staged:
        second = commit(staged, tmp_path, ToyManifest(colour="blue"), make_current=False)
    assert second.is_dir()
    assert resolve(tmp_path / CURRENT) == first


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_prune_says_what_it_cannot_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    reason = os.strerror(number)

    def refuse(*_: object) -> None:
        raise OSError(number, reason)

    directory = publish(tmp_path)
    (tmp_path / CURRENT).unlink()
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(BundleError, match=f"{directory} cannot be removed: {reason}"):
        prune(tmp_path, 0)
    assert directory.is_dir()


def test_prune_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere is no folder of bundles"):
        prune(tmp_path / "nowhere", keep=1)


def test_prune_refuses_a_negative_count(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not -1"):
        prune(tmp_path, keep=-1)


@pytest.mark.parametrize("n_kills", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_a_reader_never_sees_part_of_a_bundle(tmp_path: Path, n_kills: int) -> None:
    """Whatever step a publisher is killed at, what is visible is complete."""
    script = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[2])\n"
        "from tests.trainer.test_publish import publish\n"
        "for i in range(10_000): assert publish(pathlib.Path(sys.argv[1]), str(i))"
    )
    publish(tmp_path)
    for _ in range(n_kills):
        publisher = subprocess.Popen([sys.executable, "-c", script, tmp_path, Path.cwd()])
        try:
            before = len(versions(tmp_path))
            while len(versions(tmp_path)) < before + 3 and publisher.poll() is None:
                directory = resolve(tmp_path / CURRENT)
                verify_files(directory, read_manifest(directory, ToyManifest))
            assert publisher.poll() is None
        finally:
            publisher.kill()
            publisher.wait()
    for directory in versions(tmp_path):
        verify_files(directory, read_manifest(directory, ToyManifest))
