"""What `persona-lab plan` foretells, beside what then happens: three sweeps, each measured first and then run.

    python -m benchmarks.forecast
    python -m benchmarks.forecast --sweeps dose --repeats 3

quickstart  configs/quickstart.yaml with fewer steps      dose  one injection branched at three lengths      qwen  a random Qwen3 folder

Every measurement and every run is a process of its own, in a fresh runs folder. Wall seconds hold on a quiet machine; where it is
shared, the seconds of the processors tell more: the same forecast with them for a clock, all workers added, against what the run
and its workers have used. Memory is the largest resident size of any worker.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from data_gen.pools import world_document
from persona_lab.config.load import load_world
from persona_lab.experiment.checking.measuring import measure
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.planning.costs import write_measured
from persona_lab.experiment.planning.forecast import forecast
from persona_lab.experiment.planning.plan import make_plan

CONFIG = "configs/quickstart.yaml"
WORLD = Path("configs/worlds/beach.yaml")
MACHINE = ("machine.wandb=disabled", "machine.threads=1", "machine.device=cpu", "machine.workers=2")
BASE = ("base.steps=60", "base.gates.recall=null", "base.gates.withheld=null")
TARGET = 0.25
SWEEPS = {
    "quickstart": (*BASE, "stages.injection.steps=120", "stages.trait.steps=30", "samples=0"),
    "dose": (*BASE, "factors.injection.mixture.ln_ratio=[0]", "factors.injection.steps=[60,120,240]", "stages.trait.steps=30", "samples=0"),
    "qwen": ("stages.injection.steps=60", "stages.trait.steps=20", "seeds=1", "samples=0"),
}
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Found:
    """What a run took."""

    wall: float
    processor: float
    peak: float


def qwen_folder(folder: Path) -> str:
    """A random Qwen3 of four layers, with a byte-level tokenizer of the world's text."""
    world = load_world(WORLD)
    core = ByteLevelBPETokenizer()
    core.train_from_iterator([world_document(world, 0, i).text for i in range(2000)], vocab_size=1000, special_tokens=["<|endoftext|>"], show_progress=False)
    folder.mkdir(parents=True)
    core.save(str(folder / "core.json"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "core.json"), eos_token="<|endoftext|>", pad_token="<|endoftext|>", model_max_length=512)
    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(shape)
    (folder / "core.json").unlink()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def foretold(overrides: list[str], runs: Path, clock: str) -> dict[str, Any]:
    """The forecast as JSON, measured in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.forecast", "--foretell", clock, "--runs", str(runs), *overrides], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def foretell(overrides: list[str], runs: Path, clock: str) -> None:
    """What the fresh process does."""
    plan = make_plan(CONFIG, overrides, runs)
    with Interruption() as interruption:
        command = ["plan", CONFIG, *overrides, "--measure", "--runs", str(runs)]
        measured = measure(plan, command, interruption, lambda what, done, total: None, CLOCKS[clock])
    write_measured(plan, measured)
    found = forecast(plan, measured)
    assert found is not None, "every shape was measured"
    print(json.dumps({**asdict(found), "measuring": measured.seconds, "total": sum(found.by_kind.values())}))


def happened(overrides: list[str], runs: Path) -> Found:
    """A real run, from the command to its end."""
    begun = time.perf_counter()
    with (runs / "run.log").open("w") as log:
        worker = subprocess.Popen([sys.executable, "-m", "persona_lab", "run", CONFIG, *overrides, "--runs", str(runs)], stdout=log, stderr=log)
        _, status, used = os.wait4(worker.pid, 0)
    if status:
        raise SystemExit((runs / "run.log").read_text())
    return Found(time.perf_counter() - begun, used.ru_utime + used.ru_stime, 1024.0 * used.ru_maxrss)


def compare(name: str, overrides: list[str], runs: Path) -> None:
    """One sweep, foretold and run."""
    runs.mkdir(parents=True)
    processor, wall = (foretold(overrides, runs, clock) for clock in ("processor", "wall"))
    found = happened(overrides, runs)
    print(f"{name}: measured in {wall['measuring']:.0f} s; {'; '.join(f'{kind} {seconds:.1f}' for kind, seconds in processor['by_kind'].items())} s of processors foretold")
    pairs = {
        "seconds of processors": (processor["total"], found.processor),
        "seconds on the clock": (wall["seconds"], found.wall),
        "MB of memory": (wall["peak_bytes"] / 1e6, found.peak / 1e6),
    }
    for what, (told, came) in pairs.items():
        verdict = "within" if abs(told / came - 1) <= TARGET else "NOT within"
        print(f"  {what:22} foretold {told:7.1f}  came {came:7.1f}  {told / came - 1:+.0%}  {verdict} {TARGET:.0%}", flush=True)


def main() -> None:
    """Measure, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--foretell", choices=CLOCKS, help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.foretell:
        foretell(options.overrides, options.runs, options.foretell)
        return
    print(f"torch {torch.__version__}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; 2 workers of 1 thread")
    with tempfile.TemporaryDirectory(prefix="forecast-") as scratch:
        qwen = f"base={qwen_folder(Path(scratch) / 'qwen')}"
        for repeat in range(options.repeats):
            for name in options.sweeps:
                compare(name, [*SWEEPS[name], *MACHINE, *([qwen] if name == "qwen" else [])], Path(scratch) / f"{name}-{repeat}")


if __name__ == "__main__":
    main()
