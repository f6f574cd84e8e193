"""Relearning and undoing: savings by hand, on planted tables, and on a real model that reads the same documents twice."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from test_order import ARMS, ETA, ORDERS, SETTINGS, planted

from data_gen.documents import Speaker
from data_gen.personas import deal_traits
from data_gen.pools import persona_document
from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.science.effects import Frame
from persona_lab.science.stages.relearning import Losses, passes, relearning_claims, savings, undo
from persona_lab.train.batches import encode
from persona_lab.train.finetune import Member, Watcher, finetune


def test_savings_by_hand() -> None:
    tokens = np.full(10, 10.0)
    first = Losses(np.array([3.0, 2, 1, 1, 1, 1, 1, 1, 1, 1]), tokens)
    again = Losses(np.array([2.0, 1.5, 1, 1, 1, 1, 1, 1, 1, 1]), tokens)
    # The floor is 1: the first pass pays 10 (2 + 1) = 30 nats above it, the second 10 (1 + .5) = 15.
    found = savings(first, again)
    assert (found.nats, found.share) == pytest.approx((15.0, 0.5))
    assert first.spent(1.0).tolist() == [0, 20, 30, 30, 30, 30, 30, 30, 30, 30, 30]
    assert savings(first, first).share == 0.0
    assert savings(again, first).share == pytest.approx(-1.0), "a loss, not a saving"
    other = savings(first, Losses(again.loss_T, tokens * 1.5))
    assert other.nats is None
    assert "same documents" in other.reason
    flat = Losses(np.ones(10), tokens)
    assert savings(flat, flat).share is None
    with pytest.raises(ValueError, match="one loss and one number of tokens"):
        Losses(np.ones(3), np.ones(2))


def test_undoing_is_reached_between_two_points_or_is_said_not_to_be() -> None:
    # From -.6 at 10 nats to +.2 at 30: three quarters of the way, 25.
    assert undo(np.array([-1.0, -0.6, 0.2]), np.array([0.0, 10.0, 30.0])).nats == pytest.approx(25.0)
    never = undo(np.array([-1.0, -0.6]), np.array([0.0, 10.0]))
    assert (never.nats, never.verdict, never.at_least) == (None, "not reached", 10.0)
    assert undo(np.array([0.1, 0.2]), np.array([0.0, 10.0])).verdict == "nothing to undo"


def logs(table: Frame, loss: Mapping[str, Sequence[float]]) -> Frame:
    """Losses of every cell's stages, 10 tokens a step."""
    rows = []
    for cell, condition in table.drop_duplicates("cell")[["cell", "condition"]].itertuples(index=False):
        stages = ORDERS[condition]
        for stage in stages:
            known = "john after sam" if stage == "john" and stages[0] == "sam" else stage
            rows += [{"cell": cell, "stage": stage, "step": t, "loss": value, "tokens": 10} for t, value in enumerate(loss.get(known, [1.0] * 10), start=1)]
    return pd.DataFrame(rows)


def with_steps(eta_at: Mapping[int, float], **options: float) -> Frame:
    """The planted table, in which `john_again` was trained for several numbers of steps."""
    base = planted({k: v for k, v in ETA.items() if k != "john_sam_john"}, **options)  # pyright: ignore[reportArgumentType]
    more = []
    for steps, eta in eta_at.items():
        part = planted({"john_sam_john": eta}, **options)  # pyright: ignore[reportArgumentType]
        more.append(part.assign(**{"cell": f"{steps}/" + part["cell"], "john_again.steps": steps}))
    return pd.concat([base, *more], ignore_index=True)


LOSS = {"john": [3.0, 2.0, *[1.0] * 8], "john_again": [2.0, 1.5, *[1.0] * 8], "john after sam": [2.5, 2.0, *[1.0] * 8]}


def test_relearning_is_told_against_the_first_pass_and_against_mere_transfer() -> None:
    table = with_steps({1: -0.4, 2: 0.2})
    claims = {c[0]: c for c in relearning_claims(table, SETTINGS, ARMS, logs(table, LOSS))}
    assert claims["relearning.john_sam_john.share"][2] == pytest.approx(0.5)
    assert claims["relearning.john_sam_john.nats"][2] == pytest.approx(15.0)
    assert claims["relearning.john_sam_john.transfer"][2] == pytest.approx(1 / 6), "25 of 30 nats are paid after Sam alone"
    # The lean to Sam is .8 at first, .4 after a step (10 nats), -.2 after two (15): gone at 10 + 5 x 2/3.
    assert claims["relearning.john_sam_john.undo"][2] == pytest.approx(10 + 10 / 3)
    assert claims["relearning.john_sam_john.undo"][5] == "positive"


def test_a_lean_that_stays_or_never_was_has_no_price() -> None:
    table = with_steps({1: -0.4, 2: -0.2})
    claim = next(c for c in relearning_claims(table, SETTINGS, ARMS, logs(table, LOSS)) if c[0].endswith("undo"))
    assert claim[2:4] == (None, None)
    assert claim[5] == "undefined"
    assert "not reached in 5 of 5 seeds" in claim[1]
    silent = {c[0]: c[5] for c in relearning_claims(table, SETTINGS, ARMS, logs(table, LOSS).query("stage == 'sam'"))}
    assert set(silent.values()) == {"not run"}


class Listener(Watcher):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step(self, step: int, members: Sequence[int], loss_K: torch.Tensor, norm_K: torch.Tensor) -> None:
        self.losses.append(float(loss_K[0]))


def test_a_real_model_pays_less_for_what_it_has_read_before(llama, tokenizer, world, personas, accelerator: Accelerator) -> None:
    dealt, rows = deal_traits(world, personas, 0, 0), {}
    for persona, traits in zip(personas[:2], dealt, strict=False):
        speaker = Speaker(persona.name, persona.name, traits, persona.description)
        texts = [persona_document(world, speaker, [persona.name], anonymous=False, genres=["profile"], seed=0, index=i).text for i in range(80)]
        rows[persona.name.lower()] = encode(tokenizer, texts, on="all", where="test")
    bank = AdapterBank(llama, LoraShape(rank=4, alpha=8), 1)
    adapter, found = None, []
    for name in ("john", "sam", "john"):
        listener, mine = Listener(), rows[name]
        member = Member(lambda step, mine=mine: mine[4 * step : 4 * step + 4], 1e-2, 1.0, adapter, init_seed=0)
        finetune(bank, [member], listener, pad=0, stops=[20], kl_to_base=0.0, micro_batch=4, accelerator=accelerator)
        adapter = bank.row_tensors(0)
        tokens = [sum(int(row.labelled[1:].sum()) for row in mine[4 * t : 4 * t + 4]) for t in range(20)]
        found.append(Losses(np.array(listener.losses), np.array(tokens, float)))
    again = savings(found[0], found[2])
    assert again.share is not None
    assert 0.1 < again.share < 1.5
    frame = pd.DataFrame({"cell": "c", "stage": "john", "step": range(1, 21), "loss": found[0].loss_T, "tokens": found[0].tokens_T})
    assert passes(frame.sample(frac=1, random_state=0))["c", "john"].spent(0.0)[-1] == pytest.approx(found[0].spent(0.0)[-1])
