"""Every malformed input that is kept in `tests/malformed/`, put through the real command line.

What is asked of each: the exit code of its kind; nothing on stderr but blocks `error[PLxxxx] WHERE: WHAT. FIX.`; the right one of them
names the place, the field and what was got; no secret and no control character is shown; nothing is written; and configs, worlds,
corpora and command lines are refused before anything that needs torch is imported.
"""

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from malformed_edits import Case, edit, put, repeated, swapped
from transformers import PreTrainedModel

from persona_lab.cli import main
from persona_lab.errors import ModelError
from persona_lab.experiment.planning.plan import make_plan
from persona_lab.models.bank import AdapterBank
from persona_lab.models.folders import read_adapter, write_adapter
from persona_lab.models.lora import LoraShape

CORPUS = ROOT / "tests" / "malformed"
GOOD = (CORPUS / "good.yaml").read_text()
BLOCK = re.compile(r"error\[(PL\d{4})\] (command line: .*?|.+?): (.+)")
FIX = re.compile(r"\b(Use|Did you mean|Remove|Save|Write|Give|Choose|Make|Download|Keep|Free|Mend|Check|Run|Train|Move|Convert|Fetch)\b")
TORCH_SIDE = ("torch", "transformers", "peft", "accelerate", "persona_lab.models.bank", "persona_lab.models.folders", "persona_lab.models.world_model")
LONGEST_BLOCK = 1500


@functools.cache
def cases(name: str) -> list[Any]:
    """The cases of one file, as parameters."""
    found: list[Case] = yaml.load((CORPUS / f"{name}.yaml").read_text(), yaml.CSafeLoader)
    assert len({case["name"] for case in found}) == len(found), "names are unique"
    return [pytest.param(case, id=case["name"]) for case in found]


# The judge


@dataclass(frozen=True)
class Outcome:
    """What a command came to."""

    exit_code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """The command line, run in this process and in an empty folder that knows the project's configs."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}

    def run(*argv: str) -> Outcome:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["persona-lab", *argv])
        with pytest.raises(SystemExit) as end:
            main()
        said = capfd.readouterr()
        return Outcome(int(end.value.code or 0), said.out, said.err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever imports torch, or a module of ours that does, gets an ImportError."""
    for module in TORCH_SIDE:
        monkeypatch.setitem(sys.modules, module, None)


def everything_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder with its size and time of change; links are not followed."""
    return {str(p.relative_to(folder)): ((s := p.lstat()).st_size, s.st_mtime_ns) for p in sorted(folder.rglob("*"))}


def blocks(err: str) -> list[tuple[str, str, str]]:
    """Code, place and message of every line; nothing else may stand on stderr."""
    found = [BLOCK.fullmatch(line) for line in err.splitlines()]
    assert all(found), f"not all of this are blocks:\n{err}"
    return [(m[1], m[2], m[3]) for m in found if m]


def judge(case: Case, outcome: Outcome, exit_code: int, *, one: bool = False) -> tuple[str, str, str]:
    """The block of a case that says what it must, once everything that holds for all cases has been checked."""
    assert outcome.exit_code == exit_code, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    for line in outcome.err.splitlines():
        assert len(line) <= LONGEST_BLOCK
        assert line.isprintable(), repr(line)
    said = blocks(outcome.err)
    for block in said:
        assert FIX.search(block[2]), f"no fix: {block}"
    assert case.get("hides", "\0") not in outcome.err
    right = [block for block in said if block[0] == case["code"] and all(piece in ": ".join(block) for piece in case["says"])]
    assert right, f"none of these says {case['code']} {case['says']}:\n{outcome.err}"
    assert not one or len(said) == 1, outcome.err
    return right[0]


# Configs, personas and worlds


def config_bytes(case: Case) -> bytes:
    """The experiment file of a case."""
    if "bytes" in case:
        return case["bytes"].encode("latin-1")
    if "repeat" in case:
        return repeated(case["repeat"]).encode()
    return swapped(case.get("file", GOOD), *case.get("change", ())).encode()


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("case", cases("configs"))
def test_config(case: Case, lab: Command, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(config_bytes(case))
    before = everything_in(tmp_path)
    outcome = lab("run", "config.yaml", *case.get("overrides", ()))
    assert everything_in(tmp_path) == before
    _, where, _ = judge(case, outcome, 2, one="several" not in case)
    assert re.match(r"command line|(configs/\w+/)?[\w/]+\.yaml", where), where
    assert "at" not in case or where == f"config.yaml:{case['at']}"


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("case", cases("worlds"))
def test_persona_or_world(case: Case, lab: Command, tmp_path: Path) -> None:
    text = GOOD
    for kind, source in (("persona", "configs/personas/john.yaml"), ("world", "configs/worlds/beach.yaml")):
        if kind in case:
            content = case[kind] if isinstance(case[kind], str) else swapped((ROOT / source).read_text(), *case[kind])
            (tmp_path / f"{kind}.yaml").write_text(content)
            text = swapped(text, source, f"{kind}.yaml")
    (tmp_path / "config.yaml").write_text(text)
    before = everything_in(tmp_path)
    outcome = lab("run", "config.yaml")
    assert everything_in(tmp_path) == before
    judge(case, outcome, 2, one="several" not in case)


# Corpora


def corpus_bytes(case: Case) -> bytes:
    """The JSONL file of a case."""
    if "bytes" in case:
        return case["bytes"].encode("latin-1")
    return (repeated(case["repeat"]) if "repeat" in case else case["text"]).encode()


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("case", cases("corpora"))
def test_corpus(case: Case, lab: Command, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(corpus_bytes(case))
    before = everything_in(tmp_path)
    outcome = lab("audit", "corpus.jsonl")
    assert everything_in(tmp_path) == before
    if case["code"] == 1:
        assert (outcome.exit_code, outcome.err) == (1, "")
        assert all(piece in outcome.out for piece in case["says"]), outcome.out
        return
    _, where, _ = judge(case, outcome, 3)
    assert where == ("corpus.jsonl" if "at" not in case else f"corpus.jsonl:{case['at']}")


# Model folders and adapter folders


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("case", cases("models"))
def test_model_folder(case: Case, lab: Command, qwen_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(GOOD)
    (tmp_path / "model").mkdir()
    for file in qwen_folder.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    edit(tmp_path / "model", case)
    before = everything_in(tmp_path)
    outcome = lab("run", "config.yaml", "base.kind=hf", "base.path=./model", *case.get("overrides", ()))
    assert everything_in(tmp_path) == before
    _, where, _ = judge(case, outcome, 4, one=True)
    assert where.startswith(case.get("where", "model")), where


@pytest.fixture(scope="module")
def adapter_folder(qwen: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole adapter of rank 4, every number of which is 0.01."""
    shape = LoraShape(4, 8, ("q_proj", "v_proj"), 0.0)
    bank = AdapterBank(qwen, shape)
    bank.weight_KP.fill_(0.01)
    tensors = bank.row_tensors(0)
    bank.remove()
    folder = tmp_path_factory.mktemp("adapter") / "whole"
    write_adapter(folder, tensors, model=qwen, shape=shape, base_id="base")
    return folder


@pytest.mark.parametrize("case", cases("adapters"))
def test_adapter_folder(case: Case, adapter_folder: Path, qwen: PreTrainedModel, tmp_path: Path) -> None:
    """No command takes an adapter folder, so what reads one is called as `ask` calls it."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in adapter_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    edit(folder, case)
    before = everything_in(tmp_path)
    with pytest.raises(ModelError) as caught:
        use_adapter(folder, qwen)
    assert everything_in(tmp_path) == before
    judge(case, Outcome(caught.value.exit_code, "", "\n".join(map(str, caught.value.problems))), 4)


def use_adapter(folder: Path, model: PreTrainedModel) -> None:
    """Read an adapter and put it on a model, which is the plain model again afterwards."""
    shape, tensors = read_adapter(folder)
    bank = AdapterBank(model, shape)
    try:
        bank.load_row(0, tensors, str(folder))
    finally:
        bank.remove()


def test_the_whole_adapter_is_taken(adapter_folder: Path, qwen: PreTrainedModel) -> None:
    use_adapter(adapter_folder, qwen)


# Command lines, places, and what stands in a run's folder


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with one small run that is planned and not made."""
    runs = tmp_path_factory.mktemp("planned") / "runs"
    make_plan(CORPUS / "good.yaml", ["seeds=1", "factors={injection.mixture.ln_ratio: [0]}"], runs).write()
    return runs


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("case", cases("commands"))
def test_command(case: Case, lab: Command, planned: Path, tmp_path: Path) -> None:
    if "locked" in case.get("put", {}).values() or "forbidden" in case.get("put", {}).values():
        _skip_for_root()
    (tmp_path / "config.yaml").write_text(GOOD)
    (tmp_path / "good.jsonl").write_text('{"text": "one thing"}\n')
    for name, what in case.get("put", {}).items():
        put(tmp_path / name, what)
    if "at_run" in case:
        shutil.copytree(planned, tmp_path / "runs", symlinks=True)
        for name, text in case["at_run"].items():
            (tmp_path / "runs" / "ratio" / name).write_bytes(text.encode("latin-1"))
    before = everything_in(tmp_path)
    argv = case["argv"] if "argv" in case else [case["repeat_argv"][0], repeated(case["repeat_argv"][1:])]
    outcome = lab(*argv)
    assert everything_in(tmp_path) == before
    judge(case, outcome, case.get("exit", 2), one="several" not in case)


def _skip_for_root() -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read and write everything")


# Surroundings: what only a process of its own meets

STREAMS = {
    "stdout closed": ("plan config.yaml seeds=1 >&-", 0, ""),
    "stderr closed": ("plan nowhere.yaml 2>&-", 2, ""),
    "stdout full": ("plan config.yaml seeds=1 >/dev/full", 5, "error[PL5001]"),
}
LOCALES = {
    "ascii output": {"PYTHONIOENCODING": "ascii"},
    "no locale, one column, no colour": {"COLUMNS": "1", "NO_COLOR": "1", "TERM": "dumb", "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def shell(command: str, at: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command line under sh, whose exit code is the lab's own."""
    return subprocess.run(["sh", "-c", f'"{sys.executable}" -m persona_lab {command}'], cwd=at, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), **variables})


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_is_closed_or_full(name: str, lab: Command, tmp_path: Path) -> None:
    command, exit_code, said = STREAMS[name]
    (tmp_path / "config.yaml").write_text(GOOD)
    done = shell(command, tmp_path)
    assert done.returncode == exit_code, done
    assert done.stderr.startswith(said)
    assert not said or blocks(done.stderr)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("name", LOCALES)
def test_a_terminal_that_knows_few_letters(name: str, lab: Command, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(GOOD.replace("name: ratio", "name: r\u0430tio"))
    done = shell("run config.yaml", tmp_path, **LOCALES[name])
    assert (done.returncode, done.stdout) == (2, "")
    assert [code for code, _, _ in blocks(done.stderr)] == ["PL1203"]


# The corpus


def test_the_corpus_is_large() -> None:
    assert sum(len(cases(file.stem)) for file in CORPUS.glob("*.yaml") if file.stem != "good") >= 700
