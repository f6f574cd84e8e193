"""Cells a minute, and the share of the machine's matrix-multiply rate that training reaches.

    python -m benchmarks.cells --repeats 5 --threads 2

Both sides are measured in one run, interleaved: a stretch of real training steps (the stage of configs/ratio.yaml:
its base, adapter shape, documents and batch), then plain float32 products of the same shapes as the step's largest
linear, then a 1024-cube as the machine's rate. What counts as FLOPs is said in `benchmarks.flops`.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator

from benchmarks.flops import product_rate, spread, train_flops
from persona_lab.config import load_experiment
from persona_lab.config.schema import EmbeddedBase
from persona_lab.experiment.planning.corpora import pool_documents
from persona_lab.experiment.planning.plan import make_plan
from persona_lab.models.bank import AdapterBank
from persona_lab.models.folders import parameter_count
from persona_lab.models.lora import LoraShape
from persona_lab.models.world_model import build_model, build_tokenizer
from persona_lab.probes.engine import Voice, ask
from persona_lab.train.batches import Row, encode
from persona_lab.train.finetune import Member, Watcher, finetune

CONFIG = Path("configs/ratio.yaml")
STEPS = 20
"""Training steps of one repeat."""


@dataclass(frozen=True)
class Setting:
    """One stage of the config on a base of the right shape; speed does not depend on the weights."""

    bank: AdapterBank
    rows: list[Row]
    batch: int
    steps: int
    voice: Voice


def build() -> Setting:
    """The injection stage of the ratio experiment."""
    plan = make_plan(CONFIG)
    experiment = load_experiment(CONFIG).experiment
    base = experiment.base
    assert isinstance(base, EmbeddedBase)
    tokenizer = build_tokenizer(plan.loaded.world)
    model = build_model(tokenizer, width=base.width, layers=base.layers, heads=base.heads, seed=0).requires_grad_(False)
    bank = AdapterBank(model, LoraShape(experiment.lora.rank, experiment.lora.alpha))
    stage = experiment.stages["injection"]
    pool = next(n for n in plan.nodes if n.kind == "pool" and n.fields["source"] == "persona" and not n.fields["anonymous"])
    documents = pool_documents({**pool.fields, "size": stage.batch * STEPS})
    return Setting(bank, encode(tokenizer, [d.text for d in documents], on="all", where="pool"), stage.batch, stage.steps, Voice(model, tokenizer))


def train_seconds(setting: Setting, accelerator: Accelerator) -> float:
    """Seconds of `STEPS` real steps of one cell."""

    def rows_at(step: int) -> list[Row]:
        return setting.rows[step * setting.batch : (step + 1) * setting.batch]

    member = Member(rows_at=rows_at, rate=1e-3, clip=1.0, adapter=None, init_seed=0)
    start = time.perf_counter()
    options = {"pad": 0, "stops": [STEPS], "kl_to_base": 0.0, "micro_batch": setting.batch, "accelerator": accelerator}
    finetune(setting.bank, [member], Watcher(), **options)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    setting, accelerator = build(), Accelerator(cpu=True)
    plan = make_plan(CONFIG)
    config = setting.bank.model.config
    tokens = int(sum(len(r.ids) for r in setting.rows) / STEPS)
    shapes = {"own shape": product_rate(tokens, config.hidden_size, config.intermediate_size), "1024 cube": product_rate(1024, 1024, 1024)}
    flops = train_flops(setting.bank, [len(r.ids) for r in setting.rows]) / STEPS
    seconds: list[float] = []
    probing: list[float] = []
    rates: dict[str, list[float]] = {name: [] for name in shapes}
    train_seconds(setting, accelerator)
    for _ in range(options.repeats):
        for name, measure in shapes.items():
            rates[name].append(measure())
        seconds.append(train_seconds(setting, accelerator) / STEPS)
        start = time.perf_counter()
        ask(setting.voice, plan.cells[0].cast, plan.loaded.experiment.probes)
        probing.append(time.perf_counter() - start)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {options.threads} threads, {options.repeats} repeats, median [quartiles]")
    print(f"base: {parameter_count(setting.bank.model):,} parameters with its adapter; {tokens} tokens and {flops / 1e9:.2f} GFLOP a step")
    print(f"step: {spread([1e3 * s for s in seconds])} ms   probes of a stage: {spread(probing)} s")
    for name, measured in rates.items():
        print(f"share of the product rate at {name} ({statistics.median(measured) / 1e9:.0f} GFLOP/s): {spread([flops / s / r for s, r in zip(seconds, measured, strict=True)])}")
    cell = [setting.steps * s + 2 * p for s, p in zip(seconds, probing, strict=True)]
    print(f"cells a minute in one process (injection of {setting.steps} steps, probed twice): {spread([60 / c for c in cell])}")


if __name__ == "__main__":
    main()
