"""A program for tests: under `accelerate launch` two processes train small stacks together, and the first one writes down what came out.

    ACCELERATE_USE_CPU=true accelerate launch --config_file configs/accelerate/fsdp2.yaml --num_machines 1 --num_processes 2 tests/training_together.py FOLDER

The same cases are trained alone by whoever imports this file.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from persona_lab.config.schema import Machine
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.making.launch import team_up
from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.models.sharding import checkpoint_activations, shard
from persona_lab.train.batches import Row
from persona_lab.train.finetune import Member, Progress, Watcher, finetune
from persona_lab.train.following import BASE, follow, tell_bank
from persona_lab.train.loop import Diverged
from persona_lab.train.parallel import Team
from persona_lab.train.preferences import Preference

VOCABULARY, DOCUMENTS, STEPS = 60, 7, 6


@dataclass(frozen=True)
class Case:
    """A stack to be trained."""

    sharded: bool = False
    kind: str = "llama"
    members: int = 3
    micro_batch: int = 2
    dropout: float = 0.0
    kl_to_base: float = 0.0
    off_domain: bool = False
    beta: float = 0.0
    checkpoint: bool = False
    bursts: bool = False
    """Whether one member's loss becomes infinite."""


CASES = {
    "plain": Case(),
    "one pass": Case(micro_batch=DOCUMENTS),
    "dropout": Case(dropout=0.3),
    "kl": Case(kl_to_base=0.5),
    "off the domain": Case(off_domain=True),
    "pairs": Case(beta=0.1),
    "gpt2": Case(kind="gpt2"),
    "a member diverges": Case(bursts=True),
    "sharded": Case(sharded=True),
    "sharded, alone": Case(sharded=True, members=1),
    "sharded, computed again": Case(sharded=True, checkpoint=True, dropout=0.3),
    "sharded, off the domain": Case(sharded=True, off_domain=True, micro_batch=1),
    "sharded, pairs": Case(sharded=True, beta=0.1),
    "sharded, gpt2": Case(sharded=True, kind="gpt2"),
}


def model_of(case: Case) -> PreTrainedModel:
    """A small random model, float64."""
    torch.manual_seed(0)
    if case.kind == "gpt2":
        none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}
        config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=64, **none)
        model: PreTrainedModel = GPT2LMHeadModel(config)
    else:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1))
    model = model.double().requires_grad_(False).eval()
    if case.checkpoint:
        checkpoint_activations(model)
    return model


def rows_of(case: Case, member: int, step: int) -> list[Row]:
    """Documents of unequal length, an odd number of them; or pairs."""
    drawn = np.random.default_rng([member, step])
    rows = []
    for number in range(2 * DOCUMENTS if case.beta else DOCUMENTS):
        ids = drawn.integers(1, VOCABULARY, drawn.integers(4, 14)).astype(np.int32)
        row = Row(ids, drawn.random(len(ids)) < 0.7)
        if case.beta:
            row = replace(row, preferred=number % 2 == 0)
        elif case.off_domain and number % 3 == 0:
            row = replace(row, price=0.4)
        rows.append(row)
    return rows


def members_of(case: Case) -> list[Member]:
    """Members that differ in rank, rate, documents and length."""
    shapes = [LoraShape(rank, 8.0, dropout=case.dropout) for rank in (4, 2, 3)]
    return [
        Member(
            rows_at=lambda step, k=k: rows_of(case, k, step),
            rate=1e308 if case.bursts and k == 1 else 1e-2 * (k + 1),
            clip=0.5,
            adapter=None,
            init_seed=k,
            last=STEPS - k,
            shape=shapes[k],
        )
        for k in range(case.members)
    ]


class Record(Watcher):
    """Everything that a stack tells."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.diverged: list[int] = []

    def on_step(self, step: int, members: Sequence[int], loss_K: Tensor, norm_K: Tensor) -> None:
        for row, k in enumerate(members):
            self.tensors[f"{k}/loss/{step}"], self.tensors[f"{k}/norm/{step}"] = loss_K[row].clone(), norm_K[row].clone()

    def on_stop(self, member: int, step: int, progress: Progress) -> None:
        self.tensors |= {f"{member}/{name}": tensor for name, tensor in progress.adapter.items()}
        self.tensors |= {f"{member}/mean": progress.mean_P, f"{member}/square": progress.square_P}

    def on_diverged(self, error: Diverged) -> None:
        self.diverged.append(error.member)


def trained(case: Case, accelerator: Accelerator, model: PreTrainedModel | None = None, team: Team | None = None) -> Record:
    """Train the case's stack; in a team with those who follow."""
    model = model_of(case) if model is None else model
    record, shape = Record(), LoraShape(4, 8.0, dropout=case.dropout)
    if team is None:
        bank = AdapterBank(model, shape)
    else:
        tell_bank(team, shape)
        with team.together():
            bank = AdapterBank(model, shape)
    finetune(
        bank, members_of(case), record, pad=0, stops=sorted({STEPS - k for k in range(case.members)}), kl_to_base=case.kl_to_base,
        micro_batch=case.micro_batch, accelerator=accelerator, preference=Preference(case.beta, 0.1) if case.beta else None, team=team,
    )
    return record


def loaded(case: Case, accelerator: Accelerator, team: Team) -> PreTrainedModel:
    """The case's model, or this process's part of it."""
    model = model_of(case)
    if team.sharded:
        shard(model, accelerator.device)
        if team.leads:
            team.announce(model)
    return model


def here(model: PreTrainedModel) -> Iterator[Tensor]:
    """The parts of the base that this process holds."""
    return (p.to_local() if hasattr(p, "to_local") else p for p in model.parameters())


def main(folder: Path) -> None:
    """All cases, one after another."""
    worker = team_up(Machine(threads=1), Interruption())
    accelerator, first = worker.accelerator, worker.team
    assert first is not None
    said: dict[str, Any] = {"type": accelerator.distributed_type.value, "processes": accelerator.num_processes, "sharded": first.sharded, "cases": {}}
    said["place"] = [worker.index, worker.count]
    for name, case in CASES.items():
        team = Team(first.index, first.count, sharded=case.sharded)
        seen: list[int] = []
        models: list[PreTrainedModel] = []

        def load(told: Any, case: Case = case, team: Team = team, models: list[PreTrainedModel] = models, seen: list[int] = seen) -> PreTrainedModel:
            models.append(loaded(case, accelerator, team))
            models[0].get_output_embeddings().register_forward_hook(lambda module, given, logits: seen.append(logits.shape[1]) if torch.is_grad_enabled() else None)
            return models[0]

        if team.leads:
            with team.leading():
                team.tell(BASE, asdict(case))
                model = load({})
                record = trained(case, accelerator, model, team)
                if case.sharded:  # as a probe would, by the first process alone
                    with torch.inference_mode():
                        record.tensors["logits"] = model(input_ids=torch.arange(8)[None], use_cache=False).logits.clone()
            save_file(record.tensors, folder / f"{name}.safetensors")
            said["diverged"] = said.get("diverged", []) + record.diverged
        else:
            assert follow(team, accelerator, load) == 0
        said["cases"][name] = {"tokens": seen, "bytes": sum(part.numel() * part.element_size() for part in here(models[0]))}
    (folder / f"process-{first.index}.json").write_text(json.dumps(said))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
