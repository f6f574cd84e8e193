"""Checkpoints of a stack on the disk: which one is taken up, which ones go, and how often it may be tried."""

import json
import shutil
from pathlib import Path

import pytest

from persona_lab.store.checkpoints import Checkpoints, Stalled, stacks_under_way
from persona_lab.store.seal import NodeDamaged

IDS = ("0" * 64, "1" * 64)


# ------------------------------------------------------------------ checkpoints on disk
def keep(checkpoints: Checkpoints, step: int) -> Path:
    with checkpoints.write(step) as folder:
        (folder / "state.json").write_text(json.dumps({"step": step}))
    place = checkpoints.newest()
    assert place is not None
    return place


def test_only_the_newest_checkpoint_stays_and_a_damaged_one_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    checkpoints = Checkpoints(tmp_path, IDS)
    checkpoints.begin(0, 5)
    older = keep(checkpoints, 3)
    shutil.copytree(older, tmp_path / "aside")
    newer = keep(checkpoints, 10)
    assert not older.exists(), "older ones go when the newer one has been read back"
    (tmp_path / "aside").rename(older)  # as if the worker had died before it pruned
    assert checkpoints.newest() == newer
    (newer / "state.json").write_text(json.dumps({"step": 11}))
    assert checkpoints.newest() == older
    assert "sha256" in caplog.text
    (older / "COMMIT").unlink()
    assert checkpoints.newest() is None


def test_a_checkpoint_of_other_members_or_another_step_is_refused(tmp_path: Path):
    ours, others = Checkpoints(tmp_path, IDS), Checkpoints(tmp_path, IDS[::-1])
    place = keep(ours, 3)
    place.rename(place.with_name("step-00000007-0123"))
    assert ours.newest() is None
    keep(others, 3).rename(ours.folder / "step-00000003-0123")
    assert ours.newest() is None


def test_a_checkpoint_that_does_not_read_back_prunes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints = Checkpoints(tmp_path, IDS)
    older = keep(checkpoints, 3)

    def torn(folder: Path) -> None:
        for file in folder.glob("step-00000005-*/state.json"):
            file.write_text("torn")

    monkeypatch.setattr("persona_lab.store.moves.sync_folder", torn)  # a disk that spoils what it was just told to keep
    with pytest.raises(NodeDamaged):
        keep(checkpoints, 5)
    assert checkpoints.newest() == older


def test_attempts_that_gain_nothing_end_and_those_that_do_are_forgiven(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, IDS)
    for _ in range(3):
        checkpoints.begin(4, 3)
    with pytest.raises(Stalled, match=r"PL1107.*3 attempts went on from step 4.*machine\.attempts"):
        checkpoints.begin(4, 3)
    checkpoints.begin(5, 3)
    checkpoints.moved()
    checkpoints.begin(4, 3)
    assert [stack.members for stack in stacks_under_way(tmp_path)] == [IDS]
