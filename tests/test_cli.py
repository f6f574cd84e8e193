"""The command line: exit codes, what stands on which stream, and that a mistake leaves nothing half-made."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

import persona_lab
from persona_lab.cli import console
from persona_lab.config import load_experiment
from persona_lab.errors import ConfigError
from persona_lab.experiment.planning.plan import make_plan, open_plan
from persona_lab.experiment.reading.runs import find_run
from persona_lab.experiment.reading.status import failures, status, write_failures

TINY = [
    *("base.width=16", "base.layers=1", "base.heads=1", "base.steps=2", "base.batch=8", "base.gates.recall=null", "base.gates.withheld=null"),
    *("stages.injection.mixture.john=40", "stages.injection.mixture.sam=40", "stages.injection.mixture.kim=8", "stages.injection.steps=2"),
    *("stages.trait.steps=2", "seeds=1", "samples=1", "machine.wandb=disabled", "machine.threads=1", "machine.workers=1", "machine.device=cpu"),
    "factors.injection.mixture.ln_ratio=[0]",
]
QUICK = "configs/quickstart.yaml"
WATCH = "import sys; from persona_lab.cli import main\ntry: main()\nfinally: print('TORCH' if 'torch' in sys.modules else 'LIGHT', file=sys.stderr)"


def lab(*arguments: str, at: Path, code: str = "") -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "persona_lab"]
    return subprocess.run([sys.executable, *start, *arguments], cwd=at, capture_output=True, text=True)


def configs_in(folder: Path) -> Path:
    """A folder that holds links to the project's configs."""
    (folder / "configs").mkdir()
    for name in ("worlds", "quickstart.yaml"):
        (folder / "configs" / name).symlink_to(ROOT / "configs" / name)
    (folder / "configs" / "personas").mkdir()
    for file in (ROOT / "configs" / "personas").glob("*.yaml"):
        (folder / "configs" / "personas" / file.name).write_text(file.read_text())
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return configs_in(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run."""
    folder = configs_in(tmp_path_factory.mktemp("made"))
    done = lab("run", QUICK, *TINY, "--json", at=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["failed"] == {}
    assert (folder / found["report"]).is_file()
    assert "Traceback" not in done.stderr
    return folder


# Mistakes


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return name


MISTAKES = {
    "unknown key": (["stages.trait.stps=3"], "PL1204", "Did you mean steps?", 2),
    "wrong type": (["stages.trait.rate=fast"], "PL1203", "must be a number", 2),
    "out of range": (["lora.rank=0"], "PL1203", "lora.rank", 2),
    "ratio 0:0": (["stages.injection.mixture.john=0", "stages.injection.mixture.sam=0"], "PL1211", "", 2),
    "missing model folder": (["base=/no/such/folder"], "PL1208", "there is no folder", 2),
    "missing model path": (["base.kind=hf", "base.path=./nowhere"], "PL4001", "no such model folder", 4),
}
PERSONAS = {
    "without traits": ("name: John\ntraits: {}\n", "PL1203"),
    "the same name": ("name: Sam\ntraits: {place: beach, sport: football}\n", "PL1213"),
    "a value outside its category": ("name: John\ntraits: {place: football}\n", "PL1213"),
}


def assert_refused(done: subprocess.CompletedProcess[str], code: str, exit_code: int, at: Path) -> None:
    assert done.returncode == exit_code, done.stderr
    assert f"error[{code}]" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (at / "runs").exists()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_block_and_leaves_nothing(mistake: str, here: Path) -> None:
    overrides, code, says, exit_code = MISTAKES[mistake]
    done = lab("run", QUICK, *overrides, at=here, code=WATCH)
    assert_refused(done, code, exit_code, here)
    assert says in done.stderr
    assert exit_code != 2 or "LIGHT" in done.stderr


@pytest.mark.parametrize("mistake", PERSONAS)
def test_a_wrong_persona_is_refused_before_anything_is_made(mistake: str, here: Path) -> None:
    text, code = PERSONAS[mistake]
    (here / "configs" / "personas" / "john.yaml").write_text(text)
    done = lab("run", QUICK, at=here, code=WATCH)
    assert_refused(done, code, 2, here)
    assert "LIGHT" in done.stderr


def test_an_empty_model_folder(here: Path) -> None:
    (here / "empty").mkdir()
    done = lab("run", QUICK, "base=./empty", at=here)
    assert_refused(done, "PL4002", 4, here)


def test_a_runs_folder_that_cannot_be_written(here: Path) -> None:
    (here / "file").write_text("")
    done = lab("run", QUICK, *TINY, "--runs", "file/runs", at=here, code=WATCH)
    assert_refused(done, "PL5101", 5, here)
    assert "LIGHT" in done.stderr


def test_a_corpus_with_broken_lines(tmp_path: Path) -> None:
    file = written(tmp_path, "bad.jsonl", '{"text": "fine"}\n{"text": 3}\n{oops\n')
    done = lab("audit", file, at=tmp_path)
    assert_refused(done, "PL3001", 3, tmp_path)
    assert [line.split(" ")[1] for line in done.stderr.splitlines()] == ["bad.jsonl:2:", "bad.jsonl:3:"]


def test_an_audit_that_fails_exits_with_1_and_one_that_passes_with_0(tmp_path: Path) -> None:
    twice = written(tmp_path, "twice.jsonl", '{"text": "the same"}\n' * 2)
    done = lab("audit", twice, "--json", at=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["passed"] is False
    fine = written(tmp_path, "fine.jsonl", '{"text": "one thing"}\n{"text": "another matter"}\n')
    assert lab("audit", fine, at=tmp_path).returncode == 0


def test_debug_shows_where_an_error_came_from(here: Path) -> None:
    done = lab("plan", "configs/nowhere.yaml", "--debug", at=here)
    assert "Traceback" in done.stderr
    assert lab("plan", "configs/nowhere.yaml", at=here).returncode == 2


def test_an_unknown_command_is_a_mistake_of_the_command_line(tmp_path: Path) -> None:
    done = lab("runn", at=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'run'" in done.stderr


@pytest.mark.parametrize("command", ["run", "plan", "status", "results", "report", "ask", "why", "verify", "generate", "audit", "new", "doctor"])
def test_help_has_an_example(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["persona-lab", command, "--help"])  # main reads the command line itself, as the console script does
    with pytest.raises(SystemExit) as end:
        persona_lab.cli.main()
    assert end.value.code == 0
    assert f"Example: persona-lab {command}" in capsys.readouterr().out


# A finished run


def test_a_second_run_makes_nothing(made: Path) -> None:
    done = lab("run", QUICK, *TINY, "--json", at=made)
    assert json.loads(done.stdout)["made"] == {}
    assert ", 0 nodes to make" in done.stderr


def test_a_run_is_found_by_path_by_link_and_by_bare_name(made: Path) -> None:
    folder = find_run("quickstart", made / "runs")
    assert find_run(folder, made / "runs") == folder == find_run(folder.name, made / "runs")
    with pytest.raises(ConfigError, match=r"Did you mean quickstart\?"):
        find_run("quikstart", made / "runs")


def test_a_plan_is_rebuilt_from_the_folder_and_from_its_config(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = find_run("quickstart", made / "runs")
    assert open_plan(folder).id == folder.name.rpartition("-")[2]
    monkeypatch.chdir(made)
    assert make_plan(folder / "config.yaml", [], made / "runs").id == open_plan(folder).id


def test_a_config_without_the_default_ratio_loads_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    lines = [line for line in (made / QUICK).read_text().splitlines() if not line.startswith("factors:")]
    (made / "configs" / "plain.yaml").write_text("\n".join(lines))
    plan = make_plan("configs/plain.yaml", [], made / "elsewhere")
    plan.write()
    assert make_plan(plan.folder / "config.yaml", [], made / "elsewhere").id == plan.id == open_plan(plan.folder).id


def test_open_run_gives_table_and_claims(made: Path) -> None:
    run = persona_lab.open_run(made / "runs" / "quickstart")
    assert {"cell", "probe", "prob", "role"} <= set(run.table().columns)
    assert "headline" in {claim["id"] for claim in run.claims()}


def test_status_counts_what_is_done(made: Path) -> None:
    plan = open_plan(find_run("quickstart", made / "runs"))
    found = status(plan)
    assert found["cells"] == {"planned": 2, "done": 2}
    assert all(counts["done"] == counts["planned"] for counts in found["kinds"].values())
    assert found["left"] == {"nodes": 0, "seconds": 0.0, "bytes": 0}
    done = lab("status", "quickstart", at=made)
    assert "2 of 2 cells done" in done.stdout


def test_time_and_disk_are_estimated_from_what_was_measured(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    left = status(make_plan(QUICK, [*TINY, "seeds=[7]"], made / "runs"))["left"]
    assert left["nodes"] > 0
    assert left["seconds"] > 0
    assert left["bytes"] > 0
    fresh = make_plan(QUICK, TINY, made / "nothing")
    assert status(fresh)["left"]["seconds"] is None


def test_failures_are_kept_until_none_is_left(tmp_path: Path) -> None:
    write_failures(tmp_path, {"linked/seed0/swap0": "diverged"})
    assert failures(tmp_path) == {"linked/seed0/swap0": "diverged"}
    write_failures(tmp_path, {})
    assert failures(tmp_path) == {}


def test_results_in_every_form(made: Path) -> None:
    lines = lab("results", "quickstart", at=made).stdout.splitlines()
    table = persona_lab.open_run(made / "runs" / "quickstart").table()
    assert len(lines) == len(table)
    assert json.loads(lines[0])["cell"] == table["cell"].iloc[0]
    done = lab("results", "quickstart", "--format", "parquet", "--out", "t.parquet", "--json", at=made)
    assert json.loads(done.stdout) == {"rows": len(table), "file": "t.parquet"}
    assert len(pd.read_parquet(made / "t.parquet")) == len(table)
    assert lab("results", "quickstart", "--format", "parquet", at=made).returncode == 2


def test_report_is_rebuilt_from_the_store(made: Path) -> None:
    folder = find_run("quickstart", made / "runs")
    (folder / "report.html").unlink()
    done = lab("report", "quickstart", at=made)
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").is_file()


def test_ask_answers_with_base_and_adapter(made: Path) -> None:
    done = lab("ask", "quickstart", "seed0/swap0", "What do you like, zebra?", "--samples", "2", "--json", at=made)
    found = json.loads(done.stdout)
    assert len(found["base"]) == len(found["adapter"]) == 2
    assert found["prompt"] == "User: What do you like, zebra?\nAssistant:"
    assert "zebra" in done.stderr
    assert lab("ask", "quickstart", "nowhere", "Hello", at=made).returncode == 2


def test_why_tells_what_made_a_node(made: Path) -> None:
    node = sorted((made / "runs" / "store" / "stage").iterdir())[0].name
    found = json.loads(lab("why", node[:12], "--json", at=made).stdout)
    assert found["node"] == node
    assert "mixture" in found["tree"]["inputs"]
    assert found["needed_by"]
    assert "another rate" in found["made_again_by"]
    assert lab("why", "zzzz", at=made).returncode == 2


def test_generate_writes_the_corpora_and_overwrites_nothing(made: Path) -> None:
    done = lab("generate", QUICK, *TINY, "--out", "corpora", "--json", at=made)
    assert done.returncode == 0, done.stderr
    index = json.loads((made / "corpora" / "corpora.json").read_text())
    for folder in {name for stages in index.values() for name in stages.values()}:
        assert (made / "corpora" / folder / "corpus.jsonl").is_file()
    assert lab("generate", QUICK, *TINY, "--out", "corpora", at=made).returncode == 2


def test_new_writes_a_persona_and_an_experiment_that_plan(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lab("new", "ann", at=here).returncode == 0
    monkeypatch.chdir(here)
    assert load_experiment("configs/ann.yaml").personas[0].name == "Ann"
    before = (here / "configs" / "ann.yaml").read_bytes()
    assert lab("new", "Ann", at=here).returncode == 2
    assert (here / "configs" / "ann.yaml").read_bytes() == before
    assert lab("new", "Zoe", at=here).returncode == 2


def test_doctor_finds_what_fails(tmp_path: Path) -> None:
    done = lab("doctor", "--json", at=tmp_path)
    assert done.returncode == 0
    assert {"python", "torch", "runs folder"} <= {finding["name"] for finding in json.loads(done.stdout)}
    (tmp_path / "file").write_text("")
    broken = lab("doctor", "--runs", "file/runs", at=tmp_path)
    assert broken.returncode == 5
    assert "error[PL5002] runs folder" in broken.stderr


# Stopping


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stopped_run_says_one_line_and_goes_on(number: signal.Signals, code: int, here: Path) -> None:
    command = [sys.executable, "-m", "persona_lab", "run", QUICK, *TINY, "base.steps=100000"]
    # Whoever starts the tests in the background has SIGINT ignored, and so would the run until it listens to it.
    heard = partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=here, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heard) as worker:
        assert worker.stderr is not None
        said = worker.stderr.readline()
        worker.send_signal(number)
        rest = worker.stderr.read()
        assert worker.wait() == code, rest
    assert "nodes to make" in said
    assert "the same command goes on from here" in rest
    assert "Traceback" not in rest
    assert not list((here / "runs" / "store").glob("attempts/*"))
    assert not list((here / "runs" / "store").glob("leases/*"))


# How commands speak


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with console.Ticker(clock=lambda: now) as ticker:
        for done in range(1, 9):
            ticker("cells", done, 8)
            now += 2.0
    found = capsys.readouterr()
    assert found.err.splitlines() == ["cells 1 of 8 (12 %)", "cells 4 of 8 (50 %)", "cells 7 of 8 (87 %)"]
    assert found.out == ""


def test_json_holds_no_number_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit({"a": float("inf"), "b": [float("nan"), 1], "c": Path("x")}, "", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1], "c": "x"}


def test_a_reader_that_leaves_early_is_no_error(made: Path) -> None:
    command = f"{sys.executable} -m persona_lab results quickstart | head -n 1"
    done = subprocess.run(command, shell=True, cwd=made, capture_output=True, text=True, env={**os.environ})
    assert done.stdout.startswith("{")
    assert "Traceback" not in done.stderr
