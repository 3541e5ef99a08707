"""Versions: what is refused changes nothing, and what takes over was tried."""

import asyncio
import shutil
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from indexer.bundle import IndexBundle
from server.backoff import Backoff
from server.domain import EmbeddingQuery, SearchRequest
from server.errors import (
    LimitExceededError,
    NoPreviousVersionError,
    VersionRefusedError,
    VersionUnknownError,
)
from server.loading import IndexVersion, load, settle_memory, with_page_token_key
from server.serve import Worker
from server.settings import Settings
from server.versions import Served, Versions, VersionState
from tests.server.published import copied, current, point_at, publish, publish_changed
from trainer.publish import BundleError

# When a link is tried that is refused each time, and first looked at then.
TRIES = [1000.0, 1001.0, 1003.0, 1007.0, 1015.0, 1031.0]


class RecordingCrew:
    """Remembers what took over; refuses what it is told to."""

    def __init__(self) -> None:
        self.history: list[Served] = []
        self.failures: list[tuple[float, Served]] = []
        self.fails = False

    def verify(self, load: Callable[[], object]) -> None:
        load()

    def take_over(self, make: Callable[[], Served]) -> Served:
        served = make()
        if self.fails:
            self.failures.append((time.monotonic(), served))
            raise BundleError("a worker died")
        self.history.append(served)
        return served

    def process_ids(self) -> Sequence[int]:
        return [1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions, of which the second is current."""
    directory = tmp_path_factory.mktemp("published")
    for seed in (1, 2):
        publish(directory, seed, ("brute_force", "annoy"))
    return directory


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def link(root: Path, tmp_path: Path) -> Path:
    return copied(root, tmp_path / "indexes")


@pytest.fixture
def crew() -> RecordingCrew:
    return RecordingCrew()


@pytest.fixture
def versions(link: Path, crew: RecordingCrew) -> Versions:
    settings = with_page_token_key(Settings(index=link))
    return Versions(settings, load(settings), crew)


def states(versions: Versions) -> list[VersionState]:
    return [one.state for one in versions.catalogue()]


def test_a_version_takes_over_and_can_be_rolled_back(
    versions: Versions, crew: RecordingCrew
) -> None:
    first, second = (one.name for one in versions.catalogue())
    assert [VersionState.AVAILABLE, VersionState.ACTIVE] == states(versions)
    versions.verify(first)
    assert crew.history == []
    versions.activate(first)
    assert first == crew.history[-1].active.name
    assert [VersionState.ACTIVE, VersionState.PREVIOUS] == states(versions)
    versions.roll_back()
    assert second == crew.history[-1].active.name
    versions.activate(second)
    assert len(crew.history) == 2


def test_a_version_that_was_replaced_leaves_memory(versions: Versions, crew: RecordingCrew) -> None:
    """Although what existed at a change of version is hidden from the garbage collector."""
    first, second = (one.name for one in versions.catalogue())
    versions.activate(first)  # settles the memory, in which the second's remains may be
    versions.activate(second)
    replaced = weakref.ref(versions.served.active)
    request = SearchRequest(EmbeddingQuery(np.ones(8, np.float32)))
    result = versions.served.active.engine.search(request)
    versions.served.active.counter(result.plan).inc()
    versions.served.active.plan_fields(result.plan)
    engine = weakref.ref(versions.served.active.engine)
    settle_memory()
    versions.activate(first)
    crew.history.clear()
    assert (None, None) == (replaced(), engine())


def test_there_must_be_something_to_roll_back_to(versions: Versions) -> None:
    with pytest.raises(NoPreviousVersionError, match="activate one by its name"):
        versions.roll_back()


@pytest.mark.parametrize("name", ["", "..", "../published", "current", "20200101T000000Z-00000000"])
def test_only_versions_beside_the_one_that_answers_are_known(versions: Versions, name: str) -> None:
    for method in (versions.verify, versions.activate):
        with pytest.raises(VersionUnknownError, match="there are 2"):
            method(name)


def test_a_canary_answers_its_share_and_always_the_same_searches(
    versions: Versions, crew: RecordingCrew
) -> None:
    first, second = (one.name for one in versions.catalogue())
    versions.activate(first, 0.25)
    served = crew.history[-1]
    searches = [b"search %d" % i for i in range(4000)]
    answering = [served.version_for(search).name for search in searches]
    assert answering == [served.version_for(search).name for search in searches]
    assert Counter(answering)[first] == pytest.approx(1000, abs=150)
    assert [VersionState.CANARY, VersionState.ACTIVE] == states(versions)
    versions.roll_back()
    assert (second, None) == (crew.history[-1].active.name, crew.history[-1].canary)
    versions.activate(first, 0.25)
    canary = crew.history[-1].canary
    versions.activate(first)
    assert crew.history[-1].active is canary  # it is not loaded a second time


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_lies_between_nothing_and_all(versions: Versions, share: float) -> None:
    with pytest.raises(LimitExceededError, match="traffic_share must be above 0"):
        versions.activate(versions.catalogue()[0].name, share)


def test_the_active_version_is_no_canary(versions: Versions) -> None:
    with pytest.raises(LimitExceededError, match="another version beside it"):
        versions.activate(versions.served.active.name, 0.5)


def test_a_damaged_version_is_refused_and_the_reason_kept(
    versions: Versions, crew: RecordingCrew, link: Path
) -> None:
    first = versions.catalogue()[0].name
    trees = link.parent / first / "annoy" / "trees.ann"
    trees.write_bytes(trees.read_bytes()[:-1])
    n_refused = versions._n_refused._value.get()
    with pytest.raises(VersionRefusedError, match=r"expected .* bytes"):
        versions.verify(first)  # which changes nothing, and alarms nobody
    assert n_refused == versions._n_refused._value.get()
    with pytest.raises(VersionRefusedError, match=r"expected .* bytes") as caught:
        versions.activate(first)
    assert n_refused + 1 == versions._n_refused._value.get()
    assert str(link.parent) not in str(caught.value)
    assert crew.history == []
    summary = versions.catalogue()[0]
    assert VersionState.REFUSED is summary.state
    assert "expected" in summary.refusal


def test_a_version_in_a_folder_of_another_name_is_refused(versions: Versions, link: Path) -> None:
    first = versions.catalogue()[0].name
    other = f"{first[:-8]}deadbeef"
    shutil.copytree(link.parent / first, link.parent / other)
    with pytest.raises(VersionRefusedError, match=f"{other} holds version {first}: name its"):
        versions.activate(other)


def test_an_index_of_other_vectors_does_not_deliver_its_recall(
    versions: Versions, link: Path
) -> None:
    """Its hashes are right: only searching shows that trees and embeddings are of two corpora."""
    first = versions.catalogue()[0].name
    other_trees = (link.parent / first / "annoy" / "trees.ann").read_bytes()
    changed = publish_changed(link, "annoy/trees.ann", other_trees)
    with pytest.raises(VersionRefusedError, match=r"annoy promises a recall@10 of .* and delivers"):
        versions.activate(changed)


def test_queries_of_another_dimension_do_not_belong(versions: Versions, link: Path) -> None:
    path = link.parent / "queries.npy"
    np.save(path, np.ones((5, 9), dtype=np.float32))
    changed = publish_changed(link, "tuning_queries.npy", path.read_bytes())
    with pytest.raises(VersionRefusedError, match=r"tuning_queries.npy has shape \(5, 9\)"):
        versions.activate(changed)


def test_a_version_that_cannot_take_over_is_refused(
    versions: Versions, crew: RecordingCrew
) -> None:
    first, second = (one.name for one in versions.catalogue())
    crew.fails = True
    with pytest.raises(VersionRefusedError, match="a worker died"):
        versions.activate(first)
    assert second == versions.served.active.name


def test_a_version_that_fails_in_an_unforeseen_way_is_refused_as_well(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> IndexVersion:
        raise ZeroDivisionError

    monkeypatch.setattr("server.versions.load", fail)
    with capture_logs() as logs, pytest.raises(VersionRefusedError):
        versions.activate(versions.catalogue()[0].name)
    assert ["index version fails to load"] == [one["event"] for one in logs]


def test_the_link_is_followed_when_it_changes(
    versions: Versions, crew: RecordingCrew, link: Path
) -> None:
    first, second = (one.name for one in versions.catalogue())
    versions.follow_link()
    assert crew.history == []
    point_at(link, first)
    versions.follow_link()
    assert first == versions.served.active.name
    versions.activate(second)  # by name, against the link
    versions.follow_link()
    assert second == versions.served.active.name


def test_a_link_to_the_link_is_followed_as_well(
    link: Path, tmp_path: Path, crew: RecordingCrew
) -> None:
    live = tmp_path / "live"
    live.symlink_to(link)
    settings = with_page_token_key(Settings(index=live))
    versions = Versions(settings, load(settings), crew)
    first, second = (one.name for one in versions.catalogue())
    assert second == versions.linked() == versions.served.active.name
    point_at(link, first)
    versions.follow_link()
    assert first == versions.served.active.name


def test_a_refused_link_is_tried_again_less_and_less_often(
    versions: Versions, link: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while a version is still being copied: it is taken when it is complete."""
    first, second = (one.name for one in versions.catalogue())
    trees = link.parent / first / "annoy" / "trees.ann"
    complete = trees.read_bytes()
    trees.write_bytes(complete[:100])
    point_at(link, first)
    tries = []

    def counted_load(settings: Settings, directory: Path) -> IndexVersion:
        tries.append(clock.now)
        return load(settings, directory)

    monkeypatch.setattr("server.versions.load", counted_load)
    look_for(40, versions, clock)
    assert TRIES == tries
    assert second == versions.served.active.name
    trees.write_bytes(complete)
    clock.now += 60.0
    versions.follow_link()
    assert first == versions.served.active.name


def test_a_linked_version_that_cannot_take_over_is_tried_less_and_less_often(
    versions: Versions, crew: RecordingCrew, link: Path, clock: Clock
) -> None:
    """It loads each time, and yet each pause is longer than the one before."""
    first, second = (one.name for one in versions.catalogue())
    crew.fails = True
    point_at(link, first)
    look_for(40, versions, clock)
    assert TRIES == [when for when, served in crew.failures if served.active.name == first]
    assert second == versions.served.active.name
    crew.fails = False
    clock.now += 60.0
    versions.follow_link()
    assert first == versions.served.active.name


def test_a_linked_version_is_taken_although_somebody_verified_it_first(
    versions: Versions, link: Path, clock: Clock
) -> None:
    first = versions.catalogue()[0].name
    trees = link.parent / first / "annoy" / "trees.ann"
    complete = trees.read_bytes()
    trees.write_bytes(complete[:100])
    point_at(link, first)
    versions.follow_link()
    trees.write_bytes(complete)
    versions.verify(first)
    assert [VersionState.AVAILABLE, VersionState.ACTIVE] == states(versions)
    clock.now += 1.0
    versions.follow_link()
    assert first == versions.served.active.name


def test_a_linked_version_that_arrives_after_its_link_is_taken(
    versions: Versions, link: Path, clock: Clock
) -> None:
    """As where files are copied to this machine in any order."""
    first, second = (one.name for one in versions.catalogue())
    late = link.parent / first
    late.rename(link.parent / "copying")
    point_at(link, first)
    n_refused = versions._n_refused._value.get()
    with capture_logs() as logs:
        versions.follow_link()
    assert [first] == [one["index_version"] for one in logs]
    assert n_refused + 1 == versions._n_refused._value.get()
    (link.parent / "copying").rename(late)
    versions.follow_link()
    assert second == versions.served.active.name  # not before the pause is over
    clock.now += 1.0
    versions.follow_link()
    assert first == versions.served.active.name


def test_what_somebody_activates_is_not_replaced_by_what_the_link_was_refused(
    versions: Versions, link: Path, clock: Clock
) -> None:
    first, second = (one.name for one in versions.catalogue())
    third = publish_changed(link, "embeddings.npy", b"")
    versions.follow_link()
    versions.activate(first)
    with capture_logs() as logs:
        look_for(40, versions, clock)
    assert logs == []
    assert first == versions.served.active.name
    assert {first, second, third} == {one.name for one in versions.catalogue()}


def test_a_link_that_moved_while_the_server_started_is_followed(
    link: Path, crew: RecordingCrew
) -> None:
    settings = with_page_token_key(Settings(index=link))
    active = load(settings)
    other = next(one.name for one in link.parent.glob("2*") if one.name != active.name)
    point_at(link, other)
    versions = Versions(settings, active, crew)
    versions.follow_link()
    assert other == versions.served.active.name


def look_for(seconds: int, versions: Versions, clock: Clock) -> None:
    """Look at the link once a second."""
    for _ in range(seconds):
        versions.follow_link()
        clock.now += 1.0


def test_a_link_that_is_gone_changes_nothing(versions: Versions, link: Path) -> None:
    link.unlink()
    with capture_logs() as logs:
        versions.follow_link()
        versions.follow_link()
    assert ["the link is gone, or leads nowhere"] == [one["event"] for one in logs]
    assert versions.linked() is None


def test_a_folder_that_a_link_calls_otherwise_is_served_and_left_alone(
    link: Path, crew: RecordingCrew, clock: Clock
) -> None:
    shutil.copytree(link.parent / current(link), link.parent / "prod")
    point_at(link, "prod")
    settings = with_page_token_key(Settings(index=link))
    versions = Versions(settings, load(settings), crew)
    n_refused = versions._n_refused._value.get()
    with capture_logs() as logs:
        look_for(40, versions, clock)
    assert ([], n_refused) == (logs, versions._n_refused._value.get())


def test_a_version_served_by_name_has_no_link(root: Path, crew: RecordingCrew) -> None:
    settings = with_page_token_key(Settings(index=root / current(root / "current")))
    versions = Versions(settings, load(settings), crew)
    with capture_logs() as logs:
        versions.follow_link()
    assert logs == []
    assert versions.linked() is None
    assert len(versions.catalogue()) == 2


def test_only_what_is_new_is_warmed_up(
    link: Path, crew: RecordingCrew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done on the event loop, where calls wait meanwhile."""
    settings = with_page_token_key(Settings(index=link))
    versions = Versions(settings, load(settings), crew)
    first, second = (one.name for one in versions.catalogue())
    warmed: list[str] = []
    monkeypatch.setattr(IndexVersion, "warm_up", lambda version: warmed.append(version.name))

    async def change() -> None:
        worker = Worker(versions.served, settings)
        await worker.start(0)
        versions.activate(first, 0.5)
        await worker.take_over(versions.served)
        versions.activate(first)
        await worker.take_over(versions.served)
        await worker.stop()

    asyncio.run(change())
    assert [second, first] == warmed


def test_parts_that_do_not_belong_together_are_found(
    tower_index: Path, bundle: IndexBundle, tmp_path: Path
) -> None:
    """Users' embeddings of another dimension, correctly hashed."""
    link = copied(tower_index.parent, tmp_path / "indexes")
    assert bundle.query is not None
    known = bundle.query.query_embeddings
    assert known is not None
    path = tmp_path / "embeddings.npy"
    np.save(path, known[:, :-1])
    publish_changed(link, "query/query_embeddings.npy", path.read_bytes())
    with pytest.raises(BundleError, match="it is of other towers"):
        load(with_page_token_key(Settings(index=link)))


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(1.0, 5.0)
    assert [1.0, 2.0, 4.0, 5.0, 5.0] == [backoff.pause_seconds() for _ in range(5)]
    backoff.reset()
    assert backoff.pause_seconds() == 1.0
