"""The corpora that commands measure, by their names."""

from __future__ import annotations

from pathlib import Path

from benchmarks.progress import OnStep
from benchmarks.workloads import (
    bundle_of_towers,
    generated_bundle,
    parse_size,
    publish_towers,
    synthetic_bundle,
)
from indexer.build import BuildOptions
from indexer.bundle import IndexBundle
from trainer.datasets import load_dataset
from trainer.model_config import TowersConfig

_MOVIELENS, _SYNTHETIC, _GENERATED = "movielens", "synthetic", "generated"


def open_corpus(
    name: str, root: Path, *, backends: tuple[str, ...] = (), on_step: OnStep = lambda _: None
) -> IndexBundle:
    """Return the index bundle over a corpus; all but the user's own is made on first use.

    Args:
        name: ``movielens``; ``synthetic:ROWSxDIM``, which has embeddings alone;
            ``generated:ROWSxDIM``, which has users and towers trained on them; or the folder of an
            index bundle.
        root: where what is made is kept.
        backends: which to build for a synthetic corpus; empty for all on this machine.
        on_step: called with a line of progress.

    Raises:
        BenchmarkError: if what follows the colon is no size.
        DatasetError: if MovieLens cannot be had here.
        BundleError: if the folder holds no index bundle.
    """
    if name == _MOVIELENS:
        return movielens_bundle(root, on_step=on_step)
    kind, _, size = name.partition(":")
    if kind == _SYNTHETIC:
        return synthetic_bundle(root, *parse_size(size), backends=backends, on_step=on_step)
    if kind == _GENERATED:
        return generated_bundle(root, *parse_size(size), on_step=on_step)
    return IndexBundle.open(Path(name))


def movielens_bundle(root: Path, *, on_step: OnStep = lambda _: None) -> IndexBundle:
    """Return an index bundle over MovieLens 100K, with the default towers, made on first use.

    Args:
        root: where it is kept, in the folder ``movielens``.
        on_step: called with a line of progress.

    Raises:
        DatasetError: if MovieLens cannot be had here.
    """

    def train(towers: Path) -> None:
        on_step("training towers on MovieLens 100K, which takes a minute or two")
        publish_towers(towers, load_dataset("movielens/100k"), TowersConfig())

    return bundle_of_towers(root / _MOVIELENS, train, BuildOptions(), on_step)
