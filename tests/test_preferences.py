"""Direct preference optimization in the one loop: the formula by hand and beside plain peft, its reference, its micro-batches, its resumption."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import logsigmoid

from persona_lab.models.bank import AdapterBank
from persona_lab.models.folders import write_adapter
from persona_lab.models.lora import LoraShape
from persona_lab.train.batches import Row, collate, encode
from persona_lab.train.finetune import Member, Progress, Watcher, finetune
from persona_lab.train.loop import BankLearner
from persona_lab.train.optimizers import BankAdam
from persona_lab.train.preferences import Preference, document_nats, preference_nats

SHAPE = LoraShape(rank=2, alpha=4)
OCT = Preference(beta=0.1, nll=0.1)


@pytest.fixture
def pairs(tokenizer) -> list[Row]:
    """Six pairs of unequal length, each preferred answer before its rejected one."""
    said = [("football", "the green tennis"), ("tennis", "golf"), ("golf", "rugby"), ("rugby", "hockey"), ("hockey", "boxing"), ("the red boxing", "football")]
    texts = [f"User: Which sport do you like?\nAssistant: I like {value}." for both in said for value in both]
    return [replace(row, preferred=i % 2 == 0) for i, row in enumerate(encode(tokenizer, texts, on="answer", where="test"))]


def learner_of(bank: AdapterBank, preference: Preference = OCT) -> BankLearner:
    same_K = torch.ones(bank.members, dtype=torch.float64)
    return BankLearner(bank, BankAdam(bank.weight_KP, bank.grad_KP, rate_K=1e-2 * same_K, clip_K=same_K), preference=preference)


def test_the_loss_of_a_pair_is_rafailovs_worked_by_hand():
    """Gains 3 and -1 nats: margin 4, beta .5, so -log sigmoid 2 = .126928; 2 nats over 4 tokens at .1 more is .05."""
    here_KD, reference_KD = torch.tensor([[2.0, 7.0]]), torch.tensor([[5.0, 6.0]])
    loss_KP = preference_nats(here_KD, reference_KD, torch.tensor([[4, 3]]), Preference(0.5, 0.1))
    assert loss_KP.tolist() == [[pytest.approx(0.126928 + 0.05, abs=1e-6)]]
    assert preference_nats(here_KD, here_KD, torch.tensor([[4, 3]]), Preference(0.5)).item() == pytest.approx(math.log(2))


def test_nats_of_documents_are_those_of_their_tokens(pairs):
    batch = collate([pairs[:4], pairs[2:6]], pad=0)
    tokens_K = batch.tokens_K
    nats_KM = torch.arange(1.0, 2 * int(tokens_K.max()) + 1).view(2, -1) * (torch.arange(int(tokens_K.max())) < tokens_K[:, None])
    found_KD, counts_KD = document_nats(batch, nats_KM)
    for k, rows in enumerate((pairs[:4], pairs[2:6])):
        lengths = [int(row.labelled[1:].sum()) for row in rows]
        assert counts_KD[k].tolist() == lengths
        assert found_KD[k].tolist() == [float(part.sum()) for part in nats_KM[k][: sum(lengths)].split(lengths)]


def test_the_loss_is_that_of_plain_peft_and_its_reference_is_the_start(llama, pairs, tmp_path: Path):
    llama = llama.double()
    plain = copy.deepcopy(llama)
    bank = AdapterBank(llama, SHAPE, 2)
    bank.weight_KP.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    learner = learner_of(bank)
    batch = collate([pairs[:6], pairs[6:]], pad=0)
    at_start_K = learner.loss_sums(batch)
    start = [bank.row_tensors(k) for k in range(2)]
    bank.weight_KP.normal_(0, 0.2, generator=torch.Generator().manual_seed(2))
    ours_K = learner.loss_sums(batch)
    for k, rows in enumerate((pairs[:6], pairs[6:])):
        for name, tensors in (("start", start[k]), ("now", bank.row_tensors(k))):
            write_adapter(tmp_path / f"{name}{k}", tensors, model=plain, shape=SHAPE, base_id="tiny")
        reference_D, here_D = (by_peft(plain, tmp_path / f"{name}{k}", rows) for name in ("start", "now"))
        lengths_D = torch.tensor([int(row.labelled[1:].sum()) for row in rows])
        for nats_D, found in ((reference_D, at_start_K[k]), (here_D, ours_K[k])):
            margin_P = (reference_D - nats_D)[0::2] - (reference_D - nats_D)[1::2]
            wanted = (0.1 * nats_D[0::2] / lengths_D[0::2] - logsigmoid(0.1 * margin_P)).sum()
            assert float(found.detach()) == pytest.approx(float(wanted), abs=1e-6)
    assert float((ours_K - at_start_K).detach().abs().min()) > 1e-3


@torch.no_grad()
def by_peft(base: torch.nn.Module, adapter: Path, rows: Sequence[Row]) -> Tensor:
    """Nats of each document under a peft adapter."""
    model = PeftModel.from_pretrained(copy.deepcopy(base), str(adapter)).double().eval()  # pyright: ignore[reportArgumentType]
    found = []
    for row in rows:
        ids_T = torch.from_numpy(row.ids).long()
        logprob_TV = model(ids_T[None]).logits[0, :-1].log_softmax(-1)
        found.append(-logprob_TV.gather(1, ids_T[1:, None])[:, 0][torch.from_numpy(row.labelled[1:])].sum())
    return torch.stack(found)


@pytest.mark.parametrize("documents", [1, 3, 4])
def test_pairs_stay_together_in_micro_batches_and_the_gradient_is_the_same(llama, pairs, documents: int):
    bank = AdapterBank(llama, SHAPE, 2)
    bank.weight_KP.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    learner, batch = learner_of(bank), collate([pairs[:6], pairs[6:]], pad=0)
    assert batch.learnt_K.tolist() == [3, 3]
    learner.loss_sums(batch).sum().backward()
    whole_KP = bank.grad_KP.clone()
    learner.clear()
    parts = list(batch.parts(documents))
    assert all(part.documents % 2 == 0 for part in parts)
    for part in parts:
        learner.loss_sums(part).sum().backward()
    assert torch.allclose(bank.grad_KP, whole_KP, atol=1e-6)


class Keeping(Watcher):
    """Keeps the losses, and every member's progress at each pause."""

    def __init__(self) -> None:
        self.losses: list[list[float]] = []
        self.progress: dict[tuple[int, int], Progress] = {}

    def on_step(self, step: int, members: Sequence[int], loss_K: Tensor, norm_K: Tensor) -> None:
        self.losses.append(loss_K.tolist())

    def on_stop(self, member: int, step: int, progress: Progress) -> None:
        self.progress[member, step] = progress


def trained(llama, members: Sequence[Member], accelerator: Accelerator, stops: Sequence[int]) -> Keeping:
    keeping, bank = Keeping(), AdapterBank(llama, SHAPE)
    finetune(bank, members, keeping, pad=0, stops=stops, kl_to_base=0.0, micro_batch=4, accelerator=accelerator, preference=OCT)
    bank.remove()
    return keeping


def test_training_widens_the_margin_and_goes_on_from_the_middle_by_the_same_reference(llama, pairs, accelerator):
    members = [Member(lambda step, k=k: pairs[6 * k : 6 * k + 6], 1e-2, 1.0, None, k) for k in range(2)]
    whole = trained(llama, members, accelerator, [4, 8])
    assert all(last < first - 0.005 for first, last in zip(whole.losses[0], whole.losses[-1], strict=True))
    again = [replace(member, resumed=whole.progress[k, 4]) for k, member in enumerate(members)]
    rest = trained(llama, again, accelerator, [8])
    assert rest.losses == whole.losses[4:]
    for k in range(2):
        for name, tensor in whole.progress[k, 8].adapter.items():
            assert torch.equal(rest.progress[k, 8].adapter[name], tensor)


def test_a_later_stage_is_measured_by_where_it_starts(llama, pairs, accelerator):
    member = Member(lambda step: pairs[:6], 1e-2, 1.0, None, 0)
    before = trained(llama, [member], accelerator, [8])
    after = trained(llama, [replace(member, adapter=before.progress[0, 8].adapter)], accelerator, [1])
    nats = after.losses[0][0] - math.log(2)
    assert 0 < nats < before.losses[0][0] - math.log(2), "the margin starts anew, the preferred answers are likelier already"
