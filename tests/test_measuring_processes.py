"""The instrument `measure` whole, on real tiny models: everything has a value or a reason, is made once, and is refused where it cannot be."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import typer
from conftest import ROOT
from test_experiment import silent
from typer.testing import CliRunner

from persona_lab.cli.instruments import measure, measure_words
from persona_lab.config.schema import Machine
from persona_lab.errors import ConfigError
from persona_lab.experiment.instruments.building import subject
from persona_lab.experiment.instruments.measure.estimating import costs, measures, reading_errors
from persona_lab.experiment.instruments.measure.plans import Effort, make_measures, measure_plans, scalings
from persona_lab.experiment.instruments.measure.weights import read_scaling
from persona_lab.experiment.instruments.verifying import verify_instrument
from persona_lab.experiment.planning.plan import open_plan
from persona_lab.probes.process_text import DOCUMENTS
from persona_lab.store.files import finite, read_json, write_json

pytestmark = pytest.mark.usefixtures("from_the_root")


def command() -> typer.Typer:
    """The command `measure` alone."""
    app = typer.Typer()
    app.command()(measure)
    return app


def test_the_classifier_is_tried_on_diaries_of_known_origin():
    of = subject("configs/quickstart.yaml")
    errors = reading_errors(of, of.processes)
    assert all(sensitivity > 0.95 and specificity > 0.98 for sensitivity, specificity in errors.values())
    assert len({specificity for _, specificity in errors.values()}) > 1, "random speakers are taken for somebody now and then"


SMALL = Effort(seeds=2, steps=6, rate=1e-2, samples=2, ranks=(1,))


def hamlet(folder: Path) -> Path:
    """The beach world with six people."""
    text = (ROOT / "configs" / "worlds" / "beach.yaml").read_text()
    assert "personas: 24" in text
    file = folder / "hamlet.yaml"
    file.write_text(text.replace("personas: 24", "personas: 6"))
    return file


def config(folder: Path) -> Path:
    """A tiny embedded base, the smallest that there is."""
    gates = {"recall": None, "odds": None, "withheld": None}
    base = {"kind": "embedded", "world": str(hamlet(folder)), "width": 16, "layers": 1, "heads": 1, "steps": 4, "batch": 8, "gates": gates}
    stage = {"mixture": {"john": 4, "sam": 4}, "steps": 1, "batch": 2, "rate": 1e-3}
    personas = [f"configs/personas/{name}.yaml" for name in ("john", "sam", "kim")]
    machine = {"device": "cpu", "threads": 1, "workers": 1, "wandb": "disabled"}
    rest = {"stages": {"injection": stage}, "conditions": {"linked": {"order": ["injection"]}}, "lora": {"rank": 2, "alpha": 4}, "machine": machine}
    file = folder / "tiny.yaml"
    file.write_text(json.dumps({"name": "tiny", "base": base, "personas": personas, **rest}))
    return file


def verified(folder: Path) -> None:
    """What was written is what the store says; a changed number is named."""
    plan = open_plan(folder)
    seen = verify_instrument(plan)
    assert seen is not None
    assert seen.drifts == ()
    assert seen.claims > 10
    page = (folder / "measure.html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    stored = read_json(folder / "measure.json")
    stored["found"][0]["value"] = 7
    write_json(folder / "measure.json", stored)
    claims = read_json(folder / "claims.json")
    claims["claims"][1]["value"] = 0.5
    write_json(folder / "claims.json", claims)
    seen = verify_instrument(plan)
    assert seen is not None
    assert [(drift.what, drift.field) for drift in seen.drifts] == [(f"claim {claims['claims'][1]['id']}", "value"), ("measure.json", "found")]


def test_an_embedded_base_is_measured_whole_and_once(tmp_path: Path):
    file = config(tmp_path)
    of = subject(str(file), runs=tmp_path / "runs")
    chosen = of.chosen(["Mary", "john"])
    plans = measure_plans(of, chosen, SMALL)
    assert all(len(plan.cells) == 2 * len({p.scores[-1][1] for p in plan.cells}) for plan in plans.each()), "both swaps are one and the same"
    assert make_measures(plans, chosen, silent) == {}
    found = measures(of, plans, chosen)
    assert [(one.process, one.estimator) for one in found.found if one.value is None and not one.reason] == []
    by = {(one.estimator, one.process): one for one in found.found}
    assert by["true log prior", "john"].reason == "the world has no document of it"
    assert {estimator for estimator, _ in by} == {"true log prior", "M1", "M1 words apart", "M3", "M5", "M7 norm", "M7 rank", "M8", "M9"}
    assert all(by[name, "mary"].value is not None for name in ("M1", "M1 words apart", "M9"))
    assert "No two estimators can be compared" in found.agreement.sentence
    spent = found.costs
    assert spent["M5"]["tokens_trained"] > spent["M7 rank"]["tokens_trained"] > 0 == spent["M1"]["tokens_trained"]
    assert all(cost["seconds"] > 0 for cost in spent.values())
    again = measure_plans(of, chosen, SMALL)
    assert all(plan.store.has(node) for plan in again.each() for node in plan.nodes)
    assert make_measures(again, chosen, silent) == {}
    assert json.dumps(measures(of, again, chosen).to_json()) == json.dumps(found.to_json())
    assert costs(again, chosen) == spent
    options = ["--personas", "Mary,john", "--seeds", "2", "--steps", "6", "--rate", ".01", "--samples", "2", "--ranks", "1", "--runs", str(tmp_path / "runs")]
    asked = CliRunner().invoke(command(), [str(file), *options, "--json"])
    assert asked.exit_code == 0, asked.output
    said = json.loads(asked.stdout)
    kept = json.loads(Path(said["file"]).read_text())
    assert {k: v for k, v in said.items() if k not in ("model", "file", "page", "failed")} == kept
    assert {k: v for k, v in kept.items() if k != "runs"} == json.loads(json.dumps(finite(found.to_json())))
    assert sorted(kept["runs"].values()) == sorted(plan.folder.name for plan in plans.each())
    verified(plans.adopt.folder)
    for words in ("process", "what has no value", "the world has no document of it", "tokens trained", "reliability", found.agreement.sentence):
        assert words in measure_words(found)
    planned, node = next(iter(scalings(plans.adopt, chosen)))
    curve = read_scaling(plans.adopt.store.open(node))
    rows = pd.read_parquet(plans.adopt.store.open(planned.scores[-1][1]) / "rows.parquet")
    own = rows[(rows["subject"] == "mary") & (rows["option"] == "answer")]
    assert len(own) == DOCUMENTS
    assert curve["nats"][-1] == pytest.approx(-own["logprob_nats"].mean(), abs=1e-4), "an adapter at scale 1 is the adapter"
    base = pd.read_parquet(plans.adopt.store.open(planned.scores[0][1]) / "rows.parquet")
    own = base[(base["subject"] == "mary") & (base["option"] == "answer")]
    assert curve["nats"][0] == pytest.approx(-own["logprob_nats"].mean(), abs=1e-4), "at scale 0 it is the base"


def test_a_plain_model_folder_is_measured_or_says_why_not(qwen_folder: Path, tmp_path: Path):
    # Two threads that wait for each other are slow where other processes want the cores too.
    of = replace(subject(str(qwen_folder), world=hamlet(tmp_path), runs=tmp_path), machine=Machine(device="cpu", threads=1, workers=1, wandb="disabled"))
    chosen = of.chosen(["mary", "peter"])
    plans = measure_plans(of, chosen, Effort(seeds=1, steps=2, batch=2, samples=1, ranks=()))
    assert make_measures(plans, chosen, silent) == {}
    found = measures(of, plans, chosen)
    by = {(one.estimator, one.process): one for one in found.found}
    assert all(one.reason for one in found.found if one.value is None)
    assert all(math.isfinite(by["M1 words apart", name].value) for name in chosen), "values of several tokens are summed"
    assert "no sampled diary names values" in by["M3", "mary"].reason
    assert "1 rank was trained" in by["M7 rank", "mary"].reason
    assert all(by["M9", name].value > 0 for name in chosen)


def test_what_cannot_be_measured_is_refused_by_name(qwen_folder: Path, tmp_path: Path):
    of = subject("configs/quickstart.yaml", runs=tmp_path)
    with pytest.raises(ConfigError, match=r"PL1297.*marry.*Did you mean mary"):
        of.chosen(["marry"])
    with pytest.raises(ConfigError, match="named twice"):
        of.chosen(["mary", "Mary"])
    with pytest.raises(ConfigError, match=r"PL1297.*--world"):
        subject(str(qwen_folder), runs=tmp_path)
    with pytest.raises(ConfigError, match="PL1291"):
        subject("nothing", runs=tmp_path)
    for wrong in ("0", "two", "4096"):
        assert "a rank is a whole number from 1 to 1024" in CliRunner().invoke(command(), ["configs/quickstart.yaml", "--ranks", wrong]).output
    with pytest.raises(ConfigError, match="more than the 2048 that a process has"):
        measure_plans(of, of.chosen(["mary"]), Effort(steps=200))
    assert len(of.chosen([])) == 24 + 3
    assert of.processes["john"]["sport"] == "football"
