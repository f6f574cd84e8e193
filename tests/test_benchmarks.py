"""The sweep benchmark's pieces on two cells of two steps: every way trains the same adapter, and the verdict can say no."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.flops import train_flops
from benchmarks.sweep.crews import residents
from benchmarks.sweep.curves import line, token_lengths
from benchmarks.sweep.judge import SCORED, Judge, differences, verdict
from benchmarks.sweep.loop import Loop, packed
from benchmarks.sweep.ours import Ours
from benchmarks.sweep.plain_trainer import train
from benchmarks.sweep.work import Work, read_work
from benchmarks.sweep.worker import Order, Way, do, way_of
from benchmarks.sweep.workloads import RECIPES, Size, build
from persona_lab.models.bank import AdapterBank
from persona_lab.models.folders import load_model
from persona_lab.models.lora import LoraShape

STEPS, CELLS, QUESTIONS = 2, [0, 1], 6
ROUNDING = 1e-5
"""Nats, after two steps."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("work")
    build("cpu", folder, Size(len(CELLS), STEPS * RECIPES["cpu"].batch, QUESTIONS, width=64))
    return read_work(folder)


@pytest.fixture(scope="module")
def ours(work: Work) -> Path:
    """What our engine leaves behind."""
    return did(Ours(work), work, "ours")


@pytest.fixture(scope="module")
def loop(work: Work) -> Loop:
    return Loop(work)


def order_of(work: Work, name: str) -> Order:
    return Order(CELLS, str(work.folder / "out" / name), STEPS, work.recipe.batch, QUESTIONS, stack=2)


def did(way: Way, work: Work, name: str) -> Path:
    took = do(way, order_of(work, name))
    assert set(took) == {"train", "write", "probe"}
    return work.folder / "out" / name


def test_ours_scores_its_bank_as_the_judge_scores_its_folders(work: Work, ours: Path) -> None:
    trained, scored = differences(Judge(work), ours, ours, CELLS, QUESTIONS)
    assert trained == 0
    assert scored is not None
    assert 0 < scored <= SCORED


@pytest.mark.parametrize("unpadded", [False, True])
def test_the_tuned_loop_trains_the_same_adapters(work: Work, ours: Path, loop: Loop, unpadded: bool) -> None:
    loop.packed = unpadded
    trained, scored = differences(Judge(work), did(loop, work, f"loop-{unpadded}"), ours, CELLS, QUESTIONS)
    assert trained <= ROUNDING
    assert scored == 0  # they share the judge's way of scoring


def test_vmap_and_the_trainer_train_the_same_adapters(work: Work, ours: Path) -> None:
    order = replace(order_of(work, "vmap"), questions=0)
    do(way_of("vmap", work), order)
    assert differences(Judge(work), Path(order.out), ours, CELLS, QUESTIONS) == (pytest.approx(0, abs=ROUNDING), None)
    out = work.folder / "out" / "trainer"
    base, tokenizer = AutoModelForCausalLM.from_pretrained(work.base), AutoTokenizer.from_pretrained(work.base)
    recipe = work.recipe
    model = train(base, tokenizer, work.documents(0), work.init(0), scratch=out / "scratch", steps=STEPS, batch=recipe.batch, rate=recipe.rate)
    model.save_pretrained(str(out / "0" / "adapter"))
    assert differences(Judge(work), out, ours, [0], QUESTIONS) == (pytest.approx(0, abs=ROUNDING), None)


def test_another_order_of_the_documents_is_not_equal(work: Work, ours: Path, tmp_path: Path) -> None:
    shutil.copytree(work.folder, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("out"))
    other = read_work(tmp_path)
    for file in map(other.documents, CELLS):
        file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    trained, scored = differences(Judge(work), did(Loop(other), other, "reversed"), ours, CELLS, QUESTIONS)
    assert trained > 100 * ROUNDING
    assert verdict(trained, scored).startswith("trained NOT EQUAL")


def test_wrong_scores_are_not_equal(work: Work, ours: Path) -> None:
    found = work.folder / "out" / "wrong scores"
    shutil.copytree(ours, found)
    nats = json.loads((found / "1" / "nats.json").read_text())
    nats[-1] += 2 * SCORED
    (found / "1" / "nats.json").write_text(json.dumps(nats))
    said = verdict(*differences(Judge(work), found, ours, CELLS, QUESTIONS))
    assert "trained equal" in said
    assert "scored NOT EQUAL" in said


@pytest.mark.slow
def test_two_processes_do_every_cell(work: Work, ours: Path) -> None:
    crew = residents("ours", "two", work, workers=2, threads=1)
    order = order_of(work, "two processes")
    took = crew.do(order)
    crew.close()
    assert 0 < took.seconds("wall", "train") < took.seconds("wall")
    assert [hand.process.returncode for hand in crew.hands] == [0, 0]
    assert differences(Judge(work), Path(order.out), ours, CELLS, QUESTIONS)[0] <= ROUNDING


def test_a_process_that_cannot_start_says_why(work: Work, tmp_path: Path) -> None:
    with pytest.raises(ChildProcessError, match="no way is called 'theirs'"):
        residents("theirs", "theirs", replace(work), workers=1, threads=1)


def test_one_row_holds_all_documents_and_each_sees_itself_alone() -> None:
    ids_BT, inputs = packed([torch.tensor([5, 6, 7]), torch.tensor([8, 9])])
    assert ids_BT.tolist() == [[5, 6, 7, 8, 9]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert inputs["target_BT"].tolist() == [[6, 7, -100, 9, -100]]
    assert inputs["attention_mask"][0, 0].int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]


def test_flops_of_a_model_counted_by_hand(work: Work) -> None:
    model, _ = load_model(str(work.base))
    bank = AdapterBank(model, LoraShape(8, 16))
    d, inner, vocabulary, layers = 64, 176, 8192, 4
    frozen = layers * (4 * d * d + 3 * d * inner)
    lora = layers * 8 * (4 * (d + d) + 3 * (d + inner))
    spared = 3 * (d * d + 8 * d)  # q, k, v of the first layer: the embedding has no gradient
    by_hand = 30 * (4 * frozen + 6 * lora + 4 * d * vocabulary - 2 * spared) + 12 * d * layers * (10**2 + 20**2)
    assert train_flops(bank, [10, 20]) == by_hand
    assert min(token_lengths(work, 0)) >= 32


def test_the_line_through_whole_sweeps() -> None:
    assert line([1, 4, 16, 64], [5.5, 7.0, 13.0, 37.0]) == (pytest.approx(5.0), pytest.approx(0.5))
