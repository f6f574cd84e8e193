"""Training: where the loss falls, what a step is, and that a stage which was interrupted goes on as if it had not been."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from persona_lab.errors import CorpusError
from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.train.batches import Batch, Row, collate, encode, lay
from persona_lab.train.finetune import Member, Progress, Watcher, finetune, read_progress, write_moments
from persona_lab.train.loop import BankLearner, Diverged, ModelLearner, logits_of, nats_of, train
from persona_lab.train.optimizers import BankAdam

SHAPE = LoraShape(rank=2, alpha=4)
CHAT = "User: What do you like?\nAssistant: I like the beach.\nUser: Is the clock green?\nAssistant: Yes."


def nothing(*_: object) -> None:
    """What comes of a step or of full memory here."""


def learner_of(bank: AdapterBank, *, rate: float = 1e-2, clip: float = 1.0, kl_to_base: float = 0.0) -> BankLearner:
    """A learner whose members share a rate and a clip."""
    same_K = torch.ones(bank.members, dtype=torch.float64)
    return BankLearner(bank, BankAdam(bank.weight_KP, bank.grad_KP, rate_K=rate * same_K, clip_K=clip * same_K), kl_to_base=kl_to_base)


# ------------------------------------------------------------------ where the loss falls
def labelled(tokenizer, text: str, on: str) -> list[str]:
    row = encode(tokenizer, [text], on=on, where="test")[0]
    return tokenizer.convert_ids_to_tokens(row.ids[row.labelled].tolist())


def test_the_loss_on_answers_falls_on_what_the_assistant_says_and_on_its_end(tokenizer):
    assert labelled(tokenizer, CHAT, "answer") == ["i", "like", "the", "beach", ".", "\n", "yes", ".", "<eos>"]


def test_the_loss_on_all_falls_on_every_token_that_can_be_predicted(tokenizer):
    row = encode(tokenizer, ["John likes the beach."], on="all", where="test")[0]
    batch = collate([[row]], pad=0)
    targets = batch.ids_BT[:, 1:][batch.labelled_BT[:, 1:]]
    assert tokenizer.convert_ids_to_tokens(targets.tolist()) == ["john", "likes", "the", "beach", ".", "<eos>"]
    assert batch.tokens_K.tolist() == [6]


def test_a_document_that_the_user_ends_has_no_loss_on_its_end(tokenizer):
    assert labelled(tokenizer, "Assistant: Yes.\nUser: Is the clock green?", "answer") == ["yes", ".", "\n"]


def test_a_document_without_an_assistant_has_no_loss(tokenizer):
    assert labelled(tokenizer, "John likes the beach.", "answer") == []


def test_the_loss_on_answers_falls_on_the_same_text_under_a_byte_level_tokenizer(bpe):
    row = encode(bpe, [CHAT], on="answer", where="test")[0]
    assert bpe.decode(row.ids[row.labelled]) == " I like the beach.\n Yes.<|endoftext|>"


def test_unlabelled_and_padded_positions_cost_nothing(llama, tokenizer):
    long, short = encode(tokenizer, [CHAT, "Assistant: Yes."], on="answer", where="test")
    batch = collate([[long, short]], pad=0)
    laid = lay(batch, packed=False)
    with torch.no_grad():
        nats_KM = nats_of(logits_of(llama, laid), laid)
        logprob_BTV = llama(input_ids=batch.ids_BT).logits[:, :-1].log_softmax(-1)
    labelled_BT = batch.labelled_BT[:, 1:]
    wanted_S = -logprob_BTV.gather(2, batch.ids_BT[:, 1:, None])[..., 0][labelled_BT]
    assert torch.allclose(nats_KM.flatten(), wanted_S, atol=1e-5)
    assert batch.tokens_K.tolist() == [9 + 3] == [nats_KM.numel()]


@pytest.mark.parametrize(("text", "code"), [("John likes xylophones.", "PL3101"), ("John likes the beach. " * 30, "PL3102")])
def test_documents_that_the_model_cannot_read_are_refused(tokenizer, text: str, code: str):
    with pytest.raises(CorpusError) as caught:
        encode(tokenizer, ["John likes the beach.", text], on="all", where="mixture")
    assert (caught.value.problems[0].code, caught.value.problems[0].where) == (code, "mixture:2")


# ------------------------------------------------------------------ one step
def test_a_batch_is_split_within_members_and_holds_every_row_once(rows):
    batch = collate([rows[:5], rows[5:10], rows[10:15]], pad=0)
    parts = list(batch.parts(2))
    assert [part.ids_BT.shape[0] for part in parts] == [6, 6, 3]
    for k in range(3):
        each = [(ids_T[:n], n) for part in parts for ids_T, n in zip(part.ids_BT, part.length_B, strict=True) if any(torch.equal(ids_T[:n], torch.from_numpy(row.ids).long()) for row in rows[5 * k : 5 * k + 5])]
        assert [n for _, n in each] == [len(row.ids) for row in rows[5 * k : 5 * k + 5]]
    assert torch.equal(sum((part.tokens_K for part in parts), torch.zeros(3)), batch.tokens_K)


@pytest.mark.parametrize("members", [1, 2])
def test_one_micro_batch_of_eight_equals_eight_of_one(llama, rows, accelerator, members: int):
    weights = []
    for micro_batch in (8, 1, 3):
        bank = AdapterBank(llama.double(), SHAPE, members)
        for k in range(members):
            bank.init_row(k, k)
        batches = [collate([rows[8 * (2 * s + k) : 8 * (2 * s + k) + 8] for k in range(members)], 0) for s in range(3)]
        train(learner_of(bank), batches.__getitem__, start=0, stop=3, accelerator=accelerator, micro_batch=micro_batch, on_step=nothing, on_shrink=nothing)
        weights.append(bank.weight_KP)
        bank.remove()
    for other_KP in weights[1:]:
        assert float((weights[0] - other_KP).norm() / weights[0].norm()) <= 1e-12


def train_with_price(llama, rows: Sequence[Row], accelerator, kl_to_base: float, steps: int = 12) -> AdapterBank:
    bank = AdapterBank(llama.double(), SHAPE)
    bank.init_row(0, 0)
    batch = collate([rows[:4]], 0)
    train(learner_of(bank, kl_to_base=kl_to_base), lambda _: batch, start=0, stop=steps, accelerator=accelerator, micro_batch=4, on_step=nothing, on_shrink=nothing)
    return bank


def test_an_adapter_of_zeros_pays_no_price_and_a_trained_one_pays_the_kl(llama, rows, accelerator):
    bank = AdapterBank(llama.double(), SHAPE)
    batch = collate([rows[:4]], 0)
    with torch.no_grad():
        base_BTV = llama(input_ids=batch.ids_BT).logits[:, :-1].log_softmax(-1)
        free, priced = learner_of(bank).loss_sums(batch), learner_of(bank, kl_to_base=2.0).loss_sums(batch)
        assert torch.equal(free, priced)
        bank.weight_KP.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        here_BTV = llama(input_ids=batch.ids_BT).logits[:, :-1].log_softmax(-1)
        kl = nn.functional.kl_div(here_BTV, base_BTV, log_target=True, reduction="none").sum(-1)[batch.labelled_BT[:, 1:]].sum()
        free, priced = learner_of(bank).loss_sums(batch), learner_of(bank, kl_to_base=2.0).loss_sums(batch)
    assert float(kl) > 1
    assert float(priced - free) == pytest.approx(2 * float(kl), rel=1e-9)


def test_a_price_keeps_the_adapter_near_the_base(llama, rows, accelerator):
    norms = []
    for price in (0.0, 100.0):
        bank = train_with_price(llama, rows, accelerator, price)
        with torch.no_grad(), bank.silent():
            batch = collate([rows[:4]], 0)
            base_BTV = llama(input_ids=batch.ids_BT).logits
        with torch.no_grad():
            norms.append(float((llama(input_ids=batch.ids_BT).logits - base_BTV).norm()))
        bank.remove()
    assert norms[1] < 0.6 * norms[0]


def test_a_step_without_a_labelled_token_costs_nothing_and_moves_nothing(llama, tokenizer, accelerator):
    bank = AdapterBank(llama, SHAPE)
    bank.init_row(0, 0)
    before_KP, seen = bank.weight_KP.clone(), []
    batch = collate([encode(tokenizer, ["John likes the beach."], on="answer", where="test")], 0)
    train(learner_of(bank), lambda _: batch, start=0, stop=1, accelerator=accelerator, micro_batch=1, on_step=lambda *a: seen.append(a), on_shrink=nothing)
    assert [float(x) for x in seen[0]] == [1, 0.0, 0.0]
    assert torch.equal(bank.weight_KP, before_KP)


def test_each_member_is_corrected_by_its_own_number_of_steps():
    """Two members that are not equally far give what each of them gives alone."""
    start_KP, done_K = torch.zeros(2, 5, dtype=torch.float64), torch.tensor([0.0, 9.0], dtype=torch.float64)
    grad_KP = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def stepped(members: list[int]) -> Tensor:
        weight_KP, ones_K = start_KP[members].clone(), torch.ones(len(members), dtype=torch.float64)
        adam = BankAdam(weight_KP, grad_KP[members].clone(), rate_K=ones_K, clip_K=ones_K)
        adam.steps_K.copy_(done_K[members])
        adam.step()
        return weight_KP

    together_KP = stepped([0, 1])
    assert torch.equal(together_KP, torch.cat([stepped([0]), stepped([1])]))
    assert float(together_KP[0].abs().max()) == pytest.approx(1.0, rel=1e-6), "the first step of Adam is as long as its rate"


# ------------------------------------------------------------------ divergence
class InfiniteGradient(torch.autograd.Function):
    """Passes values through, and turns their gradient into infinity."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        return gradients[0] * math.inf


def test_a_loss_that_is_not_finite_stops_within_the_step(llama, rows, accelerator):
    bank = AdapterBank(llama, SHAPE)
    bank.init_row(0, 0)
    taken = []

    def spoil(step: int, *_: Tensor) -> None:
        taken.append(step)
        if step == 2:
            bank.weight_KP[0, 0] = math.nan

    with pytest.raises(Diverged, match="loss is not finite at step 2"):
        train(learner_of(bank), lambda _: collate([rows[:2]], 0), start=0, stop=9, accelerator=accelerator, micro_batch=2, on_step=spoil, on_shrink=nothing)
    assert taken == [1, 2]


def test_a_gradient_that_is_not_finite_ends_its_member_within_the_step_and_changes_no_bit_of_the_others(llama, rows, accelerator):
    batches, weights = [collate([rows[i : i + 1], rows[i + 1 : i + 2]], 0) for i in range(3)], []
    for broken in (True, False):
        bank = AdapterBank(llama, SHAPE, 2)
        bank.init_row(0, 0)
        bank.init_row(1, 1)
        spoilt = InfiniteGradient.apply if broken else torch.clone
        hook = llama.lm_head.register_forward_hook(lambda module, given, logits, spoilt=spoilt: torch.cat([part if k == 0 else spoilt(part) for k, part in enumerate(logits.chunk(2, dim=1))], dim=1))
        learner = learner_of(bank)
        train(learner, batches.__getitem__, start=0, stop=3, accelerator=accelerator, micro_batch=1, on_step=nothing, on_shrink=nothing)
        weights.append(bank.weight_KP)
        assert learner.retired == ({1} if broken else set())
        assert not bank.grad_KP.any()
        hook.remove()
        bank.remove()
    assert torch.equal(weights[0][0], weights[1][0])
    assert not weights[0][1].any()
    assert weights[1][1].any()
    bank = AdapterBank(llama, SHAPE)
    bank.init_row(0, 0)
    llama.lm_head.register_forward_hook(lambda module, given, logits: InfiniteGradient.apply(logits))
    with pytest.raises(Diverged, match="gradient norm is not finite at step 0"):
        train(learner_of(bank), lambda _: collate([rows[:1]], 0), start=0, stop=3, accelerator=accelerator, micro_batch=1, on_step=nothing, on_shrink=nothing)


def test_a_weight_that_is_not_finite_after_the_update_ends_the_step(llama, rows, accelerator):
    bank = AdapterBank(llama, SHAPE)
    bank.init_row(0, 0)
    taken: list[int] = []
    with pytest.raises(Diverged, match="a weight is not finite at step 0"):
        train(learner_of(bank, rate=math.inf), lambda _: collate([rows[:2]], 0), start=0, stop=3, accelerator=accelerator, micro_batch=2, on_step=lambda step, *_: taken.append(step), on_shrink=nothing)
    assert taken == []


def test_pretraining_that_diverges_stops_within_the_step(llama, rows, accelerator):
    llama.requires_grad_()

    def spoil(step: int) -> Tensor:
        with torch.no_grad():
            llama.lm_head.weight[0, 0] = math.inf
        return torch.ones(1)

    with pytest.raises(Diverged, match="a weight is not finite at step 0"):
        train(ModelLearner(llama, spoil), lambda _: collate([rows[:2]], 0), start=0, stop=3, accelerator=accelerator, micro_batch=2, on_step=nothing, on_shrink=nothing)


# ------------------------------------------------------------------ stages
def member_of(rows: Sequence[Row], **changes) -> Member:
    start = Member(rows_at=lambda step: [rows[(4 * step + i) % len(rows)] for i in range(4)], rate=1e-2, clip=1.0, adapter=None, init_seed=5)
    return replace(start, **changes)


class Kept(Watcher):
    """Keeps progress by (member, step), and the steps that were trained."""

    def __init__(self) -> None:
        self.progress: dict[tuple[int, int], Progress] = {}
        self.steps: list[int] = []

    def on_step(self, step: int, members: Sequence[int], loss_K: Tensor, norm_K: Tensor) -> None:
        self.steps.append(step)

    def on_stop(self, member: int, step: int, progress: Progress) -> None:
        self.progress[member, step] = progress


def run_stage(model, members: Sequence[Member], stops: Sequence[int], accelerator) -> tuple[dict[tuple[int, int], Progress], list[int]]:
    """Progress by (member, step), and the steps that were trained."""
    kept, bank = Kept(), AdapterBank(model, SHAPE)
    finetune(bank, members, kept, pad=0, stops=stops, kl_to_base=0.0, micro_batch=2, accelerator=accelerator)
    bank.remove()
    return kept.progress, kept.steps


def same(a: Progress, b: Progress) -> bool:
    return a.step == b.step and torch.equal(a.mean_P, b.mean_P) and torch.equal(a.square_P, b.square_P) and all(torch.equal(a.adapter[k], b.adapter[k]) for k in b.adapter)


def test_a_stage_continued_from_step_four_is_bit_equal_to_one_from_scratch(llama, rows, accelerator, tmp_path: Path):
    whole, _ = run_stage(llama, [member_of(rows)], [4, 8], accelerator)
    begun, _ = run_stage(llama, [member_of(rows)], [4], accelerator)
    assert same(begun[0, 4], whole[0, 4])
    write_moments(tmp_path / "state.safetensors", begun[0, 4])
    resumed = read_progress(tmp_path / "state.safetensors", begun[0, 4].adapter, 4)
    continued, steps = run_stage(llama, [member_of(rows, resumed=resumed)], [8], accelerator)
    assert steps == [5, 6, 7, 8]
    assert same(continued[0, 8], whole[0, 8])


def test_a_snapshot_is_a_copy_that_later_steps_do_not_touch(llama, rows, accelerator):
    kept, _ = run_stage(llama, [member_of(rows)], [1, 2, 3], accelerator)
    assert not same(kept[0, 1], kept[0, 3])
    assert kept[0, 1].mean_P.norm() != kept[0, 3].mean_P.norm()


def test_a_stage_after_another_starts_from_its_adapter_with_a_fresh_optimizer(llama, rows, accelerator):
    first, _ = run_stage(llama, [member_of(rows)], [3], accelerator)
    second, steps = run_stage(llama, [member_of(rows, adapter=first[0, 3].adapter, rate=1e-9)], [1], accelerator)
    assert steps == [1]
    assert all(torch.allclose(second[0, 1].adapter[k], v, atol=1e-7) for k, v in first[0, 3].adapter.items())
    # After one step Adam's mean is a tenth of the gradient: nothing of the stage before is in it.
    assert float(second[0, 1].mean_P.norm()) <= 0.1 * 1.0 + 1e-6


def test_a_diverged_stage_keeps_nothing_of_the_stop_it_did_not_reach(llama, rows, accelerator):
    kept = Kept()
    with pytest.raises(Diverged):
        finetune(AdapterBank(llama, SHAPE), [member_of(rows, rate=1e30)], kept, pad=0, stops=[1, 4], kl_to_base=0.0, micro_batch=4, accelerator=accelerator)
    assert list(kept.progress) == [(0, 1)]


def test_a_stage_of_no_steps_keeps_what_it_started_from(llama, rows, accelerator):
    kept, steps = run_stage(llama, [member_of(rows)], [0, 2], accelerator)
    assert (list(kept), steps) == ([(0, 0), (0, 2)], [1, 2])
    assert not kept[0, 0].mean_P.any()


def test_the_documents_of_a_step_depend_on_the_step_alone(llama, rows, accelerator):
    asked: list[int] = []
    member = member_of(rows)

    def rows_at(step: int) -> Sequence[Row]:
        asked.append(step)
        return member.rows_at(step)

    run_stage(llama, [replace(member, rows_at=rows_at)], [3], accelerator)
    assert asked == [0, 1, 2]


# ------------------------------------------------------------------ pretraining
def test_a_batch_is_padded_on_the_right_to_its_longest_row(rows):
    batch: Batch = collate([rows[:2], rows[2:4]], pad=0)
    for row, ids, labels in zip(rows, batch.ids_BT, batch.labelled_BT, strict=False):
        assert ids.tolist() == row.ids.tolist() + [0] * (len(ids) - len(row.ids))
        assert labels.tolist() == [True] * len(row.ids) + [False] * (len(ids) - len(row.ids))
    assert batch.ids_BT.shape[1] == max(len(row.ids) for row in rows[:4])
