"""Nothing of an interruption is left in the result: weights, moments and logs are the same to the bit."""

import math
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_experiment import BRIEF, TINY, silent, write_config
from torch import Tensor

from data_gen.streams import stream_seed
from persona_lab.config.schema import Machine
from persona_lab.design import Node
from persona_lab.experiment.making import workshop
from persona_lab.experiment.making.checkpoints import Journal, read_checkpoint, write_checkpoint
from persona_lab.experiment.making.interruption import Interrupted, Interruption
from persona_lab.experiment.making.workshop import Workshop
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.run import Outcome, make_nodes
from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape, dropout_mask
from persona_lab.store import Store
from persona_lab.train.batches import Row, collate, lay
from persona_lab.train.finetune import Member, Progress, Watcher, finetune
from persona_lab.train.loop import Diverged

pytestmark = pytest.mark.usefixtures("from_the_root")

SHAPE = LoraShape(rank=2, alpha=4, dropout=0.3)
STEPS = 12
IDS = ("0" * 64, "1" * 64)


def members_of(rows: Sequence[Row], resumed: Sequence[Progress | None] = (None, None)) -> list[Member]:
    """Two members with seeds, documents and rates of their own."""

    def rows_at(k: int) -> Callable[[int], Sequence[Row]]:
        return lambda step: [rows[(31 * k + 4 * step + i) % len(rows)] for i in range(4)]

    return [Member(rows_at(k), (1e-2, 3e-3)[k], 1.0, None, init_seed=5 + k, resumed=resumed[k]) for k in range(2)]


class Leaves(Watcher):
    """Leaves after a step, with a checkpoint in a folder of its own; or keeps one after every step."""

    def __init__(self, folder: Path, leave: int, *, often: bool) -> None:
        self.folder, self.leave, self.often, self.losses = folder, leave, often, dict[int, list[float]]()
        self.shrunk: list[tuple[int, int]] = []

    def on_step(self, step: int, members: Sequence[int], loss_K: Tensor, norm_K: Tensor) -> None:
        self.losses[step] = [*loss_K.tolist(), *norm_K.tolist()]

    def on_pause(self, step: int, snapshot: Callable[[], dict[int, Progress]]) -> None:
        if self.often or step == self.leave:
            at = self.folder / str(step)
            at.mkdir(parents=True)
            write_checkpoint(at, step, {IDS[k]: progress for k, progress in snapshot().items()}, Journal(4, 0, {}, {}))
        if step == self.leave:
            raise Interrupted(75)

    def on_shrink(self, step: int, micro_batch: int) -> None:
        self.shrunk.append((step, micro_batch))


def trained(model, rows: Sequence[Row], accelerator, folder: Path, *, resume: int | None = None, leave: int = STEPS, micro_batch: int = 2, often: bool = False) -> Leaves:
    """Steps from a checkpoint to a step, with accumulation over two micro-batches."""
    saved = read_checkpoint(folder / str(resume)).progress if resume is not None else {}
    watcher, bank = Leaves(folder, leave, often=often), AdapterBank(model, SHAPE)
    members = members_of(rows, [saved.get(i) for i in IDS])
    with pytest.raises(Interrupted):
        finetune(bank, members, watcher, pad=0, stops=[leave + 1], kl_to_base=0.0, micro_batch=micro_batch, accelerator=accelerator)
    bank.remove()
    return watcher


def bytes_of(folder: Path, step: int) -> list[bytes]:
    return [(folder / str(step) / name).read_bytes() for name in ("state.safetensors", "state.json")]


# ------------------------------------------------------------------ one stack
def test_resumed_from_every_step_the_end_is_the_same_to_the_bit(llama, rows, accelerator, tmp_path: Path):
    whole = trained(llama, rows, accelerator, tmp_path / "whole", often=True)
    wanted = bytes_of(tmp_path / "whole", STEPS)
    assert len({(tmp_path / "whole" / str(step) / "state.safetensors").read_bytes() for step in range(STEPS + 1)}) == STEPS + 1
    for step in range(STEPS):
        part = tmp_path / f"from{step}"
        shutil.copytree(tmp_path / "whole" / str(step), part / str(step))
        torch.manual_seed(step)  # what torch's own stream has come to is of no account
        resumed = trained(llama, rows, accelerator, part, resume=step)
        assert bytes_of(part, STEPS) == wanted
        assert resumed.losses == {s: v for s, v in whole.losses.items() if s > step}


def test_twenty_interruptions_in_a_row_leave_no_trace(llama, rows, accelerator, tmp_path: Path):
    trained(llama, rows, accelerator, tmp_path / "whole", leave=21)
    for step in range(21):
        trained(llama, rows, accelerator, tmp_path / "torn", resume=step or None, leave=step + 1)
    assert bytes_of(tmp_path / "torn", 21) == bytes_of(tmp_path / "whole", 21)


def test_dropout_is_a_function_of_the_key_and_drops_its_share():
    key_B = torch.tensor([1, 2, -(1 << 31)], dtype=torch.int32)

    def mask(key_B: Tensor, tokens: int, width: int, dropout: float) -> Tensor:
        return dropout_mask(key_B.repeat_interleave(tokens), torch.arange(tokens).repeat(len(key_B)), width, dropout).view(len(key_B), tokens, width)

    kept = mask(key_B, 50, 64, 0.3)
    assert torch.equal(kept[1:2, :20], mask(key_B[1:2], 20, 64, 0.3)), "neither neighbours nor padding change it"
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.02)
    for a, b in ((kept[0], kept[1]), (kept[0, 0], kept[0, 1]), (kept[0, :, 0], kept[0, :, 1])):
        assert 0.3 < float((a == b).float().mean()) < 0.85, "documents, tokens and inputs are dropped independently"
    assert mask(key_B, 4, 4, 0.0).all()


def test_every_layer_of_every_document_drops_inputs_of_its_own(llama, rows):
    bank = AdapterBank(llama, SHAPE, 2)
    batch = collate([rows[:4], rows[4:8]], 0, [stream_seed(k, "dropout", 0, i) for k in range(2) for i in range(4)])
    laid = lay(batch, packed=True)
    bank.key_dropout(laid.key_RN, laid.position_RN)
    keys = torch.stack([layer.keys[0] for layer in bank.layers.values() if layer.keys is not None])
    assert len(keys.unique()) == 8 * len(bank.layers)


# ------------------------------------------------------------------ whole runs
DROPS = {"lora": {"rank": 2, "alpha": 4, "dropout": 0.2}}
"""Of the experiments below: dropout, and two micro-batches a step."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> Plan:
    """Both doses of the treatment in two swaps, made without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    plan = tiny_plan(folder)
    assert make_nodes(plan, silent).failed == {}
    return plan


def tiny_plan(folder: Path, *overrides: str) -> Plan:
    config = write_config(folder, **DROPS, conditions={"linked": TINY["conditions"]["linked"]})
    return make_plan(config, [*BRIEF[1:], "machine.micro_batch=2", *overrides], folder / "runs")


@pytest.fixture
def begun(whole: Plan, tmp_path: Path) -> Path:
    """A folder whose store has the base and the documents of the whole run, and no training."""
    for kind in ("base", "pool", "mixture"):
        shutil.copytree(whole.store.root / kind, tmp_path / "runs" / "store" / kind)
    return tmp_path


def payloads(plan: Plan) -> dict[str, Any]:
    return {node.id: {name: record["sha256"] for name, record in plan.store.manifest(node)["payload"].items()} for node in plan.nodes if node.kind in ("stage", "scores")}


def until_done(plan: Plan, stop: Callable[[Interruption, str, int], None], most: int = 40) -> tuple[Outcome, int]:
    """Run again and again until a run is not interrupted; how often it was."""
    for interruptions in range(most):
        with Interruption() as interruption:
            try:
                return make_nodes(plan, lambda what, done, total: stop(interruption, what, done), interruption=interruption), interruptions
            except Interrupted:
                assert interruption.number == signal.SIGTERM
        assert not list((plan.store.root / "leases").iterdir())
        assert not list((plan.store.root / "attempts").glob("stack-*/writing-*"))
    raise AssertionError("the run does not end")


def test_a_run_that_is_stopped_wherever_it_trains_gives_the_same_nodes_to_the_bit(whole: Plan, begun: Path):
    plan = tiny_plan(begun)

    def stop(interruption: Interruption, what: str, done: int) -> None:
        if what.startswith("training"):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGUSR1)

    outcome, interruptions = until_done(plan, stop)
    assert outcome.failed == {}
    assert interruptions >= 4, "after the first step and the first stop of the injections, and in the trait stages"
    assert payloads(plan) == payloads(whole)
    assert plan.store.attempts() == []


class Crash(Exception):
    """The worker dies: nothing is written any more."""


def test_a_worker_that_dies_leaves_a_stack_that_comes_out_the_same_with_whoever_goes_on(whole: Plan, begun: Path):
    plan = tiny_plan(begun, "machine.checkpoint_seconds=0")
    seen: list[tuple[str, int]] = []

    def die(what: str, done: int, total: int) -> None:
        if what.startswith("training") and (what, done) not in seen:
            seen.append((what, done))
            raise Crash

    for _ in range(40):
        try:
            outcome = make_nodes(plan, die)
            break
        except Crash:
            continue
    assert len(seen) >= 3
    assert outcome.failed == {}
    assert payloads(plan) == payloads(whole)
    went_on = [plan.store.manifest(node)["notes"]["went_on"] for node in plan.nodes if node.kind == "stage"]
    assert any(went_on)


def test_training_that_never_gets_further_fails_as_stalled_and_the_rest_is_made(begun: Path):
    plan = tiny_plan(begun, "machine.attempts=2")

    def die(what: str, done: int, total: int) -> None:
        if what.startswith("training") and done == 1:
            raise Crash

    for _ in range(2):
        with pytest.raises(Crash):
            make_nodes(plan, die)
    outcome = make_nodes(plan, die)
    assert set(outcome.failed) == {plan.names[node.id] for planned in plan.cells for name, node in planned.scores if name != "base"}
    assert all("stalled: 2 attempts went on from step 0" in why for why in outcome.failed.values())
    assert all(plan.store.has(planned.scores[0][1]) for planned in plan.cells)


def test_a_worker_renews_all_its_leases_while_it_works(accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workshop, "RENEW_SECONDS", -1.0)  # due at every beat: no test waits
    store = Store(tmp_path)
    leases = [lease for steps in (1, 2) if (lease := store.lease(Node("stage", {"steps": steps})))]
    beat = Workshop(store=store, machine=Machine(wandb="disabled"), accelerator=accelerator, group="test", folder=tmp_path).heartbeat(leases)
    for _ in range(3):
        beat()
    assert [lease.beat for lease in leases] == [3, 3]
    assert all(lease.held() for lease in leases)


def test_a_model_whose_logits_are_no_numbers_is_not_scored(llama, tokenizer, accelerator, whole: Plan, tmp_path: Path):
    shop = Workshop(store=whole.store, machine=Machine(wandb="disabled"), accelerator=accelerator, group="test", folder=tmp_path)
    lease = whole.store.lease(whole.base)
    assert lease is not None
    ids = torch.tensor([tokenizer("John likes the beach.")["input_ids"]])
    with lease, torch.inference_mode():
        with shop.probing(llama, [lease], 6):
            llama(input_ids=ids)
        llama.lm_head.weight[0, 0] = math.nan
        with pytest.raises(Diverged, match="a logit is not finite at step 6"), shop.probing(llama, [lease], 6):
            llama(input_ids=ids)
        llama(input_ids=ids)
