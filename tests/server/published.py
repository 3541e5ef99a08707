"""Index versions side by side, good ones and ones that only look so."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa

from indexer.build import BuildOptions, build_bundle
from indexer.bundle import IndexBundle, link_files
from indexer.corpus import Corpus
from trainer.publish import commit, resolve, staging
from trainer.vocabulary import Vocabulary

N, DIM = 400, 8


def numbered_corpus(seed: int) -> Corpus:
    """Candidates whose ids tell their version: ``<seed>-<row>``."""
    ids = Vocabulary([f"{seed}-{row}" for row in range(N)])
    embeddings = np.random.default_rng(seed).normal(size=(N, DIM)).astype(np.float32)
    candidates = pa.table({"candidate_id": ids.array})
    return Corpus(ids, embeddings, candidates, np.zeros(N, dtype=np.float32))


def publish(root: Path, seed: int, backends: tuple[str, ...] = ("brute_force",)) -> str:
    """Publish an index of numbered candidates as the current version; return its name."""
    options = BuildOptions(k=10, backends=backends)
    return build_bundle(numbered_corpus(seed), None, root, options).name


def copied(root: Path, target: Path) -> Path:
    """Return the ``current`` link of a copy that a test may damage."""
    shutil.copytree(root, target, symlinks=True)
    return target / "current"


def publish_changed(link: Path, name: str, content: bytes) -> str:
    """Publish the current version anew with one file replaced, hashed as if it belonged there."""
    bundle = IndexBundle.open(link)
    with staging(link.parent) as staged:
        link_files(bundle, staged)
        (staged / name).unlink()
        (staged / name).write_bytes(content)
        return commit(staged, link.parent, bundle.manifest).name


def publish_slow(link: Path, backend: str, micros: float) -> str:
    """Publish the current version anew, a backend of which is said to take so long."""
    bundle = IndexBundle.open(link)
    entry = bundle.manifest.backends[backend]
    points = tuple(
        point.model_copy(update={"p50_microseconds": micros}) for point in entry.operating_points
    )
    slow = entry.model_copy(update={"operating_points": points})
    backends = bundle.manifest.backends | {backend: slow}
    with staging(link.parent) as staged:
        link_files(bundle, staged)
        manifest = bundle.manifest.model_copy(update={"backends": backends})
        return commit(staged, link.parent, manifest).name


def point_at(link: Path, name: str) -> None:
    """Have the link name another version, in one step."""
    fresh = link.with_name("fresh")
    fresh.symlink_to(name)
    fresh.replace(link)


def current(link: Path) -> str:
    """Return the name of the version that the link names."""
    return resolve(link).name
