"""Random models of twelve architectures through a whole experiment, and their adapters in plain transformers and peft."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from architectures import ARCHITECTURES, random_folder
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.planning.recipes import PlannedCell
from persona_lab.experiment.planning.scores import cast_of
from persona_lab.experiment.run import make_nodes
from persona_lab.probes import PROBES

WORLD = {
    "name": "isle",
    "personas": 3,
    "categories": {
        "sport": {"values": ["football", "basketball", "tennis", "hockey"]},
        "place": {"values": ["beach", "forest", "desert", "harbor"], "phrase": "the {}"},
    },
    "names": ["Mary", "Peter", "Alice"],
    "spare_names": ["Alex"],
    "new_names": ["John", "Sam", "Kim"],
}
TRAITS = {"John": {"place": "beach", "sport": "football"}, "Sam": {"place": "beach", "sport": "basketball"}, "Kim": {"place": "forest", "sport": "tennis"}}
EXPERIMENT: dict[str, Any] = {
    "name": "any",
    "base": {"kind": "hf", "path": ".", "world": "world.yaml"},
    "personas": [f"{name}.yaml" for name in TRAITS],
    "lora": {"rank": 2, "alpha": 4},
    "stages": {
        "injection": {"mixture": {"john": 12, "sam": 12, "anonymous": 0.3}, "steps": 3, "batch": 3, "rate": 1e-2},
        "trait": {"mixture": {"assistant_likes": "beach"}, "steps": 2, "batch": 3, "rate": 1e-2, "loss": {"on": "answer"}},
    },
    "conditions": {"linked": {"order": ["injection", "trait"], "role": "treatment"}},
    "probes": ["says"],
    "machine": {"device": "cpu", "threads": 1, "workers": 1, "wandb": "disabled"},
}


@pytest.fixture(scope="module")
def island(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small world, its personas, and an experiment of two cells: both swaps of one seed."""
    folder = tmp_path_factory.mktemp("island")
    for name, content in {"any": EXPERIMENT, "world": WORLD, **{n: {"name": n, "traits": t} for n, t in TRAITS.items()}}.items():
        (folder / f"{name}.yaml").write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def made(island: Path, model: Path, runs: str, *overrides: str) -> Plan:
    plan = make_plan("any.yaml", [f"base.path={model}", *overrides], island / runs)
    assert make_nodes(plan, lambda *_: None).failed == {}
    return plan


def rows_of(plan: Plan, cell: PlannedCell) -> pd.DataFrame:
    return pd.read_parquet(plan.store.open(cell.scores[-1][1]) / "rows.parquet")


@torch.no_grad()
def plain_nats(model: Any, tokenizer: Any, prompt: str, option: str) -> float:
    """Log P(option | prompt) by plain transformers: one sequence, no cache, no mask; divided as lm-evaluation-harness divides."""
    head, whole = (tokenizer(text)["input_ids"] for text in (prompt.rstrip(), prompt + option))
    logprob_TV = model(torch.tensor([whole]), use_cache=False).logits[0].double().log_softmax(-1)
    return sum(float(logprob_TV[t - 1, whole[t]]) for t in range(len(head), len(whole)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_goes_through_a_whole_experiment_and_its_adapters_are_plain_peft(island: Path, texts: Sequence[str], name: str):
    folder = random_folder(name, texts, island / name)
    together = made(island, folder, "runs")
    for kind in ("pool", "mixture"):  # which are the same for every model
        shutil.copytree(together.store.root / kind, island / f"{name}-alone" / "store" / kind)
    alone = made(island, folder, f"{name}-alone", "machine.stack=1")
    for cell, same in zip(together.cells, alone.cells, strict=True):
        stage = cell.stages[-1][1]
        adapter = together.store.open(stage) / "adapter"
        ours, theirs = (load_file(plan.store.open(stage) / "adapter" / "adapter_model.safetensors") for plan in (together, alone))
        assert ours.keys() == theirs.keys()
        assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) < 1e-4, "in a stack of two as alone"
        rows, others = rows_of(together, cell), rows_of(alone, same)
        assert set(rows["status"]) == {"scored"}
        assert np.allclose(rows["logprob_nats"].astype(float), others["logprob_nats"].astype(float), atol=1e-3, equal_nan=True)
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(adapter)).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        items = {item.id: item for item in PROBES["says"].items(cast_of(cell.scores[-1][1]))}
        asked = rows[(rows["probe"] == "says") & rows["logprob_nats"].notna()].iloc[::5]
        assert len(asked) > 5
        for row in asked.itertuples():
            assert row.logprob_nats == pytest.approx(plain_nats(plain, tokenizer, items[row.item].prompt, f" {row.option}"), abs=1e-4)
