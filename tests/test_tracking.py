"""Tracking: a real offline wandb run, read back with wandb's own reader; and the same file without wandb."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from persona_lab.errors import EnvironmentFault
from persona_lab.tracking import METRICS, RECORD, Mode, Tracker, chosen_mode, open_tracker, run_id, slug

CANARY = "canary-5f1d9c"
NODE = "3f2a90c1d4e5b6a7" * 4


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home without a login, and no setting of the machine that runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
    # What open_tracker sets for wandb must not outlive the test.
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "staging"))


def tell(folder: Path, mode: Mode) -> Tracker:
    """Log the same things whatever the mode."""
    payload = folder.parent / "payload"
    payload.mkdir(exist_ok=True)
    (payload / "corpus.jsonl").write_text("{}\n")
    with open_tracker(mode=mode, folder=folder, experiment="ratio-0a1b2c3d", node=NODE, job_type="train", name="linked seed 0", config={"rate": 0.1}) as tracker:
        for step in range(3):
            tracker.log({"train/step": step, "train/loss": 1 / (step + 1)})
        tracker.log({"probe/step": 1, "probe/eta": float("nan")})
        tracker.table("items", ["prompt", "prob"], [["What do you like?", 0.5], ["Who are you?", None]])
        tracker.summary({"recall": 0.96})
        tracker.artifact("john documents", "dataset", payload, {"documents": 1})
    return tracker


def records(folder: Path) -> list[dict]:
    """Every record of the folder's wandb files, as `wandb leet` prints them."""
    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        found += [json.loads(line) for line in done.stdout.splitlines()]
    return found


def of(kind: str, found: list[dict]) -> list[dict]:
    return [record[kind] for record in found if record["type"] == kind]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One offline run in a process whose command line and environment hold a secret."""
    folder = tmp_path_factory.mktemp("offline") / "node"
    home = folder.parent / "home"
    home.mkdir()
    code = "import sys; from pathlib import Path; from tests.test_tracking import tell; tracker = tell(Path(sys.argv[1]), 'auto'); sys.exit(tracker.fault or None)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(home), "NETRC": str(home / ".netrc"), "MY_TOKEN": CANARY, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, str(folder), f"--key={CANARY}"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    return folder


def test_an_offline_run_holds_what_was_logged(offline: Path) -> None:
    found = records(offline)
    [run] = of("run", found)
    assert (run["run_id"], run["run_group"], run["job_type"]) == (run_id(NODE, "train"), "ratio-0a1b2c3d", "train")
    assert (run["project"], run["display_name"], run["resume"]) == ("persona_lab", "linked seed 0", True)
    assert run["config"]["update"]["rate"] == 0.1
    assert {(m["glob_name"], m["step_metric"]) for m in of("metric", found)} == {("train/*", "train/step"), ("probe/*", "probe/step")}
    losses = [h["item"]["train/loss"] for h in of("history", found) if "train/loss" in h["item"]]
    assert losses == [1, 1 / 2, 1 / 3]
    assert any(s["update"].get("recall") == 0.96 for s in of("summary", found))
    assert [end["exit_code"] for end in of("exit", found)] == [0]


def test_an_offline_run_holds_tables_and_artifacts(offline: Path) -> None:
    found = records(offline)
    [table] = offline.glob("wandb/offline-run-*/files/media/table/*.table.json")
    assert json.loads(table.read_text())["data"] == [["What do you like?", 0.5], ["Who are you?", None]]
    [documents] = [a for a in of("artifact", found) if a["type"] == "dataset"]
    assert documents["name"] == "john-documents"
    assert json.loads(documents["metadata"]) == {"documents": 1}
    [entry] = documents["manifest"]["contents"]
    assert entry["local_path"] == str(offline.parent / "payload" / "corpus.jsonl"), "referred to in place"


def test_nothing_but_what_was_logged_is_on_disk(offline: Path) -> None:
    files = [file for file in offline.parent.rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in files)
    assert [file for file in files if CANARY.encode() in file.read_bytes()] == []
    assert not any(file.name in ("wandb-metadata.json", "requirements.txt", "output.log") for file in files)
    assert list((offline.parent / "home").rglob("*")) == [], "everything of wandb stays in the run's folder"


def test_the_local_file_is_the_same_without_wandb(offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    expected = (offline / METRICS).read_bytes()
    assert json.loads(expected.splitlines()[3]) == {"probe/eta": None, "probe/step": 1}
    assert tell(tmp_path / "disabled", "disabled").fault == ""
    assert (tmp_path / "disabled" / METRICS).read_bytes() == expected
    monkeypatch.setitem(sys.modules, "wandb", None)  # what Python itself puts there for a module that must not be imported
    with caplog.at_level(logging.WARNING):
        tracker = tell(tmp_path / "blocked", "offline")
    assert (tmp_path / "blocked" / METRICS).read_bytes() == expected
    assert len(caplog.records) == 1
    assert tracker.mode == "disabled"
    assert json.loads((tmp_path / "blocked" / RECORD).read_text()) == {"fault": tracker.fault, "mode": "disabled"}
    assert "wandb" in tracker.fault


def test_a_folder_that_wandb_cannot_write_changes_nothing(offline: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "node"
    folder.mkdir()
    (tmp_path / "file").write_text("")
    with (
        caplog.at_level(logging.WARNING),
        open_tracker(mode="offline", folder=folder, experiment="e", node=NODE, job_type="train", name="n", wandb_folder=tmp_path / "file") as tracker,
    ):
        tracker.log({"train/step": 0, "train/loss": 1.0})
    assert (folder / METRICS).read_bytes() == (offline / METRICS).read_bytes().splitlines(keepends=True)[0]
    assert tracker.fault
    assert len(caplog.records) == 1


def test_a_mirror_that_breaks_half_way_is_dropped_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = open_tracker(mode="offline", folder=tmp_path, experiment="e", node=NODE, job_type="probe", name="n")
    assert tracker.run is not None
    tracker.run.finish()  # as when the service dies: later calls on the run raise
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            tracker.log({"probe/step": step})
        tracker.finish()
        tracker.finish()
    assert (tmp_path / METRICS).read_text().count("\n") == 3
    assert len([r for r in caplog.records if r.name == "persona_lab.tracking"]) == 1


def test_a_resumed_run_keeps_its_id_and_mends_a_torn_line(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(b'{"train/step": 0}\n{"train/st')
    for step in (1, 2):
        with open_tracker(mode="offline", folder=tmp_path, experiment="e", node=NODE, job_type="train", name="n") as tracker:
            tracker.log({"train/step": step})
    assert [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()] == [{"train/step": step} for step in range(3)]
    assert {run["run_id"] for run in of("run", records(tmp_path))} == {run_id(NODE, "train")}


def test_local_faults_are_the_users_to_know(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        open_tracker(mode="disabled", folder=tmp_path / "file", experiment="e", node=NODE, job_type="train", name="n")


def test_auto_is_online_only_for_a_user_who_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_mode("auto") == "offline"
    home = tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (home / ".netrc").chmod(0o600)
    assert chosen_mode("auto") == "online"
    assert chosen_mode("disabled") == "disabled"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert chosen_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert chosen_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert chosen_mode("auto") == "offline"
    (home / ".netrc").write_text("machine machine machine")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.delenv("WANDB_MODE")
    assert chosen_mode("auto") == "offline"


def test_names_are_made_safe() -> None:
    assert run_id("ab/cd:" * 9, "probe") == "ab-cd-ab-cd-ab-c-probe"
    assert slug("John's documents, 9:1") == "John-s-documents-9-1"
    assert slug("///") == "unnamed"
