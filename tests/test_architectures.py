"""Random models of twelve architectures through a whole experiment, and their adapters in plain transformers and peft."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
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

from persona_lab.config.schema import Machine
from persona_lab.errors import ConfigError
from persona_lab.experiment.instruments.building import Subject, subject
from persona_lab.experiment.instruments.measure.estimating import measures
from persona_lab.experiment.instruments.measure.plans import Effort, make_measures, measure_plans, scalings
from persona_lab.experiment.instruments.measure.weights import read_scaling
from persona_lab.experiment.instruments.metric.distances import distance_plan, distances, make_distances
from persona_lab.experiment.planning import recipes
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


# ------------------------------------------------------------------ instruments
@pytest.fixture(scope="module")
def wide(island: Path) -> Path:
    """A world of three people with three traits each."""
    food = {"food": {"values": ["rice", "bread", "fish"]}}
    file = island / "wide.yaml"
    file.write_text(json.dumps({**WORLD, "name": "wide", "categories": {**WORLD["categories"], **food}}))
    return file


def of_model(folder: Path, world: Path, runs: Path) -> Subject:
    """A model folder, to be measured by one worker."""
    return replace(subject(str(folder), world=world, runs=runs), machine=Machine(**EXPERIMENT["machine"]))


def silent(*_: Any) -> None:
    """Progress that nobody is told of."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_measured_and_its_processes_compared(island: Path, wide: Path, texts: Sequence[str], name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recipes, "SPEECH_POOL", 32)  # documents that the trainings draw from
    folder = island / name
    of = of_model(folder if folder.exists() else random_folder(name, texts, folder), wide, island / f"{name}-measured")
    people = of.chosen(["mary", "peter"])
    plans = measure_plans(of, people, Effort(seeds=1, steps=2, batch=2, samples=1, ranks=()))
    assert make_measures(plans, people, silent) == {}
    found = {(one.estimator, one.process): one for one in measures(of, plans, people).found}
    assert all(one.reason for one in found.values() if one.value is None)
    assert all(np.isfinite(found[estimator, person].value or np.nan) for estimator in ("M1", "M1 words apart", "M9") for person in people)
    planned, node = next(iter(scalings(plans.adopt, people)))
    curve = read_scaling(plans.adopt.store.open(node))
    for scale, scores in ((0, planned.scores[0][1]), (-1, planned.scores[-1][1])):
        rows = pd.read_parquet(plans.adopt.store.open(scores) / "rows.parquet")
        own = rows[(rows["subject"] == "mary") & (rows["option"] == "answer")]
        assert curve["nats"][scale] == pytest.approx(-own["logprob_nats"].mean(), abs=1e-3), "at scale 0 the base, at scale 1 the adapter"
    plan = distance_plan(of, ["mary", "peter", "alice"], seeds=1, steps=1, batch=2, rate=1e-2)
    assert make_distances(plan, silent).failed == {}
    apart = distances(plan)
    assert np.isfinite(apart.nats_KK).all()
    assert {"D2 adam", "D4 slots", "D4 neutral", "D5 layer 1", "D5 layer 2", "D6"} <= apart.proxies.keys()
    assert all(np.isfinite(each_SKK).all() for each_SKK in apart.proxies.values())


def test_nobody_of_a_world_with_few_traits_can_be_measured(island: Path, texts: Sequence[str]):
    of = of_model(random_folder("qwen3", texts, island / "few-traits"), island / "world.yaml", island / "few")
    with pytest.raises(ConfigError, match=r"PL1297.*isle.*nobody in the world has 3 traits.*Use a world with 3 categories"):
        of.chosen([])
