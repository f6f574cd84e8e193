"""Damage in the store: it is found before use, named, set aside, and never condemns what is sound."""

import errno
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from faults.tap import error_at, tapped
from test_store import NODE, OTHER_STATE, PAYLOAD, STATE_SHA256, damaged, make, payload_of

from persona_lab.design import Node
from persona_lab.errors import EnvironmentFault
from persona_lab.store import NodeDamaged, Store
from persona_lab.store.moves import MARK, identity, set_aside
from persona_lab.store.seal import inspect


def truncate(folder: Path) -> str:
    (folder / "state.json").write_bytes(b"{")
    return f"state.json: has 1 bytes and sha256 {sha256(b'{').hexdigest()}, the manifest expects 13 bytes and sha256 {STATE_SHA256}"


def flip(folder: Path) -> str:
    (folder / "state.json").write_bytes(OTHER_STATE)
    return f"state.json: has sha256 {sha256(OTHER_STATE).hexdigest()}, the manifest expects {STATE_SHA256}"


def delete(folder: Path) -> str:
    (folder / "adapter/weights.bin").unlink()
    return "weights.bin: is missing"


def add(folder: Path) -> str:
    (folder / "adapter/more.bin").touch()
    return "more.bin: is not in the manifest"


def link(folder: Path) -> str:
    (folder / "state.json").rename(folder.parent / "elsewhere")
    (folder / "state.json").symlink_to(folder.parent / "elsewhere")
    return "state.json: is a link"


def uncommit(folder: Path) -> str:
    (folder / "COMMIT").unlink()
    return "is not a committed node"


def stale(folder: Path) -> str:
    (folder / "manifest.json").write_text("{}")
    return "manifest.json: has sha256 44136fa3"


@pytest.mark.parametrize("harm", [truncate, flip, delete, add, link, uncommit, stale])
def test_damage_is_found_before_use_and_named(tmp_path: Path, harm: Callable[[Path], str]) -> None:
    make(Store(tmp_path))
    message = harm(Store(tmp_path).folder(NODE))
    with pytest.raises(NodeDamaged) as caught:
        Store(tmp_path).open(NODE)
    assert message in str(caught.value)
    assert "PL5103" in str(caught.value)
    assert Store(tmp_path).has(NODE) == (harm in (flip, add)), "sizes tell all but these"


def test_swapped_nodes_and_swapped_files_are_found(tmp_path: Path) -> None:
    store, other = Store(tmp_path), Node("stage", {"steps": 64})
    make(store, payload={"a": b"one", "b": b"two"})
    make(store, other)
    a, b = store.folder(NODE) / "a", store.folder(NODE) / "b"
    a.write_bytes(b"two")
    b.write_bytes(b"one")
    with pytest.raises(NodeDamaged) as caught:
        Store(tmp_path).open(NODE)
    assert [Path(problem.where).name for problem in caught.value.problems] == ["a", "b"]
    store.folder(NODE).rename(tmp_path / "aside")
    store.folder(other).rename(store.folder(NODE))
    with pytest.raises(NodeDamaged, match=f"is of node {other.id}, expected {NODE.id}"):
        Store(tmp_path).open(NODE)


def test_no_byte_can_change_unnoticed(tmp_path: Path) -> None:
    make(Store(tmp_path))
    folder = Store(tmp_path).folder(NODE)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for at in range(0, len(whole), 1 if len(whole) < 300 else 11):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            with pytest.raises(NodeDamaged):
                inspect(folder, NODE.id, digests=True)
        path.write_bytes(whole)
    assert Store(tmp_path).open(NODE) == folder


def empty(store: Store) -> None:
    """An interrupted copy has left a folder without files."""
    store.folder(NODE).mkdir(parents=True)


def not_a_folder(store: Store) -> None:
    """A file stands where the node should."""
    store.folder(NODE).parent.mkdir(parents=True)
    store.folder(NODE).touch()


@pytest.mark.parametrize("harm", [damaged, empty, not_a_folder])
def test_a_damaged_node_is_made_anew_and_a_slow_worker_cannot_move_the_new_one(tmp_path: Path, harm: Callable[[Store], None]) -> None:
    harm(store := Store(tmp_path))
    seen = identity(store.folder(NODE))
    assert seen is not None
    make(Store(tmp_path))
    assert (tmp_path / "damaged" / f"{NODE.id}-{seen.st_ino}").exists() == (harm is not empty), "what is empty is simply replaced"
    (tmp_path / "damaged").mkdir(exist_ok=True)
    assert set_aside(store.folder(NODE), seen, tmp_path / "damaged", "seen long ago") is None
    assert payload_of(Store(tmp_path).open(NODE)) == PAYLOAD


def test_what_is_found_damaged_before_use_is_set_aside_with_the_reason_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(Store(tmp_path))
    assert Store(tmp_path).sound(NODE)
    message = flip(Store(tmp_path).folder(NODE))
    assert Store(tmp_path).has(NODE), "its size tells nothing"
    store = Store(tmp_path)
    assert not store.sound(NODE)
    assert not store.has(NODE)
    [aside] = (tmp_path / "damaged").iterdir()
    assert message in (aside / MARK).read_text()
    assert message in caplog.text
    assert str(aside) in caplog.text
    make(store)
    assert store.sound(NODE)
    assert payload_of(store.open(NODE)) == PAYLOAD


@pytest.mark.parametrize("fault", [errno.EMFILE, errno.EACCES, errno.ENOMEM])
def test_the_readers_own_trouble_does_not_condemn_a_node(tmp_path: Path, fault: int) -> None:
    make(Store(tmp_path))
    for look in (Store.has, Store.sound, Store.open, Store.manifest):
        for number in (1, 2):
            with pytest.raises(EnvironmentFault, match=r"PL5104.*cannot be read"), tapped(error_at(number, fault, {"open"})):
                look(Store(tmp_path), NODE)
    assert not (tmp_path / "damaged").exists()
    assert payload_of(Store(tmp_path).open(NODE)) == PAYLOAD


def test_a_second_result_does_not_hide_that_the_first_is_damaged(tmp_path: Path) -> None:
    make(Store(tmp_path))
    flip(Store(tmp_path).folder(NODE))
    assert make(Store(tmp_path)).conflict is None
    assert payload_of(Store(tmp_path).open(NODE)) == PAYLOAD
    assert Store(tmp_path).conflicts() == []
