"""The Node.js example: a client in another language that knows nothing but the .proto."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from server.client import Examples, Like, SearchClient, User

ROOT = Path(__file__).parents[2]

# Nothing else may skip these: where Node.js is installed, they run or fail.
pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its packages installed, as its lock file pins them."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "search.mjs"):
        shutil.copy(ROOT / "docs" / "examples" / "node" / name, folder)
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return folder


def search(example: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", str(example / "search.mjs"), *arguments],
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("kind", "value", "query"),
    [
        ("user", "42", User("42")),
        ("like", "7", Like("7")),
        ("liked", "7,9", Examples(liked=["7", "9"])),
    ],
)
def test_it_gets_the_answers_of_the_python_client(
    example: Path, server: Any, client: SearchClient, kind: str, value: str, query: Any
) -> None:
    done = search(example, server.address, str(ROOT / "protos"), kind, value)
    assert done.returncode == 0, done.stderr
    answer = client.search(query, count=5)
    expected = [f"{one.id}\t{one.score:.4f}" for one in answer]
    assert expected == done.stdout.splitlines()


def test_a_refusal_is_a_sentence(example: Path, server: Any) -> None:
    done = search(example, server.address, str(ROOT / "protos"), "like", "nobody-knows-this")
    assert done.returncode == 1
    assert "is not in the corpus" in done.stderr


def test_a_wrong_call_shows_the_usage(example: Path) -> None:
    done = search(example, "localhost:1", str(ROOT / "protos"), "dislike", "7")
    assert done.returncode == 2
    assert "usage" in done.stderr
