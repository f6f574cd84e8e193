"""Cells that tests export, and what an export says of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from test_experiment import TINY, silent, write_config
from typer.testing import CliRunner

from persona_lab.cli import app
from persona_lab.experiment.exporting.questions import EXPECTED
from persona_lab.experiment.exporting.subject import Subject
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.reading.show import show
from persona_lab.experiment.run import make_nodes
from persona_lab.store.files import read_jsonl

CELL = "linked/seed0/swap0"
TOLERANCE = 1e-4
"""Nats."""


def finished(folder: Path, **changes: Any) -> Plan:
    """One condition in two swaps, made, asked and shown."""
    file = write_config(folder, **{"conditions": {"linked": TINY["conditions"]["linked"]}, "probes": ["says", "introspects", "general_text"], **changes})
    plan = make_plan(file, ["conditions.linked.factors=null"], folder / "runs")
    with torch.random.fork_rng():
        assert make_nodes(plan, silent).failed == {}
    show(plan)
    return plan


def exported(subject: Subject, to: str, out: Path, *options: str) -> dict[str, Any]:
    """What `export --json` says."""
    arguments = ["export", subject.plan.folder.name, subject.name, "--to", to, "--out", str(out), "--runs", str(subject.plan.runs), "--json", *options]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def expected_of(folder: Path) -> dict[tuple[str, str], float]:
    return {(row["id"], row["option"]): row["logprob_nats"] for row in read_jsonl(folder / EXPECTED)}


def farthest(found: Mapping[tuple[str, str], float], folder: Path) -> float:
    """The largest difference from what the run measured, of options that are all there."""
    expected = expected_of(folder)
    assert found.keys() <= expected.keys()
    return max(abs(nats - expected[key]) for key, nats in found.items())


@torch.inference_mode()
def nats_of(model: torch.nn.Module, ids: Sequence[int], start: int) -> list[float]:
    """Log P of every token from `start` on, by one plain forward pass."""
    logprob_TV = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return [float(logprob_TV[at - 1, ids[at]]) for at in range(start, len(ids))]
