"""The store keeps its promise: a node is there whole, or not at all, whatever is killed, raced, cut off or flipped."""

import errno
import json
import os
import resource
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
from faults.tap import error_at, tapped
from faults.trials import child, race
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_lab.design import Node
from persona_lab.errors import ConfigError, EnvironmentFault, LabError
from persona_lab.store import NodeDamaged, NodeMissing, Store, read_json, write_json, write_jsonl, write_text
from persona_lab.store.versions import PACKAGES

NODE = Node("stage", {"steps": 32}, {"base": Node("base", {"seed": 0})})
PAYLOAD = {"adapter/weights.bin": b"weights of John", "state.json": b'{"step": 32}\n'}
OTHER_STATE = b'{"step": 33}\n'
STATE_SHA256 = sha256(PAYLOAD["state.json"]).hexdigest()


def make(store: Store, node: Node = NODE, payload: dict[str, bytes] = PAYLOAD):
    with store.attempt(node) as attempt:
        for name, content in payload.items():
            path = attempt.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    return attempt


def payload_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in json.loads((folder / "manifest.json").read_text())["payload"]}


def damaged(store: Store) -> None:
    """A node that has lost a file stands in the way."""
    make(store)
    (store.folder(NODE) / "state.json").unlink()


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


def test_a_payload_writer_that_meets_a_full_disk_gets_the_error_contract(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"PL5104.*weights\.bin.*No space left.*Free some space"), tapped(error_at(1, errno.ENOSPC, {"write"})):
        make(Store(tmp_path))
    with pytest.raises(FileNotFoundError), Store(tmp_path).attempt(NODE):
        (tmp_path / "absent").read_bytes()


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
    assert set(manifest["versions"]) == {"python", *PACKAGES}
    assert manifest["platform"].startswith(os.uname().sysname)
    recipe = manifest["recipe"]
    again = Node(recipe["kind"], recipe["fields"], {role: NODE.inputs[role] for role in recipe["inputs"]})
    assert again.id == NODE.id == manifest["id"]
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


def test_importing_the_store_is_light() -> None:
    heavy = "import sys, persona_lab.store; sys.exit(bool({'torch', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", heavy], check=False).returncode == 0


def test_every_error_of_the_store_is_a_lab_error_with_its_exit_code() -> None:
    assert issubclass(NodeMissing, LabError)
    assert NodeMissing.exit_code == NodeDamaged.exit_code == 5


@settings(max_examples=20)
@given(payload=st.dictionaries(st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?\.bin", fullmatch=True), st.binary(max_size=40), min_size=1, max_size=4), chance=st.randoms())
def test_any_payload_comes_back_and_any_changed_byte_of_it_is_named(tmp_path_factory: pytest.TempPathFactory, payload: dict[str, bytes], chance: Random) -> None:
    store = Store(tmp_path_factory.mktemp("any"))
    make(store, payload=payload)
    folder = Store(store.root).open(NODE)
    assert payload_of(folder) == payload
    name = chance.choice([*payload, "manifest.json", "COMMIT"])
    data = bytearray((folder / name).read_bytes() or b"\0")
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    (folder / name).write_bytes(data)
    with pytest.raises(NodeDamaged) as caught:
        Store(store.root).open(NODE)
    named = {Path(problem.where).name for problem in caught.value.problems}
    assert named <= {"manifest.json", "COMMIT"} if name in ("manifest.json", "COMMIT") else named == {Path(name).name}
