"""What the commands build an index from: candidates of towers or of the user's own, and queries."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer

from indexer.bundle import IndexBundle, IndexManifest
from indexer.corpus import Corpus, CorpusError, read_corpus, read_vectors
from trainer.bundle import QUERY_TOWER, TowerBundle
from trainer.console import stderr
from trainer.publish import CURRENT, BundleError, follow, read_manifest

SHARDS = Path("artifacts/embeddings")
"""Where embeddings that Ray makes are published, if nothing else is said."""

_FEW_QUERIES = 100

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Where the candidates come from: towers that embed them, or files with their embeddings."""

    towers: Path | None
    embeddings: Path | None
    candidate_ids: Path | None
    metadata: Path | None
    by_ray: bool
    """Whether Ray embeds the candidates of the towers, and not this process."""
    ray_address: str | None
    shards: Path | None

    def check(self) -> None:
        """Refuse what does not belong together.

        Raises:
            BadParameter: what does not, and with what it would.
        """
        if self.by_ray and self.towers is None:
            raise typer.BadParameter("--engine ray embeds the candidates of --towers")
        for flag, value in {"--ray-address": self.ray_address, "--shards": self.shards}.items():
            if value is not None and not self.by_ray:
                raise typer.BadParameter(f"{flag} belongs to --engine ray")
        if (self.towers is None) == (self.embeddings is None):
            raise typer.BadParameter("give either --towers or --embeddings with --candidate-ids")
        if self.embeddings is not None and self.candidate_ids is None:
            raise typer.BadParameter("--embeddings needs --candidate-ids as well")
        if self.towers is not None and (self.candidate_ids or self.metadata):
            raise typer.BadParameter("--candidate-ids and --metadata belong to --embeddings")

    def read(self, announce: Announce) -> tuple[TowerBundle | None, Corpus]:
        """Return the corpus, and the tower bundle if it comes from one.

        Args:
            announce: told what is being done.

        Raises:
            BundleError: if the towers are not as they should be.
            CorpusError: if the files are not.
        """
        if self.embeddings is not None and self.candidate_ids is not None:
            announce("reading the embeddings")
            return None, read_corpus(self.embeddings, self.candidate_ids, self.metadata)
        assert self.towers is not None  # noqa: S101 - or it was not checked
        announce("verifying the towers")
        bundle = TowerBundle.open(self.towers)
        embed = self._embed_on_ray if self.by_ray else _embed
        return bundle, embed(bundle, announce)

    def _embed_on_ray(self, towers: TowerBundle, announce: Announce) -> Corpus:
        from indexer.engines.ray_data import embed_candidates, read_shards

        announce("starting Ray")
        root, on_candidates = self.shards or SHARDS, _announcing(towers, announce)
        directory = embed_candidates(towers, root, self.ray_address, on_candidates)
        announce("putting the embeddings together")
        return read_shards(directory, towers)


def _embed(towers: TowerBundle, announce: Announce) -> Corpus:
    from indexer.embed import embed_candidates  # own embeddings need no LiteRT

    return embed_candidates(towers, _announcing(towers, announce))


def _announcing(towers: TowerBundle, announce: Announce) -> Callable[[int], None]:
    """Return what tells how many candidates are embedded."""
    total = towers.manifest.n_candidates
    return lambda n_done: announce(f"embedding candidates: {n_done:,} of {total:,}")


def read_queries(path: Path | None) -> np.ndarray | None:
    """Return the embeddings (n, dim) of queries in a file, if one is given.

    Raises:
        CorpusError: if they are not as they should be.
    """
    if path is None:
        return None
    queries = read_vectors(path, "queries")
    if len(queries) < _FEW_QUERIES:
        stderr.print(
            f"{path} holds only {len(queries)} queries: recall that is measured on so few may be "
            f"anything. Give some hundred of them.",
            soft_wrap=True,
        )
    return queries


def check_nobody_loses_towers(root: Path) -> None:
    """Refuse to put an index without towers where servers follow one with towers.

    Raises:
        CorpusError: if it would be.
    """
    if not (root / CURRENT).exists():
        return
    try:
        before = read_manifest(follow(root / CURRENT), IndexManifest)
    except BundleError:  # which nobody can be served by
        return
    if before.tower_version is not None:
        raise CorpusError(
            f"{root / CURRENT} is an index of towers, and servers that follow it would answer no "
            "users any more: give another --output, or --keep-current"
        )


def check_of_same_towers(queries: Path, bundle: IndexBundle) -> None:
    """Refuse queries from a tower bundle that were embedded by other towers than the index's.

    Raises:
        CorpusError: if they were.
    """
    folder = queries.resolve().parent
    if bundle.query is None or not (folder / QUERY_TOWER).exists():
        return
    # By their contents, part by part: a tower of many candidates may take a gigabyte.
    if not filecmp.cmp(bundle.query.tower_path, folder / QUERY_TOWER, shallow=False):
        raise CorpusError(
            f"{queries} were embedded by other towers than {bundle.directory}: build an index of "
            "those towers, or refresh the towers that it was built from "
            f"({bundle.manifest.tower_version})"
        )
