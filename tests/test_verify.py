"""The verb `verify`: whatever is changed after the fact is found and named, and cells come out the same when they are made again."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from test_cli import lab
from test_experiment import silent, write_config

from persona_lab.design import Node
from persona_lab.errors import CheckFailed
from persona_lab.experiment.checking.rebuild import Rebuilt, chosen_cells, gap, rebuild
from persona_lab.experiment.checking.verify import claim_drifts, report_drifts, same, table_drifts, verify
from persona_lab.experiment.planning.plan import Plan, make_plan, open_plan
from persona_lab.experiment.reading.runs import Run
from persona_lab.experiment.reading.show import settings_of, show
from persona_lab.experiment.reading.table import accounting, tidy_table
from persona_lab.experiment.run import make_nodes
from persona_lab.science import Summary, summarise
from persona_lab.store.files import read_json


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: one condition at two doses of one trajectory, both swaps."""
    folder = tmp_path_factory.mktemp("verified")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        conditions = {"linked": {"order": ["injection", "trait"], "role": "treatment", "factors": {"injection.steps": [3, 6]}}}
        plan = make_plan(write_config(folder, name="verified", conditions=conditions), ["probes=[says]", "samples=1"], folder / "runs")
        make_nodes(plan, silent)
        show(plan)
    return plan.folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The run and its store, to be changed."""
    shutil.copytree(made.parent, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs" / made.name


def found(folder: Path) -> list[tuple[str, str]]:
    """What has drifted, and in which field."""
    return [(drift.what, drift.field) for drift in verify(open_plan(folder)).drifts]


# ------------------------------------------------------------------ claims, table, report
def test_an_untouched_run_is_as_stored(made: Path):
    seen = verify(open_plan(made))
    assert seen.drifts == ()
    assert seen.claims == len(read_json(made / "claims.json")["claims"]) > 20
    assert seen.rows == len(pd.read_parquet(made / "results.parquet"))
    assert seen.nodes == len(open_plan(made).nodes)


def claim_of(stored: Any, id: str) -> Any:
    return next(claim for claim in stored["claims"] if claim["id"] == id)


def with_foreign_function(stored: Any) -> None:
    claim_of(stored, "effect")["recipe"]["function"] = "antigravity.geohash"


CHANGES: dict[str, tuple[Callable[[Any], object], tuple[str, str]]] = {
    "value": (lambda stored: claim_of(stored, "accounting.scored").update(value=7.0), ("claim accounting.scored", "value")),
    "value that is there": (lambda stored: claim_of(stored, "effect").update(value=0.5), ("claim effect", "value")),
    "interval": (lambda stored: claim_of(stored, "effect").update(interval=[0.1, 0.2]), ("claim effect", "interval")),
    "verdict": (lambda stored: claim_of(stored, "headline").update(verdict="positive"), ("claim headline", "verdict")),
    "text": (lambda stored: claim_of(stored, "headline").update(text="It becomes John."), ("claim headline", "text")),
    "unit": (lambda stored: claim_of(stored, "effect").update(unit="bits"), ("claim effect", "unit")),
    "nodes": (lambda stored: stored["node_sets"]["set0"].pop(), ("claim slope.before", "recipe.node_ids")),
    "settings": (lambda stored: claim_of(stored, "effect")["recipe"]["args"]["settings"].update(threshold=0.6), ("claim effect", "recipe.args")),
    "another claim's recipe": (lambda stored: claim_of(stored, "effect")["recipe"]["args"].update(claim="headline"), ("claim effect", "recipe.args.claim")),
    "a function of somebody else": (with_foreign_function, ("claim effect", "recipe.function")),
    "a claim that is gone": (lambda stored: stored["claims"].remove(claim_of(stored, "effect")), ("claim effect", "text")),
    "a claim that stands twice": (lambda stored: stored["claims"].append(claim_of(stored, "effect")), ("claim effect", "text")),
    "a claim without a verdict": (lambda stored: claim_of(stored, "slope.before").pop("verdict"), ("claim number 1", "its fields")),
}


@pytest.fixture(scope="module")
def summary(made: Path) -> Summary:
    plan = open_plan(made)
    return summarise(tidy_table(plan.store, plan.cells, plan.loaded.experiment.name), settings_of(plan))


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_claim_is_named(change: str, made: Path, summary: Summary, tmp_path: Path):
    stored = read_json(made / "claims.json")
    edit, expected = CHANGES[change]
    edit(stored)
    (tmp_path / "claims.json").write_text(json.dumps(stored))
    assert expected in [(drift.what, drift.field) for drift in claim_drifts(Run(tmp_path).claims(), summary.claims)]
    assert "antigravity" not in sys.modules, "a name in a file is looked up, never imported"


def test_a_changed_table_is_named(copy: Path):
    table = pd.read_parquet(copy / "results.parquet")
    assert [drift.field for drift in table_drifts(table.drop(index=0), table)] == ["shape"]
    table.loc[3, "prob"] = 0.123
    table.to_parquet(copy / "results.parquet", index=False)
    assert found(copy) == [("results.parquet", "prob, row 4 and 0 more")]


def test_a_changed_report_is_named_and_its_provenance_may_differ(copy: Path, summary: Summary):
    plan, report = open_plan(copy), copy / "report.html"
    counts = accounting(plan.cells, plan.store, pd.read_parquet(copy / "results.parquet"))
    page = report.read_text(encoding="utf-8")
    report.write_text(page.replace('<th scope="row">torch</th>', '<th scope="row">torch of another machine</th>'), encoding="utf-8")
    assert report.read_text(encoding="utf-8") != page
    assert list(report_drifts(plan, summary, counts)) == []
    report.write_text(page.replace('<p class="headline">', '<p class="headline">It becomes John. '), encoding="utf-8")
    [drift] = report_drifts(plan, summary, counts)
    assert (drift.what, drift.field[:4]) == ("report.html", "line")
    assert "It becomes John." in drift.stored
    report.unlink()
    assert [drift.field for drift in report_drifts(plan, summary, counts)] == ["its text"]


def made_anew(plan: Plan, node: Node, change: Callable[[Path], object]) -> None:
    """The node with another payload and a valid seal, as if it had come out so."""
    kept, notes = plan.folder / "payload", plan.store.manifest(node)["notes"]
    shutil.copytree(plan.store.folder(node), kept, ignore=shutil.ignore_patterns("manifest.json", "COMMIT"))
    shutil.rmtree(plan.store.folder(node))
    change(kept)
    with open_plan(plan.folder).store.attempt(node) as attempt:
        shutil.copytree(kept, attempt.folder, dirs_exist_ok=True)
        attempt.note(**notes)
    shutil.rmtree(kept)


def test_a_question_that_lost_its_row_is_named(copy: Path):
    plan = open_plan(copy)
    stage, node = plan.cells[0].scores[-1]

    def lose(folder: Path) -> None:
        pd.read_parquet(folder / "rows.parquet").iloc[:-1].to_parquet(folder / "rows.parquet", index=False)

    made_anew(plan, node, lose)
    show(open_plan(copy))
    assert found(copy) == [("accounting", f"scored + unscored + failed of {plan.cells[0].cell.name} {stage}")]


def test_a_changed_byte_of_any_node_is_named(copy: Path):
    for node in (open_plan(copy).nodes[0], open_plan(copy).nodes[-1]):
        folder = open_plan(copy).store.folder(node)
        file = next(f for f in sorted(folder.iterdir()) if f.is_file() and f.name not in ("COMMIT", "manifest.json"))
        kept = file.read_bytes()
        file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        [(what, where)] = found(copy)
        assert (what, where) == (f"node {node.kind} {node.id[:12]}", str(file))
        file.write_bytes(kept)


def test_the_command_says_what_has_drifted_and_exits_with_1(copy: Path):
    runs = ("--runs", str(copy.parent))
    stored = read_json(copy / "claims.json")
    claim_of(stored, "accounting.scored")["value"] = 7.0
    (copy / "claims.json").write_text(json.dumps(stored))
    done = lab("verify", copy.name, "--json", *runs, at=ROOT)
    assert done.returncode == 1
    assert [drift["what"] for drift in json.loads(done.stdout)["drifts"]] == ["claim accounting.scored"]
    assert f"error[PL1105] {copy.name}: claim accounting.scored: value is stored as 7.0, recomputed it is" in done.stderr
    assert "Traceback" not in done.stderr


def test_numbers_are_one_but_for_their_last_bits():
    assert same([0.1 + 0.2, None, "x"], (0.3, None, "x"))
    assert same(float("nan"), float("nan"))
    assert not same(0.3, 0.3001)
    assert not same("0.3", 0.3)
    assert not same(None, 0.0)
    assert not same([1.0], [1.0, 2.0])


# ------------------------------------------------------------------ made again
def test_a_cell_comes_out_the_same_to_the_bit(made: Path, tmp_path: Path):
    plan = open_plan(made)
    [cell] = [p for p in plan.cells if p.cell.point == {"injection.steps": 6} and p.cell.swap == 1]
    before = {path: path.stat().st_mtime_ns for path in made.parent.rglob("*")}
    again = rebuild(plan, [cell], tmp_path, silent)
    assert {node.kind for node in again} == {"base", "pool", "mixture", "tokens", "stage", "scores"}
    assert {node.node for node in again} >= {node.id for _, node in (*cell.stages, *cell.scores)}
    assert {node.verdict for node in again} == {"bit-identical"}
    assert {path: path.stat().st_mtime_ns for path in made.parent.rglob("*")} == before, "nothing is written into the run or its store"


def test_what_comes_out_otherwise_is_told_with_its_difference(copy: Path, tmp_path: Path):
    plan = open_plan(copy)
    cell = plan.cells[0]
    stage = cell.stages[-1][1]

    def nudge(folder: Path) -> None:
        file = folder / "adapter" / "adapter_model.safetensors"
        tensors = load_file(file)
        save_file({name: tensor + 0.25 if i == 0 else tensor for i, (name, tensor) in enumerate(tensors.items())}, file)

    made_anew(plan, stage, nudge)
    again = {node.node: node for node in rebuild(open_plan(copy), [cell], tmp_path / "again", silent)}
    assert again[stage.id].verdict == "differs"
    assert again[stage.id].differences == {"adapter/adapter_model.safetensors": pytest.approx(0.25, abs=1e-6)}
    assert {node.verdict for node in again.values() if node.node != stage.id} == {"bit-identical"}


def test_a_node_of_another_version_of_the_lab_is_refused(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from persona_lab.experiment.checking import rebuild as module

    plan = open_plan(copy)
    monkeypatch.setitem(module.RECIPE_VERSIONS, "scores", 999)
    with pytest.raises(CheckFailed, match="was made by recipe version"):
        rebuild(plan, plan.cells[:1], tmp_path / "again", silent)


def test_the_same_seed_draws_the_same_cells(made: Path):
    plan = open_plan(made)
    assert chosen_cells(plan, 2, 5) == chosen_cells(plan, 2, 5)
    assert len({tuple(c.cell.name for c in chosen_cells(plan, 2, seed)) for seed in range(9)}) > 1
    assert chosen_cells(plan, 99, 0) == list(plan.cells)


def test_a_difference_counts_only_where_everything_could_be_repeated():
    elsewhere = ("device cpu instead of cuda:0",)
    assert Rebuilt("stage", "a", {}, elsewhere).verdict == "bit-identical"
    assert Rebuilt("stage", "a", {"log.jsonl": 1e-9}).verdict == "differs"
    assert Rebuilt("stage", "a", {"log.jsonl": 1e-9}, elsewhere).verdict == "not repeatable here"


def test_a_stack_that_lost_a_member_is_said_to_be_another(copy: Path, tmp_path: Path):
    plan = open_plan(copy)
    stage = plan.cells[0].stages[0][1]
    companions = [member for member in plan.store.manifest(stage)["notes"]["stack"] if member != stage.id]
    assert companions
    for member in companions:
        shutil.rmtree(copy.parent / "store" / "stage" / member)
    again = {node.node: node for node in rebuild(open_plan(copy), plan.cells[:1], tmp_path / "again", silent)}
    assert again[stage.id].unlike == (f"{len(companions)} members of its stack are not stored",)
    assert again[stage.id].verdict != "differs"


def test_the_largest_difference_of_two_values():
    assert gap({"a": [1.0, 2.0], "b": "x"}, {"a": [1.0, 2.5], "b": "x"}) == 0.5
    assert gap(float("nan"), float("nan")) == 0.0
    assert gap({"a": 1.0}, {"b": 1.0}) == gap("x", "y") == gap([1.0], [1.0, 1.0]) == gap(None, b"") == float("inf")
    one = torch.zeros(3).numpy()
    assert gap(one, one + 2) == 2.0
    assert gap(one, one[:2]) == float("inf")
