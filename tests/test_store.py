"""The store keeps its promise: a node is there whole, or not at all, whatever is killed, raced, cut off or flipped."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from persona_lab.design import Node
from persona_lab.errors import ConfigError, EnvironmentFault, LabError
from persona_lab.store import NodeDamaged, NodeMissing, Store, read_json, write_json, write_jsonl, write_text
from persona_lab.store.lease import _evict
from persona_lab.store.nodes import _rename
from persona_lab.store.seal import damage, git_commit, versions

NODE = Node("stage", {"steps": 32}, {"base": Node("base", {"seed": 0})})
PAYLOAD = {"adapter/weights.bin": b"weights of John", "state.json": b'{"step": 32}\n'}
OTHER_STATE = b'{"step": 33}\n'


def make(store: Store, node: Node = NODE, payload: dict[str, bytes] = PAYLOAD):
    with store.attempt(node) as attempt:
        for name, content in payload.items():
            path = attempt.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    return attempt


def payload_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in json.loads((folder / "manifest.json").read_text())["payload"]}


def child(action: Callable[[], None]) -> int:
    """Runs in a process of its own; 0 when it ended well, negative when a signal killed it."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        action()
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


def race(actions: list[Callable[[], None]]) -> None:
    """Runs all at once, each in a process of its own; all must end well."""
    gate, starter = os.pipe()
    running = []
    for action in actions:
        running.append(os.fork())
        if not running[-1]:
            os.close(starter)
            os.read(gate, 1)
            os._exit(child(action))
    os.close(starter)
    os.close(gate)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in running] == [0] * len(actions)


def die_at(step: int) -> None:
    """From now on the process is killed at its `step`-th use of a file; when it was flushing one, half of that is lost."""
    count, flush = 0, os.fsync

    def before(event: str, arguments: tuple = ()) -> None:
        nonlocal count
        if event == "open" or event.startswith(("os.", "shutil.")):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    def fsync(handle: int) -> None:
        if count == step - 1 and os.path.isfile(path := os.readlink(f"/proc/self/fd/{handle}")):
            os.truncate(path, os.path.getsize(path) // 2)
        before("os.fsync")
        flush(handle)

    os.fsync = fsync
    sys.addaudithook(before)


def nothing(store: Store) -> None:
    """A fresh store."""


def damaged(store: Store) -> None:
    """A node that has lost a file stands in the way."""
    make(store)
    (store.folder(NODE) / "state.json").unlink()


def rival(store: Store) -> None:
    """Another attempt has committed other bytes."""
    make(store, payload={"state.json": b"other"})


@pytest.mark.parametrize("before", [nothing, damaged, rival])
def test_a_commit_killed_at_any_file_operation_leaves_nothing_or_the_whole_node(tmp_path: Path, before: Callable[[Store], None]) -> None:
    versions(), git_commit()
    for step in range(1, 1000):
        root = tmp_path / str(step)
        before(Store(root))
        ended = child(lambda step=step, root=root: (die_at(step), make(Store(root))))
        found = Store(root)
        if found.has(NODE) or before is rival:
            folder = found.open(NODE)
            assert payload_of(folder) == ({"state.json": b"other"} if before is rival else PAYLOAD)
            assert (folder / "COMMIT").exists()
        elif before is nothing:
            assert not (root / "stage").exists() or not list((root / "stage").iterdir())
        assert child(lambda root=root: make(Store(root)) and None) == 0
        assert payload_of(Store(root).open(NODE)) == ({"state.json": b"other"} if before is rival else PAYLOAD)
        assert [kind for kind, _, _ in Store(root).nodes()] == ["stage"]
        if not ended:
            break
        assert ended == -signal.SIGKILL
    assert 30 < step < 999, "the kill must have reached every operation of the commit"


def test_everything_is_on_the_disk_before_the_rename_and_the_name_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: dict[int, int] = {}
    renamed: list[Path] = []
    flush, rename = os.fsync, os.rename

    def fsync(handle: int) -> None:
        flush(handle)
        flushed[os.fstat(handle).st_ino] = os.fstat(handle).st_mtime_ns

    def checked(source: Path, target: Path) -> None:
        for path in (source, *source.rglob("*")):
            assert flushed.get(path.stat().st_ino) == path.stat().st_mtime_ns, f"{path} may be lost"
        rename(source, target)
        flushed.clear()
        renamed.append(target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", checked)
    store = Store(tmp_path / "new" / "store")
    make(store)
    assert renamed == [store.folder(NODE)]
    assert store.folder(NODE).parent.stat().st_ino in flushed


def test_eight_workers_race_and_one_commits_each_node(tmp_path: Path) -> None:
    nodes = [Node("stage", {"steps": step}) for step in range(4)]

    def work(worker: int) -> None:
        tokens = {node.id: make(Store(tmp_path / "store"), node).token for node in nodes}
        write_json(tmp_path / f"{worker}.json", tokens)

    race([lambda worker=worker: work(worker) for worker in range(8)])
    store = Store(tmp_path / "store")
    said = [read_json(tmp_path / f"{worker}.json") for worker in range(8)]
    for node in nodes:
        assert payload_of(store.open(node)) == PAYLOAD
        assert [tokens[node.id] for tokens in said].count(store.manifest(node)["attempt"]) == 1
    assert store.conflicts() == store.attempts() == []


def test_a_second_different_result_is_kept_and_reported_and_the_first_stays(tmp_path: Path) -> None:
    race([lambda worker=worker: make(Store(tmp_path), payload={"same": b"1", "rows": b"%d" % worker}) and None for worker in range(4)])
    store = Store(tmp_path)
    assert len(store.conflicts()) == 3
    late = make(store, payload={"same": b"1", "more": b"2"})
    assert late.conflict is not None
    assert late.conflict.files == ("more", "rows")
    assert payload_of(late.conflict.folder) == {"same": b"1", "more": b"2"}
    assert payload_of(store.open(NODE))["same"] == b"1"
    assert make(store, payload=payload_of(store.open(NODE))).conflict is None


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert not (tmp_path / "store").exists()

    def fail(error: type[BaseException], keep: bool) -> None:
        with store.attempt(NODE) as attempt:
            attempt.keep_on_error = keep
            write_text(attempt.folder / "half", "half")
            raise error

    for error, keep in ((RuntimeError, False), (KeyboardInterrupt, False), (RuntimeError, True)):
        with pytest.raises(error):
            fail(error, keep)
        assert not store.has(NODE)
        assert [[path.name for path in folder.iterdir()] for folder in store.attempts()] == [["half"]] * keep


@pytest.mark.parametrize("name", ["COMMIT", "manifest.json"])
def test_a_payload_cannot_forge_the_seal(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make(Store(tmp_path), payload={name: b"{}"})
    assert Store(tmp_path).attempts() == []


def test_a_payload_cannot_hold_links(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="PL5105"), Store(tmp_path).attempt(NODE) as attempt:
        (attempt.folder / "passwd").symlink_to("/etc/passwd")
    assert Store(tmp_path).attempts() == []


def test_a_full_disk_commits_nothing_and_names_the_place(tmp_path: Path) -> None:
    def fill() -> None:
        write_text(tmp_path / "old.txt", "old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (256, 256))
        with pytest.raises(EnvironmentFault, match=r"PL5104.*old\.txt.*cannot be written"):
            write_text(tmp_path / "old.txt", "new" * 1000)
        with pytest.raises(EnvironmentFault, match="PL5104"):
            make(Store(tmp_path / "store"), payload={"rows": b"short"})

    assert child(fill) == 0
    assert (tmp_path / "old.txt").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.txt", "store"]
    assert not Store(tmp_path / "store").has(NODE)
    assert Store(tmp_path / "store").attempts() == []


@pytest.mark.parametrize(("happens", "fault"), [(True, errno.ENOENT), (False, errno.ENOENT), (False, errno.EXDEV), (False, errno.EIO)])
def test_a_rename_that_reports_failure_counts_only_when_it_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happens: bool, fault: int) -> None:
    rename = os.rename

    def unsure(source: Path, target: Path) -> None:
        if happens:
            rename(source, target)
        raise OSError(fault, os.strerror(fault))

    store = Store(tmp_path)
    with monkeypatch.context() as network:
        network.setattr(os, "rename", unsure)
        if happens:
            make(store)
        else:
            with pytest.raises(EnvironmentFault, match="PL5104"):
                make(store)
    assert Store(tmp_path).has(NODE) == happens
    assert store.attempts() == []


def truncate(folder: Path) -> str:
    (folder / "state.json").write_bytes(b"{")
    return "state.json: has 1 bytes, the manifest expects 13"


def flip(folder: Path) -> str:
    (folder / "state.json").write_bytes(OTHER_STATE)
    return f"state.json: has sha256 {sha256(OTHER_STATE).hexdigest()}, the manifest expects {sha256(PAYLOAD['state.json']).hexdigest()}"


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
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            assert damage(folder, NODE.id, digests=True), (path, at)
        path.write_bytes(whole)
    assert Store(tmp_path).open(NODE) == folder


def test_a_damaged_node_is_made_anew_and_a_slow_worker_cannot_move_the_new_one(tmp_path: Path) -> None:
    damaged(store := Store(tmp_path))
    assert not Store(tmp_path).has(NODE)
    seen = tmp_path / "damaged" / f"{NODE.id}-{store.folder(NODE).stat().st_ino}"
    make(Store(tmp_path))
    assert seen.is_dir()
    assert not _rename(store.folder(NODE), seen)
    assert payload_of(Store(tmp_path).open(NODE)) == PAYLOAD


def test_manifest_says_what_made_the_node_and_names_no_place(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.attempt(NODE) as attempt:
        attempt.note(threads=1)
        write_jsonl(attempt.folder / "rows.jsonl", [{"prob": 0.5}])
        with pytest.raises(ValueError, match="JSON"):
            attempt.note(loss=float("nan"))
    manifest = store.manifest(NODE)
    assert manifest["recipe"] == NODE.recipe
    assert manifest["notes"] == {"threads": 1}
    assert set(manifest["versions"]) == {"python", "torch", "transformers", "peft", "accelerate", "numpy"}
    assert store.payload_bytes(manifest) == len('{"prob":0.5}\n')
    assert str(tmp_path) not in json.dumps(manifest)
    assert os.uname().nodename not in json.dumps(manifest)


def test_nodes_are_listed_and_found_by_the_start_of_their_id(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ConfigError, match="empty"):
        store.find("abc")
    with pytest.raises(NodeMissing, match="PL5102"):
        store.open(NODE)
    made = [NODE, *(Node("scores", {"n": n}) for n in range(20))]
    for node in made:
        make(store, node, {"rows": b""})
    assert [node_id for _, node_id, _ in store.nodes("scores")] == sorted(node.id for node in made[1:])
    assert store.find(NODE.id[:10]) == ("stage", NODE.id)
    for prefix in ("", NODE.id[:6] + "x", next(first for first in "0123456789abcdef" if sum(node.id.startswith(first) for node in made) > 1)):
        with pytest.raises(ConfigError, match="Did you mean") as caught:
            store.find(prefix)
    assert "nodes start with it" in str(caught.value)


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    Store(tmp_path / "store").check_writable()
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match=r"PL5101.*file/store.*Choose|choose"):
        Store(tmp_path / "file" / "store").check_writable()
    assert not list((tmp_path / "store").iterdir())


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


def test_importing_the_store_is_light() -> None:
    heavy = "import sys, persona_lab.store; sys.exit(bool({'torch', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", heavy], check=False).returncode == 0


def test_every_error_of_the_store_is_a_lab_error_with_its_exit_code() -> None:
    assert issubclass(NodeMissing, LabError)
    assert NodeMissing.exit_code == NodeDamaged.exit_code == 5
