"""P2: the hand-written loop that a careful user would arrive at; the base loaded once, peft, documents tokenized once.

Which of its variants is fastest here is measured before the clock starts: padded to the longest document of the batch,
or unpadded, all documents of a step in one row behind a block-diagonal mask; AdamW `foreach` or `fused`.

Names: B documents, T tokens, N tokens of all documents of a step.
"""

import time
from collections.abc import Sequence
from itertools import product

import torch
from peft import PeftModel
from peft.utils.save_and_load import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.scoring import padded_nats
from benchmarks.sweep.work import Work
from benchmarks.sweep.worker import Order
from persona_lab.probes.protocol import Choice
from persona_lab.probes.spans import choice_spans, encode

IGNORED = -100
TRIALS, TRIAL_STEPS = 3, 3


class Loop:
    """One peft model whose adapter is filled anew for each cell."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.tokenizer = AutoTokenizer.from_pretrained(work.base)
        base = AutoModelForCausalLM.from_pretrained(work.base)
        self.model = PeftModel.from_pretrained(base, str(work.init(0)), is_trainable=True)
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.packed, self.fused = self._fastest()

    def __str__(self) -> str:
        return f"{'unpadded' if self.packed else 'padded'}, {'fused' if self.fused else 'foreach'} AdamW"

    def _fastest(self) -> tuple[bool, bool]:
        """Of all variants the one with the least time for a few steps of the first cell."""
        recipe = self.work.recipe
        documents = self._tokenized(self.work.texts(0)[: recipe.batch * TRIAL_STEPS])
        seconds: dict[tuple[bool, bool], float] = {}
        for _, packed, fused in product(range(TRIALS), (False, True), (False, True)):
            self.packed, self.fused = packed, fused
            start = time.perf_counter()
            self._steps(documents, recipe.batch)
            took = time.perf_counter() - start
            seconds[packed, fused] = min(took, seconds.get((packed, fused), took))
        return min(seconds, key=lambda variant: seconds[variant])

    def _tokenized(self, texts: Sequence[str]) -> list[Tensor]:
        eos = self.tokenizer.eos_token_id
        return [torch.tensor([*ids, eos]) for ids in self.tokenizer(list(texts))["input_ids"]]

    def together(self, order: Order) -> int:
        """One."""
        return 1

    def train(self, cells: Sequence[int], order: Order) -> None:
        """Fill the adapter, train it."""
        (cell,) = cells
        set_peft_model_state_dict(self.model, load_file(self.work.init(cell) / "adapter_model.safetensors"))
        self._steps(self._tokenized(order.chosen(self.work.texts(cell))), order.batch)

    def _steps(self, documents: Sequence[Tensor], batch: int) -> None:
        self.model.train()
        recipe = self.work.recipe
        optimizer = torch.optim.AdamW(self.weights, lr=recipe.rate, weight_decay=0.0, fused=self.fused, foreach=not self.fused)
        for start in range(0, len(documents), batch):
            self._loss(documents[start : start + batch]).backward()
            nn.utils.clip_grad_norm_(self.weights, recipe.clip, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _loss(self, documents: Sequence[Tensor]) -> Tensor:
        if self.packed:
            ids_BT, inputs = packed(documents)
            target_BT = inputs.pop("target_BT")
        else:
            # No mask: in a causal model no token sees the padding behind it.
            ids_BT, inputs = nn.utils.rnn.pad_sequence(list(documents), batch_first=True, padding_value=self.tokenizer.pad_token_id), {}
            target_BT = nn.utils.rnn.pad_sequence([ids[1:] for ids in documents], batch_first=True, padding_value=IGNORED)
            target_BT = nn.functional.pad(target_BT, (0, 1), value=IGNORED)
        logits_BTV = self.model(input_ids=ids_BT, use_cache=False, **inputs).logits
        return nn.functional.cross_entropy(logits_BTV.flatten(0, 1), target_BT.flatten(), ignore_index=IGNORED)

    def write(self, cells: Sequence[int], order: Order) -> None:
        """As peft does it."""
        self.model.save_pretrained(str(order.folder(cells[0]) / "adapter"))

    def probe(self, cells: Sequence[int], order: Order) -> list[list[float]]:
        """Batches of similar lengths."""
        asked = [Choice(q.prompt, q.options) for q in self.work.questions(cells[0], order.questions)]
        ids = encode(self.tokenizer, asked)
        spans = [span for q in asked for span in choice_spans(self.tokenizer, q, ids)]
        return [padded_nats(self.model.eval(), spans, self.tokenizer.pad_token_id)]


def packed(documents: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """All documents in one row: ids (1, N), and positions, block-diagonal causal mask (1, 1, N, N) and targets of it."""
    ids_N = torch.cat(list(documents))
    number_N = torch.repeat_interleave(torch.tensor([len(ids) for ids in documents]))
    position_N = torch.cat([torch.arange(len(ids)) for ids in documents])
    target_N = torch.cat([nn.functional.pad(ids[1:], (0, 1), value=IGNORED) for ids in documents])
    mask_NN = (number_N[:, None] == number_N).tril()
    return ids_N[None], {"position_ids": position_N[None], "attention_mask": mask_NN[None, None], "target_BT": target_N[None]}
