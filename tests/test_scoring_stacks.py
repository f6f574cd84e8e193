"""Adapters that are asked together: the answers are those of each alone, who fails fails alone, and nothing is lost or doubled."""

import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from test_experiment import TINY, silent, write_config

from persona_lab.design import Node
from persona_lab.experiment.checking.rebuild import rebuild
from persona_lab.experiment.making import scoring
from persona_lab.experiment.making import workshop as workshops
from persona_lab.experiment.making.interruption import Interrupted, Interruption
from persona_lab.experiment.making.scoring import score_next
from persona_lab.experiment.making.workshop import Workshop
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.run import make_nodes
from persona_lab.store import Store
from persona_lab.store.files import read_jsonl
from persona_lab.store.lease import Lease

pytestmark = pytest.mark.usefixtures("from_the_root")


def planned(folder: Path, *overrides: str) -> Plan:
    """Two doses in two swaps: four adapters after each of the two stages, asked everything and sampled."""
    return make_plan(write_config(folder, conditions={"linked": TINY["conditions"]["linked"]}), overrides, folder / "runs")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> Plan:
    """All of it, made in peace."""
    plan = planned(tmp_path_factory.mktemp("whole"))
    assert make_nodes(plan, silent).failed == {}
    return plan


def unasked(whole: Plan, folder: Path) -> Path:
    """The same adapters in a store of their own, where only the plain base was asked."""
    shutil.copytree(whole.store.root, folder / "runs" / "store", ignore=shutil.ignore_patterns(*(node.id for node in asked(whole))))
    return folder


@pytest.fixture
def trained(whole: Plan, tmp_path: Path) -> Path:
    """A folder of a run whose adapters were not asked anything yet."""
    return unasked(whole, tmp_path)


@pytest.fixture(scope="module")
def together(whole: Plan, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """All adapters asked at once, in peace."""
    plan = planned(unasked(whole, tmp_path_factory.mktemp("together")))
    assert make_nodes(plan, silent).failed == {}
    return plan


def asked(plan: Plan, stage: str = "") -> list[Node]:
    """The scores of adapters, after all stages or one of them."""
    return list(dict.fromkeys(node for cell in plan.cells for name, node in cell.scores if name != "base" and name.startswith(stage)))


def stack_of(plan: Plan, node: Node) -> list[str]:
    return plan.store.manifest(node)["notes"]["stack"]


def payloads(plan: Plan) -> dict[str, Any]:
    """Digests of all files of the scores of adapters that exist."""
    return {node.id: plan.store.manifest(node)["payload"] for node in asked(plan) if Store(plan.store.root).has(node)}


def assert_same_answers(ours: Plan, theirs: Plan, nodes: Sequence[Node]) -> None:
    """Rows and keys identical, log-probabilities within 1e-4 nats, texts the same."""
    for node in nodes:
        one, other = (plan.store.open(node) for plan in (ours, theirs))
        rows, expected = (pd.read_parquet(folder / "rows.parquet") for folder in (one, other))
        numbers = ["logprob_nats", "prob", "prob_normalized"]
        pd.testing.assert_frame_equal(rows.drop(columns=numbers), expected.drop(columns=numbers))
        assert np.allclose(rows[numbers].astype(float), expected[numbers].astype(float), rtol=0, atol=1e-4, equal_nan=True)
        samples = read_jsonl(one / "samples.jsonl")
        assert samples == read_jsonl(other / "samples.jsonl")
        assert samples


def nothing_is_left_half_made(plan: Plan) -> bool:
    return not plan.store.attempts() and not list((plan.store.root / "leases").iterdir()) and not Store(plan.store.root).conflicts()


# ------------------------------------------------------------------ the same answers
def test_each_says_who_was_asked_with_it_and_the_plain_base_is_asked_alone(whole: Plan):
    for stage in ("injection", "trait"):
        nodes = asked(whole, stage)
        assert len(nodes) == 4
        assert all(stack_of(whole, node) == [member.id for member in nodes] for node in nodes)
    for cell in whole.cells:
        assert stack_of(whole, cell.scores[0][1]) == [cell.scores[0][1].id]


@pytest.mark.parametrize(("most", "sizes"), [("1", {1}), ("3", {3, 2}), ("auto", {8})])
def test_the_answers_are_those_of_each_alone(whole: Plan, trained: Path, most: str, sizes: set[int]):
    plan = planned(trained, f"machine.stack={most}")
    assert make_nodes(plan, silent).made == {"scores": len(payloads(whole))}
    assert {len(stack_of(plan, node)) for node in asked(plan)} == sizes
    assert_same_answers(plan, whole, asked(plan))
    rows = [pd.read_parquet(whole.store.open(node) / "rows.parquet")["logprob_nats"] for node in asked(whole, "trait")]
    assert not any(rows[0].equals(other) for other in rows[1:]), "adapters that all answer the same would show nothing"


# ------------------------------------------------------------------ one that diverged
def spoil(plan: Plan, stage: Node) -> None:
    """Weights that are finite, and too large for any logit to be."""
    notes, kept = plan.store.manifest(stage)["notes"], plan.runs / "kept"
    shutil.copytree(plan.store.folder(stage), kept, ignore=shutil.ignore_patterns("manifest.json", "COMMIT"))
    shutil.rmtree(plan.store.folder(stage))
    file = kept / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor.abs() + 1e38 for name, tensor in load_file(file).items()}, file)
    with Store(plan.store.root).attempt(stage) as attempt:
        shutil.copytree(kept, attempt.folder, dirs_exist_ok=True)
        attempt.note(**notes)
    shutil.rmtree(kept)


@pytest.mark.parametrize("which", [0, 5])
def test_an_adapter_that_diverged_fails_alone_with_its_reason(whole: Plan, trained: Path, which: int):
    plan = planned(trained)
    lost, *kept = (nodes := asked(plan))[which], *nodes[:which], *nodes[which + 1 :]
    spoil(plan, lost.inputs["stage"])
    failed = make_nodes(plan, silent).failed
    assert failed == {plan.names[lost.id]: "diverged: a logit is not finite at step 3 of the last stage. Lower the rate of that stage"}
    assert not plan.store.has(lost)
    assert all(lost.id not in stack_of(plan, node) and node.id in stack_of(plan, node) for node in kept)
    assert {len(stack_of(plan, node)) for node in kept} == {1, 2, 4}, (
        "each half was asked by itself, of one of them each quarter, and of one of these each member"
    )
    assert_same_answers(plan, whole, kept)
    assert nothing_is_left_half_made(plan)


def test_scores_that_are_asked_for_by_themselves_say_why_there_are_none(trained: Path, accelerator: Accelerator):
    plan = planned(trained)
    spoil(plan, asked(plan)[0].inputs["stage"])
    with pytest.raises(workshops.CheckFailed, match=r"PL1104.*scores.*diverged: a logit is not finite at step 3"):
        workshop(plan, accelerator).make(asked(plan)[0])


# ------------------------------------------------------------------ workers that stop
class Crash(Exception):
    """The worker dies: nothing is written any more."""


def failing_at(call: int, action: Callable[..., Any], fault: Callable[[], None]) -> Callable[..., Any]:
    """A function that comes to grief when it is called for that time, and only then."""
    calls = 0

    def called(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            fault()
        return action(*args, **named)

    return called


def die() -> None:
    raise Crash


@pytest.mark.parametrize("before", [1, 4, 7])
def test_a_worker_that_dies_between_two_commits_loses_only_what_was_not_committed(together: Plan, trained: Path, before: int, monkeypatch: pytest.MonkeyPatch):
    plan = planned(trained)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "write_jsonl", failing_at(before + 1, scoring.write_jsonl, die))
        with pytest.raises(Crash):
            make_nodes(plan, silent)
    kept = payloads(plan)
    assert len(kept) == before
    assert nothing_is_left_half_made(plan)
    outcome = make_nodes(planned(trained), silent)
    assert outcome.made == {"scores": len(payloads(together)) - len(kept)}, "what was committed is not committed again"
    assert payloads(plan) == payloads(together), "to the bit, because they are asked again beside those that were committed"
    assert [stack_of(plan, node) for node in asked(plan)] == [stack_of(together, node) for node in asked(plan)]


def test_a_worker_that_is_asked_to_stop_leaves_at_the_next_forward_pass(together: Plan, trained: Path, monkeypatch: pytest.MonkeyPatch):
    plan = planned(trained)
    with monkeypatch.context() as patch, Interruption() as interruption:
        patch.setattr(scoring, "ask_each", failing_at(1, scoring.ask_each, lambda: signal.raise_signal(signal.SIGTERM)))
        with pytest.raises(Interrupted):
            make_nodes(plan, silent, interruption=interruption)
    assert payloads(plan) == {}
    assert nothing_is_left_half_made(plan)
    make_nodes(planned(trained), silent)
    assert payloads(plan) == payloads(together)


def test_who_is_asked_together_is_no_matter_of_when_training_was_interrupted(whole: Plan, tmp_path: Path):
    for kind in ("base", "pool", "mixture"):
        shutil.copytree(whole.store.root / kind, tmp_path / "runs" / "store" / kind)
    plan = planned(tmp_path)

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("training") and (done, total) == (3, 6):
            signal.raise_signal(signal.SIGTERM)

    with Interruption() as interruption, pytest.raises(Interrupted):
        make_nodes(plan, stop, interruption=interruption)
    there = {node.inputs["stage"].fields["step"] for node in asked(plan, "injection") if plan.store.has(node.inputs["stage"])}
    assert there == {3}, "one dose could be asked about at once"
    make_nodes(planned(tmp_path), silent)
    assert [stack_of(plan, node) for node in asked(plan)] == [stack_of(whole, node) for node in asked(plan)]
    assert payloads(plan) == payloads(whole)


def test_scores_that_were_damaged_are_asked_again_in_their_stack(whole: Plan, tmp_path: Path):
    shutil.copytree(whole.store.root, tmp_path / "runs" / "store")
    plan = planned(tmp_path)
    file = plan.store.folder(asked(plan)[1]) / "rows.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert make_nodes(plan, silent).made == {"scores": 1}
    assert payloads(planned(tmp_path)) == payloads(whole)


# ------------------------------------------------------------------ workers side by side
def workshop(plan: Plan, accelerator: Accelerator) -> Workshop:
    return Workshop(
        store=Store(plan.store.root), machine=plan.loaded.experiment.machine, accelerator=accelerator, group="test", folder=plan.folder, siblings=plan.siblings
    )


def test_every_lease_is_renewed_while_they_are_asked_and_released_after(trained: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch):
    plan = planned(trained)
    shop, nodes, leases, found = workshop(plan, accelerator), asked(plan, "trait"), list[Lease | None](), list[int]()
    monkeypatch.setattr(workshops, "RENEW_SECONDS", -1.0)  # due at every beat: no test waits
    monkeypatch.setattr(shop, "lease", lambda node: leases.append(lease := Workshop.lease(shop, node)) or lease)  # the real ones, noted
    held, cast_of = plan.store.root / "leases", scoring.cast_of
    monkeypatch.setattr(scoring, "cast_of", lambda node: found.append(len(list(held.iterdir()))) or cast_of(node))  # the real one; leases are counted while it works
    assert score_next(shop, nodes, nodes, 1, ()) == {}
    assert found == [4] * 4
    beats = [lease.beat for lease in leases if lease]
    assert len(beats) == 4
    assert min(beats) == max(beats) > 10, "each forward pass is one"
    assert nothing_is_left_half_made(plan)


def test_a_worker_takes_its_share_and_leaves_the_rest(trained: Path, accelerator: Accelerator):
    plan = planned(trained)
    shop, nodes = workshop(plan, accelerator), asked(plan, "trait")
    assert score_next(shop, nodes, nodes, 2, ()) == {}
    assert [plan.store.has(node) for node in nodes] == [True, True, False, False]


def test_who_has_the_first_has_the_stack(trained: Path, accelerator: Accelerator):
    plan = planned(trained)
    shop, nodes = workshop(plan, accelerator), asked(plan, "trait")
    first, third = (plan.store.lease(nodes[i]) for i in (0, 2))
    assert first is not None
    assert third is not None
    with third:
        with first:
            assert score_next(shop, nodes, nodes, 1, ()) is None
            assert len(list((plan.store.root / "leases").iterdir())) == 2, "what was taken is given back"
        assert score_next(shop, nodes, nodes, 1, ()) == {}
    assert [plan.store.has(node) for node in nodes] == [True, True, False, True]
    assert all(nodes[2].id not in stack_of(plan, node) for node in nodes if plan.store.has(node))


# ------------------------------------------------------------------ made again
def test_scores_of_a_stack_come_out_the_same_to_the_bit_when_one_cell_is_made_again(whole: Plan, tmp_path: Path):
    cell = whole.cells[1]
    again = {node.node: node for node in rebuild(whole, [cell], tmp_path, silent)}
    for _, node in cell.scores:
        assert again[node.id].verdict == "bit-identical"
        assert Store(tmp_path / "store").manifest(node)["notes"]["stack"] == stack_of(whole, node)


def test_a_stack_of_scores_that_lost_a_member_cannot_be_repeated(whole: Plan, tmp_path: Path):
    shutil.copytree(whole.store.root, tmp_path / "runs" / "store")
    plan = planned(tmp_path)
    cell, gone = plan.cells[0], plan.cells[1].scores[-1][1]
    shutil.rmtree(plan.store.folder(gone))
    again = {node.node: node for node in rebuild(plan, [cell], tmp_path / "again", silent)}
    found = again[cell.scores[-1][1].id]
    assert found.unlike == ("1 members of its stack are not stored",)
    assert found.verdict != "differs"
    assert {node.verdict for node in again.values() if node != found} == {"bit-identical"}
