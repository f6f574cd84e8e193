"""Leases: one worker tries at a time, the silent are succeeded, and clocks are never compared."""

import json
from pathlib import Path

import pytest
from conftest import ROOT
from faults.trials import race

from persona_lab.design import Node
from persona_lab.store import Store
from persona_lab.store.lease import _evict

NODE = Node("stage", {"steps": 32})


@pytest.fixture
def clock() -> list[float]:
    """Seconds of the observer, moved by hand."""
    return [0.0]


@pytest.fixture
def stores(tmp_path: Path, clock: list[float]) -> tuple[Store, Store]:
    """A holder and an observer on two machines: their clocks are ten million seconds apart."""
    return Store(tmp_path, clock=lambda: 1e7), Store(tmp_path, clock=lambda: clock[0])


def test_a_lease_is_held_by_one_until_released(stores: tuple[Store, Store]) -> None:
    holder, observer = stores
    with holder.lease(NODE) or pytest.fail("nobody holds it") as lease:
        assert lease.held()
        assert observer.lease(NODE) is None
    second = observer.lease(NODE)
    assert second is not None
    assert not lease.held()
    lease.release()
    assert second.held()


def test_a_lease_lives_while_it_beats_and_dies_in_silence(stores: tuple[Store, Store], clock: list[float]) -> None:
    holder, observer = stores
    lease = holder.lease(NODE)
    assert lease is not None
    for _ in range(3):
        assert observer.lease(NODE) is None
        clock[0] += 59
        assert observer.lease(NODE) is None
        assert lease.renew()
        clock[0] += 59
    assert observer.lease(NODE) is None, "the clock starts when the last beat is first seen"
    clock[0] += 60
    stolen = observer.lease(NODE)
    assert stolen is not None
    assert not lease.renew(), "a holder that wakes up finds that it has lost"
    lease.release()
    assert stolen.held()
    assert stolen.renew()


def test_a_torn_lease_dies_like_any_other(stores: tuple[Store, Store], clock: list[float], tmp_path: Path) -> None:
    holder, observer = stores
    assert holder.lease(NODE)
    (tmp_path / "leases" / NODE.id).write_bytes(b"")
    assert observer.lease(NODE) is None
    clock[0] += 60
    assert observer.lease(NODE) is not None


def test_observers_that_race_for_a_dead_lease_leave_one_living(stores: tuple[Store, Store], clock: list[float], tmp_path: Path) -> None:
    holder, observer = stores
    assert holder.lease(NODE)
    assert observer.lease(NODE) is None
    clock[0] += 60

    def take() -> None:
        if lease := observer.lease(NODE):
            (tmp_path / lease.token).touch()

    race([take] * 8)
    assert (tmp_path / json.loads((tmp_path / "leases" / NODE.id).read_text())["token"]).exists()
    assert [path.name for path in (tmp_path / "leases").iterdir()] == [NODE.id]


def test_a_living_lease_moved_by_mistake_is_given_back(stores: tuple[Store, Store]) -> None:
    lease = stores[0].lease(NODE)
    assert lease is not None
    _evict(lease.path, b"what stood there before")
    assert lease.held()


def test_no_lock_of_the_system_is_used() -> None:
    """Where `flock` succeeds for everybody, or for nobody, nothing changes."""
    sources = "".join(file.read_text() for file in (ROOT / "persona_lab" / "store").glob("*.py"))
    assert not [word for word in ("fcntl", "flock", "lockf", "msvcrt", "filelock") if f"import {word}" in sources or f"{word}." in sources]
