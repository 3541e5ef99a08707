"""Signed versions: only what the holder of the key has signed is served."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.commands import app
from server.loading import load, with_page_token_key
from server.settings import Settings
from tests.server.published import copied, publish
from trainer.publish import BundleError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("published")
    for seed in (1, 2):
        publish(directory, seed)
    return directory


@pytest.fixture
def link(root: Path, tmp_path: Path) -> Path:
    return copied(root, tmp_path / "indexes")


def make_keys(directory: Path, name: str, algorithm: str = "ed25519") -> tuple[Path, Path]:
    private, public = directory / f"{name}.pem", directory / f"{name}.pub"
    for command in (
        ["genpkey", "-algorithm", algorithm, "-out", private],
        ["pkey", "-in", private, "-pubout", "-out", public],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    return private, public


def sign(link: Path, private: Path) -> Any:
    arguments = ["sign", "--index", str(link), "--private-key", str(private)]
    return CliRunner().invoke(app, arguments)


def test_only_what_is_signed_is_served(link: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "ours")
    settings = with_page_token_key(Settings(index=link, index_public_key=public))
    with pytest.raises(BundleError, match="is not signed"):
        load(settings)
    assert sign(link, private).output.startswith("signed ")
    assert link.resolve().name == load(settings).name
    load(with_page_token_key(Settings(index=link)))  # nobody asks for a signature


def test_neither_another_key_nor_another_manifest_will_do(link: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "ours")
    stranger, _ = make_keys(tmp_path, "strangers")
    settings = with_page_token_key(Settings(index=link, index_public_key=public))
    sign(link, stranger)
    with pytest.raises(BundleError, match="was not signed by the holder of"):
        load(settings)
    other = next(one for one in link.parent.glob("2*") if one.name != link.resolve().name)
    sign(other, private)
    (link / "manifest.ed25519").write_bytes((other / "manifest.ed25519").read_bytes())
    with pytest.raises(BundleError, match="was not signed by the holder of"):
        load(settings)


def test_what_cannot_be_read_or_written_is_a_sentence(link: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "ours")
    (link / "manifest.ed25519").mkdir()
    assert "error: cannot sign" in sign(link, private).output
    assert [] == list(link.parent.glob(".*.signature"))
    settings = with_page_token_key(Settings(index=link, index_public_key=public))
    with pytest.raises(BundleError, match=r"cannot read .*manifest\.ed25519: Is a directory"):
        load(settings)


def test_a_key_of_another_kind_is_refused_in_a_sentence(link: Path, tmp_path: Path) -> None:
    private, _ = make_keys(tmp_path, "rsa", "rsa")
    refused = sign(link, private)
    assert refused.exit_code == 1
    assert "is no Ed25519 key" in refused.output
    refused = sign(link, tmp_path / "none.pem")
    assert "cannot read the key" in refused.output
